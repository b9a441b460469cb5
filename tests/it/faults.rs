//! What a failing model costs: the sequences of its step, and nothing else.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use sconce::dispatch::{self, Dispatcher, Local};
use sconce::engine::{self, Engine, Job, Output, SubmitError};
use sconce::generation::{ErrorKind, Event, EventStream, Request, Sampling, Tenant, TokenId};
use sconce::model::{CausalLm, Logits, ModelError, StepInput};
use sconce::telemetry::{HistogramRanges, Metrics};
use sconce::text::{SpecialTokens, Tokenizer};

use crate::support::engine::golden;
use crate::support::{PATIENCE, eventually};

/// What a toy model does in its next step.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    Well = 0,
    Fails = 1,
    Panics = 2,
    /// The first row's scores are not numbers.
    Raves = 3,
    Sleeps = 4,
}

/// A model without weights that does as it is told; only the engine around it is under test.
struct Toy {
    vocab: usize,
    mood: Arc<AtomicUsize>,
}

impl CausalLm for Toy {
    fn vocab_size(&self) -> usize {
        self.vocab
    }

    fn forward(&mut self, step: &StepInput<'_>, logits: &mut Logits) -> Result<(), ModelError> {
        let scores = logits.reset(step.outputs.len(), self.vocab);
        scores.fill(0.0);
        scores
            .iter_mut()
            .skip(5)
            .step_by(self.vocab)
            .for_each(|score| *score = 1.0);
        match self.mood.load(Ordering::SeqCst) {
            mood if mood == Mood::Fails as usize => Err(ModelError::Forward("as told".to_owned())),
            mood if mood == Mood::Panics as usize => panic!("as told"),
            mood if mood == Mood::Raves as usize => {
                scores[0] = f32::NAN;
                Ok(())
            }
            mood if mood == Mood::Sleeps as usize => {
                std::thread::park_timeout(Duration::from_millis(20));
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

struct Setup {
    engine: Engine,
    metrics: Arc<Metrics>,
    mood: Arc<AtomicUsize>,
}

impl Setup {
    fn new(vocab: usize, max_queued: usize) -> Self {
        let not_zero = |n| NonZeroUsize::new(n).expect("not zero");
        let mood = Arc::new(AtomicUsize::new(0));
        let ranges = HistogramRanges {
            max_input_tokens: 64,
            max_total_tokens: 64,
        };
        let metrics = Arc::new(Metrics::new(ranges));
        let config = engine::Config {
            max_batched_tokens: not_zero(64),
            max_running: not_zero(8),
            max_queued: not_zero(max_queued),
            num_blocks: 64,
        };
        let model = Box::new(Toy {
            vocab,
            mood: Arc::clone(&mood),
        });
        let engine =
            engine::start(model, config, Arc::clone(&metrics)).expect("a thread to run on");
        Self {
            engine,
            metrics,
            mood,
        }
    }

    fn feel(&self, mood: Mood) {
        self.mood.store(mood as usize, Ordering::SeqCst);
    }

    fn submit(
        &self,
        max_new_tokens: usize,
    ) -> Result<tokio::sync::mpsc::UnboundedReceiver<Output>, SubmitError> {
        self.engine.submit(|output| Job {
            prompt: vec![TokenId(1)],
            max_new_tokens,
            eos: Arc::from([]),
            sampling: Sampling::GREEDY,
            guide: None,
            top_n: 0,
            prompt_logprobs: false,
            tenant: Tenant::anonymous(),
            begun: Arc::default(),
            output,
        })
    }

    /// The last output of a short job.
    fn outcome(&self) -> Output {
        let mut outputs = self.submit(3).expect("room in the queue");
        let mut last = None;
        while let Some(output) = outputs.blocking_recv() {
            last = Some(output);
        }
        last.expect("at least one output")
    }
}

#[test]
fn a_failed_step_fails_its_sequences_and_the_next_request_is_served() {
    let setup = Setup::new(16, 8);
    for (mood, words) in [
        (Mood::Fails, "as told"),
        (Mood::Panics, "panicked"),
        (Mood::Raves, "not finite"),
    ] {
        setup.feel(mood);
        match setup.outcome() {
            Output::Failed(problem) => assert!(problem.contains(words), "{problem}"),
            other => panic!("{mood:?} gave {other:?}"),
        }
        assert_eq!(setup.engine.load().last_step_failed, mood != Mood::Raves);
        setup.feel(Mood::Well);
        assert!(
            matches!(setup.outcome(), Output::Token { ended: Some(_), .. }),
            "after {mood:?}"
        );
        assert!(!setup.engine.load().last_step_failed);
    }
    let free = || (setup.metrics.kv_blocks_free.get() == 64).then_some(());
    eventually("failed sequences hold no blocks", free);
}

#[test]
fn a_full_queue_refuses_at_once() {
    let setup = Setup::new(16, 2);
    setup.feel(Mood::Sleeps);
    let mut kept = Vec::new();
    let refused = (0..1000).find_map(|_| match setup.submit(50) {
        Ok(outputs) => {
            kept.push(outputs);
            None
        }
        Err(refusal) => Some(refusal),
    });
    assert_eq!(refused, Some(SubmitError::Full));
}

#[test]
fn a_dropped_receiver_frees_its_blocks_at_the_next_step() {
    let setup = Setup::new(16, 8);
    setup.feel(Mood::Sleeps);
    let mut outputs = setup.submit(60).expect("room in the queue");
    assert!(matches!(
        outputs.blocking_recv(),
        Some(Output::Started { .. })
    ));
    drop(outputs);
    eventually("the blocks come back", || {
        let idle = setup.engine.load().running == 0;
        (idle && setup.metrics.kv_blocks_free.get() == 64).then_some(())
    });
}

fn hall(setup: &Setup) -> Dispatcher {
    let json =
        std::fs::read(golden().join("llama-tied/tokenizer.json")).expect("a frozen tokenizer");
    let tokenizer =
        Tokenizer::from_json(&json, SpecialTokens::default()).expect("a sound tokenizer");
    let config = dispatch::Config {
        max_concurrent_requests: 4,
        max_input_tokens: 32,
        max_total_tokens: 64,
        validation_workers: 1,
        prompt_logprobs: false,
        max_request_duration: Duration::from_secs(60),
        grammars: true,
    };
    let metrics = Arc::clone(&setup.metrics);
    let local = Local::new(
        &config,
        setup.engine.clone(),
        tokenizer,
        None,
        Arc::from([]),
    );
    Dispatcher::new(config, Some(local), None, None, metrics)
}

fn request() -> Request {
    Request {
        max_new_tokens: std::num::NonZeroU32::new(3),
        accounted: true,
        ..Request::of("a")
    }
}

async fn last(mut events: EventStream) -> Result<Event, sconce::generation::Error> {
    let mut last = None;
    while let Some(event) = events.next().await {
        last = Some(event);
    }
    last.expect("at least one event")
}

#[tokio::test]
async fn health_is_lost_with_a_failed_step_and_found_again_with_a_real_token() {
    let setup = Setup::new(400, 8);
    let hall = hall(&setup);
    assert!(hall.health().await.is_ok());
    setup.feel(Mood::Fails);
    let events = hall
        .generate(request(), hall.admit(1).expect("room"))
        .await
        .expect("a start");
    let error = last(events).await.expect_err("the model fails");
    assert_eq!(error.kind, ErrorKind::Generation);
    assert_eq!(error.message, "Server error: as told");
    assert_eq!(
        hall.health().await.expect_err("still failing").kind,
        ErrorKind::Unhealthy
    );
    setup.feel(Mood::Well);
    assert!(hall.health().await.is_ok());
    assert!(
        !setup.engine.load().last_step_failed,
        "the probe was a real step"
    );
    let events = hall
        .generate(request(), hall.admit(1).expect("room"))
        .await
        .expect("a start");
    assert!(last(events).await.is_ok());
}

#[tokio::test]
async fn a_deadline_ends_an_answer_that_nobody_reads_and_gives_its_place_back() {
    let setup = Setup::new(400, 8);
    setup.feel(Mood::Sleeps);
    let hall = hall(&setup);
    let permits: Vec<_> = (0..3).map(|_| hall.admit(1).expect("room")).collect();
    let deadline = Some(Instant::now() + Duration::from_millis(60));
    let slow = Request {
        max_new_tokens: None,
        deadline,
        ..request()
    };
    let mut events = hall
        .generate(slow, hall.admit(1).expect("room"))
        .await
        .expect("a start");
    assert!(matches!(events.next().await, Some(Ok(Event::Started(_)))));
    assert!(hall.admit(1).is_err(), "all four places are taken");
    tokio::time::timeout(PATIENCE, async {
        while hall.admit(1).is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the place comes back");
    drop(permits);
    let error = last(events).await.expect_err("the deadline has passed");
    assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
}

#[tokio::test]
async fn texts_nobody_waits_for_do_not_pile_up_in_the_tokenizer() {
    let setup = Setup::new(400, 8);
    let hall = hall(&setup);
    let large = "abc def ".repeat(100_000);
    let mut at_once = 0;
    for _ in 0..6 {
        let given_up = hall.tokenize(large.clone(), true);
        let patience = Duration::from_millis(5);
        let outcome = tokio::time::timeout(patience, given_up).await;
        assert!(outcome.is_err(), "a text of this size takes longer");
        at_once = at_once.max(setup.metrics.tokenizing.get());
    }
    tokio::time::timeout(PATIENCE, async {
        while setup.metrics.tokenizing.get() > 0 {
            at_once = at_once.max(setup.metrics.tokenizing.get());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .expect("the first text comes to its end");
    assert_eq!(at_once, 1, "there is one worker");
}
