//! What tests of the chat routes share: servers with a template of the test's own, requests, error bodies.

use std::io::Write;

use serde_json::{Value as Json, json};
use tempfile::NamedTempFile;

use super::engine::golden;
use super::server::{Sconce, Server};

/// Turns as the embedded model knows them.
pub const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Writes down all that a template gets to see.
pub const MIRROR: &str =
    "{{ messages | tojson }}|{{ tools | tojson }}|{{ add_generation_prompt }}|{{ flavour }}";

/// The metering headers of a collected answer.
pub const FULL_SET: [&str; 10] = [
    "x-compute-characters",
    "x-compute-time",
    "x-compute-type",
    "x-generated-tokens",
    "x-inference-time",
    "x-prompt-tokens",
    "x-queue-time",
    "x-time-per-token",
    "x-total-time",
    "x-validation-time",
];

/// The metering headers of a stream.
pub const STREAM_SET: [&str; 3] = [
    "x-accel-buffering",
    "x-compute-characters",
    "x-compute-type",
];

/// A running server whose template is the test's; the file lives as long as it does.
pub struct Templated {
    pub server: Server,
    _config: NamedTempFile,
}

/// Serves with a chat template; a frozen model keeps the rest of its own `tokenizer_config.json`.
pub fn templated(case: Option<&str>, template: &str, compat: &str) -> Templated {
    let sconce = case.map_or_else(Sconce::new, Sconce::tiny);
    templated_with(sconce, case, template, compat)
}

/// As [`templated`], with more settings.
pub fn templated_with(
    sconce: Sconce,
    case: Option<&str>,
    template: &str,
    compat: &str,
) -> Templated {
    let own = case.map(|case| golden().join(case).join("tokenizer_config.json"));
    let own = own.map(|path| std::fs::read_to_string(path).expect("a frozen case"));
    let mut config: Json = own.map_or(json!({}), |text| {
        serde_json::from_str(&text).expect("sound JSON")
    });
    config["chat_template"] = template.into();
    let mut file = NamedTempFile::new().expect("a temporary file");
    file.write_all(config.to_string().as_bytes())
        .expect("room for a template");
    let path = file.path().display().to_string();
    let server = sconce
        .flag("--tokenizer-config-path", &path)
        .flag("--compat", compat)
        .serve();
    Templated {
        server,
        _config: file,
    }
}

/// A chat of one question, answered greedily, with more fields.
pub fn ask(question: &str, more: Json) -> Json {
    let mut body = json!({
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 32,
    });
    merge(&mut body, more);
    body
}

/// Sets fields of an object.
pub fn merge(body: &mut Json, more: Json) {
    let fields = body.as_object_mut().expect("an object");
    let more = match more {
        Json::Object(more) => more,
        other => panic!("not an object: {other}"),
    };
    fields.extend(more);
}

/// The text of a value.
#[track_caller]
pub fn text(value: &Json) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

/// All content of one choice of a streamed chat.
#[track_caller]
pub fn streamed(chunks: &[Json], index: usize) -> String {
    let choices = chunks
        .iter()
        .flat_map(|chunk| chunk["choices"].as_array().expect("choices"));
    choices
        .filter(|choice| choice["index"] == index)
        .filter_map(|choice| choice["delta"]["content"].as_str())
        .collect()
}

/// An error of a route under `/v1` as TGI's clients read it.
pub fn flat(message: &str, kind: &str, code: &str, param: Option<&str>) -> String {
    let message = json!(message);
    let param = json!(param);
    format!(
        r#"{{"error":{message},"error_type":"{kind}","message":{message},"code":"{code}","param":{param}}}"#
    )
}

/// An error of a route under `/v1` as OpenAI's clients read it.
pub fn nested(message: &str, kind: &str, code: &str, param: Option<&str>) -> String {
    let message = json!(message);
    let param = json!(param);
    format!(
        r#"{{"error":{{"message":{message},"type":"{kind}","code":"{code}","param":{param}}}}}"#
    )
}

/// A whole stream that consists of an error.
pub fn failed_stream(message: &str, status: u16, kind: &str, code: &str) -> String {
    let message = json!(message);
    format!(
        "data: {{\"error\":{{\"message\":{message},\"http_status_code\":{status},\"type\":\"{kind}\",\"code\":\"{code}\"}}}}\n\ndata: [DONE]\n\n"
    )
}
