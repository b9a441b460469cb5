//! A conversation → a body of chat completions.

use serde_json::{Map, Value as Json, json};

use super::fit::Fit;
use super::incoming::{Format, Reader};
use super::{Dialect, Draft, Ineligible, Job, details, messages, providers, sampling, schema};
use crate::generation::{ChatAsk, Conversation, Message, StopRule, ToolChoice};

/// Translates a conversation.
///
/// Errors: the first field that the target cannot have.
pub(super) fn draft(job: &Job<'_>, ask: &ChatAsk, fit: &mut Fit) -> Result<Draft, Ineligible> {
    let Conversation {
        messages,
        tools,
        tool_choice,
        parallel_tool_calls,
        tool_prompt,
        documents,
        template_kwargs,
        separate_reasoning: _,
    } = &ask.conversation;
    let mut body = Map::new();
    let shown = messages.iter().map(messages::message).collect();
    let draft = frame(job, shown, &mut body, fit)?;
    continuation(job, messages.last(), &mut body, fit)?;
    if !tools.is_empty() && *tool_choice != ToolChoice::None {
        may_call(job, fit)?;
        if job.dialect == Dialect::Tgi && ask.shape.is_some() {
            let why = "text-generation-inference takes either tools or a shape";
            return Err(Ineligible::new("response_format", why));
        }
        body.insert(
            "tools".to_owned(),
            tools.iter().map(messages::tool).collect(),
        );
        body.insert("tool_choice".to_owned(), messages::tool_choice(tool_choice));
        if !parallel_tool_calls && job.dialect != Dialect::Tgi {
            body.insert("parallel_tool_calls".to_owned(), Json::Bool(false));
        }
        match tool_prompt {
            Some(text) if job.dialect == Dialect::Tgi => {
                body.insert("tool_prompt".to_owned(), Json::from(text.as_str()));
            }
            Some(_) => return Err(Ineligible::new("tool_prompt", "the target takes none")),
            None => {}
        }
    }
    if documents.is_some() {
        if job.dialect != Dialect::Vllm {
            return Err(Ineligible::new("documents", "the target takes none"));
        }
        body.insert("documents".to_owned(), Json::from(documents.clone()));
    }
    variables(job, template_kwargs, &mut body, fit)?;
    let untemplated = job
        .request
        .grammar
        .as_ref()
        .filter(|_| job.known.untemplated);
    if let Some(shape) = ask.shape.as_ref().or(untemplated) {
        let form = providers::route(job.target).schema;
        schema::ask(job, shape, form, true, &mut body, fit)?;
    }
    Ok(Draft { body, ..draft })
}

/// Translates a raw prompt as the one message of a conversation.
///
/// Errors: under the strict fidelity, or where the prompt may hold a template's own marks, always.
pub(super) fn wrap(job: &Job<'_>, fit: &mut Fit) -> Result<Draft, Ineligible> {
    let why = "the target takes conversations, not raw prompts";
    if job.known.special_text != Some(false) {
        return Err(Ineligible::new("inputs", why));
    }
    fit.lossy("prompt_wrapped", "inputs", why)?;
    let mut body = Map::new();
    let message = json!({"role": "user", "content": job.request.prompt});
    let draft = frame(job, Json::from(vec![message]), &mut body, fit)?;
    if let Some(shape) = &job.request.grammar {
        let form = providers::route(job.target).schema;
        schema::ask(job, shape, form, true, &mut body, fit)?;
    }
    Ok(Draft { body, ..draft })
}

/// What every conversation's body has: model, messages, bounds, sampling.
fn frame(
    job: &Job<'_>,
    messages: Json,
    body: &mut Map<String, Json>,
    fit: &mut Fit,
) -> Result<Draft, Ineligible> {
    if job.request.truncate.is_some() {
        return Err(Ineligible::new(
            "truncate",
            "only a raw prompt can be cut there",
        ));
    }
    if job.request.prompt_logprobs {
        return Err(Ineligible::new(
            "decoder_input_details",
            "a conversation's own tokens are told by no upstream",
        ));
    }
    let route = providers::route(job.target);
    body.insert("model".to_owned(), Json::from(route.model));
    body.insert("messages".to_owned(), messages);
    let stream = put_stream(job, true, body);
    body.insert("max_tokens".to_owned(), Json::from(job.max_tokens));
    sampling::write(job, body, fit)?;
    sampling::stops(job, body, fit)?;
    let asked = details::plan(job, true, fit)?;
    details::for_chat(asked, body);
    Ok(Draft {
        path: route.chat,
        headers: route.headers,
        body: Map::new(),
        stream,
        reader: reader(job, Format::Chat, stream, asked.tokens()),
    })
}

/// Whether the answer can come as events.
pub(super) fn can_stream(job: &Job<'_>) -> bool {
    job.target.capabilities.streaming != Some(false)
}

/// Asks for an answer as events, with the usage at their end, where that is wanted and understood. The answer
/// is whether it was asked for so.
pub(super) fn put_stream(job: &Job<'_>, wanted: bool, body: &mut Map<String, Json>) -> bool {
    let stream = wanted && can_stream(job);
    body.insert("stream".to_owned(), Json::Bool(stream));
    if stream && job.target.capabilities.stream_options != Some(false) {
        body.insert("stream_options".to_owned(), json!({"include_usage": true}));
    }
    stream
}

/// The reader of an answer.
pub(super) fn reader(job: &Job<'_>, format: Format, stream: bool, tokens: bool) -> Reader {
    let request = job.request;
    Reader {
        format,
        stream,
        stops: request.stop.clone(),
        keeps_stop: request.stop_rule == StopRule::Keep,
        // TGI leaves the stop string in the text whichever of its routes is asked.
        shows_stop: job.dialect == Dialect::Tgi,
        plain: request.chat.is_none() || job.known.untemplated,
        tokens,
        prompt_tokens: job.prompt_tokens,
        max_tokens: job.max_tokens,
    }
}

/// An assistant's message at the end is to be continued, not answered.
fn continuation(
    job: &Job<'_>,
    last: Option<&Message>,
    body: &mut Map<String, Json>,
    fit: &mut Fit,
) -> Result<(), Ineligible> {
    let continues = last.is_some_and(|m| m.role == "assistant" && m.tool_calls.is_empty());
    if !continues {
        return Ok(());
    }
    let why = "the target is not known to continue an assistant's message";
    match (job.target.capabilities.prefill, job.dialect) {
        (Some(false), _) => return Err(Ineligible::new("messages", why)),
        (_, Dialect::Vllm) => {
            body.insert("continue_final_message".to_owned(), Json::Bool(true));
            body.insert("add_generation_prompt".to_owned(), Json::Bool(false));
        }
        (Some(true), _) | (None, Dialect::LlamaCpp) => {}
        (None, Dialect::OpenAi | Dialect::Tgi) => fit.lossy("prefill", "messages", why)?,
    }
    Ok(())
}

fn may_call(job: &Job<'_>, fit: &mut Fit) -> Result<(), Ineligible> {
    match (job.target.capabilities.tools, job.dialect) {
        (Some(false), _) => Err(Ineligible::new("tools", "the target calls no tools")),
        (None, Dialect::OpenAi) => fit.lossy(
            "tools",
            "tools",
            "it is not known whether the target calls tools",
        ),
        (Some(true), _) | (None, Dialect::Vllm | Dialect::LlamaCpp | Dialect::Tgi) => Ok(()),
    }
}

/// Variables of the template; OpenAI knows one of them, as a field of its own.
fn variables(
    job: &Job<'_>,
    given: &Map<String, Json>,
    body: &mut Map<String, Json>,
    fit: &mut Fit,
) -> Result<(), Ineligible> {
    if given.is_empty() {
        return Ok(());
    }
    if matches!(job.dialect, Dialect::Vllm | Dialect::LlamaCpp) {
        body.insert("chat_template_kwargs".to_owned(), Json::from(given.clone()));
        return Ok(());
    }
    for (key, value) in given {
        if key == "reasoning_effort" && job.dialect == Dialect::OpenAi {
            body.insert(key.clone(), value.clone());
        } else {
            fit.lossy(
                "chat_template_kwargs",
                "chat_template_kwargs",
                "the target takes no variables for its template",
            )?;
        }
    }
    Ok(())
}
