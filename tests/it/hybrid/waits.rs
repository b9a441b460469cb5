//! What is remembered of a failure, and for how long its upstream is left alone: limits, sleep, pauses, breakers,
//! and the budget of retries.

use std::time::{Duration, SystemTime};

use super::Setup;
use super::far::{
    ANYWHERE, CHAT, MS, PATIENT, SECRET, always, asked, chats, content, failing, limited, model,
    own, post_with, retry_after, sentence, shared, target, to, upstream, willing,
};
use super::front::key;
use crate::support::server::Server;
use crate::support::upstream::{Reply, Request, Upstream, waking};
use crate::support::{eventually, pause, wire};

/// One upstream of this kind with these settings, the only one that answers for a model.
fn only(far: &Upstream, kind: &str, more: &str) -> Setup {
    Setup::new()
        .add(ANYWHERE)
        .add(&upstream("far", kind, &far.url(), more))
        .add(&target("far", "far", ""))
        .add(&model("m", false, "\"far\""))
}

#[test]
fn every_form_of_retry_after_is_kept_and_nothing_is_sent_before_it_is_over() {
    let now = SystemTime::now();
    let seconds = Duration::from_secs;
    let mut forms = vec![
        ("seconds", limited().header("retry-after", "7"), 7),
        ("decimals", limited().header("retry-after", "7.5"), 8),
        ("ms", limited().header("retry-after-ms", "7100"), 8),
        ("date", limited().retry_at(now, seconds(90)), 90),
        (
            "clock",
            limited().retry_at(now + seconds(5000), seconds(40)),
            40,
        ),
        ("draft", limited().rate_limit(100, 0, 9), 9),
        (
            "requests",
            limited()
                .header("x-ratelimit-remaining-requests", "0")
                .header("x-ratelimit-reset-requests", "1m2.5s"),
            63,
        ),
        (
            "tokens",
            limited()
                .header("x-ratelimit-remaining-tokens", "0")
                .header("x-ratelimit-reset-tokens", "11s"),
            11,
        ),
    ];
    // The older two forms of a date, against the upstream's own clock.
    let dated = || limited().header("date", "Sun, 06 Nov 1994 08:49:00 GMT");
    let old = "Sunday, 06-Nov-94 08:49:37 GMT";
    forms.push(("rfc850", dated().header("retry-after", old), 37));
    let older = "Sun Nov  6 08:49:48 1994";
    forms.push(("asctime", dated().header("retry-after", older), 48));
    // Without a word of when, a time of its own.
    forms.push(("none", limited(), 1));
    let upstreams: Vec<(&str, Upstream, u64)> = forms
        .into_iter()
        .map(|(name, reply, least)| (name, always(reply), least))
        .collect();
    let setup = upstreams
        .iter()
        .fold(Setup::new().add(ANYWHERE), |setup, (name, far, _)| {
            setup
                .add(&shared(name, &far.url()))
                .add(&model(name, false, &format!("{name:?}")))
        });
    let server = setup.serve();
    for (name, far, least) in &upstreams {
        let first = server.post(CHAT, &to(name, "Are you there?"));
        assert_eq!(first.status, 429, "{name}: {first:?}");
        let wait = retry_after(&first);
        assert!(wait >= *least && wait <= least + 10, "{name}: {wait}");
        let again = server.post(CHAT, &to(name, "And now?"));
        assert_eq!(again.status, 429, "{name}: {again:?}");
        assert!(retry_after(&again) >= 1, "{name}: {again:?}");
        assert!(retry_after(&again) <= wait + 2, "{name}: {again:?}");
        assert_eq!(asked(far), 1, "{name}: nothing within the time");
    }
}

#[test]
fn a_parked_upstream_is_left_alone_while_another_answers() {
    let busy = always(limited().header("retry-after", "600"));
    let other = willing(&["Here ", "I am."]);
    let setup = Setup::new()
        .add(ANYWHERE)
        .add(&shared("busy", &busy.url()))
        .add(&shared("other", &other.url()))
        .add(&model("both", false, "\"busy\", \"other\""));
    let server = setup.serve();
    let first = server.post(CHAT, &to("both", "One?"));
    assert_eq!(content(&first), "Here I am.");
    assert_eq!(first.header("x-route-upstream"), Some("other"));
    assert_eq!(first.header("x-route-attempts"), Some("2"));
    for question in ["Two?", "Three?"] {
        let next = server.post(CHAT, &to("both", question));
        assert_eq!(content(&next), "Here I am.");
        assert_eq!(next.header("x-route-attempts"), Some("1"));
    }
    assert_eq!((asked(&busy), asked(&other)), (1, 3));
}

#[test]
fn an_answer_that_used_up_a_limit_is_the_last_until_it_is_renewed() {
    let far = Upstream::start(chats(|request| {
        Reply::chat_for(request, &["Here."])
            .header("x-ratelimit-remaining-requests", "0")
            .header("x-ratelimit-reset-requests", "1s")
    }));
    let setup = only(&far, "openai_compat", "");
    let server = setup.serve();
    for _ in 0..3 {
        let answer = server.post(CHAT, &to("m", "Hi?"));
        assert_eq!(content(&answer), "Here.", "{answer:?}");
        assert_eq!(answer.header("x-route-attempts"), Some("1"));
    }
    // Also of those who waited for room when the limit was used up.
    let setup = only(&far, "openai_compat", "max_concurrency = 1\n");
    let server = setup.serve();
    pause(MS(1000));
    let callers: Vec<_> = (0..3)
        .map(|i| in_background(&server, "", &to("m", &format!("Caller {i}?"))))
        .collect();
    for caller in callers {
        let answer = caller.join().expect("an answer");
        assert_eq!(content(&answer), "Here.", "{answer:?}");
    }
    let times: Vec<_> = far.requests_for(CHAT).iter().map(|r| r.at).collect();
    assert_eq!(times.len(), 6);
    for pair in times.windows(2) {
        assert!(pair[1] - pair[0] >= MS(1000), "{times:?}");
    }
}

#[test]
fn a_limit_holds_for_every_model_of_the_same_account_and_for_no_other() {
    let limiter = always(limited().header("retry-after", "600"));
    let other = willing(&["Here."]);
    let price = "price = { input = 1, output = 2 }\n";
    let setup = Setup::new()
        .add(ANYWHERE)
        .add(&shared("one", &limiter.url()))
        .add(&target("sibling", "one", price))
        .add(&shared("other", &other.url()))
        .add(&model("m", false, "\"one\", \"sibling\""))
        .add(&model("n", false, "\"sibling\", \"other\""));
    let server = setup.serve();
    let first = server.post(CHAT, &to("m", "One?"));
    assert_eq!(first.status, 429, "{first:?}");
    assert!(retry_after(&first) >= 600, "{first:?}");
    assert_eq!(content(&server.post(CHAT, &to("n", "Two?"))), "Here.");
    assert_eq!((asked(&limiter), asked(&other)), (1, 1));
}

#[test]
fn the_wait_that_is_told_is_never_too_short() {
    let far = always(limited().header("retry-after", "2"));
    let setup = Setup::new()
        .add(ANYWHERE)
        .add("[remote.parking]\nwait_max_seconds = 0\n")
        .add(&shared("far", &far.url()))
        .add(&model("m", false, "\"far\""));
    let server = setup.serve();
    for i in 0..2 {
        let refused = server.post(CHAT, &to("m", &format!("Try {i}?")));
        assert_eq!(refused.status, 429, "{refused:?}");
        assert_eq!(asked(&far), i + 1, "whoever waits as told is let through");
        pause(Duration::from_secs(retry_after(&refused)));
    }
}

#[test]
fn a_retry_that_would_come_too_late_is_not_made() {
    let far = Upstream::start(chats(|request| match request.nth {
        0 => limited().header("retry-after", "3"),
        _ => Reply::chat_for(request, &["Too late."]),
    }));
    let setup = Setup::new()
        .add(ANYWHERE)
        .add(&shared("far", &far.url()))
        .add(&model("m", false, "\"far\""));
    let server = setup.serve();
    let soon = "x-route-deadline-ms: 5000\r\n";
    let refused = post_with(&server, CHAT, soon, &to("m", "Soon?"));
    assert_eq!(refused.status, 429, "{refused:?}");
    assert!(retry_after(&refused) >= 3, "{refused:?}");
    assert_eq!(asked(&far), 1);
}

#[test]
fn a_short_wait_is_waited_for_where_nobody_else_is() {
    let far = Upstream::start(chats(|request| match request.nth {
        0 => limited().header("retry-after", "1"),
        _ => Reply::chat_for(request, &["Late."]),
    }));
    let setup = Setup::new()
        .add(ANYWHERE)
        .add(&shared("far", &far.url()))
        .add(&model("m", false, "\"far\""));
    let server = setup.serve();
    assert_eq!(content(&server.post(CHAT, &to("m", "Soon?"))), "Late.");
    let requests = far.requests_for(CHAT);
    assert_eq!(requests.len(), 2);
    let apart = requests[1].at - requests[0].at;
    assert!(apart >= Duration::from_secs(1), "{apart:?}");
}

/// Asks for an answer in a thread, and gives it when it is there.
fn in_background(
    server: &Server,
    headers: &str,
    body: &serde_json::Value,
) -> std::thread::JoinHandle<wire::Reply> {
    let stream = wire::send(
        server.address(),
        &wire::post(CHAT, headers, &body.to_string()),
    );
    std::thread::spawn(move || wire::receive(stream))
}

#[test]
fn five_callers_wake_a_sleeping_endpoint_once() {
    // The first request finds it asleep; the one that wakes it is held until it is awake.
    let far = Upstream::start(chats(waking(2, MS(1500), |request| {
        Reply::chat_for(request, &["Awake."])
    })));
    let setup = only(
        &far,
        "inference_endpoint",
        "engine = \"vllm\"\nscales_to_zero = true\n",
    )
    .add("[remote.cold_start]\nprior_seconds = 20\n");
    let server = setup.serve();
    let sleeping = post_with(
        &server,
        CHAT,
        "x-route-deadline-ms: 8000\r\n",
        &to("m", "Zero?"),
    );
    assert_eq!(sleeping.status, 429, "{sleeping:?}");
    assert!((15..=21).contains(&retry_after(&sleeping)), "{sleeping:?}");
    assert_eq!(asked(&far), 1);
    let first = far.await_request(0);
    assert_eq!(first.header("x-scale-up-timeout"), None, "nobody knew");
    let callers: Vec<_> = (0..5)
        .map(|i| in_background(&server, "", &to("m", &format!("Caller {i}?"))))
        .collect();
    let waker = far.await_request(1);
    let mut answered = 0;
    for caller in callers {
        let answer = caller.join().expect("an answer");
        if answer.status == 429 {
            // Not everybody must wait, but everybody is told for how long.
            assert!((10..=21).contains(&retry_after(&answer)), "{answer:?}");
        } else {
            assert_eq!(content(&answer), "Awake.");
            answered += 1;
        }
    }
    assert!(answered >= 1);
    let hold: u64 = waker
        .header("x-scale-up-timeout")
        .expect("a hold")
        .parse()
        .expect("whole seconds");
    assert!((20..=600).contains(&hold), "{hold}");
    let mut requests = far.requests();
    requests.retain(|request| request.method == "POST");
    assert_eq!(
        requests.len(),
        1 + answered,
        "one waker, and those that came after it"
    );
    let held = |request: &&Request| request.header("x-scale-up-timeout").is_some();
    assert_eq!(requests.iter().filter(held).count(), 1);
    for later in &requests[2..] {
        assert!(later.at - waker.at >= MS(1500), "{later:?}");
    }
}

#[test]
fn a_waker_asks_to_be_held_only_for_as_long_as_its_caller_waits() {
    let far = Upstream::start(chats(waking(2, MS(100), |request| {
        Reply::chat_for(request, &["Awake."])
    })));
    let setup = only(
        &far,
        "inference_endpoint",
        "engine = \"vllm\"\nscales_to_zero = true\n",
    )
    .add("[remote.cold_start]\nprior_seconds = 10\n");
    let server = setup.serve();
    let answer = post_with(
        &server,
        CHAT,
        "x-route-deadline-ms: 40000\r\n",
        &to("m", "Hello?"),
    );
    assert_eq!(content(&answer), "Awake.");
    let waker = far.await_request(1);
    let hold: u64 = waker
        .header("x-scale-up-timeout")
        .expect("a hold")
        .parse()
        .expect("whole seconds");
    assert!((10..=35).contains(&hold), "{hold}");
}

#[test]
fn a_paused_endpoint_is_told_as_that_and_left_alone() {
    let far = always(Reply::paused());
    let setup = only(
        &far,
        "inference_endpoint",
        "engine = \"vllm\"\nscales_to_zero = true\n",
    );
    let server = setup.serve();
    for question in ["One?", "Two?"] {
        let refused = server.post(CHAT, &to("m", question));
        assert_eq!(refused.status, 424, "{refused:?}");
        let told = sentence(&refused);
        assert!(told.contains("far") && told.contains("paused"), "{told}");
        assert_eq!(asked(&far), 1);
    }
}

#[test]
fn retries_end_with_their_budget() {
    let far = always(failing(502, SECRET));
    let setup = Setup::new()
        .add(ANYWHERE)
        .add("[remote.retry]\nbackoff_base_ms = 1\nbackoff_max_ms = 1\nbudget_ratio = 0.2\nbudget_ttl_seconds = 60\nbudget_floor_per_second = 0.0\n")
        .add(PATIENT)
        .add(&own("far", "openai_compat", &far.url()))
        .add(&model("m", false, "\"far\""));
    let server = setup.serve();
    for i in 0..20 {
        let refused = server.post(CHAT, &to("m", &format!("Try {i}?")));
        assert_eq!(refused.status, 424, "{refused:?}");
    }
    let retries = asked(&far) - 20;
    assert!(
        (1..=4).contains(&retries),
        "a fifth of 20 at most: {retries}"
    );
}

fn breaking(url: &str, breaker: &str) -> Setup {
    Setup::new()
        .add(ANYWHERE)
        .add("[remote.retry]\nmax_attempts = 1\n[remote.parking]\nwait_max_seconds = 0\n")
        .add(&format!("[remote.breaker]\n{breaker}"))
        .add(&own("far", "openai_compat", url))
        .add(&model("m", false, "\"far\""))
}

#[test]
fn a_target_that_fails_five_times_is_left_out_and_tried_again_later() {
    let far = Upstream::start(chats(|request| match request.nth {
        0..6 => failing(500, SECRET),
        _ => Reply::chat_for(request, &["Back."]),
    }));
    let setup = breaking(
        &far.url(),
        "open_base_seconds = 2\npanic_interval_seconds = 1\n",
    );
    let server = setup.serve();
    for i in 0..5 {
        let refused = server.post(CHAT, &to("m", &format!("Try {i}?")));
        assert_eq!(refused.status, 424, "{refused:?}");
    }
    // Nobody else can answer: one request in a while is let through to see.
    let trial = server.post(CHAT, &to("m", "Sixth?"));
    assert_eq!(trial.status, 424, "{trial:?}");
    let shut = server.post(CHAT, &to("m", "Seventh?"));
    assert_eq!(shut.status, 429, "{shut:?}");
    assert!((1..=5).contains(&retry_after(&shut)), "{shut:?}");
    assert_eq!(asked(&far), 6, "fast, without asking");
    for i in 0..3 {
        eventually("it is used again", || {
            let answer = server.post(CHAT, &to("m", &format!("Later {i}?")));
            if answer.status == 429 {
                pause(MS(100));
                return None;
            }
            assert_eq!(content(&answer), "Back.");
            Some(())
        });
    }
}

#[test]
fn where_nobody_else_answers_one_request_in_a_while_tries_a_target_that_is_left_out() {
    let far = Upstream::start(chats(|request| match request.nth {
        0..5 => failing(500, SECRET),
        _ => Reply::chat_for(request, &["Back."]),
    }));
    let setup = breaking(
        &far.url(),
        "open_base_seconds = 250\npanic_interval_seconds = 1\n",
    );
    let server = setup.serve();
    for i in 0..5 {
        let refused = server.post(CHAT, &to("m", &format!("Try {i}?")));
        assert_eq!(refused.status, 424, "{refused:?}");
    }
    eventually("one is let through", || {
        let answer = server.post(CHAT, &to("m", "Later?"));
        if answer.status == 429 {
            pause(MS(100));
            return None;
        }
        assert_eq!(content(&answer), "Back.");
        Some(())
    });
}

#[test]
fn a_target_that_is_left_out_costs_nothing_where_another_one_answers() {
    let bad = always(failing(500, SECRET));
    let good = willing(&["Good."]);
    let setup = Setup::new()
        .add(ANYWHERE)
        .add("[remote.retry]\nmax_per_target = 1\nbudget_floor_per_second = 1000.0\n[remote.breaker]\nopen_base_seconds = 200\n")
        .add(&own("bad", "openai_compat", &bad.url()))
        .add(&own("good", "openai_compat", &good.url()))
        .add(&model("m", false, "\"bad\", \"good\""));
    let server = setup.serve();
    for i in 0..8 {
        let answer = server.post(CHAT, &to("m", &format!("Try {i}?")));
        assert_eq!(content(&answer), "Good.");
        let attempts = if i < 5 { "2" } else { "1" };
        assert_eq!(answer.header("x-route-attempts"), Some(attempts), "{i}");
    }
    assert_eq!((asked(&bad), asked(&good)), (5, 8));
}

/// One upstream that takes this long for an answer, before which callers wait.
fn slow(time: Duration, at_once: usize, parking: &str) -> (Upstream, Setup) {
    let far = Upstream::start(chats(move |request| {
        Reply::chat_for(request, &["Here."]).delay_head(time)
    }));
    let most = format!("max_concurrency = {at_once}\n");
    let setup = only(&far, "openai_compat", &most).add(&format!("[remote.parking]\n{parking}"));
    (far, setup)
}

/// How many requests an upstream had at once, at most, when it takes this long for each.
fn at_once(far: &Upstream, time: Duration) -> usize {
    let begun: Vec<_> = far.requests_for(CHAT).iter().map(|r| r.at).collect();
    let others = |at| {
        let began_before = begun.iter().filter(|other| **other <= at);
        began_before.filter(|other| **other + time > at).count()
    };
    begun.iter().map(|at| others(*at)).max().unwrap_or(0)
}

#[test]
fn more_callers_than_a_target_takes_at_once_wait_for_room() {
    let time = MS(200);
    let (far, setup) = slow(time, 2, "");
    let server = setup.serve();
    let began = std::time::Instant::now();
    let callers: Vec<_> = (0..10)
        .map(|i| in_background(&server, "", &to("m", &format!("Caller {i}?"))))
        .collect();
    for caller in callers {
        let answer = caller.join().expect("an answer");
        assert_eq!(content(&answer), "Here.", "{answer:?}");
        assert_eq!(answer.header("x-route-attempts"), Some("1"));
        let ms = |name: &str| answer.header(name).and_then(|ms| ms.parse::<u64>().ok());
        let looked_at = ms("x-validation-time").expect("a time");
        assert!(looked_at < 200, "waiting is no looking: {answer:?}");
    }
    assert_eq!(asked(&far), 10);
    assert_eq!(at_once(&far, time), 2, "all the room is used, and no more");
    // Room is taken as soon as it is there, not at the next look at a clock.
    assert!(began.elapsed() < 4 * (5 * time), "{:?}", began.elapsed());
}

#[test]
fn no_more_wait_than_may_and_none_longer_than_it_may() {
    let (far, setup) = slow(MS(2500), 1, "max_waiting = 2\nwait_max_seconds = 1\n");
    let server = setup.serve();
    let ask = |i: usize| in_background(&server, "", &to("m", &format!("Caller {i}?")));
    let first = ask(0);
    eventually("the first is under way", || {
        (asked(&far) == 1).then_some(())
    });
    let others: Vec<_> = (1..6).map(ask).collect();
    let began = std::time::Instant::now();
    let mut waited = 0;
    for other in others {
        let refused = other.join().expect("an answer");
        assert_eq!(refused.status, 429, "{refused:?}");
        assert!(retry_after(&refused) >= 1, "{refused:?}");
        waited += usize::from(began.elapsed() > MS(700));
    }
    assert!(waited >= 1, "those who may wait do so for a second");
    assert_eq!(content(&first.join().expect("an answer")), "Here.");
    assert_eq!(asked(&far), 1);
}

#[test]
fn the_earlier_deadline_goes_first_and_who_left_is_passed_over() {
    let (far, setup) = slow(MS(700), 1, "");
    let server = setup.serve();
    let ask = |name: &str, headers: &str| in_background(&server, headers, &to("m", name));
    let first = ask("first", "");
    eventually("the first is under way", || {
        (asked(&far) == 1).then_some(())
    });
    let patient = ask("patient", "x-route-deadline-ms: 60000\r\n");
    pause(MS(50));
    let body = to("m", "gone").to_string();
    let headers = "x-route-deadline-ms: 20000\r\n";
    let gone = wire::send(server.address(), &wire::post(CHAT, headers, &body));
    pause(MS(50));
    let hurried = ask("hurried", "x-route-deadline-ms: 30000\r\n");
    pause(MS(100));
    drop(gone);
    for caller in [first, patient, hurried] {
        assert_eq!(content(&caller.join().expect("an answer")), "Here.");
    }
    let asked: Vec<String> = far
        .requests_for(CHAT)
        .iter()
        .map(|request| request.json()["messages"][0]["content"].to_string())
        .collect();
    assert_eq!(asked, ["\"first\"", "\"hurried\"", "\"patient\""]);
}

#[test]
fn a_key_with_many_requests_does_not_keep_others_waiting() {
    let (far, setup) = slow(MS(400), 1, "");
    let (alice, first_table) = key("alice", "egress = \"any\"");
    let (bob, second_table) = key("bob", "egress = \"any\"");
    let setup = setup.add(&first_table).add(&second_table);
    let server = setup.serve();
    let ask = |key: &str, name: &str| {
        let headers = format!("Authorization: Bearer {key}\r\n");
        let caller = in_background(&server, &headers, &to("m", name));
        pause(MS(20));
        caller
    };
    let mut callers = vec![ask(&alice, "a0")];
    eventually("the first is under way", || {
        (asked(&far) == 1).then_some(())
    });
    callers.extend(["a1", "a2", "a3"].map(|name| ask(&alice, name)));
    callers.push(ask(&bob, "b"));
    for caller in callers {
        assert_eq!(content(&caller.join().expect("an answer")), "Here.");
    }
    let asked: Vec<String> = far
        .requests_for(CHAT)
        .iter()
        .map(|request| request.json()["messages"][0]["content"].to_string())
        .collect();
    assert_eq!(
        asked,
        ["a0", "a1", "b", "a2", "a3"].map(|name| format!("{name:?}"))
    );
}

#[test]
fn a_limit_of_requests_a_minute_is_kept_by_waiting() {
    let far = willing(&["Here."]);
    let setup = only(&far, "openai_compat", "rpm = 60\n");
    let server = setup.serve();
    let mut waited = 0;
    for i in 0..70 {
        let began = std::time::Instant::now();
        let answer = server.post(CHAT, &to("m", &format!("Try {i}?")));
        assert_eq!(content(&answer), "Here.", "{i}: {answer:?}");
        waited += usize::from(began.elapsed() > MS(300));
        if waited >= 2 {
            break;
        }
    }
    assert!(waited >= 2, "the minute's requests were used up");
}

#[test]
fn a_caller_who_leaves_while_waiting_asks_for_nothing_more() {
    let far = Upstream::start(chats(|request| match request.nth {
        0 => limited().header("retry-after", "2"),
        _ => Reply::chat_for(request, &["Here."]),
    }));
    let setup = Setup::new()
        .add(ANYWHERE)
        .add(&shared("far", &far.url()))
        .add(&model("m", false, "\"far\""));
    let server = setup.serve();
    let body = to("m", "Are you there?").to_string();
    let gone = wire::send(server.address(), &wire::post(CHAT, "", &body));
    far.await_request(0);
    drop(gone);
    // Whoever asks once the time is over is the second to ask.
    eventually("the time is over", || {
        let answer = server.post(CHAT, &to("m", "And now?"));
        if answer.status == 429 {
            pause(MS(100));
            return None;
        }
        assert_eq!(content(&answer), "Here.");
        Some(())
    });
    pause(MS(500));
    assert_eq!(asked(&far), 2);
}

#[test]
fn nobody_races_a_slow_target_unless_the_operator_says_so() {
    let slow = Upstream::start(chats(|request| {
        Reply::chat_for(request, &["Slow."]).delay_head(MS(1500))
    }));
    let quick = willing(&["Quick."]);
    let with = |hedge: &str| {
        Setup::new()
            .add(ANYWHERE)
            .add(hedge)
            .add(&own("slow", "openai_compat", &slow.url()))
            .add(&own("quick", "openai_compat", &quick.url()))
            .add(&model("m", false, "\"slow\", \"quick\""))
    };
    let setup = with("");
    let server = setup.serve();
    assert_eq!(content(&server.post(CHAT, &to("m", "Well?"))), "Slow.");
    assert_eq!((asked(&slow), asked(&quick)), (1, 0));
}

#[test]
fn a_race_is_won_by_the_first_token_and_the_loser_is_let_go() {
    let slow = Upstream::start(chats(|_| Reply::hang()));
    let quick = willing(&["Quick."]);
    let setup = Setup::new()
        .add(ANYWHERE)
        // Nothing but the race ends the wait.
        .add("[remote.clocks]\nheaders_seconds = 300\nfirst_token_min_seconds = 300\nfirst_token_max_seconds = 300\n")
        .add("[remote.retry]\nhedge = true\nhedge_after_min_ms = 200\nhedge_ratio = 1.0\n")
        .add(&own("slow", "openai_compat", &slow.url()))
        .add(&own("quick", "openai_compat", &quick.url()))
        .add(&model("m", false, "\"slow\", \"quick\""));
    let server = setup.serve();
    let answer = server.post(CHAT, &to("m", "Well?"));
    assert_eq!(content(&answer), "Quick.");
    assert_eq!(answer.header("x-route-upstream"), Some("quick"));
    assert_eq!((asked(&slow), asked(&quick)), (1, 1));
    let requests = slow.requests();
    let lost = requests.iter().find(|request| request.method == "POST");
    slow.await_closed(lost.expect("a request"));
}
