//! wrk as the load generator of small answers: it needs a few microseconds a request, so that two cores
//! that also carry the servers are not spent on it.

use std::error::Error;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

/// What a run of wrk came to.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Outcome {
    /// Answers.
    pub(crate) requests: u64,
    /// Seconds that the run took.
    pub(crate) seconds: f64,
    /// Median latency in microseconds.
    pub(crate) p50_us: f64,
    /// The 99th percentile of it.
    pub(crate) p99_us: f64,
    /// Answers that were no success, broke off, or never came.
    pub(crate) failed: u64,
}

/// A chat as every case of this benchmark sends it.
pub(crate) fn body(model: &str, stream: bool) -> String {
    json!({
        "model": model, "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 16, "stream": stream,
    })
    .to_string()
}

/// The bytes of a request.
pub(crate) fn post(key: &str, body: &str) -> String {
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Asks once and looks whether the answer is right: a fast error must not win.
///
/// Errors: no connection, no success, or an answer without the text.
pub(crate) fn check(
    address: SocketAddr,
    key: &str,
    body: &str,
    text: &str,
) -> Result<(), Box<dyn Error>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(post(key, body).as_bytes())?;
    let (mut answer, mut buffer) = (String::new(), [0; 4096]);
    // The connection stays, so the text itself is the end that is waited for.
    while !answer.contains(text) {
        let read = stream.read(&mut buffer);
        match read {
            Ok(n) if n > 0 => answer += &String::from_utf8_lossy(&buffer[..n]),
            end => return Err(format!("{address} answers {answer:?} ({end:?})").into()),
        }
    }
    if !answer.starts_with("HTTP/1.1 200") {
        return Err(format!("{address} answers {answer:?}").into());
    }
    Ok(())
}

/// Loads an address with so many clients for a while; each sends its next request after the last answer.
///
/// Errors: wrk cannot be run, or says something else.
pub(crate) fn run(
    folder: &Path,
    address: SocketAddr,
    key: &str,
    body: &str,
    clients: usize,
    time: Duration,
) -> Result<Outcome, Box<dyn Error>> {
    let script = folder.join("post.lua");
    fs::write(
        &script,
        format!(
            r#"wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
wrk.headers["authorization"] = "Bearer {key}"
wrk.body = [[{body}]]
done = function(all, latency)
  local e = all.errors
  io.write(string.format('\nOUTCOME {{"requests":%d,"seconds":%f,"p50_us":%d,"p99_us":%d,"failed":%d}}\n',
    all.requests, all.duration / 1e6, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"#
        ),
    )?;
    let output = Command::new("wrk")
        .args(["--threads", "1", "--timeout", "20s", "--connections"])
        .arg(clients.to_string())
        .args(["--duration", &format!("{}s", time.as_secs().max(1))])
        .arg("--script")
        .arg(&script)
        .arg(format!("http://{address}/v1/chat/completions"))
        .output()
        .map_err(|e| format!("wrk: {e}; benches/remote/run installs what is needed"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let outcome = said.lines().find_map(|line| line.strip_prefix("OUTCOME "));
    Ok(serde_json::from_str(outcome.ok_or(said.clone())?)?)
}
