//! Who gets in: permits taken at once or not at all, and how long a refused caller should wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::generation::Side;

/// Room for one or more sequences, here or elsewhere; dropping it gives the room back.
#[derive(Debug)]
pub struct Permit {
    room: Option<OwnedSemaphorePermit>,
    side: Side,
}

impl Permit {
    /// A permit that takes no room, for the server's own probes.
    pub(super) fn none() -> Self {
        Self {
            room: None,
            side: Side::Local,
        }
    }

    /// Splits off room for one sequence, so that each of several can give its own back.
    pub fn split(&mut self) -> Self {
        Self {
            room: self.room.as_mut().and_then(|room| room.split(1)),
            side: self.side,
        }
    }

    /// Where there is room.
    pub(super) fn side(&self) -> Side {
        self.side
    }
}

/// Takes `count` permits or none; they are for this side.
pub(super) fn admit(permits: &Arc<Semaphore>, count: usize, side: Side) -> Option<Permit> {
    let count = u32::try_from(count).ok()?;
    Arc::clone(permits)
        .try_acquire_many_owned(count)
        .ok()
        .map(|room| Permit {
            room: Some(room),
            side,
        })
}

/// How long requests have lately taken, as a moving average.
#[derive(Debug, Default)]
pub(super) struct Pace {
    average_ms: AtomicU64,
}

impl Pace {
    /// Weight of the newest request: 1 / 8.
    const SHIFT: u32 = 3;

    /// Records a finished request.
    pub(super) fn record(&self, took: Duration) {
        let took = u64::try_from(took.as_millis())
            .unwrap_or(u64::MAX)
            .clamp(1, 1 << 40);
        let blend = |old: u64| match old {
            0 => took,
            old => old - (old >> Self::SHIFT) + (took >> Self::SHIFT),
        };
        let _ = self
            .average_ms
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |old| {
                Some(blend(old).max(1))
            });
    }

    /// When a refused caller should try again: about the time a request takes, in whole seconds from 1
    /// to 60.
    pub(super) fn expected_wait(&self) -> Duration {
        let average = self.average_ms.load(Ordering::Relaxed);
        Duration::from_secs(average.div_ceil(1000).clamp(1, 60))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_come_together_or_not_at_all_and_split() {
        let semaphore = Arc::new(Semaphore::new(3));
        let mut two = admit(&semaphore, 2, Side::Local).expect("room for two");
        assert!(admit(&semaphore, 2, Side::Local).is_none());
        let one = two.split();
        drop(two);
        assert_eq!(semaphore.available_permits(), 2);
        drop(one);
        assert_eq!(semaphore.available_permits(), 3);
    }

    #[test]
    fn the_expected_wait_follows_the_pace_within_bounds() {
        let pace = Pace::default();
        assert_eq!(pace.expected_wait(), Duration::from_secs(1));
        pace.record(Duration::from_secs(10));
        assert_eq!(pace.expected_wait(), Duration::from_secs(10));
        (0..60).for_each(|_| pace.record(Duration::from_millis(20)));
        assert_eq!(pace.expected_wait(), Duration::from_secs(1));
        (0..60).for_each(|_| pace.record(Duration::from_secs(1000)));
        assert_eq!(pace.expected_wait(), Duration::from_secs(60));
    }
}
