//! Who should answer the requests of which key: the part of the operator's wishes that is read again while
//! the server runs.
//!
//! Clones are the same table, so that whoever decides looks at what holds now; nothing here reads a file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use crate::generation::Policy;

/// Policies of keys. Clones share them.
#[derive(Clone, Default)]
pub struct Policies(Arc<RwLock<Table>>);

#[derive(Debug, Default)]
struct Table {
    policies: BTreeMap<String, Policy>,
    may_widen: BTreeSet<String>,
}

impl Policies {
    /// Holds each key's policy, and the keys whose callers may ask for one that goes further.
    pub fn new(policies: BTreeMap<String, Policy>, may_widen: BTreeSet<String>) -> Self {
        let table = Self::default();
        table.replace(policies, may_widen);
        table
    }

    /// Takes these instead of those held, for every request that is looked at from now on.
    pub fn replace(&self, policies: BTreeMap<String, Policy>, may_widen: BTreeSet<String>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Table {
            policies,
            may_widen,
        };
    }

    /// Who should answer the requests of this key; none where nothing is said of it.
    pub fn policy_of(&self, key: Option<&str>) -> Option<Policy> {
        self.read().policies.get(key?).copied()
    }

    /// Whether callers with this key may ask for a policy that goes further than theirs.
    pub fn may_widen(&self, key: Option<&str>) -> bool {
        key.is_some_and(|key| self.read().may_widen.contains(key))
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.read(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_holder_sees_what_was_read_last() {
        let table = Policies::new(
            [("a".to_owned(), Policy::RemoteOnly)].into(),
            ["a".to_owned()].into(),
        );
        let holder = table.clone();
        assert_eq!(holder.policy_of(Some("a")), Some(Policy::RemoteOnly));
        assert!(holder.may_widen(Some("a")) && !holder.may_widen(Some("b")));
        table.replace(
            [("a".to_owned(), Policy::LocalOnly)].into(),
            BTreeSet::new(),
        );
        assert_eq!(holder.policy_of(Some("a")), Some(Policy::LocalOnly));
        assert!(!holder.may_widen(Some("a")));
        assert_eq!(holder.policy_of(None), None);
    }
}
