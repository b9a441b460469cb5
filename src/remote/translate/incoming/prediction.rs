//! Replicate's predictions, read in one piece.

use serde_json::{Value as Json, json};

use super::{Delta, End, Incoming};
use crate::generation::{Event, FinishReason};
use crate::remote::fault::{Class, Fault};

impl Incoming {
    /// Reads a prediction that is over; why the text ended it does not say, except by its length.
    ///
    /// Errors: a prediction that failed, was cancelled, or is still at work.
    pub(super) fn prediction(
        &mut self,
        told: &Json,
        mut out: Vec<Event>,
    ) -> Result<Vec<Event>, Fault> {
        let class = match told["status"].as_str() {
            Some("succeeded") => None,
            // Aborted or cancelled is what its own deadline made of it, before it ran or while it did.
            Some("starting" | "processing" | "aborted" | "canceled") => Some(Class::Timeout),
            _ => Some(Class::ServerError),
        };
        if let Some(class) = class {
            let status = told["status"].as_str().unwrap_or("unknown");
            return Err(Fault::new(class, format!("the prediction is {status}")));
        }
        let metrics = &told["metrics"];
        self.usage.told(json!({
            "prompt_tokens": metrics["input_token_count"],
            "completion_tokens": metrics["output_token_count"],
        }));
        let content = match &told["output"] {
            Json::String(text) => text.clone(),
            Json::Array(parts) => parts.iter().filter_map(Json::as_str).collect(),
            _ => {
                let said = "a prediction whose output is no text";
                return Err(Fault::new(Class::ServerError, said));
            }
        };
        self.start(&mut out);
        self.delta(
            Delta {
                content,
                ..Delta::default()
            },
            &mut out,
        );
        let written = metrics["output_token_count"].as_u64();
        let full = written.is_some_and(|n| n >= u64::from(self.reader.max_tokens));
        let reason = if full {
            FinishReason::Length
        } else {
            FinishReason::EosToken
        };
        self.end = Some(End { reason, stop: None });
        self.finish(out)
    }
}
