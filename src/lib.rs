//! sconce: a self-hosted, TGI-compatible LLM server with an engine of its own.
//!
//! # The house
//!
//! ```text
//!  roof      main  cli  commands  app  config      knows everyone; known by no one
//!  door      api                         HTTP in and out
//!  hall      dispatch                    admit, check, decide, carry out, account
//!  wings     engine │ remote             continuous batching on this machine │ other people's machines
//!  cellar    model → kernel              tensors; candle lives only here
//!  pipes     generation · text · guided · wire · route · egress · audit · ledger · hub · telemetry     small, under every floor
//! ```
//!
//! Imports go downward only; `tests/it/architecture.rs` reads them and fails on any other.
//!
//! # One request's life
//!
//! 1. `api/tgi.rs`, `chat.rs`, `completions.rs`, `responses.rs` or `messages.rs` reads the body (`wire`) and takes a
//!    permit from the hall. A conversation has become a prompt before (`dispatch/chat.rs`, `text/chat_template`).
//! 2. `api/from_*.rs` translates and checks every parameter and builds a [`generation::Request`].
//! 3. `dispatch/lifecycle.rs` turns text into tokens, off the async threads when it is long, checks
//!    lengths, compiles the grammar (`guided/`) if there is one, and hands a job to the engine.
//! 4. `engine/worker.rs`, one OS thread, runs steps: `scheduler.rs` chooses tokens to compute under a
//!    budget, `batch.rs` lays them out, `model/decoder.rs` runs one forward pass for all of them,
//!    `logits.rs` and `sampler.rs` choose a token for each sequence that is up to date.
//! 5. `dispatch/lifecycle.rs` turns tokens into text, finds stop strings, and yields events; in a chat
//!    `dispatch/chat.rs` tells content, reasoning and calls of tools apart (`text/tool_calls`, `text/reasoning.rs`).
//! 6. Where there are upstreams, `dispatch/hybrid/` decides first (`route/`, pure) and carries the request out here or
//!    elsewhere: through the gate (`egress/`, `audit/`, `ledger/`), to an upstream (`remote/`), on to the next one if that fails.
//! 7. `api` writes them as frames or collects them. Dropping the stream, for whatever reason, cancels the
//!    job at the next step.
//!
//! # Where to change what
//!
//! a default → `config/resolve.rs` · a setting's name → `config/raw.rs` · a limit's check →
//! `api/from_tgi.rs` or `dispatch/lifecycle.rs` · where TGI and OpenAI disagree → `docs/compat.md`, `api/compat.rs` ·
//! a family's notation of calls → `text/tool_calls/` · batch shape → `engine/scheduler.rs` · what a token may be
//! → `engine/logits.rs`, `guided/` · where a model's files come from → `hub/` · a model family → `model/spec.rs`, `model/names.rs` · speed on a CPU →
//! `kernel/cpu/` (twin in `kernel/reference.rs`) · when a request goes elsewhere → `route/decide.rs` · what may leave →
//! `egress/gate.rs` · what may be spent → `ledger/budget.rs` · a provider's quirk → `remote/translate/` · what a failure means → `remote/errors.rs`, `remote/retry.rs` · a status code → `api/error.rs` · what the page shows → `dispatch/pulse.rs`, `api/ui.rs`, `ui/src/` · a metric →
//! `telemetry/metrics.rs`.

pub mod api;
pub mod app;
pub mod audit;
pub mod cli;
pub mod commands;
pub mod config;
pub mod dispatch;
pub mod egress;
pub mod engine;
pub mod generation;
pub mod guided;
pub mod hub;
pub mod kernel;
pub mod ledger;
pub mod model;
pub mod remote;
pub mod route;
pub mod telemetry;
pub mod text;
pub mod wire;
