//! The book against a reference that keeps every request, and the cases that gateways got wrong.

use proptest::prelude::*;

use super::*;

const DAY_MS: i64 = 24 * 3_600_000;

fn spender(key: &str, upstream: &str, provider: Option<&str>) -> Spender {
    Spender {
        key: key.into(),
        tenant: key.into(),
        model: "m".into(),
        provider: provider.map(Into::into),
        upstream: upstream.into(),
    }
}

fn nusd(nusd: u64) -> Amount {
    Amount { nusd, tokens: 0 }
}

fn book(budgets: Vec<Budget>) -> Book {
    Book::new(budgets, Tz::UTC)
}

#[test]
fn what_is_held_counts_until_it_is_settled_and_the_rest_comes_back() {
    let mut book = book(vec![Budget::daily("all", 10)]);
    let me = spender("a", "hf", None);
    let (_, at) = book.reserve(&me, nusd(7), 0).expect("fits");
    let refused = book.reserve(&me, nusd(4), 0).expect_err("does not fit");
    assert_eq!((refused.used, refused.resets_ms), (7, DAY_MS));
    assert_eq!(
        refused.to_string(),
        "budget `all` of 0.00000001 USD a day does not cover this request's worst case; it begins anew at 1970-01-02T00:00:00Z"
    );
    book.settle((&me, nusd(7)), (&me, nusd(2)), at);
    assert_eq!(book.left(&me, 0).nusd, Some(8));
    assert!(book.reserve(&me, nusd(8), 0).is_ok());
    assert!(book.reserve(&me, nusd(10), DAY_MS).is_ok(), "a new day");
    assert!(
        book.reserve(&me, nusd(1), 0).is_err(),
        "a clock set back begins no day anew"
    );
}

#[test]
fn no_budget_is_no_bound_and_a_budget_of_nothing_is_one() {
    let me = spender("a", "hf", None);
    let mut none = book(Vec::new());
    assert!(none.reserve(&me, nusd(u64::MAX), 0).is_ok());
    assert_eq!(none.left(&me, 0), Left::default());
    let mut zero = book(vec![Budget::daily("all", 0)]);
    assert!(zero.reserve(&me, nusd(1), 0).is_err());
    assert!(
        zero.reserve(&me, nusd(0), 0).is_ok(),
        "what is free needs no money"
    );
    assert_eq!(zero.left(&me, 0).nusd, Some(0));
}

#[test]
fn each_key_has_its_own_and_the_strictest_word_counts() {
    let own = Budget {
        each: Some(Each::Key),
        on_exceed: OnExceed::Refuse,
        ..Budget::daily("own", 5)
    };
    let mut book = book(vec![Budget::daily("all", 5), own]);
    let (a, b) = (spender("a", "hf", None), spender("b", "hf", None));
    assert!(book.reserve(&a, nusd(5), 0).is_ok());
    let both = book.reserve(&a, nusd(1), 0).expect_err("both are used up");
    assert_eq!(
        (both.budget.as_str(), both.on_exceed),
        ("own of a", OnExceed::Refuse)
    );
    let all = book
        .reserve(&b, nusd(1), 0)
        .expect_err("nothing is left of all");
    assert_eq!(
        (all.budget.as_str(), all.on_exceed),
        ("all", OnExceed::Next)
    );
}

#[test]
fn two_budgets_over_the_same_spending_count_it_once() {
    let soft = Budget {
        soft: true,
        ..Budget::daily("tell", 15)
    };
    let mut book = book(vec![soft, Budget::daily("stop", 20)]);
    let me = spender("a", "hf", None);
    let (deltas, at) = book.reserve(&me, nusd(20), 0).expect("all of it");
    assert_eq!(deltas.len(), 1);
    assert!(book.standings(0).iter().all(|standing| standing.used == 20));
    book.settle((&me, nusd(20)), (&me, nusd(5)), at);
    assert!(book.standings(0).iter().all(|standing| standing.used == 5));
    book.clear();
    book.count(&me, nusd(7), 0, Period::Day);
    assert!(book.standings(0).iter().all(|standing| standing.used == 7));
}

#[test]
fn names_that_look_like_one_another_are_told_apart() {
    let each = Budget {
        each: Some(Each::Tenant),
        ..Budget::daily("own", 10)
    };
    let mut book = book(vec![each]);
    for tenant in ["a=x", "b=x"] {
        book.reserve(&spender(tenant, "hf", None), nusd(1), 0)
            .expect("fits");
    }
    let names: Vec<String> = book.standings(0).into_iter().map(|s| s.name).collect();
    assert_eq!(names, ["own of a=x", "own of b=x"]);
}

#[test]
fn a_soft_budget_denies_nothing_and_is_counted() {
    let soft = Budget {
        soft: true,
        ..Budget::daily("soft", 1)
    };
    let mut book = book(vec![soft]);
    let me = spender("a", "hf", None);
    assert!(book.reserve(&me, nusd(9), 0).is_ok());
    let standing = &book.standings(0)[0];
    assert_eq!((standing.used, standing.limit), (9, Limit::Nusd(1)));
}

#[test]
fn a_provider_that_is_not_known_yet_may_be_any_and_is_charged_when_it_is() {
    let of = |name: &str| Budget {
        scope: Scope {
            provider: Some(name.into()),
            ..Scope::default()
        },
        ..Budget::daily(name, 10)
    };
    let mut book = book(vec![of("groq"), of("together")]);
    let (anyone, groq) = (spender("a", "hf", None), spender("a", "hf", Some("groq")));
    let (_, at) = book.reserve(&anyone, nusd(6), 0).expect("fits both");
    let together = spender("a", "hf", Some("together"));
    assert!(book.reserve(&together, nusd(6), 0).is_err());
    book.settle((&anyone, nusd(6)), (&groq, nusd(6)), at);
    assert!(book.reserve(&together, nusd(10), 0).is_ok());
    assert_eq!(book.left(&groq, 0).nusd, Some(4));
}

#[test]
fn tokens_are_bounded_like_money() {
    let tokens = Budget {
        limit: Limit::Tokens(100),
        period: Period::Hour,
        ..Budget::daily("tokens", 0)
    };
    let mut book = book(vec![tokens]);
    let me = spender("a", "own", None);
    let amount = |tokens| Amount { nusd: 0, tokens };
    let (_, at) = book.reserve(&me, amount(100), 0).expect("fits");
    assert!(book.reserve(&me, amount(1), 0).is_err());
    book.settle((&me, amount(100)), (&me, amount(30)), at);
    assert_eq!(book.left(&me, 0).tokens, Some(70));
}

/// What one step of a random history does.
#[derive(Debug, Clone)]
enum Step {
    Reserve { key: u8, upstream: u8, worst: u64 },
    Settle { which: usize, share: u64 },
    Wait { ms: i64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..3, 0u8..2, 0u64..40).prop_map(|(key, upstream, worst)| Step::Reserve { key, upstream, worst }),
        3 => (any::<usize>(), 0u64..=100).prop_map(|(which, share)| Step::Settle { which, share }),
        1 => (-3_600_000i64..40 * DAY_MS / 10).prop_map(|ms| Step::Wait { ms }),
    ]
}

proptest! {
    /// Complaint 1 of gateways' users: what is summed up is what was spent, and no budget is ever overshot.
    #[test]
    fn the_book_is_the_sum_of_its_requests_and_never_above_a_limit(
        steps in prop::collection::vec(step(), 1..200),
        limits in prop::collection::vec(0u64..200, 4),
    ) {
        let budgets = vec![
            Budget::daily("all", limits[0]),
            Budget { each: Some(Each::Key), period: Period::Hour, ..Budget::daily("keys", limits[1]) },
            Budget { each: Some(Each::Upstream), period: Period::Month, ..Budget::daily("ups", limits[2]) },
            Budget {
                scope: Scope { key: Some("k0".into()), ..Scope::default() },
                ..Budget::daily("first", limits[3])
            },
        ];
        let mut book = book(budgets.clone());
        // Moment, spender, held, cost once settled.
        let mut kept: Vec<(i64, Spender, u64, Option<u64>)> = Vec::new();
        let (mut clock, mut latest) = (10 * DAY_MS, 0);
        for step in steps {
            match step {
                Step::Wait { ms } => clock += ms,
                Step::Reserve { key, upstream, worst } => {
                    let me = spender(&format!("k{key}"), &format!("u{upstream}"), None);
                    latest = latest.max(clock);
                    if let Ok((_, at)) = book.reserve(&me, nusd(worst), clock) {
                        prop_assert_eq!(at, latest);
                        kept.push((at, me, worst, None));
                    }
                }
                Step::Settle { which, share } => {
                    let open: Vec<usize> = (0..kept.len()).filter(|i| kept[*i].3.is_none()).collect();
                    if !open.is_empty() {
                        let (at, me, worst, cost) = &mut kept[open[which % open.len()]];
                        let came_to = *worst * share / 100;
                        *cost = Some(came_to);
                        book.settle((me, nusd(*worst)), (me, nusd(came_to)), *at);
                    }
                }
            }
            latest = latest.max(clock);
            let now = latest;
            for standing in book.standings(clock) {
                let place = budgets.iter().position(|b| standing.name.starts_with(&*b.name));
                let budget = &budgets[place.expect("a budget")];
                let whose = standing.name.rsplit_once(" of ").map(|(_, whose)| whose.to_owned());
                let window = Window::of(budget.period, Tz::UTC, now);
                let sum: u64 = kept
                    .iter()
                    .filter(|(at, me, _, _)| {
                        let each = budget.each.and_then(|each| each.of(me));
                        (window.start_ms..window.end_ms).contains(at)
                            && budget.scope.holds(me)
                            && (budget.each.is_none() || each.as_deref() == whose.as_deref())
                    })
                    .map(|(_, _, worst, cost)| cost.unwrap_or(*worst))
                    .sum();
                prop_assert_eq!(standing.used, sum, "{}", standing.name);
                prop_assert!(sum <= budget.limit.amount(), "{} is overshot", standing.name);
            }
        }
    }
}
