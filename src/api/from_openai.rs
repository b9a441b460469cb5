//! OpenAI's bodies → conversations and requests that cannot be wrong.
//!
//! Parameters are translated to TGI's and pass TGI's own checks, so that both families of routes refuse the
//! same things in the same words and order; what only OpenAI has is checked here. Every refusal begins with
//! the field it is about.

use serde_json::Value as Json;

use super::Config;
use super::compat::{Compat, ReasoningFormat};
use crate::generation::{
    Conversation, Error, FrequencyRule, Grammar, Message, Request, TokenId, Tool, ToolCall,
    ToolChoice,
};
use crate::wire::openai::{
    self, ChatRequest, CompletionRequest, Content, ContentPart, LogitBias, ResponseFormat, Seed,
    Stop,
};
use crate::wire::tgi::GenerateParameters;

/// What a request asks for beside its prompt.
#[derive(Debug, Clone, Default)]
pub(super) struct Ask {
    /// What TGI's routes know too.
    pub(super) parameters: GenerateParameters,
    /// What they do not.
    pub(super) presence_penalty: Option<f32>,
    pub(super) min_p: Option<f32>,
    pub(super) logit_bias: Vec<(TokenId, f32)>,
    pub(super) shape: Option<Grammar>,
    /// Whether log-probabilities are shown.
    pub(super) logprobs: bool,
    /// How many answers to give.
    pub(super) choices: usize,
}

impl Ask {
    /// Adds to a checked request what TGI's parameters cannot say.
    ///
    /// Errors: a setting out of bounds.
    pub(super) fn complete(&self, request: &mut Request, compat: Compat) -> Result<(), Error> {
        let sampling = std::mem::take(&mut request.sampling);
        request.sampling = crate::generation::Sampling {
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            min_p: self.min_p.filter(|&p| p != 0.0),
            logit_bias: self.logit_bias.clone(),
            frequency_rule: match compat {
                Compat::Tgi => FrequencyRule::Share,
                Compat::OpenAi => FrequencyRule::Count,
            },
            ..sampling
        }
        .checked()
        .map_err(|e| Error::invalid(e.to_string()))?;
        Ok(())
    }
}

/// The settings of a chat request; `vocab_size` bounds the ids of biases.
///
/// Errors: a value out of bounds that TGI's own checks do not know.
pub(super) fn chat_ask(
    body: &ChatRequest,
    config: &Config,
    vocab_size: usize,
) -> Result<Ask, Error> {
    let shape = body.response_format.as_ref().map(shape).transpose()?;
    if config.compat == Compat::Tgi && body.tools.is_some() && body.response_format.is_some() {
        return Err(Error::tool("Grammar and tools are mutually exclusive"));
    }
    Ok(Ask {
        parameters: parameters(Written {
            temperature: body.temperature,
            top_p: body.top_p,
            top_k: body.top_k,
            max_tokens: body.max_tokens,
            stop: body.stop.clone().map(Stop::into_vec).unwrap_or_default(),
            seed: body.seed.map(Seed::value),
            frequency_penalty: body.frequency_penalty,
            repetition_penalty: body.repetition_penalty,
            top_n: body.top_logprobs,
        }),
        presence_penalty: body.presence_penalty,
        min_p: body.min_p,
        logit_bias: biases(body.logit_bias.as_ref(), vocab_size)?,
        shape: shape.flatten(),
        logprobs: body.logprobs.unwrap_or(false),
        choices: choices(body.n, config)?,
    })
}

/// The settings of a completion request.
///
/// Errors: as [`chat_ask`].
pub(super) fn completion_ask(
    body: &CompletionRequest,
    config: &Config,
    vocab_size: usize,
) -> Result<Ask, Error> {
    let shape = body.response_format.as_ref().map(shape).transpose()?;
    Ok(Ask {
        parameters: parameters(Written {
            temperature: body.temperature,
            top_p: body.top_p,
            top_k: body.top_k,
            max_tokens: body.max_tokens,
            stop: body.stop.clone().map(Stop::into_vec).unwrap_or_default(),
            seed: body.seed.map(Seed::value),
            frequency_penalty: body.frequency_penalty,
            repetition_penalty: body.repetition_penalty,
            top_n: body.logprobs,
        }),
        presence_penalty: body.presence_penalty,
        min_p: body.min_p,
        logit_bias: biases(body.logit_bias.as_ref(), vocab_size)?,
        shape: shape.flatten(),
        logprobs: body.logprobs.is_some(),
        choices: choices(body.n, config)?,
    })
}

/// Settings as a caller of any dialect but TGI's writes them.
#[derive(Debug, Clone, Default)]
pub(super) struct Written {
    pub(super) temperature: Option<f32>,
    pub(super) top_p: Option<f32>,
    pub(super) top_k: Option<i32>,
    pub(super) max_tokens: Option<u32>,
    pub(super) stop: Vec<String>,
    pub(super) seed: Option<u64>,
    pub(super) frequency_penalty: Option<f32>,
    pub(super) repetition_penalty: Option<f32>,
    pub(super) top_n: Option<u32>,
}

/// Without a temperature these routes sample at 1; at 0 they take the best token.
pub(super) fn parameters(written: Written) -> GenerateParameters {
    let greedy = written.temperature == Some(0.0);
    GenerateParameters {
        temperature: written.temperature.filter(|_| !greedy),
        do_sample: !greedy,
        // A whole nucleus excludes nothing; OpenAI's clients send it by default. What is out of bounds is kept
        // for the check.
        top_p: written
            .top_p
            .filter(|&p| p != 1.0 && !(greedy && p > 0.0 && p < 1.0)),
        // vLLM's clients write "off" so.
        top_k: written
            .top_k
            .filter(|&k| k != -1 && k != 0 && !(greedy && k > 0)),
        max_new_tokens: written.max_tokens,
        stop: written.stop,
        seed: written.seed,
        frequency_penalty: written.frequency_penalty,
        repetition_penalty: written.repetition_penalty,
        top_n_tokens: written.top_n,
        ..GenerateParameters::default()
    }
}

fn choices(n: Option<usize>, config: &Config) -> Result<usize, Error> {
    let n = n.unwrap_or(1);
    if n == 0 || n > config.max_choices {
        return Err(Error::invalid(format!(
            "`n` must be > 0 and <= {}. Given: {n}",
            config.max_choices
        )));
    }
    Ok(n)
}

fn biases(given: Option<&LogitBias>, vocab_size: usize) -> Result<Vec<(TokenId, f32)>, Error> {
    let Some(LogitBias::ById(biases)) = given else {
        return Ok(Vec::new());
    };
    let bias = |(id, bias): (&String, &f32)| {
        let known = id
            .parse::<u32>()
            .ok()
            .filter(|&id| (id as usize) < vocab_size);
        let id = known.ok_or_else(|| {
            Error::invalid(format!(
                "`logit_bias` must name token ids below {vocab_size}. Given: {id}"
            ))
        })?;
        Ok((TokenId(id), *bias))
    };
    biases.iter().map(bias).collect()
}

/// The grammar a response format stands for; none for plain text.
pub(super) fn shape(format: &ResponseFormat) -> Result<Option<Grammar>, Error> {
    let ResponseFormat {
        kind,
        value,
        json_schema,
        schema,
    } = format;
    let value = match (value, schema) {
        (Some(_), Some(_)) => {
            return Err(Error::invalid(
                "`response_format.value` and `response_format.schema` are the same; give one of them",
            ));
        }
        (value, schema) => value.as_ref().or(schema.as_ref()),
    };
    let missing = |what: &str| Error::invalid(format!("`response_format.{what}` is missing"));
    let text = |value: Option<&Json>| {
        let text = value.and_then(Json::as_str);
        text.map(str::to_owned)
            .ok_or_else(|| Error::invalid("`response_format.value` must be a string"))
    };
    Ok(Some(match kind.as_str() {
        "text" => return Ok(None),
        "json_object" | "json" => match value {
            Some(schema) => Grammar::JsonSchema(schema_text(schema)?),
            None if kind == "json" => return Err(missing("value")),
            None => Grammar::JsonObject,
        },
        "json_schema" => {
            let named = json_schema.as_ref().or(value);
            let named = named.ok_or_else(|| missing("json_schema"))?;
            let schema = named
                .get("schema")
                .ok_or_else(|| missing("json_schema.schema"))?;
            Grammar::JsonSchema(schema_text(schema)?)
        }
        "regex" => Grammar::Regex(text(value)?),
        "lark" => Grammar::Lark(text(value)?),
        other => {
            return Err(Error::invalid(format!(
                "`response_format.type` is `{other}`; served are text, json_object, json_schema, json, regex and lark"
            )));
        }
    }))
}

/// A schema, or text that holds one.
fn schema_text(schema: &Json) -> Result<String, Error> {
    match schema {
        Json::String(text) => Ok(text.clone()),
        Json::Object(_) => Ok(schema.to_string()),
        _ => Err(Error::invalid("grammar is not supported")),
    }
}

/// The conversation of a chat request.
///
/// Errors: a message holds what a text model cannot read.
pub(super) fn conversation(body: &ChatRequest, config: &Config) -> Result<Conversation, Error> {
    let messages = body.messages.iter().enumerate();
    let messages = messages.map(|(place, message)| self::message(message, place));
    let asked = body.separate_reasoning.or(body
        .reasoning_format
        .as_ref()
        .map(|format| format != "none"));
    Ok(Conversation {
        messages: messages.collect::<Result<_, _>>()?,
        tools: body.tools.iter().flatten().map(tool).collect(),
        tool_choice: body
            .tool_choice
            .as_ref()
            .map_or(ToolChoice::Auto, tool_choice),
        parallel_tool_calls: body.parallel_tool_calls.unwrap_or(true),
        tool_prompt: body.tool_prompt.clone().filter(|text| !text.is_empty()),
        documents: body.documents.clone(),
        template_kwargs: body.chat_template_kwargs.clone().unwrap_or_default(),
        separate_reasoning: asked.unwrap_or(config.reasoning_format == ReasoningFormat::Separate),
    })
}

fn message(message: &openai::Message, place: usize) -> Result<Message, Error> {
    let openai::Message {
        role,
        content,
        name,
        tool_calls,
        tool_call_id,
        reasoning_content,
    } = message;
    let content = match content {
        None => None,
        Some(Content::Text(text)) => Some(text.clone()),
        Some(Content::Parts(parts)) => {
            let texts = parts.iter().enumerate();
            let texts = texts.map(|(part, content)| {
                part_text(content, &format!("messages[{place}].content[{part}]"))
            });
            Some(texts.collect::<Result<String, _>>()?)
        }
    };
    let call = |call: &openai::ToolCall| ToolCall {
        id: call.id.clone(),
        name: call.function.name.clone(),
        arguments: arguments(&call.function.arguments),
    };
    Ok(Message {
        // OpenAI's newer word for what templates know as the system.
        role: if role == "developer" { "system" } else { role }.to_owned(),
        content,
        name: name.clone(),
        tool_calls: tool_calls.iter().flatten().map(call).collect(),
        tool_call_id: tool_call_id.clone(),
        reasoning: reasoning_content.clone(),
    })
}

fn part_text(part: &ContentPart, field: &str) -> Result<String, Error> {
    let missing = || Error::invalid(format!("`{field}.text` is missing"));
    match part.kind.as_str() {
        "text" | "input_text" | "output_text" => part.text.clone().ok_or_else(missing),
        "refusal" => Ok(part.refusal.clone().unwrap_or_default()),
        other => Err(unreadable(field, other)),
    }
}

/// The refusal of a part that is not text.
pub(super) fn unreadable(field: &str, kind: &str) -> Error {
    let modality = ["image", "audio", "video"]
        .into_iter()
        .find(|modality| kind.contains(modality))
        .unwrap_or(kind);
    Error::invalid(format!(
        "`{field}` is of type `{kind}`: {modality} modality is not supported"
    ))
}

/// Arguments as the object they stand for; what is no object stays as it is.
pub(super) fn arguments(written: &Json) -> Json {
    match written {
        Json::String(text) if text.trim().is_empty() => Json::Object(Default::default()),
        Json::String(text) => serde_json::from_str::<Json>(text)
            .ok()
            .filter(Json::is_object)
            .unwrap_or_else(|| written.clone()),
        Json::Null => Json::Object(Default::default()),
        other => other.clone(),
    }
}

fn tool(tool: &openai::Tool) -> Tool {
    let openai::FunctionDefinition {
        description,
        name,
        arguments,
        strict,
    } = &tool.function;
    Tool {
        name: name.clone(),
        description: description.clone(),
        parameters: schema_or_any(arguments),
        strict: strict.unwrap_or(false),
    }
}

/// A schema of arguments; without one any object will do.
pub(super) fn schema_or_any(schema: &Json) -> Json {
    match schema {
        Json::Object(fields) if !fields.is_empty() => schema.clone(),
        _ => serde_json::json!({"type": "object", "properties": {}}),
    }
}

fn tool_choice(choice: &openai::ToolChoice) -> ToolChoice {
    match choice {
        openai::ToolChoice::Word(word) => match word.as_str() {
            "auto" => ToolChoice::Auto,
            "none" => ToolChoice::None,
            "required" => ToolChoice::Required,
            name => ToolChoice::Named(name.to_owned()),
        },
        openai::ToolChoice::Function(named) => ToolChoice::Named(named.function.name.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn format(body: Json) -> Result<Option<Grammar>, Error> {
        shape(&serde_json::from_value(body).expect("a response format"))
    }

    #[test]
    fn both_spellings_of_a_response_format_mean_the_same() {
        let schema = json!({"type": "object"});
        let expected = Some(Grammar::JsonSchema(schema.to_string()));
        for body in [
            json!({"type": "json", "value": schema}),
            json!({"type": "json_object", "value": schema}),
            json!({"type": "json_object", "value": schema.to_string()}),
            json!({"type": "json_object", "schema": schema}),
            json!({"type": "json_schema", "value": {"name": "n", "schema": schema}}),
            json!({"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": schema}}),
        ] {
            assert_eq!(format(body), Ok(expected.clone()));
        }
        assert_eq!(format(json!({"type": "text"})), Ok(None));
        assert_eq!(
            format(json!({"type": "json_object"})),
            Ok(Some(Grammar::JsonObject))
        );
        for body in [
            json!({"type": "json"}),
            json!({"type": "json_schema"}),
            json!({"type": "json_schema", "json_schema": {"name": "n"}}),
            json!({"type": "regex", "value": 1}),
            json!({"type": "xml"}),
            json!({"type": "json", "value": {}, "schema": {}}),
        ] {
            assert!(format(body).is_err());
        }
    }

    #[test]
    fn temperature_zero_is_greedy_whatever_else_is_set() {
        let parameters = parameters(Written {
            temperature: Some(0.0),
            top_p: Some(0.5),
            top_k: Some(3),
            ..Written::default()
        });
        assert!(!parameters.do_sample);
        assert_eq!(
            (parameters.temperature, parameters.top_p, parameters.top_k),
            (None, None, None)
        );
        assert!(self::parameters(Written::default()).do_sample);
    }

    #[test]
    fn arguments_become_objects_when_they_can() {
        assert_eq!(arguments(&json!("{\"a\": 1}")), json!({"a": 1}));
        assert_eq!(arguments(&json!({"a": 1})), json!({"a": 1}));
        assert_eq!(arguments(&json!("")), json!({}));
        assert_eq!(arguments(&Json::Null), json!({}));
        assert_eq!(arguments(&json!("not json")), json!("not json"));
    }

    #[test]
    fn parts_that_are_no_text_are_named() {
        let body = json!({"role": "user", "content": [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": "http://x/y.png"}},
        ]});
        let error =
            message(&serde_json::from_value(body).expect("a message"), 3).expect_err("an image");
        assert_eq!(
            error.message,
            "`messages[3].content[1]` is of type `image_url`: image modality is not supported"
        );
    }

    #[test]
    fn biases_name_tokens_of_the_vocabulary() {
        let given = |body: Json| serde_json::from_value::<LogitBias>(body).expect("a bias");
        assert_eq!(
            biases(Some(&given(json!({"5": -100, "7": 2.5}))), 10),
            Ok(vec![(TokenId(5), -100.0), (TokenId(7), 2.5)])
        );
        assert!(biases(Some(&given(json!({"10": 1}))), 10).is_err());
        assert!(biases(Some(&given(json!({"x": 1}))), 10).is_err());
        assert_eq!(biases(Some(&given(json!([1.0]))), 10), Ok(Vec::new()));
    }
}
