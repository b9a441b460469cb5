//! Answers in each dialect as an attempt reads them. The streams are re-created by us from documentation and
//! the servers' sources; none is a recording.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::generation::{Usage, UsageSource};
use crate::remote::config::UpstreamKind;

fn reader(format: Format) -> Reader {
    Reader {
        format,
        stream: true,
        stops: Vec::new(),
        keeps_stop: false,
        shows_stop: false,
        plain: format != Format::Chat,
        tokens: false,
        prompt_tokens: 21,
        max_tokens: 64,
    }
}

/// Everything an answer says, put together.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    text: String,
    content: String,
    reasoning: String,
    calls: Vec<(String, String)>,
    tokens: Vec<TokenInfo>,
    finish: Option<Finish>,
}

fn read_with(incoming: &mut Incoming, events: &[&str]) -> Result<Answer, Fault> {
    let mut read = Vec::new();
    for event in events {
        read.extend(incoming.event(event)?);
    }
    read.extend(incoming.end()?);
    Ok(gather(read))
}

fn gather(events: Vec<Event>) -> Answer {
    let mut answer = Answer::default();
    let mut events = events.into_iter();
    let first = events.next();
    assert!(matches!(first, Some(Event::Started(_))), "{first:?}");
    for event in events {
        let Event::Token(event) = event else {
            panic!("a second start");
        };
        assert_eq!(answer.finish, None, "a token behind the finish");
        answer.text += &event.text;
        for piece in event.pieces.expect("pieces, told apart") {
            match piece {
                ChatPiece::Content(text) => answer.content += &text,
                ChatPiece::Reasoning(text) => answer.reasoning += &text,
                ChatPiece::CallStart { index, name, .. } => {
                    assert_eq!(index, answer.calls.len());
                    answer.calls.push((name, String::new()));
                }
                ChatPiece::Arguments { index, text } => answer.calls[index].1 += &text,
            }
        }
        answer.tokens.push(event.token);
        answer.finish = event.finish;
    }
    let finish = answer.finish.as_ref().expect("a finish");
    assert_eq!(answer.text, answer.content);
    assert_eq!(answer.text, finish.generated_text);
    answer
}

fn read(reader: Reader, events: &[&str]) -> Result<Answer, Fault> {
    read_with(&mut Incoming::new(reader), events)
}

fn finish_of(answer: &Answer) -> &Finish {
    answer.finish.as_ref().expect("a finish")
}

#[test]
fn a_plain_chat() {
    let mut incoming = Incoming::new(reader(Format::Chat));
    let answer = read_with(
        &mut incoming,
        &[
            r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":"Hello, wide"},"finish_reason":null}],"usage":null}"#,
            r#"{"choices":[{"index":0,"delta":{"content":null},"finish_reason":null}]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":" world"},"finish_reason":null}]}"#,
            r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13}}"#,
            "[DONE]",
        ],
    )
    .expect("an answer");
    assert_eq!(answer.text, "Hello, wide world");
    let finish = finish_of(&answer);
    assert_eq!(finish.reason, FinishReason::EosToken);
    assert_eq!(finish.usage, Usage::counted(9, 4));
    assert_eq!(finish.seed, None);
    assert!(
        answer
            .tokens
            .iter()
            .all(|t| t.id.is_none() && t.logprob.is_none())
    );
    assert!(incoming.is_done());
    assert!(incoming.late_degraded().is_empty());
    assert_eq!(
        incoming.event("{").expect("nothing counts behind the end"),
        []
    );
}

#[test]
fn reasoning_is_passed_on_in_a_chat_and_dropped_from_plain_text() {
    let events = [
        r#"{"choices":[{"delta":{"reasoning":"thin","reasoning_content":"thin"}}]}"#,
        r#"{"choices":[{"delta":{"reasoning_content":"king"}}]}"#,
        r#"{"choices":[{"delta":{"content":"42"},"finish_reason":"length"}]}"#,
        r#"{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":9,"completion_tokens_details":{"reasoning_tokens":8}}}"#,
    ];
    let answer = read(reader(Format::Chat), &events).expect("an answer");
    assert_eq!((&*answer.reasoning, &*answer.text), ("thinking", "42"));
    assert_eq!(finish_of(&answer).reason, FinishReason::Length);
    assert_eq!(finish_of(&answer).usage.reasoning_tokens, 8);
    let plain = Reader {
        plain: true,
        ..reader(Format::Chat)
    };
    let mut incoming = Incoming::new(plain);
    let answer = read_with(&mut incoming, &events).expect("an answer");
    assert_eq!((&*answer.reasoning, &*answer.text), ("", "42"));
    assert_eq!(finish_of(&answer).usage.output_tokens, 9);
    assert_eq!(incoming.late_degraded(), ["reasoning_dropped"]);
}

#[test]
fn calls_in_pieces_and_whole() {
    let answer = read(
        reader(Format::Chat),
        &[
            r#"{"choices":[{"delta":{"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"call_a","type":"function","function":{"name":"weather","arguments":""}}]}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"city\":\"Pa"}}]}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"ris\"}"}}]}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"index":1,"id":"call_b","type":"function","function":{"name":"time","arguments":"{}"}}]},"finish_reason":"tool_calls"}]}"#,
            "[DONE]",
        ],
    )
    .expect("an answer");
    let call = |name: &str, arguments: &str| (name.to_owned(), arguments.to_owned());
    assert_eq!(
        answer.calls,
        [call("weather", r#"{"city":"Paris"}"#), call("time", "{}")]
    );
    assert_eq!(finish_of(&answer).reason, FinishReason::EosToken);
    assert_eq!(finish_of(&answer).usage.source, UsageSource::Estimated);
}

#[test]
fn a_finished_call_has_arguments_that_are_json() {
    let begun = r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"a","function":{"name":"f","arguments":"{\"x\": "}}]}}]}"#;
    let ended = |reason: &str| {
        format!(
            r#"{{"choices":[{{"delta":{{}},"finish_reason":"{reason}"}}],"usage":{{"prompt_tokens":5,"completion_tokens":6}}}}"#
        )
    };
    let events = |reason: &str| {
        let end = ended(reason);
        read(reader(Format::Chat), &[begun, &end, "[DONE]"])
    };
    let fault = events("tool_calls").expect_err("half an object");
    assert_eq!(fault.class, Class::SchemaViolation);
    let usage = fault.usage.expect("it is billed");
    assert_eq!((usage.input_tokens, usage.output_tokens), (5, 6));
    assert!(events("length").is_ok(), "it was cut short");
}

#[test]
fn plain_text_has_no_calls() {
    let plain = Reader {
        plain: true,
        ..reader(Format::Chat)
    };
    let events = [
        r#"{"choices":[{"delta":{"content":"a","tool_calls":[{"index":0,"id":"x","function":{"name":"f"}}]}}]}"#,
        r#"{"choices":[{"delta":{},"finish_reason":"tool_calls"}]}"#,
    ];
    let answer = read(plain, &events).expect("an answer");
    assert_eq!((&*answer.text, answer.calls.len()), ("a", 0));
}

#[test]
fn tgi_ends_after_a_call_without_saying_so() {
    let tgi = Reader {
        shows_stop: true,
        ..reader(Format::Chat)
    };
    let events = [
        r#"{"choices":[{"index":0,"delta":{"role":"assistant","tool_calls":[{"index":0,"id":"0","type":"function","function":{"name":"now","arguments":"{"}}]},"logprobs":null,"finish_reason":null}]}"#,
        r#"{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":6,"total_tokens":11}}"#,
        "[DONE]",
    ];
    let answer = read(tgi.clone(), &events).expect("an answer");
    assert_eq!(answer.calls, [("now".to_owned(), "{}".to_owned())]);
    let elsewhere = read(reader(Format::Chat), &events).expect_err("no finish");
    assert_eq!(elsewhere.class, Class::ServerError);
    let cut_off = read(tgi, &events[..2]).expect_err("no end either");
    assert_eq!(cut_off.class, Class::ServerError);
}

#[test]
fn tgi_shows_stop_strings_that_openai_routes_leave_out() {
    let tgi = Reader {
        stops: vec!["END".to_owned()],
        shows_stop: true,
        ..reader(Format::Chat)
    };
    let events = [
        r#"{"choices":[{"delta":{"role":"assistant","content":"one E"}}]}"#,
        r#"{"choices":[{"delta":{"role":"assistant","content":"N"}}]}"#,
        r#"{"choices":[{"delta":{"role":"assistant","content":"D"},"finish_reason":"stop_sequence"}]}"#,
        "[DONE]",
    ];
    let answer = read(tgi.clone(), &events).expect("an answer");
    assert_eq!(answer.text, "one ");
    let finish = finish_of(&answer);
    assert_eq!(finish.reason, FinishReason::StopSequence);
    assert_eq!(finish.stop_sequence.as_deref(), Some("END"));
    let keeps = Reader {
        keeps_stop: true,
        ..tgi
    };
    assert_eq!(read(keeps, &events).expect("an answer").text, "one END");
}

#[test]
fn a_stop_string_that_the_engine_names_is_put_back() {
    let kept = |stops: &[&str]| Reader {
        stops: stops.iter().map(|&s| s.to_owned()).collect(),
        keeps_stop: true,
        ..reader(Format::Completions)
    };
    let named = [
        r#"{"choices":[{"index":0,"text":"a b","finish_reason":null}]}"#,
        r#"{"choices":[{"index":0,"text":"","finish_reason":"stop","stop_reason":"\n\n"}]}"#,
        "[DONE]",
    ];
    let answer = read(kept(&["\n\n", "##"]), &named).expect("an answer");
    assert_eq!(answer.text, "a b\n\n");
    assert_eq!(finish_of(&answer).reason, FinishReason::StopSequence);
    let shown = [
        r#"{"choices":[{"index":0,"text":"a b\n\n","finish_reason":"stop","stop_reason":"\n\n"}]}"#,
        "[DONE]",
    ];
    assert_eq!(
        read(kept(&["\n\n"]), &shown).expect("an answer").text,
        "a b\n\n"
    );
    let own_end = [
        r#"{"choices":[{"index":0,"text":"a b","finish_reason":"stop","stop_reason":151645}]}"#,
        "[DONE]",
    ];
    let answer = read(kept(&["\n\n"]), &own_end).expect("an answer");
    assert_eq!(answer.text, "a b");
    assert_eq!(finish_of(&answer).reason, FinishReason::EosToken);
    assert_eq!(finish_of(&answer).stop_sequence, None);
}

#[test]
fn tgi_tells_tokens_and_ends_with_details() {
    let mut incoming = Incoming::new(Reader {
        keeps_stop: true,
        shows_stop: true,
        tokens: true,
        ..reader(Format::Generate)
    });
    let answer = read_with(
        &mut incoming,
        &[
            r#"{"index":1,"token":{"id":264,"text":" a","logprob":-0.25,"special":false},"top_tokens":[{"id":264,"text":" a","logprob":-0.25,"special":false}],"generated_text":null,"details":null}"#,
            r#"{"index":2,"token":{"id":2,"text":"</s>","logprob":-0.5,"special":true},"generated_text":" a","details":{"finish_reason":"eos_token","generated_tokens":2,"seed":18446744073709551615,"input_length":3}}"#,
        ],
    )
    .expect("an answer");
    assert_eq!(answer.text, " a");
    let ids: Vec<_> = answer.tokens.iter().map(|t| t.id.map(|id| id.0)).collect();
    assert_eq!(ids, [Some(264), Some(2)]);
    let finish = finish_of(&answer);
    assert_eq!(finish.usage, Usage::counted(3, 2));
    assert_eq!(finish.seed, Some(u64::MAX));
    assert!(incoming.is_done());
}

#[test]
fn tgi_tells_the_prompt_where_it_does_not_stream() {
    let mut incoming = Incoming::new(Reader {
        stream: false,
        tokens: true,
        ..reader(Format::Generate)
    });
    let events = incoming
        .whole(
            br#"{"generated_text":"b","details":{"finish_reason":"length","generated_tokens":1,"seed":null,
            "prefill":[{"id":1,"text":"<s>","logprob":null},{"id":5,"text":"a","logprob":-2.5}],
            "tokens":[{"id":6,"text":"b","logprob":-0.5,"special":false}]}}"#,
        )
        .expect("an answer");
    let Event::Started(started) = &events[0] else {
        panic!("no start");
    };
    assert_eq!(started.prompt.len(), 2);
    assert_eq!(started.prompt[1].logprob, Some(-2.5));
    let answer = gather(events);
    assert_eq!(finish_of(&answer).usage, Usage::counted(2, 1));
}

#[test]
fn vllm_tells_ids_and_log_probabilities() {
    let asked = Reader {
        tokens: true,
        ..reader(Format::Completions)
    };
    let answer = read(
        asked,
        &[
            r#"{"choices":[{"index":0,"text":"é","token_ids":[7,8],"logprobs":{"tokens":["","é"],"token_logprobs":[-0.5,-0.25],"top_logprobs":[null,{"é":-0.25,"e":-2.0}]},"finish_reason":null}]}"#,
            r#"{"choices":[{"index":0,"text":"","token_ids":[9],"logprobs":{"tokens":[""],"token_logprobs":[-0.125],"top_logprobs":[null]},"finish_reason":"stop","stop_reason":null}]}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":2,"completion_tokens":3}}"#,
            "[DONE]",
        ],
    )
    .expect("an answer");
    let told: Vec<_> = answer
        .tokens
        .iter()
        .map(|t| (t.id.map(|id| id.0), t.logprob))
        .collect();
    assert_eq!(
        told,
        [
            (Some(7), Some(-0.5)),
            (Some(8), Some(-0.25)),
            (Some(9), Some(-0.125))
        ]
    );
}

#[test]
fn vllm_tells_the_prompt_where_it_does_not_stream() {
    let mut incoming = Incoming::new(Reader {
        stream: false,
        ..reader(Format::Completions)
    });
    let events = incoming
        .whole(
            br#"{"choices":[{"index":0,"text":"c","finish_reason":"length","prompt_token_ids":[1,5],
            "prompt_logprobs":[null,{"5":{"logprob":-1.5,"rank":1,"decoded_token":"a"}}]}],
            "usage":{"prompt_tokens":2,"completion_tokens":1}}"#,
        )
        .expect("an answer");
    let Event::Started(started) = &events[0] else {
        panic!("no start");
    };
    let ids: Vec<u32> = started.prompt.iter().map(|token| token.id.0).collect();
    assert_eq!(ids, [1, 5]);
    assert_eq!(started.prompt[1].text, "a");
}

#[test]
fn groq_and_llama_put_their_usage_elsewhere() {
    let groq = [
        r#"{"choices":[{"delta":{"content":"x"},"finish_reason":null}],"x_groq":{"id":"req_1"}}"#,
        r#"{"choices":[{"delta":{},"finish_reason":"stop"}],"x_groq":{"id":"req_1","usage":{"prompt_tokens":4,"completion_tokens":1}}}"#,
        "[DONE]",
    ];
    let answer = read(reader(Format::Chat), &groq).expect("an answer");
    assert_eq!(finish_of(&answer).usage, Usage::counted(4, 1));
    let llama = [
        r#"{"choices":[{"delta":{"content":"x"},"finish_reason":null}]}"#,
        r#"{"choices":[{"delta":{},"finish_reason":"stop"}],"timings":{"prompt_n":4,"predicted_n":1}}"#,
    ];
    let answer = read(reader(Format::Chat), &llama).expect("an end without [DONE]");
    assert_eq!(finish_of(&answer).usage, Usage::counted(4, 1));
}

#[test]
fn a_prediction_is_read_in_one_piece() {
    let awaited = || {
        Incoming::new(Reader {
            stream: false,
            ..reader(Format::Prediction)
        })
    };
    let over = json!({"id": "p", "status": "succeeded", "error": null, "output": ["Hel", "lo"],
        "metrics": {"input_token_count": 3, "output_token_count": 2}});
    let events = awaited()
        .whole(over.to_string().as_bytes())
        .expect("an answer");
    let answer = gather(events);
    assert_eq!(answer.text, "Hello");
    assert_eq!(finish_of(&answer).usage, Usage::counted(3, 2));
    for (status, class) in [
        ("processing", Class::Timeout),
        ("canceled", Class::Timeout),
        ("failed", Class::ServerError),
    ] {
        let body = json!({"id": "p", "status": status, "output": null});
        let fault = awaited()
            .whole(body.to_string().as_bytes())
            .expect_err(status);
        assert_eq!(fault.class, class);
    }
}

#[test]
fn a_whole_answer_where_events_were_asked_for_is_the_operators_to_mend() {
    for (format, body, class) in [
        (
            Format::Chat,
            r#"{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}]}"#,
            Class::Unstreamed,
        ),
        (
            Format::Generate,
            r#"{"generated_text":"a"}"#,
            Class::Unstreamed,
        ),
        (Format::Chat, r#"{"hello":"there"}"#, Class::ServerError),
        (
            Format::Chat,
            r#"{"error":{"message":"slow down","code":429}}"#,
            Class::RateLimited,
        ),
    ] {
        let read = Incoming::new(reader(format)).whole(body.as_bytes());
        assert_eq!(read.expect_err("no events").class, class, "{body}");
    }
}

#[test]
fn failures_within_an_answer() {
    let chat = || reader(Format::Chat);
    let cases: [(&[&str], Class); 9] = [
        (
            &[r#"{"error":"CUDA error","error_type":"generation"}"#],
            Class::ServerError,
        ),
        (
            &[r#"{"error":"Model is overloaded","error_type":"overloaded"}"#],
            Class::RateLimited,
        ),
        (
            &[r#"{"error":{"message":"slow down","type":"rate_limit_error","code":429}}"#],
            Class::RateLimited,
        ),
        (
            &[r#"{"error":{"message":"x","http_status_code":422}}"#],
            Class::ServerError,
        ),
        (&[r#"{"object":"error","message":"x"}"#], Class::ServerError),
        (&["not JSON"], Class::ServerError),
        (
            &[r#"{"choices":[{"delta":{"content":"a"}}]}"#, "[DONE]"],
            Class::ServerError,
        ),
        (
            &[r#"{"choices":[{"delta":{"content":"a"}}]}"#],
            Class::ServerError,
        ),
        (
            &[r#"{"choices":[{"delta":{},"finish_reason":"content_filter"}]}"#],
            Class::ContentFilter,
        ),
    ];
    for (events, class) in &cases {
        let fault = read(chat(), events).expect_err("a failure");
        assert_eq!(fault.class, *class, "{events:?}");
    }
    // Of a machine that serves us alone, the same means that it has too much to do.
    let own = Origin {
        kind: UpstreamKind::Tgi,
        ..Origin::default()
    };
    let fault = read_with(&mut Incoming::new(chat()).from(own), cases[1].0);
    assert_eq!(fault.expect_err("a failure").class, Class::Overloaded);
    let whole = Incoming::new(chat()).whole(br#"{"error":"no"}"#);
    assert_eq!(&*whole.expect_err("a failure").message, "no");
}

#[test]
fn the_first_event_starts_the_answer_with_the_estimate() {
    let mut incoming = Incoming::new(reader(Format::Chat));
    let events = incoming
        .event(r#"{"choices":[{"delta":{"role":"assistant"}}]}"#)
        .expect("a start");
    let started = Started {
        input_tokens: 21,
        prompt: Vec::new(),
    };
    assert_eq!(events, [Event::Started(started)]);
}

/// A JSON string in which characters beyond the basic plane are written as two escapes, cut where one says.
fn halves(text: &str, cuts: &[usize]) -> Vec<String> {
    let units: Vec<u16> = text.encode_utf16().collect();
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut % (units.len() + 1)).collect();
    places.extend([0, units.len()]);
    places.sort_unstable();
    places
        .windows(2)
        .map(|pair| {
            let escaped = units[pair[0]..pair[1]]
                .iter()
                .map(|unit| format!("\\u{unit:04x}"));
            format!("\"{}\"", escaped.collect::<String>())
        })
        .collect()
}

proptest! {
    #[test]
    fn texts_survive_any_cut(
        text in "(\\PC|😀|\u{10FFFF}|\n){0,40}",
        cuts in prop::collection::vec(0_usize..100, 0..8),
        field in prop::sample::select(vec!["content", "reasoning_content"]),
    ) {
        let mut incoming = Incoming::new(reader(Format::Chat));
        let mut events: Vec<String> = halves(&text, &cuts)
            .into_iter()
            .map(|part| format!(r#"{{"choices":[{{"delta":{{"{field}":{part}}}}}]}}"#))
            .collect();
        events.push(r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#.to_owned());
        let events: Vec<&str> = events.iter().map(String::as_str).collect();
        let answer = read_with(&mut incoming, &events).expect("an answer");
        prop_assert_eq!(answer.content + &answer.reasoning, text);
    }

    #[test]
    fn tokens_make_up_the_text_wherever_they_are_cut(
        text in "(\\PC|😀|é){1,30}",
        cuts in prop::collection::vec(0_usize..200, 0..20),
        lists in any::<bool>(),
    ) {
        let bytes = text.as_bytes();
        let mut places: Vec<usize> = cuts.iter().map(|cut| cut % bytes.len()).collect();
        places.extend([0, bytes.len()]);
        places.sort_unstable();
        places.dedup();
        let mut incoming = Incoming::new(Reader { tokens: true, ..reader(Format::Chat) });
        let mut events = Vec::new();
        let mut told = Vec::new();
        let mut shown = 0;
        for pair in places.windows(2) {
            let token = &bytes[pair[0]..pair[1]];
            told.push(json!({"token": String::from_utf8_lossy(token), "bytes": token, "logprob": -0.5}));
            // Some servers send every token by itself, others only whole characters.
            if lists && !text.is_char_boundary(pair[1]) {
                continue;
            }
            let whole = (shown..=pair[1]).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(shown);
            let content = &text[shown..whole];
            shown = whole;
            let told = std::mem::take(&mut told);
            events.push(json!({"choices": [{"delta": {"content": content}, "logprobs": {"content": told}}]}).to_string());
        }
        events.push(r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#.to_owned());
        let events: Vec<&str> = events.iter().map(String::as_str).collect();
        let answer = read_with(&mut incoming, &events).expect("an answer");
        prop_assert_eq!(&answer.text, &text);
        prop_assert_eq!(answer.tokens.len(), places.len() - 1);
        prop_assert!(answer.tokens.iter().all(|token| token.logprob == Some(-0.5)));
        prop_assert!(!incoming.late_degraded().contains(&"logprobs"));
    }

    #[test]
    fn arguments_survive_any_cut(
        text in "(\\PC|😀){1,30}",
        cuts in prop::collection::vec(0_usize..100, 0..6),
        names in any::<bool>(),
    ) {
        let arguments = json!({"q": text}).to_string();
        let mut events: Vec<String> = halves(&arguments, &cuts)
            .into_iter()
            .enumerate()
            .map(|(at, part)| {
                let name = if at == 0 || names { r#""name":"f","# } else { "" };
                format!(r#"{{"choices":[{{"delta":{{"tool_calls":[{{"index":0,"id":"0","function":{{{name}"arguments":{part}}}}}]}}}}]}}"#)
            })
            .collect();
        events.push(r#"{"choices":[{"delta":{},"finish_reason":"tool_calls"}]}"#.to_owned());
        let events: Vec<&str> = events.iter().map(String::as_str).collect();
        let answer = read(reader(Format::Chat), &events).expect("an answer");
        prop_assert_eq!(answer.calls, [("f".to_owned(), arguments)]);
    }

    #[test]
    fn nothing_an_upstream_writes_panics(
        events in prop::collection::vec("(\\PC{0,30}|\\{\"choices\":\\[\\{\"delta\":\\{\"(content|tool_calls|reasoning)\":(null|\"a\"|\\[\\{\\}\\]|1|\\{\\})\\}\\}\\]\\}|\\[DONE\\])", 0..6),
        format in prop::sample::select(vec![Format::Chat, Format::Completions, Format::Generate, Format::Prediction]),
    ) {
        let mut incoming = Incoming::new(reader(format));
        for event in &events {
            let _ = incoming.event(event);
            let _ = incoming.whole(event.as_bytes());
        }
        let _ = incoming.end();
    }
}
