//! OpenAI's chunks, and the same choices in one piece.

use serde_json::Value as Json;

use super::{Delta, Incoming, tokens};
use crate::generation::{Event, PromptToken, TokenId};
use crate::remote::fault::Fault;

impl Incoming {
    /// Reads one chunk of chat completions or completions.
    pub(super) fn chunk(
        &mut self,
        event: &Json,
        marked: bool,
        out: &mut Vec<Event>,
    ) -> Result<(), Fault> {
        self.usage.read(event);
        let choice = &event["choices"][0];
        if !choice.is_object() {
            return Ok(());
        }
        self.prompt_tokens(event, choice);
        self.start(out);
        let said = match (&choice["delta"], &choice["message"]) {
            (delta @ Json::Object(_), _) => delta,
            (_, message) => message,
        };
        let (mut content, mut thought) = said_in(&said["content"]);
        content += choice["text"].as_str().unwrap_or_default();
        content += said["refusal"].as_str().unwrap_or_default();
        // Servers that write both write the same twice.
        let told = ["reasoning_content", "reasoning"].map(|key| said[key].as_str());
        thought += told
            .into_iter()
            .flatten()
            .find(|text| !text.is_empty())
            .unwrap_or_default();
        let mut delta = Delta {
            reasoning: self.reasoning.push(&thought, marked),
            content: self.content.push(&content, marked),
            calls: self.calls.read(&said["tool_calls"], marked),
            entries: tokens::read(choice),
        };
        if self.reader.plain {
            // A caller of plain text has asked for no tools.
            delta.calls.clear();
        }
        self.delta(delta, out);
        if let Some(word) = choice["finish_reason"].as_str().filter(|w| !w.is_empty()) {
            let named = choice["stop_reason"].as_str();
            self.end = Some(self.ended(word, named)?);
        }
        Ok(())
    }

    /// vLLM's log-probabilities of the prompt: for each token a map from its id, null for the first.
    fn prompt_tokens(&mut self, event: &Json, choice: &Json) {
        let Some(told) = choice["prompt_logprobs"].as_array() else {
            return;
        };
        let ids = [&choice["prompt_token_ids"], &event["prompt_token_ids"]];
        let ids = ids.into_iter().find_map(Json::as_array);
        let id = |at: usize| u32::try_from(ids?.get(at)?.as_u64()?).ok();
        for (at, token) in told.iter().enumerate() {
            let own = |(key, _): &(&String, &Json)| match id(at) {
                Some(id) => key.parse() == Ok(id),
                None => true,
            };
            let own = token.as_object().and_then(|map| map.iter().find(own));
            let read = match own {
                Some((key, value)) => key.parse().ok().map(|id| PromptToken {
                    id: TokenId(id),
                    text: value["decoded_token"]
                        .as_str()
                        .unwrap_or_default()
                        .to_owned(),
                    logprob: tokens::logprob(&value["logprob"]),
                }),
                // Nobody tells the first one's text.
                None => id(at).map(|id| PromptToken {
                    id: TokenId(id),
                    text: String::new(),
                    logprob: None,
                }),
            };
            self.prompt.extend(read);
        }
    }
}

/// Text and reasoning of a content, which some servers divide into parts.
fn said_in(content: &Json) -> (String, String) {
    let mut texts = (String::new(), String::new());
    match content {
        Json::String(text) => texts.0 += text,
        Json::Array(parts) => {
            for part in parts {
                texts.0 += part["text"].as_str().unwrap_or_default();
                let thought = &part["thinking"];
                texts.1 += thought.as_str().unwrap_or_default();
                for piece in thought.as_array().into_iter().flatten() {
                    texts.1 += piece["text"].as_str().unwrap_or_default();
                }
            }
        }
        _ => {}
    }
    texts
}
