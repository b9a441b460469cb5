//! Requests that wait for room at targets that have as many as they may have.
//!
//! When an attempt ends, the next one is called, and a newcomer gets no room while somebody waits for it: nobody
//! is overtaken by luck. Keys share what room there is: the key that has waited for the fewest tokens is next, and of its
//! requests the one with the earliest deadline. That is start-time fair queueing (Goyal, Vin and Cheng, 1996) with
//! a request's tokens as its length; a key that was away has saved nothing up. Whoever is called looks for room
//! like any other, with that one difference, and may find none all the same, because something else speaks against
//! the target by then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Notify;

/// Who waits, and for how much.
#[derive(Debug, Clone)]
pub struct Waiter {
    /// Whose request it is; those without a key are one key together.
    pub key: Option<Arc<str>>,
    /// Tokens of prompt and answer, as far as can be expected.
    pub tokens: u32,
    /// When it is too late.
    pub deadline: Instant,
}

/// All who wait.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// By deadline, then in the order of their coming.
    waiting: Vec<Waiting>,
    /// Tokens that each key has been called for, counted from what those had who waited there when it came.
    shares: BTreeMap<Option<Arc<str>>, u64>,
    /// The share of whoever was called last, before that call.
    floor: u64,
    next: u64,
}

#[derive(Debug)]
struct Waiting {
    id: u64,
    waiter: Waiter,
    /// Room at any of them will do.
    targets: Vec<usize>,
    called: bool,
    bell: Arc<Notify>,
}

impl Queue {
    /// Joins the queue for these targets, of which `most` may wait for each. Where it is full, a key that has much
    /// fewer waiting takes the last place of the one that has the most. None when there is no place.
    pub(super) fn join(
        &mut self,
        targets: Vec<usize>,
        waiter: Waiter,
        most: usize,
    ) -> Option<(u64, Arc<Notify>)> {
        if targets.is_empty() {
            return None;
        }
        let mut losers = Vec::new();
        for &place in &targets {
            let waiting = self.waiting.iter();
            if waiting.filter(|w| w.targets.contains(&place)).count() >= most {
                losers.push(self.last_of_the_most(place, &waiter.key)?);
            }
        }
        self.waiting.retain(|w| {
            let loses = losers.contains(&w.id);
            if loses {
                w.bell.notify_one();
            }
            !loses
        });
        if !self.waiting.iter().any(|w| w.waiter.key == waiter.key) {
            let least = self.least_share(&targets);
            let share = self.shares.entry(waiter.key.clone()).or_default();
            *share = least.max(*share);
        }
        let (id, bell) = (self.next, Arc::new(Notify::new()));
        self.next += 1;
        let behind = |w: &Waiting| w.waiter.deadline <= waiter.deadline;
        let place = self.waiting.partition_point(behind);
        let waiting = Waiting {
            id,
            waiter,
            targets,
            called: false,
            bell: Arc::clone(&bell),
        };
        self.waiting.insert(place, waiting);
        self.forget();
        Some((id, bell))
    }

    /// What a key begins with that comes to these targets: as much as those who wait there have had, so that it
    /// neither overtakes all of them nor stands behind what other targets have given.
    fn least_share(&self, targets: &[usize]) -> u64 {
        let there = |w: &&Waiting| w.targets.iter().any(|place| targets.contains(place));
        let waiting = self.waiting.iter().filter(there);
        let least = waiting.filter_map(|w| self.shares.get(&w.waiter.key)).min();
        least.map_or(self.floor, |least| self.floor.min(*least))
    }

    /// The last one waiting for a target, of the key with the most of them: two more at least than `key` has.
    fn last_of_the_most(&self, place: usize, key: &Option<Arc<str>>) -> Option<u64> {
        let here = |w: &&Waiting| w.targets.contains(&place) && !w.called;
        let count = |key: &Option<Arc<str>>| {
            let waiting = self.waiting.iter().filter(here);
            waiting.filter(|w| w.waiter.key == *key).count()
        };
        let most = self
            .shares
            .keys()
            .max_by_key(|key| count(key))
            .filter(|most| count(most) >= count(key) + 2)?;
        let mut waiting = self.waiting.iter().rev().filter(here);
        waiting.find(|w| w.waiter.key == *most).map(|w| w.id)
    }

    /// An attempt has begun with the place that it was called for.
    pub(super) fn served(&mut self, id: u64) {
        self.waiting.retain(|waiting| waiting.id != id);
        self.forget();
    }

    /// Leaves it, and has had nothing of it.
    pub(super) fn leave(&mut self, id: u64) {
        self.missed(id);
        self.served(id);
    }

    /// Whoever was called has found no room, and waits again. The answer is whether it does: it may have lost its
    /// place.
    pub(super) fn missed(&mut self, id: u64) -> bool {
        let found = self.waiting.iter_mut().find(|waiting| waiting.id == id);
        let Some(waiting) = found else { return false };
        if std::mem::take(&mut waiting.called)
            && let Some(share) = self.shares.get_mut(&waiting.waiter.key)
        {
            *share = share.saturating_sub(waiting.waiter.tokens.into());
        }
        true
    }

    /// A key of which nobody waits and that has had no more than others needs no share.
    fn forget(&mut self) {
        let (waiting, floor) = (&self.waiting, self.floor);
        self.shares
            .retain(|key, share| *share > floor || waiting.iter().any(|w| w.waiter.key == *key));
    }

    /// Whether somebody is called for this target.
    pub(super) fn is_called(&self, id: u64, place: usize) -> bool {
        let mut called = self.waiting.iter().filter(|w| w.called);
        called.any(|w| w.id == id && w.targets.contains(&place))
    }

    /// Whether somebody waits for a target.
    pub(super) fn wants(&self, place: usize) -> bool {
        self.waiting.iter().any(|w| w.targets.contains(&place))
    }

    /// Calls as many as there is room for; `room` says how many more a target may have.
    pub(super) fn call(&mut self, room: impl Fn(usize) -> u32) {
        while let Some(next) = self.next_with(&room) {
            let waiting = &mut self.waiting[next];
            waiting.called = true;
            waiting.bell.notify_one();
            let share = self.shares.entry(waiting.waiter.key.clone()).or_default();
            self.floor = self.floor.max(*share);
            *share += u64::from(waiting.waiter.tokens);
        }
    }

    /// Whoever is next of those for whom there is room.
    fn next_with(&self, room: &impl Fn(usize) -> u32) -> Option<usize> {
        let on_their_way = |place: usize| {
            let called = self.waiting.iter().filter(|w| w.called);
            called.filter(|w| w.targets.contains(&place)).count()
        };
        let has_room = |w: &Waiting| {
            let mut targets = w.targets.iter();
            targets.any(|&place| room(place) as usize > on_their_way(place))
        };
        let share = |w: &Waiting| self.shares.get(&w.waiter.key).copied().unwrap_or_default();
        (0..self.waiting.len())
            .filter(|&at| !self.waiting[at].called && has_room(&self.waiting[at]))
            .min_by_key(|&at| share(&self.waiting[at]))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn waiter(key: Option<&str>, tokens: u32, deadline: Instant) -> Waiter {
        Waiter {
            key: key.map(Arc::from),
            tokens,
            deadline,
        }
    }

    /// Calls and serves one after the other; the names of the keys in that order.
    fn served(queue: &mut Queue, ids: &mut Vec<(u64, &'static str)>) -> String {
        let mut order = String::new();
        while !ids.is_empty() {
            queue.call(|_| 1);
            let called = ids.iter().position(|(id, _)| queue.is_called(*id, 0));
            let (id, key) = ids.remove(called.expect("somebody is called"));
            queue.served(id);
            order += key;
        }
        order
    }

    #[test]
    fn keys_share_by_tokens_and_save_nothing_up() {
        let now = Instant::now();
        let mut queue = Queue::default();
        let mut ids = Vec::new();
        let join = |queue: &mut Queue, ids: &mut Vec<_>, key, tokens, times| {
            for _ in 0..times {
                let joined = queue.join(vec![0], waiter(Some(key), tokens, now), 99);
                ids.push((joined.expect("room").0, key));
            }
        };
        join(&mut queue, &mut ids, "a", 10, 5);
        join(&mut queue, &mut ids, "b", 10, 2);
        assert_eq!(served(&mut queue, &mut ids), "ababaaa");
        // While `b` was away, `a` had much; it is not owed that.
        join(&mut queue, &mut ids, "a", 10, 3);
        join(&mut queue, &mut ids, "b", 10, 3);
        let order = served(&mut queue, &mut ids);
        assert!(
            ["babaab", "bababa", "bbaaba", "bbabaa"].contains(&&*order),
            "{order}"
        );
        join(&mut queue, &mut ids, "c", 30, 3);
        join(&mut queue, &mut ids, "d", 10, 6);
        assert_eq!(served(&mut queue, &mut ids), "cdddcdddc");
        assert!(queue.shares.len() <= 1, "{queue:?}");
    }

    #[test]
    fn a_newcomer_at_a_slow_target_does_not_stand_behind_what_a_fast_one_has_given() {
        let now = Instant::now();
        let mut queue = Queue::default();
        let join = |queue: &mut Queue, place, key| {
            let joined = queue.join(vec![place], waiter(Some(key), 10, now), 99);
            joined.expect("room").0
        };
        // `slow` always waits at 0, while 1 serves `fast` a hundred times.
        let mut slow = vec![join(&mut queue, 0, "slow"), join(&mut queue, 0, "slow")];
        for _ in 0..100 {
            let id = join(&mut queue, 1, "fast");
            queue.call(|place| u32::from(place == 1));
            assert!(queue.is_called(id, 1) && !queue.is_called(id, 0));
            queue.served(id);
        }
        let newcomer = join(&mut queue, 0, "newcomer");
        for _ in 0..2 {
            queue.call(|place| u32::from(place == 0));
            if let Some(at) = slow.iter().position(|id| queue.is_called(*id, 0)) {
                queue.served(slow.remove(at));
                slow.push(join(&mut queue, 0, "slow"));
            }
        }
        assert!(queue.is_called(newcomer, 0), "{queue:?}");
    }

    #[test]
    fn a_key_that_fills_the_queue_makes_room_for_others() {
        let now = Instant::now();
        let later = |s| now + Duration::from_secs(s);
        let mut queue = Queue::default();
        let mut join = |key, s| queue.join(vec![0], waiter(key, 1, later(s)), 4);
        let greedy: Vec<u64> = (0..4)
            .map(|s| join(Some("a"), s).expect("room").0)
            .collect();
        assert!(join(Some("a"), 9).is_none(), "it is full");
        let modest = join(Some("b"), 9).expect("the place of the last of `a`");
        let unknown = join(None, 9).expect("the place of the third");
        assert!(join(Some("b"), 9).is_none(), "that would be no fairer");
        assert!(!queue.missed(greedy[3]) && !queue.missed(greedy[2]));
        assert!(queue.missed(greedy[0]) && queue.missed(modest.0) && queue.missed(unknown.0));
    }

    #[test]
    fn the_earliest_deadline_is_called_first_and_equal_ones_in_their_order() {
        let now = Instant::now();
        let at = |s| now + Duration::from_secs(s);
        let mut queue = Queue::default();
        let ids: Vec<u64> = [at(3), at(1), at(2), at(1)]
            .into_iter()
            .map(|deadline| {
                queue
                    .join(vec![0], waiter(None, 1, deadline), 4)
                    .expect("room")
                    .0
            })
            .collect();
        assert!(
            queue.join(vec![0], waiter(None, 1, now), 4).is_none(),
            "it is full"
        );
        assert!(queue.join(vec![1], waiter(None, 1, now), 4).is_some());
        let mut order: Vec<u64> = Vec::new();
        for _ in 0..4 {
            queue.call(|place| u32::from(place == 0));
            let called = ids.iter().filter(|id| queue.is_called(**id, 0));
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
            let deadline = now + Duration::from_secs(s);
            let joined = queue.join(vec![0, 1], waiter(None, 1, deadline), 9);
            joined.expect("room").0
        };
        let (first, second) = (join(1), join(2));
        queue.call(|place| u32::from(place == 1));
        assert!(queue.is_called(first, 0) && !queue.is_called(second, 0));
        queue.missed(first);
        assert!(!queue.is_called(first, 0));
        queue.call(|place| u32::from(place == 0));
        assert!(queue.is_called(first, 0) && !queue.is_called(second, 0));
    }

    proptest! {
        /// However callers come, are served, miss and leave: room that is there is never left unused while somebody
        /// waits for it, and no more are called than there is room for.
        #[test]
        fn room_is_neither_wasted_nor_promised_twice(
            steps in prop::collection::vec((0_u8..5, 0_usize..8, 0_u64..20), 1..80),
            limit in 1_u32..4,
        ) {
            let now = Instant::now();
            let mut queue = Queue::default();
            let (mut inside, mut waiting) = (0_u32, Vec::new());
            for (step, which, deadline) in steps {
                match step {
                    0 => {
                        let at = now + Duration::from_secs(deadline);
                        let key = ["a", "b", "c"].get(which).copied();
                        let who = waiter(key, 1 + which as u32, at);
                        waiting.extend(queue.join(vec![0], who, 8).map(|(id, _)| id));
                        // Somebody else may have lost a place to it.
                        waiting.retain(|id| queue.waiting.iter().any(|w| w.id == *id));
                    }
                    1 => {
                        let called = waiting.iter().position(|id| queue.is_called(*id, 0));
                        if let Some(place) = called {
                            queue.served(waiting.remove(place));
                            inside += 1;
                        }
                    }
                    2 => inside = inside.saturating_sub(1),
                    3 if !waiting.is_empty() => {
                        queue.missed(waiting[which % waiting.len()]);
                    }
                    _ if !waiting.is_empty() => {
                        queue.leave(waiting.remove(which % waiting.len()));
                    }
                    _ => {}
                }
                queue.call(|_| limit - inside);
                let called = waiting.iter().filter(|id| queue.is_called(**id, 0)).count();
                prop_assert!(inside + called as u32 <= limit);
                prop_assert!(inside + called as u32 == limit || called == waiting.len());
            }
        }
    }
}
