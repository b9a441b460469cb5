//! Every reason by example, and what must hold whatever comes in.

use proptest::prelude::*;

use super::*;

fn terms() -> Terms {
    Terms::from(&Config::default())
}

fn forecast(ttft_ms: u64, e2e_ms: u64) -> Option<Forecast> {
    Some(Forecast {
        wait_ms: ttft_ms / 2,
        ttft_ms,
        e2e_ms,
        kv_bound: false,
    })
}

/// An idle machine that serves the model.
fn idle() -> LocalView {
    LocalView {
        served: true,
        max_running: 4,
        kv_total: 100,
        kv_free: 100,
        kv_needed: 4,
        forecast: forecast(100, 1_000),
        ..LocalView::default()
    }
}

/// A machine whose first token would come too late.
fn busy() -> LocalView {
    LocalView {
        running: 4,
        waiting: 3,
        forecast: forecast(20_000, 40_000),
        ..idle()
    }
}

pub(crate) fn target(name: &str) -> TargetView {
    TargetView {
        target: name.to_owned(),
        upstream: "up".to_owned(),
        model: "m".to_owned(),
        provider: None,
        state: TargetState::Usable,
        expected: Some(Expected {
            ttft_ms: 500,
            e2e_ms: 5_000,
        }),
        worst_cost_nusd: Some(1_000),
        money_left_nusd: None,
        over_budget: None,
        eligible: Ok(Vec::new()),
        egress: Ok(()),
        on: BTreeSet::new(),
        max_cost_nusd: None,
    }
}

fn blocked(by: BlockedBy, retry_after_ms: Option<u64>) -> TargetView {
    TargetView {
        state: TargetState::Blocked { by, retry_after_ms },
        ..target("t")
    }
}

fn of(policy: Policy) -> Need {
    Need {
        policy,
        ..Need::default()
    }
}

fn ruled(then: Then) -> Need {
    Need {
        rule: Some(RuleHit {
            name: "r".to_owned(),
            then,
        }),
        ..Need::default()
    }
}

fn run(need: &Need, local: &LocalView, targets: &[TargetView]) -> Decision {
    decide(need, local, targets, &terms(), 1_000)
}

fn refusal(decision: &Decision) -> &Refusal {
    match &decision.outcome {
        Outcome::Refuse(refusal) => refusal,
        other => panic!("{other:?} is no refusal"),
    }
}

#[test]
fn every_reason_has_a_case() {
    let one = [target("t")];
    let plain = Need::default();
    let hard = Need {
        hardness: Some(Hardness {
            p_accept: 0.2,
            tau: 0.5,
        }),
        ..Need::default()
    };
    let hurried = Need {
        remaining_ms: Some(1_000),
        ..Need::default()
    };
    let settled = Need {
        sticky: Some(Place {
            side: Side::Remote,
            target: Some("t".to_owned()),
        }),
        ..Need::default()
    };
    let memory = LocalView {
        forecast: busy().forecast.map(|f| Forecast {
            kv_bound: true,
            ..f
        }),
        ..busy()
    };
    let slow = LocalView {
        forecast: forecast(900, 9_000),
        ..idle()
    };
    let no_tools = LocalView {
        unsupported: Some("tools".to_owned()),
        ..idle()
    };
    let too_long = LocalView {
        too_long: true,
        ..idle()
    };
    let stopped = LocalView {
        stopped: true,
        ..idle()
    };
    let denied = TargetView {
        egress: Err("level".to_owned()),
        ..target("t")
    };
    let unfit = TargetView {
        eligible: Err("typical_p".to_owned()),
        ..target("t")
    };
    let unpriced = TargetView {
        worst_cost_nusd: None,
        ..target("t")
    };
    let spent = TargetView {
        money_left_nusd: Some(999),
        ..target("t")
    };
    let parked = blocked(BlockedBy::Parked, Some(4_000));
    type Example<'a> = (Need, LocalView, &'a [TargetView], Option<Side>, &'a str);
    let cases: [Example<'_>; 19] = [
        (plain.clone(), idle(), &one, Some(Side::Local), "local_ok"),
        (
            of(Policy::LocalOnly),
            busy(),
            &one,
            Some(Side::Local),
            "policy_local",
        ),
        (
            of(Policy::PreferRemote),
            idle(),
            &one,
            Some(Side::Remote),
            "policy_remote",
        ),
        (
            of(Policy::RemoteOnly),
            idle(),
            &one,
            Some(Side::Remote),
            "policy_remote",
        ),
        (
            of(Policy::Fastest),
            slow,
            &one,
            Some(Side::Remote),
            "policy_remote",
        ),
        (
            ruled(Then::Local),
            busy(),
            &one,
            Some(Side::Local),
            "rule_local:r",
        ),
        (
            ruled(Then::Remote),
            idle(),
            &one,
            Some(Side::Remote),
            "rule_remote:r",
        ),
        (
            plain.clone(),
            busy(),
            &[denied],
            Some(Side::Local),
            "egress_denied:level",
        ),
        (
            plain.clone(),
            no_tools,
            &one,
            Some(Side::Remote),
            "unsupported_local:tools",
        ),
        (
            plain.clone(),
            too_long,
            &one,
            Some(Side::Remote),
            "context_overflow",
        ),
        (
            plain.clone(),
            stopped,
            &one,
            Some(Side::Remote),
            "local_failure",
        ),
        (
            plain.clone(),
            busy(),
            &one,
            Some(Side::Remote),
            "queue_overflow",
        ),
        (
            plain.clone(),
            memory,
            &one,
            Some(Side::Remote),
            "kv_overflow",
        ),
        (
            hurried,
            LocalView {
                forecast: forecast(100, 50_000),
                ..idle()
            },
            &one,
            Some(Side::Remote),
            "deadline",
        ),
        (hard, idle(), &one, Some(Side::Remote), "hard_pre"),
        (
            plain.clone(),
            busy(),
            &[spent],
            Some(Side::Local),
            "budget_exhausted",
        ),
        (
            plain.clone(),
            busy(),
            &[unpriced],
            Some(Side::Local),
            "price_unknown",
        ),
        (
            plain.clone(),
            busy(),
            &[unfit],
            Some(Side::Local),
            "not_eligible:typical_p",
        ),
        (settled, idle(), &one, Some(Side::Remote), "sticky"),
    ];
    for (need, local, targets, side, reason) in cases {
        let decision = run(&need, &local, targets);
        assert_eq!(decision.side(), side, "{reason}: {decision:?}");
        assert_eq!(decision.reason.to_string(), reason, "{decision:?}");
    }
    let late = |lateness, local: LocalView| LocalView {
        forecast: forecast(9_000, 20_000),
        lateness,
        ..local
    };
    for (local, side) in [
        (late(None, busy()), Side::Local),
        (late(Some(1.1), busy()), Side::Local),
        (late(Some(1.2), busy()), Side::Remote),
        (late(Some(1.2), idle()), Side::Local),
    ] {
        let decision = run(&plain, &local, &one);
        assert_eq!(decision.side(), Some(side), "{local:?}: {decision:?}");
    }
    let decision = run(&plain, &busy(), &[parked]);
    assert_eq!(decision.outcome, Outcome::Local);
    assert_eq!(decision.reason, Reason::RemoteUnavailable);
}

#[test]
fn a_full_machine_whose_text_may_not_leave_says_when_to_come_back() {
    let full = LocalView {
        queue_full: true,
        ..busy()
    };
    let denied = TargetView {
        egress: Err("rule".to_owned()),
        ..target("t")
    };
    let decision = run(&Need::default(), &full, &[denied]);
    assert_eq!(refusal(&decision).kind, RefusalKind::Overloaded);
    assert_eq!(refusal(&decision).retry_after_ms, Some(10_000));
    assert_eq!(decision.reason, Reason::EgressDenied("rule".to_owned()));
    let pinned = run(&ruled(Then::Local), &full, &[target("t")]);
    assert_eq!(refusal(&pinned).kind, RefusalKind::Overloaded);
}

#[test]
fn what_this_machine_cannot_do_and_may_not_hand_over_is_refused_by_name() {
    let no_tools = LocalView {
        unsupported: Some("tools".to_owned()),
        ..idle()
    };
    let denied = TargetView {
        egress: Err("level".to_owned()),
        ..target("t")
    };
    for decision in [
        run(&Need::default(), &no_tools, &[denied]),
        run(&of(Policy::LocalOnly), &no_tools, &[target("t")]),
        run(&Need::default(), &no_tools, &[]),
    ] {
        assert_eq!(refusal(&decision).kind, RefusalKind::Unsupported);
        assert!(refusal(&decision).text.contains("`tools`"));
    }
    let too_long = LocalView {
        too_long: true,
        ..idle()
    };
    let decision = run(&Need::default(), &too_long, &[]);
    assert_eq!(refusal(&decision).kind, RefusalKind::TooLong);
}

#[test]
fn busy_targets_give_the_smallest_hint_and_broken_ones_a_sentence() {
    let need = of(Policy::RemoteOnly);
    let two = [
        blocked(BlockedBy::Parked, Some(4_000)),
        TargetView {
            target: "u".to_owned(),
            ..blocked(BlockedBy::Breaker, Some(3_000))
        },
    ];
    let decision = run(&need, &idle(), &two);
    assert_eq!(refusal(&decision).kind, RefusalKind::Overloaded);
    assert_eq!(refusal(&decision).retry_after_ms, Some(3_000));
    let decision = run(&need, &idle(), &[blocked(BlockedBy::Credentials, None)]);
    assert_eq!(refusal(&decision).kind, RefusalKind::NoTarget);
    assert!(refusal(&decision).text.contains("credentials"));
    let dear = Need {
        max_cost_nusd: Some(1),
        ..need
    };
    let decision = run(&dear, &idle(), &[target("t")]);
    assert_eq!(refusal(&decision).kind, RefusalKind::Budget);
}

#[test]
fn a_budget_says_what_becomes_of_a_request_that_it_does_not_cover() {
    let over = |then| TargetView {
        over_budget: Some(OverBudget {
            then,
            text: "budget `team` is spent".to_owned(),
            resets_after_ms: 60_000,
        }),
        ..target("t")
    };
    let other = target("u");
    let need = Need {
        policy: Policy::PreferRemote,
        ..Need::default()
    };
    let run = |then| run(&need, &idle(), &[over(then), other.clone()]);
    let next = run(OnExceed::Next);
    assert_eq!(next.outcome, Outcome::Remote);
    assert_eq!(next.plan[0].target, "u");
    let local = run(OnExceed::Local);
    assert_eq!(
        (local.outcome, local.reason),
        (Outcome::Local, Reason::BudgetExhausted)
    );
    let refused = run(OnExceed::Refuse);
    assert_eq!(refused.reason, Reason::BudgetExhausted);
    let refusal = refusal(&refused);
    assert_eq!(
        (refusal.kind, refusal.retry_after_ms),
        (RefusalKind::Budget, Some(60_000))
    );
    assert_eq!(refusal.text, "budget `team` is spent");
    // One that comes after somebody who can is nobody's business.
    let after = decide(
        &need,
        &idle(),
        &[other, over(OnExceed::Refuse)],
        &terms(),
        0,
    );
    assert_eq!(after.outcome, Outcome::Remote);
    // What this machine answers by itself is never asked for money.
    let plain = Need::default();
    let here = decide(&plain, &idle(), &[over(OnExceed::Refuse)], &terms(), 0);
    assert_eq!(
        (here.outcome, here.reason),
        (Outcome::Local, Reason::LocalOk)
    );
}

#[test]
fn a_caller_only_tightens() {
    let asks = |asked, may_widen| Need {
        policy: Policy::PreferLocal,
        asked: Some(asked),
        may_widen,
        ..Need::default()
    };
    let prefers = |need: &Need| need.effective_policy();
    assert_eq!(
        prefers(&asks(Policy::RemoteOnly, false)),
        Policy::PreferLocal
    );
    assert_eq!(prefers(&asks(Policy::LocalOnly, false)), Policy::LocalOnly);
    assert_eq!(prefers(&asks(Policy::RemoteOnly, true)), Policy::RemoteOnly);
}

#[test]
fn a_hop_is_taken_first_only_for_the_reasons_it_is_for() {
    let mut only_failures = target("a");
    only_failures.on = ["rate_limited".to_owned()].into();
    let mut overflow = target("b");
    overflow.on = ["queue_overflow".to_owned()].into();
    let chain = [only_failures.clone(), overflow];
    let names = |decision: &Decision| {
        let names = decision.plan.iter().map(|hop| hop.target.clone());
        names.collect::<Vec<_>>()
    };
    let decision = run(&Need::default(), &busy(), &chain);
    assert_eq!(names(&decision), ["b", "a"]);
    let decision = run(&of(Policy::PreferRemote), &idle(), &chain);
    assert_eq!(decision.outcome, Outcome::Local);
    assert_eq!(decision.excluded[1].why, Why::Condition);
}

#[test]
fn a_rule_for_one_target_is_handed_to_no_other() {
    let need = ruled(Then::Target("b".to_owned()));
    let decision = run(&need, &idle(), &[target("a"), target("b")]);
    assert_eq!(decision.plan.len(), 1);
    assert_eq!(decision.plan[0].target, "b");
    let decision = run(&need, &idle(), &[target("a")]);
    assert_eq!(decision.outcome, Outcome::Local);
    assert_eq!(decision.reason, Reason::RemoteUnavailable);
}

#[test]
fn numbers_that_are_missing_or_stale_spill_nothing_but_a_saturated_machine() {
    let unknown = LocalView {
        forecast: None,
        ..busy()
    };
    let stale = LocalView {
        age_ms: 1_001,
        ..busy()
    };
    for local in [unknown, stale] {
        let decision = run(&Need::default(), &local, &[target("t")]);
        assert_eq!(decision.outcome, Outcome::Local);
        let saturated = LocalView {
            waiting: 6,
            kv_free: 19,
            ..local
        };
        let decision = run(&Need::default(), &saturated, &[target("t")]);
        assert_eq!(decision.outcome, Outcome::Remote);
    }
}

#[test]
fn an_upstream_that_is_no_faster_takes_no_overflow() {
    let mut slow = target("t");
    slow.expected = Some(Expected {
        ttft_ms: 500,
        e2e_ms: 32_000,
    });
    let decision = run(&Need::default(), &busy(), std::slice::from_ref(&slow));
    assert_eq!(decision.outcome, Outcome::Local);
    assert_eq!(decision.excluded[0].why, Why::NoGain);
    let full = LocalView {
        queue_full: true,
        ..busy()
    };
    let decision = run(&Need::default(), &full, &[slow]);
    assert_eq!(decision.outcome, Outcome::Remote);
    assert!(!decision.fallback_local);
}

#[test]
fn while_diverting_a_queue_near_the_objective_keeps_spilling_but_room_is_used() {
    let up = Hysteresis::default().diverted(&terms(), 0);
    let near = LocalView {
        forecast: forecast(8_000, 40_000),
        hysteresis: up,
        ..busy()
    };
    let decision = run(&Need::default(), &near, &[target("t")]);
    assert_eq!(decision.outcome, Outcome::Remote);
    assert!(decision.diverting_after.diverting);
    let calm = LocalView {
        hysteresis: Hysteresis::default(),
        ..near.clone()
    };
    let decision = run(&Need::default(), &calm, &[target("t")]);
    assert_eq!(decision.outcome, Outcome::Local);
    let room = LocalView {
        running: 3,
        waiting: 0,
        ..near
    };
    let decision = run(&Need::default(), &room, &[target("t")]);
    assert_eq!(decision.outcome, Outcome::Local);
}

pub(crate) fn any_policy() -> impl Strategy<Value = Policy> {
    proptest::sample::select(Policy::ALL.to_vec())
}

fn any_state() -> impl Strategy<Value = TargetState> {
    let by = proptest::sample::select(vec![
        BlockedBy::Breaker,
        BlockedBy::Full,
        BlockedBy::Quota,
        BlockedBy::NotServed,
        BlockedBy::Misconfigured,
    ]);
    prop_oneof![
        4 => Just(TargetState::Usable),
        1 => Just(TargetState::HalfOpen),
        1 => (by, proptest::option::of(0..9_000u64))
            .prop_map(|(by, retry_after_ms)| TargetState::Blocked { by, retry_after_ms }),
    ]
}

fn any_on() -> impl Strategy<Value = BTreeSet<String>> {
    let codes = vec!["queue_overflow", "policy_remote", "rate_limited"];
    prop_oneof![
        3 => Just(BTreeSet::new()),
        1 => proptest::sample::select(codes).prop_map(|code| [code.to_owned()].into()),
    ]
}

fn any_target(index: usize) -> impl Strategy<Value = TargetView> {
    let money = || proptest::option::of(0..2_000u64);
    (
        any_state(),
        proptest::option::of((0..20_000u64, 0..60_000u64)),
        money(),
        money(),
        money(),
        prop_oneof![
            4 => Just(Ok(Vec::new())),
            1 => Just(Ok(vec!["seed".to_owned()])),
            1 => Just(Err("typical_p".to_owned())),
        ],
        prop_oneof![3 => Just(Ok(())), 1 => Just(Err("level".to_owned()))],
        any_on(),
    )
        .prop_map(
            move |(state, expected, worst, left, cap, eligible, egress, on)| TargetView {
                state,
                expected: expected.map(|(ttft_ms, e2e_ms)| Expected { ttft_ms, e2e_ms }),
                worst_cost_nusd: worst,
                money_left_nusd: left,
                eligible,
                egress,
                on,
                max_cost_nusd: cap,
                ..target(&format!("t{index}"))
            },
        )
}

pub(crate) fn any_targets() -> impl Strategy<Value = Vec<TargetView>> {
    (any_target(0), any_target(1), any_target(2), 0..4usize).prop_map(|(a, b, c, n)| {
        let mut all = vec![a, b, c];
        all.truncate(n);
        all
    })
}

pub(crate) fn any_need() -> impl Strategy<Value = Need> {
    let then = prop_oneof![
        Just(Then::Local),
        Just(Then::Remote),
        (0..4usize).prop_map(|i| Then::Target(format!("t{i}"))),
    ];
    let rule = then.prop_map(|then| RuleHit {
        name: "r".to_owned(),
        then,
    });
    let place = (any::<bool>(), 0..4usize).prop_map(|(here, i)| Place {
        side: if here { Side::Local } else { Side::Remote },
        target: (!here).then(|| format!("t{i}")),
    });
    let hardness =
        (0.0..1.0f64, 0.0..1.0f64).prop_map(|(p_accept, tau)| Hardness { p_accept, tau });
    let option = |weight: f64| proptest::option::weighted(weight, Just(()));
    (
        (
            any_policy(),
            proptest::option::of(any_policy()),
            any::<bool>(),
        ),
        (option(0.3), 0..100_000u64),
        proptest::option::weighted(0.3, 0..2_000u64),
        any::<bool>(),
        proptest::option::weighted(0.3, rule),
        proptest::option::weighted(0.3, place),
        proptest::option::weighted(0.3, hardness),
    )
        .prop_map(
            |(
                (policy, asked, may_widen),
                (timed, time),
                max_cost_nusd,
                strict,
                rule,
                sticky,
                hardness,
            )| Need {
                policy,
                asked,
                may_widen,
                prompt_tokens: 100,
                max_new_tokens: 100,
                remaining_ms: timed.map(|()| time),
                max_cost_nusd,
                strict,
                rule,
                sticky,
                hardness,
            },
        )
}

pub(crate) fn any_local() -> impl Strategy<Value = LocalView> {
    let rarely = || proptest::bool::weighted(0.1);
    (
        (
            proptest::bool::weighted(0.9),
            rarely(),
            rarely(),
            rarely(),
            rarely(),
        ),
        (0..1_500u64, 0..9usize, 0..5usize, 0..101usize),
        proptest::option::weighted(0.8, (0..20_000u64, 0..60_000u64, any::<bool>())),
        (any::<bool>(), proptest::option::of(1.0..1.5f64)),
        proptest::option::of(0..2_000u64),
    )
        .prop_map(
            |(
                (served, lame, too_long, stopped, queue_full),
                (age_ms, waiting, running, kv_free),
                known,
                (diverting, lateness),
                calm_since_ms,
            )| LocalView {
                served,
                unsupported: lame.then(|| "tools".to_owned()),
                too_long,
                stopped,
                queue_full,
                age_ms,
                waiting,
                running,
                kv_free,
                forecast: known.map(|(ttft_ms, more, kv_bound)| Forecast {
                    wait_ms: ttft_ms / 2,
                    ttft_ms,
                    e2e_ms: ttft_ms + more,
                    kv_bound,
                }),
                lateness,
                hysteresis: Hysteresis {
                    diverting,
                    calm_since_ms,
                    changed_ms: calm_since_ms,
                },
                ..idle()
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn what_is_pinned_or_denied_never_leaves(
        need in any_need(), local in any_local(), targets in any_targets(), now in 0..20_000u64,
    ) {
        let decision = decide(&need, &local, &targets, &terms(), now);
        let pinned = need.effective_policy() == Policy::LocalOnly
            || need.rule.as_ref().is_some_and(|rule| rule.then == Then::Local);
        prop_assert!(!(pinned && decision.side() == Some(Side::Remote)));
        prop_assert_eq!(decision.side() == Some(Side::Remote), !decision.plan.is_empty());
        for hop in &decision.plan {
            let view = targets.iter().find(|view| view.target == hop.target);
            prop_assert!(view.is_some_and(|view| view.egress.is_ok() && view.eligible.is_ok()));
        }
        // The rest of the targets are accounted for.
        if decision.side() == Some(Side::Remote) {
            prop_assert_eq!(decision.plan.len() + decision.excluded.len(), targets.len());
        }
        prop_assert_eq!(&decision, &decide(&need, &local, &targets, &terms(), now));
    }

    #[test]
    fn who_stays_whatever_targets_there_are_is_decided_alike_with_none(
        need in any_need(), local in any_local(), targets in any_targets(), now in 0..20_000u64,
    ) {
        if stays(&need, &local, &terms(), now) {
            let with = decide(&need, &local, &targets, &terms(), now);
            prop_assert_eq!(with, decide(&need, &local, &[], &terms(), now));
        }
    }

    #[test]
    fn a_caller_who_tightens_to_this_machine_is_always_heard(
        need in any_need(), local in any_local(), targets in any_targets(),
    ) {
        let need = Need { asked: Some(Policy::LocalOnly), ..need };
        prop_assert!(run(&need, &local, &targets).side() != Some(Side::Remote));
    }

    #[test]
    fn overload_is_no_reason_below_capacity(
        need in any_need(), local in any_local(), targets in any_targets(),
    ) {
        let local = LocalView { waiting: 0, running: 3, kv_free: 4, queue_full: false, ..local };
        let decision = run(&need, &local, &targets);
        let within = local.forecast.is_none_or(|f| f.ttft_ms <= terms().slo_ttft_ms);
        let overflow = matches!(decision.reason, Reason::QueueOverflow | Reason::KvOverflow);
        prop_assert!(!(within && overflow), "{decision:?}");
    }

    #[test]
    fn a_faster_machine_never_loses_a_request(
        need in any_need(), local in any_local(), targets in any_targets(), share in 0.0..1.0f64,
    ) {
        // A target that is for one reason only is not asked for another, and a slower machine has other reasons.
        let targets: Vec<TargetView> = targets
            .into_iter()
            .map(|target| TargetView { on: BTreeSet::new(), ..target })
            .collect();
        // The state is held still: diverting for good, or not at all.
        let terms = Terms { calm_ms: u64::MAX, ..terms() };
        let before = decide(&need, &local, &targets, &terms, 1_000);
        let less = |ms: u64| (ms as f64 * share) as u64;
        let faster = LocalView {
            forecast: local.forecast.map(|f| Forecast {
                wait_ms: less(f.wait_ms),
                ttft_ms: less(f.ttft_ms),
                e2e_ms: less(f.e2e_ms),
                kv_bound: f.kv_bound,
            }),
            ..local
        };
        let after = decide(&need, &faster, &targets, &terms, 1_000);
        let (here, there) = (Some(Side::Local), Some(Side::Remote));
        prop_assert!(!(before.side() == here && after.side() == there), "{before:?} {after:?}");
    }
}
