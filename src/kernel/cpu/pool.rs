//! Fork-join over a few threads: the caller plus workers that spin briefly, then sleep.
//!
//! Separate because a step makes hundreds of joins, and a general pool costs more than the work between them.
//! The one idea: a job is a counter of chunks, and whoever is awake claims the next one. A worker that the system holds
//! back is never waited for: it joins only while the job is open, and the caller closes the job when no chunk is left.
//! Chunk order and owner vary from run to run, so no result may depend on them.
//! Never here: queues, nested jobs, changes to thread affinity or to the floating-point environment.

use std::any::Any;
use std::cell::{RefCell, UnsafeCell};
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a worker looks for the next job before it sleeps.
const SPIN: Duration = Duration::from_micros(20);

/// Work below which waking others costs more than it saves, in multiply-adds (some 2 us).
const ALONE: usize = 64 * 1024;

/// One job: called once per chunk, by any thread, with that thread's scratch.
type Task<'a> = dyn Fn(&mut Scratch, usize) + Sync + 'a;

/// Memory that one thread reuses from chunk to chunk; contents do not survive a chunk.
#[derive(Default)]
pub(super) struct Scratch {
    floats: Vec<f32>,
    /// Free for a chunk's own list.
    pub(super) indices: Vec<usize>,
}

impl Scratch {
    /// `len` floats of unspecified contents, aligned to a cache line, and the list.
    pub(super) fn floats(&mut self, len: usize) -> (&mut [f32], &mut Vec<usize>) {
        const SLACK: usize = 16;
        if self.floats.len() < len + SLACK {
            self.floats.resize(len + SLACK, 0.0);
        }
        let skip = self.floats.as_ptr().align_offset(64).min(SLACK);
        (&mut self.floats[skip..skip + len], &mut self.indices)
    }
}

/// Threads that carry out one job at a time.
///
/// Invariants: a job's task is not touched after [`Pool::run`] returns or unwinds. `RefCell` makes the pool `!Sync`, so
/// there is one job at a time. Dropping it ends and joins the workers.
pub(super) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    scratch: RefCell<Scratch>,
}

struct Shared {
    /// Job number, then one bit for open, then the number of workers inside: see [`OPEN`].
    gate: AtomicU64,
    /// The open job's task; written only while the gate is closed and empty.
    task: UnsafeCell<Option<*const Task<'static>>>,
    chunks: AtomicUsize,
    next: AtomicUsize,
    stop: AtomicBool,
    asleep: Box<[AtomicBool]>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Set in the gate while workers may enter. Bits below count those inside, bits above number the job.
const OPEN: u64 = 1 << 16;

// SAFETY: `task` is the only part that is not thread-safe by itself. The caller writes it before opening the gate (a
// release) and after seeing it empty (an acquire); workers read it only between entering and leaving an open gate.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer in `task` is never dereferenced outside an open job.
unsafe impl Send for Shared {}

impl Pool {
    /// Starts `threads - 1` workers.
    pub(super) fn new(threads: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            task: UnsafeCell::new(None),
            chunks: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            asleep: (1..threads).map(|_| AtomicBool::new(false)).collect(),
            panic: Mutex::new(None),
        });
        let mut pool = Self {
            shared,
            workers: Vec::with_capacity(threads),
            scratch: RefCell::default(),
        };
        for index in 0..threads.saturating_sub(1) {
            let shared = Arc::clone(&pool.shared);
            pool.workers.push(
                thread::Builder::new()
                    .name(format!("kernel-{}", index + 1))
                    .spawn(move || shared.work(index))?,
            );
        }
        Ok(pool)
    }

    /// Threads that take part, the caller included.
    pub(super) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task` once for each of `0..chunks` and returns when all have been done.
    ///
    /// `work` is the size of the whole job in multiply-adds; a small one stays on the calling thread.
    /// Panics: with the first panic of the task, once every thread has left it.
    /// Cost: under 1 us when the workers spin, one system call a sleeping worker when they do not.
    pub(super) fn run(&self, chunks: usize, work: usize, task: &Task<'_>) {
        let mut scratch = self.scratch.borrow_mut();
        if chunks <= 1 || work < ALONE || self.workers.is_empty() {
            for chunk in 0..chunks {
                task(&mut scratch, chunk);
            }
            return;
        }
        let shared = &*self.shared;
        // Left behind when both the caller and a worker panicked in an earlier job.
        *shared.panic.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let task: *const Task<'_> = task;
        // SAFETY: only the lifetime changes. `Open` closes the job and waits for the workers before this call ends.
        let task = unsafe { std::mem::transmute::<*const Task<'_>, *const Task<'static>>(task) };
        // SAFETY: the gate is closed and empty, because the last job's `Open` was dropped.
        unsafe { *shared.task.get() = Some(task) };
        shared.chunks.store(chunks, Ordering::Relaxed);
        shared.next.store(0, Ordering::Relaxed);
        let job = (shared.gate.load(Ordering::Relaxed) & !(2 * OPEN - 1)) + 2 * OPEN;
        shared.gate.store(job | OPEN, Ordering::SeqCst);
        let open = Open(shared);
        for (worker, asleep) in self.workers.iter().zip(&shared.asleep).take(chunks - 1) {
            if asleep.load(Ordering::SeqCst) && asleep.swap(false, Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        // SAFETY: the task outlives `open`.
        unsafe { shared.claim(task, &mut scratch) };
        drop(open);
        let panicked = shared
            .panic
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(payload) = panicked {
            panic::resume_unwind(payload);
        }
    }

    /// Cuts `out` into runs of whole rows and calls `each` with the first row's index and the run.
    ///
    /// `row_work` is the cost of one row in multiply-adds.
    /// Panics: when `out` is not a whole number of rows of `width`.
    pub(super) fn run_rows(
        &self,
        out: &mut [f32],
        width: usize,
        row_work: usize,
        each: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) {
        assert!(
            width > 0 && out.len().is_multiple_of(width),
            "output is not whole rows of {width}"
        );
        let rows = out.len() / width;
        let per_chunk =
            (ALONE / 4 / row_work.max(1)).clamp(1, rows.div_ceil(2 * self.threads()).max(1));
        let out = SharedMut::new(out);
        self.run(
            rows.div_ceil(per_chunk),
            rows.saturating_mul(row_work),
            &|_, chunk| {
                let first = chunk * per_chunk;
                let count = per_chunk.min(rows - first);
                // SAFETY: chunks are distinct, so their row runs are; both ends lie inside `out`.
                each(first, unsafe { out.slice(first * width, count * width) });
            },
        );
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches its task's panics and has none of its own.
            let _ = worker.join();
        }
    }
}

/// A job workers may enter; dropping it closes the job and waits until they have left.
struct Open<'a>(&'a Shared);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        // On the way out of a panic there are chunks left that nobody should start.
        self.0.next.store(usize::MAX / 2, Ordering::Relaxed);
        let mut gate = self.0.gate.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0_u32;
        while gate & (OPEN - 1) != 0 {
            spins += 1;
            if spins < 10_000 {
                std::hint::spin_loop();
            } else {
                thread::yield_now();
            }
            gate = self.0.gate.load(Ordering::Acquire);
        }
    }
}

impl Shared {
    /// Claims and does chunks until none is left.
    ///
    /// # Safety
    /// `task` is alive until this returns.
    unsafe fn claim(&self, task: *const Task<'static>, scratch: &mut Scratch) {
        let chunks = self.chunks.load(Ordering::Relaxed);
        loop {
            let chunk = self.next.fetch_add(1, Ordering::Relaxed);
            if chunk >= chunks {
                return;
            }
            // SAFETY: alive by the caller's promise.
            unsafe { (*task)(scratch, chunk) };
        }
    }

    /// A worker's life.
    fn work(&self, index: usize) {
        let mut scratch = Scratch::default();
        let mut last = 0;
        while let Some(gate) = self.wait(index, last) {
            last = gate;
            if !self.enter(gate) {
                continue;
            }
            let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
                // SAFETY: inside the gate the task is set, and its caller waits for us to leave.
                unsafe {
                    if let Some(task) = *self.task.get() {
                        self.claim(task, &mut scratch);
                    }
                }
            }));
            if let Err(payload) = outcome {
                self.next.store(usize::MAX / 2, Ordering::Relaxed);
                self.panic
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get_or_insert(payload);
            }
            self.gate.fetch_sub(1, Ordering::Release);
        }
    }

    /// The number of an open job other than `last`, or `None` when the pool ends.
    fn wait(&self, index: usize, last: u64) -> Option<u64> {
        let is_new = |gate: u64| gate & OPEN != 0 && gate / (2 * OPEN) != last;
        let mut spinning = Instant::now();
        loop {
            for _ in 0..64 {
                let gate = self.gate.load(Ordering::Acquire);
                if is_new(gate) {
                    return Some(gate / (2 * OPEN));
                }
                std::hint::spin_loop();
            }
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
            if spinning.elapsed() > SPIN {
                // The caller opens the gate and then looks who sleeps; we say so and then look at the gate.
                self.asleep[index].store(true, Ordering::SeqCst);
                if !is_new(self.gate.load(Ordering::SeqCst)) && !self.stop.load(Ordering::SeqCst) {
                    thread::park();
                }
                self.asleep[index].store(false, Ordering::SeqCst);
                spinning = Instant::now();
            }
        }
    }

    /// Joins job `number` if it is still open.
    fn enter(&self, number: u64) -> bool {
        let mut gate = self.gate.load(Ordering::Relaxed);
        loop {
            if gate & OPEN == 0 || gate / (2 * OPEN) != number {
                return false;
            }
            match self.gate.compare_exchange_weak(
                gate,
                gate + 1,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => gate = now,
            }
        }
    }
}

/// A slice that several threads write at once, each at its own places.
pub(super) struct SharedMut<'a> {
    start: *mut f32,
    len: usize,
    _borrow: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: it gives out memory only through unsafe methods whose callers keep to disjoint places.
unsafe impl Sync for SharedMut<'_> {}

impl<'a> SharedMut<'a> {
    pub(super) fn new(slice: &'a mut [f32]) -> Self {
        Self {
            start: slice.as_mut_ptr(),
            len: slice.len(),
            _borrow: std::marker::PhantomData,
        }
    }

    /// The address of element `offset`, which may be one past the end.
    ///
    /// # Safety
    /// Whatever is accessed through it lies inside the slice, and no other thread accesses the same elements.
    pub(super) unsafe fn at(&self, offset: usize) -> *mut f32 {
        debug_assert!(offset <= self.len);
        // SAFETY: inside the slice or one past it.
        unsafe { self.start.add(offset) }
    }

    /// Elements `offset..offset + len`.
    ///
    /// # Safety
    /// No other live slice overlaps it.
    #[allow(clippy::mut_from_ref, reason = "the caller keeps the slices disjoint")]
    pub(super) unsafe fn slice(&self, offset: usize, len: usize) -> &mut [f32] {
        assert!(offset + len <= self.len, "a run outside the slice");
        // SAFETY: inside the slice by the check, disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(offset), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_is_done_once_a_hundred_thousand_times() {
        for threads in [1, 2, 3] {
            let pool = Pool::new(threads).unwrap();
            let counts: Vec<_> = (0..9).map(|_| AtomicUsize::new(0)).collect();
            let rounds = if threads == 2 { 100_000 } else { 3_000 };
            for round in 0..rounds {
                pool.run(counts.len(), usize::MAX, &|_, chunk| {
                    counts[chunk].fetch_add(1, Ordering::Relaxed);
                });
                if round % 10_000 == 0 {
                    thread::park_timeout(Duration::from_micros(200));
                }
                assert!(
                    counts
                        .iter()
                        .all(|count| count.swap(0, Ordering::Relaxed) == 1)
                );
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3).unwrap();
        for bad in 0..8 {
            let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
                pool.run(8, usize::MAX, &|_, chunk| {
                    assert_ne!(chunk, bad, "as planned")
                });
            }));
            assert!(outcome.is_err());
            let done = AtomicUsize::new(0);
            pool.run(8, usize::MAX, &|_, _| {
                done.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(done.into_inner(), 8);
        }
    }

    #[test]
    fn rows_are_cut_without_gap_or_overlap() {
        let pool = Pool::new(2).unwrap();
        for rows in [0, 1, 2, 5, 64, 301] {
            let mut out = vec![f32::NAN; rows * 3];
            pool.run_rows(&mut out, 3, 40_000, &|first, run| {
                for (i, x) in run.iter_mut().enumerate() {
                    *x = (first * 3 + i) as f32;
                }
            });
            assert!(out.iter().enumerate().all(|(i, &x)| x == i as f32));
        }
    }
}
