//! What an upstream says it has read and written, brought into one form.
//!
//! The last object that is there counts; totals are never summed, and an explicit zero is a number.

use serde_json::Value as Json;

use crate::generation::{Usage, UsageSource};

/// What was said so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    usage: Option<Json>,
    timings: Option<Json>,
}

impl Seen {
    /// Looks for usage in one event, wherever servers put it.
    pub(super) fn read(&mut self, event: &Json) {
        for told in [&event["x_groq"]["usage"], &event["usage"]] {
            if told.is_object() {
                self.usage = Some(told.clone());
            }
        }
        if event["timings"].is_object() {
            self.timings = Some(event["timings"].clone());
        }
    }

    /// Keeps numbers that come in another form.
    pub(super) fn told(&mut self, usage: Json) {
        self.usage = Some(usage);
    }

    /// The usage, with estimates where nothing was said; also whether both totals were said.
    pub(super) fn usage(&self, input: u32, output: u32) -> (Usage, bool) {
        let none = Json::Null;
        let told = self.usage.as_ref().unwrap_or(&none);
        let timings = self.timings.as_ref().unwrap_or(&none);
        let first = |values: [&Json; 2]| values.into_iter().find_map(count);
        let timed_input = count(&timings["prompt_n"])
            .map(|n| n.saturating_add(count(&timings["cache_n"]).unwrap_or(0)));
        let read = first([&told["prompt_tokens"], &told["input_tokens"]]).or(timed_input);
        let written = first([&told["completion_tokens"], &told["output_tokens"]])
            .or_else(|| count(&timings["predicted_n"]));
        let cached = first([
            &told["prompt_tokens_details"]["cached_tokens"],
            &told["prompt_cache_hit_tokens"],
        ])
        .or_else(|| count(&timings["cache_n"]))
        .unwrap_or(0);
        let reasoning = first([
            &told["completion_tokens_details"]["reasoning_tokens"],
            &told["reasoning_tokens"],
        ])
        .unwrap_or(0);
        let counted = read.is_some() && written.is_some();
        let input_tokens = read.unwrap_or(input);
        let output_tokens = written.unwrap_or(output);
        let cost = [&told["cost"], &told["estimated_cost"]]
            .into_iter()
            .find_map(nano);
        let usage = Usage {
            input_tokens,
            cached_tokens: cached.min(input_tokens),
            output_tokens,
            reasoning_tokens: reasoning.min(output_tokens),
            source: if counted {
                UsageSource::Reported
            } else {
                UsageSource::Estimated
            },
            // Nothing for something is a field nobody filled, not a gift.
            reported_cost_nusd: cost.filter(|&cost| {
                cost > 0 || u64::from(input_tokens) + u64::from(output_tokens) == 0
            }),
        };
        (usage, counted)
    }
}

fn count(value: &Json) -> Option<u32> {
    let number = value.as_u64().or_else(|| {
        let number = value.as_f64().filter(|x| *x >= 0.0)?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "saturates"
        )]
        Some(number as u64)
    })?;
    Some(u32::try_from(number).unwrap_or(u32::MAX))
}

/// USD as whole nano-USD, rounded up; what binary fractions add is no money.
fn nano(value: &Json) -> Option<u64> {
    let usd = value.as_f64().filter(|x| x.is_finite() && *x >= 0.0)?;
    let nano = ((usd * 1e12).round() / 1e3).ceil();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturates"
    )]
    Some(nano as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn usage(events: &[Json]) -> Usage {
        let mut seen = Seen::default();
        events.iter().for_each(|event| seen.read(event));
        seen.usage(11, 7).0
    }

    #[test]
    fn the_last_object_counts_and_nothing_is_summed() {
        let told = usage(&[
            json!({"usage": {"prompt_tokens": 5, "completion_tokens": 1}}),
            json!({"usage": {"prompt_tokens": 5, "completion_tokens": 3,
                "prompt_tokens_details": {"cached_tokens": 4},
                "completion_tokens_details": {"reasoning_tokens": 2}}}),
            json!({"usage": null}),
        ]);
        let expected = Usage {
            cached_tokens: 4,
            reasoning_tokens: 2,
            ..Usage::counted(5, 3)
        };
        assert_eq!(told, expected);
    }

    #[test]
    fn zeros_are_numbers_but_no_price() {
        let told =
            usage(&[json!({"usage": {"prompt_tokens": 9, "completion_tokens": 0, "cost": 0}})]);
        assert_eq!(told, Usage::counted(9, 0));
        let told = usage(
            &[json!({"usage": {"prompt_tokens": 9, "completion_tokens": 1,
            "prompt_tokens_details": null, "estimated_cost": 0.0001}})],
        );
        assert_eq!(told.reported_cost_nusd, Some(100_000));
    }

    #[test]
    fn other_places_are_found_and_silence_is_estimated() {
        let groq =
            json!({"x_groq": {"id": "r", "usage": {"prompt_tokens": 1, "completion_tokens": 2}}});
        assert_eq!(usage(&[groq]), Usage::counted(1, 2));
        let llama = json!({"timings": {"prompt_n": 3, "cache_n": 4, "predicted_n": 5}});
        let expected = Usage {
            cached_tokens: 4,
            ..Usage::counted(7, 5)
        };
        assert_eq!(usage(&[llama]), expected);
        let expected = Usage {
            source: UsageSource::Estimated,
            ..Usage::counted(11, 7)
        };
        assert_eq!(usage(&[]), expected);
    }
}
