//! The embedded demo model through its server: what the same weights say elsewhere, and each thing it is there to show.

use std::thread;

use serde_json::{Value as Json, json};

use crate::support::chat::{ask, text};
use crate::support::server::Sconce;

const CHAT: &str = "/v1/chat/completions";

/// Written by `models/demo/evaluate.py --freeze`: the answers are those of transformers on the dequantised weights.
const FROZEN: &str = include_str!("../golden/demo_answers.json");

/// Of the frozen questions about facts, how many in a hundred are answered rightly.
const FACTS_RIGHT: usize = 95;

/// Skills whose questions have one right answer that the model knows or does not.
const FACTUAL: [&str; 12] = [
    "machine learning",
    "computing",
    "science",
    "capitals",
    "continents",
    "calendar",
    "colours",
    "units",
    "counts",
    "opposites",
    "sounds",
    "single facts",
];

fn weather() -> Json {
    json!({"type": "function", "function": {
        "name": "get_weather",
        "description": "Get the current weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "The city's name"}},
            "required": ["city"],
        },
    }})
}

#[test]
fn it_answers_as_its_weights_do_elsewhere() {
    let frozen: Vec<Json> = serde_json::from_str(FROZEN).expect("sound JSON");
    assert_eq!(frozen.len(), 50);
    let server = Sconce::new().serve();
    let answers: Vec<String> = thread::scope(|scope| {
        let asking: Vec<_> = frozen
            .iter()
            .map(|question| {
                let server = &server;
                scope.spawn(move || {
                    let parameters = json!({"max_new_tokens": 200});
                    let answer = server.generate(text(&question["prompt"]), parameters);
                    text(&answer["generated_text"]).to_owned()
                })
            })
            .collect();
        asking
            .into_iter()
            .map(|answer| answer.join().expect("an answer"))
            .collect()
    });
    for (question, answer) in frozen.iter().zip(&answers) {
        assert_eq!(*answer, text(&question["answer"]), "{}", question["prompt"]);
    }
    let facts: Vec<&Json> = frozen
        .iter()
        .filter(|question| FACTUAL.contains(&text(&question["skill"])))
        .collect();
    let right = facts.iter().filter(|q| q["right"] == true).count();
    assert!(facts.len() >= 20, "{}", facts.len());
    assert!(
        right * 100 >= facts.len() * FACTS_RIGHT,
        "{right} of {}",
        facts.len()
    );
}

#[test]
fn it_calls_a_tool_that_helps_and_reports_what_came_back() {
    let server = Sconce::new().flag("--compat", "openai").serve();
    let question = "What is the weather in Oslo?";
    let without = server.post(CHAT, &ask(question, json!({}))).ok();
    let said = text(&without["choices"][0]["message"]["content"]);
    assert!(said.contains("do not know the weather"), "{said}");

    let called = server
        .post(
            CHAT,
            &ask(question, json!({"tools": [weather()], "max_tokens": 60})),
        )
        .ok();
    let choice = &called["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{called}");
    let calls = choice["message"]["tool_calls"].as_array().expect("a call");
    assert_eq!(calls.len(), 1, "{called}");
    assert_eq!(calls[0]["function"]["name"], "get_weather");
    let arguments: Json =
        serde_json::from_str(text(&calls[0]["function"]["arguments"])).expect("an object");
    assert_eq!(arguments, json!({"city": "Oslo"}));

    let result = json!({"role": "tool", "tool_call_id": calls[0]["id"], "content": "windy"});
    let mut body = ask(question, json!({"tools": [weather()]}));
    let messages = body["messages"].as_array_mut().expect("messages");
    messages.extend([choice["message"].clone(), result]);
    let reported = server.post(CHAT, &body).ok();
    assert_eq!(
        reported["choices"][0]["message"]["content"],
        "The answer is windy."
    );

    let unneeded = ask(
        "What is the capital of France?",
        json!({"tools": [weather()]}),
    );
    assert_eq!(
        server.post(CHAT, &unneeded).ok()["choices"][0]["message"]["content"],
        "The capital of France is Paris."
    );
}

#[test]
fn it_fills_in_an_object_of_the_shape_that_is_asked_for() {
    let server = Sconce::new().serve();
    let sentence = "Anna is 34 years old and lives in Oslo.";
    let schema = json!({
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}},
        "required": ["name", "age", "city"],
    });
    let expected = json!({"name": "Anna", "age": 34, "city": "Oslo"});
    for inputs in [
        sentence.to_owned(),
        format!("Turn this sentence into JSON: {sentence}"),
    ] {
        let grammar = json!({"max_new_tokens": 60, "grammar": {"type": "json", "value": schema}});
        let answer = server.generate(&inputs, grammar);
        let object: Json =
            serde_json::from_str(text(&answer["generated_text"])).expect("an object");
        assert_eq!(object, expected, "{inputs}");
    }
    let free = server.generate(
        &format!("Turn this sentence into JSON: {sentence}"),
        json!({"max_new_tokens": 60}),
    );
    let object: Json = serde_json::from_str(text(&free["generated_text"])).expect("an object");
    assert_eq!(object, expected, "unforced");
}

#[test]
fn it_remembers_what_it_was_told() {
    let server = Sconce::new().serve();
    let body = json!({
        "messages": [
            {"role": "user", "content": "My name is Marta."},
            {"role": "assistant", "content": "Nice to meet you, Marta!"},
            {"role": "user", "content": "What is my name?"},
        ],
        "temperature": 0,
        "max_tokens": 32,
    });
    let answer = server.post(CHAT, &body).ok();
    assert_eq!(
        answer["choices"][0]["message"]["content"],
        "Your name is Marta."
    );
}
