//! The audit log: a line for whatever leaves, durable before it does, and nothing leaves without.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::{Arc, Mutex};

use serde_json::{Value as Json, json};

use super::{MARKER, Setup, ask, assert_untouched, calls, departures, silent, willing};
use crate::support::server::Sconce;
use crate::support::upstream::{Reply, Request, Upstream};

fn lines(path: &Path) -> Vec<Json> {
    let text = fs::read_to_string(path).expect("an audit log");
    let whole = text
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'));
    whole
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

fn sends(path: &Path) -> Vec<Json> {
    let mut all = lines(path);
    all.retain(|line| line["kind"] == "send");
    all
}

fn verify(path: &Path, more: &[&str]) -> Output {
    let path = path.display().to_string();
    Sconce::new()
        .words(&["verify", &path])
        .words(more)
        .run("audit")
}

/// Everybody's text may go to the operator's own upstream.
fn open(upstream: &Upstream) -> Setup {
    silent(upstream).add("[egress]\nanonymous = \"dedicated\"\n")
}

#[test]
fn every_request_finds_its_line_written_when_it_arrives() {
    let log: Arc<Mutex<Option<PathBuf>>> = Arc::default();
    let missing: Arc<Mutex<Vec<String>>> = Arc::default();
    let upstream = Upstream::start({
        let (log, missing) = (log.clone(), missing.clone());
        move |request: &Request| {
            let path = log.lock().expect("unpoisoned").clone().expect("a log");
            let written = sends(&path);
            // As many lines as requests so far, and one that is this one's.
            let own = written.iter().any(|line| {
                line["bytes"] == request.body.len()
                    && (request.method == "GET") == (line["purpose"] == "metadata")
            });
            if written.len() <= request.number || !own {
                let text = format!("{request:?} {written:?}");
                missing.lock().expect("unpoisoned").push(text);
            }
            // Every third fails, so that retries leave, too.
            match request.number % 3 {
                1 if request.method == "POST" => Reply::json(500, &json!({"error": "no"})),
                _ => willing(request),
            }
        }
    });
    let setup = open(&upstream).policy("remote-only");
    *log.lock().expect("unpoisoned") = Some(setup.audit_log());
    let server = setup.serve();
    for stream in [false, true] {
        for (path, body) in calls(MARKER, stream) {
            let reply = ask(&server, path, &[("x-request-id", "of-a-caller")], &body);
            assert_ne!(reply.status, 500, "{reply:?}");
        }
    }
    std::thread::scope(|scope| {
        for i in 0..16 {
            let server = &server;
            scope.spawn(move || {
                let body = super::super::chat(&format!("{MARKER} {i} {}", "x".repeat(i)));
                server.post("/v1/chat/completions", &body)
            });
        }
    });
    assert_eq!(*missing.lock().expect("unpoisoned"), Vec::<String>::new());
    let came = departures(&upstream);
    assert!(came.len() >= 16, "{}", came.len());
    let written = sends(&setup.audit_log());
    let mut bytes: Vec<u64> = written
        .iter()
        .filter(|line| line["purpose"] != "metadata")
        .map(|line| line["bytes"].as_u64().expect("a count"))
        .collect();
    let mut sizes: Vec<u64> = came
        .iter()
        .map(|request| request.body.len() as u64)
        .collect();
    bytes.sort_unstable();
    sizes.sort_unstable();
    assert_eq!(
        bytes, sizes,
        "a line for each that came, and none for others"
    );
    let purposes: BTreeSet<&str> = written
        .iter()
        .filter_map(|l| l["purpose"].as_str())
        .collect();
    assert!(
        purposes.contains("request") && purposes.contains("retry"),
        "{purposes:?}"
    );
    for line in &written {
        assert_eq!(line["host"], upstream.address().to_string());
        assert_eq!(line["upstream"], "up");
    }
    let text = fs::read_to_string(setup.audit_log()).expect("an audit log");
    assert!(!text.contains(MARKER), "never the text");
    for file in ["audit.jsonl", "audit.jsonl.key"] {
        let path = setup.folder.path().join("state").join(file);
        let mode = fs::metadata(path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{file}");
    }
}

#[test]
fn a_whole_chain_is_verified_and_a_changed_byte_is_found() {
    let upstream = Upstream::start(willing);
    let setup = open(&upstream).policy("remote-only");
    let mut server = setup.serve();
    for i in 0..6 {
        let body = super::super::chat(&format!("{MARKER} {i}"));
        server.post("/v1/chat/completions", &body).ok();
    }
    let asked = setup.folder.path().join("asked");
    fs::write(&asked, format!("{MARKER} 3")).expect("room");
    let asked = asked.display().to_string();
    server.terminate();
    server.wait();
    let log = setup.audit_log();
    let whole = verify(&log, &["--text", &asked]);
    let said = String::from_utf8_lossy(&whole.stdout).into_owned();
    assert!(whole.status.success(), "{whole:?}");
    assert!(
        said.contains("the chain is whole") && said.contains("127.0.0.1"),
        "{said}"
    );
    let of_each: Vec<Json> = lines(&log);
    let done = of_each.iter().filter(|line| line["kind"] == "done").count();
    assert_eq!(done, 6, "{of_each:?}");

    let bytes = fs::read(&log).expect("a log");
    let key = fs::read(log.with_file_name("audit.jsonl.key")).expect("a key");
    let copy = setup.folder.path().join("copy.jsonl");
    fs::write(copy.with_file_name("copy.jsonl.key"), &key).expect("room");
    let holds = |bytes: &[u8]| {
        fs::write(&copy, bytes).expect("room");
        verify(&copy, &[]).status.success()
    };
    assert!(holds(&bytes));
    for at in (0..bytes.len()).step_by(bytes.len() / 60) {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert!(!holds(&changed), "byte {at} of {}", bytes.len());
    }
    let text = String::from_utf8(bytes).expect("UTF-8");
    let all: Vec<&str> = text.split_inclusive('\n').collect();
    for gone in 0..all.len() - 1 {
        let rest: Vec<&str> = [&all[..gone], &all[gone + 1..]].concat();
        assert!(!holds(rest.concat().as_bytes()), "without line {gone}");
    }
    let mut swapped = all.clone();
    swapped.swap(1, 2);
    assert!(!holds(swapped.concat().as_bytes()));
    let doubled = [&all[..], &all[all.len() - 1..]].concat();
    assert!(!holds(doubled.concat().as_bytes()));
    // Without its key a chain can be made anew by anybody, which is said.
    fs::remove_file(copy.with_file_name("copy.jsonl.key")).expect("a file");
    fs::write(&copy, &text).expect("room");
    let unsealed = verify(&copy, &[]);
    let said = [unsealed.stdout, unsealed.stderr].concat();
    assert!(String::from_utf8_lossy(&said).contains("key"), "{said:?}");
}

/// Something that is done to a log, and its name.
type Spoiling = (&'static str, fn(&Path));

/// What an operator or an attacker may do to a log in use.
fn spoilings() -> Vec<Spoiling> {
    let removed: fn(&Path) = |log| fs::remove_file(log).expect("a file");
    let folder: fn(&Path) =
        |log| fs::remove_dir_all(log.parent().expect("a folder")).expect("a folder");
    let moved: fn(&Path) = |log| fs::rename(log, log.with_extension("away")).expect("a file");
    let replaced: fn(&Path) = |log| {
        let copy = log.with_extension("copy");
        fs::copy(log, &copy).expect("room");
        fs::rename(&copy, log).expect("a file");
    };
    let device: fn(&Path) = |log| {
        fs::remove_file(log).expect("a file");
        std::os::unix::fs::symlink("/dev/full", log).expect("a link");
    };
    vec![
        ("removed", removed),
        ("folder removed", folder),
        ("moved", moved),
        ("replaced", replaced),
        ("a device that is full", device),
    ]
}

#[test]
fn without_a_line_nothing_leaves() {
    for (what, spoil) in spoilings() {
        let upstream = Upstream::start(willing);
        let setup = open(&upstream).policy("remote-only");
        let server = setup.serve();
        let before = super::super::chat("walnut");
        server.post("/v1/chat/completions", &before).ok();
        let so_far = departures(&upstream).len();
        // What notes how that ended is on its way.
        crate::support::eventually("the answer is noted", || {
            let all = lines(&setup.audit_log());
            all.iter().any(|line| line["kind"] == "done").then_some(())
        });
        spoil(&setup.audit_log());
        for stream in [false, true] {
            for (path, body) in calls(MARKER, stream) {
                let reply = ask(&server, path, &[], &body);
                assert_ne!(
                    reply.header("x-route-target"),
                    Some("remote"),
                    "{what} {reply:?}"
                );
                assert_eq!(
                    reply.header("x-route-attempts"),
                    Some("0"),
                    "{what} {reply:?}"
                );
                let body = reply.body.as_str();
                assert!(!body.contains("From afar"), "{what} {body}");
                let path = setup.folder.path().display().to_string();
                assert!(
                    !body.contains(&path),
                    "{what}: a caller learns no paths: {body}"
                );
            }
        }
        // This machine answers in its place where it may.
        let headers = [("x-route-policy", "prefer-remote")];
        let reply = ask(
            &server,
            "/v1/chat/completions",
            &headers,
            &super::super::chat(MARKER),
        );
        assert_eq!(
            reply.header("x-route-target"),
            Some("local"),
            "{what} {reply:?}"
        );
        reply.ok();
        assert_eq!(departures(&upstream).len(), so_far, "{what}");
        assert!(!super::has_received(&upstream, MARKER), "{what}");
        assert!(server.log().contains("nothing may leave"), "{what}");
    }
}

#[test]
fn a_server_whose_log_cannot_be_opened_does_not_start() {
    let upstream = Upstream::start(willing);
    let refused = |setup: &Setup| {
        let output = setup.sconce().flag("--port", "0").run("serve");
        assert!(!output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    // Where its folder should be there is a file.
    let elsewhere = tempfile::tempdir().expect("a folder");
    let ledger = elsewhere.path().join("ledger.db").display().to_string();
    let setup = open(&upstream).add(&format!("[ledger]\npath = {ledger:?}\n"));
    fs::write(setup.folder.path().join("state"), "a file").expect("room");
    let words = refused(&setup);
    assert!(words.contains("audit log"), "{words}");
    // Its end was changed while no server ran.
    let setup = open(&upstream).policy("remote-only");
    let mut server = setup.serve();
    server
        .post("/v1/chat/completions", &super::super::chat("walnut"))
        .ok();
    server.terminate();
    server.wait();
    let log = setup.audit_log();
    let sound = fs::read_to_string(&log).expect("a log");
    fs::write(&log, sound.replacen("\"bytes\":", "\"bytes\":1", 1)).expect("room");
    let words = refused(&setup);
    assert!(words.contains("audit"), "{words}");
    fs::write(&log, &sound).expect("room");
    // Another server has it.
    let _first = setup.serve();
    let words = refused(&setup);
    assert!(words.contains("another process"), "{words}");
    assert_untouched_but_for(&upstream, 1);
}

#[track_caller]
fn assert_untouched_but_for(upstream: &Upstream, many: usize) {
    assert_eq!(departures(upstream).len(), many);
    if many == 0 {
        assert_untouched(upstream);
    }
}

#[test]
fn the_log_turns_over_without_a_gap() {
    let upstream = Upstream::start(willing);
    let setup = open(&upstream)
        .policy("remote-only")
        .add("[audit]\nmax_bytes = 65536\nkeep = 100\n");
    let mut server = setup.serve();
    for i in 0..120 {
        server
            .post(
                "/v1/chat/completions",
                &super::super::chat(&format!("walnut {i}")),
            )
            .ok();
    }
    server.terminate();
    server.wait();
    let log = setup.audit_log();
    let folder = log.parent().expect("a folder");
    let files = fs::read_dir(folder).expect("a folder").count();
    assert!(
        files > 3,
        "the log and its key, full files, and what is known of targets: {files}"
    );
    assert!(fs::metadata(&log).expect("a log").size() <= 65536);
    let report = verify(&log, &[]);
    assert!(report.status.success(), "{report:?}");
    // 120 lines for what left, 120 for how it ended, one for each new file.
    let said = String::from_utf8_lossy(&report.stdout).into_owned();
    let lines = said.split_whitespace().zip(said.split_whitespace().skip(1));
    let count = lines
        .filter(|(_, word)| *word == "lines")
        .find_map(|(n, _)| n.parse::<usize>().ok());
    assert!(count.is_some_and(|n| n >= 240), "{said}");
    // A full file in the middle is missed.
    let mut full: Vec<PathBuf> = fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| {
            path.extension()
                .is_some_and(|e| e.as_encoded_bytes().iter().all(u8::is_ascii_digit))
        })
        .collect();
    full.sort();
    if full.len() > 1 {
        let text = fs::read_to_string(&full[0]).expect("a file");
        fs::write(&full[0], text.replacen("dedicated", "any", 1)).expect("room");
        assert!(!verify(&log, &[]).status.success());
    }
}

#[test]
fn what_a_caller_leaves_behind_is_noted_too() {
    let upstream = Upstream::start(|request| match request.method.as_str() {
        "GET" => willing(request),
        _ => Reply::chat(&["a", "b", "c"]).hang_after(2),
    });
    let setup = open(&upstream).policy("remote-only");
    let server = setup.serve();
    let mut body = super::super::chat("walnut");
    body["stream"] = true.into();
    let mut stream = server.stream("/v1/chat/completions", &body);
    assert!(stream.next_event().is_some());
    drop(stream);
    let request = upstream.await_request(departures(&upstream)[0].number);
    upstream.await_closed(&request);
    crate::support::eventually("how it ended is noted", || {
        let all = lines(&setup.audit_log());
        all.iter().any(|line| line["kind"] == "done").then_some(())
    });
}
