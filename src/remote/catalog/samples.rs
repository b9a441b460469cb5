//! Upstreams and targets for this floor's tests.

use crate::remote::{
    Billing, CancelSettle, Capabilities, ProviderChoice, TargetConfig, UpstreamConfig, UpstreamKind,
};

/// An upstream of which nothing is known but its kind.
pub(crate) fn upstream(name: &str, kind: UpstreamKind) -> UpstreamConfig {
    UpstreamConfig {
        name: name.into(),
        kind,
        base_url: "https://upstream.test".to_owned(),
        engine: None,
        token_env: None,
        token: None,
        disabled: None,
        bill_to: None,
        billing: Billing::Tokens,
        provider: None,
        chat_path: None,
        control: None,
        scales_to_zero: false,
        max_nusd_per_day: Some(0),
        max_concurrency: None,
        rpm: None,
        tpm: None,
        allow_plaintext: false,
        allow_private: false,
        ca_file: None,
        proxy: None,
    }
}

/// A target of which the operator says nothing but where it is.
pub(crate) fn target(name: &str, upstream: &str, model: &str) -> TargetConfig {
    TargetConfig {
        name: name.into(),
        upstream: upstream.into(),
        model: model.into(),
        provider: ProviderChoice::Whoever,
        price: None,
        context_length: None,
        capabilities: Capabilities::default(),
        same_model: false,
        max_cost_nusd: None,
        cancel: CancelSettle::Shown,
    }
}
