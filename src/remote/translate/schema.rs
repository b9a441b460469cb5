//! The shape an answer must have, in the words of each dialect.

use serde_json::{Map, Value as Json, json};

use super::fit::Fit;
use super::providers::SchemaForm;
use super::{Dialect, Ineligible, Job};
use crate::generation::Grammar;

/// Asks for a shape.
///
/// Errors: a shape that the target has no word for, or is not known to keep to.
pub(super) fn ask(
    job: &Job<'_>,
    shape: &Grammar,
    form: SchemaForm,
    chat: bool,
    body: &mut Map<String, Json>,
    fit: &mut Fit,
) -> Result<(), Ineligible> {
    let kept = job.target.capabilities.structured_output;
    if job.dialect == Dialect::OpenAi || kept == Some(false) {
        keeps_to_schemas(kept, fit)?;
    }
    let wanted = match shape {
        Grammar::JsonSchema(text) | Grammar::TgiSchema(text) => Wanted::Schema(schema(text)?),
        Grammar::JsonObject => Wanted::Object,
        Grammar::Regex(text) => Wanted::Regex(text),
        Grammar::Lark(_) => {
            return Err(Ineligible::new(
                "grammar",
                "no upstream reads Lark grammars",
            ));
        }
    };
    let (key, value) = match (job.dialect, wanted) {
        (Dialect::Tgi, wanted) => {
            let key = if chat { "response_format" } else { "grammar" };
            (key, for_tgi(wanted)?)
        }
        (Dialect::Vllm, Wanted::Regex(text)) => ("structured_outputs", json!({"regex": text})),
        (_, Wanted::Regex(_)) => {
            return Err(Ineligible::new(
                "grammar",
                "the target keeps to no regular expressions",
            ));
        }
        (Dialect::LlamaCpp, Wanted::Schema(schema)) if !chat => ("json_schema", schema),
        (Dialect::LlamaCpp, Wanted::Object) if !chat => ("json_schema", json!({"type": "object"})),
        (_, Wanted::Object) => ("response_format", json!({"type": "json_object"})),
        (_, Wanted::Schema(schema)) => ("response_format", for_openai(schema, form)),
    };
    body.insert(key.to_owned(), value);
    Ok(())
}

enum Wanted<'a> {
    Schema(Json),
    Object,
    Regex(&'a str),
}

fn keeps_to_schemas(kept: Option<bool>, fit: &mut Fit) -> Result<(), Ineligible> {
    match kept {
        Some(true) => Ok(()),
        None => fit.lossy(
            "grammar",
            "grammar",
            "it is not known whether the target keeps to JSON Schemas",
        ),
        Some(false) => Err(Ineligible::new(
            "grammar",
            "the target keeps to no JSON Schemas",
        )),
    }
}

/// A schema's text as JSON; TGI's may be a string that holds one.
fn schema(text: &str) -> Result<Json, Ineligible> {
    let unreadable = |_| Ineligible::new("grammar", "the schema is no JSON");
    match serde_json::from_str(text).map_err(unreadable)? {
        Json::String(inner) => serde_json::from_str(&inner).map_err(unreadable),
        schema => Ok(schema),
    }
}

/// TGI's own notation; it refuses a schema that lists no properties.
fn for_tgi(wanted: Wanted<'_>) -> Result<Json, Ineligible> {
    match wanted {
        Wanted::Regex(text) => Ok(json!({"type": "regex", "value": text})),
        Wanted::Schema(schema) if schema.get("properties").is_some() => {
            Ok(json!({"type": "json_object", "value": schema}))
        }
        Wanted::Schema(_) | Wanted::Object => Err(Ineligible::new(
            "grammar",
            "text-generation-inference takes only schemas that list `properties`",
        )),
    }
}

fn for_openai(schema: Json, form: SchemaForm) -> Json {
    match form {
        SchemaForm::OpenAi => json!({
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": schema, "strict": true},
        }),
        SchemaForm::Flat => json!({"type": "json_schema", "schema": schema}),
        SchemaForm::ObjectSchema => json!({"type": "json_object", "schema": schema}),
        SchemaForm::ObjectValue => json!({"type": "json_object", "value": schema}),
    }
}
