//! TGI's own answers: a frame for each token, or everything in one piece.

use serde_json::{Value as Json, json};

use super::{Incoming, present, tokens};
use crate::generation::{ChatPiece, Event, PromptToken, TokenEvent, TokenId, TokenInfo};
use crate::remote::fault::{Class, Fault};

impl Incoming {
    /// Reads one frame of `/generate_stream`; the last one carries the end.
    pub(super) fn frame(&mut self, frame: &Json, mut out: Vec<Event>) -> Result<Vec<Event>, Fault> {
        self.start(&mut out);
        let details = &frame["details"];
        let token = frame["token"]
            .is_object()
            .then(|| self.token(&frame["token"], &frame["top_tokens"]));
        if !details.is_object() {
            out.extend(token.map(Event::Token));
            return Ok(out);
        }
        self.held = token;
        self.usage.told(json!({
            "prompt_tokens": details["input_length"],
            "completion_tokens": details["generated_tokens"],
        }));
        self.close(frame, details, out)
    }

    /// Reads an answer of `/generate`.
    pub(super) fn generated(
        &mut self,
        answer: &Json,
        mut out: Vec<Event>,
    ) -> Result<Vec<Event>, Fault> {
        // The root route wraps it into a list.
        let answer = answer.get(0).unwrap_or(answer);
        let details = &answer["details"];
        let list = |value: &Json| value.as_array().cloned().unwrap_or_default();
        let prefill = list(&details["prefill"]);
        self.usage.told(json!({
            "prompt_tokens": (!prefill.is_empty()).then_some(prefill.len()),
            "completion_tokens": details["generated_tokens"],
        }));
        self.prompt = prefill.iter().filter_map(prompt_token).collect();
        self.start(&mut out);
        for (at, token) in list(&details["tokens"]).iter().enumerate() {
            let token = self.token(token, &details["top_tokens"][at]);
            out.extend(self.held.replace(token).map(Event::Token));
        }
        self.close(answer, details, out)
    }

    fn token(&mut self, token: &Json, top: &Json) -> TokenEvent {
        let token = info(token);
        let text = if token.special {
            String::new()
        } else {
            self.visible(&token.text)
        };
        TokenEvent {
            pieces: Some(present(ChatPiece::Content(text.clone()))),
            text,
            token,
            top_tokens: top.as_array().into_iter().flatten().map(info).collect(),
            finish: None,
        }
    }

    fn close(
        &mut self,
        answer: &Json,
        details: &Json,
        out: Vec<Event>,
    ) -> Result<Vec<Event>, Fault> {
        let Some(word) = details["finish_reason"].as_str() else {
            let said = "the answer ended before its finish";
            return Err(Fault::new(Class::ServerError, said));
        };
        self.seed = details["seed"].as_u64();
        // The whole text is TGI's own word; what was cut here is not in it.
        if self.cutter.is_none()
            && let Some(text) = answer["generated_text"].as_str()
        {
            self.text = text.to_owned();
        }
        self.end = Some(self.ended(word, None)?);
        self.finish(out)
    }
}

fn info(token: &Json) -> TokenInfo {
    TokenInfo {
        id: id(token),
        text: token["text"].as_str().unwrap_or_default().to_owned(),
        logprob: tokens::logprob(&token["logprob"]),
        special: token["special"].as_bool().unwrap_or(false),
    }
}

fn id(token: &Json) -> Option<TokenId> {
    u32::try_from(token["id"].as_u64()?).ok().map(TokenId)
}

fn prompt_token(token: &Json) -> Option<PromptToken> {
    Some(PromptToken {
        id: id(token)?,
        text: token["text"].as_str().unwrap_or_default().to_owned(),
        logprob: tokens::logprob(&token["logprob"]),
    })
}
