//! No network, no trouble; and offline is offline. In a network namespace of its own, where this machine has
//! a second address that is not loopback's and a connection to anywhere else is seen.

use std::cell::RefCell;
use std::io::{ErrorKind, Read};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{MARKER, Setup, ask, calls, departures, holds, willing};
use crate::support::eventually;
use crate::support::upstream::Upstream;
use crate::support::wire;

/// An address that is this machine's, within the namespace, and counts as another's.
const ELSEWHERE: &str = "10.9.9.1";

/// Says to the test that it runs within the namespace.
const INSIDE: &str = "SCONCE_TEST_IN_NAMESPACE";

/// Runs a test once more within a namespace; false if there can be none, with the reason printed.
#[track_caller]
fn within_namespace(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let prepare = format!("ip link set lo up && ip addr add {ELSEWHERE}/24 dev lo");
    let tried = Command::new("unshare")
        .args(["-rn", "sh", "-c", &prepare])
        .output();
    match tried {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            eprintln!("skipped: no network namespace here: {why}");
            return false;
        }
        Err(error) => {
            eprintln!("skipped: no `unshare` here: {error}");
            return false;
        }
    }
    let place = module_path!();
    let place = place.split_once("::").map_or(place, |(_, rest)| rest);
    let output = Command::new("unshare")
        .args([
            "-rn",
            "sh",
            "-c",
            &format!("{prepare} && exec \"$@\""),
            "sh",
        ])
        .arg(std::env::current_exe().expect("this test"))
        .args(["--exact", &format!("{place}::{test}"), "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("a namespace");
    let said = String::from_utf8_lossy(&output.stdout);
    let wrong = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}\n{wrong}"
    );
    false
}

/// Somebody on another machine, who listens and never answers.
struct Stranger(TcpListener, RefCell<Vec<TcpStream>>);

impl Stranger {
    fn new() -> Self {
        let listener = TcpListener::bind((ELSEWHERE, 0)).expect("a free port");
        listener
            .set_nonblocking(true)
            .expect("an option that TCP has");
        Self(listener, RefCell::default())
    }

    fn host(&self) -> String {
        self.0.local_addr().expect("a bound listener").to_string()
    }

    /// Whether anybody has connected since the last time; the system keeps connections that nobody takes.
    fn was_called(&self) -> bool {
        match self.0.accept() {
            Ok((socket, _)) => {
                socket
                    .set_nonblocking(true)
                    .expect("an option that TCP has");
                self.1.borrow_mut().push(socket);
                true
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                false
            }
        }
    }

    /// What was said since the last time, by anybody.
    fn heard(&self) -> Vec<u8> {
        while self.was_called() {}
        let mut bytes = Vec::new();
        for socket in self.1.borrow_mut().iter_mut() {
            // It ends with an error when there is nothing more so far.
            let _ = socket.read_to_end(&mut bytes);
        }
        bytes
    }
}

/// An upstream at this address, which everybody may use.
fn upstream(url: &str, more: &str) -> Setup {
    Setup::new()
        .add(&format!(
            "[[remote.upstream]]\nname = \"up\"\nkind = \"tgi\"\nbase_url = \"{url}\"\n{more}\
             [[remote.target]]\nname = \"far\"\nupstream = \"up\"\nmodel = \"m\"\n\
             [[route.model]]\nname = \"default\"\nlocal = true\ntargets = [\"far\"]\n\
             [egress]\nanonymous = \"any\"\n"
        ))
        .policy("prefer-remote")
}

const ALLOWED: &str = "allow_plaintext = true\nallow_private = true\n";

/// Serves every route by itself.
fn assert_serves_alone(setup: &Setup, words: &[&str]) {
    let began = Instant::now();
    let server = setup.sconce().words(words).serve();
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "it starts at once"
    );
    assert_eq!(server.get("/health").status, 200);
    for stream in [false, true] {
        for (path, body) in calls(MARKER, stream) {
            let reply = ask(&server, path, &[], &body);
            assert_eq!(reply.status, 200, "{path} {reply:?}");
            assert_eq!(
                reply.header("x-route-target"),
                Some("local"),
                "{path} {reply:?}"
            );
        }
    }
    let reply = ask(
        &server,
        "/generate",
        &[("x-route-policy", "remote-only")],
        &json!({"inputs": MARKER, "parameters": {"max_new_tokens": 2}}),
    );
    assert_eq!(
        reply.status, 200,
        "prefer-remote cannot be widened: {reply:?}"
    );
}

#[test]
fn offline_nothing_is_sent_to_another_machine() {
    if !within_namespace("offline_nothing_is_sent_to_another_machine") {
        return;
    }
    let stranger = Stranger::new();
    let setup = upstream(&format!("http://{}", stranger.host()), ALLOWED);
    // Somebody would see it if anything were.
    let server = setup.serve();
    eventually("the upstream is asked", || {
        stranger.was_called().then_some(())
    });
    drop(server);
    while stranger.was_called() {}
    assert_serves_alone(&setup, &["--offline"]);
    assert!(!stranger.was_called(), "by the flag");
    for name in ["SCONCE_OFFLINE", "HF_HUB_OFFLINE"] {
        let setup = upstream(&format!("http://{}", stranger.host()), ALLOWED).env(name, "1");
        assert_serves_alone(&setup, &[]);
        assert!(!stranger.was_called(), "{name}");
    }
}

#[test]
fn offline_a_proxy_on_another_machine_is_not_asked_for_this_one() {
    if !within_namespace("offline_a_proxy_on_another_machine_is_not_asked_for_this_one") {
        return;
    }
    let stranger = Stranger::new();
    let near = Upstream::start(willing);
    let proxy = format!("proxy = \"http://{}\"\n", stranger.host());
    let setup = upstream(&near.url(), &proxy);
    let check = setup.sconce().words(&["--offline"]).run("check");
    if !check.status.success() {
        // Such settings are refused, which is as good.
        let words = String::from_utf8_lossy(&check.stderr).into_owned();
        assert!(words.contains("proxy"), "{words}");
        return;
    }
    let server = setup.sconce().words(&["--offline"]).serve();
    for (path, body) in calls(MARKER, false) {
        let request = wire::post(path, "", &body.to_string());
        let socket = wire::send(server.address(), &request);
        let answer = std::thread::spawn(move || wire::receive(socket));
        // Whoever is called never answers, so either comes first.
        let called = eventually("an answer or a call", || {
            let called = stranger.was_called();
            (called || answer.is_finished()).then_some(called)
        });
        assert!(!called, "{path}");
    }
    assert!(!stranger.was_called());
}

#[test]
fn offline_this_machine_may_still_be_asked() {
    let near = Upstream::start(willing);
    let setup = upstream(&near.url(), "");
    let server = setup.sconce().words(&["--offline"]).serve();
    let body = json!({"inputs": MARKER, "parameters": {"max_new_tokens": 2}});
    let reply = server.post("/generate", &body);
    assert_eq!(reply.header("x-route-target"), Some("remote"), "{reply:?}");
    assert_eq!(departures(&near).len(), 1);
}

#[test]
fn without_a_network_the_server_starts_and_serves() {
    if !within_namespace("without_a_network_the_server_starts_and_serves") {
        return;
    }
    let setup = Setup::new()
        .add(
            "[[remote.upstream]]\nname = \"hf\"\nkind = \"hf_router\"\ntoken_env = \"HF_TOKEN\"\nmax_usd_per_day = 1\n\
             [[remote.target]]\nname = \"bigger\"\nupstream = \"hf\"\nmodel = \"org/m\"\nprovider = \"together\"\n\
             price = { input = 1, output = 1 }\n\
             [[route.model]]\nname = \"default\"\nlocal = true\ntargets = [\"bigger\"]\n\
             [egress]\nanonymous = \"any\"\n",
        )
        .policy("prefer-remote")
        .env("HF_TOKEN", "a-token-of-somebody");
    assert_serves_alone(&setup, &[]);
}

#[test]
fn what_is_pinned_is_not_on_the_wire_of_a_network_that_is_there() {
    if !within_namespace("what_is_pinned_is_not_on_the_wire_of_a_network_that_is_there") {
        return;
    }
    let stranger = Stranger::new();
    let url = format!("http://{}", stranger.host());
    let rule = format!(
        "[[egress.rule]]\nname = \"pinned\"\npattern = '{MARKER}'\naction = \"local-only\"\n"
    );
    let setup = upstream(&url, ALLOWED).add(&rule);
    let server = setup.serve();
    let mut wire = Vec::new();
    for policy in ["prefer-remote", "fastest", "cheapest", "remote-only"] {
        for stream in [false, true] {
            for (path, body) in calls(MARKER, stream) {
                let reply = ask(&server, path, &[("x-route-policy", policy)], &body);
                assert_eq!(reply.header("x-route-target"), Some("local"), "{reply:?}");
                wire.extend(stranger.heard());
            }
        }
    }
    // The network is there: what is not pinned goes out on it.
    let body = json!({"inputs": "walnut", "parameters": {"max_new_tokens": 2}});
    let request = wire::post("/generate", "", &body.to_string());
    let _waiting = wire::send(server.address(), &request);
    let wire = eventually("what may leave does", || {
        wire.extend(stranger.heard());
        holds(&wire, "walnut").then(|| wire.clone())
    });
    assert!(!holds(&wire, MARKER));
}
