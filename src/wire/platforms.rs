//! The bodies of hosting platforms' routes: Vertex AI and KServe's open inference protocol, version 2.
//!
//! Source: TGI router 3.3.6; the open inference protocol.

use serde::{Deserialize, Serialize};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{AnyOf, Array, Object, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use super::openai::ChatRequest;
use super::tgi::{GenerateParameters, GenerateRequest};

/// Body of `POST /vertex`.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
pub struct VertexRequest {
    /// What to answer, each for itself.
    pub instances: Vec<VertexInstance>,
}

/// One thing to answer.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum VertexInstance {
    /// A text to continue.
    Generate(Box<GenerateRequest>),
    /// A conversation.
    Chat(Box<ChatRequest>),
}

/// Answer of `POST /vertex`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct VertexResponse {
    /// The texts, in order.
    pub predictions: Vec<String>,
}

/// Answer of KServe's health routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct KserveLive {
    /// Always true.
    pub live: bool,
}

/// Answer of `GET /v2`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct KserveServer {
    /// The server.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What it can do.
    pub extensions: Vec<&'static str>,
}

/// Answer of `GET /v2/models/{model}/versions/{version}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct KserveModel {
    /// The model.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What it can do.
    pub extensions: Vec<&'static str>,
}

/// Body of `POST /v2/models/{model}/versions/{version}/infer`.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
pub struct InferRequest {
    /// Names the request.
    #[serde(default)]
    pub id: String,
    /// As in `POST /generate`.
    #[serde(default = "super::tgi::default_parameters")]
    pub parameters: GenerateParameters,
    /// Texts to continue.
    pub inputs: Vec<InferInput>,
    /// Names of the answers, one for each input.
    pub outputs: Vec<InferOutput>,
}

/// One text to continue.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
pub struct InferInput {
    /// Its name.
    pub name: String,
    /// Has no effect.
    #[serde(default)]
    pub shape: Vec<usize>,
    /// Has no effect; `BYTES`.
    #[serde(default)]
    pub datatype: String,
    /// The text.
    pub data: InferData,
}

/// A text as bytes (TGI) or as a list of one string (the protocol).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum InferData {
    /// UTF-8.
    Bytes(Vec<u8>),
    /// One string.
    Texts(Vec<String>),
}

impl PartialSchema for InferData {
    fn schema() -> RefOr<Schema> {
        let byte = Object::builder()
            .schema_type(Type::Integer)
            .minimum(Some(u8::MIN))
            .maximum(Some(u8::MAX));
        let texts = Array::builder()
            .items(Object::with_type(Type::String))
            .min_items(Some(1))
            .max_items(Some(1));
        AnyOf::builder()
            .item(Array::new(byte))
            .item(texts)
            .description(Some(
                "A text as bytes (TGI) or as a list of one string (the protocol).",
            ))
            .into()
    }
}

impl ToSchema for InferData {}

/// The name of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
pub struct InferOutput {
    /// The name.
    pub name: String,
}

/// Answer of `POST /v2/models/{model}/versions/{version}/infer`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct InferResponse {
    /// As asked.
    pub id: String,
    /// The answers.
    pub outputs: Vec<InferAnswer>,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct InferAnswer {
    /// As asked.
    pub name: String,
    /// One row of so many elements.
    pub shape: Vec<usize>,
    /// Always `BYTES`.
    pub datatype: &'static str,
    /// The text, in the form of the input.
    pub data: InferData,
}
