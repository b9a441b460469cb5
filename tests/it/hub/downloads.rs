//! Downloads that go well, or well in the end.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value as Json;
use tempfile::TempDir;

use super::{assert_sound, done, failed, printed, snapshot};
use crate::support::hub::{COMMIT, Files, Hub, TOKEN, model_files, noise, sha256};
use crate::support::upstream::{Reply, nobody};

const NEEDED: [&str; 6] = [
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
];

#[test]
fn a_model_is_served_by_its_name_and_the_second_start_asks_nobody() {
    let (hub, home) = (Hub::tiny(), TempDir::new().expect("a folder"));
    let sconce = hub.sconce(home.path()).flag("--model-id", "org/tiny");
    let server = sconce.clone().serve();
    let info: Json = serde_json::from_str(&server.get("/info").body).expect("JSON");
    assert_eq!(
        (info["model_id"].as_str(), info["model_sha"].as_str()),
        (Some("org/tiny"), Some(COMMIT))
    );
    let first = server.generate("hello", serde_json::json!({"max_new_tokens": 8}));
    drop(server);
    assert_eq!(
        assert_sound(home.path(), "org/tiny", &model_files("llama-tied")),
        NEEDED
    );
    let asked = (hub.hub.bytes_received(), hub.storage.bytes_received());
    let again = sconce
        .serve()
        .generate("hello", serde_json::json!({"max_new_tokens": 8}));
    assert_eq!(again["generated_text"], first["generated_text"]);
    assert_eq!(
        (hub.hub.bytes_received(), hub.storage.bytes_received()),
        asked,
        "nobody was asked"
    );
}

#[test]
fn pull_says_what_it_did_and_brings_only_what_is_missing() {
    let (hub, home) = (Hub::tiny(), TempDir::new().expect("a folder"));
    let pull = hub.sconce(home.path()).words(&["org/tiny"]);
    let text = done(&pull.run("pull"));
    assert!(
        text.contains("org/tiny is here now, ") && text.contains(&COMMIT[..12]),
        "{text}"
    );
    let stored = hub.storage.requests().len();
    let text = done(&pull.run("pull"));
    assert!(text.contains("org/tiny is up to date: "), "{text}");
    assert_eq!(hub.storage.requests().len(), stored);
    // One file lost: one file fetched.
    fs::remove_file(
        fs::canonicalize(snapshot(home.path(), "org/tiny").join("config.json")).expect("a blob"),
    )
    .expect("removed");
    let asked = hub.hub.requests().len();
    done(&pull.run("pull"));
    let gets: Vec<_> = hub
        .hub
        .requests()
        .split_off(asked)
        .into_iter()
        .filter(|request| request.method == "GET")
        .map(|request| request.path)
        .collect();
    assert_eq!(
        gets,
        [
            "/api/models/org/tiny/revision/main".to_owned(),
            format!("/org/tiny/resolve/{COMMIT}/config.json")
        ]
    );
    assert_eq!(
        assert_sound(home.path(), "org/tiny", &model_files("llama-tied")),
        NEEDED
    );
}

#[test]
fn the_token_is_shown_to_the_hub_and_to_nobody_else() {
    let (hub, home) = (Hub::tiny(), TempDir::new().expect("a folder"));
    let pull = hub
        .sconce(home.path())
        .words(&["org/tiny"])
        .env("HF_TOKEN", TOKEN)
        // A proxy would read what goes over plain http.
        .env("HTTP_PROXY", &format!("http://{}", nobody()))
        .env("LOG_LEVEL", "trace");
    let text = done(&pull.run("pull"));
    assert!(!text.contains(TOKEN), "{text}");
    for request in hub.hub.requests() {
        assert_eq!(
            request.header("authorization"),
            Some(&*format!("Bearer {TOKEN}")),
            "{request:?}"
        );
    }
    assert!(!hub.storage.requests().is_empty());
    for connection in hub.storage.connections() {
        let received = String::from_utf8_lossy(&connection.received).into_owned();
        assert!(
            !received.contains(TOKEN) && !received.to_lowercase().contains("authorization"),
            "{received}"
        );
    }
    // Nor does what went wrong repeat it, or the signature of an address.
    hub.storage_fault(|_, _| Reply::bad_gateway());
    let text = printed(
        &hub.sconce(home.path())
            .words(&["org/tiny"])
            .env("HF_TOKEN", TOKEN)
            .env("HF_HOME", &home.path().join("b").display().to_string())
            .run("pull"),
    );
    assert!(!text.contains(TOKEN) && !text.contains("signed"), "{text}");
}

#[test]
fn one_gguf_file_is_chosen_by_its_quantisation() {
    let files: Files = ["q4_0", "q8_0"]
        .map(|kind| {
            (
                format!("Tiny-{}.gguf", kind.to_uppercase()),
                fs::read(crate::support::engine::case(&format!("llama-gguf-{kind}")))
                    .expect("a frozen file"),
            )
        })
        .into();
    let hub = Hub::start(&[("org/tiny-GGUF", files.clone())]);
    let home = TempDir::new().expect("a folder");
    let server = hub
        .sconce(home.path())
        .flag("--model-id", "org/tiny-GGUF:q8_0")
        .serve();
    let info: Json = serde_json::from_str(&server.get("/info").body).expect("JSON");
    assert_eq!(info["model_id"], "org/tiny-GGUF:q8_0");
    assert_eq!(
        assert_sound(home.path(), "org/tiny-GGUF", &files),
        ["Tiny-Q8_0.gguf"]
    );
    let text = failed(
        &hub.sconce(home.path())
            .words(&["org/tiny-GGUF:Q5_K_M"])
            .run("pull"),
    );
    assert_eq!(
        text,
        "error: `org/tiny-GGUF` has no GGUF file `Q5_K_M`; it has Q4_0, Q8_0"
    );
    // Without a tag the usual quantisation is taken.
    done(
        &hub.sconce(home.path())
            .words(&["org/tiny-GGUF"])
            .run("pull"),
    );
    assert_eq!(
        assert_sound(home.path(), "org/tiny-GGUF", &files),
        ["Tiny-Q4_0.gguf", "Tiny-Q8_0.gguf"]
    );
    let list = done(&hub.sconce(home.path()).words(&["--json"]).run("list"));
    let rows: Vec<Json> = list
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let models: Vec<_> = rows
        .iter()
        .map(|row| row["model"].as_str().expect("a name"))
        .collect();
    assert_eq!(models, ["org/tiny-GGUF:Q4_0", "org/tiny-GGUF:Q8_0"]);
    assert!(
        rows.iter().all(
            |row| row["memory_bytes"].as_u64() > row["size_bytes"].as_u64()
                && row["problem"].is_null()
        ),
        "{list}"
    );
    let text = done(
        &hub.sconce(home.path())
            .words(&["org/tiny-GGUF:Q4_0"])
            .run("rm"),
    );
    assert!(text.starts_with("org/tiny-GGUF:Q4_0 is gone: "), "{text}");
    assert_eq!(
        assert_sound(home.path(), "org/tiny-GGUF", &files),
        ["Tiny-Q8_0.gguf"]
    );
}

#[test]
fn shards_come_by_their_index_and_a_revision_by_its_name() {
    let index = r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    let mut files = model_files("llama-tied");
    files.remove("model.safetensors");
    files.insert("model.safetensors.index.json".to_owned(), index.into());
    files.insert(
        "model-00001-of-00002.safetensors".to_owned(),
        noise(1, 300_000),
    );
    files.insert(
        "model-00002-of-00002.safetensors".to_owned(),
        noise(2, 300_000),
    );
    files.insert(
        "model-00003-of-00003.safetensors".to_owned(),
        noise(3, 300_000),
    );
    let (hub, home) = (
        Hub::start(&[("org/sharded", files.clone())]),
        TempDir::new().expect("a folder"),
    );
    let pull = hub
        .sconce(home.path())
        .words(&["org/sharded", "--revision", "feature/x"]);
    done(&pull.run("pull"));
    let names = assert_sound(home.path(), "org/sharded", &files);
    assert!(names.contains(&"model-00002-of-00002.safetensors".to_owned()));
    assert!(
        !names.contains(&"model-00003-of-00003.safetensors".to_owned()),
        "the index does not name it"
    );
    let reference = home.path().join("hub/models--org--sharded/refs/feature/x");
    assert_eq!(fs::read_to_string(reference).expect("a ref"), COMMIT);
}

#[test]
fn a_renamed_model_is_found_and_its_new_name_said() {
    let (hub, home) = (Hub::tiny(), TempDir::new().expect("a folder"));
    hub.fault(|request, reply| {
        if request.path.contains("org/old") {
            Reply::redirect(&request.path.replace("org/old", "org/tiny"))
        } else {
            reply
        }
    });
    let text = done(
        &hub.sconce(home.path())
            .words(&["org/old"])
            .env("HF_TOKEN", TOKEN)
            .run("pull"),
    );
    assert!(
        text.contains("`org/old` has been renamed to `org/tiny`"),
        "{text}"
    );
    assert_eq!(
        assert_sound(home.path(), "org/old", &model_files("llama-tied")),
        NEEDED
    );
    assert!(
        hub.hub
            .requests()
            .iter()
            .all(|request| request.header("authorization").is_some())
    );
}

#[test]
fn a_limit_with_a_time_is_waited_for() {
    let (hub, home) = (Hub::tiny(), TempDir::new().expect("a folder"));
    let refused = AtomicUsize::new(0);
    hub.fault(move |request, reply| {
        if request.path.ends_with("config.json")
            && request.method == "GET"
            && refused.fetch_add(1, Ordering::SeqCst) == 0
        {
            Reply::json(429, &serde_json::json!({"error": "slow down"})).header("retry-after", "1")
        } else {
            reply
        }
    });
    let text = done(&hub.sconce(home.path()).words(&["org/tiny"]).run("pull"));
    assert!(
        text.contains("wants 1 s of peace") && text.contains("trying again in 1 s"),
        "{text}"
    );
    assert_eq!(
        assert_sound(home.path(), "org/tiny", &model_files("llama-tied")),
        NEEDED
    );
}

#[test]
fn a_terminal_sees_bars_with_speed_and_time_left_and_a_pipe_sees_lines() {
    let (hub, home) = (Hub::tiny(), TempDir::new().expect("a folder"));
    hub.storage_fault(|_, reply| {
        reply
            .split_every(60_000)
            .delay_each(Duration::from_millis(60))
    });
    let pull = format!("{} pull org/tiny", env!("CARGO_BIN_EXE_sconce"));
    let mut terminal = std::process::Command::new("script");
    terminal
        .args(["--quiet", "--return", "--command", &pull, "/dev/null"])
        .stdin(std::process::Stdio::null());
    terminal
        .env("HF_HOME", home.path())
        .env("HF_ENDPOINT", hub.hub.url())
        .env("TERM", "xterm");
    let text = done(&terminal.output().expect("script is there"));
    assert!(
        text.contains("model.safetensors") && text.contains("/s ") && text.contains(" left"),
        "{text}"
    );
    let other = TempDir::new().expect("a folder");
    let text = done(&hub.sconce(other.path()).words(&["org/tiny"]).run("pull"));
    assert!(
        text.contains("downloading model.safetensors") && !text.contains(" left"),
        "{text}"
    );
}

#[test]
fn two_at_once_download_once() {
    let (hub, home) = (Hub::tiny(), TempDir::new().expect("a folder"));
    hub.storage_fault(|_, reply| {
        reply
            .split_every(100_000)
            .delay_each(Duration::from_millis(100))
    });
    let pull = hub.sconce(home.path()).words(&["org/tiny"]);
    let results: Vec<_> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..3).map(|_| scope.spawn(|| pull.run("pull"))).collect();
        runs.into_iter()
            .map(|run| run.join().expect("no panic"))
            .collect()
    });
    results.iter().for_each(|output| {
        done(output);
    });
    let weights = format!(
        "/{}?X-Amz-Signature=signed",
        sha256(&model_files("llama-tied")["model.safetensors"])
    );
    assert_eq!(hub.storage.requests_for(&weights).len(), 1);
    assert_eq!(
        assert_sound(home.path(), "org/tiny", &model_files("llama-tied")),
        NEEDED
    );
}

#[test]
fn what_cannot_come_out_of_xet_storage_comes_over_plain_http() {
    let (hub, home) = (Hub::tiny(), TempDir::new().expect("a folder"));
    hub.fault(|request, reply| {
        // No storage of that kind is here: its tokens are refused.
        if request.path.contains("xet-read-token") {
            Reply::json(404, &serde_json::json!({"error": "no such route"}))
        } else if request.path.ends_with("model.safetensors") {
            reply.header("x-xet-hash", &"ab".repeat(32))
        } else {
            reply
        }
    });
    let text = done(&hub.sconce(home.path()).words(&["org/tiny"]).run("pull"));
    assert!(text.contains("going on over plain HTTP"), "{text}");
    assert!(
        hub.hub
            .requests()
            .iter()
            .any(|request| request.path.contains("xet-read-token")),
        "Xet was tried"
    );
    assert_eq!(
        assert_sound(home.path(), "org/tiny", &model_files("llama-tied")),
        NEEDED
    );
    let other = TempDir::new().expect("a folder");
    let text = done(
        &hub.sconce(other.path())
            .words(&["org/tiny"])
            .env("HF_HUB_DISABLE_XET", "1")
            .run("pull"),
    );
    assert!(!text.contains("plain HTTP"), "{text}");
}
