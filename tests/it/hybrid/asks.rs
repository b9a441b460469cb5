//! What a caller may ask for by headers, where its conversation stays, and in which words it is refused.

use serde_json::{Value as Json, json};
use tempfile::TempDir;

use super::far::{
    ANYWHERE, CHAT, PATIENT, always, asked, chats, content, failing, model, own, post_with,
    retry_after, sentence, shared, streaming, target, to, upstream, willing,
};
use super::{Setup, chat};
use crate::support::chat::{failed_stream, flat, nested};
use crate::support::models::model_id;
use crate::support::server::Sconce;
use crate::support::upstream::{Reply, Upstream};

const FRANCE: &str = "What is the capital of France?";

#[test]
fn a_caller_may_keep_its_text_here_and_not_send_it_away() {
    let far = willing(&["From afar."]);
    let with = |policy: &str| {
        Setup::new()
            .add(ANYWHERE)
            .add(&own("far", "openai_compat", &far.url()))
            .add(&model("default", true, "\"far\""))
            .policy(policy)
    };
    for (policy, wish, reason) in [
        ("prefer-remote", "local-only", "policy_local"),
        ("prefer-local", "remote-only", "local_ok"),
        ("prefer-local", "prefer-remote", "local_ok"),
        ("local-only", "prefer-remote", "policy_local"),
    ] {
        let setup = with(policy);
        let server = setup.serve();
        let before = asked(&far);
        let answer = post_with(
            &server,
            CHAT,
            &format!("x-route-policy: {wish}\r\n"),
            &chat(FRANCE),
        );
        assert_eq!(
            content(&answer),
            "The capital of France is Paris.",
            "{policy} {wish}"
        );
        assert_eq!(answer.header("x-route-target"), Some("local"));
        assert_eq!(
            answer.header("x-route-reason"),
            Some(reason),
            "{policy} {wish}"
        );
        assert_eq!(asked(&far), before);
        let wrong = post_with(&server, CHAT, "x-route-policy: anywhere\r\n", &chat(FRANCE));
        assert_eq!(wrong.status, 422, "{wrong:?}");
        assert!(sentence(&wrong).contains("x-route-policy"), "{wrong:?}");
    }
    let setup = with("remote-only");
    let server = setup.serve();
    let before = asked(&far);
    let answer = post_with(
        &server,
        CHAT,
        "x-route-policy: local-only\r\n",
        &chat(FRANCE),
    );
    assert_eq!(content(&answer), "The capital of France is Paris.");
    assert_eq!(asked(&far), before);
}

#[test]
fn a_key_that_may_widen_the_policy_does() {
    let far = willing(&["From afar."]);
    let keys = TempDir::new().expect("a temporary folder");
    let path = keys.path().join("keys.toml").display().to_string();
    std::fs::write(&path, "").expect("room for a key");
    let made = Sconce::new()
        .words(&["new", "--name", "wide"])
        .flag("--config", &path)
        .run("key");
    let key = String::from_utf8(made.stdout).expect("text");
    let key = key.trim();
    let table = std::fs::read_to_string(&path).expect("a key's table");
    let setup = Setup::new()
        .add("[egress]\ndefault = \"any\"\n")
        .add(&own("far", "openai_compat", &far.url()))
        .add(&model("default", true, "\"far\""))
        .add(&format!("{table}\nmay_widen_policy = true\n"));
    let server = setup.serve();
    let own = format!("authorization: Bearer {key}\r\n");
    let wide = format!("{own}x-route-policy: remote-only\r\n");
    assert_eq!(
        content(&post_with(&server, CHAT, &wide, &chat(FRANCE))),
        "From afar."
    );
    assert_eq!(asked(&far), 1);
    let headers = far.requests_for(CHAT)[0].headers.clone();
    assert!(
        !format!("{headers:?}").contains(key),
        "the caller's key stays here"
    );
    let plain = post_with(&server, CHAT, &own, &chat("What is the capital of Italy?"));
    assert_eq!(plain.header("x-route-target"), Some("local"));
}

#[test]
fn a_caller_names_the_most_that_its_answer_may_cost() {
    let far = willing(&["From ", "afar."]);
    let with = |policy: &str| {
        Setup::new()
            .add(ANYWHERE)
            .add(&shared("far", &far.url()))
            .add(&model("default", true, "\"far\""))
            .policy(policy)
    };
    let most = |usd: &str| format!("x-route-max-cost-usd: {usd}\r\n");
    let setup = with("prefer-remote");
    let server = setup.serve();
    let dear = post_with(&server, CHAT, &most("0.00001"), &chat(FRANCE));
    assert_eq!(dear.header("x-route-target"), Some("local"), "{dear:?}");
    assert_eq!(asked(&far), 0);
    let cheap = post_with(&server, CHAT, &most("0.01"), &to("default", "And Italy?"));
    assert_eq!(content(&cheap), "From afar.");
    // 7 tokens in at 1 USD, and 2 out at 2 USD a million.
    assert_eq!(cheap.header("x-route-cost-usd"), Some("0.000011"));
    for wrong in ["much", "-1", "1e-3", "0.0000000001"] {
        let refused = post_with(&server, CHAT, &most(wrong), &chat(FRANCE));
        assert_eq!(refused.status, 422, "{wrong}: {refused:?}");
    }

    let setup = with("remote-only");
    let server = setup.serve();
    let before = asked(&far);
    let refused = post_with(&server, CHAT, &most("0.00001"), &chat(FRANCE));
    assert_eq!(refused.status, 402, "{refused:?}");
    assert_eq!(refused.header("x-should-retry"), Some("false"));
    let told = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
    let told = json!({"inputs": told, "parameters": {"max_new_tokens": 8}});
    let refused = post_with(&server, "/generate", &most("0.000001"), &told);
    assert_eq!(refused.status, 424, "{refused:?}");
    assert_eq!(refused.json()["error_type"], "budget_exceeded");
    assert_eq!(asked(&far), before);
}

#[test]
fn a_strict_caller_gets_nothing_degraded() {
    let far = willing(&["From afar."]);
    let setup = Setup::new()
        .add("fidelity = \"lenient\"\n")
        .add(ANYWHERE)
        .add(&upstream("far", "openai_compat", &far.url(), ""))
        .add("[[remote.target]]\nname = \"far\"\nupstream = \"far\"\nmodel = \"m\"\ncapabilities = { seed = false }\n")
        .add(&model("default", true, "\"far\""))
        .policy("prefer-remote");
    let server = setup.serve();
    let seeded = |question: &str| {
        let mut body = to("default", question);
        body["seed"] = 7.into();
        body["temperature"] = 0.7.into();
        body
    };
    let lenient = server.post(CHAT, &seeded("One?"));
    assert_eq!(content(&lenient), "From afar.");
    assert_eq!(lenient.header("x-route-degraded"), Some("seed"));
    let strict = post_with(&server, CHAT, "x-route-strict: true\r\n", &seeded("Two?"));
    assert_eq!(strict.header("x-route-target"), Some("local"), "{strict:?}");
    assert_eq!(strict.header("x-route-reason"), Some("not_eligible:seed"));
    assert_eq!(strict.header("x-route-degraded"), None);
    assert_eq!(asked(&far), 1);
    let wrong = post_with(
        &server,
        CHAT,
        "x-route-strict: perhaps\r\n",
        &seeded("Three?"),
    );
    assert_eq!(wrong.status, 422, "{wrong:?}");
}

/// Refuses whoever sends this field, as providers do.
fn without(field: &'static str, words: &'static str) -> Upstream {
    Upstream::start(chats(move |request| {
        if request.json().get(field).is_none() {
            return Reply::chat_for(request, &["From afar."]);
        }
        let error = json!({"message": words, "type": "invalid_request_error", "param": field});
        Reply::json(400, &json!({ "error": error }))
    }))
}

/// One upstream that is sent what it does not do exactly, too.
fn lenient(far: &Upstream) -> Setup {
    Setup::new()
        .add("fidelity = \"lenient\"\n")
        .add(ANYWHERE)
        .add(&shared("far", &far.url()))
        .add(&model("default", true, "\"far\""))
        .policy("remote-only")
}

#[test]
fn a_field_that_a_target_does_not_know_is_left_out_and_not_sent_again() {
    let far = without("stream_options", "Unrecognized request argument supplied");
    let setup = Setup::one("openai_compat", &far.url(), "m").policy("remote-only");
    let server = setup.serve();
    for asked_by_then in [2, 3] {
        let answer = server.post(CHAT, &streaming("default", "Hi?"));
        assert!(answer.body.contains("From afar."), "{answer:?}");
        assert_eq!(asked(&far), asked_by_then);
    }

    let far = without("seed", "seed is not supported by this model");
    let setup = lenient(&far);
    let server = setup.serve();
    let mut body = to("default", "Hi?");
    body["seed"] = 7.into();
    body["temperature"] = 0.7.into();
    for asked_by_then in [2, 3] {
        let answer = server.post(CHAT, &body);
        assert_eq!(content(&answer), "From afar.");
        assert_eq!(answer.header("x-route-degraded"), Some("seed"));
        assert_eq!(asked(&far), asked_by_then);
    }

    // A value that is wrong is no field that is unknown.
    let far = without("seed", "Unsupported value: 'seed' must be even");
    let setup = lenient(&far);
    let server = setup.serve();
    assert_eq!(server.post(CHAT, &body).status, 422);
    assert_eq!(asked(&far), 1);
}

#[test]
fn what_a_refusal_quotes_of_a_prompt_is_not_learned() {
    let far = Upstream::start(chats(move |request| {
        let body = request.json();
        let said = body["messages"][0]["content"].as_str().unwrap_or_default();
        if said.contains("supported") && body.get("seed").is_some() {
            return failing(400, said);
        }
        Reply::chat_for(request, &["From afar."])
    }));
    let setup = lenient(&far);
    let server = setup.serve();
    let mut body = to("default", "'seed' is not supported");
    body["seed"] = 7.into();
    body["temperature"] = 0.7.into();
    assert_eq!(content(&server.post(CHAT, &body)), "From afar.");
    assert_eq!(asked(&far), 2, "for this request it is believed");
    body["messages"][0]["content"] = "Hi?".into();
    assert_eq!(content(&server.post(CHAT, &body)), "From afar.");
    let last = far.requests_for(CHAT).pop().expect("a request");
    assert_eq!(last.json()["seed"], 7, "for the next one it is not");
}

#[test]
fn a_prompts_own_beginning_is_not_doubled_elsewhere() {
    let far = always(Reply::generate_stream(&["From", " afar."]));
    let setup = Setup::one("tgi", &far.url(), "m").policy("prefer-remote");
    let near = setup.sconce().flag("--model-id", &model_id("llama-tied"));
    let near = near.serve();
    for (prompt, sent) in [
        ("<|begin_of_text|>Once", "Once"),
        ("Once", "Once"),
        ("Once<|begin_of_text|>", "Once<|begin_of_text|>"),
    ] {
        let before = asked(&far);
        let body = json!({"inputs": prompt, "parameters": {"max_new_tokens": 4}});
        let answer = near.post("/generate", &body).ok();
        assert_eq!(answer["generated_text"], "From afar.");
        let requests = far.requests();
        let mut requests = requests.iter().filter(|r| r.method == "POST").skip(before);
        let request = requests.next().expect("a prompt went out");
        assert_eq!(request.json()["inputs"], sent, "{prompt}");
    }
}

#[test]
fn a_conversation_stays_where_it_was_answered() {
    for (policy, local) in [
        ("prefer-remote", true),
        ("remote-only", true),
        ("prefer-local", false),
    ] {
        let first = Upstream::start(chats(|request| match request.nth {
            0 => failing(429, "not now").header("retry-after", "0"),
            _ => Reply::chat_for(request, &["First."]),
        }));
        let second = willing(&["Second."]);
        let setup = Setup::new()
            .add(ANYWHERE)
            .add(&shared("first", &first.url()))
            .add(&shared("second", &second.url()))
            .add(&model("default", local, "\"first\", \"second\""))
            .policy(policy);
        let server = setup.serve();
        let ask = |session: &str, question: &str| {
            let session = format!("x-route-session: {session}\r\n");
            post_with(&server, CHAT, &session, &to("default", question))
        };
        assert_eq!(content(&ask("one", "Hello?")), "Second.", "{policy}");
        assert_eq!(content(&ask("two", "Hello?")), "First.", "{policy}");
        for question in ["And?", "And then?", "Hello?"] {
            let again = ask("one", question);
            assert_eq!(content(&again), "Second.", "{policy} {local}: {again:?}");
            assert_eq!(again.header("x-route-attempts"), Some("1"));
            assert_eq!(content(&ask("two", question)), "First.", "{policy} {local}");
        }
    }
}

#[test]
fn a_conversation_moves_on_when_its_target_is_gone() {
    let first = Upstream::start(chats(|request| match request.nth {
        0 => Reply::chat_for(request, &["First."]),
        _ => failing(429, "not now").header("retry-after", "600"),
    }));
    let second = willing(&["Second."]);
    let setup = Setup::new()
        .add(ANYWHERE)
        .add(&shared("first", &first.url()))
        .add(&shared("second", &second.url()))
        .add(&model("default", true, "\"first\", \"second\""))
        .policy("prefer-remote");
    let server = setup.serve();
    let ask = |question: &str| {
        let session = "x-route-session: one\r\n";
        content(&post_with(&server, CHAT, session, &to("default", question)))
    };
    let answers = ["1?", "2?", "3?"].map(ask);
    assert_eq!(answers, ["First.", "Second.", "Second."]);
    assert_eq!(asked(&first), 2);
}

#[test]
fn a_hiccup_does_not_pin_a_conversation_to_this_machine() {
    let far = Upstream::start(chats(|request| match request.nth {
        0 => Reply::bad_gateway(),
        _ => Reply::chat_for(request, &["From afar."]),
    }));
    let setup = Setup::new()
        .add(ANYWHERE)
        .add("[remote.retry]\nmax_attempts = 1\n")
        .add(&own("far", "openai_compat", &far.url()))
        .add(&model("default", true, "\"far\""))
        .policy("prefer-remote");
    let server = setup.serve();
    let first = server.post(CHAT, &chat(FRANCE));
    assert_eq!(first.header("x-route-target"), Some("local"));
    assert_eq!(content(&server.post(CHAT, &chat(FRANCE))), "From afar.");
}

#[test]
fn conversations_with_two_models_are_two() {
    let far = willing(&["From afar."]);
    let setup = Setup::new()
        .add(ANYWHERE)
        .add(&own("far", "openai_compat", &far.url()))
        .add(&model("here", true, ""))
        .add(&model("there", true, "\"far\""))
        .policy("prefer-remote");
    let server = setup.serve();
    let here = server.post(CHAT, &to("here", FRANCE));
    assert_eq!(here.header("x-route-target"), Some("local"), "{here:?}");
    assert_eq!(
        content(&server.post(CHAT, &to("there", FRANCE))),
        "From afar."
    );
}

/// The same call on every route that collects an answer.
fn calls() -> Vec<(&'static str, Json)> {
    let told = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
    vec![
        (
            "/generate",
            json!({"inputs": told, "parameters": {"max_new_tokens": 8}}),
        ),
        (CHAT, to("tgi", "Hi")),
        ("/v1/completions", json!({"prompt": told, "max_tokens": 8})),
        (
            "/v1/responses",
            json!({"input": "Hi", "max_output_tokens": 8}),
        ),
        (
            "/v1/messages",
            json!({"model": "tgi", "max_tokens": 8, "messages": [{"role": "user", "content": "Hi"}]}),
        ),
    ]
}

/// A server of this dialect before an upstream that gives this answer.
fn facing(reply: Reply, compat: &str) -> (Upstream, Setup) {
    let far = always(reply);
    let setup = Setup::new()
        .flag("--compat", compat)
        .add(ANYWHERE)
        .add("[remote.retry]\nmax_attempts = 1\n")
        .add(PATIENT)
        .add(&upstream(
            "far",
            "openai_compat",
            &far.url(),
            "billing = \"tokens\"\nmax_usd_per_day = 9\n",
        ))
        .add(&target("far", "far", "price = { input = 1, output = 2 }\n"))
        .add(&model("default", false, "\"far\""))
        .policy("remote-only");
    (far, setup)
}

fn anthropic(message: &str, kind: &str) -> String {
    json!({"type": "error", "error": {"type": kind, "message": message}}).to_string()
}

fn native(message: &str, kind: &str) -> String {
    json!({"error": message, "error_type": kind}).to_string()
}

#[test]
fn an_upstreams_failure_is_told_in_the_words_of_each_route() {
    let text = "Request failed during generation: upstream `far` failed";
    for compat in ["tgi", "openai"] {
        let (_far, setup) = facing(failing(500, "words-of-the-upstream"), compat);
        let server = setup.serve();
        for (path, body) in calls() {
            let told = server.post(path, &body);
            let (status, expected) = match (path, compat) {
                ("/generate", _) => (424, native(text, "generation")),
                ("/v1/messages", _) => (500, anthropic(text, "api_error")),
                (_, "tgi") => (424, flat(text, "generation", "server_error", None)),
                _ => (500, nested(text, "server_error", "server_error", None)),
            };
            assert_eq!(
                (told.status, told.body.as_str()),
                (status, expected.as_str()),
                "{compat} {path}"
            );
            assert_eq!(told.header("retry-after"), None);
        }
    }
}

#[test]
fn a_limit_is_told_in_the_words_of_each_route() {
    for compat in ["tgi", "openai"] {
        for (path, body) in calls() {
            let limited = failing(429, "words-of-the-upstream").header("retry-after", "30");
            let (_far, setup) = facing(limited, compat);
            let server = setup.serve();
            let told = server.post(path, &body);
            assert_eq!(told.status, 429, "{compat} {path}: {told:?}");
            let wait = retry_after(&told);
            assert!((30..=32).contains(&wait), "{wait}");
            let text = format!(
                "Model is overloaded: upstream `far` limits requests; try again in {wait} s"
            );
            let expected = match (path, compat) {
                ("/generate", _) => native(&text, "overloaded"),
                ("/v1/messages", _) => anthropic(&text, "rate_limit_error"),
                (_, "tgi") => flat(&text, "overloaded", "rate_limit_exceeded", None),
                _ => nested(&text, "rate_limit_error", "rate_limit_exceeded", None),
            };
            assert_eq!(told.body, expected, "{compat} {path}");
            // The same once the upstream is left alone.
            let again = server.post(path, &body);
            assert_eq!(again.status, 429, "{compat} {path}: {again:?}");
            assert!((1..=wait + 2).contains(&retry_after(&again)), "{again:?}");
        }
    }
}

#[test]
fn a_stream_that_never_began_is_told_in_the_words_of_each_dialect() {
    let text = "Request failed during generation: upstream `far` failed";
    for compat in ["tgi", "openai"] {
        let (_far, setup) = facing(failing(500, "words-of-the-upstream"), compat);
        let server = setup.serve();
        let told = server.post(CHAT, &streaming("tgi", "Hi"));
        if compat == "tgi" {
            assert_eq!(told.status, 200, "{told:?}");
            let events: Vec<&str> = told.body.split_inclusive("\n\n").collect();
            let events: String = events.into_iter().filter(|e| !e.starts_with(':')).collect();
            assert_eq!(
                events,
                failed_stream(text, 424, "generation", "server_error")
            );
        } else {
            assert_eq!(told.status, 500, "{told:?}");
            assert_eq!(
                told.body,
                nested(text, "server_error", "server_error", None)
            );
        }
        let mut inputs = calls().remove(0).1;
        inputs["stream"] = true.into();
        let told = server.post("/generate_stream", &inputs);
        assert_eq!(told.status, 200, "{told:?}");
        let last = told.body.split_terminator("\n\n").last().expect("an event");
        let data = last.strip_prefix("data:").expect("an event").trim_start();
        assert_eq!(data, native(text, "generation"), "{told:?}");
    }
}
