//! The board as a whole: every row of the table of classes, restarts, and random histories.

use std::collections::BTreeSet;
use std::time::UNIX_EPOCH;

use proptest::prelude::*;

use super::*;
use crate::remote::catalog::samples;
use crate::remote::{TargetConfig, UpstreamConfig, UpstreamKind};

const S: Duration = Duration::from_secs(1);
const MIN: Duration = Duration::from_secs(60);

fn upstream(name: &str, kind: UpstreamKind, token: &str) -> UpstreamConfig {
    UpstreamConfig {
        base_url: "https://example.test".to_owned(),
        token_env: Some("HF_TOKEN".to_owned()),
        token: Some(Secret::new(token.to_owned())),
        ..samples::upstream(name, kind)
    }
}

fn target(name: &str, upstream: &str, provider: Option<&str>) -> TargetConfig {
    TargetConfig {
        provider: provider.map_or(ProviderChoice::Whoever, |provider| {
            ProviderChoice::Pinned(provider.into())
        }),
        ..samples::target(name, upstream, "org/model")
    }
}

/// Two models by one provider and one by another behind a router; an endpoint with the same token; a machine
/// with another.
fn config() -> Config {
    Config {
        upstreams: vec![
            upstream("router", UpstreamKind::HfRouter, "hf_first"),
            upstream("endpoint", UpstreamKind::InferenceEndpoint, "hf_first"),
            upstream("own", UpstreamKind::OpenAiCompat, "sk_second"),
        ],
        targets: vec![
            target("a", "router", Some("groq")),
            target("b", "router", Some("groq")),
            target("c", "router", Some("together")),
            target("e", "endpoint", None),
            target("o", "own", None),
        ],
        ..Config::default()
    }
}

fn wall() -> SystemTime {
    // 2026-11-21 12:00:00 UTC.
    UNIX_EPOCH + Duration::from_secs(1_795_262_400)
}

fn board(config: &Config) -> (Board, Instant) {
    let now = Instant::now();
    (Board::new(config, 7, now, wall()), now)
}

/// Of a request that somebody else could answer, too.
fn ask(expected: Expected) -> Ask<'static> {
    Ask {
        provider: None,
        has_alternative: true,
        expected,
        turn: None,
    }
}

fn begin(board: &Board, target: &str, now: Instant) -> Result<Ticket, NotNow> {
    board.begin(target, now, ask(Expected::default()))
}

fn fail(board: &Board, target: &str, class: Class, hint: Option<Duration>, now: Instant) {
    let ticket = begin(board, target, now).expect("nothing speaks against it");
    let failed = Outcome::Failed {
        class,
        retry_after: hint,
    };
    ticket.finish(failed, now);
}

fn answer(board: &Board, target: &str, now: Instant) {
    let mut ticket = begin(board, target, now).expect("nothing speaks against it");
    ticket.first_token(now);
    ticket.finish(ANSWERED, now);
}

const ANSWERED: Outcome = Outcome::Answered {
    output_tokens: 10,
    used_tokens: None,
};

fn states(board: &Board, now: Instant) -> Vec<&'static str> {
    let views = board.views(now);
    views.iter().map(|view| view.state.name()).collect()
}

/// What one failure of each class does to every target, and how many open the breaker, if any number does.
#[test]
fn every_row_of_the_table_of_classes() {
    let closed = ["closed"; 5];
    for class in Class::ALL {
        let (after_one, opens_after) = match class {
            Class::Transport | Class::Timeout | Class::ServerError | Class::MidStream => {
                (closed, Some(5))
            }
            Class::Overloaded => (closed, Some(10)),
            Class::RateLimited => (["parked", "parked", "closed", "closed", "closed"], None),
            Class::ColdStart => (["waking", "waking", "waking", "closed", "closed"], None),
            Class::Paused => (["paused", "paused", "paused", "closed", "closed"], None),
            Class::NotServed | Class::Unstreamed => (
                ["misconfigured", "closed", "closed", "closed", "closed"],
                None,
            ),
            Class::AuthFailed => (
                [
                    "auth_failed",
                    "auth_failed",
                    "auth_failed",
                    "auth_failed",
                    "closed",
                ],
                None,
            ),
            Class::QuotaExhausted => (["quota", "quota", "quota", "quota", "closed"], None),
            Class::Misconfigured => (
                [
                    "misconfigured",
                    "misconfigured",
                    "misconfigured",
                    "closed",
                    "closed",
                ],
                None,
            ),
            Class::BadRequest
            | Class::ContextOverflow
            | Class::ToolCall
            | Class::SchemaViolation
            | Class::ContentFilter
            | Class::ClientGone
            | Class::Deadline
            | Class::LocalPressure => (closed, None),
        };
        let (all, now) = board(&config());
        fail(&all, "a", class, None, now);
        assert_eq!(states(&all, now), after_one, "{class:?}");

        let (all, now) = board(&config());
        let mut failures = 0;
        while all
            .view("a", now)
            .is_some_and(|view| view.state == TargetState::Closed)
            && failures < 40
        {
            fail(&all, "a", class, None, now);
            failures += 1;
        }
        let opened = all
            .view("a", now)
            .is_some_and(|view| matches!(view.state, TargetState::Open { .. }));
        assert_eq!(opened.then_some(failures), opens_after, "{class:?}");
        let siblings = &states(&all, now)[1..3];
        let all_open = siblings.iter().all(|state| *state == "open");
        assert_eq!(
            all_open,
            class == Class::Transport,
            "the network is the upstream's"
        );
    }
}

#[test]
fn a_caller_who_leaves_counts_against_nobody() {
    let (board, now) = board(&config());
    for _ in 0..50 {
        let mut ticket = begin(&board, "a", now).expect("closed");
        ticket.first_token(now);
        drop(ticket);
        drop(begin(&board, "a", now).expect("closed"));
    }
    let view = board.view("a", now).expect("there");
    assert_eq!((view.state, view.inflight), (TargetState::Closed, 0));
    for _ in 0..5 {
        fail(&board, "a", Class::Timeout, None, now);
    }
    for _ in 0..50 {
        let later = now + 10 * S;
        drop(begin(&board, "a", later).expect("the trial's place is free again"));
    }
}

#[test]
fn a_refused_credential_is_tried_each_ten_minutes_and_at_once_when_it_changes() {
    let (board, now) = board(&config());
    fail(&board, "a", Class::AuthFailed, None, now);
    assert_eq!(
        begin(&board, "e", now + 9 * MIN).err(),
        Some(NotNow::AuthFailed)
    );
    let later = now + 10 * MIN;
    assert!(board.view("e", later).expect("there").admits);
    let trial = begin(&board, "e", later).expect("one trial");
    assert_eq!(begin(&board, "a", later).err(), Some(NotNow::AuthFailed));
    let refused = Outcome::failed(&Fault::new(Class::AuthFailed, ""));
    trial.finish(refused, later);
    assert_eq!(
        begin(&board, "a", later + 9 * MIN).err(),
        Some(NotNow::AuthFailed)
    );
    answer(&board, "a", later + 10 * MIN);
    assert_eq!(states(&board, later + 10 * MIN), ["closed"; 5]);

    let now = later + 11 * MIN;
    let late = begin(&board, "a", now).expect("closed");
    fail(&board, "a", Class::AuthFailed, None, now);
    let token = Secret::new("hf_third".to_owned());
    board.credential_changed("router", Some(&token), now + S);
    assert_eq!(
        states(&board, now + S),
        ["closed", "closed", "closed", "auth_failed", "closed"]
    );
    late.finish(refused, now + 2 * S);
    assert_eq!(
        states(&board, now + 2 * S)[0],
        "closed",
        "it used the old one"
    );
}

#[test]
fn a_spent_quota_is_looked_at_each_quarter_hour_and_opens_with_the_month() {
    let (board, now) = board(&config());
    fail(&board, "a", Class::QuotaExhausted, None, now);
    assert_eq!(
        begin(&board, "b", now + 14 * MIN).err(),
        Some(NotNow::Quota)
    );
    fail(&board, "b", Class::QuotaExhausted, None, now + 15 * MIN);
    assert_eq!(
        begin(&board, "b", now + 29 * MIN).err(),
        Some(NotNow::Quota)
    );
    // Nine and a half days are left of November.
    let month = now + 19 * 12 * 60 * MIN;
    assert_eq!(states(&board, month - S)[0], "quota");
    assert_eq!(states(&board, month)[0], "closed");
    let several: Vec<_> = (0..3).map(|_| begin(&board, "a", month)).collect();
    assert!(several.iter().all(Result::is_ok));
}

#[test]
fn a_wait_with_a_time_is_kept_and_longer_than_any_shorter_one() {
    let (board, now) = board(&config());
    let second = begin(&board, "b", now).expect("closed");
    fail(&board, "a", Class::RateLimited, Some(30 * S), now);
    second.finish(
        Outcome::Failed {
            class: Class::RateLimited,
            retry_after: Some(S),
        },
        now,
    );
    for target in ["a", "b"] {
        let Err(NotNow::Parked(wait)) = begin(&board, target, now + 29 * S) else {
            panic!("it is parked");
        };
        assert!(wait >= S);
        let fault = NotNow::Parked(wait).fault();
        assert_eq!(
            (fault.class, fault.retry_after),
            (Class::RateLimited, Some(wait))
        );
    }
    assert!(begin(&board, "a", now + 31 * S).is_ok());
}

#[test]
fn one_request_wakes_an_endpoint_and_the_others_learn_when() {
    let (board, now) = board(&config());
    fail(&board, "e", Class::ColdStart, None, now);
    let waker = begin(&board, "e", now + S).expect("the waker");
    assert_eq!(waker.scale_up_timeout(300 * S, now + S), Some(295 * S));
    assert_eq!(waker.scale_up_timeout(60 * S, now + S), None);
    let others = begin(&board, "e", now + 30 * S).err();
    assert_eq!(others, Some(NotNow::Waking(150 * S)));
    waker.finish(ANSWERED, now + 90 * S);
    assert_eq!(states(&board, now + 90 * S)[3], "closed");

    let now = now + 100 * S;
    fail(&board, "e", Class::ColdStart, None, now);
    assert_eq!(
        board.view("e", now).expect("there").retry_after(),
        Some(90 * S)
    );
    fail(&board, "e", Class::ColdStart, None, now + 10 * MIN);
    assert_eq!(states(&board, now + 15 * MIN)[3], "open");
    let still = board.view("e", now + 15 * MIN + 299 * S).expect("there");
    assert_eq!(still.state.name(), "open");
    assert_eq!(states(&board, now + 20 * MIN)[3], "half_open");
}

#[test]
fn a_control_plane_pauses_and_resumes() {
    let (board, now) = board(&config());
    board.endpoint("endpoint", EndpointState::Paused, now);
    assert_eq!(begin(&board, "e", now).err(), Some(NotNow::Paused));
    board.endpoint("endpoint", EndpointState::Waking, now);
    assert!(board.is_waking("endpoint", now));
    board.endpoint("endpoint", EndpointState::Running, now + S);
    assert_eq!(states(&board, now + S)[3], "closed");
}

#[test]
fn a_model_that_is_not_served_waits_for_the_next_catalogue() {
    let (board, now) = board(&config());
    fail(&board, "c", Class::NotServed, None, now);
    let view = board.view("c", now).expect("there");
    assert!(
        view.sentence()
            .contains("`org/model` by provider `together`")
    );
    board.catalogue_read("router", |target| target != "b", now + S);
    assert_eq!(
        states(&board, now + S),
        ["closed", "misconfigured", "closed", "closed", "closed"]
    );
}

#[test]
fn when_every_target_is_open_one_request_in_five_seconds_goes_out() {
    let (board, now) = board(&config());
    let names: Vec<Arc<str>> = vec!["a".into(), "o".into()];
    for name in ["a", "o"] {
        for _ in 0..5 {
            fail(&board, name, Class::Timeout, None, now);
        }
    }
    let expected = Expected::default();
    let trial = board.trial(&names, now, expected, None).expect("the first");
    assert!(board.trial(&names, now + S, expected, None).is_err());
    trial.finish(
        Outcome::failed(&Fault::new(Class::Timeout, "")),
        now + 2 * S,
    );
    assert!(board.trial(&names, now + 4 * S, expected, None).is_err());
    for step in [5, 10] {
        let mut trial = board
            .trial(&names, now + step * S, expected, None)
            .expect("due");
        trial.first_token(now + step * S);
        trial.finish(ANSWERED, now + step * S);
    }
    assert_eq!(states(&board, now + 10 * S)[0], "closed");
    assert!(
        board.trial(&names, now + 20 * S, expected, None).is_err(),
        "no panic"
    );
}

#[test]
fn limits_of_requests_and_of_rates_are_kept() {
    let mut config = config();
    config.upstreams[2].max_concurrency = Some(2);
    config.upstreams[0].rpm = Some(2);
    config.upstreams[1].tpm = Some(1000);
    let (board, now) = board(&config);
    let held = [begin(&board, "o", now), begin(&board, "o", now)];
    assert!(held.iter().all(Result::is_ok));
    assert_eq!(begin(&board, "o", now).err(), Some(NotNow::Saturated));
    drop(held);
    assert!(begin(&board, "o", now).is_ok());

    answer(&board, "a", now);
    answer(&board, "b", now);
    assert_eq!(begin(&board, "a", now).err(), Some(NotNow::Parked(30 * S)));
    assert!(begin(&board, "c", now).is_ok(), "another provider");

    let large = Expected {
        prompt_tokens: 500,
        output_tokens: 500,
    };
    let ticket = board.begin("e", now, ask(large)).expect("a minute's worth");
    assert_eq!(
        board.begin("e", now, ask(large)).err(),
        Some(NotNow::Parked(60 * S))
    );
    let answered = Outcome::Answered {
        output_tokens: 100,
        used_tokens: Some(400),
    };
    ticket.finish(answered, now);
    assert_eq!(
        board.begin("e", now, ask(large)).err(),
        Some(NotNow::Parked(24 * S))
    );
}

#[test]
fn retries_and_hedges_are_paid_from_their_upstreams_budget() {
    let mut config = config();
    config.retry.hedge = true;
    let (board, now) = board(&config);
    assert!(board.may_retry("router", now), "the floor");
    assert!(!board.may_retry("router", now));
    assert!(!board.may_hedge("own", now));
    for _ in 0..50 {
        board.first_attempt("own", now);
    }
    assert!(board.may_hedge("own", now));
    assert!(!board.may_hedge("own", now));
    assert!(!board.may_retry("nobody", now));
    assert_eq!(board.hedge_after("a", 10), Some(2 * S));
    assert_eq!(board.first_token_clock("a", 10, true), Some(120 * S));
}

#[test]
fn what_must_be_mended_and_what_is_parked_outlives_a_restart() {
    let (old, now) = board(&config());
    fail(&old, "c", Class::RateLimited, Some(100 * S), now);
    fail(&old, "o", Class::AuthFailed, None, now);
    old.endpoint("endpoint", EndpointState::Paused, now);
    for _ in 0..5 {
        fail(&old, "a", Class::Timeout, None, now);
    }
    let json = serde_json::to_string(&old.save(now)).expect("plain");
    assert!(!json.contains("hf_first") && !json.contains("sk_second"));
    let saved: Saved = serde_json::from_str(&json).expect("its own form");
    assert_eq!(saved, old.save(now));

    let later = now + 60 * S;
    let new = Board::new(&config(), 1, later, wall() + 60 * S);
    new.restore(&saved, later);
    assert_eq!(
        states(&new, later),
        ["closed", "closed", "parked", "paused", "auth_failed"]
    );
    assert_eq!(states(&new, later + 52 * S)[2], "closed");
    assert!(begin(&new, "o", now + 10 * MIN).is_ok());

    let mut renewed = config();
    renewed.upstreams[2].token = Some(Secret::new("sk_renewed".to_owned()));
    let new = Board::new(&renewed, 1, later, wall() + 60 * S);
    new.restore(&saved, later);
    assert_eq!(states(&new, later)[4], "closed");

    let back = Board::new(&config(), 1, now, wall() - 400 * 24 * 60 * MIN);
    back.restore(&saved, now);
    let long = now + Duration::from_secs(3602);
    assert_eq!(
        states(&back, long)[2],
        "closed",
        "a clock set back parks nobody for a year"
    );
}

#[test]
fn every_state_has_a_sentence_that_names_its_place_and_no_secret() {
    let mut config = config();
    config.upstreams[2].disabled = Some("variable `X` is not set".to_owned());
    let (board, now) = board(&config);
    let mut view = board.view("a", now).expect("there");
    let until = now + 2 * S;
    for state in [
        TargetState::Closed,
        TargetState::HalfOpen,
        TargetState::Open { until },
        TargetState::Parked { until },
        TargetState::Waking { eta: 2 * S },
        TargetState::AuthFailed,
        TargetState::Quota,
        TargetState::Paused,
        TargetState::Misconfigured("why".to_owned()),
        TargetState::Disabled("why".to_owned()),
        TargetState::Saturated,
    ] {
        view.state = state;
        let text = view.sentence();
        assert!(text.contains("`a`") || text.contains("`router`"), "{text}");
        assert!(!text.contains("hf_first"));
    }
    view.state = TargetState::AuthFailed;
    assert_eq!(
        view.sentence(),
        "upstream `router` refuses the token in `HF_TOKEN`; renew it and its permissions. It is tried once in 10 min, and when the token changes"
    );
    let own = board.view("o", now).expect("there");
    assert_eq!(
        own.sentence(),
        "upstream `own` is disabled: variable `X` is not set"
    );
    assert!(!format!("{board:?}").contains("hf_first"));
}

#[test]
fn links_tell_the_retry_loop_who_shares_what() {
    let (board, now) = board(&config());
    let link = |name| board.link(name, BTreeSet::new()).expect("there");
    assert_eq!(link("a").credential, link("e").credential);
    assert_ne!(link("a").credential, link("o").credential);
    assert_eq!(link("c").provider.as_deref(), Some("together"));
    assert_eq!(link("a").least_left, 2 * S);
    for _ in 0..10 {
        let mut slow = begin(&board, "a", now).expect("closed");
        slow.first_token(now + 9 * S);
        slow.finish(ANSWERED, now + 9 * S);
    }
    assert!(link("a").least_left > 7 * S);
}

proptest! {
    #[test]
    fn no_request_begins_inside_a_park_window_and_what_is_under_way_adds_up(
        events in prop::collection::vec(
            (0usize..5, 0u8..8, 0u64..4_000, 0usize..20, prop::option::of(0u64..30_000)), 1..300),
    ) {
        let names = ["a", "b", "c", "e", "o"];
        // Who is parked together: a and b.
        let account = [0usize, 0, 1, 2, 3];
        let (board, mut now) = board(&config());
        let mut parked: [Option<Instant>; 4] = [None; 4];
        let mut held: Vec<(usize, Ticket)> = Vec::new();
        for (target, what, step, class, hint) in events {
            now += Duration::from_millis(step);
            match what {
                0..=3 => if let Ok(ticket) = begin(&board, names[target], now) {
                    let until = parked[account[target]];
                    prop_assert!(until.is_none_or(|until| now >= until), "inside a park window");
                    held.push((target, ticket));
                },
                4 => if let Some((_, ticket)) = held.last_mut() { ticket.first_token(now) },
                5 => if !held.is_empty() { drop(held.remove(0)) },
                6 => if !held.is_empty() { held.remove(0).1.finish(ANSWERED, now) },
                _ => if !held.is_empty() {
                    let (target, ticket) = held.remove(0);
                    let class = Class::ALL[class];
                    let retry_after = hint.map(Duration::from_millis);
                    ticket.finish(Outcome::Failed { class, retry_after }, now);
                    let least = match (class, retry_after) {
                        (Class::RateLimited, hint) => Some(hint.unwrap_or(5 * S)),
                        (Class::Overloaded, hint) => hint,
                        _ => None,
                    };
                    let until = &mut parked[account[target]];
                    *until = (*until).max(least.map(|least| now + least));
                },
            }
            for (place, view) in board.views(now).iter().enumerate() {
                let there = held.iter().filter(|(target, _)| *target == place).count();
                prop_assert_eq!(view.inflight as usize, there);
            }
        }
        drop(held);
        // Whatever happened, once everything has had its time every target can be used again.
        now += Duration::from_secs(40 * 86_400);
        for name in names {
            for _ in 0..8 {
                now += Duration::from_secs(301);
                answer(&board, name, now);
            }
        }
        prop_assert_eq!(states(&board, now), ["closed"; 5]);
        let inner = board.lock();
        prop_assert!(inner.upstreams.iter().all(|upstream| upstream.inflight == 0));
    }
}

#[test]
fn what_is_not_served_is_tried_once_in_a_while_and_comes_back() {
    let (board, now) = board(&config());
    fail(&board, "c", Class::NotServed, None, now);
    let admits = |at| board.view("c", at).expect("there").admits;
    assert!(!admits(now + 9 * MIN));
    board.catalogue_read("router", |_| false, now + 9 * MIN);
    assert!(admits(now + 10 * MIN), "a catalogue puts no trial off");
    fail(&board, "c", Class::NotServed, None, now + 10 * MIN);
    assert!(!admits(now + 19 * MIN));
    answer(&board, "c", now + 20 * MIN);
    assert_eq!(states(&board, now + 20 * MIN)[2], "closed");
}

#[test]
fn a_control_planes_word_is_older_than_what_requests_have_shown_since() {
    let (board, now) = board(&config());
    fail(&board, "e", Class::ColdStart, None, now + 2 * S);
    board.endpoint("endpoint", EndpointState::Running, now + S);
    assert_eq!(states(&board, now + 3 * S)[3], "waking");
    board.endpoint("endpoint", EndpointState::Running, now + 3 * S);
    assert_eq!(states(&board, now + 3 * S)[3], "closed");
    answer(&board, "e", now + 5 * S);
    board.endpoint("endpoint", EndpointState::Paused, now + 4 * S);
    assert_eq!(states(&board, now + 5 * S)[3], "closed");

    for state in [EndpointState::Paused, EndpointState::Failed] {
        let start = now + 6 * S;
        // Said again and again, it puts the trial off no further.
        for second in 0..MIN.as_secs() as u32 * 10 {
            board.endpoint("endpoint", state, start + second * S);
        }
        let admits = |at| board.view("e", at).expect("there").admits;
        assert!(
            !admits(start + 9 * MIN) && admits(start + 10 * MIN),
            "{state:?}"
        );
        board.endpoint("endpoint", EndpointState::Waking, start + 10 * MIN);
        assert_eq!(states(&board, start + 10 * MIN)[3], "waking");
        board.endpoint("endpoint", EndpointState::Running, start + 10 * MIN + S);
    }
}

#[test]
fn who_wants_an_endpoint_that_does_not_serve_is_remembered_once() {
    let (board, now) = board(&config());
    assert!(!board.take_wanted("endpoint"));
    fail(&board, "e", Class::Paused, None, now);
    assert!(board.take_wanted("endpoint") && !board.take_wanted("endpoint"));
    assert_eq!(begin(&board, "e", now).err(), Some(NotNow::Paused));
    assert!(board.take_wanted("endpoint"));
    board.want("e");
    assert!(board.take_wanted("endpoint") && !board.take_wanted("router"));
}

#[test]
fn limits_are_counted_by_who_answers_and_go_back_when_nothing_was_sent() {
    let mut config = config();
    config.upstreams[0].rpm = Some(1);
    config.upstreams[0].tpm = Some(100);
    let (board, now) = board(&config);
    let most = Expected {
        prompt_tokens: 50,
        output_tokens: 50,
    };
    let by = |provider: &str| {
        let ask = Ask {
            provider: Some(&provider.into()),
            ..ask(most)
        };
        board.begin("a", now, ask)
    };
    let ticket = by("together").expect("nothing speaks against it");
    ticket.finish(
        Outcome::Failed {
            class: Class::RateLimited,
            retry_after: Some(10 * S),
        },
        now,
    );
    assert!(matches!(by("together"), Err(NotNow::Parked(_))));
    assert!(matches!(begin(&board, "c", now), Err(NotNow::Parked(_))));
    for _ in 0..3 {
        by("groq").expect("nothing was sent before").give_back();
    }
    drop(by("groq").expect("the minute's only one"));
    assert!(matches!(by("groq"), Err(NotNow::Parked(_))));
}

#[test]
fn room_that_was_kept_for_somebody_who_went_elsewhere_is_offered_again() {
    let mut config = config();
    config.upstreams[1].max_concurrency = Some(1);
    config.upstreams[2].max_concurrency = Some(1);
    let (board, now) = board(&config);
    let first = begin(&board, "e", now).expect("room");
    let second = begin(&board, "o", now).expect("room");
    let wait = || {
        let waiter = Waiter {
            key: None,
            tokens: 1,
            deadline: now + MIN,
        };
        board.queue(&["e", "o"], waiter).expect("a place")
    };
    let (one, two) = (wait(), wait());
    let done = || Outcome::Answered {
        output_tokens: 1,
        used_tokens: None,
    };
    first.finish(done(), now + S);
    second.finish(done(), now + S);
    let with = |turn| Ask {
        turn: Some(turn),
        ..ask(Expected::default())
    };
    assert!(
        begin(&board, "o", now + S).is_err(),
        "somebody waits for it"
    );
    let _one = board.begin("e", now + S, with(&one)).expect("its turn");
    assert!(board.begin("o", now + S, with(&two)).is_ok());
}
