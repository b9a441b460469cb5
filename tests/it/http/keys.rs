//! Keys of named callers: made, listed and revoked by commands; what they open, and how often.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Output;

use serde_json::json;
use tempfile::TempDir;

use crate::support::eventually;
use crate::support::models::Copy;
use crate::support::server::{Sconce, Server};
use crate::support::wire::{self, Reply};

/// A settings file and the commands over it.
struct KeyFile {
    folder: TempDir,
}

impl KeyFile {
    fn new(text: &str) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let file = Self { folder };
        fs::write(file.path(), text).expect("a writable folder");
        file
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("sconce.toml")
    }

    fn text(&self) -> String {
        fs::read_to_string(self.path()).expect("a readable file")
    }

    fn key(&self, words: &[&str]) -> Output {
        let path = self.path().display().to_string();
        Sconce::new()
            .words(words)
            .flag("--config", &path)
            .run("key")
    }

    /// Makes a key.
    #[track_caller]
    fn new_key(&self, name: &str, more: &[&str]) -> String {
        let words = [&["new", "--name", name], more].concat();
        key_of(&self.key(&words))
    }

    /// A server with these keys.
    fn serve(&self, sconce: Sconce) -> Server {
        sconce
            .flag("--config", &self.path().display().to_string())
            .serve()
    }
}

/// The key that was printed, alone on standard output.
#[track_caller]
fn key_of(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    let key = stdout(output);
    let key = key.strip_suffix('\n').expect("a line");
    assert!(key.starts_with("sk-sconce-") && key.len() == 91, "{key}");
    assert!(
        !stderr(output).contains(&key[27..]),
        "the key goes to one place only"
    );
    key.to_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn ask(key: &str, path: &str) -> String {
    let body = json!({"inputs": "a", "parameters": {"max_new_tokens": 1}}).to_string();
    wire::post(path, &format!("authorization: Bearer {key}\r\n"), &body)
}

fn generate(server: &Server, key: &str) -> Reply {
    server.send(&ask(key, "/generate"))
}

const HEAD: &str = "# The house of Alice and Bob\nport = 1 # never used\n";

#[test]
fn a_key_is_made_used_listed_and_revoked() {
    let file = KeyFile::new(HEAD);
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o640)).expect("ours");
    let alice = file.new_key("alice", &[]);
    let with_alice = file.text();
    let bob = file.new_key(
        "bob",
        &[
            "--tenant",
            "team",
            "--requests-per-minute",
            "600",
            "--max-concurrent-requests",
            "3",
            "--expires",
            "2999-01-31",
        ],
    );
    let with_both = file.text();
    assert!(with_alice.starts_with(HEAD) && with_both.starts_with(&with_alice));
    for secret in [&alice[27..], &bob[27..]] {
        assert!(!with_both.contains(secret));
    }
    let mode = fs::metadata(file.path())
        .expect("there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o640);
    let left = fs::read_dir(file.folder.path()).expect("a folder").count();
    assert_eq!(left, 1, "nothing is left beside the file");

    let list = stdout(&file.key(&["list"]));
    let rows: Vec<Vec<&str>> = list
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows[1], ["alice", "alice", "-", "-", "-", "-", "never"]);
    assert_eq!(
        rows[2],
        [
            "bob",
            "team",
            "600",
            "600",
            "3",
            "-",
            "2999-01-31T00:00:00+00:00"
        ]
    );
    assert!(!list.contains("sha256") && rows.len() == 3, "{list}");

    let server = file.serve(Sconce::tiny("llama-tied"));
    for key in [&alice, &bob] {
        assert_eq!(generate(&server, key).status, 200);
        let body = json!({"inputs": "a"}).to_string();
        let other_header = wire::post("/tokenize", &format!("x-api-key: {key}\r\n"), &body);
        assert_eq!(server.send(&other_header).status, 200);
        assert_eq!(generate(&server, &key[..90]).status, 401);
    }
    assert_eq!(generate(&server, "").status, 401);
    let crossed = format!("{}{}", &alice[..27], &bob[27..]);
    assert_eq!(generate(&server, &crossed).status, 401);

    let revoked = file.key(&["revoke", "--name", "bob"]);
    assert!(revoked.status.success() && stdout(&revoked).is_empty());
    assert_eq!(file.text(), with_alice, "the rest stays byte for byte");
    let again = file.key(&["revoke", "--name", "bob"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(
        stderr(&again).contains("there is no key `bob`"),
        "{}",
        stderr(&again)
    );
    let last = file.key(&["revoke", "--name", "alice"]);
    assert!(
        stderr(&last).contains("lets everyone in"),
        "{}",
        stderr(&last)
    );
    assert_eq!(file.text(), HEAD);
}

#[test]
fn without_a_file_the_table_is_shown_for_pasting() {
    let output = Sconce::new().words(&["new", "--name", "alice"]).run("key");
    let key = key_of(&output);
    let words = stderr(&output);
    let table =
        &words[words.find("[[keys]]").expect("a table")..words.find("The key").expect("words")];
    let file = KeyFile::new(table);
    let server = file.serve(Sconce::tiny("llama-tied"));
    assert_eq!(generate(&server, &key).status, 200);
}

#[test]
fn a_file_that_is_not_there_is_made_for_its_owner_only() {
    let file = KeyFile::new("");
    fs::remove_file(file.path()).expect("it was there");
    file.new_key("alice", &[]);
    let mode = fs::metadata(file.path())
        .expect("there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn what_cannot_be_a_key_changes_no_file() {
    let file = KeyFile::new(HEAD);
    file.new_key("alice", &[]);
    let before = file.text();
    let refused: [(&[&str], &str); 6] = [
        (&["new", "--name", "alice"], "stands there twice"),
        (&["new", "--name", "a b"], "names of keys"),
        (&["new", "--name", "a\"\nport = 2\nx = \""], "names of keys"),
        (&["new", "--name", "b", "--tenant", ""], "names of keys"),
        (
            &["new", "--name", "b", "--expires", "soon\"\nport = 3"],
            "expires",
        ),
        (
            &["new", "--name", "b", "--requests-per-minute", "0"],
            "requests-per-minute",
        ),
    ];
    for (words, expected) in refused {
        let output = file.key(words);
        assert!(
            !output.status.success() && stdout(&output).is_empty(),
            "{words:?}"
        );
        assert!(
            stderr(&output).contains(expected),
            "{words:?}: {}",
            stderr(&output)
        );
        assert_eq!(file.text(), before);
    }
    fs::write(file.path(), "prot = 1\n").expect("ours");
    let output = file.key(&["new", "--name", "bob"]);
    assert!(!output.status.success() && stderr(&output).contains("did you mean `port`?"));
    assert_eq!(file.text(), "prot = 1\n");
}

#[test]
fn named_keys_and_the_unnamed_one_live_together() {
    let file = KeyFile::new("");
    let alice = file.new_key("alice", &[]);
    let server = file.serve(Sconce::tiny("llama-tied").env("API_KEY", "for-everyone-else"));
    for (key, expected) in [
        (alice.as_str(), 200),
        ("for-everyone-else", 200),
        ("another", 401),
    ] {
        assert_eq!(generate(&server, key).status, expected, "{key}");
    }
}

#[test]
fn tenants_share_no_prefix_cache_and_keys_of_one_tenant_do() {
    let file = KeyFile::new("");
    let keys = [
        file.new_key("alice", &[]),
        file.new_key("bob", &["--tenant", "team"]),
        file.new_key("carol", &["--tenant", "team"]),
    ];
    let server = file.serve(Sconce::tiny("llama-tied"));
    let inputs = "once upon a time there was a very long prompt, and it went on and on, ".repeat(4);
    let body = json!({"inputs": inputs, "parameters": {"max_new_tokens": 1}}).to_string();
    let cached = keys.map(|key| {
        let before = server.metric(CACHED);
        let extra = format!("authorization: Bearer {key}\r\n");
        server.send(&wire::post("/generate", &extra, &body)).ok();
        server.metric(CACHED) - before
    });
    assert_eq!(
        (cached[0], cached[1]),
        (0.0, 0.0),
        "another's cache is not used"
    );
    assert!(cached[2] > 0.0, "{cached:?}");
}

const CACHED: &str = "sconce_prefix_cache_hit_tokens";

#[test]
fn a_rate_is_each_keys_own() {
    let file = KeyFile::new("");
    let limited = ["--requests-per-minute", "1", "--burst", "2"];
    let alice = file.new_key("alice", &limited);
    let bob = file.new_key("bob", &limited);
    let server = file.serve(Sconce::tiny("llama-tied"));
    assert_eq!(generate(&server, &alice).status, 200);
    assert_eq!(server.send(&ask(&alice, "/tokenize")).status, 200);
    for path in ["/generate", "/generate_stream", "/", "/tokenize"] {
        let refused = server.send(&ask(&alice, path));
        let body = r#"{"error":"Rate limit of key `alice` exceeded","error_type":"overloaded"}"#;
        assert_eq!(
            (refused.status, refused.body.as_str()),
            (429, body),
            "{path}"
        );
        let wait = refused.header("retry-after").expect("present");
        assert!(
            (1..=60).contains(&wait.parse::<u64>().expect("whole seconds")),
            "{wait}"
        );
        let left = format!(r#""requests";r=0;t={wait}"#);
        assert_eq!(refused.header("ratelimit"), Some(left.as_str()));
        let policy = r#""requests";q=1;w=60"#;
        assert_eq!(refused.header("ratelimit-policy"), Some(policy));
    }
    assert_eq!(
        generate(&server, &bob).status,
        200,
        "another key is another count"
    );
    let wrong = format!("{}{}", &alice[..27], &bob[27..]);
    assert_eq!(
        generate(&server, &wrong).status,
        401,
        "the key comes before its limits"
    );
    let ask_info = format!(
        "GET /info HTTP/1.1\r\nhost: test\r\nconnection: close\r\nauthorization: Bearer {alice}\r\n\r\n"
    );
    assert_eq!(server.send(&ask_info).status, 200, "looking is free");
}

#[test]
fn a_stream_holds_its_place_until_it_is_given_up() {
    let file = KeyFile::new("");
    let alice = file.new_key("alice", &["--max-concurrent-requests", "1"]);
    let bob = file.new_key("bob", &["--max-concurrent-requests", "1"]);
    let model = Copy::endless();
    let server = file.serve(
        Sconce::new()
            .flag("--model-id", &model.path().display().to_string())
            .flag("--max-total-tokens", "131072")
            .flag("--max-batch-total-tokens", "262144"),
    );
    for _ in 0..3 {
        assert_eq!(
            generate(&server, &alice).status,
            200,
            "a whole answer frees its place"
        );
    }
    let long = json!({"inputs": "a", "parameters": {}}).to_string();
    let extra = format!("authorization: Bearer {alice}\r\n");
    let request = wire::post("/generate_stream", &extra, &long);
    let mut stream = wire::receive_stream(wire::send(server.address(), &request));
    assert!(stream.next_event().is_some());
    let refused = generate(&server, &alice);
    let body = r#"{"error":"Concurrency limit of key `alice` exceeded","error_type":"overloaded"}"#;
    assert_eq!((refused.status, refused.body.as_str()), (429, body));
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(
        generate(&server, &bob).status,
        200,
        "another key has its own places"
    );
    assert!(stream.next_event().is_some(), "the stream goes on");
    drop(stream);
    eventually("the place is free again", || {
        (generate(&server, &alice).status == 200).then_some(())
    });
    let unread = wire::send(server.address(), &wire::post("/generate", &extra, &long));
    eventually("the place is taken", || {
        (generate(&server, &alice).status == 429).then_some(())
    });
    drop(unread);
    eventually("a caller that left frees its place", || {
        (generate(&server, &alice).status == 200).then_some(())
    });
}

#[test]
fn an_expired_key_is_refused() {
    let file = KeyFile::new("");
    let alice = file.new_key("alice", &["--expires", "2020-01-31"]);
    let server = file.serve(Sconce::tiny("llama-tied"));
    assert_eq!(generate(&server, &alice).status, 401);
    assert!(stdout(&file.key(&["list"])).contains("(expired)"));
}

#[test]
fn a_hangup_reads_keys_again() {
    let file = KeyFile::new("");
    let alice = file.new_key("alice", &[]);
    let server = file.serve(Sconce::tiny("llama-tied"));
    let bob = file.new_key("bob", &[]);
    file.key(&["revoke", "--name", "alice"]);
    let statuses = || [&alice, &bob].map(|key| generate(&server, key).status);
    assert_eq!(statuses(), [200, 401], "not before it is told");
    server.hang_up();
    eventually("new keys count", || {
        (statuses() == [401, 200]).then_some(())
    });
    fs::write(
        file.path(),
        format!("[[keys]]\nname = 'x'\nhash = '{bob}'\n"),
    )
    .expect("ours");
    server.hang_up();
    eventually("the fault is logged", || {
        server
            .log()
            .contains("the keys stay as they were")
            .then_some(())
    });
    assert_eq!(statuses(), [401, 200], "a broken file changes nothing");
    assert!(!server.log().contains(&bob[27..]));
    fs::write(file.path(), "").expect("ours");
    server.hang_up();
    eventually("no key is left", || {
        (statuses() == [401, 401]).then_some(())
    });
    assert_eq!(
        generate(&server, "").status,
        401,
        "and the door is not open for it"
    );
}

#[test]
fn neither_keys_nor_hashes_are_written() {
    let file = KeyFile::new("");
    let alice = file.new_key("alice", &["--requests-per-minute", "1"]);
    let bob = file.new_key("bob", &[]);
    let digest = file.text()[file.text().find("sha256:").expect("a hash") + 24..][..64].to_owned();
    let mut server = file.serve(Sconce::tiny("llama-tied").env("LOG_LEVEL", "trace"));
    let wrong = format!("{}{}", &alice[..27], &bob[27..]);
    let statuses = [&alice, &alice, &wrong].map(|key| generate(&server, key).status);
    assert_eq!(statuses, [200, 429, 401]);
    let mut written = server.get("/metrics").body + &server.get("/info").body;
    server.hang_up();
    eventually("keys are read again", || {
        server.log().contains("keys read again").then_some(())
    });
    server.terminate();
    server.wait();
    let path = file.path().display().to_string();
    let check = Sconce::new().flag("--config", &path).run("check");
    assert!(
        check.status.success() && stdout(&check).contains("2 named"),
        "{}",
        stdout(&check)
    );
    written += &(server.log() + &stdout(&check) + &stderr(&check));
    written += &stdout(&file.key(&["list"]));
    assert!(written.contains("Connected"), "the log is part of it");
    for secret in [&alice[27..], &bob[27..], &digest] {
        assert!(!written.contains(secret), "{secret} in {written}");
    }
}

#[test]
fn a_key_itself_in_the_file_is_refused_unrepeated() {
    let file = KeyFile::new("");
    let alice = file.new_key("alice", &[]);
    let sound = file.text();
    for (more, expected) in [
        (
            format!("key = '{alice}'"),
            "a key itself may not stand in a file",
        ),
        (
            format!("secret = '{alice}'"),
            "a key itself may not stand in a file",
        ),
        (format!("tenant = '{alice}'"), "`tenant` must be"),
        (
            format!("max_concurent_requests = '{alice}'"),
            "did you mean `max_concurrent_requests`?",
        ),
        (
            format!("max_concurrent_requests = '{alice}'"),
            "must be a whole number",
        ),
    ] {
        fs::write(file.path(), format!("{sound}{more}\n")).expect("ours");
        let path = file.path().display().to_string();
        for command in ["check", "serve"] {
            let output = Sconce::new().flag("--config", &path).run(command);
            let words = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{words}");
            assert!(
                words.contains(expected) && words.contains("sconce.toml"),
                "{words}"
            );
            assert!(!words.contains(&alice[27..]), "{words}");
        }
    }
}

#[test]
fn keys_made_at_the_same_time_are_all_kept() {
    let file = KeyFile::new(HEAD);
    std::thread::scope(|scope| {
        for i in 0..12 {
            let file = &file;
            scope.spawn(move || file.new_key(&format!("k{i}"), &[]));
        }
    });
    let text = file.text();
    for i in 0..12 {
        assert!(text.contains(&format!("\"k{i}\"")), "{i}: {text}");
    }
}

#[test]
fn keys_in_one_list_are_not_edited_and_the_file_stays() {
    let made = KeyFile::new("");
    made.new_key("a", &[]);
    let table = made.text();
    let hash = table
        .lines()
        .find(|line| line.starts_with("hash"))
        .expect("a hash");
    let file = KeyFile::new(&format!("keys = [{{ name = \"a\", {hash} }}]\n"));
    let before = file.text();
    for words in [&["new", "--name", "b"][..], &["revoke", "--name", "a"]] {
        let output = file.key(words);
        assert!(!output.status.success());
        assert!(stderr(&output).contains("[[keys]]"), "{}", stderr(&output));
        assert_eq!(file.text(), before);
    }
}
