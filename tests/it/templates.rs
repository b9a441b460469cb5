//! Chat templates against `transformers`: cases and what it makes of them come from `tests/templates/prepare.py`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use sconce::text::{ChatTemplate, Conversation, TemplateError, TemplateSources};
use serde_json::{Map, Value as Json};

/// One template and the conversations it is asked to render.
#[derive(serde::Deserialize)]
struct Template {
    default: Option<String>,
    named: Vec<(String, String)>,
    special_tokens: BTreeMap<String, String>,
    now: String,
    /// Whether `transformers` can compile it.
    compiles: bool,
    /// Why some conversation is known to come out differently; such a one must then exist.
    differs: Option<String>,
    cases: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    messages: Vec<Json>,
    tools: Option<Vec<Json>>,
    documents: Option<Vec<Json>>,
    add_generation_prompt: bool,
    continue_final_message: bool,
    kwargs: Option<Map<String, Json>>,
    /// The text `transformers` renders; none where it refuses.
    expected: Option<String>,
    /// What it said when it refused.
    error: Option<String>,
}

/// Whether a refusal is the same one, as far as its words are the template's.
fn same_refusal(refused: &TemplateError, case: &Case) -> bool {
    let raised = case
        .error
        .as_deref()
        .unwrap_or_default()
        .strip_prefix("TemplateError: ");
    raised.is_none_or(|message| {
        let expected = format!("syntax error: {message} (in <string>:");
        refused.to_string().starts_with(&expected)
    })
}

#[test]
#[ignore = "needs the cases that tests/templates/run makes with transformers"]
fn templates_render_as_transformers_renders_them() {
    let folder = std::env::var_os("SCONCE_TEMPLATE_CASES")
        .expect("SCONCE_TEMPLATE_CASES names the folder that tests/templates/prepare.py wrote");
    let mut files: Vec<PathBuf> = fs::read_dir(&folder)
        .expect("a readable folder")
        .map(|entry| entry.expect("a readable entry").path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "json"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no cases in {folder:?}");
    let (mut equal, mut both_refuse, mut known, mut different) = (0, 0, 0, Vec::new());
    for file in &files {
        let label = file.file_stem().expect("a name").to_string_lossy();
        let text = fs::read_to_string(file).expect("UTF-8 text");
        let template: Template =
            serde_json::from_str(&text).expect("cases as prepare.py writes them");
        let now = template.now.parse().expect("a time");
        let sources = TemplateSources {
            default: template.default,
            named: template.named,
        };
        let compiled = match ChatTemplate::new(sources, template.special_tokens) {
            Ok(compiled) => compiled,
            Err(_) if !template.compiles => {
                both_refuse += template.cases.len();
                continue;
            }
            Err(error) => {
                different.push(format!("{label}: {error}"));
                continue;
            }
        };
        let mut found = Vec::new();
        for case in &template.cases {
            let rendered = compiled.render(&Conversation {
                messages: &case.messages,
                tools: case.tools.as_deref(),
                documents: case.documents.as_deref(),
                add_generation_prompt: case.add_generation_prompt,
                continue_final_message: case.continue_final_message,
                kwargs: case.kwargs.as_ref(),
                now,
            });
            match (rendered, &case.expected) {
                (Ok(rendered), Some(expected)) if rendered == *expected => equal += 1,
                (Err(refused), None) if same_refusal(&refused, case) => both_refuse += 1,
                (rendered, expected) => found.push(format!(
                    "{label}, {}:\n  ours:   {rendered:?}\n  theirs: {expected:?} {}",
                    case.name,
                    case.error.as_deref().unwrap_or_default()
                )),
            }
        }
        match template.differs {
            Some(reason) if found.is_empty() => {
                different.push(format!("{label}: does not differ any more ({reason})"));
            }
            Some(_) => known += found.len(),
            None => different.extend(found),
        }
    }
    println!(
        "{} templates: {equal} conversations equal, {both_refuse} refused by both, {known} known to differ, {} different",
        files.len(),
        different.len()
    );
    assert!(different.is_empty(), "{}", different.join("\n"));
}
