//! A server of this crate's binary in a process of its own, killed when dropped.

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use serde_json::{Value as Json, json};
use tempfile::NamedTempFile;

use super::wire::{self, Reply, Streaming};
use super::{eventually, models};

/// A command line of the binary with an environment that holds nothing else.
#[derive(Debug, Clone, Default)]
pub struct Sconce {
    args: Vec<String>,
    env: Vec<(String, String)>,
}

impl Sconce {
    /// Serves the embedded model.
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves a frozen tiny model.
    pub fn tiny(case: &str) -> Self {
        Self::new().flag("--model-id", &models::model_id(case))
    }

    /// Adds a flag with its value.
    pub fn flag(mut self, name: &str, value: &str) -> Self {
        self.args.extend([name.to_owned(), value.to_owned()]);
        self
    }

    /// Adds words as they are.
    pub fn words(mut self, words: &[&str]) -> Self {
        self.args
            .extend(words.iter().map(|word| (*word).to_owned()));
        self
    }

    /// Adds a variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sconce"));
        command
            .env_clear()
            .envs(self.env.iter().map(|(k, v)| (k, v)));
        command.arg(name).args(&self.args).stdin(Stdio::null());
        command
    }

    /// Runs a command that ends by itself.
    pub fn run(&self, name: &str) -> Output {
        self.command(name).output().expect("the binary runs")
    }

    /// Starts `serve` on a free port and waits until it listens.
    #[track_caller]
    pub fn serve(self) -> Server {
        let log = NamedTempFile::new().expect("a temporary file");
        let stderr = File::options()
            .append(true)
            .open(log.path())
            .expect("a log to write");
        let child = self
            .command("serve")
            .args(["--port", "0", "--json-output"])
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .expect("the binary runs");
        let mut server = Server {
            child,
            log,
            address: ([127, 0, 0, 1], 0).into(),
        };
        server.address = eventually("the server is ready", || {
            let ended = server.child.try_wait().expect("a child of ours");
            assert!(
                ended.is_none(),
                "the server ended with {ended:?}: {}",
                server.log()
            );
            let ready = server
                .log_lines()
                .into_iter()
                .find(|line| line["message"] == "Connected");
            ready.and_then(|line| line["address"].as_str()?.parse().ok())
        });
        server
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    child: Child,
    log: NamedTempFile,
    address: SocketAddr,
}

impl Server {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends a request's bytes and reads the answer.
    #[track_caller]
    pub fn send(&self, request: &str) -> Reply {
        wire::receive(wire::send(self.address, request))
    }

    /// `GET`.
    #[track_caller]
    pub fn get(&self, path: &str) -> Reply {
        self.send(&wire::get(path))
    }

    /// `POST` of JSON.
    #[track_caller]
    pub fn post(&self, path: &str, body: &Json) -> Reply {
        self.send(&wire::post(path, "", &body.to_string()))
    }

    /// `POST` of JSON whose answer is read as it comes.
    #[track_caller]
    pub fn stream(&self, path: &str, body: &Json) -> Streaming {
        wire::receive_stream(wire::send(
            self.address,
            &wire::post(path, "", &body.to_string()),
        ))
    }

    /// `POST /generate` with details, which must succeed.
    #[track_caller]
    pub fn generate(&self, inputs: &str, mut parameters: Json) -> Json {
        parameters["details"] = true.into();
        self.post(
            "/generate",
            &json!({"inputs": inputs, "parameters": parameters}),
        )
        .ok()
    }

    /// The value of a metric, labels included in its name.
    #[track_caller]
    pub fn metric(&self, name: &str) -> f64 {
        let body = self.get("/metrics").body;
        let value = body
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = value.unwrap_or_else(|| panic!("no metric {name} in {body}"));
        value.parse().expect("a number")
    }

    /// Waits until a metric has a value.
    #[track_caller]
    pub fn await_metric(&self, name: &str, holds: impl Fn(f64) -> bool) {
        eventually(name, || holds(self.metric(name)).then_some(()));
    }

    /// Everything logged so far.
    pub fn log(&self) -> String {
        let mut text = String::new();
        let file = File::open(self.log.path());
        file.and_then(|mut file| file.read_to_string(&mut text))
            .expect("a readable log");
        text
    }

    /// The log's lines that are whole.
    pub fn log_lines(&self) -> Vec<Json> {
        self.log()
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.signal("-TERM");
    }

    /// Sends SIGKILL.
    pub fn kill(&self) {
        self.signal("-KILL");
    }

    /// Sends SIGHUP.
    pub fn hang_up(&self) {
        self.signal("-HUP");
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([name, &self.child.id().to_string()])
            .status();
        assert!(status.expect("kill runs").success());
    }

    /// Memory that the process holds, in KiB.
    pub fn resident_kib(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("a child of ours");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let value = line.and_then(|line| line.split_whitespace().next());
        value.expect("a resident size").parse().expect("a number")
    }

    /// Waits for the end of the process.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let child = &mut self.child;
        eventually("the server ends", || {
            child.try_wait().expect("a child of ours")
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("log of the server:\n{}", self.log());
        }
    }
}
