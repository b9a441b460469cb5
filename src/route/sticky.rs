//! Where conversations were answered last, so that they stay where their caches are.
//!
//! A bounded map from a conversation's name to a side and a target; the least recently used goes first. It
//! only remembers: whether a place is still feasible is for the decision.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use lru::LruCache;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::generation::Side;

/// Where a conversation was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// On which side.
    pub side: Side,
    /// By which target, on the far one.
    pub target: Option<String>,
}

/// The name of a conversation: a digest, so that the map holds no text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionKey([u8; 32]);

impl SessionKey {
    /// Of the caller's own name for it; equal names of two keys are two conversations.
    pub fn named(key: Option<&str>, session: &str) -> Self {
        Self::of("session", key, &[session])
    }

    /// Of how it begins: its system message and its first user message.
    pub fn opening(key: Option<&str>, system: &str, user: &str) -> Self {
        Self::of("opening", key, &[system, user])
    }

    fn of(kind: &str, key: Option<&str>, parts: &[&str]) -> Self {
        let mut hasher = Sha256::new();
        let key = [kind, key.unwrap_or_default()];
        for part in key.iter().chain(parts) {
            // The length first, so that no two lists of parts read the same.
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        Self(hasher.finalize().into())
    }
}

/// The conversations seen lately.
#[derive(Debug)]
pub struct Sessions {
    places: LruCache<SessionKey, (Place, Instant)>,
    lasts: Duration,
}

impl Sessions {
    /// Remembers at most `capacity` conversations, each for so long after its last answer.
    pub fn new(capacity: NonZeroUsize, lasts: Duration) -> Self {
        Self {
            places: LruCache::new(capacity),
            lasts,
        }
    }

    /// Where a conversation was, if it was lately.
    pub fn find(&mut self, key: &SessionKey, now: Instant) -> Option<Place> {
        let (place, at) = self.places.get(key)?;
        if now.saturating_duration_since(*at) < self.lasts {
            return Some(place.clone());
        }
        self.places.pop(key);
        None
    }

    /// Notes where a conversation was answered.
    pub fn note(&mut self, key: SessionKey, place: Place, now: Instant) {
        self.places.put(key, (place, now));
    }

    /// Forgets a conversation.
    pub fn forget(&mut self, key: &SessionKey) {
        self.places.pop(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place {
            side: Side::Remote,
            target: Some("t".to_owned()),
        }
    }

    #[test]
    fn a_conversation_is_remembered_for_its_time_and_no_longer() {
        let now = Instant::now();
        let mut sessions = Sessions::new(NonZeroUsize::MIN, Duration::from_secs(600));
        let key = SessionKey::named(Some("alice"), "s");
        sessions.note(key, place(), now);
        assert_eq!(sessions.find(&key, now), Some(place()));
        assert_eq!(sessions.find(&key, now + Duration::from_secs(600)), None);
        assert_eq!(sessions.find(&key, now), None);
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let now = Instant::now();
        let capacity = NonZeroUsize::new(2).expect("not zero");
        let mut sessions = Sessions::new(capacity, Duration::from_secs(600));
        let keys = ["a", "b", "c"].map(|name| SessionKey::named(None, name));
        sessions.note(keys[0], place(), now);
        sessions.note(keys[1], place(), now);
        sessions.find(&keys[0], now);
        sessions.note(keys[2], place(), now);
        assert_eq!(sessions.find(&keys[1], now), None);
        assert!(sessions.find(&keys[0], now).is_some());
    }

    #[test]
    fn callers_do_not_share_conversations() {
        let alice = SessionKey::named(Some("alice"), "s");
        assert_ne!(alice, SessionKey::named(Some("bob"), "s"));
        assert_ne!(alice, SessionKey::opening(Some("alice"), "s", ""));
        assert_ne!(
            SessionKey::opening(None, "ab", "c"),
            SessionKey::opening(None, "a", "bc")
        );
    }
}
