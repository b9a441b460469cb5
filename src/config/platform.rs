//! Settings that hosting platforms make through variables of their own: Vertex AI and SageMaker.
//!
//! Vertex AI names port and routes (`AIP_*`); SageMaker's images name the model (`HF_MODEL_ID`, …). They have
//! no flags and no keys, because nobody but a platform sets them.

use super::ConfigError;
use super::raw::RawConfig;

/// What Vertex AI asks for beside the port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Platform {
    /// Another path for predictions.
    pub predict_route: Option<String>,
    /// Another path for health.
    pub health_route: Option<String>,
}

/// Where SageMaker's images listen.
const SAGEMAKER_PORT: u16 = 8080;

impl RawConfig {
    /// Adds what a platform's variables say. `AIP_HTTP_PORT` wins over every other port, as in TGI; those of
    /// SageMaker count only where no model is named otherwise.
    ///
    /// Errors: a number is none.
    pub(super) fn with_platform(
        mut self,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let variable = |name| variable(name).filter(|value| !value.is_empty());
        let mut faults = Vec::new();
        if let Some(text) = variable("AIP_HTTP_PORT") {
            match text.parse() {
                Ok(port) => self.port = Some(port),
                Err(_) => faults.push(format!("AIP_HTTP_PORT `{text}` is not a port")),
            }
        }
        self.platform = Platform {
            predict_route: variable("AIP_PREDICT_ROUTE"),
            health_route: variable("AIP_HEALTH_ROUTE"),
        };
        if self.model_id.is_none()
            && let Some(model) = variable("HF_MODEL_ID")
        {
            self.model_id = Some(model);
            self.port.get_or_insert(SAGEMAKER_PORT);
            self.revision = self.revision.take().or(variable("HF_MODEL_REVISION"));
            let tgi_only = &mut self.tgi_only;
            tgi_only.quantize = tgi_only.quantize.take().or(variable("HF_MODEL_QUANTIZE"));
            if tgi_only.num_shard.is_none()
                && let Some(text) = variable("SM_NUM_GPUS")
            {
                tgi_only.num_shard = text.parse().ok();
                if tgi_only.num_shard.is_none() {
                    faults.push(format!("SM_NUM_GPUS `{text}` is not a number"));
                }
            }
            if tgi_only.trust_remote_code.is_none() {
                tgi_only.trust_remote_code = variable("HF_MODEL_TRUST_REMOTE_CODE")
                    .map(|text| text.eq_ignore_ascii_case("true") || text == "1");
            }
        }
        if faults.is_empty() {
            Ok(self)
        } else {
            Err(ConfigError(faults))
        }
    }
}

/// Whether a platform's path can be a route: plain segments after a slash.
pub(super) fn is_route(path: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/-._~:".contains(&b);
    path.starts_with('/') && path.bytes().all(plain) && !path.contains("/:")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(raw: RawConfig, variables: &[(&str, &str)]) -> Result<RawConfig, ConfigError> {
        raw.with_platform(|name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn vertex_names_port_and_routes() {
        let raw = RawConfig {
            port: Some(1),
            ..RawConfig::default()
        };
        let variables = [
            ("AIP_HTTP_PORT", "8081"),
            ("AIP_PREDICT_ROUTE", "/v1/endpoints/1:predict"),
            ("AIP_HEALTH_ROUTE", ""),
        ];
        let raw = with(raw, &variables).expect("sound");
        assert_eq!(raw.port, Some(8081));
        assert_eq!(
            raw.platform.predict_route.as_deref(),
            Some("/v1/endpoints/1:predict")
        );
        assert_eq!(raw.platform.health_route, None);
        let wrong = with(RawConfig::default(), &[("AIP_HTTP_PORT", "http")]);
        assert!(
            wrong
                .expect_err("no port")
                .to_string()
                .contains("AIP_HTTP_PORT")
        );
    }

    #[test]
    fn sagemakers_variables_count_only_without_a_model() {
        let variables = [
            ("HF_MODEL_ID", "/opt/ml/model"),
            ("SM_NUM_GPUS", "1"),
            ("HF_MODEL_TRUST_REMOTE_CODE", "true"),
        ];
        let raw = with(RawConfig::default(), &variables).expect("sound");
        assert_eq!(raw.model_id.as_deref(), Some("/opt/ml/model"));
        assert_eq!((raw.port, raw.tgi_only.num_shard), (Some(8080), Some(1)));
        assert_eq!(raw.tgi_only.trust_remote_code, Some(true));
        let named = RawConfig {
            model_id: Some("m".into()),
            ..RawConfig::default()
        };
        assert_eq!(with(named.clone(), &variables).expect("sound"), named);
    }

    #[test]
    fn routes_are_plain_paths() {
        assert!(is_route("/v1/endpoints/1/deployedModels/2:predict") && is_route("/ping"));
        for wrong in ["ping", "/{x}", "/:x", "/a b", "/*x", ""] {
            assert!(!is_route(wrong), "{wrong}");
        }
    }
}
