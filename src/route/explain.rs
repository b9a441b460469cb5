//! A decision told in sentences, for whoever asks why a request went where it did.
//!
//! It says what the decision looked at and what came of it, and nothing that was not known then.

use super::decide::{
    BlockedBy, Decision, Excluded, LocalView, Need, Outcome, TargetState, TargetView, Terms, Why,
};
use super::rules::RuleHit;
use crate::generation::{Reason, Side};

/// What is told.
#[derive(Debug, Clone, Copy)]
pub struct Told<'a> {
    /// What was decided, before anybody was asked.
    pub decision: &'a Decision,
    /// What was asked.
    pub need: &'a Need,
    /// How busy this machine was.
    pub local: &'a LocalView,
    /// What was known of the targets.
    pub targets: &'a [TargetView],
    /// The bounds.
    pub terms: &'a Terms,
    /// Where the answer was made in the end.
    pub side: Option<Side>,
    /// Why, in the end.
    pub reason: &'a Reason,
}

/// The sentences, in the order in which things happened.
pub fn explain(told: &Told<'_>) -> Vec<String> {
    let Told {
        decision,
        need,
        local,
        targets,
        terms,
        side,
        reason,
    } = *told;
    let mut told = vec![policy(need)];
    told.extend(need.rule.as_ref().map(rule));
    told.push(here(need, local, terms));
    told.extend(need.hardness.map(|hardness| {
        format!(
            "The calibration gave the answer of the local model a chance of {:.0} % to be good; {:.0} % are asked for.",
            hardness.p_accept * 100.0,
            hardness.tau * 100.0
        )
    }));
    told.extend(
        need.sticky
            .as_ref()
            .map(|place| match (&place.side, &place.target) {
                (Side::Remote, Some(target)) => {
                    format!("The conversation was answered by `{target}` before.")
                }
                (Side::Remote, None) => {
                    "The conversation was answered elsewhere before.".to_owned()
                }
                (Side::Local, _) => {
                    "The conversation was answered on this machine before.".to_owned()
                }
            }),
    );
    told.push(format!(
        "So {}: {}.",
        outcome(decision),
        because(&decision.reason)
    ));
    for excluded in &decision.excluded {
        let view = targets.iter().find(|view| view.target == excluded.target);
        told.push(left_out(excluded, view));
    }
    if let Outcome::Refuse(refusal) = &decision.outcome {
        told.push(format!("The caller was told: {}", refusal.text));
    }
    told.extend(became(decision, side, reason));
    told
}

/// What became of it, where that is not what was decided.
fn became(decision: &Decision, side: Option<Side>, reason: &Reason) -> Option<String> {
    let changed = reason != &decision.reason;
    match (&decision.outcome, side) {
        (Outcome::Remote, Some(Side::Local)) => Some(format!(
            "In the end this machine answered: {}.",
            because(reason)
        )),
        (Outcome::Local, Some(Side::Remote)) => Some(format!(
            "In the end an upstream answered: {}.",
            because(reason)
        )),
        (Outcome::Local | Outcome::Remote, None) if changed => {
            Some(format!("In the end nobody answered: {}.", because(reason)))
        }
        _ => None,
    }
}

fn policy(need: &Need) -> String {
    let effective = need.effective_policy().name();
    match need.asked {
        Some(asked) if asked.name() == effective => {
            format!("The caller asked for the policy `{effective}`.")
        }
        Some(asked) => format!(
            "The policy is `{effective}`: the caller asked for `{}`, and may only keep more here than its key does.",
            asked.name()
        ),
        None => format!("The policy is `{effective}`."),
    }
}

fn rule(hit: &RuleHit) -> String {
    format!("The operator's rule `{}` holds.", hit.name)
}

/// What this machine could have done.
fn here(need: &Need, local: &LocalView, terms: &Terms) -> String {
    if !local.served {
        return "The model that was asked for is not served on this machine.".to_owned();
    }
    if local.too_long {
        return format!(
            "Prompt and answer, {} and {} tokens, do not fit this machine's context.",
            need.prompt_tokens, need.max_new_tokens
        );
    }
    if let Some(what) = &local.unsupported {
        return format!("This machine cannot do `{what}`.");
    }
    if local.stopped {
        return "This machine could not answer, or had failed at it.".to_owned();
    }
    if local.queue_full {
        return "As many requests as this machine takes were waiting or running here.".to_owned();
    }
    let busy = format!(
        "Here {} of {} places were taken, {} waited, and {} cache blocks were needed of {} free ones",
        local.running, local.max_running, local.waiting, local.kv_needed, local.kv_free
    );
    let Some(forecast) = local.forecast else {
        return format!("{busy}; how long it would take was not known yet.");
    };
    if local.age_ms > terms.stale_after_ms {
        return format!(
            "{busy}; those numbers were {} ms old, too old to forecast from.",
            local.age_ms
        );
    }
    let mut told = format!(
        "{busy}: the first token was expected after {} ms and the last after {} ms",
        forecast.ttft_ms, forecast.e2e_ms
    );
    if let Some(lateness) = local.lateness.filter(|lateness| *lateness > 1.0) {
        told += &format!(", and of late first tokens took up to {lateness:.1} times as long");
    }
    let bar_ms = local.hysteresis.bar_ms(terms);
    let objective_ms = terms.slo_ttft_ms;
    told += &if bar_ms < objective_ms as f64 {
        format!(
            "; the objective for the first is {objective_ms} ms, and {bar_ms:.0} ms while requests spill over."
        )
    } else {
        format!("; the objective for the first is {objective_ms} ms.")
    };
    told
}

fn outcome(decision: &Decision) -> String {
    let plan: Vec<String> = decision
        .plan
        .iter()
        .map(|hop| format!("`{}`", hop.target))
        .collect();
    match decision.outcome {
        Outcome::Local => "this machine answers".to_owned(),
        Outcome::Remote => format!("it goes to {}", plan.join(", then ")),
        Outcome::Refuse(_) => "nobody answers".to_owned(),
    }
}

/// A reason as the end of a sentence.
fn because(reason: &Reason) -> String {
    let words = match reason {
        Reason::LocalOk => "nothing speaks against this machine",
        Reason::PolicyLocal => "the policy wants this machine",
        Reason::PolicyRemote => "the policy wants an upstream",
        Reason::RuleLocal(_) => "the rule wants this machine",
        Reason::RuleRemote(_) => "the rule wants an upstream",
        Reason::EgressDenied(code) => {
            return format!("nothing of the request may leave this machine (`{code}`)");
        }
        Reason::UnsupportedLocal(what) => return format!("this machine cannot do `{what}`"),
        Reason::ContextOverflow => "it does not fit this machine's context",
        Reason::QueueOverflow => "this machine would begin too late",
        Reason::KvOverflow => "this machine has no memory left for it in time",
        Reason::Deadline => "this machine would not be done before the deadline",
        Reason::HardPre => "it looks too hard for the local model",
        Reason::HardProbe => "its first tokens looked too hard for the local model",
        Reason::HardPost => "the local model's answer looked wrong",
        Reason::BudgetExhausted => {
            "no budget covers an upstream, or it might cost more than one request may"
        }
        Reason::PriceUnknown => "nobody knows what an upstream would cost",
        Reason::NotEligible(field) => return format!("no upstream can do `{field}`"),
        Reason::Sticky => "the conversation stays where its caches are",
        Reason::LocalFailure => "this machine could not",
        Reason::RemoteUnavailable => "no upstream can answer",
    };
    words.to_owned()
}

fn left_out(excluded: &Excluded, view: Option<&TargetView>) -> String {
    let why = match &excluded.why {
        Why::NotNamed => "another one is named".to_owned(),
        Why::Egress(code) => format!("the text may not leave for it (`{code}`)"),
        Why::NotEligible(field) => format!("it cannot do `{field}`"),
        Why::PriceUnknown => "nobody knows what it would cost".to_owned(),
        Why::TooDear => "it might cost more than one request may".to_owned(),
        Why::Budget => match view.and_then(|view| view.over_budget.as_ref()) {
            Some(over) => over.text.clone(),
            None => "no budget covers it".to_owned(),
        },
        Why::Blocked(_) => match view.map(|view| view.state) {
            Some(TargetState::Blocked { by, retry_after_ms }) => blocked(by, retry_after_ms),
            _ => "it may not be asked now".to_owned(),
        },
        Why::Condition => "it is not for this reason".to_owned(),
        Why::NoGain => "it would not be enough faster than this machine".to_owned(),
    };
    format!("`{}` is left out: {why}.", excluded.target)
}

fn blocked(by: BlockedBy, retry_after_ms: Option<u64>) -> String {
    match retry_after_ms {
        Some(wait) => format!("{}, for another {} s", by.sentence(), wait.div_ceil(1000)),
        None => by.sentence().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::decide::{Forecast, Hardness, decide};
    use super::super::sticky::Place;
    use super::*;
    use crate::generation::Policy;

    fn terms() -> Terms {
        Terms::from(&crate::route::Config::default())
    }

    fn told(need: &Need, local: &LocalView, targets: &[TargetView]) -> String {
        let decision = decide(need, local, targets, &terms(), 0);
        let side = decision.side();
        told_as(&decision, need, local, targets, (side, &decision.reason))
    }

    fn told_as(
        decision: &Decision,
        need: &Need,
        local: &LocalView,
        targets: &[TargetView],
        (side, reason): (Option<Side>, &Reason),
    ) -> String {
        let told = Told {
            decision,
            need,
            local,
            targets,
            terms: &terms(),
            side,
            reason,
        };
        explain(&told).join(" ")
    }

    fn local() -> LocalView {
        LocalView {
            served: true,
            running: 2,
            max_running: 8,
            kv_total: 100,
            kv_free: 90,
            kv_needed: 3,
            forecast: Some(Forecast {
                wait_ms: 0,
                ttft_ms: 120,
                e2e_ms: 900,
                kv_bound: false,
            }),
            ..LocalView::default()
        }
    }

    fn far(state: TargetState) -> TargetView {
        TargetView {
            target: "far".to_owned(),
            upstream: "up".to_owned(),
            model: "org/model".to_owned(),
            provider: None,
            state,
            expected: None,
            worst_cost_nusd: Some(0),
            money_left_nusd: None,
            over_budget: None,
            eligible: Ok(Vec::new()),
            egress: Ok(()),
            on: Default::default(),
            max_cost_nusd: None,
        }
    }

    #[test]
    fn what_stays_is_told_with_the_numbers_it_stays_for() {
        let need = Need {
            hardness: Some(Hardness {
                p_accept: 0.9,
                tau: 0.7,
            }),
            sticky: Some(Place {
                side: Side::Local,
                target: None,
            }),
            ..Need::default()
        };
        let text = told(&need, &local(), &[far(TargetState::Usable)]);
        for part in [
            "The policy is `prefer-local`.",
            "2 of 8 places were taken",
            "first token was expected after 120 ms",
            "chance of 90 %",
            "answered on this machine before",
            "So this machine answers:",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn what_leaves_and_what_may_not_be_asked_is_told() {
        let need = Need {
            policy: Policy::RemoteOnly,
            asked: Some(Policy::RemoteOnly),
            ..Need::default()
        };
        let text = told(&need, &local(), &[far(TargetState::Usable)]);
        assert!(
            text.contains("it goes to `far`: the policy wants an upstream"),
            "{text}"
        );
        let blocked = TargetState::Blocked {
            by: BlockedBy::Breaker,
            retry_after_ms: Some(1_200),
        };
        let text = told(&need, &local(), &[far(blocked)]);
        for part in [
            "So nobody answers",
            "`far` is left out: it has failed too often lately, for another 2 s.",
            "The caller was told: ",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn a_caller_who_asks_for_more_than_it_may_is_told_what_holds() {
        let need = Need {
            policy: Policy::LocalOnly,
            asked: Some(Policy::Fastest),
            ..Need::default()
        };
        let mut view = local();
        view.unsupported = Some("tools".to_owned());
        let text = told(&need, &view, &[]);
        assert!(
            text.contains("The policy is `local-only`: the caller asked for `fastest`"),
            "{text}"
        );
        assert!(text.contains("This machine cannot do `tools`."), "{text}");
    }

    #[test]
    fn what_came_otherwise_than_decided_is_told() {
        let need = Need {
            policy: Policy::PreferRemote,
            ..Need::default()
        };
        let targets = [far(TargetState::Usable)];
        let decision = decide(&need, &local(), &targets, &terms(), 0);
        let told = |side, reason| told_as(&decision, &need, &local(), &targets, (side, &reason));
        let text = told(Some(Side::Local), Reason::RemoteUnavailable);
        assert!(
            text.contains("it goes to `far`: the policy wants an upstream")
                && text.ends_with("In the end this machine answered: no upstream can answer."),
            "{text}"
        );
        let text = told(None, Reason::BudgetExhausted);
        assert!(
            text.contains("In the end nobody answered: no budget covers an upstream"),
            "{text}"
        );
        let text = told(Some(Side::Remote), Reason::PolicyRemote);
        assert!(!text.contains("In the end"), "{text}");
    }

    #[test]
    fn a_machine_that_would_be_late_is_told_with_all_that_makes_it_late() {
        let need = Need::default();
        let slow = LocalView {
            running: 8,
            waiting: 3,
            lateness: Some(2.5),
            ..local()
        };
        let text = told(&need, &slow, &[]);
        assert!(text.contains("up to 2.5 times as long"), "{text}");
        let stale = LocalView {
            age_ms: 1_000_000,
            ..local()
        };
        let text = told(&need, &stale, &[]);
        assert!(text.contains("too old to forecast from"), "{text}");
        let full = LocalView {
            queue_full: true,
            ..local()
        };
        let text = told(&need, &full, &[far(TargetState::Usable)]);
        assert!(
            text.contains("As many requests as this machine takes"),
            "{text}"
        );
    }
}
