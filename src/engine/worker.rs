//! The engine's thread: one loop, one step at a time.
//!
//! It blocks on its channel when idle and polls it between steps when busy. A failed step fails the
//! sequences of that step and no others.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::Instant;

use super::batch::{Batch, wanted_rows};
use super::handle::{Engine, Shared};
use super::load::{LoadSnapshot, Reporter};
use super::logits::{Processor, Seen};
use super::masks::Masks;
use super::sampler::{logprob_of, sample};
use super::scheduler::{Limits, Scheduler};
use super::sequence::{Sequence, SequenceId};
use super::{Config, Ended, Job, Output};
use crate::guided::Guide;
use crate::model::{BLOCK_TOKENS, CausalLm, Logits, StepInput};
use crate::telemetry::{Method, Metrics};

/// Starts an engine's thread over a model whose KV memory has `config.num_blocks` blocks.
///
/// Errors: the operating system has no thread to give.
pub fn start(
    model: Box<dyn CausalLm>,
    config: Config,
    metrics: Arc<Metrics>,
) -> std::io::Result<Engine> {
    let (sender, jobs) = sync_channel(config.max_queued.get());
    let shared = Arc::new(Shared::new(LoadSnapshot::idle(&config, Instant::now())));
    let masks = Masks::start()?;
    let worker = Worker::new(model, config, metrics, jobs, masks, Arc::clone(&shared));
    std::thread::Builder::new()
        .name("engine".to_owned())
        .spawn(move || worker.run())?;
    Ok(Engine::new(sender, shared))
}

/// A job that the scheduler knows, with what it needs beside its tokens.
struct Active {
    job: Job,
    guide: Guiding,
    /// When its first step began.
    started_at: Option<Instant>,
    announced: bool,
    prompt_logprobs: Vec<f32>,
}

/// Where a sequence's guide is.
enum Guiding {
    Free,
    Here(Box<Guide>),
    /// Its mask is being made.
    Lent,
    Failed(String),
}

/// Says that the engine's thread has ended when it is dropped, be it by a panic.
struct Stopped(Arc<Shared>);

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.stopped.store(true, Ordering::Relaxed);
    }
}

struct Worker {
    model: Box<dyn CausalLm>,
    scheduler: Scheduler,
    /// By [`SequenceId`].
    active: Vec<Option<Active>>,
    batch: Batch,
    logits: Logits,
    processor: Processor,
    masks: Masks,
    metrics: Arc<Metrics>,
    jobs: Receiver<Job>,
    shared: Arc<Shared>,
    reporter: Reporter,
}

impl Worker {
    fn new(
        model: Box<dyn CausalLm>,
        config: Config,
        metrics: Arc<Metrics>,
        jobs: Receiver<Job>,
        masks: Masks,
        shared: Arc<Shared>,
    ) -> Self {
        metrics.kv_blocks.set(config.num_blocks as i64);
        metrics.kv_blocks_free.set(config.num_blocks as i64);
        metrics
            .batch_max_total_tokens
            .set((config.num_blocks * BLOCK_TOKENS) as i64);
        let scheduler = Scheduler::new(Limits {
            max_batched_tokens: config.max_batched_tokens,
            max_running: config.max_running,
            num_blocks: config.num_blocks,
        });
        Self {
            model,
            scheduler,
            active: Vec::new(),
            batch: Batch::default(),
            logits: Logits::default(),
            processor: Processor::default(),
            masks,
            metrics,
            jobs,
            shared,
            reporter: Reporter::new(&config, Instant::now()),
        }
    }

    fn run(mut self) {
        let _stopped = Stopped(Arc::clone(&self.shared));
        while self.drain() {
            self.drop_cancelled();
            self.report();
            self.step();
            self.publish();
            self.report();
        }
    }

    /// Takes in what has arrived, waiting for it when there is nothing else to do. False at the end.
    fn drain(&mut self) -> bool {
        loop {
            if self.scheduler.is_idle() {
                match self.jobs.recv() {
                    Ok(job) => self.take_in(job),
                    Err(_) => return false,
                }
            } else {
                match self.jobs.try_recv() {
                    Ok(job) => self.take_in(job),
                    Err(TryRecvError::Empty) => return true,
                    // What runs is still finished, whoever has left.
                    Err(TryRecvError::Disconnected) => return true,
                }
            }
        }
    }

    fn take_in(&mut self, mut job: Job) {
        self.reporter.took_in(&job);
        if !self.scheduler.fits(job.prompt.len() + job.max_new_tokens) {
            let _ = job.output.send(Output::Failed(
                "the request exceeds the KV cache".to_owned(),
            ));
            self.report();
            return;
        }
        let sequence = Sequence::new(
            job.prompt.clone(),
            job.max_new_tokens,
            &job.tenant,
            job.prompt_logprobs,
        );
        let id = self.scheduler.add(sequence);
        let place = id.0 as usize;
        if self.active.len() <= place {
            self.active.resize_with(place + 1, || None);
        }
        let guide = job.guide.take();
        self.active[place] = Some(Active {
            job,
            guide: guide.map_or(Guiding::Free, |guide| Guiding::Here(Box::new(guide))),
            started_at: None,
            announced: false,
            prompt_logprobs: Vec::new(),
        });
    }

    fn drop_cancelled(&mut self) {
        for place in 0..self.active.len() {
            if self.active[place]
                .as_ref()
                .is_some_and(|active| active.job.output.is_closed())
            {
                self.remove(SequenceId(place as u32));
            }
        }
    }

    fn remove(&mut self, id: SequenceId) {
        self.reporter.changed();
        self.scheduler.remove(id);
        self.active[id.0 as usize] = None;
    }

    fn step(&mut self) {
        let began = Instant::now();
        self.scheduler.schedule();
        let plan = self.scheduler.plan();
        self.metrics.preemptions.inc_by(plan.preempted as u64);
        self.metrics
            .prefix_cache_hit_tokens
            .inc_by(plan.cached_tokens as u64);
        if plan.admitted + plan.preempted > 0 {
            self.reporter.changed();
        }
        if plan.admitted > 0 {
            self.metrics.batch_next_size.observe(plan.admitted as f64);
        }
        if plan.shares.is_empty() {
            return;
        }
        for share in &plan.shares {
            if let Some(active) = &mut self.active[share.sequence.0 as usize]
                && active.started_at.is_none()
            {
                active.started_at = Some(began);
                active.job.begun.store(true, Ordering::Relaxed);
            }
        }
        let method = if plan
            .shares
            .iter()
            .any(|share| share.count > 1 || share.start == 0)
        {
            Method::Prefill
        } else {
            Method::Decode
        };
        self.lend_guides();
        let forwarded = self.forward();
        self.take_guides_back();
        match forwarded {
            Ok(()) => {
                let forward = began.elapsed();
                self.shared.last_step_failed.store(false, Ordering::Relaxed);
                self.metrics
                    .computed_tokens
                    .inc_by(self.scheduler.plan().num_tokens() as u64);
                self.scheduler.complete_step();
                self.sample_and_emit();
                let whole = began.elapsed();
                self.metrics.observe_step(method, forward, whole - forward);
                self.reporter.stepped(&self.scheduler.plan().shares, whole);
            }
            Err(problem) => {
                tracing::error!(problem, "a step failed");
                self.shared.last_step_failed.store(true, Ordering::Relaxed);
                self.metrics.observe_failed_step(method);
                self.fail_step(&problem);
            }
        }
    }

    /// Has the masks made that this step's sampling needs.
    fn lend_guides(&mut self) {
        for share in &self.scheduler.plan().shares {
            if !share.samples {
                continue;
            }
            let Some(active) = &mut self.active[share.sequence.0 as usize] else {
                continue;
            };
            if matches!(&active.guide, Guiding::Here(guide) if guide.mask().is_none())
                && let Guiding::Here(guide) = std::mem::replace(&mut active.guide, Guiding::Lent)
            {
                self.masks.begin(share.sequence, guide);
            }
        }
    }

    fn take_guides_back(&mut self) {
        while let Some(loan) = self.masks.finish() {
            if let Some(active) = &mut self.active[loan.sequence.0 as usize] {
                active.guide = match loan.outcome {
                    Ok(()) => Guiding::Here(loan.guide),
                    Err(e) => Guiding::Failed(e.to_string()),
                };
            }
        }
    }

    fn forward(&mut self) -> Result<(), String> {
        self.batch.lay_out(&self.scheduler);
        let tables: Vec<&[u32]> = self
            .scheduler
            .plan()
            .shares
            .iter()
            .map(|share| self.scheduler.table(share.sequence))
            .collect();
        let input = StepInput {
            tokens: &self.batch.tokens,
            rows: &self.batch.rows,
            tables: &tables,
            outputs: &self.batch.outputs,
        };
        self.metrics.forward_count.inc();
        let (model, logits) = (&mut self.model, &mut self.logits);
        // A panic in a kernel must cost this batch, not the server.
        match catch_unwind(AssertUnwindSafe(|| model.forward(&input, logits))) {
            Ok(result) => result.map_err(|e| e.to_string()),
            Err(_) => Err("the model panicked".to_owned()),
        }
    }

    fn sample_and_emit(&mut self) {
        let mut row = 0;
        for i in 0..self.scheduler.plan().shares.len() {
            let share = self.scheduler.plan().shares[i];
            let id = share.sequence;
            let Some(active) = &mut self.active[id.0 as usize] else {
                continue;
            };
            let sequence = self.scheduler.sequence(id);
            let scores_prompt = active.job.prompt_logprobs;
            for offset in wanted_rows(&share, scores_prompt, sequence.prompt_len()) {
                let scores = self.logits.row(row);
                row += 1;
                let next = share.start + offset + 1;
                // A preempted prompt is computed again, its log-probabilities are not wanted again.
                let fresh = next == active.prompt_logprobs.len() + 1;
                if scores_prompt && next < sequence.prompt_len() && fresh && !active.announced {
                    active
                        .prompt_logprobs
                        .push(logprob_of(scores, sequence.tokens()[next]));
                }
            }
            if !share.samples {
                continue;
            }
            let mask = match &active.guide {
                Guiding::Free => None,
                Guiding::Here(guide) => guide.mask(),
                Guiding::Lent | Guiding::Failed(_) => {
                    let problem = match &active.guide {
                        Guiding::Failed(problem) => problem.as_str(),
                        _ => "the thread that makes masks has ended",
                    };
                    let _ = active.job.output.send(Output::Failed(problem.to_owned()));
                    self.remove(id);
                    continue;
                }
            };
            let sampling = &active.job.sampling;
            let seen = Seen {
                prompt: &sequence.tokens()[..sequence.prompt_len()],
                generated: sequence.generated(),
            };
            let scores = self
                .processor
                .apply(self.logits.row(row - 1), sampling, seen, mask);
            let place = sequence.generated().len();
            let Some(sampled) = sample(scores, sampling.seed, place, active.job.top_n) else {
                let _ = active.job.output.send(Output::Failed(
                    "the model's scores are not finite".to_owned(),
                ));
                self.remove(id);
                continue;
            };
            if !active.announced {
                active.announced = true;
                let prompt_logprobs = std::mem::take(&mut active.prompt_logprobs);
                let at = active.started_at.unwrap_or_else(Instant::now);
                let _ = active.job.output.send(Output::Started {
                    at,
                    prompt_logprobs,
                });
            }
            let ended = if place + 1 >= active.job.max_new_tokens {
                Some(Ended::Length)
            } else if active.job.eos.contains(&sampled.token) {
                Some(Ended::Eos)
            } else {
                None
            };
            let token = sampled.token;
            self.metrics.generated_tokens.inc();
            let delivered = active
                .job
                .output
                .send(Output::Token { sampled, ended })
                .is_ok();
            if ended.is_some() || !delivered {
                self.remove(id);
                continue;
            }
            if let Guiding::Here(guide) = &mut active.guide
                && let Err(e) = guide.accept(token)
            {
                // Told at the next step, as a mask that cannot be made.
                active.guide = Guiding::Failed(e.to_string());
            }
            self.scheduler.append(id, token);
        }
    }

    fn fail_step(&mut self, problem: &str) {
        let failed: Vec<SequenceId> = self
            .scheduler
            .plan()
            .shares
            .iter()
            .map(|share| share.sequence)
            .collect();
        for id in failed {
            if let Some(active) = &self.active[id.0 as usize] {
                let _ = active.job.output.send(Output::Failed(problem.to_owned()));
            }
            self.remove(id);
        }
    }

    fn report(&mut self) {
        self.reporter
            .report(&self.scheduler, &self.shared, Instant::now());
    }

    fn publish(&self) {
        let running = self.scheduler.running();
        let growth: usize = running
            .iter()
            .filter_map(|id| self.active[id.0 as usize].as_ref())
            .map(|active| active.job.prompt.len() + active.job.max_new_tokens)
            .sum();
        self.shared
            .waiting
            .store(self.scheduler.num_waiting(), Ordering::Relaxed);
        self.shared.running.store(running.len(), Ordering::Relaxed);
        self.metrics
            .queue_size
            .set(self.scheduler.num_waiting() as i64);
        self.metrics.batch_current_size.set(running.len() as i64);
        self.metrics.batch_current_max_tokens.set(growth as i64);
        self.metrics
            .kv_blocks_free
            .set(self.scheduler.num_free_blocks() as i64);
    }
}
