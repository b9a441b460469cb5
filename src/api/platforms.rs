//! Routes of hosting platforms: SageMaker, Vertex AI, KServe. They only repack; the answers are those of
//! the other routes.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use futures::future::try_join_all;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::body::Body;
use super::error::ApiError;
use super::keys::Caller;
use super::{Api, chat, completions, tgi};
use crate::wire::platforms::{
    InferAnswer, InferData, InferInput, InferOutput, InferRequest, InferResponse, KserveLive,
    KserveModel, KserveServer, VertexInstance, VertexRequest, VertexResponse,
};
use crate::wire::tgi::GenerateRequest;

/// `POST /invocations`: whatever the body is.
pub(super) async fn invocations(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Body(body): Body<Value>,
) -> Result<Response, ApiError> {
    if let Some(body) = shaped(&body, "inputs") {
        return tgi::compat_generate(State(api), caller, headers, Body(body)).await;
    }
    if let Some(body) = shaped(&body, "messages") {
        return chat::chat_completions(State(api), caller, headers, Body(body)).await;
    }
    if let Some(body) = shaped(&body, "prompt") {
        return completions::completions(State(api), caller, headers, Body(body)).await;
    }
    Err(ApiError::unprocessable(
        "validation",
        "Failed to deserialize the JSON body into the target type: data did not match any variant of untagged enum SagemakerRequest",
    ))
}

fn shaped<T: DeserializeOwned>(body: &Value, key: &str) -> Option<T> {
    body.get(key)?;
    T::deserialize(body).ok()
}

/// `POST /vertex`, and the route Vertex names.
pub(super) async fn vertex(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Body(body): Body<VertexRequest>,
) -> Result<Response, ApiError> {
    if body.instances.is_empty() {
        return Err(ApiError::unprocessable(
            "Input validation error",
            "Input validation error",
        ));
    }
    if body.instances.len() > api.config.max_client_batch_size {
        return Err(ApiError::batch_size(api.config.max_client_batch_size));
    }
    let predictions = body
        .instances
        .into_iter()
        .map(|instance| prediction(&api, &caller, &headers, instance));
    let predictions = try_join_all(predictions.collect::<Vec<_>>()).await?;
    Ok(Json(VertexResponse { predictions }).into_response())
}

async fn prediction(
    api: &Api,
    caller: &Caller,
    headers: &HeaderMap,
    instance: VertexInstance,
) -> Result<String, ApiError> {
    match instance {
        VertexInstance::Generate(request) => {
            let (_, answer) = tgi::collect_answer(api, caller.clone(), headers, *request).await?;
            Ok(answer.generated_text)
        }
        VertexInstance::Chat(request) => chat::plain_answer(api, caller, headers, &request).await,
    }
}

/// `GET /v2/health/live` and `GET /v2/health/ready`.
pub(super) async fn kserve_health(State(api): State<Api>) -> Result<Json<KserveLive>, ApiError> {
    api.dispatcher.health().await?;
    Ok(Json(KserveLive { live: true }))
}

/// `GET /v2`.
pub(super) async fn kserve_server(State(api): State<Api>) -> Json<KserveServer> {
    Json(KserveServer {
        name: "text-generation-inference".to_owned(),
        version: api.info.version.clone(),
        extensions: vec!["health", "models", "metrics"],
    })
}

/// `GET /v2/models/{model}/versions/{version}`.
pub(super) async fn kserve_model(
    Path((name, version)): Path<(String, String)>,
) -> Json<KserveModel> {
    Json(KserveModel {
        name,
        version,
        extensions: vec!["infer", "ready"],
    })
}

/// `POST /v2/models/{model}/versions/{version}/infer`.
pub(super) async fn kserve_infer(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Body(body): Body<InferRequest>,
) -> Result<Json<InferResponse>, ApiError> {
    let InferRequest {
        id,
        parameters,
        inputs,
        outputs,
    } = body;
    if inputs.len() != outputs.len() {
        return Err(ApiError::unprocessable(
            "length mismatch",
            "Inputs and outputs length mismatch",
        ));
    }
    if inputs.len() > api.config.max_client_batch_size {
        return Err(ApiError::batch_size(api.config.max_client_batch_size));
    }
    let answers = inputs.into_iter().zip(outputs).map(|(input, output)| {
        let parameters = parameters.clone();
        infer(&api, &caller, &headers, parameters, input, output)
    });
    let outputs = try_join_all(answers.collect::<Vec<_>>()).await?;
    Ok(Json(InferResponse { id, outputs }))
}

async fn infer(
    api: &Api,
    caller: &Caller,
    headers: &HeaderMap,
    parameters: crate::wire::tgi::GenerateParameters,
    input: InferInput,
    output: InferOutput,
) -> Result<InferAnswer, ApiError> {
    let (inputs, as_bytes) = match input.data {
        InferData::Bytes(bytes) => {
            let text = String::from_utf8(bytes);
            let text = text.map_err(|e| ApiError::unprocessable("utf8", e.to_string()))?;
            (text, true)
        }
        InferData::Texts(texts) => match <[String; 1]>::try_from(texts) {
            Ok([text]) => (text, false),
            Err(texts) => {
                return Err(ApiError::unprocessable(
                    "length mismatch",
                    format!(
                        "`data` of input `{}` must hold one string. Given: {}",
                        input.name,
                        texts.len()
                    ),
                ));
            }
        },
    };
    let request = GenerateRequest { inputs, parameters };
    let (_, answer) = tgi::collect_answer(api, caller.clone(), headers, request).await?;
    let text = answer.generated_text;
    let (shape, data) = if as_bytes {
        (vec![1, text.len()], InferData::Bytes(text.into_bytes()))
    } else {
        (vec![1], InferData::Texts(vec![text]))
    };
    Ok(InferAnswer {
        name: output.name,
        shape,
        datatype: "BYTES",
        data,
    })
}
