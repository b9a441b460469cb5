//! HTTP as bytes: a request is text, an answer is kept as it came.
//!
//! No HTTP crate stands between a test and the server, so that framing, header values and the end of a
//! body are seen as they are.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value as Json;

use super::PATIENCE;

/// A whole answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    pub status: u16,
    /// Names in lower case, in the order they came.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Reply {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Json {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The body as JSON, of an answer that must be a success.
    #[track_caller]
    pub fn ok(&self) -> Json {
        assert_eq!(self.status, 200, "{self:?}");
        self.json()
    }

    /// The frames of a body of events, without `data: ` and blank lines.
    #[track_caller]
    pub fn events(&self) -> Vec<Json> {
        assert_eq!(self.status, 200, "{self:?}");
        assert!(self.body.ends_with("\n\n"), "{self:?}");
        let frames = self.body.trim_end_matches("\n\n").split("\n\n");
        frames.map(parse_frame).collect()
    }

    /// The frames of a stream of OpenAI's routes, whose last one says that it is done.
    #[track_caller]
    pub fn chunks(&self) -> Vec<Json> {
        assert_eq!(self.status, 200, "{self:?}");
        let body = self.body.strip_suffix("data: [DONE]\n\n");
        let body = body.unwrap_or_else(|| panic!("no [DONE] at the end: {self:?}"));
        body.split_terminator("\n\n").map(parse_frame).collect()
    }

    /// The frames of a stream whose events have names, each with its name; a last `[DONE]` is left out.
    #[track_caller]
    pub fn named_events(&self) -> Vec<(String, Json)> {
        assert_eq!(self.status, 200, "{self:?}");
        let body = self.body.strip_suffix("data: [DONE]\n\n");
        let frames = body.unwrap_or(&self.body).split_terminator("\n\n");
        let named = frames.map(|frame| {
            let (name, data) = frame.split_once('\n').expect("two lines");
            let name = name.strip_prefix("event: ").expect("a named frame");
            (name.to_owned(), parse_frame(data))
        });
        named.collect()
    }

    /// Names of the headers that meter an answer, sorted.
    pub fn metering(&self) -> Vec<&str> {
        let names = self.headers.iter().map(|(name, _)| name.as_str());
        let mut names: Vec<&str> = names.filter(|name| name.starts_with("x-")).collect();
        names.sort_unstable();
        names
    }
}

/// An answer whose body is still coming.
pub struct Streaming {
    reader: BufReader<TcpStream>,
    pending: String,
}

impl Streaming {
    /// The next frame as it came, without the blank line; none at the end of the body.
    pub fn next_frame(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.pending.find("\n\n") {
                let frame = self.pending[..end].to_owned();
                self.pending.drain(..end + 2);
                return Some(frame);
            }
            let Some(chunk) = read_chunk(&mut self.reader) else {
                assert!(
                    self.pending.is_empty(),
                    "half a frame at the end: {:?}",
                    self.pending
                );
                return None;
            };
            self.pending += &chunk;
        }
    }

    /// The next event; none at the end of the body.
    pub fn next_event(&mut self) -> Option<Json> {
        self.next_frame().map(|frame| parse_frame(&frame))
    }

    /// All events that are left.
    pub fn events(mut self) -> Vec<Json> {
        std::iter::from_fn(|| self.next_event()).collect()
    }
}

/// Sends a request's bytes and returns the connection.
pub fn send(address: SocketAddr, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("a timeout above zero");
    stream
        .write_all(request.as_bytes())
        .expect("the server reads");
    stream
}

/// Reads one whole answer.
#[track_caller]
pub fn receive(stream: impl Read) -> Reply {
    let mut reader = BufReader::new(stream);
    let (status, headers) = read_head(&mut reader);
    let mut body = String::new();
    if header(&headers, "transfer-encoding") == Some("chunked") {
        while let Some(chunk) = read_chunk(&mut reader) {
            body += &chunk;
        }
    } else {
        let length = header(&headers, "content-length").map_or(0, |n| n.parse().expect("a length"));
        let mut bytes = vec![0; length];
        reader.read_exact(&mut bytes).expect("the whole body");
        body = String::from_utf8(bytes).expect("a body in UTF-8");
    }
    Reply {
        status,
        headers,
        body,
    }
}

/// Reads the head of a stream of events and leaves its body to come.
#[track_caller]
pub fn receive_stream(stream: TcpStream) -> Streaming {
    let mut reader = BufReader::new(stream);
    let (status, headers) = read_head(&mut reader);
    let kind = header(&headers, "content-type");
    assert_eq!((status, kind), (200, Some("text/event-stream")));
    Streaming {
        reader,
        pending: String::new(),
    }
}

/// The bytes of a `GET`.
pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
}

/// The bytes of a `POST` of JSON, with more header lines (each ending in `\r\n`).
pub fn post(path: &str, extra: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-type: application/json\r\n{extra}content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers
        .iter()
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.as_str())
}

#[track_caller]
fn parse_frame(frame: &str) -> Json {
    let data = frame
        .strip_prefix("data: ")
        .unwrap_or_else(|| panic!("not a data frame: {frame:?}"));
    serde_json::from_str(data).unwrap_or_else(|e| panic!("{e}: {frame:?}"))
}

#[track_caller]
fn read_head(reader: &mut impl BufRead) -> (u16, Vec<(String, String)>) {
    let first = read_line(reader);
    let status = first
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3))
        .unwrap_or_else(|| panic!("not a status line: {first:?}"));
    let mut headers = Vec::new();
    loop {
        let line = read_line(reader);
        if line.is_empty() {
            return (status.parse().expect("a status"), headers);
        }
        let (name, value) = line.split_once(':').expect("a header line");
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

#[track_caller]
fn read_line(reader: &mut impl BufRead) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).expect("a line of the answer");
    assert!(
        line.ends_with("\r\n"),
        "the answer breaks off after {line:?}"
    );
    line.truncate(line.len() - 2);
    line
}

fn read_chunk(reader: &mut impl BufRead) -> Option<String> {
    let size = usize::from_str_radix(&read_line(reader), 16).expect("a chunk's size");
    let mut bytes = vec![0; size + 2];
    reader.read_exact(&mut bytes).expect("a whole chunk");
    bytes.truncate(size);
    // Every write is a whole frame, so no character is cut between chunks.
    (size > 0).then(|| String::from_utf8(bytes).expect("frames in UTF-8"))
}
