//! What of the board outlives a restart. The file itself is its owner's business.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::inner::{Bar, Credential, Why};
use super::{Board, MONTH, RETRIAL};

/// The version of what is saved.
const VERSION: u32 = 1;

/// What outlives a restart: administrative states and parked times, by the wall clock. Breakers start closed.
///
/// Credentials are named by a fingerprint, so that a token that was changed in between is tried at once.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Saved {
    version: u32,
    bars: Vec<SavedBar>,
    parked: Vec<SavedParking>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SavedBar {
    credential: String,
    /// For a paused endpoint; none for the whole credential.
    upstream: Option<String>,
    why: SavedWhy,
    next_trial_ms: u64,
    ends_ms: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SavedWhy {
    AuthFailed,
    Quota,
    Paused,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SavedParking {
    credential: String,
    provider: String,
    until_ms: u64,
}

impl Board {
    /// What should outlive a restart.
    pub fn save(&self, now: Instant) -> Saved {
        let inner = self.lock();
        let ms = |then: Instant| inner.unix_ms(then);
        let mut bars = Vec::new();
        let mut keep = |bar: Option<&Bar>, credential: usize, upstream: Option<&Arc<str>>| {
            let Some(bar) = bar.filter(|bar| !bar.is_over(now)) else {
                return;
            };
            let why = match bar.why {
                Why::AuthFailed => SavedWhy::AuthFailed,
                Why::Quota => SavedWhy::Quota,
                Why::Paused => SavedWhy::Paused,
                // Settings may be mended while the server is down; the first attempt tells.
                Why::Misconfigured(_) => return,
            };
            bars.push(SavedBar {
                credential: inner.credentials[credential].fingerprint.clone(),
                upstream: upstream.map(|name| name.to_string()),
                why,
                next_trial_ms: ms(bar.next_trial),
                ends_ms: bar.ends.map(ms),
            });
        };
        for (place, credential) in inner.credentials.iter().enumerate() {
            keep(credential.bar.as_ref(), place, None);
        }
        for upstream in &inner.upstreams {
            keep(
                upstream.bar.as_ref(),
                upstream.credential,
                Some(&upstream.name),
            );
        }
        let parked = inner.accounts.iter().filter_map(|account| {
            Some(SavedParking {
                credential: inner.credentials[account.credential].fingerprint.clone(),
                provider: account.provider.to_string(),
                until_ms: ms(account.parking.until(now)?),
            })
        });
        Saved {
            version: VERSION,
            parked: parked.collect(),
            bars,
        }
    }

    /// Takes over what was saved before a restart. What belongs to credentials or upstreams that are not there
    /// any more is left out, and no time lies further ahead than it could when it was set.
    pub fn restore(&self, saved: &Saved, now: Instant) {
        if saved.version != VERSION {
            return;
        }
        let mut inner = self.lock();
        let now_ms = inner.unix_ms(now);
        let ahead = |ms: u64| Duration::from_millis(ms.saturating_sub(now_ms));
        for saved in &saved.bars {
            let known = |found: &Credential| found.fingerprint == saved.credential;
            let Some(credential) = inner.credentials.iter().position(known) else {
                continue;
            };
            let (why, every) = match saved.why {
                SavedWhy::AuthFailed => (Why::AuthFailed, RETRIAL),
                SavedWhy::Quota => (Why::Quota, inner.parking.quota_recheck),
                SavedWhy::Paused => (Why::Paused, RETRIAL),
            };
            let mut bar = Bar::new(why, every, None, now);
            bar.next_trial = now + ahead(saved.next_trial_ms).min(every);
            bar.ends = saved.ends_ms.map(|ends| now + ahead(ends).min(MONTH));
            match &saved.upstream {
                None => inner.credentials[credential].bar = Some(bar),
                Some(name) => {
                    let mut upstreams = inner.upstreams.iter_mut();
                    if let Some(upstream) = upstreams.find(|up| &*up.name == name.as_str()) {
                        upstream.bar = Some(bar);
                    }
                }
            }
        }
        let most = inner.parking.hint_max + Duration::from_secs(1);
        for saved in &saved.parked {
            let until = now + ahead(saved.until_ms).min(most);
            let inner = &mut *inner;
            let account = inner.accounts.iter_mut().find(|account| {
                inner.credentials[account.credential].fingerprint == saved.credential
                    && *account.provider == *saved.provider
            });
            if let Some(account) = account {
                account.parking.park_until(until);
            }
        }
    }
}
