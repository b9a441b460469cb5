//! What forwarding costs: the same load straight to an upstream, past a bare relay of bytes, through sconce,
//! and through LiteLLM's proxy.
//!
//! Everything runs on this machine, load and upstreams included, so on two cores each side takes from the
//! other; that is the setting of a small server, and the reason why processor time per request is shown
//! beside the rates. Cases and paths take turns within a round, and medians over the rounds are shown. The
//! latency that a proxy adds is its percentile less the same percentile of the direct path.
#![allow(
    clippy::print_stdout,
    reason = "a benchmark's result is what it prints"
)]

mod paced;
mod relay;
mod servers;
mod wrk;

use std::error::Error;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, ValueEnum};
use serde_json::json;

use servers::{Server, TEXT};

/// Measures the remote path.
#[derive(Parser, Clone)]
struct Args {
    /// Ways to the upstream
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "direct,relay,sconce,litellm"
    )]
    paths: Vec<Way>,
    /// Clients at once that send small requests
    #[arg(long, value_delimiter = ',', default_value = "1,32")]
    clients: Vec<usize>,
    /// Streams at once; 0 leaves them out
    #[arg(long, default_value_t = 200)]
    streams: usize,
    /// Tokens of a stream
    #[arg(long, default_value_t = 40)]
    tokens: usize,
    /// Milliseconds between the tokens of a stream
    #[arg(long, default_value_t = 50)]
    pace_ms: u64,
    /// Seconds of one sample
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Samples of each line; lines take turns
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// After the rounds: so many requests through sconce at 32 clients, watching its memory
    #[arg(long, default_value_t = 0)]
    soak: u64,
    /// The proxy of LiteLLM; `benches/remote/run` installs it there
    #[arg(long, default_value = "target/remote/litellm/bin/litellm")]
    litellm: PathBuf,
    /// The binary of the path `other`
    #[arg(long)]
    other: Option<PathBuf>,
    /// Where settings and logs of the servers are written
    #[arg(long, default_value = "target/remote")]
    folder: PathBuf,
    /// sconce's audit lines are written before what they tell of leaves, but not synced to the disk
    #[arg(long)]
    unsynced: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// A way from the load to the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
enum Way {
    Direct,
    /// Past a relay of bytes, which is the least that a hop costs here
    Relay,
    Sconce,
    /// The same to upstreams that are paid by the token: money is held on the disk before each request leaves
    Paid,
    /// Another sconce, such as one of before a change
    Other,
    LiteLlm,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relay => "relay",
            Self::Sconce => "sconce",
            Self::Paid => "paid",
            Self::Other => "other",
            Self::LiteLlm => "litellm",
        }
    }
}

/// A row of the table: what was asked for, by which path.
struct Line {
    case: String,
    path: Way,
    samples: Vec<Sample>,
}

/// One sample of a row.
#[derive(Clone, Copy)]
struct Sample {
    p50_ms: f64,
    p99_ms: f64,
    /// Answers a second.
    per_s: f64,
    /// Microseconds of the proxy's processor time per answer.
    processor_us: f64,
    failed: f64,
}

/// The middle of the rounds, value by value.
fn median(samples: &[Sample]) -> Sample {
    let middle = |value: fn(&Sample) -> f64| {
        let mut values: Vec<f64> = samples.iter().map(value).collect();
        percentile(&mut values, 0.5)
    };
    Sample {
        p50_ms: middle(|s| s.p50_ms),
        p99_ms: middle(|s| s.p99_ms),
        per_s: middle(|s| s.per_s),
        processor_us: middle(|s| s.processor_us),
        failed: samples.iter().map(|s| s.failed).sum(),
    }
}

/// How many times one is the other; none where noise has swallowed either.
fn ratio(theirs: f64, ours: f64) -> Option<f64> {
    (theirs > 0.0 && ours > 0.0).then_some(theirs / ours)
}

fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let index = (values.len() as f64 * share) as usize;
    let found = values.get(index.min(values.len().saturating_sub(1)));
    found.copied().unwrap_or(f64::NAN)
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    fs::create_dir_all(&args.folder)?;
    let folder = fs::canonicalize(&args.folder)?;
    let shape = paced::Shape {
        streams: args.streams,
        tokens: args.tokens,
        pace: Duration::from_millis(args.pace_ms),
        time: Duration::from_secs(args.seconds),
        warm_up: Duration::from_millis(args.pace_ms) * args.tokens as u32,
    };
    let object = servers::nginx(&folder, false)?;
    let stream = servers::nginx(&folder, true)?;
    let upstreams = [
        ("json", object.address),
        ("sse", stream.address),
        ("paced", paced::upstream(shape)?),
    ];
    let mut relays = upstreams;
    for (_, address) in &mut relays {
        *address = relay::start(*address)?;
    }
    let mut proxies = Vec::new();
    for &path in &args.paths {
        match path {
            Way::Direct | Way::Relay => {}
            Way::Sconce | Way::Paid | Way::Other => {
                let other = args.other.as_deref().filter(|_| path == Way::Other);
                if path == Way::Other && other.is_none() {
                    return Err("--other names the binary".into());
                }
                let as_it_is = servers::Sconce {
                    name: path.name(),
                    binary: other.unwrap_or(Path::new(env!("CARGO_BIN_EXE_sconce"))),
                    sync: !args.unsynced,
                    paid: path == Way::Paid,
                };
                proxies.push((path, servers::sconce(&folder, &upstreams, &as_it_is)?));
            }
            Way::LiteLlm => {
                proxies.push((path, servers::litellm(&folder, &args.litellm, &upstreams)?));
            }
        }
    }
    let mut bench = Bench {
        shape,
        folder,
        upstreams,
        relays,
        proxies,
        lines: Vec::new(),
        args,
    };
    bench.check()?;
    let fresh = bench.memory();
    for _ in 0..bench.args.rounds {
        bench.round()?;
    }
    bench.report(&fresh);
    bench.soak()
}

struct Bench {
    args: Args,
    shape: paced::Shape,
    folder: PathBuf,
    /// By the model's name.
    upstreams: [(&'static str, SocketAddr); 3],
    /// The same, each past a relay.
    relays: [(&'static str, SocketAddr); 3],
    proxies: Vec<(Way, Server)>,
    lines: Vec<Line>,
}

impl Bench {
    fn proxy(&self, path: Way) -> Option<&Server> {
        let found = self.proxies.iter().find(|(way, _)| *way == path);
        found.map(|(_, server)| server)
    }

    /// Where a path begins for a model, and the key to show there.
    fn entrance(&self, path: Way, model: &str) -> (SocketAddr, String) {
        if let Some(server) = self.proxy(path) {
            return (server.address, server.key.clone());
        }
        let ways = match path {
            Way::Relay => &self.relays,
            _ => &self.upstreams,
        };
        let upstream = ways.iter().find(|(name, _)| *name == model);
        (upstream.expect("a model of ours").1, "none".to_owned())
    }

    /// Asks for every model by every path once.
    fn check(&self) -> Result<(), Box<dyn Error>> {
        for &path in &self.args.paths {
            for (model, text) in [("json", TEXT), ("sse", "[DONE]"), ("paced", "[DONE]")] {
                let (address, key) = self.entrance(path, model);
                let body = wrk::body(model, model != "json");
                wrk::check(address, &key, &body, text)
                    .map_err(|e| format!("{} {model}: {e}", path.name()))?;
            }
        }
        Ok(())
    }

    /// Memory of every proxy in MB.
    fn memory(&self) -> Vec<f64> {
        let memory = self.proxies.iter().map(|(_, server)| server.resident_mb());
        memory.collect()
    }

    /// Processor time of a path's proxy so far.
    fn processor_s(&self, path: Way) -> f64 {
        self.proxy(path).map_or(0.0, Server::processor_s)
    }

    /// One sample of each line.
    fn round(&mut self) -> Result<(), Box<dyn Error>> {
        let time = Duration::from_secs(self.args.seconds);
        for model in ["json", "sse"] {
            for clients in self.args.clients.clone() {
                for path in self.args.paths.clone() {
                    let (address, key) = self.entrance(path, model);
                    let body = wrk::body(model, model == "sse");
                    let load = |time| wrk::run(&self.folder, address, &key, &body, clients, time);
                    load(Duration::from_secs(1))?;
                    let before = self.processor_s(path);
                    let outcome = load(time)?;
                    let taken = self.processor_s(path) - before;
                    // Without an answer there is no latency.
                    let ms = |us: f64| {
                        if outcome.requests > 0 {
                            us / 1e3
                        } else {
                            f64::NAN
                        }
                    };
                    let sample = Sample {
                        p50_ms: ms(outcome.p50_us),
                        p99_ms: ms(outcome.p99_us),
                        per_s: outcome.requests as f64 / outcome.seconds,
                        processor_us: taken * 1e6 / outcome.requests.max(1) as f64,
                        failed: outcome.failed as f64,
                    };
                    let case = format!("{model}, {clients} at once");
                    self.add(case, path, sample);
                }
            }
        }
        if self.args.streams > 0 {
            for path in self.args.paths.clone() {
                self.paced(path)?;
            }
        }
        Ok(())
    }

    /// One sample of the streams by a path.
    fn paced(&mut self, path: Way) -> Result<(), Box<dyn Error>> {
        let (address, key) = self.entrance(path, "paced");
        let before = self.processor_s(path);
        let mut times = paced::load(address, &key, self.shape)?;
        let taken = self.processor_s(path) - before;
        let streams = times.total.len() as f64;
        let shared = Sample {
            p50_ms: f64::NAN,
            p99_ms: f64::NAN,
            per_s: streams / (self.shape.time.as_secs_f64()),
            processor_us: taken * 1e6 / streams.max(1.0),
            failed: times.failed as f64,
        };
        let parts = [
            ("first token", &mut times.first),
            ("each token", &mut times.token),
            ("whole answer", &mut times.total),
        ];
        for (part, values) in parts {
            let sample = Sample {
                p50_ms: percentile(values, 0.5),
                p99_ms: percentile(values, 0.99),
                ..shared
            };
            let case = format!("{} streams, {part}", self.args.streams);
            self.add(case, path, sample);
        }
        Ok(())
    }

    fn add(&mut self, case: String, path: Way, sample: Sample) {
        let line = self.lines.iter_mut();
        match line.into_iter().find(|l| l.case == case && l.path == path) {
            Some(line) => line.samples.push(sample),
            None => self.lines.push(Line {
                case,
                path,
                samples: vec![sample],
            }),
        }
    }

    fn median_of(&self, case: &str, path: Way) -> Option<Sample> {
        let mut lines = self.lines.iter();
        let line = lines.find(|line| line.case == case && line.path == path);
        line.map(|line| median(&line.samples))
    }

    fn report(&self, fresh: &[f64]) {
        if !self.args.json {
            println!(
                "{} s a sample, {} rounds; streams of {} tokens, one each {} ms",
                self.args.seconds, self.args.rounds, self.args.tokens, self.args.pace_ms
            );
            println!(
                "{:<26} {:<8} {:>9} {:>9} {:>9} {:>9} {:>10} {:>9} {:>7}",
                "case",
                "path",
                "p50 ms",
                "p99 ms",
                "+p50 ms",
                "+p99 ms",
                "answers/s",
                "cpu us",
                "failed"
            );
        }
        for Line {
            case,
            path,
            samples,
        } in &self.lines
        {
            let line = median(samples);
            let direct = self.median_of(case, Way::Direct);
            let added = |value: fn(&Sample) -> f64| match &direct {
                Some(direct) if *path != Way::Direct => value(&line) - value(direct),
                _ => f64::NAN,
            };
            let (p50, p99) = (added(|s| s.p50_ms), added(|s| s.p99_ms));
            if self.args.json {
                let line = json!({
                    "case": case, "path": path.name(), "p50_ms": line.p50_ms, "p99_ms": line.p99_ms,
                    "added_p50_ms": p50, "added_p99_ms": p99, "answers_per_s": line.per_s,
                    "processor_us": line.processor_us, "failed": line.failed, "rounds": samples.len(),
                });
                println!("{line}");
            } else {
                let shown = |added: f64| match added.is_nan() {
                    true => "-".to_owned(),
                    false => format!("{added:.3}"),
                };
                println!(
                    "{case:<26} {:<8} {:>9.3} {:>9.3} {:>9} {:>9} {:>10.1} {:>9.0} {:>7}",
                    path.name(),
                    line.p50_ms,
                    line.p99_ms,
                    shown(p50),
                    shown(p99),
                    line.per_s,
                    line.processor_us,
                    line.failed
                );
            }
        }
        for (((path, _), before), after) in self.proxies.iter().zip(fresh).zip(self.memory()) {
            let path = path.name();
            if self.args.json {
                println!(
                    "{}",
                    json!({"path": path, "fresh_mb": before, "loaded_mb": after})
                );
            } else {
                println!("memory of {path}: {before:.0} MB fresh, {after:.0} MB after the rounds");
            }
        }
        self.report_ratios();
    }

    /// How many times LiteLLM's cost is sconce's.
    fn report_ratios(&self) {
        let measured = |line: &&Line| line.path == Way::Sconce;
        for Line { case, .. } in self.lines.iter().filter(measured) {
            let of = |path| self.median_of(case, path);
            let (Some(direct), Some(ours), Some(theirs)) =
                (of(Way::Direct), of(Way::Sconce), of(Way::LiteLlm))
            else {
                continue;
            };
            let added = |value: fn(&Sample) -> f64| {
                ratio(
                    value(&theirs) - value(&direct),
                    value(&ours) - value(&direct),
                )
            };
            let ratios = [
                ("added p50", added(|s| s.p50_ms)),
                ("added p99", added(|s| s.p99_ms)),
                ("processor", ratio(theirs.processor_us, ours.processor_us)),
                ("answers/s", ratio(theirs.per_s, ours.per_s)),
            ];
            if self.args.json {
                let ratios: serde_json::Map<_, _> = ratios
                    .map(|(name, value)| (name.to_owned(), json!(value)))
                    .into_iter()
                    .collect();
                println!("{}", json!({"case": case, "litellm_by_sconce": ratios}));
            } else {
                let shown = ratios.map(|(name, value)| match value {
                    Some(value) => format!("{name} {value:.3}"),
                    None => format!("{name} -"),
                });
                println!("litellm / sconce, {case}: {}", shown.join(", "));
            }
        }
        let memory = |path| self.proxy(path).map(Server::resident_mb);
        if let (Some(ours), Some(theirs)) = (memory(Way::Sconce), memory(Way::LiteLlm)) {
            let ratio = theirs / ours;
            if self.args.json {
                println!("{}", json!({ "memory_ratio": ratio }));
            } else {
                println!("litellm / sconce, memory: {ratio:.1}");
            }
        }
    }

    /// Sends many requests through sconce and watches its memory.
    fn soak(&self) -> Result<(), Box<dyn Error>> {
        if self.args.soak == 0 {
            return Ok(());
        }
        if let Some(server) = self.proxy(Way::Sconce) {
            let (mut sent, mut failed) = (0, 0);
            let said = |sent: u64, failed: u64| {
                let memory = server.resident_mb();
                if self.args.json {
                    println!(
                        "{}",
                        json!({"sent": sent, "failed": failed, "memory_mb": memory})
                    );
                } else {
                    println!("after {sent} requests ({failed} failed): {memory:.1} MB");
                }
            };
            said(0, 0);
            while sent < self.args.soak {
                // Objects and streams take turns.
                for model in ["json", "sse"] {
                    let body = wrk::body(model, model == "sse");
                    let time = Duration::from_secs(self.args.seconds.max(5));
                    let folder: &Path = &self.folder;
                    let outcome = wrk::run(folder, server.address, &server.key, &body, 32, time)?;
                    sent += outcome.requests;
                    failed += outcome.failed;
                }
                said(sent, failed);
            }
        }
        Ok(())
    }
}
