//! What the caller gets to see of single tokens, and what a target can tell of them.

use serde_json::{Map, Value as Json};

use super::fit::Fit;
use super::{Dialect, Ineligible, Job};
use crate::generation::TokenDetail;

/// The most alternatives at each place that OpenAI-like upstreams and TGI report.
pub(super) const TOP_OPENAI: usize = 5;

/// vLLM's default bound of the same.
const TOP_VLLM: usize = 20;

/// What to ask a target for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Asked {
    /// Log-probabilities, with so many alternatives.
    pub(super) logprobs: Option<usize>,
    /// Ids of tokens.
    pub(super) ids: bool,
}

impl Asked {
    /// Whether the answer comes token by token.
    pub(super) fn tokens(self) -> bool {
        self.logprobs.is_some() || self.ids
    }
}

/// What the caller sees; alternatives are seen only together with log-probabilities.
pub(super) fn seen(job: &Job<'_>) -> TokenDetail {
    match (job.request.detail, job.request.top_n_tokens) {
        (TokenDetail::Unseen | TokenDetail::Framed, 1..) => TokenDetail::Logprobs,
        (detail, _) => detail,
    }
}

/// Decides what an OpenAI-like target is asked for.
///
/// Errors: under the strict fidelity, what the target cannot tell; alternatives beyond its bound.
pub(super) fn plan(job: &Job<'_>, chat: bool, fit: &mut Fit) -> Result<Asked, Ineligible> {
    let seen = seen(job);
    let can = job.target.capabilities.logprobs;
    let tells_ids = job.dialect == Dialect::Vllm && can != Some(false);
    let tells = match job.dialect {
        Dialect::Vllm => can != Some(false),
        Dialect::Tgi => chat && can != Some(false),
        Dialect::OpenAi | Dialect::LlamaCpp => can == Some(true),
    };
    if seen == TokenDetail::Unseen {
        return Ok(Asked::default());
    }
    if seen == TokenDetail::Framed {
        if tells_ids {
            return Ok(Asked {
                logprobs: Some(0),
                ids: true,
            });
        }
        fit.flag("token_ids");
        fit.flag("logprobs");
        return Ok(Asked::default());
    }
    if seen == TokenDetail::Full && !tells_ids {
        fit.lossy("token_ids", "details", "the target tells no ids of tokens")?;
    }
    if !tells {
        let field = if seen == TokenDetail::Full {
            "details"
        } else {
            "logprobs"
        };
        fit.lossy(
            "logprobs",
            field,
            "the target is not known to tell log-probabilities",
        )?;
        return Ok(Asked::default());
    }
    let bound = match job.dialect {
        Dialect::OpenAi | Dialect::Tgi => TOP_OPENAI,
        Dialect::Vllm | Dialect::LlamaCpp => TOP_VLLM,
    };
    let top = job.request.top_n_tokens;
    if top > bound {
        let why = format!("the target tells at most {bound}");
        fit.lossy("top_n_tokens", "top_n_tokens", why)?;
    }
    if seen == TokenDetail::Full && top > 0 && !tells_ids {
        fit.flag("top_n_tokens");
    }
    Ok(Asked {
        logprobs: Some(top.min(bound)),
        ids: seen == TokenDetail::Full && tells_ids,
    })
}

/// Asks a chat route.
pub(super) fn for_chat(asked: Asked, body: &mut Map<String, Json>) {
    if let Some(top) = asked.logprobs {
        body.insert("logprobs".to_owned(), Json::Bool(true));
        if top > 0 {
            body.insert("top_logprobs".to_owned(), Json::from(top));
        }
    }
    if asked.ids {
        body.insert("return_token_ids".to_owned(), Json::Bool(true));
    }
}

/// Asks a route of raw prompts.
pub(super) fn for_completions(asked: Asked, body: &mut Map<String, Json>) {
    if let Some(top) = asked.logprobs {
        body.insert("logprobs".to_owned(), Json::from(top));
    }
    if asked.ids {
        body.insert("return_token_ids".to_owned(), Json::Bool(true));
    }
}
