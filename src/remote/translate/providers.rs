//! What differs from provider to provider, as data: paths, headers and the form of a JSON Schema.
//!
//! A provider that is not listed speaks plain OpenAI; names of providers come and go, so none is refused.
//! Source: huggingface_hub's `_providers`, August 2026.

use crate::remote::config::UpstreamKind;
use crate::remote::facts::TargetFacts;

/// How a provider wants a JSON Schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SchemaForm {
    /// `{"type":"json_schema","json_schema":{"name","schema","strict"}}`
    OpenAi,
    /// `{"type":"json_schema","schema"}`
    Flat,
    /// `{"type":"json_object","schema"}`
    ObjectSchema,
    /// `{"type":"json_object","value"}`
    ObjectValue,
}

/// One provider's ways. `{id}` in a path stands for the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ways {
    provider: &'static str,
    chat: &'static str,
    /// Whether raw prompts are taken, beside the path of chat.
    completions: bool,
    schema: SchemaForm,
    headers: &'static [(&'static str, &'static str)],
}

const CHAT: &str = "/v1/chat/completions";

const fn ways(provider: &'static str, chat: &'static str, schema: SchemaForm) -> Ways {
    Ways {
        provider,
        chat,
        completions: false,
        schema,
        headers: &[],
    }
}

const PROVIDERS: [Ways; 9] = [
    Ways {
        completions: true,
        ..ways("together", CHAT, SchemaForm::Flat)
    },
    Ways {
        completions: true,
        ..ways("featherless-ai", CHAT, SchemaForm::OpenAi)
    },
    ways("groq", "/openai/v1/chat/completions", SchemaForm::OpenAi),
    ways(
        "fireworks-ai",
        "/inference/v1/chat/completions",
        SchemaForm::ObjectSchema,
    ),
    ways(
        "cohere",
        "/compatibility/v1/chat/completions",
        SchemaForm::ObjectSchema,
    ),
    Ways {
        completions: true,
        ..ways(
            "deepinfra",
            "/v1/openai/chat/completions",
            SchemaForm::OpenAi,
        )
    },
    Ways {
        completions: true,
        ..ways("novita", "/v3/openai/chat/completions", SchemaForm::OpenAi)
    },
    Ways {
        headers: &[
            ("accept-language", "en-US,en"),
            ("x-source-channel", "hugging_face"),
        ],
        ..ways(
            "zai-org",
            "/api/paas/v4/chat/completions",
            SchemaForm::OpenAi,
        )
    },
    ways(
        "hf-inference",
        "/models/{id}/v1/chat/completions",
        SchemaForm::ObjectValue,
    ),
];

fn of(provider: &str) -> Ways {
    PROVIDERS
        .into_iter()
        .find(|ways| ways.provider == provider)
        .unwrap_or(Ways {
            completions: true,
            ..ways("", CHAT, SchemaForm::OpenAi)
        })
}

/// The path of a provider's chat completions through the Hugging Face router.
pub fn proxy_path(provider: &str, model: &str) -> String {
    format!("/{provider}{}", of(provider).chat.replace("{id}", model))
}

/// Where one target's bodies go, and in which form.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Route {
    /// Chat completions.
    pub(super) chat: String,
    /// Completions of raw prompts, where there may be any.
    pub(super) completions: Option<String>,
    /// What the body calls the model.
    pub(super) model: String,
    /// The form of a JSON Schema.
    pub(super) schema: SchemaForm,
    /// More headers.
    pub(super) headers: Vec<(&'static str, String)>,
}

/// The path of completions that stands beside one of chat completions.
fn beside(chat: &str) -> Option<String> {
    let before = chat.strip_suffix("/chat/completions")?;
    Some(format!("{before}/completions"))
}

/// Finds a target's route.
pub(super) fn route(target: &TargetFacts) -> Route {
    let model = &*target.model;
    let provider = target.provider.as_deref();
    let given = target.chat_path.as_deref();
    let chat = |ways: Ways, before: &str| match given {
        Some(path) => path.replace("{id}", model),
        None => format!("{before}{}", ways.chat.replace("{id}", model)),
    };
    let through = |ways: Ways, before: &str| Route {
        chat: chat(ways, before),
        completions: beside(&chat(ways, before)).filter(|_| ways.completions),
        model: model.to_owned(),
        schema: ways.schema,
        headers: ways
            .headers
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()))
            .collect(),
    };
    match (target.kind, provider) {
        (UpstreamKind::HfRouter, Some(provider))
            if given.is_some_and(|path| path.starts_with(&format!("/{provider}/"))) =>
        {
            through(of(provider), &format!("/{provider}"))
        }
        (UpstreamKind::HfRouter, provider) => Route {
            chat: given.unwrap_or(CHAT).to_owned(),
            completions: None,
            model: match provider {
                Some(suffix) => format!("{model}:{suffix}"),
                None => model.to_owned(),
            },
            schema: SchemaForm::OpenAi,
            headers: Vec::new(),
        },
        (UpstreamKind::OpenAiCompat, Some(provider)) => through(of(provider), ""),
        _ => through(of(""), ""),
    }
}
