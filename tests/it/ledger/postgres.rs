//! Several servers on one real Postgres: they share budgets, and settle what one of them has left behind.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value as Json;
use tempfile::TempDir;

use super::budgets::{answering, worst_case};
use super::kills::{Biller, Dice, ask};
use super::{CHAT, away, chats, paid_with, rows};
use crate::hybrid::{Setup, chat};
use crate::support::crowd::Gate;
use crate::support::upstream::Upstream;
use crate::support::{eventually, pause};

/// Postgres does not run as root: then it is `nobody`'s.
const NOBODY: u32 = 65_534;

/// A Postgres of this test's own, on a socket in its folder.
struct Postgres {
    folder: TempDir,
    server: Child,
    port: u16,
}

impl Postgres {
    fn start() -> Self {
        let bin = binaries();
        let folder = TempDir::new().expect("a folder");
        let data = folder.path().join("data");
        let root = is_root();
        if root {
            std::os::unix::fs::chown(folder.path(), Some(NOBODY), Some(NOBODY)).expect("a gift");
        }
        let place = folder.path().to_owned();
        let command = |name: &str| {
            let mut command = Command::new(bin.join(name));
            command.current_dir(&place).stdin(Stdio::null());
            if root {
                command.uid(NOBODY).gid(NOBODY);
            }
            command
        };
        let made = command("initdb")
            .args([
                "--username=sconce",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
                "-D",
            ])
            .arg(&data)
            .output()
            .expect("initdb runs");
        assert!(made.status.success(), "{made:?}");
        let port = crate::support::upstream::nobody().port();
        let server = command("postgres")
            .args(["-D"])
            .arg(&data)
            .args([
                "-c",
                "listen_addresses=127.0.0.1",
                "-c",
                "max_connections=50",
            ])
            .args([
                "-c",
                &format!("unix_socket_directories={}", place.display()),
            ])
            .args(["-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("postgres runs");
        let this = Self {
            folder,
            server,
            port,
        };
        eventually("Postgres listens", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
            let ready = command("pg_isready")
                .args(["-h", "127.0.0.1", "-p", &port.to_string()])
                .output();
            ready.ok()?.status.success().then_some(())
        });
        this
    }

    fn url(&self) -> String {
        format!(
            "postgres://sconce:hunter2secret@127.0.0.1:{}/postgres",
            self.port
        )
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // At once: nobody needs what is in it.
        let _ = Command::new("kill")
            .args(["-QUIT", &self.server.id().to_string()])
            .status();
        let _ = self.server.wait();
        let _ = self.folder.path();
    }
}

fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.starts_with("Uid:\t0\t"))
}

/// Where Postgres is installed: Debian keeps its programs out of the path.
fn binaries() -> PathBuf {
    let debian = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let debian = debian.map(|version| version.path().join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let mut places = debian.chain(path);
    let holds = |folder: &Path| folder.join("initdb").exists();
    places
        .find(|folder| holds(folder))
        .expect("Postgres is not installed: `apt-get install postgresql` does that, and tests/run does it by itself")
}

/// A server of its own on a shared ledger.
fn sharing(postgres: &Postgres, upstream: &Upstream, day: &str) -> Setup {
    let of_upstream = format!("max_usd_per_day = {day}\nmax_concurrency = 256\n");
    away(paid_with(
        upstream,
        &of_upstream,
        "cancel_settle = \"reserved\"\n",
    ))
    .add("[remote.adaptive]\nstart = 256\nmax = 256\n")
    .add("[remote.breaker]\nconsecutive_failures = 100000\nmin_attempts = 100000\n")
    .add("[ledger]\nurl_env = \"SCONCE_LEDGER_URL\"\n")
    .env("SCONCE_LEDGER_URL", &postgres.url())
}

#[test]
fn two_servers_on_one_postgres_never_spend_more_than_there_is() {
    const CROWD: usize = 256;
    let worst = worst_case();
    let postgres = Postgres::start();
    let gate = Gate::default();
    let upstream = Upstream::start(gate.before(answering));
    let day = format!("0.{:09}", 10 * worst);
    let setups = [(); 2].map(|()| sharing(&postgres, &upstream, &day));
    let servers = setups.each_ref().map(Setup::serve);
    let statuses = gate.crowd(CROWD, |caller| {
        let server = &servers[caller % 2];
        server.post(CHAT, &chat("How many?")).status
    });
    let count = |status| statuses.iter().filter(|s| **s == status).count();
    assert_eq!(chats(&upstream), 10);
    assert_eq!((count(200), count(402)), (10, CROWD - 10), "{statuses:?}");
    for server in &servers {
        let log = server.log();
        assert!(!log.contains("hunter2secret"), "the password is in the log");
    }
}

#[test]
fn what_one_server_leaves_open_another_one_settles() {
    let postgres = Postgres::start();
    let biller = Biller::start();
    let setups = [(); 2].map(|()| sharing(&postgres, &biller.upstream, "1000.0"));
    let mut dice = Dice(7);
    let mut servers = setups.each_ref().map(Setup::serve);
    for round in 0..10 {
        let over = AtomicBool::new(false);
        let dies = round % 2;
        let after = Duration::from_millis(20 + dice.below(150));
        let seeds: Vec<u64> = (0..4).map(|_| dice.below(u64::MAX)).collect();
        std::thread::scope(|scope| {
            let asking: Vec<_> = seeds
                .into_iter()
                .enumerate()
                .map(|(i, seed)| {
                    let (address, over) = (servers[i % 2].address(), &over);
                    scope.spawn(move || ask(address, Dice(seed), over))
                })
                .collect();
            pause(after);
            over.store(true, Ordering::SeqCst);
            servers[dies].kill();
            drop(asking);
        });
        servers[dies].wait();
        servers[dies] = setups[dies].serve();
    }
    for server in &mut servers {
        server.terminate();
        server.wait();
    }
    let last = setups[0].serve();
    let sums = "SELECT (SELECT COUNT(*) FROM attempts WHERE settled_ms IS NULL), \
         (SELECT COUNT(*) FROM attempts a WHERE NOT EXISTS (SELECT 1 FROM entries e WHERE e.id = a.entry)), \
         (SELECT CAST(SUM(cost_nusd) AS BIGINT) FROM attempts), \
         (SELECT CAST(COALESCE(SUM(cost_nusd), 0) AS BIGINT) FROM attempts WHERE basis IN ('crash_upper_bound', 'upper_bound')), \
         (SELECT CAST(SUM(used) AS BIGINT) FROM counters WHERE budget LIKE 'nusd/day/%')";
    let sums = eventually("everything is settled", || {
        let sums = rows(&postgres.url(), sums, 5).remove(0);
        (sums[0] == 0 && sums[1] == 0).then_some(sums)
    });
    drop(last);
    let number = |value: &Json| value.as_u64().expect("a number");
    let (cost, bound, counted) = (number(&sums[2]), number(&sums[3]), number(&sums[4]));
    let billed = biller.billed();
    assert!(cost >= billed, "{cost} recovered of {billed} billed");
    assert!(
        cost - bound <= billed,
        "{cost} counted, {bound} a bound, {billed} billed"
    );
    // The counters are the sum of the attempts, whoever wrote them.
    assert_eq!(counted, cost);
}
