//! A server under load, seen from outside: latencies, throughput and start-up over real HTTP.
//!
//! The load is a closed loop: so many callers, each sending its next request when the last one has been
//! answered, with unequal prompts and lengths drawn from a seed. Callers run on one thread in this
//! process, so on a small machine they take time from the server; a figure is a floor of what the server
//! alone can do. Levels of concurrency take turns, and each round's warm-up is left out.
#![allow(
    clippy::print_stdout,
    reason = "a benchmark's result is what it prints"
)]

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use clap::Parser;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use reqwest::Client;
use serde::Deserialize;
use serde_json::json;

/// Shortest prompt and answer in tokens.
const SHORTEST: usize = 8;

/// Measures a server under load.
#[derive(Parser, Clone)]
struct Args {
    /// Load this server instead of starting one
    #[arg(long)]
    url: Option<String>,
    /// Model of the server that is started [default: the embedded one]
    #[arg(long)]
    model_id: Option<String>,
    /// Further arguments of the server that is started, in one string
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    serve_args: String,
    /// Callers
    #[arg(long, value_delimiter = ',', default_value = "1,8,32,64")]
    concurrency: Vec<usize>,
    /// Longest prompt, and longest answer, in tokens; half the context at most
    #[arg(long, default_value_t = 512)]
    longest: usize,
    /// Seconds of one sample
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Seconds of load before a sample begins
    #[arg(long, default_value_t = 2.0)]
    warm_up: f64,
    /// Samples of each line; lines take turns
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds to the first token that count as good
    #[arg(long, default_value_t = 1.0)]
    slo_ttft: f64,
    /// Mean milliseconds between tokens that count as good
    #[arg(long, default_value_t = 100.0)]
    slo_itl_ms: f64,
    /// Starts of the server to time; 0 leaves them out
    #[arg(long, default_value_t = 5)]
    starts: usize,
    /// Seed of the load
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    if args.url.is_none() && args.starts > 0 {
        let mut times = Vec::new();
        for _ in 0..args.starts {
            times.push(runtime.block_on(start_to_first_answer(&args))?);
        }
        report_start(&args, &mut times);
    }
    let server = match &args.url {
        Some(_) => None,
        None => Some(Server::start(&args)?),
    };
    let url = server
        .as_ref()
        .map_or_else(|| args.url.clone(), |server| Some(server.url.clone()));
    runtime.block_on(load(&args, &url.ok_or("no server")?))
}

/// A server of our own; dropping it ends it.
struct Server {
    process: Child,
    url: String,
}

impl Server {
    /// Starts the server and waits until it listens.
    fn start(args: &Args) -> Result<Self, Box<dyn Error>> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sconce"));
        command.args(["serve", "--hostname", "127.0.0.1", "--port", "0"]);
        if let Some(model) = &args.model_id {
            command.args(["--model-id", model]);
        }
        command.args(args.serve_args.split_whitespace());
        let mut process = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let log = BufReader::new(process.stderr.take().ok_or("the server has no log")?);
        let mut server = Self {
            process,
            url: String::new(),
        };
        let (line, lines) = mpsc::channel();
        // The log is read to its end, so that the server never waits for a reader.
        std::thread::spawn(move || {
            for text in log.lines().map_while(Result::ok) {
                // Nobody listens once the address is known.
                let _ = line.send(text);
            }
        });
        let mut said = String::new();
        while let Ok(line) = lines.recv_timeout(Duration::from_secs(60)) {
            if let Some((_, address)) = line.split_once("Connected address=") {
                let address = address.split_whitespace().next().unwrap_or_default();
                server.url = format!("http://{address}");
                return Ok(server);
            }
            said = said + &line + "\n";
        }
        Err(format!("the server does not listen; it said:\n{said}").into())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Either may fail only because the process is gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Time from starting the process to the end of its first answer.
async fn start_to_first_answer(args: &Args) -> Result<Duration, Box<dyn Error>> {
    let client = Client::new();
    let began = Instant::now();
    let server = Server::start(args)?;
    let body = json!({ "inputs": "Once upon a time", "parameters": { "max_new_tokens": 16 } });
    let answer = client
        .post(format!("{}/generate", server.url))
        .json(&body)
        .send()
        .await?;
    answer.error_for_status()?.bytes().await?;
    Ok(began.elapsed())
}

fn report_start(args: &Args, times: &mut [Duration]) {
    times.sort_unstable();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let (median, best) = (ms(times[times.len() / 2]), ms(times[0]));
    if args.json {
        let line =
            json!({ "start_to_first_answer_ms": median, "best_ms": best, "starts": times.len() });
        println!("{line}");
    } else {
        println!(
            "start to first answer: {median:.0} ms (best {best:.0}, {} starts)",
            times.len()
        );
    }
}

/// The part of `/info` that bounds the load.
#[derive(Deserialize)]
struct Info {
    model_id: String,
    max_total_tokens: usize,
    max_input_tokens: usize,
}

/// What one request came to.
struct Answer {
    began: Instant,
    /// When each token arrived.
    tokens: Vec<Instant>,
    input_tokens: usize,
    failed: bool,
}

impl Answer {
    fn ttft_s(&self) -> Option<f64> {
        self.tokens
            .first()
            .map(|&first| (first - self.began).as_secs_f64())
    }

    fn mean_gap_ms(&self) -> f64 {
        match self.tokens[..] {
            [first, .., last] => {
                (last - first).as_secs_f64() * 1e3 / (self.tokens.len() - 1) as f64
            }
            _ => 0.0,
        }
    }
}

/// What a line has measured, over all rounds.
#[derive(Default)]
struct Line {
    ttft_ms: Vec<f64>,
    gaps_ms: Vec<f64>,
    tokens_per_s: Vec<f64>,
    input_tokens_per_s: Vec<f64>,
    requests_per_s: Vec<f64>,
    good_per_s: Vec<f64>,
    failed: usize,
}

async fn load(args: &Args, url: &str) -> Result<(), Box<dyn Error>> {
    let client = Client::new();
    let info: Info = client
        .get(format!("{url}/info"))
        .send()
        .await?
        .json()
        .await?;
    let mut lines: Vec<Line> = args.concurrency.iter().map(|_| Line::default()).collect();
    for round in 0..args.rounds {
        for (&concurrency, line) in args.concurrency.iter().zip(&mut lines) {
            sample(args, url, &client, &info, concurrency, round, line).await?;
        }
    }
    if !args.json {
        println!(
            "{} · {} s a sample, {} rounds",
            info.model_id, args.seconds, args.rounds
        );
        println!(
            "{:>11} {:>9} {:>9} {:>8} {:>8} {:>9} {:>10} {:>9} {:>9} {:>7}",
            "concurrency",
            "ttft p50",
            "ttft p95",
            "itl p50",
            "itl p99",
            "tokens/s",
            "+ prompt",
            "requests",
            "goodput",
            "failed",
        );
    }
    for (concurrency, mut line) in args.concurrency.iter().zip(lines) {
        let ttft = [
            percentile(&mut line.ttft_ms, 0.5),
            percentile(&mut line.ttft_ms, 0.95),
        ];
        let itl = [
            percentile(&mut line.gaps_ms, 0.5),
            percentile(&mut line.gaps_ms, 0.99),
        ];
        let tokens = percentile(&mut line.tokens_per_s, 0.5);
        let with_prompts = tokens + percentile(&mut line.input_tokens_per_s, 0.5);
        let requests = percentile(&mut line.requests_per_s, 0.5);
        let goodput = percentile(&mut line.good_per_s, 0.5);
        if args.json {
            let line = json!({
                "model": info.model_id, "concurrency": concurrency,
                "ttft_p50_ms": ttft[0], "ttft_p95_ms": ttft[1],
                "itl_p50_ms": itl[0], "itl_p99_ms": itl[1],
                "tokens_per_s": tokens, "tokens_with_prompts_per_s": with_prompts,
                "requests_per_s": requests, "goodput_per_s": goodput, "failed": line.failed,
                "slo_ttft_s": args.slo_ttft, "slo_itl_ms": args.slo_itl_ms, "rounds": args.rounds,
            });
            println!("{line}");
        } else {
            println!(
                "{concurrency:>11} {:>9.1} {:>9.1} {:>8.2} {:>8.2} {tokens:>9.0} {with_prompts:>10.0} {requests:>9.2} {goodput:>9.2} {:>7}",
                ttft[0], ttft[1], itl[0], itl[1], line.failed,
            );
        }
    }
    Ok(())
}

/// Loads the server for a while and adds what was seen to a line.
async fn sample(
    args: &Args,
    url: &str,
    client: &Client,
    info: &Info,
    concurrency: usize,
    round: usize,
    line: &mut Line,
) -> Result<(), Box<dyn Error>> {
    let from = Instant::now() + Duration::from_secs_f64(args.warm_up);
    let until = from + Duration::from_secs_f64(args.seconds);
    let half = info.max_input_tokens.min(info.max_total_tokens / 2);
    let longest = args.longest.min(half).max(SHORTEST);
    let callers: Vec<_> = (0..concurrency)
        .map(|caller| {
            let stream = (round * 1_000_000 + concurrency * 1_000 + caller) as u64;
            let mut draws = Draws(ChaCha8Rng::seed_from_u64(args.seed));
            draws.0.set_stream(stream);
            let (client, url) = (client.clone(), format!("{url}/generate_stream"));
            tokio::spawn(async move {
                let mut answers = Vec::new();
                while Instant::now() < until {
                    answers.push(ask(&client, &url, &mut draws, longest).await);
                }
                answers
            })
        })
        .collect();
    let inside = |at: Instant| (from..until).contains(&at);
    let (mut tokens, mut input_tokens, mut requests, mut good) = (0, 0, 0, 0);
    for caller in callers {
        for answer in caller.await? {
            line.failed += usize::from(answer.failed);
            let Some(ttft_s) = answer.ttft_s().filter(|_| !answer.failed) else {
                continue;
            };
            if inside(answer.began) {
                line.ttft_ms.push(ttft_s * 1e3);
            }
            if inside(answer.tokens[0]) {
                input_tokens += answer.input_tokens;
            }
            tokens += answer.tokens.iter().filter(|&&at| inside(at)).count();
            let gaps = answer.tokens.windows(2).filter(|pair| inside(pair[1]));
            line.gaps_ms
                .extend(gaps.map(|pair| (pair[1] - pair[0]).as_secs_f64() * 1e3));
            if answer.tokens.last().is_some_and(|&last| inside(last)) {
                requests += 1;
                let met = ttft_s <= args.slo_ttft && answer.mean_gap_ms() <= args.slo_itl_ms;
                good += usize::from(met);
            }
        }
    }
    line.tokens_per_s
        .push(f64::from(tokens as u32) / args.seconds);
    line.input_tokens_per_s
        .push(input_tokens as f64 / args.seconds);
    line.requests_per_s.push(f64::from(requests) / args.seconds);
    line.good_per_s.push(good as f64 / args.seconds);
    Ok(())
}

/// Where a caller's requests come from.
struct Draws(ChaCha8Rng);

impl Draws {
    fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A length between the shortest and `longest`, its logarithm uniform.
    fn length(&mut self, longest: usize) -> usize {
        let (low, high) = ((SHORTEST as f64).ln(), (longest as f64).ln());
        (low + self.unit() * (high - low)).exp().round() as usize
    }

    /// A text of at least so many tokens, sharing no beginning with another but by chance.
    fn text(&mut self, tokens: usize) -> String {
        const SENTENCES: [&str; 16] = [
            "Once upon a time there was a little girl named Lily.",
            "One day Tom and his dog went to the park.",
            "The sun was warm and the sky was blue.",
            "She saw a big red ball near the old tree.",
            "\"Can I play with you?\" asked the boy.",
            "They ran and jumped and laughed all day.",
            "Then it began to rain and the cat was wet.",
            "His mother gave him an apple and a cup of milk.",
            "The bird wanted to fly but its wing was hurt.",
            "Ben was sad because he could not find his toy.",
            "\"Do not worry,\" said the kind old man.",
            "They looked under the bed and behind the door.",
            "In the forest there lived a small brown bear.",
            "Anna made a cake for her friend.",
            "At last they found the way home.",
            "Everyone was happy again.",
        ];
        let mut text = String::new();
        // A word is at least one token.
        let mut words = 0;
        while words < tokens {
            let sentence = SENTENCES[self.0.next_u32() as usize % SENTENCES.len()];
            words += sentence.split(' ').count();
            text.push_str(sentence);
            text.push(' ');
        }
        text.truncate(text.len() - 1);
        text
    }
}

/// One token of an answer, or an error.
#[derive(Deserialize)]
struct Event {
    error: Option<String>,
    details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    input_length: usize,
}

/// Sends one request and takes in its answer.
async fn ask(client: &Client, url: &str, draws: &mut Draws, longest: usize) -> Answer {
    let (input, output) = (draws.length(longest), draws.length(longest));
    let body = json!({
        "inputs": draws.text(input),
        "parameters": {
            "truncate": input, "max_new_tokens": output, "do_sample": true,
            "seed": draws.0.next_u32(), "details": true,
        },
    });
    let mut answer = Answer {
        began: Instant::now(),
        tokens: Vec::new(),
        input_tokens: 0,
        failed: false,
    };
    if receive(client, url, &body, &mut answer).await.is_err() {
        answer.failed = true;
    }
    answer
}

async fn receive(
    client: &Client,
    url: &str,
    body: &serde_json::Value,
    answer: &mut Answer,
) -> Result<(), Box<dyn Error>> {
    let mut response = client
        .post(url)
        .json(body)
        .send()
        .await?
        .error_for_status()?;
    let mut pending = Vec::new();
    while let Some(bytes) = response.chunk().await? {
        let now = Instant::now();
        pending.extend_from_slice(&bytes);
        while let Some(end) = pending.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let Some(data) = line.strip_prefix(b"data:") else {
                continue;
            };
            let event: Event = serde_json::from_slice(data)?;
            if let Some(error) = event.error {
                return Err(error.into());
            }
            answer.tokens.push(now);
            if let Some(details) = event.details {
                answer.input_tokens = details.input_length;
            }
        }
    }
    if answer.tokens.is_empty() {
        Err("an answer without tokens".into())
    } else {
        Ok(())
    }
}

/// The value that a share of the others does not exceed; not a number when there are none.
fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    values
        .get((last as f64 * share).round() as usize)
        .copied()
        .unwrap_or(f64::NAN)
}
