//! TGI's parameters → a request that cannot be wrong; every refusal has TGI's text.
//!
//! Rules stand in TGI's order, because the first one broken is the one reported. Those that need the
//! tokenizer come later, in the hall.

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use rand_core::{OsRng, TryRngCore};

use super::Config;
use super::routing::Routed;
use crate::generation::{
    ChatAsk, Error, Grammar, Request, Sampling, StopRule, Tenant, TokenDetail,
};
use crate::wire::tgi::{self, GenerateParameters};

/// The header by which a caller shortens its deadline, in milliseconds.
const DEADLINE_HEADER: &str = "x-route-deadline-ms";

/// How long the caller is willing to wait, if it says so.
///
/// Errors: the header is not a positive whole number.
pub(super) fn asked_deadline(headers: &HeaderMap) -> Result<Option<Duration>, Error> {
    let Some(value) = headers.get(DEADLINE_HEADER) else {
        return Ok(None);
    };
    value
        .to_str()
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok())
        .filter(|&ms| ms > 0)
        .map(|ms| Some(Duration::from_millis(ms)))
        .ok_or_else(|| {
            Error::invalid(format!(
                "`{DEADLINE_HEADER}` must be a positive number of milliseconds"
            ))
        })
}

/// Refuses what streams cannot do (rules S1 and S2); checked before a permit is taken.
pub(super) fn check_streaming(parameters: &GenerateParameters) -> Result<(), Error> {
    if parameters.best_of.is_some_and(|n| n != 1) {
        return Err(Error::invalid(
            "`best_of` != 1 is not supported when streaming tokens",
        ));
    }
    if parameters.decoder_input_details {
        return Err(Error::invalid(
            "`decoder_input_details` == true is not supported when streaming tokens",
        ));
    }
    Ok(())
}

/// How many sequences to generate (rules B1 and B2); checked before permits are taken.
pub(super) fn num_sequences(
    parameters: &GenerateParameters,
    config: &Config,
) -> Result<usize, Error> {
    let best_of = parameters.best_of.unwrap_or(1);
    if best_of > 1 && config.max_best_of == 1 {
        return Err(Error::invalid(
            "`best_of` != 1 is not allowed for this endpoint",
        ));
    }
    if best_of > config.max_best_of {
        return Err(Error::invalid(format!(
            "`best_of` must be > 0 and <= {}. Given: {best_of}",
            config.max_best_of
        )));
    }
    Ok(best_of.max(1))
}

/// What the request is checked against beside the door's own bounds.
pub(super) struct Frame {
    pub(super) max_input_tokens: usize,
    pub(super) prompt_logprobs: bool,
    pub(super) accepted_at: Instant,
    pub(super) deadline: Instant,
    pub(super) tenant: Tenant,
    pub(super) routed: Routed,
    /// The conversation that the inputs were made of; only then may they be empty.
    pub(super) chat: Option<Arc<ChatAsk>>,
    pub(super) detail: TokenDetail,
}

/// Rules 1 to 13, then the request. Without a seed a sampled request draws one.
pub(super) fn request(
    inputs: String,
    parameters: &GenerateParameters,
    config: &Config,
    frame: &Frame,
) -> Result<Request, Error> {
    let GenerateParameters {
        best_of,
        temperature,
        repetition_penalty,
        frequency_penalty,
        top_k,
        top_p,
        typical_p,
        do_sample,
        max_new_tokens,
        return_full_text: _,
        stop,
        truncate,
        watermark,
        details: _,
        decoder_input_details,
        seed,
        top_n_tokens,
        grammar,
        adapter_id,
    } = parameters;
    let invalid = |text: String| Err(Error::invalid(text));
    let several = best_of.is_some_and(|n| n > 1);
    let asks_sampling = *do_sample
        || temperature.is_some()
        || top_k.is_some()
        || top_p.is_some()
        || typical_p.is_some();
    if several && !asks_sampling {
        return invalid("you must use sampling when `best_of` is > 1".to_owned());
    }
    let sampling = Sampling {
        temperature: temperature.unwrap_or(1.0),
        repetition_penalty: repetition_penalty.unwrap_or(1.0),
        frequency_penalty: frequency_penalty.unwrap_or(0.0),
        top_p: *top_p,
        typical_p: *typical_p,
        ..Sampling::GREEDY
    };
    let mut sampling = sampling
        .checked()
        .map_err(|e| Error::invalid(e.to_string()))?;
    if let Some(k) = top_k {
        let k = u32::try_from(*k).ok().and_then(NonZeroU32::new);
        if k.is_none() {
            return invalid("`top_k` must be strictly positive".to_owned());
        }
        sampling.top_k = k;
    }
    if *max_new_tokens == Some(0) {
        return invalid("`max_new_tokens` must be strictly positive".to_owned());
    }
    if stop.len() > config.max_stop_sequences {
        return invalid(format!(
            "`stop` supports up to {} stop sequences. Given: {}",
            config.max_stop_sequences,
            stop.len()
        ));
    }
    if seed.is_some() && several {
        return invalid("`seed` must not be set when `best_of` > 1".to_owned());
    }
    let top_n = top_n_tokens.unwrap_or(0);
    if top_n > config.max_top_n_tokens {
        return invalid(format!(
            "`top_n_tokens` must be >= 0 and <= {}. Given: {top_n}",
            config.max_top_n_tokens
        ));
    }
    if inputs.is_empty() && frame.chat.is_none() {
        return invalid("`inputs` cannot be empty".to_owned());
    }
    if let Some(n) = truncate
        && (*n == 0 || *n > frame.max_input_tokens)
    {
        return invalid(format!(
            "`truncate` must be strictly positive and less than {}. Given: {n}",
            frame.max_input_tokens
        ));
    }
    if *watermark {
        return invalid("`watermark` is not supported by this server; leave it out".to_owned());
    }
    if let Some(id) = adapter_id {
        return invalid(format!(
            "`adapter_id` names `{id}`, and this server has no adapters"
        ));
    }
    let samples = *do_sample
        || sampling.temperature != 1.0
        || sampling.top_k.is_some()
        || sampling.top_p.is_some()
        || sampling.typical_p.is_some();
    if samples {
        sampling.seed = Some(match seed {
            Some(seed) => *seed,
            None => random_seed()?,
        });
    }
    Ok(Request {
        prompt: inputs,
        chat: frame.chat.clone(),
        add_special_tokens: true,
        truncate: truncate.and_then(NonZeroUsize::new),
        max_new_tokens: max_new_tokens.and_then(NonZeroU32::new),
        stop: stop.clone(),
        stop_rule: StopRule::Keep,
        sampling,
        seed_given: seed.is_some(),
        grammar: grammar.as_ref().map(grammar_of),
        detail: frame.detail,
        top_n_tokens: top_n as usize,
        prompt_logprobs: *decoder_input_details && frame.prompt_logprobs,
        accounted: true,
        tenant: frame.tenant.clone(),
        accepted_at: frame.accepted_at,
        deadline: Some(frame.deadline),
        route: frame.routed.ask.clone(),
        note: frame.routed.slot(),
    })
}

/// A seed for a request that brings none.
pub(super) fn random_seed() -> Result<u64, Error> {
    OsRng
        .try_next_u64()
        .map_err(|e| Error::generation(format!("no random numbers: {e}")))
}

fn grammar_of(grammar: &tgi::Grammar) -> Grammar {
    match grammar {
        tgi::Grammar::Json(value) => Grammar::TgiSchema(value.to_string()),
        tgi::Grammar::JsonSchema(named) => Grammar::TgiSchema(named.schema.to_string()),
        tgi::Grammar::Regex(text) => Grammar::Regex(text.clone()),
        tgi::Grammar::Lark(text) => Grammar::Lark(text.clone()),
    }
}
