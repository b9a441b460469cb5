//! Every row of the translation tables, strict and lenient, and what holds for every request and target.

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::generation::{
    ChatAsk, Conversation, FrequencyRule, Grammar, Message, Sampling, StopRule, TokenDetail,
    TokenId, Tool, ToolCall, ToolChoice,
};
use crate::remote::config::{CancelSettle, Capabilities};

fn target(kind: UpstreamKind, engine: EngineKind) -> TargetFacts {
    TargetFacts {
        name: Arc::from("t"),
        kind,
        engine,
        model: Arc::from("org/m"),
        provider: None,
        chat_path: None,
        capabilities: Capabilities::default(),
        context_length: None,
        same_model: false,
        price: None,
        cancel: CancelSettle::Shown,
    }
}

fn router() -> TargetFacts {
    TargetFacts {
        provider: Some(Arc::from("groq")),
        ..target(UpstreamKind::HfRouter, EngineKind::OpenAi)
    }
}

fn vllm() -> TargetFacts {
    target(UpstreamKind::InferenceEndpoint, EngineKind::Vllm)
}

fn llama() -> TargetFacts {
    target(UpstreamKind::OpenAiCompat, EngineKind::LlamaCpp)
}

fn tgi() -> TargetFacts {
    target(UpstreamKind::Tgi, EngineKind::Tgi)
}

fn able(target: TargetFacts, change: impl FnOnce(&mut Capabilities)) -> TargetFacts {
    let mut target = target;
    change(&mut target.capabilities);
    target
}

fn says(role: &str, content: &str) -> Message {
    Message {
        role: role.to_owned(),
        content: Some(content.to_owned()),
        ..Message::default()
    }
}

fn chat_of(conversation: Conversation) -> Request {
    Request {
        chat: Some(Arc::new(ChatAsk {
            conversation,
            shape: None,
            unsupported: None,
        })),
        stop_rule: StopRule::Drop,
        ..Request::of("local template's text")
    }
}

fn chat() -> Request {
    chat_of(Conversation {
        messages: vec![says("user", "Hi")],
        parallel_tool_calls: true,
        ..Conversation::default()
    })
}

fn sampled() -> Sampling {
    Sampling {
        temperature: 0.7,
        seed: Some(7),
        ..Sampling::GREEDY
    }
}

fn settings(fidelity: Fidelity) -> TranslateSettings {
    TranslateSettings {
        fidelity,
        default_max_tokens: 1024,
        ..TranslateSettings::default()
    }
}

fn strict(target: &TargetFacts, request: &Request) -> Result<Outgoing, Ineligible> {
    outgoing(target, request, &settings(Fidelity::Strict))
}

fn lenient(target: &TargetFacts, request: &Request) -> Result<Outgoing, Ineligible> {
    outgoing(target, request, &settings(Fidelity::Lenient))
}

fn body(outgoing: &Outgoing) -> Json {
    serde_json::from_slice(&outgoing.body).expect("a JSON body")
}

/// What becomes of a request: the names of what is degraded, or the field in the way.
fn fate(translated: &Result<Outgoing, Ineligible>) -> Result<Vec<&'static str>, &'static str> {
    match translated {
        Ok(outgoing) => Ok(outgoing.degraded.clone()),
        Err(ineligible) => Err(ineligible.field),
    }
}

#[test]
fn a_chat_at_the_router_byte_for_byte() {
    let sent = strict(&router(), &chat()).expect("eligible");
    assert_eq!(sent.path, "/v1/chat/completions");
    assert_eq!(
        std::str::from_utf8(&sent.body).expect("text"),
        r#"{"model":"org/m:groq","messages":[{"role":"user","content":"Hi"}],"stream":true,"stream_options":{"include_usage":true},"max_tokens":1024,"temperature":0}"#
    );
    assert_eq!(sent.degraded, ["determinism"]);
    assert_eq!(sent.texts, ["Hi"]);
    assert_eq!(sent.max_output_tokens, 1024);
    assert!(sent.stream && !sent.may_reason);
}

#[test]
fn a_raw_prompt_at_tgi_byte_for_byte() {
    let sent = strict(&tgi(), &Request::of("Once")).expect("eligible");
    assert_eq!(sent.path, "/generate_stream");
    assert_eq!(
        std::str::from_utf8(&sent.body).expect("text"),
        r#"{"inputs":"Once","parameters":{"do_sample":false,"max_new_tokens":1024,"return_full_text":false,"details":true}}"#
    );
    assert_eq!(sent.texts, ["Once"]);
}

#[test]
fn a_conversation_passes_unchanged() {
    let mut called = says("assistant", "");
    called.content = None;
    called.reasoning = Some("hm".to_owned());
    called.tool_calls = vec![ToolCall {
        id: "call_1".to_owned(),
        name: "f".to_owned(),
        arguments: json!({"x": "zwölf"}),
    }];
    let mut answered = says("tool", "12");
    answered.tool_call_id = Some("call_1".to_owned());
    answered.name = Some("f".to_owned());
    let request = chat_of(Conversation {
        messages: vec![says("user", "Hi"), called, answered],
        tools: vec![Tool {
            name: "f".to_owned(),
            description: Some("counts".to_owned()),
            parameters: json!({"type": "object", "properties": {"x": {"type": "string"}}}),
            strict: true,
        }],
        tool_choice: ToolChoice::Named("f".to_owned()),
        parallel_tool_calls: false,
        ..Conversation::default()
    });
    let sent = strict(&vllm(), &request).expect("eligible");
    let body = body(&sent);
    assert_eq!(
        body["messages"],
        json!([
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": null, "reasoning_content": "hm", "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\"x\":\"zwölf\"}"}}]},
            {"role": "tool", "content": "12", "name": "f", "tool_call_id": "call_1"},
        ])
    );
    assert_eq!(
        body["tools"],
        json!([{"type": "function", "function": {"name": "f", "description": "counts",
            "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}, "strict": true}}])
    );
    assert_eq!(
        body["tool_choice"],
        json!({"type": "function", "function": {"name": "f"}})
    );
    assert_eq!(body["parallel_tool_calls"], json!(false));
    for text in ["zwölf", "counts", "12", "hm", "x"] {
        assert!(sent.texts.iter().any(|t| t == text), "{text} is looked at");
    }
    assert_eq!(fate(&strict(&router(), &request)), Err("tools"));
    let tools = able(router(), |c| c.tools = Some(true));
    assert!(strict(&tools, &request).is_ok());
    let none = able(vllm(), |c| c.tools = Some(false));
    assert_eq!(fate(&lenient(&none, &request)), Err("tools"));
}

/// The rows that concern how tokens are chosen: request, target, strict, lenient, fields of the body.
#[test]
fn sampling_row_by_row() {
    let with = |sampling: Sampling| Request { sampling, ..chat() };
    let seeded = Request {
        seed_given: true,
        ..with(sampled())
    };
    let slight = with(Sampling {
        repetition_penalty: 1.03,
        ..sampled()
    });
    let strong = with(Sampling {
        repetition_penalty: 1.3,
        ..sampled()
    });
    let top_k = with(Sampling {
        top_k: NonZeroU32::new(40),
        ..sampled()
    });
    let share = with(Sampling {
        frequency_penalty: 0.5,
        ..sampled()
    });
    let presence = with(Sampling {
        presence_penalty: 0.5,
        ..sampled()
    });
    let typical = with(Sampling {
        typical_p: Some(0.9),
        ..sampled()
    });
    let biased = with(Sampling {
        logit_bias: vec![(TokenId(5), -1.5)],
        ..sampled()
    });
    let hot = with(Sampling {
        temperature: 2.5,
        ..sampled()
    });
    let same = TargetFacts {
        same_model: true,
        ..vllm()
    };
    type Row<'a> = (
        &'a Request,
        TargetFacts,
        Result<&'a [&'static str], &'static str>,
        Result<&'a [&'static str], &'static str>,
        Vec<(&'static str, Json)>,
    );
    let rows: Vec<Row<'_>> = vec![
        (&seeded, router(), Err("seed"), Ok(&["seed"]), vec![]),
        (
            &seeded,
            able(router(), |c| c.seed = Some(true)),
            Ok(&["seed"]),
            Ok(&["seed"]),
            vec![("seed", json!(7))],
        ),
        (
            &seeded,
            able(router(), |c| c.seed = Some(false)),
            Err("seed"),
            Ok(&["seed"]),
            vec![("seed", Json::Null)],
        ),
        (
            &seeded,
            vllm(),
            Ok(&["seed"]),
            Ok(&["seed"]),
            vec![("seed", json!(7)), ("temperature", json!(0.7))],
        ),
        (
            &slight,
            router(),
            Err("repetition_penalty"),
            Ok(&["repetition_penalty"]),
            vec![("repetition_penalty", Json::Null)],
        ),
        (
            &strong,
            router(),
            Err("repetition_penalty"),
            Err("repetition_penalty"),
            vec![],
        ),
        (
            &strong,
            able(router(), |c| c.repetition_penalty = Some(true)),
            Ok(&[]),
            Ok(&[]),
            vec![("repetition_penalty", json!(1.3))],
        ),
        (
            &strong,
            vllm(),
            Ok(&[]),
            Ok(&[]),
            vec![("repetition_penalty", json!(1.3))],
        ),
        (
            &strong,
            llama(),
            Ok(&[]),
            Ok(&[]),
            vec![("repeat_penalty", json!(1.3)), ("repeat_last_n", json!(-1))],
        ),
        (
            &strong,
            tgi(),
            Err("repetition_penalty"),
            Err("repetition_penalty"),
            vec![],
        ),
        (
            &top_k,
            router(),
            Err("top_k"),
            Ok(&["top_k"]),
            vec![("top_k", Json::Null)],
        ),
        (
            &top_k,
            able(router(), |c| c.top_k = Some(true)),
            Ok(&[]),
            Ok(&[]),
            vec![("top_k", json!(40))],
        ),
        (
            &top_k,
            llama(),
            Ok(&[]),
            Ok(&[]),
            vec![
                ("top_k", json!(40)),
                ("min_p", json!(0)),
                ("top_p", json!(1)),
            ],
        ),
        (
            &top_k,
            able(llama(), |c| (c.top_k, c.min_p) = (Some(false), Some(false))),
            Err("top_k"),
            Ok(&["top_k", "min_p"]),
            vec![("top_k", Json::Null), ("min_p", Json::Null)],
        ),
        (
            &strong,
            able(vllm(), |c| c.repetition_penalty = Some(false)),
            Err("repetition_penalty"),
            Err("repetition_penalty"),
            vec![],
        ),
        (
            &share,
            router(),
            Ok(&["frequency_penalty"]),
            Ok(&["frequency_penalty"]),
            vec![("frequency_penalty", json!(0.5))],
        ),
        (
            &share,
            tgi(),
            Ok(&[]),
            Ok(&[]),
            vec![("frequency_penalty", json!(0.5))],
        ),
        (
            &presence,
            router(),
            Ok(&[]),
            Ok(&[]),
            vec![("presence_penalty", json!(0.5))],
        ),
        (
            &presence,
            tgi(),
            Err("presence_penalty"),
            Err("presence_penalty"),
            vec![],
        ),
        (
            &typical,
            router(),
            Err("typical_p"),
            Err("typical_p"),
            vec![],
        ),
        (&typical, vllm(), Err("typical_p"), Err("typical_p"), vec![]),
        (
            &typical,
            llama(),
            Ok(&[]),
            Ok(&[]),
            vec![("typical_p", json!(0.9))],
        ),
        (
            &biased,
            vllm(),
            Err("logit_bias"),
            Err("logit_bias"),
            vec![],
        ),
        (
            &biased,
            same,
            Ok(&[]),
            Ok(&[]),
            vec![("logit_bias", json!({"5": -1.5}))],
        ),
        (&biased, tgi(), Err("logit_bias"), Err("logit_bias"), vec![]),
        (
            &hot,
            router(),
            Err("temperature"),
            Err("temperature"),
            vec![],
        ),
        (
            &hot,
            vllm(),
            Ok(&[]),
            Ok(&[]),
            vec![("temperature", json!(2.5)), ("top_k", json!(-1))],
        ),
    ];
    for (place, (request, target, strictly, leniently, fields)) in rows.into_iter().enumerate() {
        let owned = |fate: Result<&[&'static str], &'static str>| fate.map(<[_]>::to_vec);
        assert_eq!(
            fate(&strict(&target, request)),
            owned(strictly),
            "strict row {place}"
        );
        let sent = lenient(&target, request);
        assert_eq!(fate(&sent), owned(leniently), "lenient row {place}");
        for (key, value) in fields {
            let body = body(sent.as_ref().expect("eligible"));
            assert_eq!(body[key], value, "{key} of row {place}");
        }
    }
}

#[test]
fn tgis_own_route_has_tgis_own_words() {
    let request = Request {
        sampling: Sampling {
            temperature: 0.7,
            top_k: NonZeroU32::new(5),
            top_p: Some(0.9),
            typical_p: Some(0.95),
            repetition_penalty: 1.1,
            frequency_penalty: 0.2,
            seed: Some(u64::MAX),
            ..Sampling::GREEDY
        },
        seed_given: true,
        stop: vec!["a".to_owned()],
        max_new_tokens: NonZeroU32::new(3),
        truncate: NonZeroUsize::new(9),
        detail: TokenDetail::Full,
        top_n_tokens: 2,
        grammar: Some(Grammar::Regex("[a-z]+".to_owned())),
        ..Request::of("<s>Once")
    };
    let same = TargetFacts {
        same_model: true,
        ..tgi()
    };
    let settings = TranslateSettings {
        bos: Some(Arc::from("<s>")),
        ..settings(Fidelity::Strict)
    };
    let sent = outgoing(&same, &request, &settings).expect("eligible");
    assert_eq!(
        body(&sent),
        json!({"inputs": "Once", "parameters": {
            "do_sample": true, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "typical_p": 0.95,
            "seed": u64::MAX, "repetition_penalty": 1.1, "frequency_penalty": 0.2,
            "max_new_tokens": 3, "return_full_text": false, "details": true, "stop": ["a"],
            "truncate": 9, "top_n_tokens": 2, "grammar": {"type": "regex", "value": "[a-z]+"}}})
    );
    assert_eq!(sent.degraded, ["seed"]);
    assert_eq!(fate(&strict(&tgi(), &request)), Err("truncate"));
    let asked = Request {
        prompt_logprobs: true,
        ..Request::of("x")
    };
    let sent = strict(&tgi(), &asked).expect("eligible");
    assert_eq!((&*sent.path, sent.stream), ("/generate", false));
    assert_eq!(
        fate(&lenient(&llama(), &asked)),
        Err("decoder_input_details")
    );
    let sent = strict(&vllm(), &asked).expect("eligible");
    assert_eq!((&*sent.path, sent.stream), ("/v1/completions", false));
    assert_eq!(body(&sent)["prompt_logprobs"], json!(0));
}

#[test]
fn raw_prompts_go_where_they_are_taken() {
    let raw = Request {
        stop_rule: StopRule::Drop,
        ..Request::of("Once")
    };
    for target in [vllm(), llama(), able(router(), |_| {})] {
        let translated = strict(&target, &raw);
        match target.engine {
            EngineKind::OpenAi => assert_eq!(fate(&translated), Err("inputs")),
            _ => {
                let sent = translated.expect("eligible");
                assert_eq!(sent.path, "/v1/completions");
                assert_eq!(body(&sent)["prompt"], json!("Once"));
            }
        }
    }
    let elsewhere = TargetFacts {
        chat_path: Some("/api/v1/chat/completions".to_owned()),
        ..vllm()
    };
    assert_eq!(
        strict(&elsewhere, &raw).expect("eligible").path,
        "/api/v1/completions"
    );
    let proxied = TargetFacts {
        provider: Some(Arc::from("together")),
        chat_path: Some(proxy_path("together", "org/m")),
        ..able(router(), |c| c.raw_prompt = Some(true))
    };
    let sent = strict(&proxied, &raw).expect("eligible");
    assert_eq!(sent.path, "/together/v1/completions");
    assert_eq!(body(&sent)["model"], json!("org/m"));
}

#[test]
fn a_prompt_is_wrapped_only_where_that_is_allowed_and_harmless() {
    let raw = Request::of("Once");
    let wrap = |fidelity, special_text| {
        let known = Known {
            special_text,
            ..Known::default()
        };
        outgoing_known(&router(), &raw, &settings(fidelity), &known)
    };
    assert_eq!(fate(&wrap(Fidelity::Strict, Some(false))), Err("inputs"));
    assert_eq!(fate(&wrap(Fidelity::Lenient, Some(true))), Err("inputs"));
    assert_eq!(fate(&wrap(Fidelity::Lenient, None)), Err("inputs"));
    let sent = wrap(Fidelity::Lenient, Some(false)).expect("eligible");
    assert_eq!(sent.degraded, ["prompt_wrapped", "determinism"]);
    assert_eq!(
        body(&sent)["messages"],
        json!([{"role": "user", "content": "Once"}])
    );
}

#[test]
fn stop_strings_row_by_row() {
    let stops = |n: usize, rule| Request {
        stop: (0..n).map(|i| format!("s{i}")).collect(),
        stop_rule: rule,
        sampling: sampled(),
        ..chat()
    };
    let ends: Vec<&str> = vec!["finish_reason", "stop_text"];
    assert_eq!(
        fate(&strict(&router(), &stops(5, StopRule::Drop))),
        Err("stop")
    );
    assert_eq!(
        fate(&strict(&vllm(), &stops(5, StopRule::Drop))),
        Ok(vec![])
    );
    assert_eq!(
        fate(&strict(&router(), &stops(1, StopRule::Keep))),
        Ok(ends)
    );
    assert_eq!(fate(&strict(&tgi(), &stops(1, StopRule::Keep))), Ok(vec![]));
    let sent = strict(&vllm(), &stops(1, StopRule::Keep)).expect("eligible");
    assert_eq!(body(&sent)["include_stop_str_in_output"], json!(true));
    assert_eq!(body(&sent)["stop"], json!(["s0"]));
}

#[test]
fn what_is_told_of_tokens_row_by_row() {
    let told = |detail, top| Request {
        detail,
        top_n_tokens: top,
        sampling: sampled(),
        ..chat()
    };
    let untold = vec!["token_ids", "logprobs"];
    let framed = told(TokenDetail::Framed, 0);
    assert_eq!(fate(&strict(&router(), &framed)), Ok(untold.clone()));
    assert_eq!(fate(&strict(&vllm(), &framed)), Ok(vec![]));
    let full = told(TokenDetail::Full, 0);
    assert_eq!(fate(&strict(&router(), &full)), Err("details"));
    assert_eq!(fate(&lenient(&router(), &full)), Ok(untold));
    assert_eq!(fate(&strict(&vllm(), &full)), Ok(vec![]));
    let logprobs = told(TokenDetail::Logprobs, 3);
    assert_eq!(fate(&strict(&router(), &logprobs)), Err("logprobs"));
    assert_eq!(fate(&lenient(&router(), &logprobs)), Ok(vec!["logprobs"]));
    let tells = able(router(), |c| c.logprobs = Some(true));
    let sent = strict(&tells, &logprobs).expect("eligible");
    assert_eq!(body(&sent)["top_logprobs"], json!(3));
    let many = told(TokenDetail::Logprobs, 6);
    assert_eq!(fate(&strict(&tells, &many)), Err("top_n_tokens"));
    let sent = lenient(&tells, &many).expect("eligible");
    assert_eq!(body(&sent)["top_logprobs"], json!(5));
    let raw = Request {
        detail: TokenDetail::Full,
        ..Request::of("x")
    };
    let sent = strict(&vllm(), &raw).expect("eligible");
    assert_eq!(body(&sent)["logprobs"], json!(0));
    assert_eq!(body(&sent)["return_token_ids"], json!(true));
}

#[test]
fn shapes_row_by_row() {
    let schema = r#"{"type":"object","properties":{"a":{"type":"string"}}}"#;
    let value: Json = serde_json::from_str(schema).expect("JSON");
    let shaped = |shape: Grammar| {
        let mut request = chat();
        let ask = Arc::make_mut(request.chat.as_mut().expect("a chat"));
        ask.shape = Some(shape);
        request
    };
    let json_schema = shaped(Grammar::JsonSchema(schema.to_owned()));
    assert_eq!(fate(&strict(&router(), &json_schema)), Err("grammar"));
    assert_eq!(
        fate(&lenient(&router(), &json_schema)),
        Ok(vec!["determinism", "grammar"])
    );
    let keeps = able(router(), |c| c.structured_output = Some(true));
    let sent = strict(&keeps, &json_schema).expect("eligible");
    let named = json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": value, "strict": true}});
    assert_eq!(body(&sent)["response_format"], named);
    assert!(sent.texts.iter().any(|t| t == "a"));
    let in_text = shaped(Grammar::TgiSchema(Json::from(schema).to_string()));
    let sent = strict(&vllm(), &in_text).expect("eligible");
    assert_eq!(body(&sent)["response_format"], named);
    let sent = strict(&tgi(), &json_schema).expect("eligible");
    assert_eq!(
        body(&sent)["response_format"],
        json!({"type": "json_object", "value": value})
    );
    let regex = shaped(Grammar::Regex("a+".to_owned()));
    let sent = strict(&vllm(), &regex).expect("eligible");
    assert_eq!(body(&sent)["structured_outputs"], json!({"regex": "a+"}));
    for target in [keeps.clone(), llama()] {
        assert_eq!(fate(&lenient(&target, &regex)), Err("grammar"));
    }
    let lark = shaped(Grammar::Lark("start: \"a\"".to_owned()));
    for target in [keeps, vllm(), llama(), tgi()] {
        assert_eq!(fate(&lenient(&target, &lark)), Err("grammar"));
    }
    let mut both = json_schema.clone();
    let ask = Arc::make_mut(both.chat.as_mut().expect("a chat"));
    ask.conversation.tools = vec![Tool {
        name: "f".to_owned(),
        description: None,
        parameters: json!({}),
        strict: false,
    }];
    assert_eq!(fate(&lenient(&tgi(), &both)), Err("response_format"));
    assert!(strict(&vllm(), &both).is_ok());
    // What a chat's tools ask of the local engine is no shape that the caller asked for.
    let internal = Request {
        grammar: Some(Grammar::Lark("start: \"a\"".to_owned())),
        ..chat()
    };
    assert!(strict(&router(), &internal).is_ok());
    let raw = Request {
        grammar: Some(Grammar::JsonSchema(schema.to_owned())),
        ..Request::of("x")
    };
    assert_eq!(
        body(&strict(&llama(), &raw).expect("eligible"))["json_schema"],
        value
    );
}

#[test]
fn a_last_word_of_the_assistant_is_continued_or_refused() {
    let request = chat_of(Conversation {
        messages: vec![says("user", "Hi"), says("assistant", "Well,")],
        ..Conversation::default()
    });
    assert_eq!(fate(&strict(&router(), &request)), Err("messages"));
    assert_eq!(
        fate(&lenient(&router(), &request)),
        Ok(vec!["determinism", "prefill"])
    );
    let sent = strict(&vllm(), &request).expect("eligible");
    assert_eq!(body(&sent)["continue_final_message"], json!(true));
    assert_eq!(body(&sent)["add_generation_prompt"], json!(false));
    assert!(strict(&llama(), &request).is_ok());
}

#[test]
fn a_template_gets_its_variables_where_it_can() {
    let with = |key: &str, value: Json| {
        chat_of(Conversation {
            messages: vec![says("user", "Hi")],
            template_kwargs: [(key.to_owned(), value)].into_iter().collect(),
            ..Conversation::default()
        })
    };
    let thinking = with("enable_thinking", json!(false));
    assert_eq!(
        fate(&strict(&router(), &thinking)),
        Err("chat_template_kwargs")
    );
    let sent = strict(&vllm(), &thinking).expect("eligible");
    assert_eq!(
        body(&sent)["chat_template_kwargs"],
        json!({"enable_thinking": false})
    );
    let sent = strict(&router(), &with("reasoning_effort", json!("low"))).expect("eligible");
    assert_eq!(body(&sent)["reasoning_effort"], json!("low"));
    let told = Request {
        truncate: NonZeroUsize::new(5),
        ..chat()
    };
    assert_eq!(fate(&lenient(&router(), &told)), Err("truncate"));
}

/// Bodies of five providers, through the router and directly; re-created by us from their documentation.
#[test]
fn providers_through_the_router_and_directly() {
    let schema = json!({"type": "object", "properties": {}});
    let rows = [
        (
            "together",
            "/v1/chat/completions",
            json!({"type": "json_schema", "schema": schema}),
        ),
        (
            "fireworks-ai",
            "/inference/v1/chat/completions",
            json!({"type": "json_object", "schema": schema}),
        ),
        (
            "cohere",
            "/compatibility/v1/chat/completions",
            json!({"type": "json_object", "schema": schema}),
        ),
        (
            "hf-inference",
            "/models/org/m/v1/chat/completions",
            json!({"type": "json_object", "value": schema}),
        ),
        (
            "groq",
            "/openai/v1/chat/completions",
            json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": true}}),
        ),
    ];
    let mut request = chat();
    let ask = Arc::make_mut(request.chat.as_mut().expect("a chat"));
    ask.shape = Some(Grammar::JsonSchema(schema.to_string()));
    for (provider, path, format) in rows {
        let through = |kind, chat_path: Option<String>| {
            let target = TargetFacts {
                provider: Some(Arc::from(provider)),
                chat_path,
                ..able(target(kind, EngineKind::OpenAi), |c| {
                    c.structured_output = Some(true)
                })
            };
            strict(&target, &request).expect("eligible")
        };
        let direct = through(UpstreamKind::OpenAiCompat, None);
        assert_eq!(direct.path, path);
        let direct = body(&direct);
        assert_eq!(
            (&direct["model"], &direct["response_format"]),
            (&json!("org/m"), &format)
        );
        let proxied = through(UpstreamKind::HfRouter, Some(proxy_path(provider, "org/m")));
        assert_eq!(proxied.path, format!("/{provider}{path}"));
        assert_eq!(body(&proxied), direct);
        let root = through(UpstreamKind::HfRouter, None);
        assert_eq!(root.path, "/v1/chat/completions");
        let root = body(&root);
        assert_eq!(root["model"], json!(format!("org/m:{provider}")));
        assert_eq!(root["response_format"]["json_schema"]["schema"], schema);
    }
    let zai = TargetFacts {
        provider: Some(Arc::from("zai-org")),
        ..target(UpstreamKind::OpenAiCompat, EngineKind::OpenAi)
    };
    let sent = strict(&zai, &chat()).expect("eligible");
    assert!(
        sent.headers
            .iter()
            .any(|(name, _)| *name == "x-source-channel")
    );
}

#[test]
fn a_prediction_takes_two_turns_and_waits_a_minute() {
    let replicate = || target(UpstreamKind::Replicate, EngineKind::OpenAi);
    let request = chat_of(Conversation {
        messages: vec![says("system", "Be brief."), says("user", "Hi")],
        ..Conversation::default()
    });
    let sent = strict(&replicate(), &request).expect("eligible");
    assert_eq!(sent.path, "/v1/models/org/m/predictions");
    assert_eq!(
        body(&sent),
        json!({"input": {"prompt": "Hi", "system_prompt": "Be brief.", "max_tokens": 1024, "temperature": 0}})
    );
    assert!(!sent.stream);
    assert!(sent.headers.contains(&("prefer", "wait=60".to_owned())));
    let longer = chat_of(Conversation {
        messages: vec![says("user", "a"), says("assistant", "b"), says("user", "c")],
        ..Conversation::default()
    });
    assert_eq!(fate(&lenient(&replicate(), &longer)), Err("messages"));
    assert_eq!(
        fate(&lenient(&replicate(), &Request::of("x"))),
        Err("inputs")
    );
}

#[test]
fn a_cap_is_sent_whatever_happens_and_leaves_room_for_the_prompt() {
    let small = TargetFacts {
        context_length: Some(100),
        ..router()
    };
    let known = Known {
        input_tokens: Some(40),
        ..Known::default()
    };
    let sent = outgoing_known(&small, &chat(), &settings(Fidelity::Strict), &known);
    let sent = sent.expect("eligible");
    assert_eq!((sent.max_output_tokens, sent.prompt_tokens), (60, 40));
    let silent = able(router(), |c| c.stream_options = Some(false));
    let sent = strict(&silent, &chat()).expect("eligible");
    assert_eq!(body(&sent).get("stream_options"), None);
}

#[test]
fn what_cannot_stream_is_asked_for_whole_answers() {
    for (target, raw, path) in [
        (router(), false, "/v1/chat/completions"),
        (vllm(), false, "/v1/chat/completions"),
        (vllm(), true, "/v1/completions"),
        (tgi(), true, "/generate"),
    ] {
        let target = able(target, |c| c.streaming = Some(false));
        let request = if raw { Request::of("Once") } else { chat() };
        let sent = lenient(&target, &request).expect("eligible");
        assert_eq!((sent.path.as_str(), sent.stream), (path, false));
        let body = body(&sent);
        assert_ne!(body["stream"], true, "{body}");
        assert_eq!(body.get("stream_options"), None, "{body}");
    }
}

#[test]
fn an_estimate_counts_everything_that_is_sent() {
    assert_eq!(estimate_tokens(&Request::of("abcdef")), 3);
    let cut = Request {
        truncate: NonZeroUsize::new(2),
        ..Request::of("abcdef")
    };
    assert_eq!(estimate_tokens(&cut), 2);
    let short = estimate_tokens(&chat());
    let mut longer = chat();
    let ask = Arc::make_mut(longer.chat.as_mut().expect("a chat"));
    ask.conversation.tools = vec![Tool {
        name: "f".to_owned(),
        description: Some("x".repeat(300)),
        parameters: json!({}),
        strict: false,
    }];
    assert!(estimate_tokens(&longer) >= short + 100);
}

fn any_flag() -> impl Strategy<Value = Option<bool>> {
    prop::sample::select(vec![None, Some(false), Some(true)])
}

prop_compose! {
    fn any_target()(
        (kind, engine) in prop::sample::select(vec![
            (UpstreamKind::HfRouter, EngineKind::OpenAi),
            (UpstreamKind::InferenceEndpoint, EngineKind::Tgi),
            (UpstreamKind::InferenceEndpoint, EngineKind::Vllm),
            (UpstreamKind::InferenceEndpoint, EngineKind::LlamaCpp),
            (UpstreamKind::InferenceEndpoint, EngineKind::OpenAi),
            (UpstreamKind::Tgi, EngineKind::Tgi),
            (UpstreamKind::OpenAiCompat, EngineKind::OpenAi),
            (UpstreamKind::OpenAiCompat, EngineKind::Vllm),
            (UpstreamKind::Replicate, EngineKind::OpenAi),
        ]),
        provider in prop::sample::select(vec![None, Some("groq"), Some("hf-inference"), Some("unheard-of")]),
        flags in prop::collection::vec(any_flag(), 13),
        context_length in prop::sample::select(vec![None, Some(1), Some(4096)]),
        same_model in any::<bool>(),
    ) -> TargetFacts {
        TargetFacts {
            provider: provider.map(Arc::from),
            context_length,
            same_model,
            capabilities: Capabilities {
                tools: flags[0],
                structured_output: flags[1],
                logprobs: flags[2],
                top_k: flags[3],
                min_p: flags[4],
                repetition_penalty: flags[5],
                logit_bias: flags[6],
                seed: flags[7],
                regex: flags[8],
                prefill: flags[9],
                stream_options: flags[10],
                raw_prompt: flags[11],
                streaming: flags[12],
            },
            ..target(kind, engine)
        }
    }
}

prop_compose! {
    fn any_sampling()(
        temperature in 0.01_f32..3.0,
        repetition_penalty in prop::sample::select(vec![1.0_f32, 1.04, 1.5]),
        frequency_penalty in prop::sample::select(vec![0.0_f32, 0.3]),
        count in any::<bool>(),
        presence_penalty in prop::sample::select(vec![0.0_f32, 0.3]),
        bias in any::<bool>(),
        top_k in prop::option::weighted(0.3, 1_u32..100),
        top_p in prop::option::weighted(0.3, 0.01_f32..0.99),
        typical_p in prop::option::weighted(0.1, 0.01_f32..0.99),
        min_p in prop::option::weighted(0.2, 0.0_f32..1.0),
        seed in prop::option::of(any::<u64>()),
    ) -> Sampling {
        Sampling {
            temperature,
            repetition_penalty,
            frequency_penalty,
            frequency_rule: if count { FrequencyRule::Count } else { FrequencyRule::Share },
            presence_penalty,
            logit_bias: if bias { vec![(TokenId(1), 2.0)] } else { Vec::new() },
            top_k: top_k.and_then(NonZeroU32::new),
            top_p,
            typical_p,
            min_p,
            seed,
        }
    }
}

fn any_grammar() -> impl Strategy<Value = Option<Grammar>> {
    prop::option::weighted(
        0.3,
        prop_oneof![
            "\\PC{0,12}".prop_map(Grammar::JsonSchema),
            Just(Grammar::TgiSchema("{\"properties\":{}}".to_owned())),
            Just(Grammar::JsonObject),
            "\\PC{0,6}".prop_map(Grammar::Regex),
            "\\PC{0,6}".prop_map(Grammar::Lark),
        ],
    )
}

prop_compose! {
    fn any_conversation()(
        messages in prop::collection::vec(
            (prop::sample::select(vec!["system", "user", "assistant", "tool"]), prop::option::of("\\PC{0,20}"), any::<bool>()),
            0..5,
        ),
        tools in 0_usize..3,
        tool_choice in prop::sample::select(vec![
            ToolChoice::Auto, ToolChoice::None, ToolChoice::Required, ToolChoice::Named("f".to_owned()),
        ]),
        parallel_tool_calls in any::<bool>(),
        told in prop::option::weighted(0.1, "\\PC{1,5}"),
        variables in any::<bool>(),
    ) -> Conversation {
        let message = |(role, content, calls): (&str, Option<String>, bool)| Message {
            role: role.to_owned(),
            content,
            tool_calls: if calls {
                vec![ToolCall { id: "c".to_owned(), name: "f".to_owned(), arguments: json!("no object") }]
            } else {
                Vec::new()
            },
            ..Message::default()
        };
        let tool = Tool { name: "f".to_owned(), description: None, parameters: json!({}), strict: false };
        Conversation {
            messages: messages.into_iter().map(message).collect(),
            tools: vec![tool; tools],
            tool_choice,
            parallel_tool_calls,
            tool_prompt: told,
            template_kwargs: if variables {
                [("k".to_owned(), json!(1))].into_iter().collect()
            } else {
                Map::new()
            },
            ..Conversation::default()
        }
    }
}

prop_compose! {
    fn any_request()(
        prompt in "\\PC{1,40}",
        conversation in prop::option::of((any_conversation(), any_grammar())),
        grammar in any_grammar(),
        sampling in any_sampling(),
        max_new_tokens in prop::option::of(1_u32..5000),
        truncate in prop::option::weighted(0.1, 1_usize..50),
        stop in prop::collection::vec("\\PC{1,4}", 0..6),
        keep in any::<bool>(),
        detail in prop::sample::select(vec![
            TokenDetail::Unseen, TokenDetail::Framed, TokenDetail::Logprobs, TokenDetail::Full,
        ]),
        top_n_tokens in 0_usize..25,
        flags in prop::collection::vec(any::<bool>(), 3),
    ) -> Request {
        Request {
            chat: conversation.map(|(conversation, shape)| {
                Arc::new(ChatAsk { conversation, shape, unsupported: None })
            }),
            grammar,
            sampling,
            max_new_tokens: max_new_tokens.and_then(NonZeroU32::new),
            truncate: truncate.and_then(NonZeroUsize::new),
            stop,
            stop_rule: if keep { StopRule::Keep } else { StopRule::Drop },
            detail,
            top_n_tokens: if flags[0] { top_n_tokens } else { 0 },
            seed_given: flags[1],
            prompt_logprobs: flags[2],
            ..Request::of(prompt)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_request_for_every_target(target in any_target(), request in any_request(), special in any_flag()) {
        let known = Known { special_text: special, ..Known::default() };
        let strictly = outgoing_known(&target, &request, &settings(Fidelity::Strict), &known);
        let leniently = outgoing_known(&target, &request, &settings(Fidelity::Lenient), &known);
        // What is strictly possible is so leniently, and is the same then.
        if let Ok(sent) = &strictly {
            let same = leniently.as_ref().expect("eligible when lenient");
            prop_assert_eq!(&sent.body, &same.body);
            prop_assert_eq!(&sent.degraded, &same.degraded);
        }
        let Ok(sent) = leniently else { return Ok(()) };
        let body = body(&sent);
        let caps = [&body["max_tokens"], &body["parameters"]["max_new_tokens"], &body["input"]["max_tokens"]];
        let cap: Vec<u64> = caps.into_iter().filter_map(Json::as_u64).collect();
        prop_assert_eq!(cap, [u64::from(sent.max_output_tokens)]);
        if let Some(asked) = request.max_new_tokens {
            prop_assert_eq!(asked.get(), sent.max_output_tokens);
        }
        prop_assert!(sent.path.starts_with('/'));
        if body.get("model").is_some() {
            let first = sent.body.starts_with(b"{\"model\":");
            prop_assert!(first, "model stands first");
        }
        // A name stands once, and a seed that was drawn here stays here.
        let mut names = sent.degraded.clone();
        names.sort_unstable();
        names.dedup();
        prop_assert_eq!(names.len(), sent.degraded.len());
        if !request.seed_given || request.sampling.seed.is_none() {
            let seeds = [&body["seed"], &body["parameters"]["seed"], &body["input"]["seed"]];
            prop_assert!(seeds.into_iter().all(Json::is_null));
        }
        // Every text that the caller wrote is looked at before it leaves.
        let messages = request.chat.iter().flat_map(|ask| &ask.conversation.messages);
        for content in messages.filter_map(|message| message.content.as_ref()) {
            prop_assert!(sent.texts.contains(content));
        }
        if request.chat.is_none() {
            prop_assert!(sent.texts.contains(&request.prompt));
        }
    }
}
