//! Hybrid serving over sockets: a real sconce in front, and behind it a second one or a scripted upstream.

mod asks;
mod egress;
mod failures;
pub mod far;
mod framing;
pub mod front;
mod overflow;
mod seams;
mod second;
mod streams;
mod waits;

use std::path::PathBuf;

use serde_json::{Value as Json, json};
use tempfile::TempDir;

use crate::support::server::{Sconce, Server};

/// Settings of a server that may forward, written to a folder that lives as long as it does.
pub struct Setup {
    pub folder: TempDir,
    pub text: String,
    env: Vec<(String, String)>,
    flags: Vec<(String, String)>,
}

impl Setup {
    /// One upstream of this kind with one target for a model of this name, which every caller may use. Nothing is
    /// paid for.
    pub fn one(kind: &str, url: &str, model: &str) -> Self {
        Self::with_engine(kind, None, url, model)
    }

    /// The same behind which this engine answers.
    pub fn with_engine(kind: &str, engine: Option<&str>, url: &str, model: &str) -> Self {
        let engine = engine.map(|engine| format!("engine = \"{engine}\"\n"));
        let engine = engine.unwrap_or_default();
        Self::new()
            .add(&format!(
                "[[remote.upstream]]\nname = \"up\"\nkind = \"{kind}\"\n{engine}base_url = \"{url}\"\nbilling = \"own\"\n\
                 [[remote.target]]\nname = \"far\"\nupstream = \"up\"\nmodel = \"{model}\"\n\
                 capabilities = {{ tools = true, structured_output = true, seed = true }}\n\
                 [[route.model]]\nname = \"default\"\nlocal = true\ntargets = [\"far\"]\n"
            ))
            .add("[egress]\nanonymous = \"dedicated\"\n")
    }

    /// Nothing but where state and audit log stand.
    pub fn new() -> Self {
        Self::with_remote("")
    }

    /// The same, with more settings of `[remote]` itself.
    pub fn with_remote(settings: &str) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let state = folder.path().join("state");
        let state = state.display().to_string();
        let text = format!("[remote]\nstate_dir = {state:?}\n{settings}");
        Self {
            folder,
            text,
            env: Vec::new(),
            flags: Vec::new(),
        }
    }

    /// More settings.
    pub fn add(mut self, text: &str) -> Self {
        self.text += text;
        self
    }

    /// A setting that stands before all tables.
    pub fn first(mut self, text: &str) -> Self {
        self.text.insert_str(0, text);
        self
    }

    /// Who should answer when nobody says otherwise.
    pub fn policy(self, policy: &str) -> Self {
        self.add(&format!("[route]\npolicy = \"{policy}\"\n"))
    }

    /// A variable of the server's environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A flag of the server's.
    pub fn flag(mut self, name: &str, value: &str) -> Self {
        self.flags.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Where the audit log stands.
    pub fn audit_log(&self) -> PathBuf {
        self.folder.path().join("state/audit.jsonl")
    }

    /// The command with these settings.
    pub fn sconce(&self) -> Sconce {
        let path = self.folder.path().join("sconce.toml");
        std::fs::write(&path, &self.text).expect("room for settings");
        let mut sconce = Sconce::new().flag("--config", &path.display().to_string());
        for (name, value) in &self.flags {
            sconce = sconce.flag(name, value);
        }
        for (name, value) in &self.env {
            sconce = sconce.env(name, value);
        }
        sconce
    }

    /// Starts the server; the settings must outlive it.
    #[track_caller]
    pub fn serve(&self) -> Server {
        self.sconce().serve()
    }
}

/// A greedy chat of one question.
pub fn chat(question: &str) -> Json {
    json!({
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 24,
    })
}
