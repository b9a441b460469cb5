//! Streams at the pace of a model: an upstream whose tokens carry the time they were sent, and callers that
//! subtract it.
//!
//! A token is the number of microseconds since 1970 at which it was written. Whoever stands between only
//! has to hand it on, so what a caller sees is the time each token took on its way, in whatever words the
//! proxy in between wraps it. The first token is sent at once: the time to it is all overhead.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value as Json, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant as Wake, sleep, sleep_until};

/// The lengths of the load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Streams at once.
    pub(crate) streams: usize,
    /// Tokens of one.
    pub(crate) tokens: usize,
    /// Between tokens.
    pub(crate) pace: Duration,
    /// New streams begin for so long after the warm-up.
    pub(crate) time: Duration,
    /// New streams that are not counted begin for so long.
    pub(crate) warm_up: Duration,
}

/// Times of the streams of one sample, in milliseconds.
#[derive(Debug, Default)]
pub(crate) struct Times {
    /// From sending a request to its first token.
    pub(crate) first: Vec<f64>,
    /// From the upstream's writing a token to its arrival.
    pub(crate) token: Vec<f64>,
    /// From sending a request to the end of its answer.
    pub(crate) total: Vec<f64>,
    /// Streams that broke off, were refused, or lost tokens.
    pub(crate) failed: usize,
}

/// A connection with what was read ahead.
struct Connection {
    socket: TcpStream,
    unread: Vec<u8>,
}

impl Connection {
    fn new(socket: TcpStream) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        Ok(Self {
            socket,
            unread: Vec::new(),
        })
    }

    async fn read_more(&mut self) -> io::Result<()> {
        loop {
            self.socket.readable().await?;
            let mut buffer = [0; 16 << 10];
            match self.socket.try_read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    self.unread.extend(&buffer[..n]);
                    return Ok(());
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
    }

    async fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.socket.writable().await?;
            match self.socket.try_write(bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Takes bytes up to and with a mark, as text.
    async fn take_through(&mut self, mark: &[u8]) -> io::Result<String> {
        loop {
            let found = self.unread.windows(mark.len()).position(|w| w == mark);
            if let Some(at) = found {
                let taken: Vec<u8> = self.unread.drain(..at + mark.len()).collect();
                return String::from_utf8(taken).map_err(|_| io::ErrorKind::InvalidData.into());
            }
            self.read_more().await?;
        }
    }

    async fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.unread.len() < count {
            self.read_more().await?;
        }
        Ok(self.unread.drain(..count).collect())
    }

    /// Takes one chunk of a chunked body; an empty one ends it.
    async fn take_chunk(&mut self) -> io::Result<Vec<u8>> {
        let size = self.take_through(b"\r\n").await?;
        let size = usize::from_str_radix(size.trim(), 16)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        let mut chunk = self.take(size + 2).await?;
        chunk.truncate(size);
        Ok(chunk)
    }
}

/// Starts the upstream on a thread of its own, where it stays until the process ends.
///
/// Errors: no port, or no thread.
pub(crate) fn upstream(shape: Shape) -> Result<SocketAddr, Box<dyn Error>> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new().spawn(move || {
        runtime.block_on(async move {
            let listener = TcpListener::from_std(listener).expect("a listener of this runtime");
            loop {
                let Ok((socket, _)) = listener.accept().await else {
                    continue;
                };
                tokio::spawn(async move {
                    let mut peer = Connection::new(socket)?;
                    // Ends with the peer's leaving.
                    while answer(&mut peer, shape).await.is_ok() {}
                    io::Result::Ok(())
                });
            }
        });
    })?;
    Ok(address)
}

fn now_us() -> u128 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |time| time.as_micros())
}

fn chunk(data: &str) -> String {
    // `data: `, the text, and a blank line.
    format!("{:x}\r\ndata: {data}\n\n\r\n", data.len() + 8)
}

/// Answers one request of a connection.
async fn answer(peer: &mut Connection, shape: Shape) -> io::Result<()> {
    let head = peer.take_through(b"\r\n\r\n").await?.to_ascii_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"));
    let length = length.and_then(|length| length.trim().parse().ok());
    peer.take(length.unwrap_or(0)).await?;
    if head.starts_with("get /v1/models ") {
        let models = super::servers::MODELS;
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{models}",
            models.len()
        );
        return peer.write(answer.as_bytes()).await;
    }
    if !head.starts_with("post /v1/chat/completions ") {
        return peer
            .write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
            .await;
    }
    peer.write(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
    )
    .await?;
    let part = |choices: &str, rest: &str| {
        format!(
            r#"{{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"paced","choices":[{choices}]{rest}}}"#
        )
    };
    let began = Wake::now();
    for i in 0..shape.tokens {
        // A timer for now would be late by up to a millisecond.
        if i > 0 {
            sleep_until(began + shape.pace * i as u32).await;
        }
        let choice = format!(
            r#"{{"index":0,"delta":{{"role":"assistant","content":"{}"}},"finish_reason":null}}"#,
            now_us()
        );
        peer.write(chunk(&part(&choice, "")).as_bytes()).await?;
    }
    let finish = part(r#"{"index":0,"delta":{},"finish_reason":"stop"}"#, "");
    let counts = format!(
        r#","usage":{{"prompt_tokens":9,"completion_tokens":{},"total_tokens":{}}}"#,
        shape.tokens,
        shape.tokens + 9
    );
    let end = chunk(&finish) + &chunk(&part("", &counts)) + &chunk("[DONE]") + "0\r\n\r\n";
    peer.write(end.as_bytes()).await
}

/// Keeps so many streams going and times them; they begin evenly over the length of one.
///
/// Errors: no runtime.
pub(crate) fn load(address: SocketAddr, key: &str, shape: Shape) -> Result<Times, Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let body = json!({
        "model": "paced", "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": shape.tokens, "stream": true,
    })
    .to_string();
    let request: Arc<str> = super::wrk::post(key, &body).into();
    runtime.block_on(async {
        let from = Instant::now() + shape.warm_up;
        let until = from + shape.time;
        let length = shape.pace * shape.tokens as u32;
        let callers: Vec<_> = (0..shape.streams)
            .map(|caller| {
                let request = request.clone();
                tokio::spawn(async move {
                    sleep(length * caller as u32 / shape.streams as u32).await;
                    let (mut times, mut connection) = (Times::default(), None);
                    while Instant::now() < until {
                        let counted = Instant::now() >= from;
                        let asked = ask(address, &request, shape, &mut connection).await;
                        match asked {
                            Err(_) => {
                                connection = None;
                                times.failed += 1;
                                // A caller that is refused at once must not become a flood.
                                sleep(Duration::from_millis(10)).await;
                            }
                            Ok(one) if counted => times.add(one),
                            Ok(_) => {}
                        }
                    }
                    times
                })
            })
            .collect();
        let mut all = Times::default();
        for caller in callers {
            all.add(caller.await?);
        }
        Ok(all)
    })
}

impl Times {
    fn add(&mut self, more: Self) {
        self.first.extend(more.first);
        self.token.extend(more.token);
        self.total.extend(more.total);
        self.failed += more.failed;
    }
}

/// Asks for one stream and times it; an error if it is not whole.
async fn ask(
    address: SocketAddr,
    request: &str,
    shape: Shape,
    kept: &mut Option<Connection>,
) -> io::Result<Times> {
    if kept.is_none() {
        *kept = Some(Connection::new(TcpStream::connect(address).await?)?);
    }
    let peer = kept.as_mut().ok_or(io::ErrorKind::NotConnected)?;
    let began = Instant::now();
    let since = |began: Instant| began.elapsed().as_secs_f64() * 1e3;
    peer.write(request.as_bytes()).await?;
    let head = peer.take_through(b"\r\n\r\n").await?;
    if !head.starts_with("HTTP/1.1 200") {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let (mut times, mut text) = (Times::default(), Vec::new());
    loop {
        let chunk = peer.take_chunk().await?;
        if chunk.is_empty() {
            break;
        }
        text.extend(chunk);
        while let Some(end) = text.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            let Some(data) = line.strip_prefix(b"data:") else {
                continue;
            };
            // `[DONE]` is no JSON.
            let event: Json = serde_json::from_slice(data).unwrap_or_default();
            let content = &event["choices"][0]["delta"]["content"];
            let sent = content.as_str().and_then(|text| text.parse::<u128>().ok());
            if let Some(sent) = sent {
                let on_its_way = now_us().saturating_sub(sent) as f64 / 1e3;
                times.token.push(on_its_way);
                if times.token.len() == 1 {
                    times.first.push(since(began));
                }
            }
        }
    }
    times.total.push(since(began));
    if times.token.len() == shape.tokens {
        Ok(times)
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}
