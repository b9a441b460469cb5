//! How likely the local model is to answer a prompt well enough, by a calibration that somebody made.
//!
//! A calibration is a small JSON file: for each application, features, their means and scales, weights and
//! thresholds. Without one there is no score and nothing is sent elsewhere for being hard. One that was made
//! for another model is refused, since its numbers would mean nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::decide::Hardness;
use super::features::{FEATURE_NAMES, Features};

/// The name under which the fit for all other applications stands.
const DEFAULT: &str = "default";

/// One application's logistic regression.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fit {
    /// Names of the features, a weight each.
    pub features: Vec<String>,
    /// What is subtracted from each feature.
    pub means: Vec<f64>,
    /// What it is then divided by.
    pub scales: Vec<f64>,
    /// What it is then multiplied with.
    pub weights: Vec<f64>,
    /// What is added to the sum.
    pub bias: f64,
    /// Below this probability a request goes elsewhere before it begins; none never sends one.
    pub tau_pre: Option<f64>,
    /// The same after the first tokens.
    #[serde(default)]
    pub tau_probe: Option<f64>,
    /// The same after the whole answer.
    #[serde(default)]
    pub tau_post: Option<f64>,
}

/// A calibration file's content, checked.
///
/// Invariants: every list of a fit is of one length; every number is finite, every scale above zero, every
/// threshold in \[0, 1\]; every feature is one of [`FEATURE_NAMES`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Names the file in records.
    pub revision: String,
    /// What the local model, its quantisation and its template hash to.
    pub model: String,
    /// By the application's name; the others' stands under `default`.
    pub applications: BTreeMap<String, Fit>,
}

/// Why a calibration is not used.
#[derive(Debug, thiserror::Error)]
pub enum CalibrationError {
    /// The file does not read as one.
    #[error("the calibration cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// It was made for another model.
    #[error("the calibration was made for model {made_for}, this one is {served}; calibrate anew")]
    OtherModel {
        /// The model's hash in the file.
        made_for: String,
        /// The hash of the model that is served.
        served: String,
    },
    /// A fit is not sound.
    #[error("the calibration of application `{application}`: {problem}")]
    Unsound {
        /// Whose fit.
        application: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl Calibration {
    /// Reads and checks a calibration for the model with this hash.
    pub fn parse(json: &[u8], model: &str) -> Result<Self, CalibrationError> {
        let calibration: Self = serde_json::from_slice(json)?;
        if calibration.model != model {
            return Err(CalibrationError::OtherModel {
                made_for: calibration.model,
                served: model.to_owned(),
            });
        }
        for (application, fit) in &calibration.applications {
            fit.check().map_err(|problem| CalibrationError::Unsound {
                application: application.clone(),
                problem,
            })?;
        }
        Ok(calibration)
    }

    /// The score of a prompt, and the threshold it is held against before anything is computed.
    ///
    /// None when neither the application nor `default` has a fit with a threshold for that.
    pub fn score(&self, features: &Features) -> Option<Hardness> {
        let own = features.application.as_ref();
        let fit = own
            .and_then(|application| self.applications.get(application))
            .or_else(|| self.applications.get(DEFAULT))?;
        Some(Hardness {
            p_accept: fit.p_accept(features),
            tau: fit.tau_pre?,
        })
    }
}

impl Fit {
    /// Probability that the answer would be accepted.
    fn p_accept(&self, features: &Features) -> f64 {
        let terms = self.features.iter().zip(&self.means).zip(&self.scales);
        let sum: f64 = terms
            .zip(&self.weights)
            .map(|(((name, mean), scale), weight)| {
                let value = features.get(name).unwrap_or(*mean);
                weight * (value - mean) / scale
            })
            .sum();
        // Bounded so that the exponential is too.
        let logit = (self.bias + sum).clamp(-60.0, 60.0);
        1.0 / (1.0 + (-logit).exp())
    }

    fn check(&self) -> Result<(), String> {
        let many = self.features.len();
        if [&self.means, &self.scales, &self.weights]
            .iter()
            .any(|list| list.len() != many)
        {
            return Err("`features`, `means`, `scales` and `weights` differ in length".to_owned());
        }
        let known = |name: &String| FEATURE_NAMES.contains(&name.as_str());
        if let Some(name) = self.features.iter().find(|name| !known(name)) {
            return Err(format!("`{name}` is no feature"));
        }
        let numbers = self.means.iter().chain(&self.weights).chain([&self.bias]);
        if numbers.into_iter().any(|number| !number.is_finite()) {
            return Err("a number is not finite".to_owned());
        }
        if self
            .scales
            .iter()
            .any(|scale| !scale.is_normal() || *scale < 0.0)
        {
            return Err("`scales` must be above 0".to_owned());
        }
        let taus = [self.tau_pre, self.tau_probe, self.tau_post];
        if taus
            .into_iter()
            .flatten()
            .any(|tau| !(0.0..=1.0).contains(&tau))
        {
            return Err("a threshold lies outside 0 to 1".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::features::Arrival;
    use super::*;

    fn json(change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
        let mut file = serde_json::json!({
            "revision": "r1",
            "model": "abc",
            "applications": {"default": {
                "features": ["reasoning_verbs", "code_share"],
                "means": [0.0, 0.1],
                "scales": [1.0, 0.5],
                "weights": [-2.0, -1.0],
                "bias": 1.0,
                "tau_pre": 0.4,
            }},
        });
        change(&mut file);
        serde_json::to_vec(&file).expect("plain JSON")
    }

    fn of(last: &str) -> Features {
        Features::of(&Arrival {
            last,
            ..Arrival::default()
        })
    }

    #[test]
    fn a_hard_prompt_scores_below_an_easy_one() {
        let calibration = Calibration::parse(&json(|_| ()), "abc").expect("sound");
        let easy = calibration.score(&of("hello there")).expect("a default");
        let hard = calibration
            .score(&of("prove and derive"))
            .expect("a default");
        assert!((easy.p_accept - 1.0 / (1.0 + f64::exp(-1.2))).abs() < 1e-12);
        assert!(hard.p_accept < hard.tau && easy.p_accept > easy.tau);
    }

    #[test]
    fn an_application_has_its_own_fit_and_without_any_there_is_no_score() {
        let file = json(|file| {
            let mut own = file["applications"]["default"].clone();
            own["bias"] = 5.0.into();
            let name = super::super::features::application("be brief");
            file["applications"] = serde_json::json!({ name: own });
        });
        let calibration = Calibration::parse(&file, "abc").expect("sound");
        let briefly = Features::of(&Arrival {
            system: Some("be brief"),
            ..Arrival::default()
        });
        assert!(calibration.score(&briefly).expect("its own").p_accept > 0.99);
        assert_eq!(calibration.score(&of("hello")), None);
    }

    #[test]
    fn another_models_calibration_and_unsound_ones_are_refused() {
        let wrong = Calibration::parse(&json(|_| ()), "def");
        assert!(matches!(wrong, Err(CalibrationError::OtherModel { .. })));
        type Change = fn(&mut serde_json::Value);
        let changes: [Change; 5] = [
            |fit| fit["features"][0] = "mood".into(),
            |fit| fit["means"] = serde_json::json!([0.0]),
            |fit| fit["scales"][0] = 0.0.into(),
            |fit| fit["scales"][0] = (-1.0).into(),
            |fit| fit["tau_pre"] = 1.5.into(),
        ];
        for change in changes {
            let file = json(|file| change(&mut file["applications"]["default"]));
            let refused = Calibration::parse(&file, "abc");
            assert!(matches!(refused, Err(CalibrationError::Unsound { .. })));
        }
        assert!(Calibration::parse(b"{}", "abc").is_err());
    }
}
