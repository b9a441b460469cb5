//! An upstream on real sockets that answers as a script says: the fake at the outer edge of forwarding.
//!
//! A test starts one with a function from the request to a [`Reply`], gives its address to a server, and
//! looks afterwards at what came: every connection, every byte of it, and when its peer left. Bytes are
//! read and written here without an HTTP crate, so that a reply may be as wrong as one in the wild and a
//! request is seen as it was sent. One thread serves a connection, one request after the other.
//!
//! It speaks HTTP/1.1 only, never compresses, and adds no header that the reply does not name, but for the
//! framing of the body.

mod reply;
#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use serde_json::Value as Json;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

pub use self::reply::{Chat, Prefill, Reply, UsageAt, catalogue_entry, continuation, waking};
use self::reply::{Ending, Piece};
use super::eventually;

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    /// Its place among all requests of this upstream, from 0.
    pub number: usize,
    /// Its place among those of its path, from 0.
    pub nth: usize,
    /// The connection it came on, from 0.
    pub connection: usize,
    /// When its last byte was read.
    pub at: Instant,
    pub method: String,
    /// With the query.
    pub path: String,
    /// Names as they were sent, in their order.
    pub headers: Vec<(String, String)>,
    /// Without the framing.
    pub body: Vec<u8>,
    /// Pieces of the reply's body that were written so far.
    pub pieces_sent: usize,
}

impl Request {
    /// The value of a header, by its name in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Json {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// Whether the body asks for a stream.
    pub fn streams(&self) -> bool {
        serde_json::from_slice::<Json>(&self.body).is_ok_and(|body| body["stream"] == true)
    }
}

/// A connection and what was read from it.
#[derive(Debug, Clone)]
pub struct Connection {
    pub opened: Instant,
    /// Every byte, TLS taken off.
    pub received: Vec<u8>,
    /// When the peer was seen to have left: it closed, reset, or broke off the handshake.
    pub closed: Option<Instant>,
}

#[derive(Debug, Default)]
struct Log {
    connections: Vec<Connection>,
    requests: Vec<Request>,
    /// Of each connection, while its thread runs: to end it.
    sockets: Vec<Option<TcpStream>>,
}

type Script = dyn Fn(&Request) -> Reply + Send + Sync;

struct Shared {
    script: Box<Script>,
    tls: Option<Arc<ServerConfig>>,
    log: Mutex<Log>,
    ended: AtomicBool,
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().expect("no test fails with the log held")
    }
}

/// A running upstream; dropping it closes every connection.
pub struct Upstream {
    shared: Arc<Shared>,
    address: SocketAddr,
    /// Of its certificate, where it speaks TLS.
    pem: Option<String>,
    accepting: Option<JoinHandle<()>>,
}

impl Upstream {
    /// Listens on a free port of the loopback address and answers as the script says.
    pub fn start(script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(Box::new(script), None, None)
    }

    /// The same behind TLS, with a certificate of its own for `localhost` and 127.0.0.1.
    pub fn start_tls(script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(names).expect("a certificate");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
        let config = ServerConfig::builder_with_provider(aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()
            .expect("versions that the provider knows")
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .expect("a key for its certificate");
        Self::listen(Box::new(script), Some(Arc::new(config)), Some(cert.pem()))
    }

    fn listen(script: Box<Script>, tls: Option<Arc<ServerConfig>>, pem: Option<String>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener.local_addr().expect("a bound listener");
        let shared = Arc::new(Shared {
            script,
            tls,
            log: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        let accepting = std::thread::spawn({
            let shared = shared.clone();
            move || accept(&listener, &shared)
        });
        Self {
            shared,
            address,
            pem,
            accepting: Some(accepting),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its address as settings name it, without a slash at the end.
    pub fn url(&self) -> String {
        match self.pem {
            Some(_) => format!("https://localhost:{}", self.address.port()),
            None => format!("http://{}", self.address),
        }
    }

    /// Its certificate, for a file of authorities to trust.
    #[track_caller]
    pub fn certificate_pem(&self) -> &str {
        self.pem.as_deref().expect("an upstream behind TLS")
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.log().requests.clone()
    }

    /// The requests for a path so far.
    pub fn requests_for(&self, path: &str) -> Vec<Request> {
        let mut requests = self.requests();
        requests.retain(|request| request.path == path);
        requests
    }

    /// Waits for a request, by its number.
    #[track_caller]
    pub fn await_request(&self, number: usize) -> Request {
        eventually("the upstream is asked", || {
            self.shared.log().requests.get(number).cloned()
        })
    }

    /// Every connection so far.
    pub fn connections(&self) -> Vec<Connection> {
        self.shared.log().connections.clone()
    }

    /// Bytes of all connections so far; 0 shows that nothing left for here.
    pub fn bytes_received(&self) -> usize {
        let log = self.shared.log();
        log.connections.iter().map(|c| c.received.len()).sum()
    }

    /// Waits until a request's peer has left, and says when it did.
    #[track_caller]
    pub fn await_closed(&self, request: &Request) -> Instant {
        eventually("the upstream's peer leaves", || {
            self.shared.log().connections[request.connection].closed
        })
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        for socket in self.shared.log().sockets.drain(..).flatten() {
            // It may be closed already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// An address at which nobody listens.
pub fn nobody() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("a bound listener")
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    loop {
        let Ok((socket, _)) = listener.accept() else {
            continue;
        };
        if shared.ended.load(Ordering::SeqCst) {
            return;
        }
        // Each piece of a reply is a segment of its own.
        socket.set_nodelay(true).expect("an option that TCP has");
        let mut log = shared.log();
        let id = log.connections.len();
        log.connections.push(Connection {
            opened: Instant::now(),
            received: Vec::new(),
            closed: None,
        });
        log.sockets
            .push(Some(socket.try_clone().expect("a descriptor")));
        drop(log);
        let shared = shared.clone();
        std::thread::spawn(move || {
            let stream = match &shared.tls {
                None => Stream::Plain(socket),
                Some(config) => {
                    let session = ServerConnection::new(config.clone()).expect("a sound config");
                    Stream::Tls(Box::new(StreamOwned::new(session, socket)))
                }
            };
            let mut peer = Peer {
                id,
                shared: &shared,
                stream,
                unread: Vec::new(),
            };
            // An error means that the peer left or that the reply said to break off; both are in the log.
            let _ = peer.serve();
            // The socket closes with its last descriptor, which is the thread's own then.
            if let Some(socket) = shared.log().sockets.get_mut(peer.id) {
                *socket = None;
            }
        });
    }
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ServerConnection, TcpStream>>),
}

impl Stream {
    fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => &stream.sock,
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.write_all(bytes),
            Self::Tls(stream) => stream.write_all(bytes).and_then(|()| stream.flush()),
        }
    }
}

/// One connection, as its thread sees it.
struct Peer<'a> {
    id: usize,
    shared: &'a Shared,
    stream: Stream,
    /// Bytes that were read and not yet taken as part of a request.
    unread: Vec<u8>,
}

impl Peer<'_> {
    fn serve(&mut self) -> io::Result<()> {
        loop {
            let request = self.receive()?;
            let reply = (self.shared.script)(&request);
            self.answer(request.number, reply)?;
        }
    }

    /// Reads more bytes, within a time if one is given; false if it passes first.
    ///
    /// An error, and an end, are the peer's leaving.
    fn read_more(&mut self, within: Option<Duration>) -> io::Result<bool> {
        self.stream.socket().set_read_timeout(within)?;
        let mut buffer = [0; 16 << 10];
        let read = match self.stream.read(&mut buffer) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Ok(false);
            }
            other => other,
        };
        match read {
            Ok(n) => {
                self.unread.extend(&buffer[..n]);
                let connection = &mut self.shared.log().connections[self.id];
                connection.received.extend(&buffer[..n]);
                Ok(true)
            }
            Err(e) => Err(self.left(e)),
        }
    }

    /// Notes that the peer has left.
    fn left(&self, why: io::Error) -> io::Error {
        let connection = &mut self.shared.log().connections[self.id];
        connection.closed.get_or_insert_with(Instant::now);
        why
    }

    /// Takes bytes up to and with the first `mark`.
    fn take_through(&mut self, mark: &[u8]) -> io::Result<String> {
        loop {
            if let Some(at) = self.unread.windows(mark.len()).position(|w| w == mark) {
                let taken = self.unread.drain(..at + mark.len()).collect();
                return String::from_utf8(taken).map_err(|_| ErrorKind::InvalidData.into());
            }
            self.read_more(None)?;
        }
    }

    fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.unread.len() < count {
            self.read_more(None)?;
        }
        Ok(self.unread.drain(..count).collect())
    }

    /// Reads a request to its end and logs it.
    fn receive(&mut self) -> io::Result<Request> {
        let head = self.take_through(b"\r\n\r\n")?;
        let mut lines = head.trim_end().split("\r\n");
        let mut first = lines.next().unwrap_or_default().split(' ');
        let mut word = || first.next().unwrap_or_default().to_owned();
        let (method, path) = (word(), word());
        let fields = lines.filter_map(|line| line.split_once(':'));
        let mut request = Request {
            number: 0,
            nth: 0,
            connection: self.id,
            at: Instant::now(),
            method,
            path,
            headers: fields
                .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
                .collect(),
            body: Vec::new(),
            pieces_sent: 0,
        };
        if request.header("transfer-encoding") == Some("chunked") {
            loop {
                let size = self.take_through(b"\r\n")?;
                let size = usize::from_str_radix(size.trim(), 16)
                    .map_err(|_| io::Error::from(ErrorKind::InvalidData))?;
                let chunk = self.take(size + 2)?;
                request.body.extend(&chunk[..size]);
                if size == 0 {
                    break;
                }
            }
        } else if let Some(length) = request.header("content-length") {
            let length = length.parse();
            request.body = self.take(length.map_err(|_| ErrorKind::InvalidData)?)?;
        }
        request.at = Instant::now();
        let mut log = self.shared.log();
        request.number = log.requests.len();
        let same = log.requests.iter().filter(|r| r.path == request.path);
        request.nth = same.count();
        log.requests.push(request.clone());
        Ok(request)
    }

    /// Lets time pass; an error if the peer leaves meanwhile.
    fn wait(&mut self, time: Duration) -> io::Result<()> {
        let until = Instant::now() + time;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.read_more(Some(left))?;
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write(bytes).map_err(|e| self.left(e))
    }

    /// Writes a reply; an error means that nothing more can follow on this connection.
    fn answer(&mut self, number: usize, reply: Reply) -> io::Result<()> {
        let wire = reply.compile();
        self.wait(wire.before)?;
        self.write(&wire.head)?;
        for Piece { after, bytes } in &wire.pieces {
            self.wait(*after)?;
            self.write(bytes)?;
            self.shared.log().requests[number].pieces_sent += 1;
        }
        match wire.ending {
            Ending::KeepAlive => Ok(()),
            Ending::Close => self.close(),
            Ending::Reset => self.reset(),
            Ending::Hang => loop {
                self.read_more(None)?;
            },
        }
    }

    /// Ends the connection from this side.
    fn close(&mut self) -> io::Result<()> {
        if let Stream::Tls(stream) = &mut self.stream {
            stream.conn.send_close_notify();
            stream.flush()?;
        }
        Err(ErrorKind::ConnectionAborted.into())
    }

    /// Ends the connection with a reset: the peer gets an error.
    fn reset(&mut self) -> io::Result<()> {
        let socket = self.stream.socket().try_clone()?;
        socket.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        let _inside = runtime.enter();
        tokio::net::TcpStream::from_std(socket)?.set_zero_linger()?;
        Err(ErrorKind::ConnectionReset.into())
    }
}
