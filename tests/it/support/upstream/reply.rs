//! What an upstream answers: a status, headers, and a body in pieces, with waits and faults between them.
//!
//! A [`Reply`] is written as a test reads: `Reply::chat(&["Hel", "lo"]).delay_first(…).reset_after(2)`. An
//! event is one piece of the body; splitting cuts pieces further, without regard to characters or lines.

use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};
use serde_json::{Value as Json, json};

use super::Request;

/// A part of the body that is written at once.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    /// How long the upstream waits before it.
    pub(super) after: Duration,
    pub(super) bytes: Vec<u8>,
}

/// What becomes of the connection after the last piece.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Ending {
    KeepAlive,
    Close,
    Reset,
    /// Nothing more comes, and the connection stays until the peer leaves.
    Hang,
}

/// How a body's end is told.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Framing {
    Length,
    Chunked,
    /// By the end of the connection.
    Close,
}

/// A reply as it is written.
pub(super) struct Wire {
    pub(super) before: Duration,
    pub(super) head: Vec<u8>,
    pub(super) pieces: Vec<Piece>,
    pub(super) ending: Ending,
}

/// An answer, or a failure to give one.
#[derive(Debug, Clone)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    pieces: Vec<Piece>,
    framing: Framing,
    delay_head: Duration,
    ending: Ending,
    /// Whether the body's end is told before the ending.
    whole: bool,
    /// Bytes of the head that are written before the connection ends.
    head_bytes: Option<usize>,
}

impl Reply {
    /// A body of one piece, of known length.
    pub fn body(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        Self::of(status, content_type, vec![body.into()], Framing::Length)
    }

    fn of(status: u16, content_type: &str, pieces: Vec<Vec<u8>>, framing: Framing) -> Self {
        let pieces = pieces.into_iter().map(|bytes| Piece {
            after: Duration::ZERO,
            bytes,
        });
        Self {
            status,
            headers: vec![("content-type".to_owned(), content_type.to_owned())],
            pieces: pieces.collect(),
            framing,
            delay_head: Duration::ZERO,
            ending: Ending::KeepAlive,
            whole: true,
            head_bytes: None,
        }
    }

    /// JSON, as errors, catalogues and whole answers are.
    pub fn json(status: u16, body: &Json) -> Self {
        Self::body(status, "application/json", body.to_string())
    }

    /// Events as they stand, each a piece; blank lines and all are the caller's.
    pub fn events<S: AsRef<str>>(events: &[S]) -> Self {
        let pieces = events.iter().map(|e| e.as_ref().as_bytes().to_vec());
        let kind = "text/event-stream";
        Self::of(200, kind, pieces.collect(), Framing::Chunked)
    }

    /// A stream of OpenAI's chat, a chunk for each text, with usage in the last.
    pub fn chat(texts: &[&str]) -> Self {
        Chat::new(texts).stream()
    }

    /// The chat that a request asks for: a stream, or one object.
    pub fn chat_for(request: &Request, texts: &[&str]) -> Self {
        let chat = Chat::new(texts);
        if request.streams() {
            chat.stream()
        } else {
            chat.object()
        }
    }

    /// A stream of TGI's `/generate_stream`, a token for each text.
    pub fn generate_stream(texts: &[&str]) -> Self {
        let events = texts.iter().enumerate().map(|(i, text)| {
            let last = i + 1 == texts.len();
            let details = json!({"finish_reason": "eos_token", "generated_tokens": texts.len(), "input_length": 7, "seed": null});
            event(&json!({
                "index": i + 1,
                "token": {"id": 100 + i, "text": text, "logprob": -0.5, "special": false},
                "generated_text": last.then(|| texts.concat()),
                "details": if last { details } else { Json::Null },
            }))
        });
        Self::events(&events.collect::<Vec<_>>())
    }

    /// `/info` of text-generation-inference.
    pub fn tgi_info(model: &str, max_total_tokens: u32) -> Self {
        Self::json(
            200,
            &json!({
                "model_id": model, "max_total_tokens": max_total_tokens,
                "max_input_tokens": max_total_tokens - 1, "max_concurrent_requests": 128,
                "max_best_of": 2, "max_stop_sequences": 4, "max_client_batch_size": 4,
                "router": "text-generation-router", "version": "3.3.6",
            }),
        )
    }

    /// `/v1/models` of vLLM.
    pub fn models_vllm(model: &str, max_model_len: u32) -> Self {
        let entry = json!({"id": model, "object": "model", "created": 1, "owned_by": "vllm", "max_model_len": max_model_len});
        Self::json(200, &json!({"object": "list", "data": [entry]}))
    }

    /// `/v1/models` of llama.cpp's server.
    pub fn models_llamacpp(model: &str, n_ctx_train: u32) -> Self {
        let meta = json!({"n_ctx_train": n_ctx_train, "vocab_type": 2});
        let entry = json!({"id": model, "object": "model", "created": 1, "owned_by": "llamacpp", "meta": meta});
        Self::json(200, &json!({"object": "list", "data": [entry]}))
    }

    /// `/v1/models` of a router, of entries made by [`catalogue_entry`] and changed at will.
    pub fn catalogue(entries: &[Json]) -> Self {
        Self::json(200, &json!({"object": "list", "data": entries}))
    }

    /// What a load balancer says when nothing stands behind it.
    pub fn bad_gateway() -> Self {
        let page = "<html><head><title>502 Bad Gateway</title></head>\r\n<body><center><h1>502 Bad Gateway</h1></center></body></html>\r\n";
        Self::body(502, "text/html", page)
    }

    /// What the proxy of a sleeping endpoint says.
    pub fn asleep() -> Self {
        Self::body(503, "text/plain", "503 Service Unavailable")
    }

    /// What the proxy of a paused endpoint says.
    pub fn paused() -> Self {
        Self::body(400, "text/plain", "Bad Request: Invalid state")
    }

    /// A redirect that keeps method and body.
    pub fn redirect(to: &str) -> Self {
        Self::body(307, "text/plain", "").header("location", to)
    }

    /// A close in place of an answer.
    pub fn close() -> Self {
        Self::body(200, "text/plain", "").close_mid_head(0)
    }

    /// A reset in place of an answer.
    pub fn reset() -> Self {
        let mut reply = Self::close();
        reply.ending = Ending::Reset;
        reply
    }

    /// No answer at all.
    pub fn hang() -> Self {
        let mut reply = Self::close();
        reply.ending = Ending::Hang;
        reply
    }

    /// Changes the status.
    pub fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// Adds a header, or changes the one of that name.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(key, _)| key != name);
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds `Retry-After` as a date, and the upstream's own idea of now.
    pub fn retry_at(self, now: SystemTime, after: Duration) -> Self {
        self.header("date", &http_date(now))
            .header("retry-after", &http_date(now + after))
    }

    /// Adds the rate limit of the ninth draft of `RateLimit`, as the Hub sends it.
    pub fn rate_limit(self, quota: u32, left: u32, reset_s: u32) -> Self {
        let policy = format!("\"fixed window\";\"api\";q={quota};w=300");
        self.header("ratelimit", &format!("\"api\";r={left};t={reset_s}"))
            .header("ratelimit-policy", &policy)
    }

    /// Names who ran the model, rightly or not.
    pub fn provider(self, name: &str) -> Self {
        self.header("x-inference-provider", name)
    }

    /// Waits before the head.
    pub fn delay_head(mut self, time: Duration) -> Self {
        self.delay_head = time;
        self
    }

    /// Waits between the head and the first piece.
    pub fn delay_first(mut self, time: Duration) -> Self {
        if let Some(first) = self.pieces.first_mut() {
            first.after = time;
        }
        self
    }

    /// Waits before every other piece.
    pub fn delay_each(mut self, time: Duration) -> Self {
        for piece in self.pieces.iter_mut().skip(1) {
            piece.after = time;
        }
        self
    }

    /// Cuts the body anew, at so many bytes each; the waits stay at the byte they stood before.
    pub fn split_every(self, bytes: usize) -> Self {
        let cuts: Vec<_> = (0..self.body_bytes()).step_by(bytes).collect();
        self.cut(&cuts)
    }

    /// Cuts the body in two before this byte, and leaves no other cut.
    pub fn split_at(self, byte: usize) -> Self {
        self.cut(&[0, byte])
    }

    /// Bytes of the body.
    pub fn body_bytes(&self) -> usize {
        self.pieces.iter().map(|piece| piece.bytes.len()).sum()
    }

    fn cut(mut self, starts: &[usize]) -> Self {
        let (mut body, mut waits) = (Vec::new(), Vec::new());
        for piece in self.pieces.drain(..) {
            waits.push((body.len(), piece.after));
            body.extend(piece.bytes);
        }
        let ends = starts.iter().copied().skip(1).chain([body.len()]);
        let ranges = starts.iter().copied().zip(ends);
        self.pieces = ranges
            .filter(|(start, end)| start < end)
            .map(|(start, end)| Piece {
                after: waits
                    .iter()
                    .filter(|(at, _)| (start..end).contains(at))
                    .map(|(_, after)| *after)
                    .sum(),
                bytes: body[start..end].to_vec(),
            })
            .collect();
        self
    }

    /// Ends lines with CRLF instead of LF.
    pub fn crlf(mut self) -> Self {
        for piece in &mut self.pieces {
            let text = String::from_utf8_lossy(&piece.bytes).replace('\n', "\r\n");
            piece.bytes = text.into_bytes();
        }
        self
    }

    /// Puts a piece before the one of this index, or at the end.
    pub fn insert(mut self, index: usize, bytes: &str) -> Self {
        let piece = Piece {
            after: Duration::ZERO,
            bytes: bytes.into(),
        };
        self.pieces.insert(index.min(self.pieces.len()), piece);
        self
    }

    /// Puts an error within the stream, in the place of the pieces from this index on.
    pub fn error_at(self, index: usize, error: &Json) -> Self {
        let reply = self.end_after(index);
        let last = reply.pieces.len();
        reply.insert(last, &event(error))
    }

    /// Ends the body well after so many pieces.
    pub fn end_after(mut self, pieces: usize) -> Self {
        self.pieces.truncate(pieces);
        self
    }

    /// Closes after so many pieces, within the body.
    pub fn close_after(self, pieces: usize) -> Self {
        self.break_off(pieces, Ending::Close)
    }

    /// Resets the connection after so many pieces, within the body.
    pub fn reset_after(self, pieces: usize) -> Self {
        self.break_off(pieces, Ending::Reset)
    }

    /// Says nothing more after so many pieces, and keeps the connection.
    pub fn hang_after(self, pieces: usize) -> Self {
        self.break_off(pieces, Ending::Hang)
    }

    fn break_off(mut self, pieces: usize, ending: Ending) -> Self {
        // Where the length was told, it is that of the whole body.
        if self.framing == Framing::Length {
            let length = self.body_bytes().to_string();
            self = self.header("content-length", &length);
        }
        self.pieces.truncate(pieces);
        self.whole = false;
        self.ending = ending;
        self
    }

    /// Closes after so many bytes of the head.
    pub fn close_mid_head(mut self, bytes: usize) -> Self {
        self = self.close_after(0);
        self.head_bytes = Some(bytes);
        self
    }

    /// Tells the body's end by closing the connection, as HTTP/1.0 did.
    pub fn until_close(mut self) -> Self {
        self.framing = Framing::Close;
        self.ending = Ending::Close;
        self
    }

    /// Closes the connection after the whole answer.
    pub fn then_close(mut self) -> Self {
        self.ending = Ending::Close;
        self
    }

    pub(super) fn compile(self) -> Wire {
        let mut head = format!("HTTP/1.1 {} Scripted\r\n", self.status);
        let mut field = |name: &str, value: &str| head += &format!("{name}: {value}\r\n");
        for (name, value) in &self.headers {
            field(name, value);
        }
        match self.framing {
            Framing::Length if self.whole => {
                field("content-length", &self.body_bytes().to_string());
            }
            Framing::Chunked => field("transfer-encoding", "chunked"),
            Framing::Length | Framing::Close => {}
        }
        head += "\r\n";
        head.truncate(self.head_bytes.unwrap_or(head.len()));
        let mut pieces = self.pieces;
        if self.framing == Framing::Chunked && self.head_bytes.is_none() {
            for piece in &mut pieces {
                let size = format!("{:x}\r\n", piece.bytes.len());
                piece.bytes = [size.as_bytes(), &piece.bytes, b"\r\n"].concat();
            }
            if self.whole {
                pieces.push(Piece {
                    after: Duration::ZERO,
                    bytes: b"0\r\n\r\n".to_vec(),
                });
            }
        }
        Wire {
            before: self.delay_head,
            head: head.into_bytes(),
            pieces,
            ending: self.ending,
        }
    }
}

/// Where a stream of chat tells its usage.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum UsageAt {
    /// In a chunk of its own without choices.
    Last,
    /// In every chunk, as a running total.
    Every,
    Never,
}

/// An answer of OpenAI's chat.
#[derive(Debug, Clone)]
pub struct Chat {
    deltas: Vec<Json>,
    texts: Vec<String>,
    model: String,
    finish: Option<String>,
    usage_at: UsageAt,
    /// Tokens of the prompt, and of the answer.
    usage: (usize, usize),
    done: bool,
}

impl Chat {
    /// A chunk, and a token, for each text.
    pub fn new(texts: &[&str]) -> Self {
        Self {
            deltas: texts.iter().map(|text| json!({"content": text})).collect(),
            texts: texts.iter().map(|&text| text.to_owned()).collect(),
            model: "scripted".to_owned(),
            finish: Some("stop".to_owned()),
            usage_at: UsageAt::Last,
            usage: (7, texts.len()),
            done: true,
        }
    }

    /// Puts a delta after those so far: a part of a tool call, say, or of reasoning.
    pub fn delta(mut self, delta: Json) -> Self {
        self.deltas.push(delta);
        self
    }

    /// The model that is said to have answered.
    pub fn model(mut self, name: &str) -> Self {
        self.model = name.to_owned();
        self
    }

    /// Why the answer ends; none leaves the reason out, as a broken stream does.
    pub fn finish(mut self, reason: Option<&str>) -> Self {
        self.finish = reason.map(str::to_owned);
        self
    }

    /// Where usage is told.
    pub fn usage_at(mut self, place: UsageAt) -> Self {
        self.usage_at = place;
        self
    }

    /// Tokens that are told, whatever the texts are; zeros too.
    pub fn usage(mut self, prompt: usize, completion: usize) -> Self {
        self.usage = (prompt, completion);
        self
    }

    /// Leaves `[DONE]` out.
    pub fn without_done(mut self) -> Self {
        self.done = false;
        self
    }

    fn usage_json(&self, completion: usize) -> Json {
        let prompt = self.usage.0;
        json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion})
    }

    fn chunk(&self, choices: Json) -> Json {
        json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": self.model, "choices": choices})
    }

    /// As a stream.
    pub fn stream(&self) -> Reply {
        let mut events = Vec::new();
        for (i, delta) in self.deltas.iter().enumerate() {
            let mut delta = delta.clone();
            if i == 0 {
                delta["role"] = "assistant".into();
            }
            let choice = json!({"index": 0, "delta": delta, "finish_reason": null});
            let mut chunk = self.chunk(json!([choice]));
            if self.usage_at == UsageAt::Every {
                chunk["usage"] = self.usage_json((i + 1).min(self.usage.1));
            }
            events.push(event(&chunk));
        }
        if let Some(reason) = &self.finish {
            let choice = json!({"index": 0, "delta": {}, "finish_reason": reason});
            let mut chunk = self.chunk(json!([choice]));
            if self.usage_at == UsageAt::Every {
                chunk["usage"] = self.usage_json(self.usage.1);
            }
            events.push(event(&chunk));
        }
        if self.usage_at == UsageAt::Last {
            let mut chunk = self.chunk(json!([]));
            chunk["usage"] = self.usage_json(self.usage.1);
            events.push(event(&chunk));
        }
        if self.done {
            events.push("data: [DONE]\n\n".to_owned());
        }
        Reply::events(&events)
    }

    /// As one object; deltas that are not text are laid over the message.
    pub fn object(&self) -> Reply {
        let mut message = json!({"role": "assistant", "content": self.texts.concat()});
        for delta in &self.deltas[self.texts.len()..] {
            for (key, value) in delta.as_object().into_iter().flatten() {
                message[key] = value.clone();
            }
        }
        let choice = json!({"index": 0, "message": message, "finish_reason": self.finish});
        let mut body = json!({"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": self.model, "choices": [choice]});
        if self.usage_at != UsageAt::Never {
            body["usage"] = self.usage_json(self.usage.1);
        }
        Reply::json(200, &body)
    }
}

/// What a model makes of an answer that was begun for it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Prefill {
    /// It goes on from there.
    Honoured,
    /// It says something else.
    Ignored,
    /// It begins the same answer anew.
    Restarted,
}

/// The rest of an answer, where the request's last message is the assistant's beginning of it.
pub fn continuation(request: &Request, answer: &[&str], prefill: Prefill) -> Reply {
    let messages = &request.json()["messages"];
    let last = messages.as_array().and_then(|messages| messages.last());
    let begun = last
        .filter(|message| message["role"] == "assistant")
        .and_then(|message| message["content"].as_str());
    let mut shown = 0;
    let rest = answer.iter().skip_while(|text| {
        shown += text.len();
        shown <= begun.unwrap_or_default().len()
    });
    match prefill {
        Prefill::Honoured => Reply::chat_for(request, &rest.copied().collect::<Vec<_>>()),
        Prefill::Ignored if begun.is_some() => Reply::chat_for(request, &["Something", " else"]),
        Prefill::Ignored | Prefill::Restarted => Reply::chat_for(request, answer),
    }
}

/// An endpoint that sleeps: so many requests are refused, then it answers. One that asks to be held until
/// it is awake is held for `waking`, or refused when its `X-Scale-Up-Timeout` (seconds) is shorter.
pub fn waking(
    refusals: usize,
    waking: Duration,
    awake: impl Fn(&Request) -> Reply + Send + Sync + 'static,
) -> impl Fn(&Request) -> Reply + Send + Sync + 'static {
    move |request| {
        if request.nth >= refusals {
            return awake(request);
        }
        let hold = request.header("x-scale-up-timeout");
        let hold = hold.and_then(|seconds| seconds.parse().ok());
        match hold.map(Duration::from_secs) {
            None => Reply::asleep(),
            Some(most) if most < waking => Reply::asleep().delay_head(most),
            Some(_) => awake(request).delay_head(waking),
        }
    }
}

/// A model in a router's catalogue, run by one provider; prices in USD per million tokens, if it has any.
pub fn catalogue_entry(model: &str, provider: &str, prices: Option<(f64, f64)>) -> Json {
    let mut entry = json!({
        "provider": provider, "status": "live", "context_length": 131_072, "is_model_author": false,
        "supports_tools": true, "supports_structured_output": true,
    });
    if let Some((input, output)) = prices {
        entry["pricing"] = json!({"input": input, "output": output});
    }
    json!({
        "id": model, "object": "model", "created": 1, "owned_by": model.split('/').next(),
        "architecture": {"input_modalities": ["text"], "output_modalities": ["text"]},
        "providers": [entry],
    })
}

/// A time as HTTP writes it.
fn http_date(time: SystemTime) -> String {
    DateTime::<Utc>::from(time)
        .format("%a, %d %b %Y %H:%M:%S GMT")
        .to_string()
}

fn event(data: &Json) -> String {
    format!("data: {data}\n\n")
}
