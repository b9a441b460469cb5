//! What becomes of a request whose upstream fails: waited for, tried again, handed on, answered here, or told
//! as it is.

use serde_json::json;

use super::far::{
    ANYWHERE, BRISK, CHAT, SECRET, always, asked, chats, content, each, failing, limited, model,
    own, post_with, retry_after, sentence, shared, streaming, target, to, upstream, willing,
};
use super::{Setup, chat};
use crate::support::upstream::{Chat, Reply, Upstream, nobody};

/// Two upstreams with one token, and a third with another.
fn with_tokens(one: &Upstream, two: &Upstream, third: Option<&Upstream>) -> Setup {
    let token = |name: &str| format!("token_env = {name:?}\n");
    let mut setup = Setup::new()
        .add(ANYWHERE)
        .add(BRISK)
        .env("FIRST_TOKEN", "hf_firstfirstfirstfirstfirst")
        .env("SECOND_TOKEN", "hf_secondsecondsecondsecond")
        .add(&upstream(
            "one",
            "openai_compat",
            &one.url(),
            &token("FIRST_TOKEN"),
        ))
        .add(&target("one", "one", ""))
        .add(&upstream(
            "two",
            "openai_compat",
            &two.url(),
            &token("FIRST_TOKEN"),
        ))
        .add(&target("two", "two", ""));
    let mut chain = "\"one\", \"two\"".to_owned();
    if let Some(third) = third {
        setup = setup
            .add(&upstream(
                "third",
                "openai_compat",
                &third.url(),
                &token("SECOND_TOKEN"),
            ))
            .add(&target("third", "third", ""));
        chain += ", \"third\"";
    }
    setup.add(&model("m", false, &chain))
}

#[test]
fn a_refused_credential_is_told_and_used_nowhere_again() {
    let body = format!("{SECRET} hf_firstfirstfirstfirstfirst");
    let one = always(failing(401, &body));
    let two = willing(&["never"]);
    let setup = with_tokens(&one, &two, None);
    let server = setup.serve();
    for (question, nth) in [("One?", 1), ("Two?", 2)] {
        let refused = server.post(CHAT, &to("m", question));
        assert_eq!(refused.status, 424, "{refused:?}");
        let told = sentence(&refused);
        assert!(told.contains("one"), "{told}");
        assert!(told.contains("credential"), "{told}");
        assert!(!refused.body.contains(SECRET), "{refused:?}");
        assert!(!refused.body.contains("hf_"), "{refused:?}");
        assert_eq!(refused.header("retry-after"), None);
        assert_eq!((asked(&one), asked(&two)), (1, 0), "request {nth}");
    }
    assert!(!server.log().contains("hf_first"), "no token is logged");
}

#[test]
fn the_sentence_of_a_refused_credential_names_its_variable() {
    let one = always(failing(401, SECRET));
    let two = willing(&["never"]);
    let setup = with_tokens(&one, &two, None);
    let server = setup.serve();
    let told = sentence(&server.post(CHAT, &to("m", "One?")));
    assert!(
        told.contains("`one`") && told.contains("FIRST_TOKEN"),
        "{told}"
    );
}

#[test]
fn another_credential_is_tried_when_one_is_refused() {
    for status in [401, 402] {
        let one = always(failing(status, SECRET));
        let two = willing(&["never"]);
        let third = willing(&["From ", "the third."]);
        let setup = with_tokens(&one, &two, Some(&third));
        let server = setup.serve();
        for question in ["One?", "Two?"] {
            let answer = server.post(CHAT, &to("m", question));
            assert_eq!(content(&answer), "From the third.");
            assert_eq!(answer.header("x-route-upstream"), Some("third"));
        }
        assert_eq!((asked(&one), asked(&two), asked(&third)), (1, 0, 2));
    }
}

#[test]
fn a_credential_without_money_is_told_as_that() {
    let one = always(Reply::json(
        402,
        &json!({"error": format!("You have exceeded your monthly included credits {SECRET}")}),
    ));
    let two = willing(&["never"]);
    let setup = with_tokens(&one, &two, None);
    let server = setup.serve();
    for question in ["One?", "Two?"] {
        let refused = server.post(CHAT, &to("m", question));
        assert_eq!(refused.status, 424, "{refused:?}");
        let told = sentence(&refused);
        assert!(told.contains("one") && told.contains("credit"), "{told}");
        assert!(!told.contains(SECRET), "{told}");
        assert_eq!((asked(&one), asked(&two)), (1, 0));
    }
}

#[test]
fn a_failing_target_is_tried_twice_and_then_the_next_one_answers() {
    let bad = always(failing(500, SECRET));
    let good = willing(&["Better."]);
    let setup = Setup::new()
        .add(ANYWHERE)
        .add(BRISK)
        .add(&own("bad", "openai_compat", &bad.url()))
        .add(&own("good", "openai_compat", &good.url()))
        .add(&model("m", false, "\"bad\", \"good\""));
    let server = setup.serve();
    let answer = server.post(CHAT, &to("m", "Well?"));
    assert_eq!(content(&answer), "Better.");
    assert_eq!(answer.header("x-route-attempts"), Some("3"));
    assert_eq!(answer.header("x-route-upstream"), Some("good"));
    assert_eq!(answer.header("x-route-model"), Some("m-good"));
    assert_eq!((asked(&bad), asked(&good)), (2, 1));
    let models: Vec<_> = [&bad, &good]
        .iter()
        .map(|far| far.requests_for(CHAT)[0].json()["model"].clone())
        .collect();
    assert_eq!(models, ["m-bad", "m-good"], "each by its own name");
}

#[test]
fn a_request_that_two_targets_fail_at_is_tried_at_no_third() {
    for status in [500, 424] {
        let [one, two, three] = [(); 3].map(|()| always(failing(status, SECRET)));
        let setup = Setup::new()
            .add(ANYWHERE)
            .add("[remote.retry]\nmax_per_target = 1\nmax_attempts = 9\nmax_hops = 9\n")
            .add(&own("one", "openai_compat", &one.url()))
            .add(&own("two", "openai_compat", &two.url()))
            .add(&own("three", "openai_compat", &three.url()))
            .add(&model("m", false, "\"one\", \"two\", \"three\""));
        let server = setup.serve();
        let refused = server.post(CHAT, &to("m", "Poison?"));
        assert_eq!(refused.status, 424, "{refused:?}");
        assert!(!refused.body.contains(SECRET), "{refused:?}");
        assert_eq!((asked(&one), asked(&two), asked(&three)), (1, 1, 0));
    }
}

/// Every way in which an upstream gives no answer, by name; none of them says anything about the request.
fn faults() -> Vec<(&'static str, Option<Upstream>)> {
    let page = "<html><body>words-of-the-upstream</body></html>";
    let in_band = json!({"error": {"message": SECRET, "code": 500}});
    vec![
        ("refused", None),
        ("closed", Some(always(Reply::close()))),
        ("reset", Some(always(Reply::reset()))),
        (
            "half-head",
            Some(always(Reply::chat(&["x"]).close_mid_head(20))),
        ),
        ("html-502", Some(always(Reply::bad_gateway()))),
        (
            "html-200",
            Some(always(Reply::body(200, "text/html", page))),
        ),
        ("error-200", Some(always(Reply::json(200, &in_band)))),
        (
            "error-event",
            Some(always(Reply::events(&[format!("data: {in_band}\n\n")]))),
        ),
        (
            "garbage",
            Some(always(Reply::body(
                200,
                "application/json",
                "{\"choices\": [words-of",
            ))),
        ),
        (
            "garbage-event",
            Some(always(Reply::events(&["data: {words-of-the-upstream\n\n"]))),
        ),
        (
            "not-chat",
            Some(always(Reply::json(200, &json!({"words": SECRET})))),
        ),
        ("empty", Some(always(Reply::events(&["data: [DONE]\n\n"])))),
        (
            "no-http",
            Some(always(Reply::body(200, "text/plain", SECRET))),
        ),
        ("status-500", Some(always(failing(500, SECRET)))),
        ("status-503", Some(always(failing(503, SECRET)))),
        (
            "redirect",
            Some(always(Reply::redirect("http://127.0.0.1:1/"))),
        ),
        (
            "not-found",
            Some(always(Reply::body(404, "text/plain", SECRET))),
        ),
    ]
}

fn addresses(faults: &[(&'static str, Option<Upstream>)]) -> Vec<(&'static str, String)> {
    let url = |far: &Option<Upstream>| match far {
        Some(far) => far.url(),
        None => format!("http://{}", nobody()),
    };
    faults.iter().map(|(name, far)| (*name, url(far))).collect()
}

#[test]
fn this_machine_answers_for_every_upstream_that_does_not() {
    let faults = faults();
    let setup = Setup::new()
        .add(ANYWHERE)
        .add(BRISK)
        .policy("prefer-remote");
    let setup = each(setup, true, &addresses(&faults));
    let server = setup.serve();
    for (name, far) in &faults {
        // Each a conversation of its own.
        let headers = format!("x-route-session: {name}\r\n");
        let body = to(name, "What is the capital of France?");
        let answer = post_with(&server, CHAT, &headers, &body);
        assert_eq!(
            content(&answer),
            "The capital of France is Paris.",
            "{name}"
        );
        assert_eq!(
            answer.header("x-route-target"),
            Some("local"),
            "{name}: {answer:?}"
        );
        assert_eq!(
            answer.header("x-route-reason"),
            Some("remote_unavailable"),
            "{name}: {answer:?}"
        );
        assert!(!answer.body.contains("m-"), "{name}: {answer:?}");
        if let Some(far) = far {
            assert!((1..=3).contains(&asked(far)), "{name}: {}", asked(far));
        }
    }
}

#[test]
fn this_machine_streams_for_every_upstream_that_does_not() {
    let faults = faults();
    let setup = Setup::new()
        .add(ANYWHERE)
        .add(BRISK)
        .policy("prefer-remote");
    let setup = each(setup, true, &addresses(&faults));
    let server = setup.serve();
    for (name, _) in &faults {
        let headers = format!("x-route-session: {name}\r\n");
        let body = streaming(name, "What is the capital of France?");
        let answer = post_with(&server, CHAT, &headers, &body);
        let chunks: Vec<serde_json::Value> = answer
            .body
            .split_terminator("\n\n")
            .filter(|frame| !frame.starts_with(':') && *frame != "data: [DONE]")
            .map(|frame| serde_json::from_str(&frame[6..]).expect("an event"))
            .collect();
        let text = crate::support::chat::streamed(&chunks, 0);
        assert_eq!(
            text, "The capital of France is Paris.",
            "{name}: {answer:?}"
        );
        assert_eq!(answer.header("x-route-target"), Some("local"), "{name}");
        assert_eq!(
            answer.header("x-route-reason"),
            Some("remote_unavailable"),
            "{name}"
        );
    }
}

#[test]
fn without_this_machine_the_failure_is_told_in_our_words() {
    let faults = faults();
    let setup = Setup::new().add(ANYWHERE).add(BRISK).policy("remote-only");
    let setup = each(setup, true, &addresses(&faults));
    let server = setup.serve();
    for (name, far) in &faults {
        let refused = server.post(CHAT, &to(name, "Well?"));
        let expected = if *name == "status-503" { 429 } else { 424 };
        assert_eq!(refused.status, expected, "{name}: {refused:?}");
        assert!(
            sentence(&refused).contains(&format!("`{name}`")),
            "{refused:?}"
        );
        assert!(!refused.body.contains("words-of"), "{refused:?}");
        assert!(!refused.body.contains('<'), "{refused:?}");
        assert!(refused.header("x-route-request-id").is_some());
        if expected == 429 {
            assert!(retry_after(&refused) >= 1);
        }
        if let Some(far) = far {
            assert!((1..=3).contains(&asked(far)), "{name}: {}", asked(far));
        }
    }
}

#[test]
fn the_failure_that_says_most_is_told() {
    let odd = always(failing(401, SECRET));
    let bad = always(failing(502, SECRET));
    let wrong = always(failing(400, "`temperature` is too hot here"));
    for (chain, status, about) in [
        ("\"bad\", \"odd\"", 424, "`odd`"),
        ("\"odd\", \"bad\"", 424, "`odd`"),
        ("\"bad\", \"wrong\", \"odd\"", 422, "too hot here"),
    ] {
        let setup = Setup::new()
            .add(ANYWHERE)
            .add(BRISK)
            .env("SOME_TOKEN", "some-token")
            .add(&upstream(
                "odd",
                "openai_compat",
                &odd.url(),
                "token_env = \"SOME_TOKEN\"\n",
            ))
            .add(&target("odd", "odd", ""))
            .add(&own("bad", "openai_compat", &bad.url()))
            .add(&own("wrong", "openai_compat", &wrong.url()))
            .add(&model("m", false, chain));
        let server = setup.serve();
        let refused = server.post(CHAT, &to("m", "Well?"));
        assert_eq!(refused.status, status, "{chain}: {refused:?}");
        assert!(sentence(&refused).contains(about), "{chain}: {refused:?}");
    }
}

#[test]
fn a_wrong_request_goes_to_no_other_target() {
    let picky = always(failing(422, "`stop` may not be empty"));
    let other = willing(&["never"]);
    let setup = Setup::new()
        .add(ANYWHERE)
        .add(&own("picky", "openai_compat", &picky.url()))
        .add(&own("other", "openai_compat", &other.url()))
        .add(&model("m", true, "\"picky\", \"other\""))
        .policy("prefer-remote");
    let server = setup.serve();
    let refused = server.post(CHAT, &to("m", "Well?"));
    assert_eq!(refused.status, 422, "{refused:?}");
    assert!(sentence(&refused).contains("`picky`"), "{refused:?}");
    assert_eq!((asked(&picky), asked(&other)), (1, 0));
}

#[test]
fn no_request_makes_more_than_three_attempts() {
    let upstreams = [(); 5].map(|()| always(Reply::close()));
    let names = ["a", "b", "c", "d", "e"];
    let setup = Setup::new().add(ANYWHERE).add(BRISK);
    let setup = names
        .iter()
        .zip(&upstreams)
        .fold(setup, |setup, (name, far)| {
            setup.add(&own(name, "openai_compat", &far.url()))
        })
        .add(&model("m", false, "\"a\", \"b\", \"c\", \"d\", \"e\""));
    let server = setup.serve();
    let refused = server.post(CHAT, &to("m", "Well?"));
    assert_eq!(refused.status, 424, "{refused:?}");
    assert_eq!(refused.header("x-route-attempts"), Some("3"));
    let all: usize = upstreams.iter().map(asked).sum();
    assert_eq!(all, 3);
}

#[test]
fn a_hop_is_taken_upon_the_failures_it_is_for() {
    let first = Upstream::start(chats(
        |request| match request.json()["messages"][0]["content"].as_str() {
            Some("limit") => limited().header("retry-after", "0"),
            _ => failing(500, SECRET),
        },
    ));
    let relief = willing(&["Relief."]);
    let spare = willing(&["Spare."]);
    for (question, expected) in [("fail", "Spare."), ("limit", "Relief.")] {
        let setup = Setup::new()
            .add(ANYWHERE)
            .add("[remote.retry]\nmax_per_target = 1\n")
            .add(&shared("first", &first.url()))
            .add(&shared("relief", &relief.url()))
            .add(&shared("spare", &spare.url()))
            .add(&model(
                "m",
                false,
                "\"first\", { target = \"relief\", on = [\"rate_limited\"] }, \"spare\"",
            ));
        let server = setup.serve();
        assert_eq!(content(&server.post(CHAT, &to("m", question))), expected);
    }
    assert_eq!((asked(&relief), asked(&spare)), (1, 1));
}

#[test]
fn a_target_for_other_reasons_is_not_taken_for_this_one() {
    let far = willing(&["never"]);
    let setup = Setup::new()
        .add(ANYWHERE)
        .add(&shared("far", &far.url()))
        .add(&model(
            "spill",
            false,
            "{ target = \"far\", on = [\"overflow\"] }",
        ))
        .add(&model(
            "cheap",
            false,
            "{ target = \"far\", max_usd_per_request = 0.000001 }",
        ))
        .policy("remote-only");
    let server = setup.serve();
    let refused = server.post(CHAT, &to("spill", "Well?"));
    assert_eq!(refused.status, 424, "{refused:?}");
    let refused = server.post(CHAT, &to("cheap", "Well?"));
    assert_eq!(refused.status, 402, "{refused:?}");
    assert_eq!(asked(&far), 0);
}

#[test]
fn a_prompt_too_long_for_one_target_goes_to_one_with_more_context() {
    let error = json!({"error": {
        "message": "This model's maximum context length is 64 tokens. However, you requested 90 tokens.",
        "type": "invalid_request_error", "code": "context_length_exceeded",
    }});
    let small = always(Reply::json(400, &error));
    let same = willing(&["never"]);
    let large = willing(&["It fits."]);
    let sized = |name: &str, far: &Upstream, length: u32| {
        let upstream = upstream(name, "openai_compat", &far.url(), "");
        upstream + &target(name, name, &format!("context_length = {length}\n"))
    };
    let setup = Setup::new()
        .add(ANYWHERE)
        .add(&sized("small", &small, 2048))
        .add(&sized("same", &same, 64))
        .add(&sized("large", &large, 32768))
        .add(&model("m", false, "\"small\", \"same\", \"large\""));
    let server = setup.serve();
    let answer = server.post(CHAT, &to("m", "A long story?"));
    assert_eq!(content(&answer), "It fits.");
    assert_eq!(answer.header("x-route-upstream"), Some("large"));
    assert_eq!((asked(&small), asked(&same), asked(&large)), (1, 0, 1));

    let setup = Setup::new()
        .add(ANYWHERE)
        .add(&sized("small", &small, 2048))
        .add(&model("m", false, "\"small\""));
    let server = setup.serve();
    let refused = server.post(CHAT, &to("m", "A longer story?"));
    assert_eq!(refused.status, 422, "{refused:?}");
    assert_eq!(refused.json()["code"], "context_length_exceeded");
}

#[test]
fn whoever_ran_the_model_is_named() {
    let far = Upstream::start(chats(|request| {
        Reply::chat_for(request, &["Hello."]).provider("together")
    }));
    let setup = Setup::new()
        .add(ANYWHERE)
        .add(&own("far", "openai_compat", &far.url()))
        .add(&model("m", false, "\"far\""));
    let server = setup.serve();
    for body in [to("m", "Who?"), streaming("m", "Who else?")] {
        let answer = server.post(CHAT, &body);
        assert_eq!(answer.status, 200);
        assert_eq!(
            answer.header("x-route-provider"),
            Some("together"),
            "{answer:?}"
        );
        assert_eq!(answer.header("x-inference-provider"), None);
    }
}

#[test]
fn without_a_network_the_server_is_ready_at_once_and_serves() {
    let url = format!("http://{}", nobody());
    let setup = Setup::new()
        .add(ANYWHERE)
        .add(&own("far", "openai_compat", &url))
        .add(&own("near", "tgi", &url))
        .add(&upstream("end", "inference_endpoint", &url, ""))
        .add(&target("end", "end", ""))
        .add(&upstream("hf", "hf_router", &url, ""))
        .add("[[remote.target]]\nname = \"hf\"\nupstream = \"hf\"\nmodel = \"a/b\"\n")
        .add(&model(
            "default",
            true,
            "\"far\", \"near\", \"end\", \"hf\"",
        ));
    let server = setup.serve();
    assert_eq!(server.get("/health/ready").status, 200);
    let answer = server.post(CHAT, &chat("What is the capital of France?"));
    assert_eq!(content(&answer), "The capital of France is Paris.");
    assert_eq!(answer.header("x-route-target"), Some("local"));
}

#[test]
fn an_answer_that_breaks_its_schema_is_made_by_one_other_target() {
    let schema =
        json!({"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]});
    let body = |model: &str, question: &str| {
        let mut body = to(model, question);
        body["response_format"] = json!({
            "type": "json_schema",
            "json_schema": {"name": "age", "schema": schema, "strict": true},
        });
        body
    };
    let liar = willing(&["{\"age\": ", "\"three\"}"]);
    let vague = willing(&["three"]);
    let exact = willing(&["{\"age\": ", "3}"]);
    let setup = Setup::new()
        .add(ANYWHERE)
        .add(&own("liar", "openai_compat", &liar.url()))
        .add(&own("vague", "openai_compat", &vague.url()))
        .add(&own("exact", "openai_compat", &exact.url()))
        .add(&model("good", false, "\"liar\", \"exact\""))
        .add(&model("bad", false, "\"liar\", \"vague\", \"exact\""));
    let server = setup.serve();
    let answer = server.post(CHAT, &body("good", "How old?"));
    assert_eq!(content(&answer), "{\"age\": 3}");
    assert_eq!(answer.header("x-route-attempts"), Some("2"));
    let before = asked(&exact);
    let refused = server.post(CHAT, &body("bad", "How old, really?"));
    assert_eq!(refused.status, 424, "{refused:?}");
    assert!(sentence(&refused).contains("schema"), "{refused:?}");
    assert_eq!(asked(&exact), before, "one other target, not two");
    assert_eq!((asked(&liar), asked(&vague)), (2, 1));
}

#[test]
fn what_a_chat_only_names_in_passing_is_still_an_answer() {
    let answer = Chat::new(&["{\"error\": ", "\"none\"}"]);
    let far = Upstream::start(chats(move |request| {
        if request.streams() {
            answer.stream()
        } else {
            answer.object()
        }
    }));
    let setup = Setup::new()
        .add(ANYWHERE)
        .add(&own("far", "openai_compat", &far.url()))
        .add(&model("m", false, "\"far\""));
    let server = setup.serve();
    let reply = server.post(CHAT, &to("m", "Say error."));
    assert_eq!(content(&reply), "{\"error\": \"none\"}");
}
