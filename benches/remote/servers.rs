//! The servers of the benchmark, each a process of its own that ends when dropped: nginx as an upstream whose
//! answers are fixed, and the two proxies in front of it.

use std::error::Error;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What stands in the answers of nginx.
pub(crate) const TEXT: &str = "there";

/// What the upstreams say they serve.
pub(crate) const MODELS: &str = r#"{"object":"list","data":[{"id":"json","object":"model","created":1,"owned_by":"bench"},{"id":"sse","object":"model","created":1,"owned_by":"bench"},{"id":"paced","object":"model","created":1,"owned_by":"bench"}]}"#;

/// Ticks a second of the times in `/proc`, on every Linux.
const TICKS: f64 = 100.0;

/// A running server.
pub(crate) struct Server {
    process: Child,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// What its callers show.
    pub(crate) key: String,
}

impl Server {
    fn start(
        mut command: Command,
        log: &Path,
        address: SocketAddr,
        key: &str,
    ) -> Result<Self, Box<dyn Error>> {
        let program = command.get_program().to_owned();
        let process = command
            .stdin(Stdio::null())
            .stdout(File::create(log)?)
            .stderr(File::options().append(true).open(log)?)
            .spawn()
            .map_err(|e| format!("{}: {e}", program.display()))?;
        let key = key.to_owned();
        let mut server = Self {
            process,
            address,
            key,
        };
        // An interpreter takes its time on a small machine.
        let until = Instant::now() + Duration::from_secs(120);
        while TcpStream::connect(address).is_err() {
            if server.process.try_wait()?.is_some() || Instant::now() > until {
                let said = fs::read_to_string(log)?;
                return Err(
                    format!("{} does not listen; it said:\n{said}", program.display()).into(),
                );
            }
            std::thread::park_timeout(Duration::from_millis(50));
        }
        Ok(server)
    }

    /// Memory that the process and its children hold, in MB (10^6 bytes).
    pub(crate) fn resident_mb(&self) -> f64 {
        let kib = |pid: &u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let value = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
            value.unwrap_or(0.0)
        };
        self.family().iter().map(kib).sum::<f64>() * 1024.0 / 1e6
    }

    /// Seconds of processor time that they have taken so far.
    pub(crate) fn processor_s(&self) -> f64 {
        let ticks = |pid: &u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // The name, which may hold spaces, ends with the last bracket; user and system time are the
            // twelfth and thirteenth fields after it.
            let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
            let fields = rest.split_whitespace().skip(11).take(2);
            fields.filter_map(|n| n.parse::<f64>().ok()).sum::<f64>()
        };
        self.family().iter().map(ticks).sum::<f64>() / TICKS
    }

    /// The process and all that come from it.
    fn family(&self) -> Vec<u32> {
        let mut all = vec![self.process.id()];
        let mut next = 0;
        while let Some(&pid) = all.get(next) {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
            let children = children.unwrap_or_default();
            all.extend(
                children
                    .split_whitespace()
                    .filter_map(|id| id.parse::<u32>().ok()),
            );
            next += 1;
        }
        all
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Either may fail only because the process is gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A port that is free at the moment.
fn free_port() -> Result<SocketAddr, Box<dyn Error>> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}

/// nginx with a fixed answer at `/v1/chat/completions`: one object, or a stream of 16 tokens.
///
/// Errors: it does not start.
pub(crate) fn nginx(folder: &Path, stream: bool) -> Result<Server, Box<dyn Error>> {
    let address = free_port()?;
    let name = if stream { "nginx-sse" } else { "nginx-json" };
    let folder = folder.join(name);
    fs::create_dir_all(&folder)?;
    let (kind, answer) = if stream {
        ("text/event-stream", fixed_stream())
    } else {
        ("application/json", fixed_object())
    };
    let answer = answer.replace('\n', "\\n");
    let models = MODELS;
    let places: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|place| format!("  {place}_temp_path {place};\n"))
        .concat();
    let config = format!(
        r"daemon off; master_process off; worker_processes 1; pid nginx.pid; error_log stderr error;
events {{ worker_connections 4096; }}
http {{
{places}  access_log off; tcp_nodelay on; keepalive_timeout 600s; keepalive_requests 1000000000;
  server {{
    listen {address};
    location = /v1/chat/completions {{ default_type {kind}; return 200 '{answer}'; }}
    location = /v1/models {{ default_type application/json; return 200 '{models}'; }}
    location / {{ return 404; }}
  }}
}}
"
    );
    let file = folder.join("nginx.conf");
    fs::write(&file, config)?;
    let mut command = Command::new("nginx");
    command.arg("-p").arg(&folder).arg("-c").arg("nginx.conf");
    Server::start(command, &folder.join("log"), address, "none")
}

fn fixed_object() -> String {
    r#"{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"Hello there."},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12}}"#.to_owned()
}

fn fixed_stream() -> String {
    let event = |choices: &str, rest: &str| {
        format!(
            "data: {{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{choices}]{rest}}}\n\n"
        )
    };
    let token = event(
        r#"{"index":0,"delta":{"role":"assistant","content":" there"},"finish_reason":null}"#,
        "",
    );
    let finish = event(r#"{"index":0,"delta":{},"finish_reason":"stop"}"#, "");
    let usage = r#","usage":{"prompt_tokens":9,"completion_tokens":16,"total_tokens":25}"#;
    token.repeat(16) + &finish + &event("", usage) + "data: [DONE]\n\n"
}

/// An upstream's name, which is also the model's, and its address.
pub(crate) type Upstreams<'a> = [(&'a str, SocketAddr)];

/// How a sconce is served.
pub(crate) struct Sconce<'a> {
    /// Its folder's name.
    pub(crate) name: &'a str,
    pub(crate) binary: &'a Path,
    /// Whether audit lines are synced before what they tell of leaves.
    pub(crate) sync: bool,
    /// Whether its upstreams are paid by the token.
    pub(crate) paid: bool,
}

/// sconce without a model, with keys, audit log, decision log, ledger and metrics.
///
/// Errors: it does not start.
pub(crate) fn sconce(
    folder: &Path,
    upstreams: &Upstreams<'_>,
    as_it_is: &Sconce<'_>,
) -> Result<Server, Box<dyn Error>> {
    let &Sconce {
        name,
        binary,
        sync,
        paid,
    } = as_it_is;
    let address = free_port()?;
    let folder = folder.join(name);
    // Keys and logs of an earlier run.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    let place = folder.display();
    let mut settings = format!(
        r#"model_id = "none"
hostname = "{}"
port = {}
max_concurrent_requests = 4096

[egress]
default = "any"

[audit]
path = "{place}/audit.jsonl"
sync = {sync}

[route]
decision_log = "{place}/decisions.jsonl"

[remote]
state_dir = "{place}"
max_concurrent_requests = 4096
"#,
        address.ip(),
        address.port()
    );
    let (billing, price) = match paid {
        true => (
            "billing = \"tokens\"\nmax_usd_per_day = 100000\n",
            "price = { input = 0.1, output = 0.4 }\n",
        ),
        false => ("billing = \"own\"\n", ""),
    };
    for (name, at) in upstreams {
        // nginx gives the same answer whatever it is asked for.
        let streams = *name != "json";
        settings += &format!(
            r#"
[[remote.upstream]]
name = "{name}"
kind = "openai_compat"
engine = "openai"
base_url = "http://{at}"
{billing}max_concurrency = 4096

[[remote.target]]
name = "{name}"
upstream = "{name}"
model = "{name}"
{price}capabilities = {{ streaming = {streams} }}

[[route.model]]
name = "{name}"
local = false
targets = ["{name}"]
"#
        );
    }
    let file = folder.join("sconce.toml");
    fs::write(&file, settings)?;
    let made = Command::new(binary)
        .args(["key", "new", "--name", "bench", "--config"])
        .arg(&file)
        .output()?;
    let said = String::from_utf8_lossy(&made.stdout).into_owned();
    let key = said.split_whitespace().find(|word| word.starts_with("sk-"));
    let key = key.ok_or_else(|| format!("no key in {said:?}: {made:?}"))?;
    let mut command = Command::new(binary);
    command.arg("serve").arg("--config").arg(&file);
    Server::start(command, &folder.join("log"), address, key)
}

/// LiteLLM's proxy as its documentation starts it: one worker, a master key, no database and no callbacks.
///
/// Errors: it does not start.
pub(crate) fn litellm(
    folder: &Path,
    binary: &Path,
    upstreams: &Upstreams<'_>,
) -> Result<Server, Box<dyn Error>> {
    let address = free_port()?;
    let mut settings = "model_list:\n".to_owned();
    for (name, at) in upstreams {
        settings += &format!(
            "  - model_name: {name}\n    litellm_params: {{model: openai/{name}, api_base: \"http://{at}/v1\", api_key: none}}\n"
        );
    }
    settings += "general_settings: {master_key: sk-bench}\n";
    let file = folder.join("litellm.yaml");
    fs::write(&file, settings)?;
    let mut command = Command::new(binary);
    command
        .arg("--config")
        .arg(&file)
        .args(["--host", "127.0.0.1", "--port", &address.port().to_string()])
        // Nothing is fetched, sent or written that the answers do not need.
        .envs([
            ("LITELLM_LOCAL_MODEL_COST_MAP", "True"),
            ("LITELLM_TELEMETRY", "False"),
            ("LITELLM_LOG", "ERROR"),
        ]);
    Server::start(command, &folder.join("litellm.log"), address, "sk-bench")
}
