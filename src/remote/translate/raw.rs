//! A raw prompt → the route of a target that takes one.

use serde_json::{Map, Value as Json};

use super::fit::Fit;
use super::incoming::Format;
use super::{Dialect, Draft, Ineligible, Job, chat, details, providers, sampling, schema, tgi};

/// Translates a raw prompt; where a target has no route for it, it is wrapped or refused.
///
/// Errors: the first field that the target cannot have.
pub(super) fn draft(job: &Job<'_>, fit: &mut Fit) -> Result<Draft, Ineligible> {
    let can = job.target.capabilities.raw_prompt;
    match job.dialect {
        _ if can == Some(false) => chat::wrap(job, fit),
        Dialect::Tgi => tgi::draft(job, fit),
        Dialect::Vllm | Dialect::LlamaCpp => completions(job, fit),
        Dialect::OpenAi if can == Some(true) => completions(job, fit),
        Dialect::OpenAi => chat::wrap(job, fit),
    }
}

/// The prompt without a beginning that the target's tokenizer adds by itself.
pub(super) fn without_bos<'a>(job: &Job<'a>) -> &'a str {
    let prompt = job.request.prompt.as_str();
    let bos = job.settings.bos.as_deref().filter(|bos| !bos.is_empty());
    bos.and_then(|bos| prompt.strip_prefix(bos))
        .filter(|rest| !rest.is_empty())
        .unwrap_or(prompt)
}

fn completions(job: &Job<'_>, fit: &mut Fit) -> Result<Draft, Ineligible> {
    let route = providers::route(job.target);
    let Some(path) = route.completions else {
        return chat::wrap(job, fit);
    };
    let request = job.request;
    let vllm = job.dialect == Dialect::Vllm;
    let mut body = Map::new();
    body.insert("model".to_owned(), Json::from(route.model));
    // Without its own beginning the prompt goes there as it is.
    let bare = vllm && !request.add_special_tokens;
    let prompt = if bare {
        request.prompt.as_str()
    } else {
        without_bos(job)
    };
    if !bare && !request.add_special_tokens && prompt.len() == request.prompt.len() {
        fit.lossy("bos", "inputs", "the target adds a token before the prompt")?;
    }
    body.insert("prompt".to_owned(), Json::from(prompt));
    if vllm {
        let adds = Json::Bool(request.add_special_tokens);
        body.insert("add_special_tokens".to_owned(), adds);
    }
    // vLLM tells a prompt's log-probabilities only where it does not stream.
    let stream = chat::put_stream(job, !request.prompt_logprobs, &mut body);
    if request.prompt_logprobs {
        if !vllm {
            return Err(Ineligible::new(
                "decoder_input_details",
                "the target tells nothing of the prompt's tokens",
            ));
        }
        body.insert("prompt_logprobs".to_owned(), Json::from(0));
        body.insert("return_token_ids".to_owned(), Json::Bool(true));
    }
    body.insert("max_tokens".to_owned(), Json::from(job.max_tokens));
    sampling::write(job, &mut body, fit)?;
    sampling::stops(job, &mut body, fit)?;
    if let Some(kept) = request.truncate {
        if !vllm {
            return Err(Ineligible::new("truncate", "the target cuts no prompts"));
        }
        if !job.target.same_model {
            fit.lossy("truncate", "truncate", "another tokenizer cuts elsewhere")?;
        }
        body.insert("truncate_prompt_tokens".to_owned(), Json::from(kept.get()));
        body.insert("truncation_side".to_owned(), Json::from("left"));
    }
    if let Some(shape) = &request.grammar {
        schema::ask(job, shape, route.schema, false, &mut body, fit)?;
    }
    let asked = details::plan(job, false, fit)?;
    details::for_completions(asked, &mut body);
    Ok(Draft {
        path,
        headers: route.headers,
        body,
        stream,
        reader: chat::reader(job, Format::Completions, stream, asked.tokens()),
    })
}
