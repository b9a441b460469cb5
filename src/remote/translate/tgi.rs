//! A raw prompt → text-generation-inference's own route, which is ours too.

use serde_json::{Map, Value as Json};

use super::fit::Fit;
use super::incoming::Format;
use super::providers::SchemaForm;
use super::{Draft, Ineligible, Job, chat, details, raw, sampling, schema};
use crate::generation::{FrequencyRule, Sampling};

/// Translates a raw prompt.
///
/// Errors: what TGI's own route has no word for.
pub(super) fn draft(job: &Job<'_>, fit: &mut Fit) -> Result<Draft, Ineligible> {
    let request = job.request;
    let prompt = raw::without_bos(job);
    if !request.add_special_tokens
        && job.settings.bos.is_some()
        && prompt.len() == request.prompt.len()
    {
        fit.lossy("bos", "inputs", "the target adds a token before the prompt")?;
    }
    let mut given = Map::new();
    choosing(job, &mut given, fit)?;
    let mut put = |key: &str, value: Json| {
        given.insert(key.to_owned(), value);
    };
    put("max_new_tokens", Json::from(job.max_tokens));
    put("return_full_text", Json::Bool(false));
    put("details", Json::Bool(true));
    sampling::bounded_stops(job)?;
    if !request.stop.is_empty() {
        put("stop", Json::from(request.stop.clone()));
    }
    if let Some(kept) = request.truncate {
        if !job.target.same_model {
            fit.lossy("truncate", "truncate", "another tokenizer cuts elsewhere")?;
        }
        put("truncate", Json::from(kept.get()));
    }
    if request.top_n_tokens > 0 {
        let bound = details::TOP_OPENAI;
        if request.top_n_tokens > bound {
            let why = format!("the target tells at most {bound}");
            fit.lossy("top_n_tokens", "top_n_tokens", why)?;
        }
        put("top_n_tokens", Json::from(request.top_n_tokens.min(bound)));
    }
    let stream = !request.prompt_logprobs && chat::can_stream(job);
    if request.prompt_logprobs {
        put("decoder_input_details", Json::Bool(true));
    }
    if let Some(shape) = &request.grammar {
        schema::ask(job, shape, SchemaForm::ObjectValue, false, &mut given, fit)?;
    }
    let mut body = Map::new();
    body.insert("inputs".to_owned(), Json::from(prompt));
    body.insert("parameters".to_owned(), Json::Object(given));
    let path = if stream {
        "/generate_stream"
    } else {
        "/generate"
    };
    Ok(Draft {
        path: path.to_owned(),
        headers: Vec::new(),
        body,
        stream,
        reader: chat::reader(job, Format::Generate, stream, true),
    })
}

/// How tokens are chosen, in TGI's words: sampling begins with the first parameter that asks for it.
fn choosing(job: &Job<'_>, given: &mut Map<String, Json>, fit: &mut Fit) -> Result<(), Ineligible> {
    let Sampling {
        temperature,
        repetition_penalty,
        frequency_penalty,
        frequency_rule,
        presence_penalty,
        logit_bias,
        top_k,
        top_p,
        typical_p,
        min_p,
        seed,
    } = &job.request.sampling;
    let mut put = |key: &str, value: Json| {
        given.insert(key.to_owned(), value);
    };
    put("do_sample", Json::Bool(seed.is_some()));
    if let Some(seed) = seed {
        if *temperature != 1.0 {
            put("temperature", sampling::decimal(*temperature));
        }
        if let Some(k) = top_k {
            put("top_k", Json::from(k.get()));
        }
        if let Some(p) = top_p {
            put("top_p", sampling::decimal(*p));
        }
        if let Some(p) = typical_p {
            put("typical_p", sampling::decimal(*p));
        }
        if min_p.is_some_and(|p| p > 0.0) {
            fit.lossy("min_p", "min_p", "text-generation-inference has none")?;
        }
        if job.request.seed_given {
            put("seed", Json::from(*seed));
            fit.flag("seed");
        }
    } else {
        fit.flag("determinism");
    }
    if *repetition_penalty != 1.0 {
        put("repetition_penalty", sampling::decimal(*repetition_penalty));
    }
    if *frequency_penalty != 0.0 {
        if *frequency_rule == FrequencyRule::Count {
            fit.flag("frequency_penalty");
        }
        put("frequency_penalty", sampling::decimal(*frequency_penalty));
    }
    if *presence_penalty != 0.0 {
        return Err(Ineligible::new(
            "presence_penalty",
            "text-generation-inference has none",
        ));
    }
    if !logit_bias.is_empty() {
        return Err(Ineligible::new(
            "logit_bias",
            "text-generation-inference has none",
        ));
    }
    Ok(())
}
