//! Downloads that are cut off: by the network at any byte, by a server that does not go on, by a kill at any moment,
//! by a full disk.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use super::{assert_sound, done, failed, printed};
use crate::support::hub::{COMMIT, Files, Hub, model_files, noise, sha256};
use crate::support::pause;
use crate::support::upstream::Reply;

/// A repository of one GGUF file of noise: enough for downloads, which never look into it.
fn repo(bytes: usize) -> Files {
    [("noise-Q8_0.gguf".to_owned(), noise(7, bytes))].into()
}

#[test]
fn a_download_goes_on_where_it_was_cut_off() {
    for cut in [0, 1, 4095, 70_000, 199_999] {
        let files = repo(200_000);
        let (hub, home) = (
            Hub::start(&[("org/noise", files.clone())]),
            TempDir::new().expect("a folder"),
        );
        hub.storage_fault(move |request, reply| {
            if request.nth == 0 {
                reply.split_at(cut.max(1)).close_after(usize::from(cut > 0))
            } else {
                reply
            }
        });
        let pull = hub.sconce(home.path()).words(&["org/noise"]);
        done(&pull.run("pull"));
        assert_eq!(assert_sound(home.path(), "org/noise", &files).len(), 1);
        let ranges: Vec<_> = hub
            .storage
            .requests()
            .iter()
            .map(|request| request.header("range").map(str::to_owned))
            .collect();
        let expected = (cut > 0).then(|| format!("bytes={cut}-"));
        assert_eq!(ranges, [None, expected], "cut after {cut}");
    }
}

#[test]
fn what_a_given_up_download_has_brought_is_used_by_the_next() {
    let files = repo(300_000);
    let (hub, home) = (
        Hub::start(&[("org/noise", files.clone())]),
        TempDir::new().expect("a folder"),
    );
    // The line dies after 100,000 bytes, and the storage with it.
    hub.storage_fault(|request, reply| {
        if request.nth == 0 {
            reply.split_at(100_000).close_after(1)
        } else {
            Reply::body(403, "text/plain", "expired")
        }
    });
    let pull = hub.sconce(home.path()).words(&["org/noise"]);
    let text = failed(&pull.run("pull"));
    assert!(text.contains("status 403"), "{text}");
    assert!(assert_sound(home.path(), "org/noise", &files).is_empty());
    hub.heal();
    let asked = hub.storage.requests().len();
    done(&pull.run("pull"));
    assert_eq!(
        hub.storage.requests()[asked].header("range"),
        Some("bytes=100000-")
    );
    assert_eq!(assert_sound(home.path(), "org/noise", &files).len(), 1);
}

#[test]
fn a_server_that_does_not_go_on_begins_anew() {
    let cuts = |then: fn(Reply) -> Reply| {
        let files = repo(200_000);
        let (hub, home) = (
            Hub::start(&[("org/noise", files.clone())]),
            TempDir::new().expect("a folder"),
        );
        let whole = files["noise-Q8_0.gguf"].clone();
        hub.storage_fault(move |request, reply| match request.nth {
            0 => reply.split_at(50_000).close_after(1),
            1 => then(Reply::body(200, "application/octet-stream", whole.clone())),
            _ => reply,
        });
        done(&hub.sconce(home.path()).words(&["org/noise"]).run("pull"));
        assert_eq!(assert_sound(home.path(), "org/noise", &files).len(), 1);
        hub.storage.requests().len()
    };
    // It ignores the range and sends everything.
    assert_eq!(cuts(|whole| whole), 2);
    // It knows no such range.
    assert_eq!(cuts(|_| Reply::body(416, "text/plain", "")), 3);
    // It sends another range than it was asked for.
    assert_eq!(
        cuts(|whole| whole
            .status(206)
            .header("content-range", "bytes 0-199999/200000")),
        3
    );
    // It sends more than there is.
    assert_eq!(
        cuts(|_| Reply::body(200, "application/octet-stream", noise(9, 200_001))),
        3
    );
}

#[test]
fn what_arrives_damaged_is_fetched_once_more_and_never_kept() {
    let files = repo(200_000);
    let (hub, home) = (
        Hub::start(&[("org/noise", files.clone())]),
        TempDir::new().expect("a folder"),
    );
    hub.storage_fault(|request, reply| {
        if request.nth == 0 {
            Reply::body(200, "application/octet-stream", noise(8, 200_000))
        } else {
            reply
        }
    });
    let text = done(&hub.sconce(home.path()).words(&["org/noise"]).run("pull"));
    assert!(
        text.contains("arrived damaged") && text.contains("once more"),
        "{text}"
    );
    assert_eq!(assert_sound(home.path(), "org/noise", &files).len(), 1);

    let home = TempDir::new().expect("a folder");
    hub.storage_fault(|_, _| Reply::body(200, "application/octet-stream", noise(8, 200_000)));
    let text = failed(&hub.sconce(home.path()).words(&["org/noise"]).run("pull"));
    assert!(
        text.contains("arrived damaged twice (its SHA-256 is "),
        "{text}"
    );
    let blobs = fs::read_dir(home.path().join("hub/models--org--noise/blobs")).expect("a folder");
    assert_eq!(blobs.count(), 0, "nothing of it was kept");
    assert!(assert_sound(home.path(), "org/noise", &files).is_empty());
}

#[test]
fn small_files_are_checked_too_and_names_of_mirrors_are_taken() {
    let (hub, home) = (Hub::tiny(), TempDir::new().expect("a folder"));
    hub.fault(|request, reply| {
        let damaged = request.method == "GET" && request.path.ends_with("/config.json");
        if damaged {
            Reply::body(
                200,
                "text/plain",
                vec![b'x'; model_files("llama-tied")["config.json"].len()],
            )
        } else {
            reply
        }
    });
    let text = failed(&hub.sconce(home.path()).words(&["org/tiny"]).run("pull"));
    assert!(
        text.contains("config.json of `org/tiny` arrived damaged twice (its git hash is "),
        "{text}"
    );
    // A mirror may call contents as it likes, as long as the name can be a file's.
    hub.fault(|request, reply| {
        if request.path.contains("/resolve/") {
            reply.header("etag", "W/\"mirror-1\"")
        } else {
            reply
        }
    });
    let (mirrored, files) = (
        TempDir::new().expect("a folder"),
        Files::from([("a-Q8_0.gguf".to_owned(), noise(1, 1000))]),
    );
    let mirror = Hub::start(&[("org/noise", files.clone())]);
    mirror.fault(|_, reply| reply.header("etag", "W/\"mirror-1\""));
    done(
        &mirror
            .sconce(mirrored.path())
            .words(&["org/noise"])
            .run("pull"),
    );
    assert_eq!(assert_sound(mirrored.path(), "org/noise", &files).len(), 1);
    mirror.fault(|_, reply| reply.header("etag", "\"../../../evil\""));
    let text = failed(&mirror.sconce(home.path()).words(&["org/noise"]).run("pull"));
    assert!(text.contains("without a usable ETag"), "{text}");
}

#[test]
fn a_silent_hub_is_given_up() {
    let (hub, home) = (Hub::tiny(), TempDir::new().expect("a folder"));
    let pull = hub
        .sconce(home.path())
        .words(&["org/tiny"])
        .env("HF_HUB_DOWNLOAD_TIMEOUT", "1");
    let asked = AtomicUsize::new(0);
    hub.storage_fault(move |_, reply| {
        if asked.fetch_add(1, Ordering::SeqCst) < 2 {
            reply.split_at(10).hang_after(1)
        } else {
            reply
        }
    });
    let text = done(&pull.run("pull"));
    assert!(
        text.contains("was cut off after 10 of ") && text.contains("silent for too long"),
        "{text}"
    );
    assert!(!assert_sound(home.path(), "org/tiny", &model_files("llama-tied")).is_empty());
}

#[test]
fn a_kill_at_any_moment_leaves_a_cache_that_the_next_download_completes() {
    let files = model_files("llama-tied");
    let hub = Hub::start(&[("org/tiny", files.clone())]);
    hub.storage_fault(|_, reply| {
        reply
            .split_every(30_000)
            .delay_each(Duration::from_millis(3))
    });
    let home = TempDir::new().expect("a folder");
    let pull = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sconce"));
        command
            .env_clear()
            .env("HF_ENDPOINT", hub.hub.url())
            .env("HF_HOME", home.path())
            .args(["pull", "org/tiny"]);
        command
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        command
    };
    let kills: u64 = std::env::var("SCONCE_KILLS")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(50);
    let mut cut_short = 0;
    for kill in 0..kills {
        if kill % 5 == 0 {
            // A download from its beginning, to be killed several times.
            let _ = fs::remove_dir_all(home.path().join("hub"));
        }
        let mut child = pull().spawn().expect("the binary runs");
        pause(Duration::from_millis(noise(kill, 1)[0].into()) / 2);
        let running = child.try_wait().expect("a child of ours").is_none();
        cut_short += usize::from(running);
        // It may have ended by itself.
        let _ = child.kill();
        child.wait().expect("a child of ours");
        assert_sound(home.path(), "org/tiny", &files);
    }
    assert!(
        cut_short > 5,
        "only {cut_short} of {kills} were still downloading"
    );
    done(
        &pull()
            .stderr(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .output()
            .expect("the binary runs"),
    );
    assert_eq!(assert_sound(home.path(), "org/tiny", &files).len(), 6);
    let blobs = home
        .path()
        .join("hub/models--org--tiny/blobs")
        .join(sha256(&files["model.safetensors"]));
    assert!(blobs.exists());
    assert_eq!(
        fs::read_to_string(home.path().join("hub/models--org--tiny/refs/main")).expect("a ref"),
        COMMIT
    );
}

/// Runs a script with a file system of its own, of 1 MiB, at `disk` in a folder.
fn on_a_small_disk(home: &TempDir, script: &str) -> String {
    let disk = home.path().join("disk");
    fs::create_dir_all(&disk).expect("a folder");
    let mount = format!(
        "mount -t tmpfs -o size=1m none '{}' && {script}",
        disk.display()
    );
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &mount])
        .output();
    let output = output.expect("unshare is there");
    printed(&output)
}

#[test]
fn a_full_disk_is_said_before_and_survived_within_a_download() {
    let sconce = env!("CARGO_BIN_EXE_sconce");
    let (a, b) = (
        repo(700_000),
        [("other-Q8_0.gguf".to_owned(), noise(11, 700_000))].into(),
    );
    let hub = Hub::start(&[("org/large", repo(2_000_000)), ("org/a", a), ("org/b", b)]);
    let home = TempDir::new().expect("a folder");
    let run = |what: &str| {
        format!(
            "HF_HOME=\"$PWD\" HF_ENDPOINT={} {sconce} {what}",
            hub.hub.url()
        )
    };
    let said = on_a_small_disk(
        &home,
        &format!(
            "cd '{}' && {} ",
            home.path().join("disk").display(),
            run("pull org/large")
        ),
    );
    assert!(
        said.contains("error: no room in ") && said.contains("1.91 MiB are needed"),
        "{said}"
    );
    // Either has room when it begins; together they have not.
    hub.storage_fault(|_, reply| {
        reply
            .split_every(70_000)
            .delay_each(Duration::from_millis(100))
    });
    let script = format!(
        "cd '{}' && ({} & {} ; wait) ; {}; {}; {}; {}",
        home.path().join("disk").display(),
        run("pull org/a"),
        run("pull org/b"),
        run("list"),
        run("rm org/a"),
        run("pull org/b"),
        run("list"),
    );
    let said = on_a_small_disk(&home, &script);
    assert!(said.contains("no room in "), "{said}");
    assert!(
        said.contains("org/b is here now") || said.contains("org/b is up to date"),
        "{said}"
    );
}
