//! Waiting for room at upstreams: the request that nobody has room for now, and that somebody will have room for
//! soon, waits for its turn instead of being refused.

use std::time::{Duration, Instant};

use super::Hybrid;
use super::case::Case;
use crate::dispatch::Inner;
use crate::remote::{TargetState as At, Turn, Waiter};
use crate::route::{BlockedBy, Decision, Outcome, RefusalKind, TargetState, Why};

/// What a refused request could wait for.
struct Prospect {
    /// Targets that have as many requests as they may have.
    full: Vec<String>,
    /// When the first of those may be asked again that are left alone for a time.
    soonest: Option<Duration>,
}

/// Waits with a request that was refused for want of room, and decides upon it again whenever there may be some;
/// no longer than the operator allows, nor than a quarter of the time that the caller has left.
pub(super) async fn wait(
    inner: &Inner,
    hybrid: &Hybrid,
    case: &mut Case,
    mut decision: Decision,
) -> Decision {
    let began = Instant::now();
    let left = case.deadline().saturating_duration_since(began);
    let until = began + hybrid.remote.config().parking.wait_max.min(left / 4);
    while let Some(prospect) = prospect(case, &decision) {
        let now = Instant::now();
        let soonest = prospect.soonest.map(|wait| now + wait);
        let soonest = soonest.filter(|soonest| *soonest <= until);
        line_up(hybrid, case, &prospect.full);
        if now >= until || case.turn.is_none() && soonest.is_none() {
            break;
        }
        called(case.turn.as_ref(), soonest.unwrap_or(until)).await;
        case.look_away();
        case.look_at_clock();
        decision = hybrid.decide(inner, case);
    }
    if decision.outcome != Outcome::Remote {
        case.turn = None;
    }
    decision
}

/// Waits until there may be room at this target after all, and no longer than this.
pub(super) async fn wait_at(hybrid: &Hybrid, case: &mut Case, target: &str, time: Duration) {
    let now = Instant::now();
    let status = hybrid.remote.board().view(target, now);
    let is_full = status.is_some_and(|status| status.state == At::Saturated);
    let full = [target];
    line_up(hybrid, case, if is_full { &full } else { &[] });
    called(case.turn.as_ref(), now + time).await;
}

/// Takes a place among those who wait for these targets, or keeps the one it has and did not get anything for. Where
/// it is not room that is missing, it stands in nobody's way.
fn line_up<T: AsRef<str>>(hybrid: &Hybrid, case: &mut Case, full: &[T]) {
    if full.is_empty() {
        case.turn = None;
        return;
    }
    if case.turn.as_ref().is_some_and(Turn::missed) {
        return;
    }
    let waiter = Waiter {
        key: case.request.route.key.clone(),
        tokens: case.need.prompt_tokens.saturating_add(case.expected_tokens),
        deadline: case.deadline(),
    };
    case.turn = hybrid.remote.board().queue(full, waiter);
}

async fn called(turn: Option<&Turn>, until: Instant) {
    let until = tokio::time::sleep_until(until.into());
    match turn {
        Some(turn) => tokio::select! {
            () = turn.called() => {}
            () = until => {}
        },
        None => until.await,
    }
}

/// None where waiting would not help, or there is nothing to wait for.
fn prospect(case: &Case, decision: &Decision) -> Option<Prospect> {
    let Outcome::Refuse(refusal) = &decision.outcome else {
        return None;
    };
    if refusal.kind != RefusalKind::Overloaded {
        return None;
    }
    let mut prospect = Prospect {
        full: Vec::new(),
        soonest: None,
    };
    for view in &case.views {
        let mut excluded = decision.excluded.iter();
        let blocked = excluded.any(|e| e.target == view.target && matches!(e.why, Why::Blocked(_)));
        let TargetState::Blocked { by, retry_after_ms } = &view.state else {
            continue;
        };
        match (by, retry_after_ms) {
            _ if !blocked => {}
            (BlockedBy::Full, _) => prospect.full.push(view.target.clone()),
            (BlockedBy::Parked, Some(ms)) => {
                let wait = Duration::from_millis(*ms);
                let soonest = prospect.soonest.map_or(wait, |soonest| soonest.min(wait));
                prospect.soonest = Some(soonest);
            }
            _ => {}
        }
    }
    (!prospect.full.is_empty() || prospect.soonest.is_some()).then_some(prospect)
}
