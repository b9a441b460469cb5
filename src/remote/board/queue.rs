//! Requests that wait for room at targets that have as many as they may have.
//!
//! When an attempt ends, whoever has the earliest deadline is called, and a newcomer gets no room while somebody
//! waits for it: nobody is overtaken by luck. Whoever is called looks for room like any other, with that one
//! difference, and may find none all the same, because something else speaks against the target by then.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Notify;

/// Who waits.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// In the order in which they are called.
    waiting: Vec<Waiting>,
    next: u64,
}

#[derive(Debug)]
struct Waiting {
    id: u64,
    /// Room at any of them will do.
    targets: Vec<usize>,
    deadline: Instant,
    called: bool,
    bell: Arc<Notify>,
}

impl Queue {
    /// Joins the queue for these targets, of which `most` may wait for each. None when it is full.
    pub(super) fn join(
        &mut self,
        targets: Vec<usize>,
        deadline: Instant,
        most: usize,
    ) -> Option<(u64, Arc<Notify>)> {
        let waits_for = |place: &usize| {
            let waiting = self.waiting.iter();
            waiting.filter(|w| w.targets.contains(place)).count()
        };
        if targets.is_empty() || targets.iter().any(|place| waits_for(place) >= most) {
            return None;
        }
        let (id, bell) = (self.next, Arc::new(Notify::new()));
        self.next += 1;
        let place = self.waiting.partition_point(|w| w.deadline <= deadline);
        let waiting = Waiting {
            id,
            targets,
            deadline,
            called: false,
            bell: Arc::clone(&bell),
        };
        self.waiting.insert(place, waiting);
        Some((id, bell))
    }

    /// Leaves it, served or not.
    pub(super) fn leave(&mut self, id: u64) {
        self.waiting.retain(|waiting| waiting.id != id);
    }

    /// Whoever was called has found no room, and waits again.
    pub(super) fn missed(&mut self, id: u64) {
        let found = self.waiting.iter_mut().find(|waiting| waiting.id == id);
        if let Some(waiting) = found {
            waiting.called = false;
        }
    }

    pub(super) fn is_called(&self, id: u64) -> bool {
        let mut waiting = self.waiting.iter();
        waiting.any(|waiting| waiting.id == id && waiting.called)
    }

    /// Whether somebody waits for a target.
    pub(super) fn wants(&self, place: usize) -> bool {
        self.waiting.iter().any(|w| w.targets.contains(&place))
    }

    /// Calls as many as there is room for; `room` says how many more a target may have.
    pub(super) fn call(&mut self, room: impl Fn(usize) -> u32) {
        for next in 0..self.waiting.len() {
            if self.waiting[next].called {
                continue;
            }
            let on_their_way = |place: usize| {
                let called = self.waiting.iter().filter(|w| w.called);
                called.filter(|w| w.targets.contains(&place)).count()
            };
            let waiting = &self.waiting[next];
            let mut targets = waiting.targets.iter();
            if targets.any(|&place| room(place) as usize > on_their_way(place)) {
                self.waiting[next].called = true;
                self.waiting[next].bell.notify_one();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_earliest_deadline_is_called_first_and_equal_ones_in_their_order() {
        let now = Instant::now();
        let at = |s| now + Duration::from_secs(s);
        let mut queue = Queue::default();
        let ids: Vec<u64> = [at(3), at(1), at(2), at(1)]
            .into_iter()
            .map(|deadline| queue.join(vec![0], deadline, 4).expect("room").0)
            .collect();
        assert!(queue.join(vec![0], now, 4).is_none(), "it is full");
        assert!(queue.join(vec![1], now, 4).is_some());
        let mut order: Vec<u64> = Vec::new();
        for _ in 0..4 {
            queue.call(|place| u32::from(place == 0));
            let called = ids.iter().filter(|id| queue.is_called(**id));
            let called: Vec<u64> = called.copied().collect();
            assert_eq!(called.len(), 1, "there is room for one");
            order.push(called[0]);
            queue.leave(called[0]);
        }
        assert_eq!(order, [1, 3, 2, 0].map(|place| ids[place]));
        assert!(!queue.wants(0) && queue.wants(1));
    }

    #[test]
    fn whoever_finds_no_room_is_called_again_before_later_ones() {
        let now = Instant::now();
        let mut queue = Queue::default();
        let mut join = |s| {
            let joined = queue.join(vec![0, 1], now + Duration::from_secs(s), 9);
            joined.expect("room").0
        };
        let (first, second) = (join(1), join(2));
        queue.call(|place| u32::from(place == 1));
        assert!(queue.is_called(first) && !queue.is_called(second));
        queue.missed(first);
        assert!(!queue.is_called(first));
        queue.call(|place| u32::from(place == 0));
        assert!(queue.is_called(first) && !queue.is_called(second));
    }

    proptest! {
        /// However callers come, are served, miss and leave: room that is there is never left unused while somebody
        /// waits for it, and no more are called than there is room for.
        #[test]
        fn room_is_neither_wasted_nor_promised_twice(
            steps in prop::collection::vec((0_u8..4, 0_usize..8, 0_u64..20), 1..80),
            limit in 1_u32..4,
        ) {
            let now = Instant::now();
            let mut queue = Queue::default();
            let (mut inside, mut waiting) = (0_u32, Vec::new());
            for (step, which, deadline) in steps {
                match step {
                    0 => {
                        let at = now + Duration::from_secs(deadline);
                        waiting.extend(queue.join(vec![0], at, 8).map(|(id, _)| id));
                    }
                    1 => {
                        let called = waiting.iter().position(|id| queue.is_called(*id));
                        if let Some(place) = called {
                            queue.leave(waiting.remove(place));
                            inside += 1;
                        }
                    }
                    2 => inside = inside.saturating_sub(1),
                    _ if !waiting.is_empty() => {
                        queue.leave(waiting.remove(which % waiting.len()));
                    }
                    _ => {}
                }
                queue.call(|_| limit - inside);
                let called = waiting.iter().filter(|id| queue.is_called(**id)).count();
                prop_assert!(inside + called as u32 <= limit);
                prop_assert!(inside + called as u32 == limit || called == waiting.len());
            }
        }
    }
}
