//! Waking an endpoint that sleeps: one request wakes it, the others know how long it will take.
//!
//! How long it takes is learned from the times before. Without a control plane the waker is sent again after
//! growing pauses; with one, its state is asked for instead, which wakes nothing. It gives up at last.

use std::time::{Duration, Instant};

use super::ColdStartConfig;

/// Pauses between wakers, in seconds; the last one repeats.
const PAUSES: [u64; 4] = [10, 20, 40, 60];
/// What is left of a request's time after the endpoint's proxy gave up holding it.
const SPARE: Duration = Duration::from_secs(5);
/// The part of a new sample in the moving average of waking times.
const NEW_SHARE: f64 = 0.3;
/// A time shorter than this was no sleep: something between was not ready.
const SLEEP_MIN: Duration = Duration::from_secs(5);
/// The least time that is promised to a caller: the endpoint may be up at any moment.
const ETA_MIN: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Waking {
    since: Instant,
    /// When a sign of it was last seen.
    seen: Instant,
    /// Whether a waker is under way.
    flying: bool,
    wakers: usize,
    next_waker: Instant,
}

/// The sleep of one endpoint.
#[derive(Debug)]
pub struct ColdStart {
    config: ColdStartConfig,
    usual: Option<Duration>,
    waking: Option<Waking>,
}

impl ColdStart {
    /// Awake, as far as is known.
    pub fn new(config: ColdStartConfig) -> Self {
        Self {
            config,
            usual: None,
            waking: None,
        }
    }

    /// The endpoint said, or its control plane did, that it sleeps or wakes.
    pub fn asleep(&mut self, now: Instant) {
        let waking = self.waking.get_or_insert(Waking {
            since: now,
            seen: now,
            flying: false,
            wakers: 0,
            next_waker: now,
        });
        waking.seen = now;
    }

    /// The endpoint answered: how long it took is learned.
    pub fn awake(&mut self, now: Instant) {
        let Some(waking) = self.waking.take() else {
            return;
        };
        let took = now.saturating_duration_since(waking.since);
        if took < SLEEP_MIN {
            return;
        }
        self.usual = Some(match self.usual {
            Some(old) => old.mul_f64(1.0 - NEW_SHARE) + took.mul_f64(NEW_SHARE),
            None => took,
        });
    }

    /// How long until it is awake, if it is not: the usual time less what has passed.
    pub fn eta(&self, now: Instant) -> Option<Duration> {
        let waking = self.waking.as_ref()?;
        let passed = now.saturating_duration_since(waking.since);
        Some(self.usual().saturating_sub(passed).max(ETA_MIN))
    }

    /// How long waking usually takes.
    pub fn usual(&self) -> Duration {
        self.usual.unwrap_or(self.config.prior)
    }

    /// Whether a waker should be sent now: none is under way, and the pause after the last one is over. Where
    /// a control plane is `asked` for the state, the first waker is the only one.
    pub fn wants_waker(&self, now: Instant, asked: bool) -> bool {
        self.waking.as_ref().is_some_and(|waking| {
            let more = waking.wakers == 0 || !asked;
            !waking.flying && more && now >= waking.next_waker
        })
    }

    /// A waker is sent.
    pub fn send_waker(&mut self, now: Instant) {
        if let Some(waking) = &mut self.waking {
            let pause = PAUSES[waking.wakers.min(PAUSES.len() - 1)];
            waking.flying = true;
            waking.seen = now;
            waking.wakers += 1;
            waking.next_waker = now + Duration::from_secs(pause);
        }
    }

    /// The waker came back, or its caller left.
    pub fn waker_done(&mut self) {
        if let Some(waking) = &mut self.waking {
            waking.flying = false;
        }
    }

    /// The control plane says that nothing wakes it: the waker never got there, and another one may be sent.
    pub fn still_asleep(&mut self) {
        if let Some(waking) = &mut self.waking
            && !waking.flying
        {
            waking.wakers = 0;
        }
    }

    /// The time that the endpoint's proxy should hold the waker for, for the header `X-Scale-Up-Timeout`.
    ///
    /// None when the request has not that long, or the endpoint is awake: such a waker is sent without.
    pub fn hold(&self, left: Duration, now: Instant) -> Option<Duration> {
        let eta = self.eta(now)?;
        let held = left.checked_sub(SPARE)?.min(self.config.hold_max);
        (held >= eta.min(self.config.hold_max)).then_some(held)
    }

    /// Whether it has been waking for too long; if so it is forgotten, and the caller says so elsewhere. It is
    /// just forgotten when nobody wanted it to wake in all that time.
    pub fn gave_up(&mut self, now: Instant) -> bool {
        let Some(waking) = &self.waking else {
            return false;
        };
        let age = |then| now.saturating_duration_since(then) >= self.config.give_up;
        let (late, unwanted) = (age(waking.since), age(waking.seen) && !waking.flying);
        if late {
            self.waking = None;
        }
        late && !unwanted
    }
}

/// Whether a request with so much time left can wait for an endpoint that is awake in `eta`.
pub(super) fn is_worth_waiting(eta: Duration, left: Duration) -> bool {
    eta.saturating_add(SPARE) <= left
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn one_waker_at_a_time_after_growing_pauses() {
        let now = Instant::now();
        let mut cold = ColdStart::new(ColdStartConfig::default());
        assert!(!cold.wants_waker(now, false));
        cold.asleep(now);
        let mut sent = Vec::new();
        for second in 0..200 {
            let at = now + second * S;
            if cold.wants_waker(at, false) {
                sent.push(second);
                cold.send_waker(at);
                assert!(!cold.wants_waker(at + 100 * S, false), "one is under way");
                cold.waker_done();
            }
        }
        assert_eq!(sent, [0, 10, 30, 70, 130, 190]);
        assert!(!cold.wants_waker(now + 900 * S, true), "it is asked for");
        cold.still_asleep();
        assert!(cold.wants_waker(now + 900 * S, true));
    }

    #[test]
    fn the_time_is_learned_and_counts_down() {
        let now = Instant::now();
        let mut cold = ColdStart::new(ColdStartConfig::default());
        assert_eq!(cold.eta(now), None);
        cold.asleep(now);
        assert_eq!(cold.eta(now + 30 * S), Some(150 * S));
        assert_eq!(cold.eta(now + 500 * S), Some(S));
        cold.awake(now + 100 * S);
        assert_eq!(cold.eta(now + 100 * S), None);
        assert_eq!(cold.usual(), 100 * S);
        cold.asleep(now + 200 * S);
        cold.awake(now + 400 * S);
        assert_eq!(cold.usual(), 130 * S);
        cold.asleep(now + 500 * S);
        cold.awake(now + 501 * S);
        assert_eq!(cold.usual(), 130 * S);
    }

    #[test]
    fn a_request_is_held_only_as_long_as_it_has_time() {
        let now = Instant::now();
        let mut cold = ColdStart::new(ColdStartConfig::default());
        assert_eq!(cold.hold(600 * S, now), None, "awake");
        cold.asleep(now);
        assert_eq!(cold.hold(300 * S, now), Some(295 * S));
        assert_eq!(cold.hold(9000 * S, now), Some(600 * S));
        assert_eq!(cold.hold(100 * S, now), None);
        assert_eq!(cold.hold(S, now), None);
    }

    #[test]
    fn it_gives_up_after_a_quarter_of_an_hour() {
        let now = Instant::now();
        let mut cold = ColdStart::new(ColdStartConfig::default());
        cold.asleep(now);
        cold.asleep(now + 60 * S);
        assert!(!cold.gave_up(now + 899 * S));
        assert!(cold.gave_up(now + 900 * S));
        assert_eq!(cold.eta(now + 900 * S), None);
        cold.asleep(now + 1000 * S);
        assert!(!cold.gave_up(now + 3000 * S), "nobody asked in between");
        assert_eq!(cold.eta(now + 3000 * S), None);
    }

    proptest! {
        #[test]
        fn never_two_wakers_at_once(events in prop::collection::vec((0u8..4, 0u64..30), 1..200)) {
            let mut now = Instant::now();
            let mut cold = ColdStart::new(ColdStartConfig::default());
            let mut flying = 0;
            for (what, step) in events {
                now += Duration::from_secs(step);
                match what {
                    0 => cold.asleep(now),
                    1 if cold.wants_waker(now, false) => {
                        cold.send_waker(now);
                        flying += 1;
                    }
                    2 if flying > 0 => {
                        cold.waker_done();
                        flying -= 1;
                    }
                    3 if flying == 0 => cold.awake(now),
                    _ => {}
                }
                prop_assert!(flying <= 1);
            }
        }
    }
}
