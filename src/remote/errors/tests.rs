//! One fixture for each row of the classification and each shape of a body.

use super::*;

const HF: Origin = Origin {
    kind: UpstreamKind::HfRouter,
    engine: None,
    billing: Billing::Tokens,
};
const IE: Origin = Origin {
    kind: UpstreamKind::InferenceEndpoint,
    engine: Some(EngineKind::Tgi),
    billing: Billing::Own,
};
const TGI: Origin = Origin {
    kind: UpstreamKind::Tgi,
    engine: Some(EngineKind::Tgi),
    billing: Billing::Own,
};
const OWN: Origin = Origin {
    kind: UpstreamKind::OpenAiCompat,
    engine: Some(EngineKind::LlamaCpp),
    billing: Billing::Own,
};
const PAID: Origin = Origin {
    kind: UpstreamKind::OpenAiCompat,
    engine: None,
    billing: Billing::Tokens,
};

fn head(status: u16) -> Head {
    Head {
        status,
        ..Head::default()
    }
}

fn read(status: u16, origin: Origin, body: &str) -> Fault {
    classify(&head(status), body.as_bytes(), origin)
}

#[test]
fn every_row_has_its_class() {
    use Class::*;
    let credits =
        r#"{"error":"You have exceeded your monthly included credits for Inference Providers."}"#;
    let unsupported = r#"{"error":{"message":"The requested model 'x' is not supported by any provider you have enabled.","type":"invalid_request_error","param":"model","code":"model_not_supported"}}"#;
    let rows: &[(u16, Origin, &str, Class)] = &[
        (301, HF, "", Misconfigured),
        (307, HF, "", Misconfigured),
        (400, HF, unsupported, NotServed),
        (
            400,
            HF,
            r#"{"error":{"message":"Failed to call a function.","type":"invalid_request_error","code":"tool_use_failed","failed_generation":"<x>"}}"#,
            ToolCall,
        ),
        (
            400,
            HF,
            r#"{"error":{"message":"bad","failed_generation":""}}"#,
            ToolCall,
        ),
        (400, IE, "400 Bad Request: Invalid state", Paused),
        (400, IE, r#"{"error":"Bad Request: Invalid state"}"#, Paused),
        (400, PAID, r#"{"error":"Invalid state"}"#, BadRequest),
        (
            400,
            OWN,
            r#"{"error":{"code":400,"message":"the request exceeds the available context size, try increasing it","type":"exceed_context_size_error","n_prompt_tokens":5000,"n_ctx":4096}}"#,
            ContextOverflow,
        ),
        (
            400,
            PAID,
            r#"{"object":"error","message":"This model's maximum context length is 4096 tokens. However, you requested 5000 tokens","type":"BadRequestError","param":null,"code":400}"#,
            ContextOverflow,
        ),
        (
            400,
            PAID,
            r#"{"error":{"message":"x","code":"content_filter"}}"#,
            ContentFilter,
        ),
        (
            400,
            PAID,
            r#"{"error":{"message":"Your credit balance is too low to access the API"}}"#,
            QuotaExhausted,
        ),
        (
            400,
            PAID,
            r#"{"message":"`top_k` is not supported"}"#,
            BadRequest,
        ),
        (
            401,
            HF,
            r#"{"error":"Invalid username or password"}"#,
            AuthFailed,
        ),
        (402, HF, credits, QuotaExhausted),
        (
            403,
            HF,
            r#"{"error":"This authentication method does not have sufficient permissions to call Inference Providers"}"#,
            AuthFailed,
        ),
        (
            403,
            HF,
            r#"{"error":"You have reached your organization's spending limit"}"#,
            QuotaExhausted,
        ),
        (
            403,
            PAID,
            r#"{"error":{"message":"Your input was flagged by moderation","code":403}}"#,
            ContentFilter,
        ),
        (404, HF, r#"{"error":"Model x does not exist"}"#, NotServed),
        (404, HF, "Not Found", NotServed),
        (
            405,
            PAID,
            r#"{"detail":"Method Not Allowed"}"#,
            Misconfigured,
        ),
        (408, PAID, "", Timeout),
        (409, HF, "", ServerError),
        (425, HF, "", ServerError),
        (413, PAID, "too large", BadRequest),
        (
            413,
            PAID,
            r#"{"error":{"message":"Request too large on tokens per minute (TPM): Limit 6000","code":"rate_limit_exceeded"}}"#,
            ContextOverflow,
        ),
        (
            422,
            TGI,
            r#"{"error":"Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 4000 `inputs` tokens and 200 `max_new_tokens`","error_type":"validation"}"#,
            ContextOverflow,
        ),
        (
            422,
            TGI,
            r#"{"error":"Input validation error: `inputs` must have less than 1024 tokens. Given: 5000","error_type":"validation"}"#,
            ContextOverflow,
        ),
        (
            422,
            TGI,
            r#"{"error":"Input validation error: `temperature` must be strictly positive","error_type":"validation"}"#,
            BadRequest,
        ),
        (
            422,
            PAID,
            r#"{"detail":[{"type":"extra_forbidden","loc":["body","stream_options"],"msg":"Extra inputs are not permitted"}]}"#,
            BadRequest,
        ),
        (
            424,
            TGI,
            r#"{"error":"Request failed during generation: Server error: oom","error_type":"generation"}"#,
            ServerError,
        ),
        (
            429,
            TGI,
            r#"{"error":"Model is overloaded","error_type":"overloaded"}"#,
            Overloaded,
        ),
        (429, IE, "", Overloaded),
        (429, OWN, "", Overloaded),
        (
            429,
            HF,
            r#"{"error":"Model is overloaded","error_type":"overloaded"}"#,
            RateLimited,
        ),
        (429, HF, "", RateLimited),
        (
            429,
            PAID,
            r#"{"error":{"message":"slow down","type":"requests"}}"#,
            RateLimited,
        ),
        (
            429,
            PAID,
            r#"{"error":{"message":"You exceeded your current quota","type":"insufficient_quota","code":"insufficient_quota"}}"#,
            QuotaExhausted,
        ),
        (500, HF, r#"{"error":"internal"}"#, ServerError),
        (
            500,
            OWN,
            r#"{"error":{"message":"x","type":"exceed_context_size_error","n_ctx":512}}"#,
            ContextOverflow,
        ),
        (
            501,
            OWN,
            r#"{"error":{"message":"this server does not support it"}}"#,
            BadRequest,
        ),
        (
            502,
            HF,
            "<html><body>Bad Gateway</body></html>",
            ServerError,
        ),
        (502, IE, "", ColdStart),
        (503, IE, r#"{"error":"503 Service Unavailable"}"#, ColdStart),
        (
            503,
            HF,
            r#"{"error":"Model x is currently loading","estimated_time":20.5}"#,
            Overloaded,
        ),
        (
            503,
            OWN,
            r#"{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}"#,
            Overloaded,
        ),
        (504, HF, "", Timeout),
        (524, PAID, "", Timeout),
        (520, PAID, "", ServerError),
        (529, PAID, "", Overloaded),
        (418, PAID, "", BadRequest),
        // A success that is none.
        (200, HF, r#"{"error":"something"}"#, ServerError),
        (200, HF, credits, QuotaExhausted),
        (200, HF, unsupported, NotServed),
        (200, HF, "<!DOCTYPE html><p>hi", ServerError),
        (200, HF, r#"{"choices":[]}"#, ServerError),
        (200, HF, "", ServerError),
    ];
    for (status, origin, body, class) in rows {
        let fault = read(*status, *origin, body);
        assert_eq!(fault.class, *class, "{status} {body} gave {fault:?}");
        assert_eq!(fault.status, Some(*status));
        assert!(!fault.message.is_empty());
    }
}

#[test]
fn every_shape_gives_its_words() {
    let rows: &[(&str, &str)] = &[
        (
            r#"{"error":{"message":"one","type":"t","code":7,"param":"p"}}"#,
            "one",
        ),
        (
            r#"{"error":{"message":"one","type":"t","code":"c","param":null}}"#,
            "one",
        ),
        (r#"{"error":"two"}"#, "two"),
        (r#"{"error":["two","too"]}"#, "two; too"),
        (r#"{"error":"three","error_type":"validation"}"#, "three"),
        (r#"{"detail":"four"}"#, "four"),
        (
            r#"{"detail":[{"loc":["body","seed"],"msg":"four"}]}"#,
            "seed: four",
        ),
        (r#"{"message":"five"}"#, "five"),
        (
            r#"{"type":"about:blank","title":"six","status":400,"detail":"and more"}"#,
            "and more",
        ),
        (
            r#"{"type":"about:blank","title":"six","status":400}"#,
            "six",
        ),
        (
            r#"{"object":"error","message":"seven","type":"BadRequestError","param":null,"code":400}"#,
            "seven",
        ),
        ("eight", "eight"),
        ("\u{feff} {\"error\":\"nine\"} ", "nine"),
        (
            "{\"error\":{\"message\":\"cut",
            "{\"error\":{\"message\":\"cut",
        ),
    ];
    for (body, words) in rows {
        assert_eq!(&*read(400, PAID, body).message, *words, "{body}");
    }
    let html = read(502, PAID, "<html><script>alert(1)</script></html>").message;
    assert!(
        html.starts_with("a page of HTML, 38 bytes") && !html.contains("script"),
        "{html}"
    );
    assert_eq!(&*read(500, PAID, "").message, "status 500");
}

#[test]
fn numbers_and_names_are_read() {
    let context = |body: &str| read(400, PAID, body).context_length;
    assert_eq!(
        context(
            r#"{"error":{"message":"x","type":"exceed_context_size_error","n_prompt_tokens":5000,"n_ctx":4096}}"#
        ),
        Some(4096)
    );
    assert_eq!(
        context(
            r#"{"message":"This model's maximum context length is 32,768 tokens. However, you requested 99999"}"#
        ),
        Some(32_768)
    );
    assert_eq!(
        context(
            r#"{"message":"The decoder prompt (length 9000) is longer than the maximum model length of 4096."}"#
        ),
        Some(4096)
    );
    assert_eq!(
        context(
            r#"{"message":"The input (5000 tokens) is longer than the model's context length (2048 tokens)."}"#
        ),
        Some(2048)
    );
    assert_eq!(
        context(
            r#"{"error":"Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 1","error_type":"validation"}"#
        ),
        Some(4096)
    );
    assert_eq!(
        context(
            r#"{"error":"Input validation error: `inputs` must have less than 1024 tokens. Given: 5000","error_type":"validation"}"#
        ),
        None
    );

    let param = |body: &str| read(400, PAID, body).param;
    assert_eq!(
        param(r#"{"error":{"message":"no","param":"logit_bias"}}"#).as_deref(),
        Some("logit_bias")
    );
    assert_eq!(
        param(r#"{"detail":[{"loc":["body","stream_options","include_usage"],"msg":"no"}]}"#)
            .as_deref(),
        Some("stream_options")
    );
    assert_eq!(
        param(r#"{"error":"Unknown field stream_options here"}"#).as_deref(),
        Some("stream_options")
    );
    assert_eq!(
        param(r#"{"error":"'seed' is not supported, nor is top_k"}"#).as_deref(),
        Some("seed")
    );
    assert_eq!(param(r#"{"error":"please stop doing that"}"#), None);
    assert_eq!(
        read(503, HF, r#"{"error":"loading","estimated_time":20.5}"#).retry_after,
        Some(Duration::from_millis(20_500))
    );
}

#[test]
fn errors_within_streams_are_read_by_their_words() {
    use Class::*;
    let rows: &[(Origin, &str, Class)] = &[
        (
            TGI,
            r#"{"error":{"message":"Model is overloaded","http_status_code":422}}"#,
            Overloaded,
        ),
        (
            TGI,
            r#"{"error":{"message":"Request failed during generation","http_status_code":422}}"#,
            ServerError,
        ),
        (TGI, r#"{"error":{"message":"x","code":422}}"#, ServerError),
        (
            TGI,
            r#"{"error":"Incomplete generation","error_type":"incomplete_generation"}"#,
            ServerError,
        ),
        (TGI, r#"{"error":"late","error_type":"timeout"}"#, Timeout),
        (
            TGI,
            r#"{"error":"`temperature` must be positive","error_type":"validation"}"#,
            BadRequest,
        ),
        (
            TGI,
            r#"{"error":"`inputs` tokens + `max_new_tokens` must be <= 10","error_type":"validation"}"#,
            ContextOverflow,
        ),
        (
            HF,
            r#"{"error":{"message":"Model is overloaded","type":"overloaded"}}"#,
            RateLimited,
        ),
        (
            PAID,
            r#"{"error":{"code":502,"message":"Provider disconnected"}}"#,
            ServerError,
        ),
        (
            PAID,
            r#"{"error":{"code":"429","message":"wait"}}"#,
            RateLimited,
        ),
        (
            PAID,
            r#"{"error":{"code":401,"message":"no"}}"#,
            ServerError,
        ),
        (
            PAID,
            r#"{"error":{"code":402,"message":"more money"}}"#,
            QuotaExhausted,
        ),
        (PAID, r#"{"error":{"code":504,"message":"late"}}"#, Timeout),
        (
            PAID,
            r#"{"error":{"code":529,"message":"full"}}"#,
            Overloaded,
        ),
        (
            PAID,
            r#"{"error":{"code":400,"message":"bad"}}"#,
            BadRequest,
        ),
        (
            PAID,
            r#"{"error":{"message":"bad","type":"invalid_request_error"}}"#,
            BadRequest,
        ),
        (
            PAID,
            r#"{"error":{"message":"Rate limit exceeded"}}"#,
            RateLimited,
        ),
        (
            PAID,
            r#"{"error":{"message":"x","code":"content_filter"}}"#,
            ContentFilter,
        ),
        (
            HF,
            r#"{"error":{"message":"Tool call validation failed"}}"#,
            ToolCall,
        ),
    ];
    for (origin, body, class) in rows {
        let value = serde_json::from_str(body).unwrap();
        assert!(is_error(&value));
        let fault = in_stream(&value, *origin);
        assert_eq!((fault.class, fault.status), (*class, None), "{body}");
    }
    assert!(!is_error(
        &serde_json::json!({"error": null, "choices": []})
    ));
}

#[test]
fn nothing_secret_or_long_gets_out() {
    let canaries = [
        "hf_abcdefghijklmnopqrstuvwxyz",
        "sk-proj-abcdefgh12345678",
        "gsk_abcdefghijklmnop",
        "AKIAABCDEFGHIJKLMNOP",
        "Bearer abc.def",
        "?token=abc",
        "&sig=abc",
    ];
    for canary in canaries {
        for status in [400, 402, 404, 500, 503] {
            let fault = read(status, HF, &format!(r#"{{"error":"with {canary} in it"}}"#));
            assert!(!fault.message.contains(canary), "{}", fault.message);
        }
    }
    let fault = read(401, HF, r#"{"error":"your key plainsecret is wrong"}"#);
    assert!(!fault.message.contains("plainsecret"));
    let fault = read(500, HF, &"é".repeat(4000));
    assert!(fault.message.len() <= LONGEST_MESSAGE && fault.message.ends_with('…'));
}

#[test]
fn operators_read_what_to_do() {
    let golden: &[(u16, Origin, &str, &str)] = &[
        (
            400,
            IE,
            r#"{"error":"Bad Request: Invalid state"}"#,
            "status 400: the endpoint is paused and does not wake by itself; resume it, or set auto_resume (upstream: Bad Request: Invalid state)",
        ),
        (
            400,
            HF,
            r#"{"error":"not supported by any provider you have enabled"}"#,
            "status 400: the model is not served there; check the model's name and its suffix, and that the provider is enabled for this token (upstream: not supported by any provider you have enabled)",
        ),
        (
            402,
            HF,
            r#"{"error":"You have exceeded your monthly included credits"}"#,
            "status 402: the credential has no credits left or has reached a spending limit; this is no outage: buy credits or raise the limit (upstream: You have exceeded your monthly included credits)",
        ),
        (
            503,
            IE,
            "",
            "status 503: the endpoint sleeps or is waking; it answers once a replica is ready",
        ),
        (
            307,
            HF,
            "",
            "status 307: redirects are never followed; check base_url",
        ),
        (
            401,
            HF,
            r#"{"error":"Invalid username or password"}"#,
            "status 401: the credential is refused; check the variable that holds the token and that it may make inference calls",
        ),
    ];
    for (status, origin, body, message) in golden {
        assert_eq!(&*read(*status, *origin, body).message, *message);
    }
}

#[test]
fn what_the_head_says_is_kept() {
    let head = Head {
        status: 429,
        retry_after: Some(Duration::from_secs(7)),
        provider: Some("together".into()),
        request_id: Some("r1".into()),
        ..Head::default()
    };
    let fault = classify(&head, br#"{"error":"wait","estimated_time":1}"#, HF);
    assert_eq!(fault.retry_after, Some(Duration::from_secs(7)));
    assert_eq!(fault.provider.as_deref(), Some("together"));
    assert_eq!(fault.upstream_request_id.as_deref(), Some("r1"));
}

/// Upstreams repeat what is wrong; nobody who asks may shut a target to everybody by what he writes.
#[test]
fn a_callers_words_in_a_refusal_shut_nothing() {
    let written = [
        "insufficient credits",
        "insufficient_quota",
        "credit balance is too low",
        "You have exceeded your monthly included credits",
        "model x not found",
        "The model `x` does not exist",
        "model_not_supported",
        "not supported by any provider you have enabled",
        "rate limit exceeded",
        "Model is overloaded",
        "Invalid state",
        "this model's maximum context length is 5 tokens",
        "`max_new_tokens` must be <= 5",
        "max_model_len 5",
    ];
    let shut = [
        Class::QuotaExhausted,
        Class::NotServed,
        Class::RateLimited,
        Class::Overloaded,
        Class::AuthFailed,
        Class::Paused,
        Class::ColdStart,
        Class::Misconfigured,
    ];
    let frames = [
        ("regex parse error: ", ": unclosed group"),
        ("", " is not of type 'object'"),
        ("Invalid schema: '", "'"),
        ("'", "' is not valid under any of the given schemas"),
        ("tool ", " is unknown"),
    ];
    for text in written {
        for (before, after) in frames {
            let message = format!("{before}{text}{after}");
            let body = serde_json::json!({"error": {"message": message, "type": "invalid_request_error", "code": null}});
            for origin in [HF, IE, TGI, OWN, PAID] {
                for status in [400, 422] {
                    let fault = read(status, origin, &body.to_string());
                    assert!(
                        !shut.contains(&fault.class),
                        "{status} {message}: {fault:?}"
                    );
                    let anchored = before.is_empty() && text.starts_with(['t', '`']);
                    assert!(
                        anchored || fault.context_length.is_none(),
                        "{message}: {fault:?}"
                    );
                }
                let fault = in_stream(&body, origin);
                assert!(
                    !shut.contains(&fault.class),
                    "in a stream, {message}: {fault:?}"
                );
            }
        }
    }
    for sentence in [&UNSERVED, &SPENT, &PAUSED, &FULL] {
        assert!(sentence.is_some());
    }
}

#[test]
fn whole_sentences_of_upstreams_are_believed() {
    let rows = [
        (
            "You have exceeded your monthly included credits for Inference Providers. Subscribe to PRO to get 20x more monthly included credits.",
            Class::QuotaExhausted,
        ),
        (
            "You have depleted your monthly included credits. Purchase pre-paid credits to continue using Inference Providers.",
            Class::QuotaExhausted,
        ),
        (
            "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade or purchase credits.",
            Class::QuotaExhausted,
        ),
        (
            "The model `a/b` does not exist or you do not have access to it.",
            Class::NotServed,
        ),
        (
            "The requested model 'a/b:c' is not supported by provider 'x'",
            Class::NotServed,
        ),
    ];
    for (message, class) in rows {
        let body = serde_json::json!({"error": message});
        assert_eq!(read(400, PAID, &body.to_string()).class, class, "{message}");
        assert_eq!(in_stream(&body, PAID).class, class, "{message}");
    }
}
