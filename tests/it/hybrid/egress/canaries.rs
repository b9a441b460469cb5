//! Secrets and texts planted wherever they can be, every failure provoked, and then looked for in all that
//! the server says and writes.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value as Json, json};
use tempfile::NamedTempFile;

use super::{Setup, departures, has_received, willing};
use crate::support::eventually;
use crate::support::server::{Sconce, Server};
use crate::support::upstream::{Reply, Request, Upstream, nobody};
use crate::support::wire;

/// Tokens that look like none, and one that does.
const TOKEN: &str = "Qv7mKp2xR9tLw4nZc8sYh3bJ6dFg5aTe";
const SHAPED: &str = "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";
const CONTROL: &str = "Zx5cVb8nMq1wEr4tYu7iOp0aSd3fGh6j";
const PROMPT: &str = "walrus-copper-9135";
const COMPLETION: &str = "lantern-basalt-2468";

/// One way to fail, given the token that came and the text.
type Fault = fn(&Request, &str, &str) -> Reply;

/// Ways to fail, with the token and the prompt in every corner.
fn faults() -> Vec<(&'static str, Fault)> {
    fn error(status: u16, message: &str) -> Reply {
        Reply::json(
            status,
            &json!({"error": {"message": message, "type": "x", "code": "x"}}),
        )
    }
    let mut all: Vec<(&'static str, Fault)> = vec![
        ("401", |_, token, _| {
            error(401, &format!("token {token} is bad"))
        }),
        ("401 in text", |_, token, _| {
            Reply::body(401, "text/plain", format!("no {token}"))
        }),
        ("403", |_, token, _| {
            error(403, &format!("`{token}` lacks a permission"))
        }),
        ("402", |_, token, _| {
            error(
                402,
                &format!("{token} has exceeded its monthly included credits"),
            )
        }),
        ("500", |_, token, _| {
            error(500, &format!("Authorization: Bearer {token}"))
        }),
        ("500 in HTML", |_, token, _| {
            Reply::body(500, "text/html", format!("<html>{token}</html>"))
        }),
        ("500 quoted", |_, token, prompt| {
            let inner =
                json!({"headers": {"authorization": format!("Bearer {token}")}, "body": prompt})
                    .to_string();
            error(500, &json!({"error": inner}).to_string())
        }),
        ("400", |_, token, prompt| {
            error(400, &format!("bad input: {prompt} {token}"))
        }),
        ("422 of FastAPI", |_, token, prompt| {
            Reply::json(
                422,
                &json!({"detail": [{"loc": ["body", prompt], "msg": format!("value {prompt} {token}"), "input": prompt}]}),
            )
        }),
        ("404", |_, token, prompt| {
            error(404, &format!("model for {prompt} {token} not found"))
        }),
        ("413", |_, _, prompt| error(413, prompt)),
        ("429", |_, token, prompt| {
            error(429, &format!("slow down {token} {prompt}"))
        }),
        ("503", |_, token, prompt| {
            Reply::body(503, "text/plain", format!("{token} {prompt}"))
        }),
        ("redirect", |_, token, _| {
            Reply::redirect(&format!("http://127.0.0.1:9/?token={token}"))
        }),
        ("broken JSON", |_, token, prompt| {
            Reply::body(200, "application/json", format!("{{\"{token}\": {prompt}"))
        }),
        ("an error of status 200", |_, token, prompt| {
            error(200, &format!("{token} {prompt}"))
        }),
        ("an error in the stream", |_, token, prompt| {
            Reply::chat(&["a", COMPLETION, "c"]).error_at(
                2,
                &json!({"error": {"message": format!("{token} {prompt}")}}),
            )
        }),
        ("rubbish in the stream", |_, token, prompt| {
            Reply::chat(&["a", COMPLETION]).insert(1, &format!("data: {{{token} {prompt}\n\n"))
        }),
        ("an endless event", |_, token, _| {
            Reply::events(&[format!("data: {token}{}\n\n", "x".repeat(2 << 20))])
        }),
        ("reset", |_, _, _| {
            Reply::chat(&["a", COMPLETION, "c"]).reset_after(2)
        }),
        ("truncated", |_, _, _| {
            Reply::chat(&["a", COMPLETION, "c"]).end_after(2)
        }),
        ("heads", |_, token, prompt| {
            error(500, "no")
                .header("x-request-id", token)
                .header("x-inference-provider", token)
                .header("set-cookie", token)
                .header("x-error-message", prompt)
                .header("content-language", token)
        }),
        ("heads of an answer", |request, token, _| {
            Reply::chat_for(request, &["a", COMPLETION])
                .header("x-request-id", token)
                .header("x-inference-provider", token)
                .header("set-cookie", token)
                .header("x-route-reason", token)
        }),
        ("the token is all it says", |_, token, _| {
            Reply::body(418, "text/plain", token)
        }),
    ];
    // Where a long text is cut, half a token is one that nobody knows any more.
    all.push(("cut", |request, token, _| {
        let pad = "y".repeat(5 * (request.nth % 8));
        error(400, &format!("{pad}{}", format!("{token} ").repeat(700)))
    }));
    all.push(("cut late", |request, token, _| {
        let pad = "y".repeat(2030 - 5 * (request.nth % 8));
        Reply::body(400, "text/plain", format!("{pad}{token}"))
    }));
    all
}

/// Every fault as an upstream of its own, each with a token of its own; callers choose by the model's name.
struct Scene {
    setup: Setup,
    /// The upstreams' tokens, all that may be nowhere.
    secrets: Vec<String>,
    upstream: Upstream,
    many: usize,
}

fn scene() -> Scene {
    let all = faults();
    let many = all.len();
    let upstream = Upstream::start(move |request| {
        if request.method == "GET" {
            let token = request.header("authorization").unwrap_or_default();
            return match request.number % 2 {
                0 => Reply::json(401, &json!({"error": format!("{token} is wrong")})),
                _ => willing(request),
            };
        }
        let bearer = request.header("authorization").unwrap_or_default();
        let token = bearer.strip_prefix("Bearer ").unwrap_or(bearer);
        let number = request.json()["model"]
            .as_str()
            .and_then(|m| m.strip_prefix('m')?.parse::<usize>().ok());
        let (_, fault) = all[number.expect("a model of ours")];
        fault(request, token, PROMPT)
    });
    let mut setup = Setup::new()
        .add("[remote.retry]\nmax_attempts = 2\nbackoff_base_ms = 1\nbackoff_max_ms = 2\n[remote.parking]\nwait_max_seconds = 0\n")
        .add("[egress]\nanonymous = \"any\"\n");
    let log = setup.folder.path().join("decisions.jsonl");
    setup = setup.add(&format!(
        "[route]\ndecision_log = {:?}\n",
        log.display().to_string()
    ));
    let mut secrets = vec![CONTROL.to_owned()];
    setup = setup.env("CONTROL_TOKEN", CONTROL);
    for number in 0..many {
        let token = match number % 2 {
            0 => format!("{TOKEN}{number:02}"),
            _ => format!("{SHAPED}{number:02}"),
        };
        let control = match number {
            0 => {
                "control = { namespace = \"me\", endpoint = \"e\", token_env = \"CONTROL_TOKEN\", base_url = \"https://127.0.0.1:9\" }\n"
            }
            _ => "",
        };
        setup = setup.env(&format!("TOKEN_{number}"), &token).add(&format!(
            "[[remote.upstream]]\nname = \"u{number}\"\nkind = \"openai_compat\"\nengine = \"openai\"\nbase_url = \"{}\"\n\
             token_env = \"TOKEN_{number}\"\n{control}\
             [[remote.target]]\nname = \"t{number}\"\nupstream = \"u{number}\"\nmodel = \"m{number}\"\n\
             [[route.model]]\nname = \"f{number}\"\nlocal = false\ntargets = [\"t{number}\"]\n",
            upstream.url()
        ));
        secrets.push(token);
    }
    Scene {
        setup,
        secrets,
        upstream,
        many,
    }
}

impl Scene {
    /// Provokes every failure, over and over; returns all that callers and operators are told.
    fn provoke(&self, send: impl Fn(&str) -> wire::Reply) -> Vec<(String, wire::Reply)> {
        let names = faults();
        let mut told = Vec::new();
        for (number, (name, _)) in names.iter().enumerate().take(self.many) {
            let often = if name.starts_with("cut") { 8 } else { 1 };
            for stream in [false, true].repeat(often) {
                let body = json!({
                    "model": format!("f{number}"), "max_tokens": 8, "stream": stream,
                    "messages": [{"role": "user", "content": format!("{PROMPT} {number}")}],
                });
                let request = wire::post("/v1/chat/completions", "", &body.to_string());
                told.push((format!("{name}, stream {stream}"), send(&request)));
            }
        }
        for path in [
            "/metrics",
            "/info",
            "/health/upstreams",
            "/health",
            "/v1/models",
            "/health/ready",
        ] {
            told.push((path.to_owned(), send(&wire::get(path))));
        }
        told
    }

    /// What of this may not be there at all: a token, or so much of one that the rest can be tried.
    fn secret_in(&self, text: &str) -> Option<String> {
        let parts = self.secrets.iter().flat_map(|secret| {
            // The end tells them apart, so that a beginning is all that a cut would leave.
            [&secret[..16], &secret[secret.len() - 12..]]
        });
        let mut found = parts.filter(|part| text.contains(*part));
        found.next().map(|part| excerpt(text, part))
    }

    /// What must not be in a text, with what stands around it.
    fn unclean(&self, what: &str, text: &str, with_texts: bool) -> Option<String> {
        let canaries = [PROMPT, COMPLETION];
        let mut texts = canaries
            .iter()
            .filter(|canary| with_texts && text.contains(**canary));
        let found = self.secret_in(text);
        let found = found.or_else(|| texts.next().map(|canary| excerpt(text, canary)))?;
        Some(format!("{what}: {found}"))
    }

    #[track_caller]
    fn assert_clean(&self, what: &str, text: &str, with_texts: bool) {
        assert_eq!(self.unclean(what, text, with_texts), None);
    }
}

/// Where a text stands.
fn excerpt(text: &str, part: &str) -> String {
    let at = text.find(part).unwrap_or_default();
    let from = (0..=at.saturating_sub(400))
        .rev()
        .find(|&i| text.is_char_boundary(i))
        .unwrap_or(0);
    text[from..].chars().take(600).collect()
}

fn files(folder: &Path, all: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files(&path, all);
        } else {
            let bytes = fs::read(&path).expect("a file");
            all.push((
                path.display().to_string(),
                String::from_utf8_lossy(&bytes).into_owned(),
            ));
        }
    }
}

/// A server that logs as people read it, not as JSON.
struct Plain {
    child: Child,
    log: NamedTempFile,
    address: std::net::SocketAddr,
}

impl Plain {
    fn serve(setup: &Setup, level: &str) -> Self {
        drop(setup.sconce());
        let log = NamedTempFile::new().expect("a temporary file");
        let out = || {
            File::options()
                .append(true)
                .open(log.path())
                .expect("a log")
        };
        let address = nobody();
        let child = Command::new(env!("CARGO_BIN_EXE_sconce"))
            .env_clear()
            .envs(setup.env.iter().map(|(name, value)| (name, value)))
            .args([
                "serve",
                "--log-level",
                level,
                "--port",
                &address.port().to_string(),
            ])
            .arg("--config")
            .arg(setup.folder.path().join("sconce.toml"))
            .stdin(Stdio::null())
            .stdout(out())
            .stderr(out())
            .spawn()
            .expect("the binary runs");
        eventually("the server listens", || {
            std::net::TcpStream::connect(address).ok()
        });
        Self {
            child,
            log,
            address,
        }
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn check_all(scene: &Scene, log: &str, told: &[(String, wire::Reply)]) {
    let mut unclean = Vec::new();
    for (what, reply) in told {
        let text = format!("{:?} {}", reply.headers, reply.body);
        // Callers may read their own text; operators' pages show nobody's.
        unclean.extend(scene.unclean(what, &text, what.starts_with('/')));
    }
    let mut written = Vec::new();
    files(scene.setup.folder.path(), &mut written);
    assert!(
        written
            .iter()
            .any(|(name, _)| name.ends_with("audit.jsonl"))
    );
    for (name, text) in &written {
        unclean.extend(scene.unclean(name, text, true));
    }
    for line in log.lines() {
        unclean.extend(scene.unclean("the log", line, true));
    }
    assert!(
        unclean.is_empty(),
        "{} places:\n{}",
        unclean.len(),
        unclean.join("\n\n")
    );
    assert!(departures(&scene.upstream).len() >= scene.many);
    for secret in &scene.secrets[1..] {
        assert!(
            has_received(&scene.upstream, secret),
            "each token was in use"
        );
    }
}

#[test]
fn no_secret_and_no_text_is_said_or_written_in_json() {
    let scene = scene();
    let server: Server = scene.setup.sconce().flag("--log-level", "trace").serve();
    let told = scene.provoke(|request| server.send(request));
    check_all(&scene, &server.log(), &told);
}

#[test]
fn no_secret_and_no_text_is_said_or_written_in_words() {
    let scene = scene();
    for level in ["trace", "info"] {
        let server = Plain::serve(&scene.setup, level);
        let told = scene.provoke(|request| wire::receive(wire::send(server.address, request)));
        let log = fs::read_to_string(server.log.path()).expect("a log");
        drop(server);
        check_all(&scene, &log, &told);
    }
}

#[test]
fn what_is_checked_shows_no_secret() {
    let scene = scene();
    let output = scene.setup.sconce().run("check");
    assert!(output.status.success(), "{output:?}");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("u3"), "{text}");
    scene.assert_clean("check", &text, true);
}

#[test]
fn a_literal_secret_in_a_file_or_an_argument_refuses_to_start_and_is_not_repeated() {
    let place = |text: &str| Setup::new().add(text);
    let upstream =
        |more: &str| format!("[[remote.upstream]]\nname = \"up\"\nkind = \"hf_router\"\n{more}\n");
    let files = [
        upstream(&format!("token_env = \"{SHAPED}\"")),
        upstream(&format!("token_env = \"HF_TOKEN\"\ntoken = \"{SHAPED}\"")),
        upstream(&format!("token_env = \"HF_TOKEN\" # {SHAPED}")),
        upstream(&format!(
            "token_env = \"HF_TOKEN\"\nbase_url = \"https://x:{SHAPED}@example.org\""
        )),
        upstream(&format!(
            "token_env = \"HF_TOKEN\"\nbase_url = \"https://example.org/?token={TOKEN}\""
        )),
        upstream("token_env = \"HF_TOKEN\"\nproxy = \"http://me:hunter2hunter2@proxy:3128\""),
        upstream(&format!("token_env = \"HF_TOKEN\"\nbill_to = \"{SHAPED}\"")),
        format!(
            "[egress]\n[[egress.rule]]\nname = \"r\"\npattern = '{SHAPED}'\naction = \"block\"\n"
        ),
    ];
    for text in &files {
        for command in ["serve", "check"] {
            let output = place(text).sconce().run(command);
            assert!(!output.status.success(), "{text}");
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said).into_owned();
            for secret in [&SHAPED[3..], TOKEN, "hunter2hunter2"] {
                assert!(!said.contains(secret), "{text}: {said}");
            }
            assert!(
                said.contains("line") || said.contains("token_env"),
                "{said}"
            );
        }
    }
    for words in [
        ["--model-id", SHAPED],
        ["--revision", SHAPED],
        ["--hostname", SHAPED],
    ] {
        let output = Sconce::new().words(&words).run("serve");
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            said.contains("argument") && !said.contains(&SHAPED[3..]),
            "{said}"
        );
    }
}

#[test]
fn a_token_that_is_not_set_disables_its_upstream_and_no_more() {
    let upstream = Upstream::start(willing);
    let setup = Setup::new()
        .add(&format!(
            "[[remote.upstream]]\nname = \"up\"\nkind = \"openai_compat\"\nengine = \"openai\"\nbase_url = \"{}\"\ntoken_env = \"NOT_SET\"\n\
             [[remote.target]]\nname = \"far\"\nupstream = \"up\"\nmodel = \"m\"\n\
             [[route.model]]\nname = \"default\"\nlocal = true\ntargets = [\"far\"]\n\
             [egress]\nanonymous = \"any\"\n",
            upstream.url()
        ))
        .policy("prefer-remote");
    let server = setup.serve();
    assert_eq!(server.get("/health").status, 200);
    let reply = server.post("/v1/chat/completions", &super::marked());
    reply.ok();
    assert_eq!(reply.header("x-route-target"), Some("local"), "{reply:?}");
    let state = server.get("/health/upstreams").body;
    assert!(state.contains("NOT_SET"), "{state}");
    assert_eq!(upstream.bytes_received(), 0);
}

#[test]
fn one_callers_text_is_not_told_to_another() {
    let scene = scene();
    let server = scene.setup.serve();
    scene.provoke(|request| server.send(request));
    for number in 0..scene.many {
        let body: Json = json!({
            "model": format!("f{number}"), "max_tokens": 8,
            "messages": [{"role": "user", "content": "Hi"}],
        });
        // A target that is left out after its failures is not asked, and says why from memory.
        let before = departures(&scene.upstream).len();
        let headers = [("x-route-max-cost-usd", "0")];
        let reply = super::ask(&server, "/v1/chat/completions", &headers, &body);
        if departures(&scene.upstream).len() == before {
            scene.assert_clean(&format!("fault {number}"), &reply.body, true);
        }
    }
}
