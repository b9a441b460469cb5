//! The questions of a probing: a handful of tiny requests with texts of our own, and what they cost at worst.

use std::fmt;

use serde_json::{Value, json};

use crate::remote::{EngineKind, Price, TargetFacts, UpstreamKind};

/// What probing one target may cost at worst: a cent, in nano-USD.
pub(super) const MOST_NUSD: u64 = 10_000_000;

/// Bytes of our plain English and JSON for each token: fewer than any tokenizer in use makes a token of, so that
/// the number of tokens is never too low.
const BYTES_A_TOKEN: usize = 2;

/// Tokens that a chat template or a raw route's preamble may add.
const TEMPLATE_TOKENS: u32 = 64;

/// One question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Ask {
    /// Whether the target answers at all.
    Plain,
    /// Whether `stream_options` is accepted, and where usage stands.
    Stream,
    /// Whether log-probabilities come back.
    Logprobs,
    /// Whether a JSON Schema is kept to that the prompt says nothing of.
    JsonSchema,
    /// Whether a tool is called when one must be.
    Tools,
    /// A text drawn freely with one seed.
    Free,
    /// The same with another seed.
    FreeOther,
    /// The first once more.
    FreeAgain,
    /// Drawn from the likeliest token alone, which leaves nothing to chance.
    TopK,
    /// The same with another seed.
    TopKOther,
    /// Drawn from tokens as likely as the likeliest alone.
    MinP,
    /// The same with another seed.
    MinPOther,
    /// Whether an assistant's last message is continued.
    Prefill,
    /// Whether there is a route for raw prompts.
    Raw,
    /// A prompt long enough to be cached.
    Long,
    /// The same once more.
    LongAgain,
}

/// One request.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Probe {
    /// What it asks.
    pub ask: Ask,
    /// The path it goes to.
    pub path: String,
    /// Its body.
    pub body: Value,
    /// Tokens that it may read at most.
    pub input_tokens: u32,
    /// Tokens that it may write at most.
    pub output_tokens: u32,
    /// What it costs at worst, in nano-USD.
    pub worst_cost_nusd: u64,
}

/// Every request to one target, in order.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plan {
    /// The requests.
    pub probes: Vec<Probe>,
    /// What they cost at worst, in nano-USD.
    pub worst_cost_nusd: u64,
}

/// Why a target isn't probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NoPlan {
    /// It has no chat API.
    NoChat,
    /// Nobody knows what its tokens cost.
    PriceUnknown,
    /// Even the shortest probing costs more than [`MOST_NUSD`].
    TooDear(u64),
}

impl fmt::Display for NoPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoChat => f.write_str("it has no chat API that could be probed"),
            Self::PriceUnknown => {
                f.write_str("its price is not known; give it in the target's `price`")
            }
            Self::TooDear(nusd) => write!(
                f,
                "probing it could cost {} USD, and a cent is the most",
                usd(*nusd)
            ),
        }
    }
}

/// Plans the probing of a target. The long prompts are left out where they would cost more than a cent.
///
/// Errors: why it isn't probed.
pub(super) fn plan(target: &TargetFacts) -> Result<Plan, NoPlan> {
    if target.kind == UpstreamKind::Replicate {
        return Err(NoPlan::NoChat);
    }
    let price = target.price.ok_or(NoPlan::PriceUnknown)?;
    let whole = of(questions(target), &price);
    if whole.worst_cost_nusd < MOST_NUSD {
        return Ok(whole);
    }
    let mut short = questions(target);
    short.retain(|(ask, ..)| !matches!(ask, Ask::Long | Ask::LongAgain));
    let short = of(short, &price);
    match short.worst_cost_nusd < MOST_NUSD {
        true => Ok(short),
        false => Err(NoPlan::TooDear(short.worst_cost_nusd)),
    }
}

fn of(questions: Vec<(Ask, String, Value, u32)>, price: &Price) -> Plan {
    let probes: Vec<_> = questions
        .into_iter()
        .map(|(ask, path, body, output_tokens)| {
            let bytes = body.to_string().len().div_ceil(BYTES_A_TOKEN);
            let read = u32::try_from(bytes).unwrap_or(u32::MAX);
            let input_tokens = read.saturating_add(TEMPLATE_TOKENS);
            let (input, output) = (u64::from(input_tokens), u64::from(output_tokens));
            Probe {
                ask,
                path,
                body,
                input_tokens,
                output_tokens,
                worst_cost_nusd: price.cost_nusd(input, 0, output),
            }
        })
        .collect();
    Plan {
        worst_cost_nusd: probes.iter().map(|p| p.worst_cost_nusd).sum(),
        probes,
    }
}

/// The model's name as a request spells it: at a router with who shall run it.
pub(super) fn model_name(target: &TargetFacts) -> String {
    match (&target.provider, target.kind) {
        (Some(suffix), UpstreamKind::HfRouter) => format!("{}:{suffix}", target.model),
        _ => target.model.to_string(),
    }
}

fn questions(target: &TargetFacts) -> Vec<(Ask, String, Value, u32)> {
    let model = model_name(target);
    let path = target
        .chat_path
        .clone()
        .unwrap_or_else(|| "/v1/chat/completions".to_owned());
    let mut all = Vec::new();
    let mut chat = |ask: Ask, text: &str, most: u32, more: Value| {
        let mut body = json!({
            "model": model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": most,
            "stream": false,
        });
        if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
            body.extend(more);
        }
        all.push((ask, path.clone(), body, most));
    };
    let ok = "Reply with the word ok.";
    chat(Ask::Plain, ok, 16, json!({}));
    chat(
        Ask::Stream,
        ok,
        16,
        json!({"stream": true, "stream_options": {"include_usage": true}}),
    );
    chat(
        Ask::Logprobs,
        ok,
        16,
        json!({"logprobs": true, "top_logprobs": 2}),
    );
    let schema = json!({
        "type": "object",
        "properties": {"zq_number": {"type": "integer", "enum": [4177]}},
        "required": ["zq_number"],
        "additionalProperties": false,
    });
    chat(
        Ask::JsonSchema,
        "Say hello.",
        48,
        json!({"response_format": {
            "type": "json_schema",
            "json_schema": {"name": "probe", "strict": true, "schema": schema},
        }}),
    );
    chat(
        Ask::Tools,
        "Record the colour green.",
        64,
        json!({"tool_choice": "required", "tools": [{"type": "function", "function": {
            "name": "record_colour",
            "description": "Records a colour",
            "parameters": {"type": "object", "properties": {"colour": {"type": "string"}}, "required": ["colour"]},
        }}]}),
    );
    let letters = "Write eight random letters, and nothing else.";
    let mut drawn = |ask: Ask, seed: u32, more: Value| {
        let mut body = json!({"temperature": 1.5, "seed": seed});
        if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
            body.extend(more);
        }
        chat(ask, letters, 16, body);
    };
    drawn(Ask::Free, 11, json!({}));
    drawn(Ask::FreeOther, 12, json!({}));
    drawn(Ask::FreeAgain, 11, json!({}));
    drawn(Ask::TopK, 11, json!({"top_k": 1}));
    drawn(Ask::TopKOther, 12, json!({"top_k": 1}));
    drawn(Ask::MinP, 11, json!({"min_p": 1.0}));
    drawn(Ask::MinPOther, 12, json!({"min_p": 1.0}));
    let mut begun = json!({"temperature": 0, "messages": [
        {"role": "user", "content": "Write the first ten prime numbers, separated by commas, and nothing else."},
        {"role": "assistant", "content": "2, 3, 5, 7, 1"},
    ]});
    if target.engine == EngineKind::Vllm {
        begun["continue_final_message"] = true.into();
        begun["add_generation_prompt"] = false.into();
    }
    chat(Ask::Prefill, "", 16, begun);
    let long = "The quick brown fox jumps over the lazy dog. ".repeat(130);
    chat(Ask::Long, &long, 1, json!({}));
    chat(Ask::LongAgain, &long, 1, json!({}));
    let raw = match target.kind {
        UpstreamKind::Tgi => (
            "/generate".to_owned(),
            json!({"inputs": "One, two, three,", "parameters": {"max_new_tokens": 4}}),
        ),
        _ => (
            "/v1/completions".to_owned(),
            json!({"model": model, "prompt": "One, two, three,", "max_tokens": 4}),
        ),
    };
    all.push((Ask::Raw, raw.0, raw.1, 4));
    all
}

/// Nano-USD as USD, rounded up to a ten-thousandth, so that nothing that costs reads as nothing.
pub(super) fn usd(nusd: u64) -> String {
    let parts = nusd.div_ceil(100_000);
    format!("{}.{:04}", parts / 10_000, parts % 10_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::{CancelSettle, Capabilities};

    fn target(price: Option<u64>) -> TargetFacts {
        TargetFacts {
            name: "t".into(),
            kind: UpstreamKind::HfRouter,
            engine: EngineKind::OpenAi,
            model: "meta/llama".into(),
            provider: Some("together".into()),
            chat_path: None,
            capabilities: Capabilities::default(),
            context_length: None,
            same_model: false,
            price: price.map(|pusd| Price {
                input_pusd: pusd,
                cached_pusd: None,
                output_pusd: pusd,
            }),
            cancel: CancelSettle::Shown,
        }
    }

    #[test]
    fn a_probing_stays_below_a_cent_or_does_not_happen() {
        let cheap = plan(&target(Some(500_000))).expect("a plan");
        assert_eq!(cheap.probes.len(), 16);
        assert!(cheap.worst_cost_nusd < MOST_NUSD);
        let dear = plan(&target(Some(3_000_000))).expect("a plan");
        assert_eq!(dear.probes.len(), 14);
        assert!(dear.worst_cost_nusd < MOST_NUSD);
        assert!(matches!(
            plan(&target(Some(90_000_000))),
            Err(NoPlan::TooDear(_))
        ));
        assert_eq!(plan(&target(None)), Err(NoPlan::PriceUnknown));
        let replicate = TargetFacts {
            kind: UpstreamKind::Replicate,
            ..target(Some(1))
        };
        assert_eq!(plan(&replicate), Err(NoPlan::NoChat));
    }

    #[test]
    fn every_body_names_the_model_first_and_bounds_what_is_written() {
        for probe in plan(&target(Some(1))).expect("a plan").probes {
            let body = probe.body.as_object().expect("an object");
            let first = body.iter().next().expect("a field");
            assert_eq!(
                (first.0.as_str(), first.1),
                ("model", &json!("meta/llama:together"))
            );
            assert_eq!(body["max_tokens"], json!(probe.output_tokens));
        }
    }

    #[test]
    fn each_dialect_is_asked_in_its_own_words() {
        let own = |kind, engine| {
            let target = TargetFacts {
                kind,
                engine,
                ..target(Some(0))
            };
            let mut probes = plan(&target).expect("a plan").probes;
            probes.retain(|p| matches!(p.ask, Ask::Prefill | Ask::Raw));
            (probes.remove(0), probes.remove(0))
        };
        let (prefill, raw) = own(UpstreamKind::Tgi, EngineKind::Tgi);
        assert_eq!(raw.path, "/generate");
        assert_eq!(prefill.body["continue_final_message"], Value::Null);
        let (prefill, raw) = own(UpstreamKind::OpenAiCompat, EngineKind::Vllm);
        assert_eq!(raw.path, "/v1/completions");
        assert_eq!(prefill.body["model"], "meta/llama");
        assert_eq!(prefill.body["continue_final_message"], true);
        assert_eq!(prefill.body["messages"].as_array().map(Vec::len), Some(2));
    }

    #[test]
    fn money_is_never_rounded_down() {
        assert_eq!(usd(1), "0.0001");
        assert_eq!(usd(9_999_999), "0.0100");
        assert_eq!(usd(0), "0.0000");
    }
}
