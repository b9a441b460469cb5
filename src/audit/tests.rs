//! The chain under damage, crashes and crowds.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::chain::Until;
use super::*;

fn settings(folder: &Path) -> Settings {
    Settings {
        path: folder.join("audit.jsonl"),
        max_bytes: 1 << 30,
        keep: 8,
        sync: true,
    }
}

fn note(text: impl Into<String>) -> Record {
    Record::Admin { text: text.into() }
}

/// A log of so many lines in a folder of its own, closed again.
fn written(count: usize, max_bytes: u64) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = Settings {
        max_bytes,
        ..settings(folder.path())
    };
    let path = settings.path.clone();
    let mut chain = chain::Chain::open(settings).expect("a log");
    for i in 0..count {
        let record = note(format!("line {i}"));
        chain
            .append([record].iter(), Until::Durable)
            .expect("a line");
    }
    (folder, path)
}

fn checked(path: &Path) -> Result<Report, Broken> {
    let key = Key::beside(path).expect("a readable key");
    verify(&[path.to_owned()], key.as_ref(), &BTreeSet::new())
}

fn texts(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).expect("a log");
    let field = |line: &str| {
        let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
        value["text"].as_str().unwrap_or_default().to_owned()
    };
    text.lines().map(field).collect()
}

#[test]
fn lines_are_numbered_timed_and_chained_in_a_file_of_the_owner() {
    use std::os::unix::fs::PermissionsExt;
    let (folder, path) = written(3, 1 << 30);
    let report = checked(&path).expect("a whole chain");
    assert_eq!((report.lines, report.sealed), (3, true));
    assert_eq!(report.end.map(|(seq, _)| seq), Some(3));
    let first = report.first.expect("a time");
    assert!(first.ends_with('Z') && first.len() == "2026-01-01T00:00:00.000Z".len());
    for entry in fs::read_dir(folder.path()).expect("a folder") {
        let mode = entry
            .expect("an entry")
            .metadata()
            .expect("metadata")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[tokio::test]
async fn a_log_carries_on_where_it_ended_and_has_one_writer() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = Log::open(settings(folder.path())).expect("a log");
    log.write(note("one")).await.expect("written");
    let second = Log::open(settings(folder.path())).expect_err("taken");
    assert!(
        second
            .to_string()
            .contains("another process writes this audit log")
    );
    log.note(note("two"));
    log.flush().await.expect("written");
    drop(log);
    // The thread lets the lock go when it has seen that nobody is left.
    let log = loop {
        match Log::open(settings(folder.path())) {
            Ok(log) => break log,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    log.write(note("three")).await.expect("written");
    let path = folder.path().join("audit.jsonl");
    assert_eq!(checked(&path).map(|r| r.lines), Ok(3));
    assert_eq!(texts(&path), ["one", "two", "three"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_tasks_make_one_chain() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = Log::open(Settings {
        max_bytes: 20_000,
        keep: 100,
        ..settings(folder.path())
    })
    .expect("a log");
    let tasks: Vec<_> = (0..64)
        .map(|task| {
            let log = log.clone();
            tokio::spawn(async move {
                for i in 0..8 {
                    log.write(note(format!("{task}/{i}")))
                        .await
                        .expect("written");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("a task");
    }
    let report = checked(&folder.path().join("audit.jsonl")).expect("a whole chain");
    assert!(report.files.len() > 2);
    let turns = report.files.len() as u64 - 1;
    assert_eq!(report.lines, 64 * 8 + turns);
    let mut all: Vec<String> = report.files.iter().flat_map(|file| texts(file)).collect();
    all.retain(|text| !text.is_empty());
    let told_apart: BTreeSet<&String> = all.iter().collect();
    assert_eq!((all.len(), told_apart.len()), (512, 512));
}

#[test]
fn full_files_carry_the_chain_over_and_old_ones_go() {
    let (folder, path) = written(100, 2_000);
    let report = checked(&path).expect("a whole chain");
    assert_eq!(report.files.len(), 9, "eight full files and the one in use");
    assert!(report.begins_after.is_some());
    let names = fs::read_dir(folder.path()).expect("a folder").count();
    assert_eq!(names, 10, "nine files and the key");
    for file in &report.files {
        assert!(fs::metadata(file).expect("a file").len() <= 2_000);
    }
    // A file cut off at the end of a line is whole by itself, but not with its successor.
    let cut = &report.files[3];
    let text = fs::read_to_string(cut).expect("a file");
    let end = text.trim_end().rfind('\n').expect("two lines") + 1;
    fs::write(cut, &text[..end]).expect("cut");
    let broken = checked(&path).expect_err("a broken chain");
    assert_eq!((&broken.file, broken.line), (&report.files[4], 1));
    fs::remove_file(cut).expect("removed");
    assert_eq!(checked(&path).map(|r| r.files.len()), Ok(5));
    let gap = [report.files[2].clone(), path];
    assert!(verify(&gap, None, &BTreeSet::new()).is_err());
}

#[test]
fn a_crash_while_a_file_is_turned_over_loses_nothing() {
    let (folder, path) = written(4, 1 << 30);
    // After the full file got its second name, and before the new file took its place.
    fs::hard_link(&path, folder.path().join("audit.jsonl.4")).expect("a link");
    fs::write(folder.path().join("audit.jsonl.new"), "half a l").expect("a file");
    let small = Settings {
        max_bytes: 1_000,
        ..settings(folder.path())
    };
    let mut chain = chain::Chain::open(small.clone()).expect("a log");
    chain
        .append([note("next")].iter(), Until::Durable)
        .expect("a line");
    drop(chain);
    let report = checked(&path).expect("a whole chain");
    assert_eq!((report.files.len(), report.lines), (2, 6));
    // Somebody takes the newest file away: the chain carries on from the one before.
    fs::remove_file(&path).expect("removed");
    let mut chain = chain::Chain::open(small).expect("a log");
    chain
        .append([note("after")].iter(), Until::Durable)
        .expect("a line");
    let report = checked(&path).expect("a whole chain");
    assert_eq!((report.files.len(), report.lines), (2, 6));
}

#[test]
fn a_line_torn_at_any_byte_is_set_aside() {
    let (_folder, path) = written(3, 1 << 30);
    let whole = fs::read(&path).expect("a log");
    let last = whole[..whole.len() - 1]
        .iter()
        .rposition(|&b| b == b'\n')
        .expect("lines")
        + 1;
    for cut in last..whole.len() {
        fs::write(&path, &whole[..cut]).expect("cut");
        assert_eq!(checked(&path).is_err(), cut > last);
        let mut chain =
            chain::Chain::open(settings(path.parent().expect("a folder"))).expect("a log");
        chain
            .append([note("next")].iter(), Until::Durable)
            .expect("a line");
        drop(chain);
        let report = checked(&path).expect("a whole chain");
        let text = fs::read_to_string(&path).expect("a log");
        let torn = cut - last;
        let said = text.contains(&format!("\"kind\":\"recovered\",\"bytes\":{torn},"));
        assert_eq!(
            (report.lines, said),
            if torn == 0 { (3, false) } else { (4, true) }
        );
        assert!(!text.contains("line 2") && text.contains("line 1") && text.contains("next"));
    }
}

#[test]
fn a_first_line_torn_at_any_byte_begins_anew() {
    let (_folder, path) = written(1, 1 << 30);
    let whole = fs::read(&path).expect("a log");
    for cut in 0..whole.len() {
        fs::write(&path, &whole[..cut]).expect("cut");
        drop(chain::Chain::open(settings(path.parent().expect("a folder"))).expect("a log"));
        assert_eq!(checked(&path).map(|r| r.lines), Ok(u64::from(cut > 0)));
    }
}

#[test]
fn a_log_whose_end_was_changed_is_not_carried_on() {
    let (folder, path) = written(3, 1 << 30);
    let text = fs::read_to_string(&path).expect("a log");
    fs::write(&path, text.replace("line 1", "line 7")).expect("changed");
    let error = chain::Chain::open(settings(folder.path())).expect_err("broken");
    assert!(error.to_string().contains("sconce audit verify"), "{error}");
    fs::write(&path, &text).expect("changed back");
    fs::remove_file(folder.path().join("audit.jsonl.key")).expect("removed");
    let error = chain::Chain::open(settings(folder.path())).expect_err("another key");
    assert!(error.to_string().contains("another key"), "{error}");
}

#[test]
fn a_log_that_somebody_moved_is_an_error_until_it_is_back() {
    let (folder, path) = written(1, 1 << 30);
    let mut chain = chain::Chain::open(settings(folder.path())).expect("a log");
    let away = folder.path().join("away");
    fs::rename(&path, &away).expect("moved");
    assert!(
        chain
            .append([note("lost?")].iter(), Until::Durable)
            .is_err()
    );
    fs::write(&path, "").expect("another file");
    assert!(
        chain
            .append([note("lost?")].iter(), Until::Durable)
            .is_err()
    );
    fs::rename(&away, &path).expect("moved back");
    chain
        .append([note("kept")].iter(), Until::Durable)
        .expect("a line");
    assert_eq!(texts(&path), ["line 0", "kept"]);
    assert_eq!(checked(&path).map(|r| r.lines), Ok(2));
}

#[test]
fn a_long_log_is_opened_by_its_end() {
    let (folder, path) = written(0, 1 << 30);
    let mut chain = chain::Chain::open(settings(folder.path())).expect("a log");
    let lines: Vec<Record> = (0..10_000).map(|i| note(format!("line {i}"))).collect();
    chain.append(lines.iter(), Until::Durable).expect("lines");
    drop(chain);
    assert!(fs::metadata(&path).expect("a file").len() > 2 << 20);
    let mut chain = chain::Chain::open(settings(folder.path())).expect("a log");
    chain
        .append([note("next")].iter(), Until::Durable)
        .expect("a line");
    assert_eq!(checked(&path).map(|r| r.lines), Ok(10_001));
}

#[test]
fn a_request_is_found_by_any_of_its_texts() {
    let (_folder, path) = written(1, 1 << 30);
    let settings = settings(path.parent().expect("a folder"));
    let mut chain = chain::Chain::open(settings).expect("a log");
    let key = chain.key().clone();
    let print = key.fingerprint(&["the system", "the question"]);
    let sent = Sent {
        request: "r".repeat(10_000),
        key: None,
        level: None,
        host: "h:443".to_owned(),
        upstream: "u".to_owned(),
        target: "t".to_owned(),
        provider: None,
        model: "m".to_owned(),
        purpose: "request".to_owned(),
        bytes: 1,
        hmac: print.whole.clone(),
        texts: print.texts,
        reason: "policy_remote".to_owned(),
        worst_cost_nusd: 0,
    };
    chain
        .append(
            [Record::Send(Box::new(sent)).bounded()].iter(),
            Until::Durable,
        )
        .expect("a line");
    let look = |wanted: String| {
        let found = verify(std::slice::from_ref(&path), Some(&key), &[wanted].into());
        found.expect("a whole chain").found
    };
    assert_eq!(look(key.of_text("the question")).len(), 1);
    assert_eq!(look(print.whole)[0].request.len(), 512);
    assert_eq!(look(key.of_text("another")), []);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_damage_is_seen(at in 0..10_000usize, to in any::<u8>(), line in 0..6usize, other in 0..6usize) {
        let (_folder, path) = written(6, 1 << 30);
        let whole = fs::read(&path).expect("a log");
        let damaged = |bytes: Vec<u8>| {
            fs::write(&path, bytes).expect("damaged");
            checked(&path)
        };
        // One byte, the last line's among them.
        let at = at % whole.len();
        let mut bytes = whole.clone();
        bytes[at] = to;
        let number = whole[..at].iter().filter(|&&b| b == b'\n').count() as u64 + 1;
        match damaged(bytes) {
            Ok(_) => prop_assert_eq!(to, whole[at]),
            Err(broken) => prop_assert_eq!(broken.line, number),
        }
        // A whole line, but for the last one.
        let lines: Vec<&[u8]> = whole.split_inclusive(|&b| b == b'\n').collect();
        if line < 5 {
            let mut fewer = lines.clone();
            fewer.remove(line);
            let broken = damaged(fewer.concat()).expect_err("a gap");
            prop_assert_eq!(broken.line, line as u64 + 1);
        }
        // Two lines that change places, and one that stands twice.
        let mut swapped = lines.clone();
        swapped.swap(line, other);
        prop_assert_eq!(damaged(swapped.concat()).is_err(), line != other);
        let mut doubled = lines.clone();
        doubled.insert(other, lines[line]);
        prop_assert!(damaged(doubled.concat()).is_err());
        // Bytes out of the middle, and off the end.
        prop_assert!(damaged([&whole[..at], &whole[(at + 1)..]].concat()).is_err());
        let cut = damaged(whole[..at].to_vec());
        prop_assert_eq!(cut.is_err(), at > 0 && whole[at - 1] != b'\n');
    }
}
