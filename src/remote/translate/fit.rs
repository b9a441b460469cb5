//! How well a request fits a target: what is named as degraded, and what stands in the way.

use super::Ineligible;
use crate::remote::config::Fidelity;

/// Collects what is not exact.
#[derive(Debug)]
pub(super) struct Fit {
    lenient: bool,
    degraded: Vec<&'static str>,
}

impl Fit {
    pub(super) fn new(fidelity: Fidelity) -> Self {
        Self {
            lenient: fidelity == Fidelity::Lenient,
            degraded: Vec::new(),
        }
    }

    /// Names something that differs and that no caller is protected from.
    pub(super) fn flag(&mut self, name: &'static str) {
        if !self.degraded.contains(&name) {
            self.degraded.push(name);
        }
    }

    /// Names something that is missing.
    ///
    /// Errors: under the strict fidelity, with the field as the obstacle.
    pub(super) fn lossy(
        &mut self,
        name: &'static str,
        field: &'static str,
        why: impl Into<String>,
    ) -> Result<(), Ineligible> {
        if !self.lenient {
            return Err(Ineligible::new(field, why));
        }
        self.flag(name);
        Ok(())
    }

    pub(super) fn into_names(self) -> Vec<&'static str> {
        self.degraded
    }
}
