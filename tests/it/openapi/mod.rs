//! The OpenAPI document: it describes the routes there are, answers look as it says, and whatever TGI's own
//! document promises it promises too, except where a list says why not.
//!
//! TGI's document is not in this repository; `golden/tgi_api.txt` holds the facts it states. To write them
//! anew from a copy of it:
//!
//! ```text
//! TGI_OPENAPI=tgi-openapi.json cargo test --release --test it facts_of_tgi -- --ignored
//! ```

mod facts;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use serde_json::{Value as Json, json};

use self::facts::{Direction, Facts, Field, alternatives};
use crate::support::server::{Sconce, Server};
use crate::support::wire::Reply;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/it/golden")
        .join(name)
}

/// Where our document is narrower than TGI's, by what it is about.
fn narrower(ours: &Facts, tgis: &Facts) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for fact in tgis.operations.difference(&ours.operations) {
        found.insert(fact.clone(), "is missing".to_owned());
    }
    for ((direction, path), theirs) in &tgis.fields {
        let about = format!("{direction} {path}");
        let wrong = match ours.fields.get(&(*direction, path.clone())) {
            None => Some("is missing".to_owned()),
            Some(field) if *direction == Direction::Takes => refuses(field, theirs),
            Some(field) => surprises(field, theirs),
        };
        found.extend(wrong.map(|wrong| (about, wrong)));
    }
    // A caller that knows TGI only leaves out what only we have.
    let known: BTreeSet<&str> = tgis
        .fields
        .keys()
        .filter_map(|(_, path)| path.split('.').next())
        .collect();
    for ((direction, path), field) in &ours.fields {
        let object = path.split('.').next().unwrap_or_default();
        let new = !tgis.fields.contains_key(&(*direction, path.clone()));
        if *direction == Direction::Takes && field.required && new && known.contains(object) {
            found.insert(
                format!("takes {path}"),
                "is required and unknown to TGI".to_owned(),
            );
        }
    }
    found
}

/// What a request that TGI takes could be refused for.
fn refuses(ours: &Field, theirs: &Field) -> Option<String> {
    let takes = |kind: &str| {
        ours.types.contains(kind)
            || ours.types.contains("any")
            || (kind.starts_with('"') && ours.types.contains("string"))
    };
    if let Some(kind) = theirs.types.iter().find(|kind| !takes(kind)) {
        return Some(format!("may not be {kind}"));
    }
    if ours.required && !theirs.required {
        return Some("may not be left out".to_owned());
    }
    if let (Some(ours), Some(theirs)) = (ours.bounds, theirs.bounds)
        && !theirs.within(&ours)
    {
        return Some(format!("must be in {ours}, in TGI in {theirs}"));
    }
    if theirs.default.is_some() && ours.default != theirs.default {
        return Some(format!(
            "is {:?} by default, in TGI {:?}",
            ours.default, theirs.default
        ));
    }
    None
}

/// What of an answer a client of TGI's could not expect.
fn surprises(ours: &Field, theirs: &Field) -> Option<String> {
    let expected = |kind: &str| {
        theirs.types.contains(kind)
            || theirs.types.contains("any")
            || (kind.starts_with('"') && theirs.types.contains("string"))
    };
    if let Some(kind) = ours.types.iter().find(|kind| !expected(kind)) {
        return Some(format!("may be {kind}"));
    }
    (theirs.required && !ours.required).then(|| "may be left out".to_owned())
}

#[test]
fn whatever_tgi_promises_is_promised_or_listed() {
    let tgis = Facts::parse(&fs::read_to_string(golden("tgi_api.txt")).expect("facts of TGI"));
    let found = narrower(&Facts::of(&sconce::api::document()), &tgis);
    let listed = fs::read_to_string(golden("tgi_api_differences.txt")).expect("a list");
    let mut stale: BTreeSet<&str> = BTreeSet::new();
    for line in listed
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let [about, section, reason] = line
            .split(" :: ")
            .collect::<Vec<_>>()
            .try_into()
            .unwrap_or_else(|_| panic!("not `what :: section :: reason`: {line}"));
        assert!(!section.is_empty() && !reason.is_empty(), "{line}");
        assert!(stale.insert(about), "listed twice: {about}");
    }
    let mut wrong = Vec::new();
    for (about, what) in &found {
        if !stale.remove(about.as_str()) {
            wrong.push(format!("not listed: {about} {what}"));
        }
    }
    wrong.extend(
        stale
            .iter()
            .map(|about| format!("no difference any more: {about}")),
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
#[ignore = "writes golden/tgi_api.txt from the document that TGI_OPENAPI names"]
fn facts_of_tgi_are_written_anew() {
    let path = std::env::var_os("TGI_OPENAPI").expect("TGI_OPENAPI names TGI's document");
    let text = fs::read_to_string(path).expect("a readable document");
    let document = serde_json::from_str(&text).expect("JSON");
    fs::write(golden("tgi_api.txt"), Facts::of(&document).to_string()).expect("a writable file");
}

#[test]
fn facts_are_read_as_they_are_written() {
    let facts = Facts::of(&sconce::api::document());
    assert_eq!(Facts::parse(&facts.to_string()), facts);
    assert_eq!(
        alternatives("[a|b]|null"),
        ["[a|b]".to_owned(), "null".to_owned()].into()
    );
}

/// Method and path of every operation in the document.
fn documented(document: &Json) -> BTreeSet<(String, String)> {
    let paths = document["paths"].as_object().expect("paths");
    let operations = paths.iter().flat_map(|(path, item)| {
        let methods = item.as_object().expect("operations").keys();
        methods.map(move |method| (method.clone(), path.clone()))
    });
    operations.collect()
}

/// Method and path of every route, as `api/mod.rs` writes it.
fn routed() -> BTreeSet<(String, String)> {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/api/mod.rs");
    let source = fs::read_to_string(source).expect("the routes' source");
    let mut routes = BTreeSet::new();
    for route in source.split(".route(").skip(1) {
        let Some(path) = route.trim_start().strip_prefix('"') else {
            // A platform's own path, in a variable.
            continue;
        };
        let (path, rest) = path.split_once('"').expect("the end of a path");
        let method = rest.trim_start_matches([',', ' ', '\n']).split('(').next();
        let method = method.expect("a method").to_owned();
        routes.insert((method, path.replace("{*", "{")));
    }
    routes
}

#[test]
fn every_route_is_described_and_nothing_else() {
    // The document itself, and pages for people with what they alone ask for.
    let aside = |path: &str| path.starts_with("/docs") || path.starts_with("/ui");
    let mut routed = routed();
    routed.retain(|(_, path)| !aside(path) && path != "/api-doc/openapi.json");
    assert_eq!(documented(&sconce::api::document()), routed);
}

#[test]
fn operations_have_names_of_their_own_and_every_reference_leads_somewhere() {
    fn references<'a>(json: &'a Json, found: &mut Vec<&'a str>) {
        match json {
            Json::Array(items) => items.iter().for_each(|item| references(item, found)),
            Json::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Json::as_str));
                fields.values().for_each(|field| references(field, found));
            }
            _ => {}
        }
    }
    let document = sconce::api::document();
    let mut found = Vec::new();
    references(&document, &mut found);
    for reference in found {
        let pointer = reference.trim_start_matches('#');
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
    let paths = document["paths"].as_object().expect("paths").values();
    let operations = paths.flat_map(|item| item.as_object().expect("operations").values());
    let ids: Vec<&Json> = operations
        .map(|operation| &operation["operationId"])
        .collect();
    let distinct: BTreeSet<&str> = ids.iter().filter_map(|id| id.as_str()).collect();
    assert_eq!(distinct.len(), ids.len());
}

/// Checks an answer against what the document says about its operation.
#[track_caller]
fn conforms(document: &Json, method: &str, path: &str, reply: &Reply) {
    let responses = &document["paths"][path][method]["responses"];
    let response = &responses[reply.status.to_string()];
    assert!(response.is_object(), "{method} {path}: {reply:?}");
    for name in response["headers"]
        .as_object()
        .into_iter()
        .flat_map(|headers| headers.keys())
    {
        // A stream's headers are fewer than those of a whole answer on the same route.
        let whole = reply.header("content-type") == Some("application/json");
        assert!(
            !whole || reply.status != 200 || reply.header(name).is_some(),
            "{path}: {name}"
        );
    }
    let Some(contents) = response["content"].as_object() else {
        assert_eq!(reply.body, "", "{method} {path}");
        return;
    };
    let kind = reply.header("content-type").unwrap_or_default();
    let content = contents
        .iter()
        .find(|(name, _)| kind.starts_with(name.as_str()));
    let (kind, content) = content.unwrap_or_else(|| panic!("{method} {path}: {reply:?}"));
    let mut schema = content["schema"].clone();
    schema["components"] = document["components"].clone();
    let schema = jsonschema::validator_for(&schema).expect("a schema");
    let bodies = match kind.as_str() {
        "application/json" => vec![reply.json()],
        "text/event-stream" => events(reply),
        _ => vec![reply.body.clone().into()],
    };
    assert!(!bodies.is_empty(), "{method} {path}: {reply:?}");
    for body in bodies {
        let problems: Vec<String> = schema.iter_errors(&body).map(|e| e.to_string()).collect();
        assert!(
            problems.is_empty(),
            "{method} {path} {}: {problems:?}: {body}",
            reply.status
        );
    }
}

/// The data of each event, except the word that ends OpenAI's streams.
fn events(reply: &Reply) -> Vec<Json> {
    let data = reply
        .body
        .lines()
        .filter_map(|line| line.strip_prefix("data: "));
    let data = data.filter(|data| *data != "[DONE]");
    data.map(|data| serde_json::from_str(data).expect("JSON"))
        .collect()
}

fn check_post(server: &Server, document: &Json, path: &str, real: &str, body: &Json) {
    let reply = server.post(real, body);
    assert_ne!(reply.status, 405, "{path}");
    conforms(document, "post", path, &reply);
}

/// Asks every operation, rightly and wrongly.
fn answers_conform(server: &Server) {
    let document = server.get("/api-doc/openapi.json").ok();
    assert_eq!(document, sconce::api::document());
    let model = server.get("/info").ok()["model_id"]
        .as_str()
        .expect("a name")
        .to_owned();
    let real = |path: &str| {
        path.replace("{id}", &model)
            .replace("{model}", "m")
            .replace("{version}", "1")
    };
    for (method, path) in documented(&document) {
        if method == "get" {
            let reply = server.get(&real(&path));
            assert_eq!(reply.status, 200, "{path}");
            conforms(&document, "get", &path, &reply);
        } else {
            for body in [
                json!({}),
                json!([]),
                json!({"inputs": 1, "messages": 1, "prompt": 1, "input": 1}),
            ] {
                check_post(server, &document, &path, &real(&path), &body);
            }
        }
    }
    let post = |path: &str, body: Json| check_post(server, &document, path, &real(path), &body);
    let few = json!({"max_new_tokens": 3, "details": true, "top_n_tokens": 2, "decoder_input_details": true});
    let streamed = json!({"max_new_tokens": 3, "details": true, "top_n_tokens": 2});
    let said = json!([{"role": "user", "content": "Say it."}]);
    for path in ["/", "/generate", "/tokenize", "/invocations"] {
        post(path, json!({"inputs": "Once", "parameters": few}));
        post(
            path,
            json!({"inputs": "Once", "parameters": {"top_p": 1.0}}),
        );
    }
    for path in ["/", "/generate_stream", "/invocations"] {
        post(
            path,
            json!({"inputs": "Once", "parameters": streamed, "stream": true}),
        );
        post(
            path,
            json!({"inputs": "Once", "parameters": few, "stream": true}),
        );
    }
    for path in ["/v1/chat/completions", "/invocations"] {
        for stream in [false, true] {
            let options = json!({"include_usage": true});
            post(
                path,
                json!({"messages": said, "max_tokens": 3, "logprobs": true, "top_logprobs": 2, "seed": -1, "stream": stream, "stream_options": options}),
            );
            post(
                path,
                json!({"messages": said, "max_tokens": 0, "stream": stream}),
            );
            post(
                path,
                json!({"messages": said, "model": "nobody's", "max_tokens": 1, "stream": stream}),
            );
            let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": false}}});
            post(
                path,
                json!({"messages": said, "tools": [tool], "tool_choice": "required", "max_tokens": 60, "stream": stream}),
            );
        }
    }
    for path in ["/v1/completions", "/invocations"] {
        for stream in [false, true] {
            post(
                path,
                json!({"prompt": ["Once", "Twice"], "max_tokens": 3, "logprobs": 2, "stream": stream}),
            );
            post(
                path,
                json!({"prompt": "Once", "top_p": 2, "stream": stream}),
            );
        }
    }
    post("/chat_tokenize", json!({"messages": said}));
    for stream in [false, true] {
        post(
            "/v1/responses",
            json!({"input": "Say it.", "max_output_tokens": 3, "stream": stream}),
        );
        post(
            "/v1/responses",
            json!({"input": "Say it.", "temperature": -1, "stream": stream}),
        );
        post(
            "/v1/messages",
            json!({"messages": said, "max_tokens": 3, "stream": stream}),
        );
        post(
            "/v1/messages",
            json!({"messages": said, "max_tokens": 0, "stream": stream}),
        );
    }
    post("/v1/messages/count_tokens", json!({"messages": said}));
    post(
        "/vertex",
        json!({"instances": [{"inputs": "Once", "parameters": {"max_new_tokens": 2}}, {"messages": said, "max_tokens": 2}]}),
    );
    for data in [json!([79, 110]), json!(["On"])] {
        let input = json!({"name": "a", "shape": [1], "datatype": "BYTES", "data": data});
        let body = json!({"id": "1", "inputs": [input], "outputs": [{"name": "b"}], "parameters": {"max_new_tokens": 2}});
        post("/v2/models/{model}/versions/{version}/infer", body);
    }
}

/// A server that has something to tell of what was used.
fn with_ledger(folder: &std::path::Path) -> Sconce {
    let settings = folder.join("sconce.toml");
    let ledger = folder.join("ledger.db").display().to_string();
    fs::write(&settings, format!("[ledger]\npath = {ledger:?}\n")).expect("settings");
    Sconce::new().flag("--config", &settings.display().to_string())
}

#[test]
fn answers_look_as_the_document_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = with_ledger(folder.path()).serve();
    answers_conform(&server);
}

#[test]
fn answers_look_as_the_document_says_under_openais_rule() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = with_ledger(folder.path())
        .flag("--compat", "openai")
        .serve();
    answers_conform(&server);
}

#[test]
fn the_page_is_whole_without_a_network() {
    let server = Sconce::new().serve();
    let moved = server.get("/docs");
    assert_eq!(
        (moved.status, moved.header("location")),
        (303, Some("/docs/"))
    );
    let page = server.get("/docs/");
    assert_eq!(page.status, 200);
    assert!(
        page.header("content-type")
            .is_some_and(|kind| kind.starts_with("text/html"))
    );
    for quoted in page
        .body
        .split(['"'])
        .filter(|text| text.starts_with("./") && !text.ends_with(".png"))
    {
        let name = quoted.trim_start_matches("./");
        assert_eq!(server.get(&format!("/docs/{name}")).status, 200, "{name}");
    }
    assert!(
        !page.body.contains("http://") && !page.body.contains("https://"),
        "{}",
        page.body
    );
    assert!(
        server
            .get("/docs/swagger-initializer.js")
            .body
            .contains("../api-doc/openapi.json")
    );
    assert_eq!(server.get("/docs/nothing.js").status, 404);
}

#[test]
fn the_document_is_guarded_with_everything_else() {
    let server = Sconce::new()
        .env("API_KEY", "sk-test")
        .flag("--guard-all", "true")
        .serve();
    for path in [
        "/api-doc/openapi.json",
        "/docs",
        "/docs/",
        "/docs/index.html",
    ] {
        assert_eq!(server.get(path).status, 401, "{path}");
    }
    let open = Sconce::new().env("API_KEY", "sk-test").serve();
    assert_eq!(open.get("/api-doc/openapi.json").status, 200);
}

#[test]
fn print_schema_prints_what_is_served() {
    let printed = Sconce::new().run("print-schema");
    assert!(printed.status.success());
    let printed: Json = serde_json::from_slice(&printed.stdout).expect("JSON");
    assert_eq!(printed, sconce::api::document());
}
