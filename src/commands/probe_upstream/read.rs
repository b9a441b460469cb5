//! What the answers of a probing say. An answer that decides nothing leaves its question open.

use std::collections::BTreeMap;

use serde_json::Value;

use super::plan::Ask;
use crate::remote::capability_store::{Findings, UsagePosition};

/// An answer, whatever its status.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Answer {
    /// The status.
    pub status: u16,
    /// The body; a stream's as it came.
    pub body: bytes::Bytes,
    /// Who answered, if the upstream said so.
    pub provider: Option<String>,
}

/// What an answer decides.
enum Verdict {
    /// It was given: the document, or null where the body is none.
    Given(Value),
    /// The request was refused as it stood.
    Refused,
    /// It failed for another reason: limits, money, trouble.
    Open,
}

/// The answers so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Answers(BTreeMap<Ask, Answer>);

impl Answers {
    /// Puts one in.
    pub(super) fn put(&mut self, ask: Ask, answer: Answer) {
        self.0.insert(ask, answer);
    }

    /// Who gave the first answer that says so.
    pub(super) fn provider(&self) -> Option<&str> {
        self.0
            .values()
            .find_map(|answer| answer.provider.as_deref())
    }

    /// Everything that they say.
    pub(super) fn findings(&self) -> Findings {
        let accepted = |ask| match self.verdict(ask) {
            Verdict::Given(_) => Some(true),
            Verdict::Refused => Some(false),
            Verdict::Open => None,
        };
        Findings {
            streaming: self.streams(),
            stream_options: accepted(Ask::Stream),
            usage_position: self.usage_position(),
            logprobs: self.shows(Ask::Logprobs, |document| {
                let first = document.pointer("/choices/0/logprobs/content/0/logprob");
                Some(first.is_some_and(Value::is_number))
            }),
            top_k: self.narrows(Ask::TopK, Ask::TopKOther),
            min_p: self.narrows(Ask::MinP, Ask::MinPOther),
            seed_echo: self.seed(),
            json_schema: self.shows(Ask::JsonSchema, |document| {
                let text = content(document)?;
                let kept = serde_json::from_str::<Value>(text.trim())
                    .is_ok_and(|value| value == serde_json::json!({"zq_number": 4177}));
                // What was cut off could have become anything.
                (kept || finish(document) != Some("length")).then_some(kept)
            }),
            tools: self.shows(Ask::Tools, |document| {
                let call = document.pointer("/choices/0/message/tool_calls/0/function");
                let name = call.and_then(|call| call.get("name")?.as_str());
                let called = name == Some("record_colour");
                (called || finish(document) != Some("length")).then_some(called)
            }),
            prefill: self.shows(Ask::Prefill, |document| {
                let text: String = content(document)?.split_whitespace().collect();
                Some(text.starts_with("1,13"))
            }),
            raw_prompt: self.shows(Ask::Raw, |document| {
                let list = document.get(0).unwrap_or(document);
                let text = document.pointer("/choices/0/text");
                let text = text.or_else(|| list.get("generated_text"));
                Some(text.is_some_and(Value::is_string))
            }),
            cached_tokens: self.shows(Ask::LongAgain, |document| {
                let cached = document.pointer("/usage/prompt_tokens_details/cached_tokens");
                Some(cached.and_then(Value::as_u64).is_some_and(|n| n > 0))
            }),
        }
    }

    fn verdict(&self, ask: Ask) -> Verdict {
        let Some(answer) = self.0.get(&ask) else {
            return Verdict::Open;
        };
        match answer.status {
            200..=299 => {
                let document: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
                // Some upstreams send an error with a status of success.
                match document.get("error") {
                    Some(error) if !error.is_null() => Verdict::Refused,
                    _ => Verdict::Given(document),
                }
            }
            400 | 404 | 405 | 415 | 422 | 501 => Verdict::Refused,
            _ => Verdict::Open,
        }
    }

    /// No where the request is refused, else what the document shows.
    fn shows(&self, ask: Ask, read: impl Fn(&Value) -> Option<bool>) -> Option<bool> {
        match self.verdict(ask) {
            Verdict::Given(document) => read(&document),
            Verdict::Refused => Some(false),
            Verdict::Open => None,
        }
    }

    /// Whether what was asked for as events came so; a refusal may mean `stream_options` alone.
    fn streams(&self) -> Option<bool> {
        match self.verdict(Ask::Stream) {
            Verdict::Given(document) if document.get("choices").is_some() => Some(false),
            Verdict::Given(_) => self.usage_position().map(|_| true),
            Verdict::Refused | Verdict::Open => None,
        }
    }

    fn text(&self, ask: Ask) -> Option<String> {
        match self.verdict(ask) {
            Verdict::Given(document) => content(&document).map(str::to_owned),
            Verdict::Refused | Verdict::Open => None,
        }
    }

    /// Two draws with the same seed are equal, and one with another differs.
    fn seed(&self) -> Option<bool> {
        let first = self.text(Ask::Free)?;
        let again = self.text(Ask::FreeAgain)?;
        if first != again {
            return Some(false);
        }
        (self.text(Ask::FreeOther)? != first).then_some(true)
    }

    /// Whether a setting that leaves one token to draw from makes draws equal that differ without it.
    fn narrows(&self, one: Ask, other: Ask) -> Option<bool> {
        if matches!(self.verdict(one), Verdict::Refused) {
            return Some(false);
        }
        let first = self.text(Ask::Free)?;
        let varied = [Ask::FreeOther, Ask::FreeAgain]
            .into_iter()
            .any(|ask| self.text(ask).is_some_and(|text| text != first));
        let equal = self.text(one)? == self.text(other)?;
        // Where nothing varies, being equal says nothing.
        (varied || !equal).then_some(equal)
    }

    fn usage_position(&self) -> Option<UsagePosition> {
        let answer = self.0.get(&Ask::Stream)?;
        if !(200..=299).contains(&answer.status) {
            return None;
        }
        let text = String::from_utf8_lossy(&answer.body);
        let events: Vec<Value> = text
            .lines()
            .filter_map(|line| serde_json::from_str(line.strip_prefix("data:")?.trim()).ok())
            .collect();
        let counted = |event: &&Value| event.get("usage").is_some_and(Value::is_object);
        let speaks = |event: &&Value| event.pointer("/choices/0").is_some();
        let finishes = |event: &&Value| {
            let reason = event.pointer("/choices/0/finish_reason");
            reason.is_some_and(Value::is_string)
        };
        if !events.iter().any(|event| speaks(&event)) {
            return None;
        }
        let spoken = events.iter().filter(speaks).count();
        let spoken_counted = events.iter().filter(speaks).filter(counted).count();
        Some(if spoken > 1 && spoken_counted == spoken {
            UsagePosition::EveryEvent
        } else if events.iter().filter(finishes).any(|event| counted(&event)) {
            UsagePosition::WithFinish
        } else if events.iter().any(|event| counted(&event)) {
            UsagePosition::LastEvent
        } else {
            UsagePosition::Nowhere
        })
    }
}

/// The answer's text; none where there is nothing but reasoning.
fn content(document: &Value) -> Option<&str> {
    let text = document.pointer("/choices/0/message/content")?.as_str()?;
    (!text.trim().is_empty()).then_some(text)
}

fn finish(document: &Value) -> Option<&str> {
    document.pointer("/choices/0/finish_reason")?.as_str()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn answers(list: &[(Ask, u16, Value)]) -> Findings {
        let mut answers = Answers::default();
        for (ask, status, body) in list {
            let body = match body {
                Value::String(text) => text.clone(),
                body => body.to_string(),
            };
            answers.put(
                *ask,
                Answer {
                    status: *status,
                    body: body.into(),
                    provider: None,
                },
            );
        }
        answers.findings()
    }

    fn says(text: &str) -> Value {
        json!({"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]})
    }

    #[test]
    fn nothing_asked_is_nothing_found() {
        assert_eq!(answers(&[]), Findings::default());
    }

    #[test]
    fn limits_and_trouble_leave_a_question_open_and_refusals_settle_it() {
        for (status, expected) in [(400, Some(false)), (422, Some(false)), (404, Some(false))]
            .into_iter()
            .chain([401, 402, 403, 429, 500, 503].map(|status| (status, None)))
        {
            let refused = json!({"error": {"message": "no"}});
            let all = [Ask::Stream, Ask::Logprobs, Ask::TopK, Ask::Tools, Ask::Raw];
            let found = answers(&all.map(|ask| (ask, status, refused.clone())));
            assert_eq!(found.logprobs, expected, "{status}");
            assert_eq!((found.stream_options, found.top_k), (expected, expected));
            assert_eq!((found.tools, found.raw_prompt), (expected, expected));
        }
        let hidden = json!({"error": "unsupported"});
        assert_eq!(
            answers(&[(Ask::Logprobs, 200, hidden)]).logprobs,
            Some(false)
        );
    }

    #[test]
    fn abilities_are_seen_in_what_comes_back_and_not_in_the_status() {
        let logprobs =
            json!({"choices": [{"logprobs": {"content": [{"token": "ok", "logprob": -0.1}]}}]});
        assert_eq!(
            answers(&[(Ask::Logprobs, 200, logprobs)]).logprobs,
            Some(true)
        );
        assert_eq!(
            answers(&[(Ask::Logprobs, 200, says("ok"))]).logprobs,
            Some(false)
        );

        let schema = |text| answers(&[(Ask::JsonSchema, 200, says(text))]).json_schema;
        assert_eq!(schema("{ \"zq_number\": 4177 }\n"), Some(true));
        assert_eq!(schema("{\"greeting\": \"hello\"}"), Some(false));
        assert_eq!(schema(""), None);

        let call = json!({"choices": [{"message": {"content": null, "tool_calls": [
            {"function": {"name": "record_colour", "arguments": "{\"colour\":\"green\"}"}}]}}]});
        assert_eq!(answers(&[(Ask::Tools, 200, call)]).tools, Some(true));
        assert_eq!(
            answers(&[(Ask::Tools, 200, says("green"))]).tools,
            Some(false)
        );

        let prefill = |text| answers(&[(Ask::Prefill, 200, says(text))]).prefill;
        assert_eq!(prefill("1, 13, 17, 19"), Some(true));
        assert_eq!(prefill("2, 3, 5, 7, 11, 13"), Some(false));

        let raw = json!({"choices": [{"text": " four"}]});
        assert_eq!(answers(&[(Ask::Raw, 200, raw)]).raw_prompt, Some(true));
        let tgi = json!({"generated_text": " four"});
        assert_eq!(answers(&[(Ask::Raw, 200, tgi)]).raw_prompt, Some(true));

        let cached = |n| json!({"usage": {"prompt_tokens_details": {"cached_tokens": n}}});
        let found = |document| answers(&[(Ask::LongAgain, 200, document)]).cached_tokens;
        assert_eq!(found(cached(json!(1024))), Some(true));
        assert_eq!(found(cached(json!(null))), Some(false));
    }

    #[test]
    fn seeds_and_narrow_draws_are_told_from_chance() {
        let draw = |list: [&str; 5]| {
            let asks = [
                Ask::Free,
                Ask::FreeAgain,
                Ask::FreeOther,
                Ask::TopK,
                Ask::TopKOther,
            ];
            let all: Vec<_> = asks.into_iter().zip(list.map(says)).collect();
            let all: Vec<_> = all
                .into_iter()
                .map(|(ask, body)| (ask, 200, body))
                .collect();
            let found = answers(&all);
            (found.seed_echo, found.top_k)
        };
        assert_eq!(draw(["a", "a", "b", "c", "c"]), (Some(true), Some(true)));
        assert_eq!(draw(["a", "b", "c", "d", "e"]), (Some(false), Some(false)));
        assert_eq!(draw(["a", "a", "a", "a", "a"]), (None, None));
        assert_eq!(draw(["a", "x", "b", "c", "c"]), (Some(false), Some(true)));
    }

    #[test]
    fn what_answers_whole_where_events_were_asked_for_does_not_stream() {
        let streams = |body: Value| answers(&[(Ask::Stream, 200, body)]).streaming;
        let event = "data: {\"choices\":[{\"delta\":{\"content\":\"ok\"}}]}\n\n";
        assert_eq!(streams(event.into()), Some(true));
        assert_eq!(streams(says("ok")), Some(false));
        for other in [json!("<html></html>"), json!({"hello": "there"})] {
            assert_eq!(streams(other), None);
        }
    }

    #[test]
    fn usage_is_found_wherever_it_stands() {
        let usage = json!({"prompt_tokens": 9, "completion_tokens": 1});
        let position = |events: Vec<Value>| {
            let mut stream = String::from(": ping\n\n");
            for event in events {
                stream += &format!("data: {event}\n\n");
            }
            stream += "data: [DONE]\n\n";
            answers(&[(Ask::Stream, 200, stream.into())]).usage_position
        };
        let text = json!({"choices": [{"delta": {"content": "ok"}, "finish_reason": null}], "usage": null});
        let end = json!({"choices": [{"delta": {}, "finish_reason": "stop"}]});
        let with = |event: &Value| {
            let mut event = event.clone();
            event["usage"] = usage.clone();
            event
        };
        let last = json!({"choices": [], "usage": usage});
        assert_eq!(
            position(vec![text.clone(), end.clone(), last]),
            Some(UsagePosition::LastEvent)
        );
        assert_eq!(
            position(vec![text.clone(), with(&end)]),
            Some(UsagePosition::WithFinish)
        );
        assert_eq!(
            position(vec![with(&text), with(&end)]),
            Some(UsagePosition::EveryEvent)
        );
        assert_eq!(position(vec![text, end]), Some(UsagePosition::Nowhere));
        assert_eq!(position(vec![]), None);
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(status in 100_u16..600, body in prop::collection::vec(any::<u8>(), 0..100)) {
            let asks = [Ask::Stream, Ask::Logprobs, Ask::JsonSchema, Ask::Tools, Ask::Prefill, Ask::Raw, Ask::LongAgain];
            let mut all = Answers::default();
            for ask in asks {
                all.put(ask, Answer { status, body: body.clone().into(), provider: None });
            }
            let _ = all.findings();
        }
    }
}
