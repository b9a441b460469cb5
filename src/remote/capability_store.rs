//! What targets were found to be able to do when the operator had them probed, kept in `capabilities.json`.
//!
//! A finding counts only for the model and provider it was made with. The operator's own word stands above it,
//! a catalogue's below.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::config::{Capabilities, ProviderChoice, TargetConfig};
use super::disk;

const FILE: &str = "capabilities.json";

/// Where a streamed answer's usage stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UsagePosition {
    /// In a last event without choices, as OpenAI does.
    LastEvent,
    /// In the event that carries the finish reason.
    WithFinish,
    /// In every event.
    EveryEvent,
    /// Nowhere.
    Nowhere,
}

/// What one probing found; none is an open question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Findings {
    /// An answer comes as events where it is asked for so.
    pub streaming: Option<bool>,
    /// `stream_options` is accepted.
    pub stream_options: Option<bool>,
    /// Where usage stands when it is asked for.
    pub usage_position: Option<UsagePosition>,
    /// Log-probabilities come back.
    pub logprobs: Option<bool>,
    /// `top_k` changes what is drawn.
    pub top_k: Option<bool>,
    /// `min_p` changes what is drawn.
    pub min_p: Option<bool>,
    /// The same seed gives the same text, another gives another.
    pub seed_echo: Option<bool>,
    /// A JSON Schema is kept to.
    pub json_schema: Option<bool>,
    /// A tool is called when one must be.
    pub tools: Option<bool>,
    /// An assistant's last message is continued.
    pub prefill: Option<bool>,
    /// A prompt may be given raw.
    pub raw_prompt: Option<bool>,
    /// A repeated prompt is counted as cached.
    pub cached_tokens: Option<bool>,
}

impl Findings {
    /// The part that decides what may be asked of the target.
    pub fn capabilities(&self) -> Capabilities {
        Capabilities {
            tools: self.tools,
            structured_output: self.json_schema,
            logprobs: self.logprobs,
            top_k: self.top_k,
            min_p: self.min_p,
            seed: self.seed_echo,
            prefill: self.prefill,
            streaming: self.streaming,
            stream_options: self.stream_options,
            raw_prompt: self.raw_prompt,
            repetition_penalty: None,
            logit_bias: None,
            regex: None,
        }
    }
}

/// What was found, of what, and on which day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    upstream: String,
    model: String,
    provider: Option<String>,
    /// `2026-11-21`, UTC.
    date: String,
    found: Findings,
}

/// Every finding, by target.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CapabilityStore {
    path: Option<PathBuf>,
    records: BTreeMap<String, Record>,
}

impl CapabilityStore {
    /// Reads what a folder holds; nothing where there is none. A record that can't be read is left out with a
    /// warning, a file that can't be read with all of its records.
    pub fn open(state_dir: Option<&Path>) -> Self {
        let path = state_dir.map(|folder| folder.join(FILE));
        let mut records = BTreeMap::new();
        let document = path.as_deref().map_or(Ok(None), disk::read);
        match document {
            Ok(document) => {
                let targets = document
                    .as_ref()
                    .and_then(|d| d.get("targets")?.as_object());
                for (name, record) in targets.into_iter().flatten() {
                    match serde_json::from_value(record.clone()) {
                        Ok(record) => {
                            records.insert(name.clone(), record);
                        }
                        Err(error) => {
                            tracing::warn!(target_name = %name, %error, "a probed capability cannot be read and is left out");
                        }
                    }
                }
            }
            Err(error) => {
                tracing::warn!(file = FILE, %error, "probed capabilities cannot be read and are left out");
            }
        }
        Self { path, records }
    }

    /// What was found of a target as it is configured now, and on which day.
    pub fn findings(&self, target: &TargetConfig) -> Option<(Findings, &str)> {
        let record = self.records.get(&*target.name)?;
        let same = record.upstream == *target.upstream
            && record.model == *target.model
            && record.provider == suffix(&target.provider);
        same.then_some((record.found, record.date.as_str()))
    }

    /// Puts in what was found on `date`, in place of what was found before.
    pub fn put(&mut self, target: &TargetConfig, found: Findings, date: &str) {
        let record = Record {
            upstream: target.upstream.to_string(),
            model: target.model.to_string(),
            provider: suffix(&target.provider),
            date: date.to_owned(),
            found,
        };
        self.records.insert(target.name.to_string(), record);
    }

    /// Writes the file, and gives its path.
    ///
    /// Errors: there is no state folder, or it cannot be written.
    pub fn save(&self) -> io::Result<&Path> {
        let path = self.path.as_deref().ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, "no state folder is configured")
        })?;
        disk::replace(path, &json!({ "targets": self.records }))?;
        Ok(path)
    }
}

fn suffix(choice: &ProviderChoice) -> Option<String> {
    match choice {
        ProviderChoice::Whoever => None,
        ProviderChoice::Pinned(name)
        | ProviderChoice::Policy(name)
        | ProviderChoice::Auto(name) => Some(name.to_string()),
    }
}

/// What the first knows, and of the rest what the second knows.
pub(super) fn first_known(first: Capabilities, second: Capabilities) -> Capabilities {
    let Capabilities {
        tools,
        structured_output,
        logprobs,
        top_k,
        min_p,
        repetition_penalty,
        logit_bias,
        seed,
        regex,
        prefill,
        streaming,
        stream_options,
        raw_prompt,
    } = first;
    Capabilities {
        tools: tools.or(second.tools),
        structured_output: structured_output.or(second.structured_output),
        logprobs: logprobs.or(second.logprobs),
        top_k: top_k.or(second.top_k),
        min_p: min_p.or(second.min_p),
        repetition_penalty: repetition_penalty.or(second.repetition_penalty),
        logit_bias: logit_bias.or(second.logit_bias),
        seed: seed.or(second.seed),
        regex: regex.or(second.regex),
        prefill: prefill.or(second.prefill),
        streaming: streaming.or(second.streaming),
        stream_options: stream_options.or(second.stream_options),
        raw_prompt: raw_prompt.or(second.raw_prompt),
    }
}

#[cfg(test)]
mod tests {
    use super::super::catalog::samples::target;
    use super::*;

    #[test]
    fn findings_outlive_a_restart_and_hold_for_what_was_probed_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut probed = target("t", "hf", "meta/llama");
        let found = Findings {
            logprobs: Some(false),
            usage_position: Some(UsagePosition::LastEvent),
            seed_echo: Some(true),
            ..Findings::default()
        };
        let mut store = CapabilityStore::open(Some(folder.path()));
        store.put(&probed, found, "2026-11-21");
        store.save().expect("it is written");
        let store = CapabilityStore::open(Some(folder.path()));
        assert_eq!(store.findings(&probed), Some((found, "2026-11-21")));
        assert_eq!(found.capabilities().seed, Some(true));
        probed.provider = ProviderChoice::Pinned("together".into());
        assert_eq!(store.findings(&probed), None);
    }

    #[test]
    fn what_cannot_be_read_is_left_out_and_the_rest_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(FILE);
        std::fs::write(&path, "{").expect("it is written");
        let store = CapabilityStore::open(Some(folder.path()));
        assert_eq!(store.findings(&target("t", "hf", "m")), None);
        let good = json!({"upstream": "hf", "model": "m", "provider": null, "date": "2026-01-02", "found": {"top_k": true, "new": 1}});
        let text = json!({"targets": {"bad": 7, "t": good}}).to_string();
        std::fs::write(&path, text).expect("it is written");
        let store = CapabilityStore::open(Some(folder.path()));
        let found = store.findings(&target("t", "hf", "m")).expect("findings");
        assert_eq!(found.0.top_k, Some(true));
        assert_eq!(store.records.len(), 1);
        assert!(CapabilityStore::open(None).save().is_err());
    }
}
