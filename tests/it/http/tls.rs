//! HTTPS on the listener, with certificates made for the test and a client that checks them.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Output;
use std::sync::Arc;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use serde_json::json;
use tempfile::TempDir;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::support::server::{Sconce, Server};
use crate::support::{PATIENCE, eventually, wire};

/// A folder with a certificate for `localhost` and its key.
struct Pair {
    folder: TempDir,
    cert: CertificateDer<'static>,
}

impl Pair {
    fn new() -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let mut pair = Self {
            folder,
            cert: CertificateDer::from_slice(&[]).into_owned(),
        };
        pair.renew();
        pair
    }

    /// Writes another certificate and key in the place of these.
    fn renew(&mut self) {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        fs::write(self.cert_path(), cert.pem()).expect("a writable folder");
        fs::write(self.key_path(), signing_key.serialize_pem()).expect("a writable folder");
        self.cert = cert.der().clone();
    }

    fn cert_path(&self) -> PathBuf {
        self.folder.path().join("cert.pem")
    }

    fn key_path(&self) -> PathBuf {
        self.folder.path().join("key.pem")
    }

    fn sconce(&self) -> Sconce {
        with_files(&self.cert_path(), &self.key_path())
    }

    /// A client that trusts this certificate only.
    fn connect(&self, server: &Server) -> StreamOwned<ClientConnection, TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(self.cert.clone()).expect("a sound certificate");
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("usual versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let name = ServerName::try_from("localhost").expect("a name");
        let client = ClientConnection::new(Arc::new(config), name).expect("a sound client");
        let socket = TcpStream::connect(server.address()).expect("the server listens");
        socket.set_read_timeout(Some(PATIENCE)).expect("above zero");
        StreamOwned::new(client, socket)
    }
}

fn with_files(cert: &std::path::Path, key: &std::path::Path) -> Sconce {
    Sconce::tiny("llama-tied")
        .flag("--tls-cert", &cert.display().to_string())
        .flag("--tls-key", &key.display().to_string())
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn requests_and_streams_pass_encrypted() {
    let pair = Pair::new();
    let server = pair.sconce().serve();
    let mut client = pair.connect(&server);
    client
        .write_all(wire::get("/health").as_bytes())
        .expect("the server reads");
    assert_eq!(client.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    assert_eq!(wire::receive(client).status, 200);
    let body = json!({"inputs": "a", "parameters": {"max_new_tokens": 5}}).to_string();
    let mut client = pair.connect(&server);
    let request = wire::post("/generate_stream", "", &body);
    client
        .write_all(request.as_bytes())
        .expect("the server reads");
    assert_eq!(wire::receive(client).events().len(), 5);
}

#[test]
fn what_is_no_handshake_gets_nothing_and_holds_nothing() {
    let pair = Pair::new();
    let server = pair.sconce().flag("--header-read-seconds", "1").serve();
    for beginning in [&wire::get("/health")[..], "\u{16}\u{3}\u{1}\0", ""] {
        let mut plain = wire::send(server.address(), beginning);
        let mut rest = Vec::new();
        if let Err(error) = plain.read_to_end(&mut rest) {
            assert_eq!(
                error.kind(),
                ErrorKind::ConnectionReset,
                "still open: {error}"
            );
        }
        assert!(
            !String::from_utf8_lossy(&rest).contains("HTTP/1.1"),
            "{rest:?}"
        );
    }
    let mut client = pair.connect(&server);
    client
        .write_all(wire::get("/health").as_bytes())
        .expect("the server reads");
    assert_eq!(wire::receive(client).status, 200);
}

#[test]
fn another_certificate_is_not_trusted() {
    let pair = Pair::new();
    let server = pair.sconce().serve();
    let mut stranger = Pair::new().connect(&server);
    assert!(
        stranger
            .write_all(b"GET / HTTP/1.1\r\n\r\n")
            .and_then(|()| stranger.flush())
            .is_err()
    );
}

#[test]
fn a_hangup_reads_the_certificate_again() {
    let mut pair = Pair::new();
    let server = pair.sconce().serve();
    let trusted = |pair: &Pair| {
        let mut client = pair.connect(&server);
        client.write_all(wire::get("/health").as_bytes()).is_ok()
    };
    assert!(trusted(&pair));
    pair.renew();
    assert!(!trusted(&pair), "not before it is told");
    server.hang_up();
    eventually("the new certificate is shown", || {
        trusted(&pair).then_some(())
    });
    fs::write(pair.cert_path(), "nothing").expect("ours");
    server.hang_up();
    eventually("the fault is logged", || {
        server
            .log()
            .contains("the certificate stays as it was")
            .then_some(())
    });
    assert!(trusted(&pair), "a broken file changes nothing");
}

#[test]
fn wrong_files_are_named_and_their_contents_are_not() {
    let (pair, other) = (Pair::new(), Pair::new());
    let (cert, key) = (pair.cert_path(), pair.key_path());
    let missing = pair.folder.path().join("missing.pem");
    let garbage = pair.folder.path().join("garbage.pem");
    let text = fs::read_to_string(&key).expect("a key");
    fs::write(&garbage, text.replace("MI", "?!")).expect("ours");
    let secret = text.lines().nth(1).expect("a body");
    let cases = [
        (with_files(&missing, &key), "missing.pem: "),
        (with_files(&cert, &missing), "missing.pem: "),
        (
            with_files(&key, &key),
            "key.pem: there is no certificate in it",
        ),
        (
            with_files(&cert, &cert),
            "cert.pem: there is no private key in it",
        ),
        (with_files(&cert, &garbage), "garbage.pem: "),
        (
            with_files(&cert, &other.key_path()),
            "key.pem: it cannot be used with the certificate in",
        ),
        (
            Sconce::tiny("llama-tied").env("TLS_CERT", "cert.pem"),
            "tls_cert and tls_key belong together",
        ),
        (
            Sconce::tiny("llama-tied").env("TLS_KEY", "key.pem"),
            "tls_cert and tls_key belong together",
        ),
    ];
    for (sconce, expected) in cases {
        for command in ["check", "serve"] {
            let output = sconce.run(command);
            let words = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{words}");
            assert!(
                words.contains(expected) && !words.contains(secret),
                "{expected}: {words}"
            );
        }
    }
}
