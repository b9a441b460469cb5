//! Many callers at once, at an upstream that answers nobody before all of them have come as far as they can.
//!
//! Whoever is answered gives back what was held for it and not used, so how many a budget covers is only known
//! while nobody is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::upstream::{Reply, Request};
use super::{eventually, pause};

/// What an upstream's answers wait behind. Clones are the same.
#[derive(Clone, Default)]
pub struct Gate(Arc<State>);

#[derive(Default)]
struct State {
    open: AtomicBool,
    waiting: AtomicUsize,
}

impl Gate {
    /// A script whose answers to posted bodies wait until the gate is open.
    pub fn before(
        &self,
        script: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> impl Fn(&Request) -> Reply + Send + Sync + 'static {
        let Self(state) = self.clone();
        move |request| {
            if request.method == "POST" {
                state.waiting.fetch_add(1, Ordering::SeqCst);
                while !state.open.load(Ordering::SeqCst) {
                    pause(Duration::from_millis(2));
                }
            }
            script(request)
        }
    }

    /// The statuses that so many callers get, each by its number; the gate opens once each of them has an answer or
    /// waits at the upstream.
    #[track_caller]
    pub fn crowd(&self, callers: usize, ask: impl Fn(usize) -> u16 + Sync) -> Vec<u16> {
        let answered = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let (ask, answered) = (&ask, &answered);
            let asking: Vec<_> = (0..callers)
                .map(|caller| {
                    scope.spawn(move || {
                        let status = ask(caller);
                        answered.fetch_add(1, Ordering::SeqCst);
                        status
                    })
                })
                .collect();
            eventually("everybody waits or has an answer", || {
                let waiting = self.0.waiting.load(Ordering::SeqCst);
                (answered.load(Ordering::SeqCst) + waiting >= callers).then_some(())
            });
            self.0.open.store(true, Ordering::SeqCst);
            let asking = asking.into_iter();
            asking.map(|ask| ask.join().expect("an answer")).collect()
        })
    }
}
