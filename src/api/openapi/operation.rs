//! One described operation: its parts, said once for all routes that share them.
//!
//! What a family's failures look like and which headers go with which answer stand here and nowhere else.

use std::collections::BTreeMap;

use utoipa::ToSchema;
use utoipa::openapi::header::Header;
use utoipa::openapi::path::{
    HttpMethod, Operation as Described, OperationBuilder, ParameterBuilder, ParameterIn,
};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{Array, Object, OneOf, Ref, Schema, Type};
use utoipa::openapi::security::SecurityRequirement;
use utoipa::openapi::{Content, RefOr, Required, Response, ResponseBuilder};

use crate::wire::anthropic::AnthropicError;
use crate::wire::openai::{NestedError, V1Error};
use crate::wire::tgi::ErrorResponse;

const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";

/// Headers of answers, by name: whether a number, and what it says.
const HEADERS: &[(&str, Type, &str)] = &[
    (
        "ratelimit",
        Type::String,
        "Of the key: requests left, and seconds until there are more, as draft 9 of the IETF's field has it",
    ),
    (
        "ratelimit-policy",
        Type::String,
        "Of the key: requests a window, and its seconds",
    ),
    (
        "retry-after",
        Type::Integer,
        "Seconds after which another try may help",
    ),
    (
        "x-accel-buffering",
        Type::String,
        "Always `no`: proxies must not hold events back",
    ),
    (
        "x-compute-characters",
        Type::Integer,
        "Characters of the prompt",
    ),
    ("x-compute-time", Type::Number, "Seconds in all"),
    (
        "x-compute-type",
        Type::String,
        "What the server computes on",
    ),
    ("x-generated-tokens", Type::Integer, "Tokens generated"),
    (
        "x-inference-time",
        Type::Integer,
        "Milliseconds from the first step to the end",
    ),
    ("x-prompt-tokens", Type::Integer, "Tokens of the prompt"),
    ("x-queue-time", Type::Integer, "Milliseconds in the queue"),
    (
        "x-should-retry",
        Type::String,
        "`false` where another try is pointless",
    ),
    (
        "x-time-per-token",
        Type::Integer,
        "Milliseconds for each generated token",
    ),
    ("x-total-time", Type::Integer, "Milliseconds in all"),
    (
        "x-validation-time",
        Type::Integer,
        "Milliseconds before the queue",
    ),
    ("www-authenticate", Type::String, "How to show a key"),
];

/// Which headers an answer carries; a stream on the same route as a whole answer has fewer and one of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Headers {
    /// Those of a whole answer.
    Full,
    /// Those of an answer that may stand for several: without the seconds it took.
    Sum,
    /// Those of a stream.
    Stream,
}

impl Headers {
    fn names(self) -> &'static [&'static str] {
        const FULL: &[&str] = &[
            "x-compute-time",
            "x-compute-type",
            "x-compute-characters",
            "x-total-time",
            "x-validation-time",
            "x-queue-time",
            "x-inference-time",
            "x-time-per-token",
            "x-prompt-tokens",
            "x-generated-tokens",
        ];
        match self {
            Self::Full => FULL,
            Self::Sum => &FULL[1..],
            Self::Stream => &[
                "x-compute-type",
                "x-compute-characters",
                "x-accel-buffering",
            ],
        }
    }
}

/// Every header that an answer may carry.
pub(super) fn headers() -> impl Iterator<Item = (String, RefOr<Header>)> {
    HEADERS.iter().map(|(name, kind, says)| {
        let mut header = Header::new(Object::with_type(kind.clone()));
        header.description = Some((*says).to_owned());
        ((*name).to_owned(), RefOr::T(header))
    })
}

/// Whose words failures are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// TGI's own routes.
    Native,
    /// OpenAI's routes, in either mode.
    V1,
    /// Anthropic's routes.
    Anthropic,
}

/// A reference to a type's schema.
pub(super) fn reference<T: ToSchema>() -> RefOr<Schema> {
    Ref::from_schema_name(T::name()).into()
}

/// The schemas that operations refer to, by name.
type Schemas = BTreeMap<String, RefOr<Schema>>;

fn add<T: ToSchema>(schemas: &mut Schemas) -> RefOr<Schema> {
    let mut inner = Vec::new();
    T::schemas(&mut inner);
    schemas.extend(inner);
    schemas.insert(T::name().into_owned(), T::schema());
    reference::<T>()
}

/// A successful answer.
#[derive(Default)]
pub(super) struct Answer {
    says: &'static str,
    contents: Vec<(&'static str, RefOr<Schema>)>,
    headers: &'static [&'static str],
    schemas: Schemas,
}

impl Answer {
    /// One without a body.
    pub(super) fn new(says: &'static str) -> Self {
        Self {
            says,
            ..Self::default()
        }
    }

    fn content(mut self, kind: &'static str, schema: RefOr<Schema>) -> Self {
        self.contents.push((kind, schema));
        self
    }

    /// Brings the schema of a type that other schemas refer to.
    pub(super) fn and<T: ToSchema>(mut self) -> Self {
        add::<T>(&mut self.schemas);
        self
    }

    /// A JSON body.
    pub(super) fn json<T: ToSchema>(self) -> Self {
        self.and::<T>().content(JSON, reference::<T>())
    }

    /// A JSON list.
    pub(super) fn list_of<T: ToSchema>(self) -> Self {
        self.and::<T>()
            .content(JSON, Array::new(reference::<T>()).into())
    }

    /// A JSON body whose schema has a name and no type.
    pub(super) fn named(mut self, name: &str, schema: impl Into<RefOr<Schema>>) -> Self {
        self.schemas.insert(name.to_owned(), schema.into());
        self.content(JSON, Ref::from_schema_name(name).into())
    }

    /// Events whose schema has a name and no type.
    pub(super) fn named_events(mut self, name: &str, schema: impl Into<RefOr<Schema>>) -> Self {
        self.schemas.insert(name.to_owned(), schema.into());
        self.content(EVENTS, Ref::from_schema_name(name).into())
    }

    /// Events of one type, and the one that ends a failed stream.
    pub(super) fn events<T: ToSchema, E: ToSchema>(self) -> Self {
        let either = OneOf::builder()
            .item(reference::<T>())
            .item(reference::<E>());
        self.and::<T>().and::<E>().content(EVENTS, either.into())
    }

    /// Events of a type that knows failures.
    pub(super) fn all_events<T: ToSchema>(self) -> Self {
        self.and::<T>().content(EVENTS, reference::<T>())
    }

    /// A text.
    pub(super) fn text(self) -> Self {
        self.content("text/plain", Object::with_type(Type::String).into())
    }

    /// Adds headers.
    pub(super) fn with(mut self, headers: Headers) -> Self {
        self.headers = headers.names();
        self
    }
}

/// A method of a path.
pub(super) struct Operation {
    path: &'static str,
    method: HttpMethod,
    built: OperationBuilder,
    schemas: Schemas,
}

impl Operation {
    fn new(method: HttpMethod, path: &'static str, id: &'static str) -> Self {
        Self {
            path,
            method,
            built: OperationBuilder::new().operation_id(Some(id)),
            schemas: Schemas::new(),
        }
    }

    /// A `GET`.
    pub(super) fn get(path: &'static str, id: &'static str) -> Self {
        Self::new(HttpMethod::Get, path, id)
    }

    /// A `POST`.
    pub(super) fn post(path: &'static str, id: &'static str) -> Self {
        Self::new(HttpMethod::Post, path, id)
    }

    fn change(mut self, change: impl FnOnce(OperationBuilder) -> OperationBuilder) -> Self {
        self.built = change(self.built);
        self
    }

    /// What it does, under which heading.
    pub(super) fn says(self, tag: &str, summary: &str) -> Self {
        self.change(|built| built.tag(tag).summary(Some(summary)))
    }

    /// Its body.
    pub(super) fn takes<T: ToSchema>(mut self) -> Self {
        let schema = add::<T>(&mut self.schemas);
        self.body(schema)
    }

    /// Its body, whose schema has a name and no type.
    pub(super) fn takes_named(mut self, name: &str, schema: impl Into<RefOr<Schema>>) -> Self {
        self.schemas.insert(name.to_owned(), schema.into());
        self.body(Ref::from_schema_name(name).into())
    }

    fn body(self, schema: RefOr<Schema>) -> Self {
        let body = RequestBodyBuilder::new()
            .content(JSON, Content::new(Some(schema)))
            .required(Some(Required::True))
            .build();
        self.change(|built| built.request_body(Some(body)))
    }

    /// A part of its path.
    pub(super) fn path_text(self, name: &str) -> Self {
        let text = Object::builder()
            .schema_type(Type::String)
            .min_length(Some(1));
        let parameter = ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Path)
            .required(Required::True)
            .schema(Some(text));
        self.change(|built| built.parameter(parameter))
    }

    /// A text in the path's query that may be left out.
    pub(super) fn query(self, name: &str, says: &str) -> Self {
        let parameter = ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Query)
            .required(Required::False)
            .description(Some(says))
            .schema(Some(Object::builder().schema_type(Type::String)));
        self.change(|built| built.parameter(parameter))
    }

    /// Its success.
    pub(super) fn gives(mut self, answer: Answer) -> Self {
        let Answer {
            says,
            contents,
            headers,
            schemas,
        } = answer;
        self.schemas.extend(schemas);
        let mut response = ResponseBuilder::new().description(says);
        for (kind, schema) in contents {
            response = response.content(kind, Content::new(Some(schema)));
        }
        let response = with_headers(response.build(), headers);
        self.change(|built| built.response("200", response))
    }

    /// Its failures, by status.
    pub(super) fn fails(mut self, family: Family, statuses: &[&str]) -> Self {
        let schema = match family {
            Family::Native => add::<ErrorResponse>(&mut self.schemas),
            Family::V1 => OneOf::builder()
                .item(add::<V1Error>(&mut self.schemas))
                .item(add::<NestedError>(&mut self.schemas))
                .into(),
            Family::Anthropic => add::<AnthropicError>(&mut self.schemas),
        };
        for status in statuses {
            let (says, headers) = failure(status);
            let response = ResponseBuilder::new()
                .description(says)
                .content(JSON, Content::new(Some(schema.clone())))
                .build();
            let response = with_headers(response, headers);
            self = self.change(|built| built.response(*status, response));
        }
        self
    }

    /// It asks for a key, where any are set.
    pub(super) fn keyed(self) -> Self {
        self.change(|built| built.securities(Some(security())))
    }

    /// Its path, method, description, and the schemas it refers to.
    pub(super) fn build(self) -> (&'static str, HttpMethod, Described, Schemas) {
        (self.path, self.method, self.built.build(), self.schemas)
    }
}

/// A key in either header, or none where none are set.
fn security() -> [SecurityRequirement; 3] {
    let none: [&str; 0] = [];
    [
        SecurityRequirement::default(),
        SecurityRequirement::new("bearer", none),
        SecurityRequirement::new("x_api_key", none),
    ]
}

fn with_headers(mut response: Response, names: &[&str]) -> Response {
    for name in names {
        let reference = Ref::new(format!("#/components/headers/{name}"));
        response
            .headers
            .insert((*name).to_owned(), RefOr::Ref(reference));
    }
    response
}

/// What a status says, and the headers that go with it.
fn failure(status: &str) -> (&'static str, &'static [&'static str]) {
    match status {
        "400" => (
            "The body is not JSON; under `compat = \"openai\"` and Anthropic's rule also: the request is invalid",
            &[],
        ),
        "401" => ("The API key is missing or wrong", &["www-authenticate"]),
        "404" => ("Nothing here has that name", &[]),
        "408" => ("The body did not arrive in time", &[]),
        "413" => ("The body is too long", &[]),
        "415" => ("The body is not declared as JSON", &[]),
        "422" => ("Input validation error", &[]),
        "424" => ("Generation Error", &[]),
        "429" => (
            "Model is overloaded, or a limit of the key is reached",
            &["ratelimit", "ratelimit-policy", "retry-after"],
        ),
        "503" => ("Text generation inference is down", &[]),
        "504" => (
            "The deadline passed before the first token",
            &["x-should-retry"],
        ),
        _ => ("Incomplete generation", &[]),
    }
}
