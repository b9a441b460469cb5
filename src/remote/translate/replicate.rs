//! One prompt → a prediction of Replicate's own API, awaited within the request that makes it.
//!
//! Its event streams are not used: they stand at an address that the answer names, on another host than the
//! one the gate let the text go to. A prediction waits at most a minute, and is told to cancel itself then,
//! so that nothing is left running or paid for. What a model's `input` is called is its own affair; the names
//! here are those of Replicate's official language models.
//! Source: Replicate's guide to predictions (sync mode) and its change log of 2025-10-16 (`Cancel-After`).

use serde_json::{Map, Value as Json};

use super::fit::Fit;
use super::incoming::Format;
use super::{Draft, Ineligible, Job, chat, sampling};
use crate::generation::{Conversation, Sampling, StopRule, TokenDetail, ToolChoice};

/// The longest that Replicate holds an answer back, in seconds.
const WAIT_S: u32 = 60;

/// Translates a conversation of at most a system's and a user's message, or a raw prompt.
///
/// Errors: everything a prediction has no word for.
pub(super) fn draft(job: &Job<'_>, fit: &mut Fit) -> Result<Draft, Ineligible> {
    let request = job.request;
    let mut input = Map::new();
    let mut put = |key: &str, value: Json| {
        input.insert(key.to_owned(), value);
    };
    match &request.chat {
        Some(ask) => {
            let (system, user) = turns(&ask.conversation)?;
            put("prompt", Json::from(user));
            if let Some(system) = system {
                put("system_prompt", Json::from(system));
            }
        }
        None if job.target.capabilities.raw_prompt == Some(true) => {
            put("prompt", Json::from(request.prompt.as_str()));
            put("prompt_template", Json::from("{prompt}"));
        }
        None if job.known.special_text == Some(false) => {
            fit.lossy(
                "prompt_wrapped",
                "inputs",
                "the target takes no raw prompts",
            )?;
            put("prompt", Json::from(request.prompt.as_str()));
        }
        None => return Err(Ineligible::new("inputs", "the target takes no raw prompts")),
    }
    let chat_shape = request.chat.as_ref().and_then(|ask| ask.shape.as_ref());
    let raw_shape = request.grammar.as_ref();
    let raw_shape = raw_shape.filter(|_| request.chat.is_none() || job.known.untemplated);
    let absent = |there: bool, field: &'static str| match there {
        true => Err(Ineligible::new(field, "a prediction has none")),
        false => Ok(()),
    };
    absent(chat_shape.or(raw_shape).is_some(), "grammar")?;
    absent(request.truncate.is_some(), "truncate")?;
    absent(request.prompt_logprobs, "decoder_input_details")?;
    put("max_tokens", Json::from(job.max_tokens));
    choosing(job, &mut put, fit)?;
    if !request.stop.is_empty() {
        // They go as one text with commas between them.
        absent(request.stop.iter().any(|stop| stop.contains(',')), "stop")?;
        put("stop_sequences", Json::from(request.stop.join(",")));
        if request.stop_rule == StopRule::Keep {
            fit.flag("stop_text");
        }
    }
    fit.flag("finish_reason");
    match (request.detail, request.top_n_tokens) {
        (TokenDetail::Unseen, 0) => {}
        (TokenDetail::Framed, 0) => {
            fit.flag("token_ids");
            fit.flag("logprobs");
        }
        (TokenDetail::Full, _) => {
            fit.lossy("token_ids", "details", "a prediction tells no tokens")?;
            fit.flag("logprobs");
        }
        _ => fit.lossy("logprobs", "logprobs", "a prediction tells no tokens")?,
    }
    let mut body = Map::new();
    body.insert("input".to_owned(), Json::Object(input));
    Ok(Draft {
        path: format!("/v1/models/{}/predictions", job.target.model),
        headers: vec![
            ("prefer", format!("wait={WAIT_S}")),
            ("cancel-after", format!("{WAIT_S}s")),
        ],
        body,
        stream: false,
        reader: chat::reader(job, Format::Prediction, false, false),
    })
}

/// The system's words, if any, and the user's.
fn turns(conversation: &Conversation) -> Result<(Option<&str>, &str), Ineligible> {
    let refused = |why: &str| Err(Ineligible::new("messages", why));
    if !conversation.tools.is_empty() && conversation.tool_choice != ToolChoice::None {
        return Err(Ineligible::new("tools", "a prediction calls no tools"));
    }
    if conversation.documents.is_some() {
        return Err(Ineligible::new("documents", "a prediction takes none"));
    }
    if !conversation.template_kwargs.is_empty() {
        return Err(Ineligible::new(
            "chat_template_kwargs",
            "a prediction takes none",
        ));
    }
    let (system, user) = match conversation.messages.as_slice() {
        [user] => (None, user),
        [system, user] if system.role == "system" => (system.content.as_deref(), user),
        _ => return refused("a prediction has one user's message and at most one of a system"),
    };
    match (&user.content, user.role.as_str()) {
        (Some(text), "user") => Ok((system, text)),
        _ => refused("a prediction answers a user's message"),
    }
}

fn choosing(
    job: &Job<'_>,
    put: &mut impl FnMut(&str, Json),
    fit: &mut Fit,
) -> Result<(), Ineligible> {
    let Sampling {
        temperature,
        repetition_penalty,
        frequency_penalty,
        frequency_rule: _,
        presence_penalty,
        logit_bias,
        top_k,
        top_p,
        typical_p,
        min_p,
        seed,
    } = &job.request.sampling;
    let can = &job.target.capabilities;
    let refused = |field| Err(Ineligible::new(field, "a prediction has none"));
    if let Some(seed) = seed {
        put("temperature", sampling::decimal(*temperature));
        put("top_p", top_p.map_or(Json::from(1), sampling::decimal));
        match top_k {
            Some(k) if can.top_k == Some(true) => put("top_k", Json::from(k.get())),
            Some(_) => fit.lossy("top_k", "top_k", "the target is not known to honour it")?,
            None => {}
        }
        if min_p.is_some_and(|p| p > 0.0) {
            fit.lossy("min_p", "min_p", "the target is not known to honour it")?;
        }
        if typical_p.is_some() {
            return refused("typical_p");
        }
        if job.request.seed_given {
            if can.seed == Some(true) {
                put("seed", Json::from(*seed));
                fit.flag("seed");
            } else {
                fit.lossy("seed", "seed", "the target is not known to honour it")?;
            }
        }
    } else {
        put("temperature", Json::from(0));
        fit.flag("determinism");
    }
    if *repetition_penalty != 1.0 {
        return refused("repetition_penalty");
    }
    if *frequency_penalty != 0.0 {
        return refused("frequency_penalty");
    }
    if *presence_penalty != 0.0 {
        return refused("presence_penalty");
    }
    if !logit_bias.is_empty() {
        return refused("logit_bias");
    }
    Ok(())
}
