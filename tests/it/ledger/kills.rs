//! Complaint 2 of gateways' users: spending that is lost when the server dies. It is killed at random moments under
//! load, with callers who leave and an upstream that fails, and every time begun anew on the same ledger.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sconce::ledger::Place;
use serde_json::{Value as Json, json};

use super::{CHAT, READ, WRITTEN, away, file, paid_with, report, rows, settled, url};
use crate::hybrid::{Setup, chat};
use crate::support::pause;
use crate::support::upstream::{Chat, Reply, Request, Upstream};
use crate::support::wire;

/// Kills of a plain run; `SCONCE_KILLS` says another number.
const KILLS: u64 = 50;

/// Numbers that look random and are the same in every run.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// An upstream that keeps its own books: it bills every request that it does not refuse, whole, whoever reads it.
pub struct Biller {
    pub upstream: Upstream,
    pub billed: Arc<AtomicU64>,
}

impl Biller {
    pub fn start() -> Self {
        let billed = Arc::new(AtomicU64::new(0));
        let books = Arc::clone(&billed);
        let upstream = Upstream::start(move |request| answer(request, &books));
        Self { upstream, billed }
    }

    pub fn billed(&self) -> u64 {
        self.billed.load(Ordering::SeqCst)
    }
}

fn answer(request: &Request, books: &AtomicU64) -> Reply {
    let mut dice = Dice(request.number as u64);
    let texts = ["One", " two", " three", " four"];
    let texts = &texts[..1 + dice.below(4) as usize];
    if dice.below(8) == 0 {
        return Reply::json(503, &json!({"error": {"message": "busy"}}));
    }
    books.fetch_add(7 * READ + texts.len() as u64 * WRITTEN, Ordering::SeqCst);
    let chat = Chat::new(texts);
    let reply = match request.streams() {
        true => chat
            .stream()
            .delay_each(Duration::from_millis(dice.below(4))),
        false => chat
            .object()
            .delay_head(Duration::from_millis(dice.below(10))),
    };
    match dice.below(10) {
        0 if request.streams() => reply.close_after(1),
        _ => reply,
    }
}

/// Asks until the server dies; some callers leave in the middle. Nobody minds an answer that does not come.
pub fn ask(address: SocketAddr, mut dice: Dice, over: &AtomicBool) {
    while !over.load(Ordering::SeqCst) {
        let mut body = chat("How many?");
        let streams = dice.below(2) == 0;
        body["stream"] = streams.into();
        let leaves = streams && dice.below(3) == 0;
        let Ok(mut socket) = TcpStream::connect(address) else {
            return;
        };
        let _ = socket.write_all(wire::post(CHAT, "", &body.to_string()).as_bytes());
        let mut some = [0; 700];
        while socket.read(&mut some).is_ok_and(|read| read > 0) && !leaves {}
    }
}

/// A server before such an upstream. What is cut off is counted at what was held for it.
pub fn setup(upstream: &Upstream) -> Setup {
    let of_upstream = "max_usd_per_day = 1000.0\nmax_concurrency = 64\n";
    away(paid_with(
        upstream,
        of_upstream,
        "cancel_settle = \"reserved\"\n",
    ))
    .add("[remote.breaker]\nconsecutive_failures = 100000\nmin_attempts = 100000\n")
    .add("[remote.retry]\nbackoff_base_ms = 1\nbackoff_max_ms = 2\n")
    .add("[remote.parking]\nbase_seconds = 0.001\nmax_seconds = 0.002\n")
}

#[test]
fn complaint_2_spend_is_found_again_after_any_number_of_kills() {
    let kills = std::env::var("SCONCE_KILLS")
        .ok()
        .and_then(|n| n.parse().ok());
    let kills: u64 = kills.unwrap_or(KILLS);
    let biller = Biller::start();
    let setup = setup(&biller.upstream);
    let mut dice = Dice(1);
    for _ in 0..kills {
        let mut server = setup.serve();
        let over = AtomicBool::new(false);
        let after = Duration::from_micros(1_000 + dice.below(120_000));
        let seeds: Vec<u64> = (0..4).map(|_| dice.below(u64::MAX)).collect();
        std::thread::scope(|scope| {
            let asking: Vec<_> = seeds
                .into_iter()
                .map(|seed| {
                    let (address, over) = (server.address(), &over);
                    scope.spawn(move || ask(address, Dice(seed), over))
                })
                .collect();
            pause(after);
            over.store(true, Ordering::SeqCst);
            server.kill();
            drop(asking);
        });
        server.wait();
    }
    // What the last one left open is settled by the next.
    let mut server = setup.serve();
    server.terminate();
    server.wait();
    let url = url(&setup);
    let doubtful = "SELECT (SELECT COUNT(*) FROM attempts WHERE settled_ms IS NULL), \
         (SELECT COUNT(*) FROM entries WHERE closed_ms IS NULL), \
         (SELECT COUNT(*) FROM attempts a WHERE NOT EXISTS (SELECT 1 FROM entries e WHERE e.id = a.entry)), \
         (SELECT COUNT(*) FROM entries)";
    let counts = &rows(&url, doubtful, 4)[0];
    assert_eq!(
        counts[..3],
        [Json::from(0), 0.into(), 0.into()],
        "left open, or without an entry"
    );
    assert!(
        counts[3].as_u64() > Some(kills),
        "nothing was asked: {counts:?}"
    );
    let place = Place::File(file(&setup));
    let total = report(&place).total;
    let billed = biller.billed();
    assert!(
        total.cost_nusd >= billed,
        "{} recovered of {billed} billed",
        total.cost_nusd
    );
    assert!(
        total.cost_nusd - total.bound_nusd <= billed,
        "{} counted, of which {} is a bound, and {billed} billed",
        total.cost_nusd,
        total.bound_nusd
    );
    eprintln!(
        "{kills} kills, {} requests: {billed} nano-USD billed, {} recovered, {} of it bounds",
        counts[3], total.cost_nusd, total.bound_nusd
    );
    // The provider's own bill makes both the same.
    let bill = setup.audit_log().with_file_name("bill.csv");
    let whole = format!("{}.{:09}", billed / 1_000_000_000, billed % 1_000_000_000);
    std::fs::write(
        &bill,
        format!(
            "id,cost
,{whole}
"
        ),
    )
    .expect("a bill");
    let words = ["--upstream", "up", "--apply", &bill.display().to_string()].map(str::to_owned);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let told = setup.sconce().words(&words).run("reconcile");
    assert!(told.status.success(), "{told:?}");
    assert_eq!(report(&place).total.cost_nusd, billed);
    settled(&url, counts[3].as_u64().expect("a number") as usize);
}
