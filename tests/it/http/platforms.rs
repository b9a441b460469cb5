//! Routes of hosting platforms: SageMaker, Vertex AI, KServe.

use serde_json::{Value as Json, json};

use crate::support::chat::text;
use crate::support::server::{Sconce, Server};
use crate::support::wire;

const CASE: &str = "llama-tied";
const INFER: &str = "/v2/models/m/versions/1/infer";

fn tiny() -> Server {
    Sconce::tiny(CASE).serve()
}

/// The text that `/generate` gives.
fn generated(server: &Server, inputs: &str, parameters: Json) -> String {
    text(&server.generate(inputs, parameters)["generated_text"]).to_owned()
}

#[test]
fn ping_is_health() {
    let server = tiny();
    let reply = server.get("/ping");
    assert_eq!((reply.status, reply.body.as_str()), (200, ""));
}

#[test]
fn an_invocation_is_what_its_body_says() {
    let server = tiny();
    let parameters = json!({"max_new_tokens": 4});
    let native = server.post(
        "/invocations",
        &json!({"inputs": "ab", "parameters": parameters}),
    );
    assert_eq!(
        native.body,
        server
            .post("/", &json!({"inputs": "ab", "parameters": parameters}))
            .body
    );
    let full = text(&native.ok()[0]["generated_text"]).to_owned();
    assert!(full.starts_with("ab"), "a list with the full text");
    assert!(native.header("x-compute-time").is_some());
    let chat = server.post(
        "/invocations",
        &json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}),
    );
    assert_eq!(chat.ok()["object"], "chat.completion");
    let completion = server.post(
        "/invocations",
        &json!({"prompt": ["a", "b"], "max_tokens": 2}),
    );
    assert_eq!(completion.ok()["object"], "text_completion");
    assert!(completion.header("x-compute-time").is_none());
    let both = server.post(
        "/invocations",
        &json!({"inputs": "a", "prompt": "b", "parameters": parameters}),
    );
    assert!(both.ok().is_array(), "the first that fits");
    let stream = server.post(
        "/invocations",
        &json!({"inputs": "a", "parameters": parameters, "stream": true}),
    );
    assert_eq!(stream.events().len(), 4);
    let stream = server.post(
        "/invocations",
        &json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 2, "stream": true}),
    );
    assert_eq!(stream.chunks().len(), 2);
}

#[test]
fn an_invocation_that_fits_nothing_is_refused_in_tgis_words() {
    let server = tiny();
    let message = "Failed to deserialize the JSON body into the target type: data did not match any variant of untagged enum SagemakerRequest";
    for body in [
        json!({}),
        json!({"inputs": 5}),
        json!({"messages": "a"}),
        json!({"prompt": []}),
        json!([1]),
    ] {
        let reply = server.post("/invocations", &body);
        let expected = json!({"error": message, "error_type": "validation"});
        assert_eq!((reply.status, reply.json()), (422, expected), "{body}");
    }
    let reply = server.post("/invocations", &json!({"inputs": ""}));
    let expected =
        r#"{"error":"Input validation error: `inputs` cannot be empty","error_type":"validation"}"#;
    assert_eq!((reply.status, reply.body.as_str()), (422, expected));
}

#[test]
fn vertex_answers_every_instance_in_order() {
    let server = tiny();
    let greedy = json!({"max_new_tokens": 4});
    let chat =
        json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 3, "temperature": 0});
    let body = json!({"instances": [
        {"inputs": "ab", "parameters": greedy},
        chat,
        {"inputs": "warm", "parameters": {"max_new_tokens": 2, "stop": ["never"], "repetition_penalty": 1.5}},
    ]});
    let reply = server.post("/vertex", &body);
    let answer = server.post("/v1/chat/completions", &chat).ok();
    let expected = json!({"predictions": [
        generated(&server, "ab", greedy),
        answer["choices"][0]["message"]["content"],
        generated(&server, "warm", json!({"max_new_tokens": 2, "repetition_penalty": 1.5})),
    ]});
    assert_eq!(reply.ok(), expected);
    assert!(reply.metering().is_empty(), "{:?}", reply.headers);
}

#[test]
fn vertex_refuses_what_it_cannot_answer() {
    let server = tiny();
    let reply = server.post("/vertex", &json!({"instances": []}));
    let expected = r#"{"error":"Input validation error","error_type":"Input validation error"}"#;
    assert_eq!((reply.status, reply.body.as_str()), (422, expected));
    assert_eq!(
        server
            .post("/vertex", &json!({"instances": [{"x": 1}]}))
            .status,
        422
    );
    assert_eq!(server.post("/vertex", &json!({})).status, 422);
    let wrong = json!({"instances": [{"inputs": "a", "parameters": {"max_new_tokens": 1}}, {"inputs": ""}]});
    let reply = server.post("/vertex", &wrong);
    assert_eq!(reply.status, 422);
    assert_eq!(
        reply.json()["error"],
        "Input validation error: `inputs` cannot be empty"
    );
    let many = json!({"instances": vec![json!({"inputs": "a"}); 5]});
    let reply = server.post("/vertex", &many);
    assert_eq!(
        (reply.status, &reply.json()["error_type"]),
        (422, &json!("batch size exceeded"))
    );
}

#[test]
fn vertex_may_name_its_routes() {
    let server = Sconce::tiny(CASE)
        .env("AIP_PREDICT_ROUTE", "/predict")
        .env("AIP_HEALTH_ROUTE", "/alive")
        .serve();
    assert_eq!(server.get("/alive").status, 200);
    let body = json!({"instances": [{"inputs": "a", "parameters": {"max_new_tokens": 1}}]});
    assert_eq!(
        server.post("/predict", &body).ok(),
        server.post("/vertex", &body).ok()
    );
}

#[test]
fn kserve_says_that_it_lives_and_what_it_can_do() {
    let server = tiny();
    for path in [
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/m/versions/1/ready",
    ] {
        let reply = server.get(path);
        assert_eq!(
            (reply.status, reply.body.as_str()),
            (200, r#"{"live":true}"#),
            "{path}"
        );
    }
    let about = format!(
        r#"{{"name":"text-generation-inference","version":"{}","extensions":["health","models","metrics"]}}"#,
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(server.get("/v2").body, about);
    let model = server.get("/v2/models/m/versions/7").body;
    assert_eq!(
        model,
        r#"{"name":"m","version":"7","extensions":["infer","ready"]}"#
    );
}

#[test]
fn kserve_infers_from_bytes_and_from_strings() {
    let server = tiny();
    let parameters = json!({"max_new_tokens": 4});
    let expected = generated(&server, "é b", parameters.clone());
    let input = |data: Json| json!({"name": "in", "shape": [1], "datatype": "BYTES", "data": data});
    let body = json!({"id": "7", "parameters": parameters, "inputs": [input(json!("é b".as_bytes()))], "outputs": [{"name": "out"}]});
    let reply = server.post(INFER, &body);
    let by_hand = format!(
        r#"{{"id":"7","outputs":[{{"name":"out","shape":[1,{}],"datatype":"BYTES","data":{}}}]}}"#,
        expected.len(),
        json!(expected.as_bytes()),
    );
    assert_eq!((reply.status, reply.body), (200, by_hand));
    let body = json!({"id": "7", "parameters": parameters,
        "inputs": [input(json!(["é b"])), input(json!(["warm"]))], "outputs": [{"name": "out"}, {"name": "more"}]});
    let answer = server.post(INFER, &body).ok();
    assert_eq!(
        answer["outputs"][0],
        json!({"name": "out", "shape": [1], "datatype": "BYTES", "data": [expected]})
    );
    assert_eq!(
        answer["outputs"][1]["data"],
        json!([generated(&server, "warm", parameters)])
    );
}

#[test]
fn kserve_refuses_in_tgis_words() {
    let server = tiny();
    let infer = |inputs: Json, outputs: Json| {
        let reply = server.post(
            INFER,
            &json!({"id": "1", "inputs": inputs, "outputs": outputs}),
        );
        (reply.status, reply.json())
    };
    let (status, error) = infer(json!([{"name": "a", "data": [97]}]), json!([]));
    let expected =
        json!({"error": "Inputs and outputs length mismatch", "error_type": "length mismatch"});
    assert_eq!((status, error), (422, expected));
    let (status, error) = infer(
        json!([{"name": "a", "data": [255, 254]}]),
        json!([{"name": "b"}]),
    );
    assert_eq!((status, &error["error_type"]), (422, &json!("utf8")));
    assert!(
        text(&error["error"]).starts_with("invalid utf-8 sequence"),
        "{error}"
    );
    let (status, error) = infer(
        json!([{"name": "a", "data": ["x", "y"]}]),
        json!([{"name": "b"}]),
    );
    assert_eq!(
        (status, &error["error_type"]),
        (422, &json!("length mismatch"))
    );
    let (status, _) = infer(
        json!([{"name": "a", "data": [256]}]),
        json!([{"name": "b"}]),
    );
    assert_eq!(status, 422);
    let (status, error) = infer(json!([{"name": "a", "data": []}]), json!([{"name": "b"}]));
    assert_eq!(
        (status, &error["error"]),
        (
            422,
            &json!("Input validation error: `inputs` cannot be empty")
        )
    );
    assert_eq!(server.send(&wire::post(INFER, "", "{")).status, 400);
}
