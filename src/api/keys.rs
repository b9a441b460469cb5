//! Keys of callers: how one is made, what is kept of it, and how one that is shown is recognised.
//!
//! A key reads `sk-sconce-<id>-<secret>`: 64 random bits that say which key it is, and 256 random bits that
//! prove it. The server keeps `sha256:<id>:<digest>`, where the id is also the salt of the digest. One round
//! of a fast hash is right here, unlike for passwords: nobody can try 2^256 secrets, so making each try slow
//! would protect nothing and cost every request. The id is no secret and finds the entry; the secret is
//! compared by its digest in constant time, so that an answer's time says nothing about it.
//!
//! Nothing here prints a secret or a digest.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};

use chrono::{DateTime, Utc};
use rand_core::{OsRng, TryRngCore};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::limits::Limits;
use super::routing::Routed;
use crate::generation::Tenant;

/// Every key begins with this word, so that leaked ones can be searched for.
const PREFIX: &str = "sk-sconce-";
const SCHEME: &str = "sha256";
const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 32;

/// Which key it is, and the salt of its digest; no secret.
type KeyId = [u8; ID_BYTES];
type Sha256Digest = [u8; 32];

/// One secret for all callers, as TGI has it; its text is not kept.
#[derive(Clone)]
pub struct ApiKey(Sha256Digest);

impl ApiKey {
    /// Takes a key. Errors: it is empty or cannot stand in a header.
    pub fn new(key: &str) -> Result<Self, &'static str> {
        if key.is_empty() || !key.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("api_key must be visible ASCII characters without spaces");
        }
        Ok(Self(Sha256::digest(key).into()))
    }

    /// Digests are compared, so that the time taken does not depend on the key's length either.
    fn matches(&self, shown: &[u8]) -> bool {
        let shown: Sha256Digest = Sha256::digest(shown).into();
        self.0.ct_eq(&shown).into()
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// What is kept of a key.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyHash {
    id: KeyId,
    digest: Sha256Digest,
}

impl KeyHash {
    /// Makes a key; returns its text, which is shown once and never kept, and what is kept of it.
    ///
    /// Errors: the operating system gives no random numbers.
    pub fn generate() -> Result<(String, Self), String> {
        let mut id = KeyId::default();
        let mut secret = [0; SECRET_BYTES];
        let mut rng = OsRng;
        rng.try_fill_bytes(&mut id)
            .and_then(|()| rng.try_fill_bytes(&mut secret))
            .map_err(|e| format!("no random numbers: {e}"))?;
        let secret = hex(&secret);
        let digest = digest(&id, secret.as_bytes());
        let key = format!("{PREFIX}{}-{secret}", hex(&id));
        Ok((key, Self { id, digest }))
    }

    /// As it stands in a settings file.
    pub fn to_text(&self) -> String {
        format!("{SCHEME}:{}:{}", hex(&self.id), hex(&self.digest))
    }

    fn matches(&self, secret: &[u8]) -> bool {
        digest(&self.id, secret).ct_eq(&self.digest).into()
    }
}

impl FromStr for KeyHash {
    /// The text itself is left out of it: somebody may have put a secret there.
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (id, digest) = text
                .strip_prefix(SCHEME)?
                .strip_prefix(':')?
                .split_once(':')?;
            Some(Self {
                id: unhex(id.as_bytes())?,
                digest: unhex(digest.as_bytes())?,
            })
        };
        parse().ok_or(
            "is not `sha256:<16 hex digits>:<64 hex digits>`; `sconce key new` makes keys and their hashes",
        )
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash(…)")
    }
}

/// What one caller may take; absent means no limit of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeyLimits {
    /// Requests a minute in the long run.
    pub requests_per_minute: Option<NonZeroU32>,
    /// Requests at once after a pause; as many as a minute's without it.
    pub burst: Option<NonZeroU32>,
    /// Requests that run at the same time.
    pub max_concurrent_requests: Option<NonZeroU32>,
}

/// One key as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Whom the key was given to.
    pub name: String,
    /// What is kept of it.
    pub hash: KeyHash,
    /// Whose prefix cache its requests share.
    pub tenant: Tenant,
    /// What its caller may take.
    pub limits: KeyLimits,
    /// From when on it is refused.
    pub expires: Option<DateTime<Utc>>,
    /// Whether its caller runs this server, and may see what others use.
    pub admin: bool,
}

/// Who calls. Handlers take it as an argument.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// The key's name; none without one.
    pub(super) name: Option<Arc<str>>,
    /// Whose request it is.
    pub(super) tenant: Tenant,
    /// Whether it runs this server.
    pub(super) admin: bool,
    /// What it says about routing.
    pub(super) routed: Routed,
    /// What the caller may take and has taken; none if it has no limits of its own.
    pub(super) limits: Option<Arc<Limits>>,
}

impl Caller {
    /// A caller without a name: of an open server or an open route, or with the one key that all share.
    pub(super) fn anonymous() -> Self {
        Self {
            name: None,
            tenant: Tenant::anonymous(),
            admin: false,
            routed: Routed::default(),
            limits: None,
        }
    }
}

/// One key as the server holds it.
#[derive(Debug)]
struct Entry {
    key: Key,
    caller: Caller,
}

/// All keys that open the door; clones share them.
#[derive(Debug, Clone, Default)]
pub struct KeyRing {
    api_key: Option<ApiKey>,
    named: Arc<RwLock<Named>>,
}

#[derive(Debug, Default)]
struct Named {
    entries: HashMap<KeyId, Entry>,
    /// Whether there ever was one: a running server never opens its door because the last key is revoked.
    seen: bool,
}

impl KeyRing {
    /// Holds the one unnamed key, if there is one, and the named ones, whose hashes differ.
    pub fn new(api_key: Option<ApiKey>, keys: Vec<Key>) -> Self {
        let ring = Self {
            api_key,
            named: Arc::default(),
        };
        ring.replace(keys);
        ring
    }

    /// Takes these named keys instead of those held; what an unchanged key has used of its limits stays
    /// used.
    pub fn replace(&self, keys: Vec<Key>) {
        let mut named = self.named.write().unwrap_or_else(PoisonError::into_inner);
        named.seen |= !keys.is_empty();
        let mut old = std::mem::take(&mut named.entries);
        let entries = keys.into_iter().map(|key| {
            let id = key.hash.id;
            let kept = old.remove(&id).filter(|entry| entry.key == key);
            let entry = kept.unwrap_or_else(|| Entry {
                caller: Caller {
                    name: Some(key.name.as_str().into()),
                    routed: Routed::default(),
                    tenant: key.tenant.clone(),
                    admin: key.admin,
                    limits: Some(Arc::new(Limits::new(&key.name, key.limits))),
                },
                key,
            });
            (id, entry)
        });
        named.entries = entries.collect();
    }

    /// Whether everyone may call.
    pub(super) fn is_open(&self) -> bool {
        self.api_key.is_none()
            && !self
                .named
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .seen
    }

    /// Whose key this is, at a time.
    pub(super) fn caller(&self, shown: &[u8], now: DateTime<Utc>) -> Option<Caller> {
        let named = self.named.read().unwrap_or_else(PoisonError::into_inner);
        if self.api_key.as_ref().is_some_and(|key| key.matches(shown)) {
            // Where there is no other, it is the operator's own.
            return Some(Caller {
                admin: !named.seen,
                ..Caller::anonymous()
            });
        }
        let (id, secret) = split(shown)?;
        let entry = named.entries.get(&id)?;
        let expired = entry.key.expires.is_some_and(|end| now >= end);
        (entry.key.hash.matches(secret) && !expired).then(|| entry.caller.clone())
    }
}

/// The id and the secret of a key's text.
fn split(shown: &[u8]) -> Option<(KeyId, &[u8])> {
    let (id, secret) = shown
        .strip_prefix(PREFIX.as_bytes())?
        .split_at_checked(2 * ID_BYTES)?;
    Some((unhex(id)?, secret.strip_prefix(b"-")?))
}

/// Salt, then secret; both have fixed lengths, so nothing can stand for something else.
fn digest(id: &KeyId, secret: &[u8]) -> Sha256Digest {
    Sha256::new()
        .chain_update(id)
        .chain_update(secret)
        .finalize()
        .into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Exactly `N` bytes in lower-case hexadecimal digits.
fn unhex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use proptest::prelude::*;

    use super::*;

    fn key(name: &str, hash: KeyHash) -> Key {
        Key {
            name: name.to_owned(),
            hash,
            tenant: Tenant(name.into()),
            limits: KeyLimits::default(),
            admin: false,
            expires: None,
        }
    }

    fn tenant(ring: &KeyRing, shown: &str) -> Option<String> {
        let caller = ring.caller(shown.as_bytes(), Utc::now())?;
        Some(caller.tenant.0.to_string())
    }

    #[test]
    fn only_the_exact_key_matches_and_it_is_not_printed() {
        let key = ApiKey::new("s3cret").expect("a sound key");
        assert!(key.matches(b"s3cret"));
        assert!(!key.matches(b"S3CRET") && !key.matches(b"s3cre") && !key.matches(b""));
        assert!(!format!("{key:?}").contains("s3cret"));
        assert!(ApiKey::new("").is_err());
    }

    #[test]
    fn each_key_opens_for_its_own_tenant_and_nothing_else_does() {
        let (first, first_hash) = KeyHash::generate().expect("random numbers");
        let (second, second_hash) = KeyHash::generate().expect("random numbers");
        let api_key = ApiKey::new("one-for-all").ok();
        let ring = KeyRing::new(
            api_key,
            vec![key("a", first_hash.clone()), key("b", second_hash.clone())],
        );
        assert_eq!(tenant(&ring, &first).as_deref(), Some("a"));
        assert_eq!(tenant(&ring, &second).as_deref(), Some("b"));
        assert_eq!(tenant(&ring, "one-for-all").as_deref(), Some("anonymous"));
        let crossed = format!("{}{}", &first[..27], &second[27..]);
        let digest = first_hash
            .to_text()
            .replace("sha256:", PREFIX)
            .replace(':', "-");
        for wrong in [
            &first[..first.len() - 1],
            &format!("{first}0"),
            &first.to_uppercase(),
            &crossed,
            &first_hash.to_text(),
            &digest,
            PREFIX,
            "",
        ] {
            assert_eq!(tenant(&ring, wrong), None, "{wrong}");
        }
        let printed = format!("{ring:?}");
        for hidden in [&first[27..], &first_hash.to_text()[24..], "one-for-all"] {
            assert!(!printed.contains(hidden), "{printed}");
        }
    }

    #[test]
    fn an_expired_key_opens_nothing() {
        let (text, hash) = KeyHash::generate().expect("random numbers");
        let end = Utc::now();
        let ring = KeyRing::new(
            None,
            vec![Key {
                expires: Some(end),
                ..key("a", hash)
            }],
        );
        let at = |time| ring.caller(text.as_bytes(), time).is_some();
        assert!(at(end - TimeDelta::seconds(1)));
        assert!(!at(end) && !at(end + TimeDelta::seconds(1)));
    }

    #[test]
    fn a_revoked_key_is_forgotten_and_the_door_stays_shut() {
        let (text, hash) = KeyHash::generate().expect("random numbers");
        let ring = KeyRing::new(None, Vec::new());
        assert!(ring.is_open());
        ring.replace(vec![key("a", hash.clone())]);
        let before = ring.caller(text.as_bytes(), Utc::now()).expect("a caller");
        ring.replace(vec![key("a", hash)]);
        let after = ring.caller(text.as_bytes(), Utc::now()).expect("a caller");
        let (before, after) = (before.limits.expect("some"), after.limits.expect("some"));
        assert!(Arc::ptr_eq(&before, &after), "what is used stays used");
        ring.replace(Vec::new());
        assert_eq!(tenant(&ring, &text), None);
        assert!(!ring.is_open());
    }

    proptest! {
        #[test]
        fn hashes_read_as_they_are_written(id: KeyId, digest: Sha256Digest) {
            let hash = KeyHash { id, digest };
            prop_assert_eq!(hash.to_text().parse(), Ok(hash));
        }

        #[test]
        fn no_other_text_is_a_hash(text in "(sha256:)?[0-9a-fA-F]{14,18}:?[0-9a-f]{62,66}") {
            let sound = text.len() == 88
                && text.starts_with("sha256:")
                && text.as_bytes()[23] == b':'
                && !text.bytes().any(|b| b.is_ascii_uppercase());
            prop_assert_eq!(text.parse::<KeyHash>().is_ok(), sound);
        }
    }
}
