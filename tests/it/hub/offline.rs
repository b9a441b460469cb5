//! A machine without a network: what is cached is served, and nobody is asked.

use std::fs;
use std::process::Command;

use tempfile::TempDir;

use super::{done, failed, printed, snapshot};
use crate::support::hub::{COMMIT, Hub, refusal};
use crate::support::server::Sconce;
use crate::support::upstream::Reply;

/// A cache that holds `org/tiny`, and the hub that it came from.
fn filled() -> (Hub, TempDir) {
    let (hub, home) = (Hub::tiny(), TempDir::new().expect("a folder"));
    done(&hub.sconce(home.path()).words(&["org/tiny"]).run("pull"));
    (hub, home)
}

#[test]
fn offline_nobody_is_asked_for_anything() {
    let (hub, home) = filled();
    let asked = (hub.hub.connections().len(), hub.storage.connections().len());
    for offline in [
        hub.sconce(home.path()).env("HF_HUB_OFFLINE", "1"),
        hub.sconce(home.path()).env("SCONCE_OFFLINE", "true"),
        hub.sconce(home.path()).words(&["--offline"]),
    ] {
        let text = done(&offline.clone().words(&["org/tiny"]).run("pull"));
        assert!(text.contains("org/tiny is here: "), "{text}");
        let text = failed(&offline.clone().words(&["org/other"]).run("pull"));
        assert!(
            text.contains("`org/other` is not complete in ")
                && text.contains("this machine is offline")
                && text.contains("`sconce bundle`"),
            "{text}"
        );
        let text = failed(&offline.clone().flag("--model-id", "org/other").run("serve"));
        assert!(text.contains("this machine is offline"), "{text}");
        offline
            .flag("--model-id", "org/tiny")
            .serve()
            .generate("hello", serde_json::json!({"max_new_tokens": 2}));
    }
    assert_eq!(
        (hub.hub.connections().len(), hub.storage.connections().len()),
        asked
    );
}

#[test]
fn a_commit_is_found_without_its_branch_and_check_downloads_nothing() {
    let (hub, home) = filled();
    let sconce = hub.sconce(home.path()).flag("--model-id", "org/tiny");
    let asked = hub.hub.connections().len();
    done(&sconce.clone().flag("--revision", COMMIT).run("check"));
    let text = failed(&sconce.clone().flag("--revision", "v2").run("check"));
    assert!(
        text.contains("no commit is known for the revision `v2`")
            && text.contains("`sconce pull org/tiny`"),
        "{text}"
    );
    fs::remove_file(snapshot(home.path(), "org/tiny").join("tokenizer.json")).expect("removed");
    let text = failed(&sconce.run("check"));
    assert!(text.contains("tokenizer.json is not there"), "{text}");
    assert_eq!(hub.hub.connections().len(), asked);
}

#[test]
fn a_hub_that_is_down_hinders_nobody_whose_model_is_here() {
    let (hub, home) = filled();
    // As another tool may have left it: nothing is known of the commit's other files.
    let forget = || {
        for known in [".no_exist", ".sconce"] {
            let _ = fs::remove_dir_all(home.path().join("hub/models--org--tiny").join(known));
        }
    };
    let sconce = hub.sconce(home.path()).flag("--model-id", "org/tiny");
    forget();
    hub.fault(|_, _| Reply::reset());
    let server = sconce.clone().serve();
    assert!(
        server.log().contains("serving `org/tiny` from the cache"),
        "{}",
        server.log()
    );
    drop(server);
    hub.fault(|_, _| refusal(401, "RepoNotFound", "Repository not found"));
    let server = sconce.clone().serve();
    assert!(
        server.log().contains("serving `org/tiny` from the cache"),
        "{}",
        server.log()
    );
    drop(server);
    // It is asked about the commit that is here, whatever the branch may be by now, and once.
    hub.heal();
    let asked = hub.hub.requests().len();
    drop(sconce.clone().serve());
    let paths: Vec<String> = hub
        .hub
        .requests()
        .split_off(asked)
        .into_iter()
        .map(|request| request.path)
        .collect();
    assert_eq!(paths, [format!("/api/models/org/tiny/revision/{COMMIT}")]);
    drop(sconce.serve());
    assert_eq!(hub.hub.requests().len(), asked + 1);
}

/// In a network namespace of its own a process has no way out, not even a loopback device that is up.
#[test]
fn without_a_network_or_a_home_the_cache_is_served_all_the_same() {
    let (_hub, home) = filled();
    let check = |network: bool| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user"]);
        if !network {
            command.arg("--net");
        }
        command.args([
            env!("CARGO_BIN_EXE_sconce"),
            "check",
            "--model-id",
            "org/tiny",
        ]);
        command
            .env_clear()
            .env("HOME", "")
            .env("HF_HOME", home.path());
        done(&command.output().expect("unshare is there"))
    };
    assert_eq!(check(false), check(true));
    // Until it listens, or for a minute.
    let script = format!(
        "'{}' serve --port 0 --model-id org/tiny 2>'{log}' & i=0; while ! grep -q Connected '{log}' && [ $i -lt 600 ]; do sleep 0.1; i=$((i+1)); done; kill $!; wait $!; cat '{log}'",
        env!("CARGO_BIN_EXE_sconce"),
        log = home.path().join("log").display(),
    );
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "sh", "-c", &script]);
    command
        .env_clear()
        .env("HOME", "")
        .env("HF_HOME", home.path())
        .env("PATH", "/usr/bin:/bin");
    let text = printed(&command.output().expect("unshare is there"));
    assert!(
        text.contains("Connected") && !text.contains("asking the hub"),
        "{text}"
    );
}

#[test]
fn auto_offline_takes_only_what_is_here_and_cards_have_names() {
    let home = TempDir::new().expect("a folder");
    let offline = Sconce::new()
        .env("HF_HOME", &home.path().display().to_string())
        .env("HF_HUB_OFFLINE", "1");
    let text = failed(&offline.clone().flag("--model-id", "auto").run("serve"));
    assert!(
        text.contains("no model of the catalogue that fits this machine is in the cache"),
        "{text}"
    );
    let text = failed(
        &offline
            .clone()
            .flag("--model-id", "qwen3-0.6b")
            .run("serve"),
    );
    assert!(
        text.contains("`Qwen/Qwen3-0.6B-GGUF:Q8_0` is not complete in "),
        "{text}"
    );
    let text = done(&offline.words(&["--available"]).run("list"));
    assert!(
        text.starts_with("NAME ")
            && text.contains("\nqwen3-4b ")
            && text.contains("Qwen/Qwen3-4B-GGUF:Q4_K_M"),
        "{text}"
    );
    // What is here under the name of a card is what `auto` takes.
    let card = [(
        "Qwen3-0.6B-Q8_0.gguf".to_owned(),
        fs::read(crate::support::engine::case("llama-gguf-q8_0")).expect("a frozen file"),
    )]
    .into();
    let hub = Hub::start(&[("Qwen/Qwen3-0.6B-GGUF", card)]);
    let text = done(&hub.sconce(home.path()).words(&["qwen3-0.6b"]).run("pull"));
    assert!(
        text.contains("`qwen3-0.6b` is Qwen3 0.6B in Q8_0 (apache-2.0)"),
        "{text}"
    );
    let server = hub
        .sconce(home.path())
        .env("HF_HUB_OFFLINE", "1")
        .flag("--model-id", "auto")
        .serve();
    assert!(
        server.log().contains("`auto` takes Qwen3 0.6B in Q8_0: "),
        "{}",
        server.log()
    );
}

#[test]
fn files_on_this_machine_go_before_names_and_have_no_revision() {
    let text = failed(
        &Sconce::tiny("llama-tied")
            .flag("--revision", "main")
            .run("check"),
    );
    assert!(
        text.contains("`revision` has no meaning for files on this machine"),
        "{text}"
    );
    let text = failed(
        &Sconce::new()
            .flag("--model-id", "/nowhere/model")
            .run("check"),
    );
    assert!(
        text.contains("neither a folder nor a file on this machine"),
        "{text}"
    );
}
