//! What tests of failures share: chains of scripted upstreams as settings, and requests that say which answer
//! they want.

use std::time::Duration;

use serde_json::{Value as Json, json};

use super::Setup;
use crate::support::server::Server;
use crate::support::upstream::{Reply, Request, Upstream};
use crate::support::wire::{self, Reply as Answer};

pub const MS: fn(u64) -> Duration = Duration::from_millis;

/// Where OpenAI's dialect takes chats.
pub const CHAT: &str = "/v1/chat/completions";

/// What no answer may repeat of an upstream's refusal.
pub const SECRET: &str = "words-of-the-upstream";

/// What a caller may ask of everybody.
pub const ANYWHERE: &str = "[egress]\nanonymous = \"any\"\n";

/// Pauses between attempts that no test need wait for.
pub const BRISK: &str = "[remote.retry]\nbackoff_base_ms = 1\nbackoff_max_ms = 2\n";

/// No breaker opens, however much fails.
pub const PATIENT: &str =
    "[remote.breaker]\nconsecutive_failures = 100000\nmin_attempts = 100000\n";

/// An upstream of one's own with one target of the same name, for the model `m-<name>`.
pub fn own(name: &str, kind: &str, url: &str) -> String {
    format!(
        "{}{}",
        upstream(name, kind, url, ""),
        target(name, name, "")
    )
}

/// An upstream that many share, paid for by tokens.
pub fn shared(name: &str, url: &str) -> String {
    let upstream = upstream(
        name,
        "openai_compat",
        url,
        "billing = \"tokens\"\nmax_usd_per_day = 100\n",
    );
    let price = "price = { input = 1, output = 2 }\n";
    upstream + &target(name, name, price)
}

pub fn upstream(name: &str, kind: &str, url: &str, more: &str) -> String {
    format!(
        "[[remote.upstream]]\nname = \"{name}\"\nkind = \"{kind}\"\nbase_url = \"{url}\"\n{more}"
    )
}

pub fn target(name: &str, upstream: &str, more: &str) -> String {
    let can = "capabilities = { tools = true, structured_output = true, seed = true }\n";
    format!(
        "[[remote.target]]\nname = \"{name}\"\nupstream = \"{upstream}\"\nmodel = \"m-{name}\"\n{can}{more}"
    )
}

/// A public model with its chain, as TOML's list of targets.
pub fn model(name: &str, local: bool, targets: &str) -> String {
    format!("[[route.model]]\nname = \"{name}\"\nlocal = {local}\ntargets = [{targets}]\n")
}

/// A script for chats alone: everything else an upstream is asked for is not there.
pub fn chats(
    script: impl Fn(&Request) -> Reply + Send + Sync + 'static,
) -> impl Fn(&Request) -> Reply + Send + Sync + 'static {
    move |request| {
        if request.method == "POST" {
            script(request)
        } else {
            Reply::body(404, "text/plain", "not found")
        }
    }
}

/// An upstream that answers every chat.
pub fn willing(texts: &'static [&'static str]) -> Upstream {
    Upstream::start(chats(move |request| Reply::chat_for(request, texts)))
}

/// An upstream that answers every chat in the same way.
pub fn always(reply: Reply) -> Upstream {
    Upstream::start(chats(move |_| reply.clone()))
}

/// An error in OpenAI's shape.
pub fn failing(status: u16, message: &str) -> Reply {
    Reply::json(
        status,
        &json!({"error": {"message": message, "type": "some_error", "code": null}}),
    )
}

/// A shared upstream that wants fewer requests, without a word of when.
pub fn limited() -> Reply {
    failing(429, "slow down")
}

/// How often somebody asked for an answer.
pub fn asked(upstream: &Upstream) -> usize {
    let requests = upstream.requests();
    requests.iter().filter(|r| r.method == "POST").count()
}

/// A chat for a public model; equal questions are one conversation.
pub fn to(model: &str, question: &str) -> Json {
    let mut body = super::chat(question);
    body["model"] = model.into();
    body
}

/// The same, streamed.
pub fn streaming(model: &str, question: &str) -> Json {
    let mut body = to(model, question);
    body["stream"] = true.into();
    body
}

/// Sends JSON with more header lines, each ending in CRLF.
#[track_caller]
pub fn post_with(server: &Server, path: &str, headers: &str, body: &Json) -> Answer {
    server.send(&wire::post(path, headers, &body.to_string()))
}

/// The text of an answer's chat.
#[track_caller]
pub fn content(answer: &Answer) -> String {
    let body = answer.ok();
    let text = body["choices"][0]["message"]["content"].as_str();
    text.unwrap_or_else(|| panic!("no text: {answer:?}"))
        .to_owned()
}

/// The sentence of a refusal.
#[track_caller]
pub fn sentence(answer: &Answer) -> String {
    let body = answer.json();
    let error = &body["error"];
    let text = error.as_str().or_else(|| error["message"].as_str());
    text.unwrap_or_else(|| panic!("no sentence: {answer:?}"))
        .to_owned()
}

/// The whole seconds of a refusal's `Retry-After`.
#[track_caller]
pub fn retry_after(answer: &Answer) -> u64 {
    let value = answer.header("retry-after");
    let value = value.unwrap_or_else(|| panic!("no Retry-After: {answer:?}"));
    value
        .parse()
        .unwrap_or_else(|e| panic!("{e}: {value:?} in {answer:?}"))
}

/// Settings of several public models, each served by one upstream of its own.
pub fn each(setup: Setup, local: bool, upstreams: &[(&str, String)]) -> Setup {
    upstreams.iter().fold(setup, |setup, (name, url)| {
        setup
            .add(&own(name, "openai_compat", url))
            .add(&model(name, local, &format!("{name:?}")))
    })
}
