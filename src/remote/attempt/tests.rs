//! Answers under a paused clock: a scripted body in, events, faults and reports out.

use std::sync::{Arc, Mutex};

use super::*;
use crate::generation::{FinishReason, Timings, TokenEvent, TokenInfo, Usage};
use crate::remote::{Billing, UpstreamKind};

/// Reads `{"t":"text"}` as text, `{"f":1}` as the finish reason, `[DONE]` as the terminator; nothing in
/// others. Like any decoder it gives the finish once the stream has ended.
#[derive(Default)]
pub(in crate::remote) struct Script {
    text: String,
    finish: bool,
    done: bool,
}

impl Decoder for Script {
    fn event(&mut self, data: &str) -> Result<Vec<Event>, Fault> {
        if data == "[DONE]" {
            self.done = true;
            return Ok(Vec::new());
        }
        let value: Value = serde_json::from_str(data)
            .map_err(|_| Fault::new(Class::ServerError, "an event that is no JSON"))?;
        self.finish |= value.get("f").is_some();
        let text = value.get("t").and_then(Value::as_str);
        Ok(text
            .map(|text| self.token(text, false))
            .into_iter()
            .collect())
    }

    fn whole(&mut self, json: &[u8]) -> Result<Vec<Event>, Fault> {
        let value: Value = serde_json::from_slice(json)
            .map_err(|_| Fault::new(Class::ServerError, "a body that is no JSON"))?;
        match value.get("t").and_then(Value::as_str) {
            Some(text) => Ok(vec![self.token(text, true)]),
            None => Err(Fault::new(Class::ServerError, "a body without an answer")),
        }
    }

    fn end(&mut self) -> Result<Vec<Event>, Fault> {
        if self.finish {
            Ok(vec![self.token("", true)])
        } else {
            Err(Fault::new(Class::ServerError, "cut"))
        }
    }

    fn is_done(&self) -> bool {
        self.done
    }

    fn has_ended(&self) -> bool {
        self.finish || self.done
    }
}

impl Script {
    fn token(&mut self, text: &str, last: bool) -> Event {
        self.text.push_str(text);
        Event::Token(TokenEvent {
            token: TokenInfo {
                id: None,
                text: text.to_owned(),
                logprob: None,
                special: false,
            },
            text: text.to_owned(),
            pieces: None,
            top_tokens: Vec::new(),
            finish: last.then(|| Finish {
                reason: FinishReason::EosToken,
                stop_sequence: None,
                generated_text: self.text.clone(),
                usage: Usage::counted(1, 1),
                seed: None,
                timings: Timings::default(),
            }),
        })
    }
}

/// Writes down what it hears.
#[derive(Clone, Default)]
pub(in crate::remote) struct Heard(pub(in crate::remote) Arc<Mutex<Vec<String>>>);

impl Heard {
    pub(in crate::remote) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl Reporter for Heard {
    fn first_token(&mut self, _: Instant) {
        self.0.lock().unwrap().push("first".to_owned());
    }

    fn exhausted(&mut self, time: Duration, _: Instant) {
        self.0.lock().unwrap().push(format!("exhausted {time:?}"));
    }

    fn finish(self, outcome: Result<&Finish, &Fault>, _: Instant) {
        let word = outcome.map_or_else(|fault| fault.class.name(), |_| "done");
        self.0.lock().unwrap().push(word.to_owned());
    }
}

/// A body: after so many milliseconds, these bytes. Then it ends, or breaks, or hangs.
enum Then {
    Ends,
    Breaks,
    Hangs,
}

type Scripted = BoxStream<'static, Result<Bytes, Fault>>;

fn body(pieces: Vec<(u64, Vec<u8>)>, then: Then) -> Scripted {
    let pieces = futures::stream::iter(pieces).then(|(ms, bytes)| async move {
        tokio::time::sleep(Duration::from_millis(ms)).await;
        Ok(Bytes::from(bytes))
    });
    match then {
        Then::Ends => pieces.boxed(),
        Then::Breaks => {
            let fault = Fault::new(Class::Transport, "reset");
            pieces.chain(futures::stream::iter([Err(fault)])).boxed()
        }
        Then::Hangs => pieces.chain(futures::stream::pending()).boxed(),
    }
}

fn timing() -> Timing {
    let s = Duration::from_secs;
    Timing {
        first_token: s(10),
        byte_idle: s(30),
        progress_idle: s(60),
        deadline: (Tick::now() + s(600)).into_std(),
    }
}

fn events(
    source: Scripted,
    reading: Reading,
    timing: Timing,
) -> (Events<Scripted, Script, Heard>, Heard) {
    let heard = Heard::default();
    let whence = Whence {
        origin: Origin {
            kind: UpstreamKind::OpenAiCompat,
            engine: None,
            billing: Billing::Tokens,
        },
        head: Head {
            status: 200,
            provider: Some("p".to_owned()),
            request_id: Some("r".to_owned()),
            ..Head::default()
        },
        client: None,
        late: Late::default(),
    };
    let report = Report(Some(heard.clone()));
    let events = Events::new(
        source,
        reading,
        Script::default(),
        report,
        whence,
        timing,
        Tick::now(),
    );
    (events, heard)
}

/// The text shown, how it ended, and what the reporter heard.
async fn run(
    source: Scripted,
    reading: Reading,
    timing: Timing,
) -> (String, Result<(), Fault>, Vec<String>) {
    let (mut events, heard) = events(source, reading, timing);
    let (mut text, mut end, mut finished) = (String::new(), Ok(()), false);
    while let Some(event) = events.next().await {
        assert!(end.is_ok() && !finished, "something after the end");
        match event {
            Ok(Event::Token(token)) => {
                text.push_str(&token.text);
                finished = token.finish.is_some();
            }
            Ok(Event::Started(_)) => {}
            Err(fault) => end = Err(fault),
        }
    }
    assert!(finished != end.is_err(), "neither a finish nor a fault");
    assert!(events.next().await.is_none() && events.source.is_none());
    drop(events);
    (text, end, heard.all())
}

fn stream() -> Reading {
    Reading::Stream(SseParser::new(1024))
}

fn class(end: &Result<(), Fault>) -> Option<Class> {
    end.as_ref().err().map(|fault| fault.class)
}

const A: &[u8] = b"data: {\"t\":\"a\"}\n\n";
const F: &[u8] = b"data: {\"f\":1}\n\n";
const DONE: &[u8] = b"data: [DONE]\n\n";
const PING: &[u8] = b": ping\n\n";

#[tokio::test(start_paused = true)]
async fn an_answer_ends_well_in_each_way_it_may() {
    let ways: Vec<Vec<(u64, Vec<u8>)>> = vec![
        vec![(1, A.into()), (1, F.into()), (1, DONE.into())],
        vec![(1, [A, F, DONE].concat())],
        // Without the terminator, and without the last blank line.
        vec![(1, A.into()), (1, F.into())],
        vec![(1, A.into()), (1, b"data: {\"f\":1}".to_vec())],
        vec![(1, [A, F, b"data: [DONE]"].concat())],
        // Whatever follows the finish does not matter, half an event least of all.
        vec![(1, [A, F, b"data: {\"usa"].concat())],
        vec![(1, [A, F, DONE, b"data: {\"error\":\"late\"}\n\n"].concat())],
    ];
    for pieces in ways {
        let (text, end, heard) = run(body(pieces, Then::Ends), stream(), timing()).await;
        assert_eq!((text.as_str(), end), ("a", Ok(())));
        assert_eq!(heard, ["first", "done"]);
    }
    let whole = Reading::Whole(BytesMut::new());
    let pieces = vec![(1, b"{\"t\":".to_vec()), (1, b"\"all\"}".to_vec())];
    let (text, end, heard) = run(body(pieces, Then::Ends), whole, timing()).await;
    assert_eq!((text.as_str(), end), ("all", Ok(())));
    assert_eq!(heard, ["first", "done"]);
}

#[tokio::test(start_paused = true)]
async fn a_terminator_does_not_wait_for_the_connection() {
    let (text, end, heard) = run(
        body(vec![(1, [A, F, DONE].concat())], Then::Hangs),
        stream(),
        timing(),
    )
    .await;
    assert_eq!((text.as_str(), end), ("a", Ok(())));
    assert_eq!(heard, ["first", "done"]);
}

#[tokio::test(start_paused = true)]
async fn a_cut_anywhere_shows_a_prefix_and_never_counts_as_an_end() {
    let before = b"\xEF\xBB\xBF: hi\r\ndata: {\"t\":\"h\xC3\xA9\"}\r\n\r\n: x\n\ndata: {\"t\":\" world\"}\n\ndata:{\"n\":1}\n\n".to_vec();
    let all = [&before[..], F, DONE].concat();
    let finish = before.len() + F.len() - 2;
    for then_breaks in [false, true] {
        for cut in 0..=all.len() {
            let then = if then_breaks {
                Then::Breaks
            } else {
                Then::Ends
            };
            let pieces = all[..cut].chunks(3).map(|c| (1, c.to_vec())).collect();
            let (text, end, heard) = run(body(pieces, then), stream(), timing()).await;
            assert!("hé world".starts_with(&text), "{cut}: {text}");
            // Of a line that nothing ended, only a good end says that it is whole.
            let complete = cut >= if then_breaks { finish + 2 } else { finish };
            assert_eq!(end.is_ok(), complete, "{cut} {then_breaks}");
            let failure = match (text.is_empty(), then_breaks) {
                (true, true) => Class::Transport,
                (true, false) => Class::ServerError,
                (false, _) => Class::MidStream,
            };
            assert_eq!(class(&end), (!complete).then_some(failure), "{cut}");
            let mut want = vec!["first".to_owned()];
            want.retain(|_| !text.is_empty());
            want.push(if complete { "done" } else { failure.name() }.to_owned());
            assert_eq!(heard, want);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn each_clock_runs_out_at_its_time() {
    let seconds = |begun: Tick| (Tick::now() - begun).as_secs();
    let begun = Tick::now();
    // No token, though comments come: the first token's clock.
    let pings = |n: usize| std::iter::repeat_n((1000, PING.to_vec()), n);
    let (_, end, heard) = run(body(pings(50).collect(), Then::Hangs), stream(), timing()).await;
    assert_eq!((class(&end), seconds(begun)), (Some(Class::Timeout), 10));
    assert_eq!(heard, ["timeout"]);

    // Silence after a token.
    let begun = Tick::now();
    let (text, end, heard) = run(
        body(vec![(1000, A.into())], Then::Hangs),
        stream(),
        timing(),
    )
    .await;
    assert_eq!(
        (class(&end), seconds(begun), text.as_str()),
        (Some(Class::MidStream), 31, "a")
    );
    assert_eq!(heard, ["first", "mid_stream"]);
    let fault = end.unwrap_err();
    assert_eq!(
        &*fault.message,
        "the answer broke off (timeout): silence for 30 s"
    );
    assert_eq!(
        (fault.status, fault.provider.as_deref()),
        (Some(200), Some("p"))
    );

    // Comments keep the connection, but not the answer.
    let begun = Tick::now();
    let pieces = std::iter::once((1000, A.to_vec()))
        .chain(pings(200))
        .collect();
    let (_, end, _) = run(body(pieces, Then::Hangs), stream(), timing()).await;
    assert_eq!((class(&end), seconds(begun)), (Some(Class::MidStream), 61));

    // Events without text do not keep it either, whether the decoder makes something of them or not.
    for empty in ["data: {\"n\":1}\n\n", "data: {\"t\":\"\"}\n\n"] {
        let begun = Tick::now();
        let empty = std::iter::repeat_n((1000, empty.into()), 200);
        let pieces = std::iter::once((1000, A.to_vec())).chain(empty).collect();
        let (_, end, _) = run(body(pieces, Then::Hangs), stream(), timing()).await;
        assert_eq!((class(&end), seconds(begun)), (Some(Class::MidStream), 61));
    }

    // A slow answer is no fault: ten minutes of tokens, each in time; then the deadline.
    let begun = Tick::now();
    let mut pieces = vec![(9000, A.to_vec())];
    pieces.extend(std::iter::repeat_n((29_000, A.to_vec()), 40));
    let (text, end, heard) = run(body(pieces, Then::Hangs), stream(), timing()).await;
    assert_eq!(
        (class(&end), seconds(begun), text.len()),
        (Some(Class::Deadline), 600, 21)
    );
    assert_eq!(heard, ["first", "deadline"]);

    // A short deadline before the first token.
    let begun = Tick::now();
    let short = Timing {
        deadline: (Tick::now() + Duration::from_secs(2)).into_std(),
        ..timing()
    };
    let (_, end, _) = run(body(pings(9).collect(), Then::Hangs), stream(), short).await;
    assert_eq!((class(&end), seconds(begun)), (Some(Class::Deadline), 2));

    // Progress may be stricter than silence.
    let begun = Tick::now();
    let strict = Timing {
        progress_idle: Duration::from_secs(3),
        ..timing()
    };
    let (_, end, _) = run(body(vec![(1000, A.into())], Then::Hangs), stream(), strict).await;
    assert_eq!((class(&end), seconds(begun)), (Some(Class::MidStream), 4));

    // A whole answer has no first token to wait for, only silence.
    let begun = Tick::now();
    let pieces = vec![(20_000, b"{".to_vec())];
    let (_, end, _) = run(
        body(pieces, Then::Hangs),
        Reading::Whole(BytesMut::new()),
        timing(),
    )
    .await;
    assert_eq!((class(&end), seconds(begun)), (Some(Class::Timeout), 50));
}

#[tokio::test(start_paused = true)]
async fn errors_within_the_answer_are_told_apart() {
    let rows: &[(&[u8], Class)] = &[
        (
            b"data: {\"error\":{\"message\":\"Model is overloaded\",\"http_status_code\":422}}\n\n",
            Class::RateLimited,
        ),
        (b"data: {\"error\":\"no blank line\"}", Class::ServerError),
        (
            b"event: error\ndata: {\"message\":\"x\",\"code\":503}\n\n",
            Class::Overloaded,
        ),
        (b"event: error\ndata: plain words\n\n", Class::ServerError),
        (b"data: no json\n\n", Class::ServerError),
        (b"data: [DONE]\n\n", Class::ServerError),
        (b"", Class::ServerError),
    ];
    for (bytes, want) in rows {
        let (_, end, heard) = run(
            body(vec![(1, bytes.to_vec())], Then::Ends),
            stream(),
            timing(),
        )
        .await;
        assert_eq!(
            class(&end),
            Some(*want),
            "{}",
            String::from_utf8_lossy(bytes)
        );
        assert_eq!(heard, [want.name()]);
        let (text, end, heard) = run(
            body(vec![(1, [A, bytes].concat())], Then::Ends),
            stream(),
            timing(),
        )
        .await;
        assert_eq!((text.as_str(), class(&end)), ("a", Some(Class::MidStream)));
        assert_eq!(heard, ["first", "mid_stream"]);
    }
    let filtered = b"data: {\"error\":{\"message\":\"x\",\"code\":\"content_filter\"}}\n\n";
    let (_, end, _) = run(
        body(vec![(1, [A, filtered].concat())], Then::Ends),
        stream(),
        timing(),
    )
    .await;
    assert_eq!(class(&end), Some(Class::ContentFilter));
    // A null error is none.
    let null = b"data: {\"error\":null,\"t\":\"b\"}\n\n";
    let (text, end, _) = run(
        body(vec![(1, [A, null, F].concat())], Then::Ends),
        stream(),
        timing(),
    )
    .await;
    assert_eq!((text.as_str(), end), ("ab", Ok(())));

    for (bytes, want) in [
        (
            &b"{\"error\":{\"message\":\"x\",\"type\":\"invalid_request_error\"}}"[..],
            Class::BadRequest,
        ),
        (b"{\"choices\":[]}", Class::ServerError),
        (b"<html>", Class::ServerError),
        (b"", Class::ServerError),
    ] {
        let whole = Reading::Whole(BytesMut::new());
        let (_, end, heard) =
            run(body(vec![(1, bytes.to_vec())], Then::Ends), whole, timing()).await;
        assert_eq!(class(&end), Some(want));
        assert_eq!(heard, [want.name()]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_without_end_is_refused() {
    let pieces = std::iter::repeat_n((1, vec![b'x'; 100]), 20).collect();
    let (_, end, heard) = run(body(pieces, Then::Hangs), stream(), timing()).await;
    assert_eq!(class(&end), Some(Class::ServerError));
    assert_eq!(
        &*end.unwrap_err().message,
        "one event is longer than 1024 bytes"
    );
    assert_eq!(heard, ["server_error"]);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_is_reported_as_such() {
    let (mut waiting, heard) = events(body(vec![(1, A.into())], Then::Hangs), stream(), timing());
    waiting.next().await.unwrap().unwrap();
    drop(waiting);
    assert_eq!(heard.all(), ["first", "client_gone"]);

    let (unread, heard) = events(body(Vec::new(), Then::Hangs), stream(), timing());
    drop(unread);
    assert_eq!(heard.all(), ["client_gone"]);

    // The answer was there in full, though nobody read to its end.
    let (mut full, heard) = events(
        body(vec![(1, [A, F, DONE].concat())], Then::Hangs),
        stream(),
        timing(),
    );
    full.next().await.unwrap().unwrap();
    drop(full);
    assert_eq!(heard.all(), ["first", "done"]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_whose_end_was_told_is_whole_however_the_connection_ends() {
    for then in [Then::Breaks, Then::Hangs] {
        let began = Tick::now();
        let source = body(vec![(1, [A, F].concat())], then);
        let (text, end, heard) = run(source, stream(), timing()).await;
        assert_eq!((text.as_str(), end), ("a", Ok(())));
        assert_eq!(heard, ["first", "done"]);
        assert!(began.elapsed() <= AFTER_END + Duration::from_secs(1));
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_the_wrong_shape_is_no_answer() {
    let check: Check =
        Arc::new(|finish| (finish.generated_text == "one ").then(|| "no".to_owned()));
    let mut decoder = Checked::new(Script::default(), Some(check.clone()));
    decoder.event("{\"t\":\"one \"}").unwrap();
    decoder.event("{\"f\":1}").unwrap();
    let fault = decoder.end().unwrap_err();
    assert_eq!(fault.class, Class::SchemaViolation);
    assert_eq!(fault.usage.as_deref(), Some(&Usage::counted(1, 1)));
    let mut decoder = Checked::new(Script::default(), Some(check));
    assert!(decoder.whole(b"{\"t\":\"two\"}").is_ok());
}
