//! How tokens are chosen, in the words of the OpenAI-like dialects.
//!
//! vLLM and llama.cpp have defaults of their own (the model's `generation_config`, a top-k of 40), so that
//! what the caller left out is switched off by name there.

use serde_json::{Map, Number, Value as Json};

use super::fit::Fit;
use super::{Dialect, Ineligible, Job};
use crate::generation::{FrequencyRule, Sampling, StopRule};

/// The most stop strings that OpenAI's specification and TGI's launcher allow.
const MAX_STOPS: usize = 4;

/// The highest temperature of OpenAI's specification.
const MAX_TEMPERATURE: f32 = 2.0;

/// Why a target is not exact whose default cannot be switched off.
const OWN_DEFAULT: &str = "the target has a default of its own, which it lets nobody switch off";

/// A repetition penalty this near to 1 may be left out where losses are allowed.
const SLIGHT_PENALTY: f32 = 0.05;

/// The number as its shortest decimal: 0.7, not 0.699999988079071.
pub(super) fn decimal(x: f32) -> Json {
    x.to_string()
        .parse()
        .ok()
        .and_then(Number::from_f64)
        .map_or(Json::Null, Json::Number)
}

/// Writes everything that chooses tokens.
///
/// Errors: a rule that the target does not have.
pub(super) fn write(
    job: &Job<'_>,
    body: &mut Map<String, Json>,
    fit: &mut Fit,
) -> Result<(), Ineligible> {
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
    let can = &job.target.capabilities;
    let mut put = |key: &str, value: Json| {
        body.insert(key.to_owned(), value);
    };
    let own_defaults = matches!(job.dialect, Dialect::Vllm | Dialect::LlamaCpp);
    if let Some(seed) = seed {
        if job.dialect == Dialect::OpenAi && *temperature > MAX_TEMPERATURE {
            return Err(Ineligible::new("temperature", "the target takes at most 2"));
        }
        put("temperature", decimal(*temperature));
        match top_p {
            Some(p) => put("top_p", decimal(*p)),
            None if own_defaults => put("top_p", Json::from(1)),
            None => {}
        }
        let off = if job.dialect == Dialect::Vllm { -1 } else { 0 };
        match top_k {
            Some(k) if can.top_k.unwrap_or(own_defaults) => put("top_k", Json::from(k.get())),
            Some(_) => fit.lossy("top_k", "top_k", "the target is not known to honour it")?,
            None if !own_defaults => {}
            None if can.top_k == Some(false) => fit.lossy("top_k", "top_k", OWN_DEFAULT)?,
            None => put("top_k", Json::from(off)),
        }
        match min_p.filter(|&p| p > 0.0) {
            Some(p) if can.min_p.unwrap_or(own_defaults) => put("min_p", decimal(p)),
            Some(_) => fit.lossy("min_p", "min_p", "the target is not known to honour it")?,
            None if !own_defaults => {}
            None if can.min_p == Some(false) => fit.lossy("min_p", "min_p", OWN_DEFAULT)?,
            None => put("min_p", Json::from(0)),
        }
        match typical_p {
            Some(p) if job.dialect == Dialect::LlamaCpp => put("typical_p", decimal(*p)),
            Some(_) => return Err(Ineligible::new("typical_p", "the target has none")),
            None => {}
        }
        if job.request.seed_given {
            let honoured = job.dialect != Dialect::OpenAi || can.seed == Some(true);
            let fits = i64::try_from(*seed).is_ok() || job.dialect == Dialect::Tgi;
            if honoured && fits && can.seed != Some(false) {
                fit.flag("seed");
            } else {
                fit.lossy("seed", "seed", "the target is not known to honour it")?;
            }
            if fits && can.seed != Some(false) {
                put("seed", Json::from(*seed));
            }
        }
    } else {
        put("temperature", Json::from(0));
        fit.flag("determinism");
    }
    let repeats = *repetition_penalty != 1.0;
    let honoured = can.repetition_penalty.unwrap_or(own_defaults);
    match job.dialect {
        Dialect::Vllm | Dialect::LlamaCpp if !honoured && !repeats => {
            fit.lossy("repetition_penalty", "repetition_penalty", OWN_DEFAULT)?;
        }
        Dialect::Vllm if honoured => put("repetition_penalty", decimal(*repetition_penalty)),
        Dialect::LlamaCpp if honoured => {
            put("repeat_penalty", decimal(*repetition_penalty));
            if repeats {
                // It looks back 64 tokens unless told otherwise.
                put("repeat_last_n", Json::from(-1));
            }
        }
        Dialect::OpenAi | Dialect::Tgi if !repeats => {}
        Dialect::OpenAi | Dialect::Tgi if honoured => {
            put("repetition_penalty", decimal(*repetition_penalty));
        }
        _ => {
            let why = "the target is not known to honour it";
            if (repetition_penalty - 1.0).abs() > SLIGHT_PENALTY {
                return Err(Ineligible::new("repetition_penalty", why));
            }
            fit.lossy("repetition_penalty", "repetition_penalty", why)?;
        }
    }
    if *frequency_penalty != 0.0 {
        let rule = match job.dialect {
            Dialect::Tgi => FrequencyRule::Share,
            Dialect::OpenAi | Dialect::Vllm | Dialect::LlamaCpp => FrequencyRule::Count,
        };
        if *frequency_rule != rule {
            fit.flag("frequency_penalty");
        }
        put("frequency_penalty", decimal(*frequency_penalty));
    }
    if *presence_penalty != 0.0 {
        if job.dialect == Dialect::Tgi {
            return Err(Ineligible::new(
                "presence_penalty",
                "text-generation-inference makes a repetition penalty of it",
            ));
        }
        put("presence_penalty", decimal(*presence_penalty));
    }
    if !logit_bias.is_empty() {
        let honoured = own_defaults || can.logit_bias == Some(true);
        if job.dialect == Dialect::Tgi || !honoured || can.logit_bias == Some(false) {
            return Err(Ineligible::new("logit_bias", "the target takes none"));
        }
        if !job.target.same_model {
            return Err(Ineligible::new(
                "logit_bias",
                "ids of tokens mean something else to another tokenizer",
            ));
        }
        let biases = logit_bias
            .iter()
            .map(|(id, bias)| (id.0.to_string(), decimal(*bias)));
        put("logit_bias", Json::Object(biases.collect()));
    }
    Ok(())
}

/// Writes the stop strings, always as an array.
///
/// Errors: more than the target takes.
pub(super) fn stops(
    job: &Job<'_>,
    body: &mut Map<String, Json>,
    fit: &mut Fit,
) -> Result<(), Ineligible> {
    let stop = &job.request.stop;
    if stop.is_empty() {
        return Ok(());
    }
    bounded_stops(job)?;
    body.insert("stop".to_owned(), Json::from(stop.clone()));
    if job.request.stop_rule == StopRule::Keep {
        match job.dialect {
            Dialect::Tgi => {}
            Dialect::Vllm => {
                body.insert("include_stop_str_in_output".to_owned(), Json::Bool(true));
            }
            // The stop string is cut off and nobody says which it was.
            Dialect::OpenAi | Dialect::LlamaCpp => {
                fit.flag("finish_reason");
                fit.flag("stop_text");
            }
        }
    }
    Ok(())
}

pub(super) fn bounded_stops(job: &Job<'_>) -> Result<(), Ineligible> {
    let bounded = matches!(job.dialect, Dialect::OpenAi | Dialect::Tgi);
    if bounded && job.request.stop.len() > MAX_STOPS {
        return Err(Ineligible::new(
            "stop",
            format!("the target takes at most {MAX_STOPS} stop sequences"),
        ));
    }
    Ok(())
}
