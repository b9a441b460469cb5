//! Settings from file, environment and flags, and what is said about wrong ones.

use std::fs;
use std::process::Output;

use tempfile::TempDir;

use crate::support::server::Sconce;

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What `check` prints for a name.
#[track_caller]
fn checked(sconce: &Sconce, name: &str) -> String {
    let output = sconce.run("check");
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {text}"))
        .trim()
        .to_owned()
}

/// Runs `check` and `serve`, which must fail alike; the words on standard error.
#[track_caller]
fn refused(sconce: &Sconce) -> String {
    let output = sconce.run("check");
    let words = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(
        words.starts_with("error: ") && !words.contains("panicked"),
        "{words}"
    );
    let served = sconce.run("serve");
    assert_eq!(
        (served.status.code(), stderr(&served)),
        (Some(1), words.clone())
    );
    words
}

/// A settings file.
struct Settings {
    folder: TempDir,
}

impl Settings {
    fn new(text: &str) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        fs::write(folder.path().join("sconce.toml"), text).expect("a writable folder");
        Self { folder }
    }

    fn path(&self) -> String {
        self.folder.path().join("sconce.toml").display().to_string()
    }
}

#[test]
fn flags_go_over_the_environment_and_both_over_the_file() {
    let file = Settings::new("max_concurrent_requests = 5\nmax_total_tokens = 100\n");
    let name = "max_concurrent_requests";
    let from_file = Sconce::new().flag("--config", &file.path());
    assert_eq!(checked(&from_file, name), "5");
    let from_env = from_file.env("MAX_CONCURRENT_REQUESTS", "6");
    assert_eq!(checked(&from_env, name), "6");
    let from_flag = from_env.flag("--max-concurrent-requests", "7");
    assert_eq!(checked(&from_flag, name), "7");
    assert_eq!(
        checked(&from_flag, "max_total_tokens"),
        "100",
        "what is not overridden stays"
    );
    let named_by_env = Sconce::new().env("SCONCE_CONFIG", &file.path());
    assert_eq!(checked(&named_by_env, name), "5");
}

#[test]
fn a_served_file_is_in_force() {
    let file = Settings::new("max_stop_sequences = 1\ncompute_type = \"from-file\"\n");
    let server = Sconce::tiny("llama-tied")
        .flag("--config", &file.path())
        .serve();
    assert_eq!(server.get("/info").ok()["max_stop_sequences"], 1);
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_known_one() {
    let file = Settings::new("max_concurent_requests = 5\nprot = 1\n");
    let words = refused(&Sconce::new().flag("--config", &file.path()));
    assert!(
        words.contains("`max_concurent_requests`") && words.contains("`max_concurrent_requests`"),
        "{words}"
    );
    assert!(
        words.contains("`prot`") && words.contains("`port`"),
        "{words}"
    );
    assert!(words.contains("sconce.toml"), "{words}");
}

#[test]
fn a_key_may_not_stand_in_the_file() {
    let file = Settings::new("api_key = \"very-secret\"\n");
    let words = refused(&Sconce::new().flag("--config", &file.path()));
    assert!(
        words.contains("API_KEY") && !words.contains("very-secret"),
        "{words}"
    );
}

#[test]
fn wrong_files_are_named() {
    let broken = Settings::new("port = = 1\n");
    assert!(refused(&Sconce::new().flag("--config", &broken.path())).contains("sconce.toml"));
    let typed = Settings::new("port = \"x\"\n");
    assert!(refused(&Sconce::new().flag("--config", &typed.path())).contains("port"));
    let hidden = Sconce::new()
        .flag("--config", &typed.path())
        .flag("--port", "1");
    assert!(
        refused(&hidden).contains("port"),
        "a flag does not hide a wrong value"
    );
    let absent = refused(&Sconce::new().flag("--config", "/no/such/file.toml"));
    assert!(absent.contains("/no/such/file.toml"), "{absent}");
}

#[test]
fn all_faults_are_reported_at_once() {
    let words = refused(
        &Sconce::new()
            .flag("--max-best-of", "0")
            .flag("--dtype", "int3"),
    );
    assert!(
        words.contains("max_best_of") && words.contains("int3"),
        "{words}"
    );
}

#[test]
fn limits_that_contradict_each_other_are_refused() {
    let words = refused(
        &Sconce::new()
            .flag("--max-total-tokens", "64")
            .flag("--max-input-tokens", "64"),
    );
    assert!(
        words.contains("max_input_tokens") && words.contains("max_total_tokens"),
        "{words}"
    );
    let words = refused(
        &Sconce::new()
            .flag("--max-total-tokens", "64")
            .flag("--max-batch-total-tokens", "32"),
    );
    assert!(words.contains("max_batch_total_tokens"), "{words}");
    let words = refused(&Sconce::new().flag("--max-total-tokens", "1000000"));
    assert!(words.contains("max_total_tokens"), "{words}");
    let words = refused(
        &Sconce::new()
            .flag("--max-input-tokens", "8")
            .flag("--max-input-length", "8"),
    );
    assert!(words.contains("max_input_length"), "{words}");
    let words = refused(&Sconce::new().flag("--num-shard", "2"));
    assert!(words.contains("num_shard"), "{words}");
}

#[test]
fn the_older_name_of_a_limit_counts() {
    let sconce = Sconce::new()
        .env("MAX_INPUT_LENGTH", "50")
        .env("MAX_TOTAL_TOKENS", "60");
    assert_eq!(checked(&sconce, "max_input_tokens"), "50");
}

#[test]
fn a_host_name_is_ignored_with_a_warning() {
    let server = Sconce::tiny("llama-tied")
        .env("HOSTNAME", "a1b2c3d4e5f6")
        .serve();
    assert!(server.address().ip().is_loopback());
    let warned = server.log_lines().iter().any(|line| {
        line["level"] == "WARN"
            && line["message"]
                .as_str()
                .is_some_and(|text| text.contains("a1b2c3d4e5f6"))
    });
    assert!(warned, "{}", server.log());
}

#[test]
fn settings_of_tgi_without_effect_are_taken_with_a_warning() {
    let server = Sconce::tiny("llama-tied")
        .flag("--waiting-served-ratio", "0.3")
        .env("MAX_WAITING_TOKENS", "20")
        .env("TRUST_REMOTE_CODE", "true")
        .env("NUM_SHARD", "1")
        .serve();
    let log = server.log();
    for name in [
        "waiting_served_ratio",
        "max_waiting_tokens",
        "trust_remote_code",
    ] {
        assert!(log.contains(name), "{name} in {log}");
    }
}

#[test]
fn a_taken_port_is_said() {
    let server = Sconce::tiny("llama-tied").serve();
    let second = Sconce::tiny("llama-tied")
        .flag("--port", &server.address().port().to_string())
        .run("serve");
    let words = stderr(&second);
    assert_eq!(second.status.code(), Some(1));
    assert!(
        words.contains(&format!("error: cannot listen on {}", server.address())),
        "{words}"
    );
}

#[test]
fn platforms_may_name_port_and_model_through_their_variables() {
    let vertex = Sconce::new()
        .env("AIP_HTTP_PORT", "8081")
        .env("PORT", "80")
        .env("AIP_PREDICT_ROUTE", "/predict");
    assert_eq!(checked(&vertex, "address"), "127.0.0.1:8081");
    let wrong = Sconce::new().env("AIP_HEALTH_ROUTE", "/{x}");
    assert!(refused(&wrong).contains("AIP_HEALTH_ROUTE"));
    let model = crate::support::models::model_id("llama-tied");
    let sagemaker = Sconce::new()
        .env("HF_MODEL_ID", &model)
        .env("SM_NUM_GPUS", "1");
    assert_eq!(checked(&sagemaker, "model_id"), model);
    assert_eq!(checked(&sagemaker, "address"), "127.0.0.1:8080");
    let named = sagemaker
        .env("HF_MODEL_ID", "/no/such/model")
        .env("MODEL_ID", &model);
    assert_eq!(checked(&named, "address"), "127.0.0.1:3000");
}

#[test]
fn unknown_names_of_wires_are_refused() {
    let words = refused(
        &Sconce::new()
            .flag("--compat", "both")
            .env("REASONING_FORMAT", "loud"),
    );
    assert!(
        words.contains("compat `both`") && words.contains("`loud`"),
        "{words}"
    );
}

#[test]
fn the_file_for_upstreams_serves_as_it_stands() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/config/hybrid.toml");
    let home = TempDir::new().expect("a temporary folder");
    let sconce = Sconce::new()
        .flag("--config", file)
        .env("HOME", &home.path().display().to_string());
    assert_eq!(checked(&sconce, "address"), "127.0.0.1:3000");
    let said = stderr(&sconce.run("check"));
    assert!(
        said.contains("HF_TOKEN is not set") && said.contains("max_usd_per_day"),
        "{said}"
    );
    let offline = sconce.env("SCONCE_OFFLINE", "1");
    let said = stderr(&offline.run("check"));
    assert!(said.contains("this server is offline"), "{said}");
}

#[test]
fn a_token_in_the_file_is_refused_and_not_repeated() {
    let token = "hf_abcdefghijABCDEFGHIJ0123";
    let file = Settings::new(&format!("port = 3000\n# {token}\n"));
    let words = refused(&Sconce::new().flag("--config", &file.path()));
    assert!(
        words.contains("sconce.toml: line 2: a Hugging Face token") && words.contains("token_env"),
        "{words}"
    );
    assert!(!words.contains("abcdefghij"), "{words}");
}

#[test]
fn names_that_no_upstream_or_target_has_are_refused_with_the_nearest() {
    let file = Settings::new(
        "[[remote.upstream]]\nname = \"mine\"\nkind = \"tgi\"\nbase_url = \"http://127.0.0.1:1\"\n\
         [[remote.target]]\nname = \"big\"\nupstream = \"mime\"\nmodel = \"m\"\n\
         [[remote.target]]\nname = \"other\"\nupstream = \"mine\"\nmodel = \"m\"\n\
         [[route.model]]\nname = \"default\"\ntargets = [\"othr\"]\n[audit]\npath = \"/tmp/audit\"\n",
    );
    let words = refused(&Sconce::new().flag("--config", &file.path()));
    assert!(
        words.contains("did you mean \"mine\"?") && words.contains("did you mean \"other\"?"),
        "{words}"
    );
    assert!(
        !words.contains("mime") && !words.contains("othr\""),
        "{words}"
    );
}

#[test]
fn no_model_and_no_upstream_is_nothing_to_serve() {
    let words = refused(&Sconce::new().flag("--model-id", "none"));
    assert!(words.contains("configure an upstream"), "{words}");
}
