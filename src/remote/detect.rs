//! Which engine answers behind an address, found out by asking it what it is. Pure: answers come in.
//!
//! Asked once, and again only when the address is new; `engine = "…"` in the settings leaves only the question
//! for that engine's limits. An endpoint that may sleep is asked only while it is known to run, since any hit
//! would wake it or keep it awake.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::config::{Capabilities, EngineKind, UpstreamConfig, UpstreamKind};

/// What is known of the machine behind an address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Detected {
    /// Its engine; none until that is known.
    pub engine: Option<EngineKind>,
    /// The engine's version, in its own words.
    pub version: Option<String>,
    /// Its only model, where it names one.
    pub model: Option<Arc<str>>,
    /// Tokens of prompt and answer together, whichever the model.
    pub context_length: Option<u32>,
    /// The same by model, where each names its own.
    pub context_by_model: BTreeMap<String, u32>,
    /// Tokens of the prompt alone.
    pub max_input_tokens: Option<u32>,
    /// Stop strings of one request.
    pub max_stop_sequences: Option<u32>,
    /// Answers of which the best is chosen.
    pub max_best_of: Option<u32>,
    /// Requests at once.
    pub max_concurrent_requests: Option<u32>,
}

impl Detected {
    /// Tokens of prompt and answer together that a model there takes.
    pub fn context_length(&self, model: &str) -> Option<u32> {
        self.context_by_model
            .get(model)
            .copied()
            .or(self.context_length)
    }
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Read this path and give the answer to [`Detection::answer`].
    Ask(&'static str),
    /// Nothing more can be learned.
    Done(Detected),
    /// The address gives no sensible answer now: begin anew later.
    Later,
}

/// The questions not yet asked, and what the answers have told so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detection {
    pinned: Option<EngineKind>,
    found: Detected,
    questions: Vec<&'static str>,
    /// Whether an answer came that says what the address is not.
    telling: bool,
}

const INFO: &str = "/info";
const MODELS: &str = "/v1/models";
const PROPS: &str = "/props";

impl Detection {
    /// Of this upstream; none where there is nothing to find out.
    pub fn of(upstream: &UpstreamConfig) -> Option<Self> {
        let pinned = match upstream.kind {
            UpstreamKind::HfRouter | UpstreamKind::Replicate => return None,
            UpstreamKind::Tgi => Some(EngineKind::Tgi),
            UpstreamKind::InferenceEndpoint | UpstreamKind::OpenAiCompat => upstream.engine,
        };
        // The next question stands last.
        let questions = match pinned {
            None => vec![PROPS, MODELS, INFO],
            Some(EngineKind::Tgi) => vec![INFO],
            Some(EngineKind::Vllm) => vec![MODELS],
            Some(EngineKind::LlamaCpp) => vec![PROPS],
            Some(EngineKind::OpenAi) => return None,
        };
        Some(Self {
            pinned,
            found: Detected {
                engine: pinned,
                ..Detected::default()
            },
            questions,
            telling: false,
        })
    }

    /// The next question, or the result.
    pub fn next(&self) -> Step {
        match self.questions.last() {
            Some(path) => Step::Ask(path),
            None if self.found.engine.is_some() => Step::Done(self.found.clone()),
            None if self.telling => Step::Done(Detected {
                engine: Some(EngineKind::OpenAi),
                ..self.found.clone()
            }),
            None => Step::Later,
        }
    }

    /// Takes the answer to the question of [`Detection::next`] and gives the next step.
    ///
    /// A status of 5xx, 408 or 429 says nothing of what the address is; then everything is asked again later.
    pub fn answer(&mut self, status: u16, body: &[u8]) -> Step {
        let Some(path) = self.questions.pop() else {
            return self.next();
        };
        match status {
            200..=299 => {
                let document = serde_json::from_slice::<Value>(body).unwrap_or_default();
                self.telling = true;
                match path {
                    INFO => self.info(&document),
                    MODELS => self.models(&document),
                    _ => self.props(&document),
                }
            }
            // Who isn't let in learns nothing.
            401 | 403 => {}
            408 | 429 | 500.. => return Step::Later,
            _ => self.telling = true,
        }
        self.next()
    }

    fn info(&mut self, document: &Value) {
        let number = |name: &str| number(document.get(name));
        let is_tgi = document.get("model_id").is_some_and(Value::is_string)
            && number("max_total_tokens").is_some()
            && document.get("router").is_some_and(Value::is_string);
        if !is_tgi {
            return;
        }
        self.found = Detected {
            engine: Some(EngineKind::Tgi),
            version: text(document, "version"),
            model: text(document, "model_id").map(Arc::from),
            context_length: number("max_total_tokens"),
            context_by_model: BTreeMap::new(),
            max_input_tokens: number("max_input_tokens").or(number("max_input_length")),
            max_stop_sequences: number("max_stop_sequences"),
            max_best_of: number("max_best_of"),
            max_concurrent_requests: number("max_concurrent_requests"),
        };
        self.questions.clear();
    }

    fn models(&mut self, document: &Value) {
        let list = document.get("data").and_then(Value::as_array);
        let mut engine = None;
        let mut names = Vec::new();
        for entry in list.into_iter().flatten() {
            let owner = entry.get("owned_by").and_then(Value::as_str);
            let longest = number(entry.get("max_model_len"));
            if owner == Some("llamacpp") {
                engine = Some(EngineKind::LlamaCpp);
            } else if owner == Some("vllm") || longest.is_some() {
                engine = Some(EngineKind::Vllm);
            }
            if let Some(id) = text(entry, "id") {
                if let Some(longest) = longest {
                    self.found.context_by_model.insert(id.clone(), longest);
                }
                names.push(id);
            }
        }
        if let ([name], None) = (names.as_slice(), &self.found.model) {
            self.found.model = Some(name.as_str().into());
        }
        self.found.engine = self.pinned.or(engine);
        // Only llama.cpp says elsewhere how long a context it was started with.
        if engine == Some(EngineKind::Vllm) {
            self.questions.clear();
        }
    }

    fn props(&mut self, document: &Value) {
        let defaults = document.get("default_generation_settings");
        let context = number(defaults.and_then(|defaults| defaults.get("n_ctx")));
        let slots = number(document.get("total_slots"));
        if context.is_none() && slots.is_none() {
            return;
        }
        self.found.engine = Some(EngineKind::LlamaCpp);
        self.found.version = text(document, "build_info");
        self.found.context_length = context;
        self.found.max_concurrent_requests = slots;
    }
}

fn number(value: Option<&Value>) -> Option<u32> {
    let number = u32::try_from(value?.as_u64()?).ok()?;
    (number > 0).then_some(number)
}

fn text(entry: &Value, name: &str) -> Option<String> {
    let text = entry.get(name)?.as_str()?;
    (!text.is_empty()).then(|| text.to_owned())
}

/// What an engine can do as it usually is started: what may be switched off there is not known.
///
/// Source: the engines' own request types and READMEs.
pub fn usual(engine: EngineKind) -> Capabilities {
    let (yes, no) = (Some(true), Some(false));
    match engine {
        EngineKind::Tgi => Capabilities {
            tools: yes,
            structured_output: yes,
            logprobs: yes,
            top_k: yes,
            min_p: no,
            repetition_penalty: yes,
            // It wants a list where OpenAI has a map, and refuses the map.
            logit_bias: no,
            seed: yes,
            regex: yes,
            // A chat's last turn is closed there; a prompt given raw is continued.
            prefill: no,
            streaming: yes,
            stream_options: yes,
            raw_prompt: yes,
        },
        EngineKind::Vllm => Capabilities {
            // Needs a parser named at its start.
            tools: None,
            structured_output: yes,
            logprobs: yes,
            top_k: yes,
            min_p: yes,
            repetition_penalty: yes,
            logit_bias: yes,
            seed: yes,
            regex: yes,
            prefill: yes,
            streaming: yes,
            stream_options: yes,
            raw_prompt: yes,
        },
        EngineKind::LlamaCpp => Capabilities {
            // Needs the template engine switched on.
            tools: None,
            structured_output: yes,
            logprobs: yes,
            top_k: yes,
            min_p: yes,
            repetition_penalty: yes,
            logit_bias: yes,
            seed: yes,
            regex: no,
            prefill: yes,
            streaming: yes,
            stream_options: yes,
            raw_prompt: yes,
        },
        EngineKind::OpenAi => Capabilities::default(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::catalog::samples::upstream;
    use super::*;

    /// Runs a detection against the paths that answer; all others answer with `otherwise`.
    fn run(
        kind: UpstreamKind,
        engine: Option<EngineKind>,
        answers: &[(&str, Value)],
        otherwise: u16,
    ) -> (Vec<&'static str>, Step) {
        let mut upstream = upstream("box", kind);
        upstream.engine = engine;
        let mut detection = Detection::of(&upstream).expect("something to find out");
        let mut asked = Vec::new();
        let mut step = detection.next();
        while let Step::Ask(path) = step {
            asked.push(path);
            step = match answers.iter().find(|(p, _)| *p == path) {
                Some((_, body)) => detection.answer(200, body.to_string().as_bytes()),
                None => detection.answer(otherwise, b"{\"detail\":\"Not Found\"}"),
            };
        }
        (asked, step)
    }

    fn done(step: Step) -> Detected {
        match step {
            Step::Done(found) => found,
            other => panic!("a result: {other:?}"),
        }
    }

    fn tgi() -> Value {
        json!({"model_id": "meta/llama", "model_sha": "x", "max_concurrent_requests": 128, "max_best_of": 2,
            "max_stop_sequences": 4, "max_input_tokens": 4095, "max_total_tokens": 8192, "router": "text-generation-router", "version": "3.3.6"})
    }

    fn vllm() -> Value {
        json!({"object": "list", "data": [
            {"id": "meta/llama", "object": "model", "owned_by": "vllm", "root": "meta/llama", "max_model_len": 32768},
            {"id": "adapter", "object": "model", "owned_by": "vllm", "parent": "meta/llama", "max_model_len": null}]})
    }

    fn llama_models() -> Value {
        json!({"models": [{"name": "x.gguf"}], "object": "list",
            "data": [{"id": "x.gguf", "object": "model", "owned_by": "llamacpp", "meta": {"n_ctx_train": 131072}}]})
    }

    fn props() -> Value {
        json!({"default_generation_settings": {"n_ctx": 4096, "params": {}}, "total_slots": 2, "model_path": "/x.gguf", "build_info": "b6000-abc"})
    }

    #[test]
    fn each_engine_is_known_by_its_own_answer() {
        let ie = UpstreamKind::InferenceEndpoint;
        let found = run(ie, None, &[("/info", tgi()), ("/v1/models", vllm())], 404);
        assert_eq!(found.0, ["/info"]);
        let found = done(found.1);
        assert_eq!(found.engine, Some(EngineKind::Tgi));
        assert_eq!(found.version.as_deref(), Some("3.3.6"));
        assert_eq!(found.context_length("any"), Some(8192));
        assert_eq!(
            (found.max_input_tokens, found.max_stop_sequences),
            (Some(4095), Some(4))
        );
        assert_eq!(
            (found.max_best_of, found.max_concurrent_requests),
            (Some(2), Some(128))
        );

        let found = run(ie, None, &[("/v1/models", vllm())], 404);
        assert_eq!(found.0, ["/info", "/v1/models"]);
        let found = done(found.1);
        assert_eq!(found.engine, Some(EngineKind::Vllm));
        assert_eq!(found.context_length("meta/llama"), Some(32768));
        assert_eq!(found.context_length("other"), None);

        let all = [("/v1/models", llama_models()), ("/props", props())];
        let found = run(UpstreamKind::OpenAiCompat, None, &all, 404);
        assert_eq!(found.0, ["/info", "/v1/models", "/props"]);
        let found = done(found.1);
        assert_eq!(found.engine, Some(EngineKind::LlamaCpp));
        assert_eq!(found.context_length("x.gguf"), Some(4096));
        assert_eq!(found.model.as_deref(), Some("x.gguf"));

        let generic = json!({"data": [{"id": "gpt", "owned_by": "openai"}]});
        let found = done(run(ie, None, &[("/v1/models", generic)], 404).1);
        assert_eq!(found.engine, Some(EngineKind::OpenAi));
        assert_eq!(
            done(run(ie, None, &[], 404).1).engine,
            Some(EngineKind::OpenAi)
        );
    }

    #[test]
    fn half_an_answer_is_none() {
        let mut other = tgi();
        other["router"] = Value::Null;
        let ie = UpstreamKind::InferenceEndpoint;
        let found = done(run(ie, None, &[("/info", other)], 404).1);
        assert_eq!(found.engine, Some(EngineKind::OpenAi));
        let found = done(
            run(
                ie,
                None,
                &[("/info", json!("ok")), ("/props", json!([]))],
                404,
            )
            .1,
        );
        assert_eq!(found.engine, Some(EngineKind::OpenAi));
    }

    #[test]
    fn an_address_that_is_loading_or_closed_is_asked_again_later() {
        let ie = UpstreamKind::InferenceEndpoint;
        assert_eq!(run(ie, None, &[], 503), (vec!["/info"], Step::Later));
        assert_eq!(run(ie, None, &[], 429).1, Step::Later);
        assert_eq!(run(ie, None, &[], 401).1, Step::Later);
    }

    #[test]
    fn an_engine_that_is_named_is_only_asked_for_its_limits() {
        let ie = UpstreamKind::InferenceEndpoint;
        let found = run(ie, Some(EngineKind::Vllm), &[("/v1/models", vllm())], 404);
        assert_eq!(found.0, ["/v1/models"]);
        assert_eq!(done(found.1).context_length("meta/llama"), Some(32768));
        let found = done(run(UpstreamKind::Tgi, None, &[], 404).1);
        assert_eq!(
            (found.engine, found.context_length),
            (Some(EngineKind::Tgi), None)
        );
        for kind in [UpstreamKind::HfRouter, UpstreamKind::Replicate] {
            assert_eq!(Detection::of(&upstream("x", kind)), None);
        }
    }

    proptest! {
        #[test]
        fn it_always_ends_within_three_questions(
            answers in prop::collection::vec((100_u16..600, prop::collection::vec(any::<u8>(), 0..40)), 3),
        ) {
            let upstream = upstream("box", UpstreamKind::InferenceEndpoint);
            let mut detection = Detection::of(&upstream).expect("something to find out");
            for (status, body) in answers {
                detection.answer(status, &body);
            }
            prop_assert!(!matches!(detection.next(), Step::Ask(_)));
        }
    }
}
