//! Upstreams and targets for this floor's tests.

use crate::remote::{
    CancelSettle, Capabilities, ProviderChoice, TargetConfig, UpstreamConfig, UpstreamKind,
};

/// An upstream of which nothing is known but its kind.
pub(crate) fn upstream(name: &str, kind: UpstreamKind) -> UpstreamConfig {
    UpstreamConfig::new(name, kind, "https://upstream.test".to_owned())
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
