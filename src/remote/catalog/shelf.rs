//! The last good edition of one router's catalogue, and what it says of a target. Pure: time comes in.
//!
//! A new edition replaces the old one only when it can be read and has not lost more than half of its models or
//! of its prices, since a catalogue that shrinks like that is broken rather than poorer. What is a day old still
//! counts, with a margin on its prices, except that nothing stays free by an old promise.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::edition::{Edition, Offer};
use crate::remote::{Price, ProviderChoice};

/// From this age on an edition is stale.
pub const STALE_AFTER: Duration = Duration::from_secs(24 * 3600);

/// The part of a stale price that is added to it, as a divisor: a quarter.
const STALE_MARGIN: u64 = 4;

/// What a request needs, as far as it matters for who runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Tokens of the prompt, at most.
    pub input_tokens: u32,
    /// Tokens of the answer, at most.
    pub output_tokens: u32,
    /// Whether functions may be called.
    pub tools: bool,
    /// Whether a JSON Schema must be kept to.
    pub structured_output: bool,
}

/// A chat of ordinary length, for when no request is at hand.
impl Default for Shape {
    fn default() -> Self {
        Self {
            input_tokens: 1024,
            output_tokens: 256,
            tools: false,
            structured_output: false,
        }
    }
}

/// What a catalogue says of one target.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Known {
    /// Who will run the model, if one provider is settled on.
    pub provider: Option<Arc<str>>,
    /// What stands behind the model's name and a colon in the request.
    pub suffix: Option<Arc<str>>,
    /// Whether somebody who may be chosen serves it now; none where the catalogue doesn't know the model.
    pub live: Option<bool>,
    /// Tokens of prompt and answer together.
    pub context_length: Option<u32>,
    /// Whether functions may be called.
    pub tools: Option<bool>,
    /// Whether JSON Schemas are kept to.
    pub structured_output: Option<bool>,
    /// What tokens cost, a stale price's margin included.
    pub price: Option<Price>,
    /// Whether that is nothing by a promotion.
    pub is_free: bool,
    /// Time to the first token as the router measured it, once and under any load.
    pub first_token: Option<Duration>,
    /// Whether the edition is a day old.
    pub stale: bool,
    /// Which edition; none without one.
    pub revision: Option<Arc<str>>,
}

/// What a new edition changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// Models in it.
    pub models: usize,
    /// Offers whose price is known.
    pub priced: usize,
    /// Entries that could not be read.
    pub skipped: usize,
    /// Whether it says anything else than the one before.
    pub changed: bool,
}

/// Why an answer is no new edition; the one before stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is no catalogue.
    #[error("it is no list of models")]
    Unreadable,
    /// It offers nothing.
    #[error("it lists no model")]
    Empty,
    /// It lost too much.
    #[error(
        "it lists {has} {what} where there were {had}; a refresh that loses more than half is not believed"
    )]
    Shrunk {
        /// Models or prices.
        what: &'static str,
        /// Before.
        had: usize,
        /// Now.
        has: usize,
    },
}

/// The last good edition.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Shelf {
    held: Option<Held>,
}

#[derive(Debug, Clone, PartialEq)]
struct Held {
    edition: Edition,
    document: Value,
    etag: Option<String>,
    /// When the router last said that this is what it offers.
    confirmed: SystemTime,
}

impl Shelf {
    /// Takes an answer's body as the new edition.
    ///
    /// Errors: why it is not believed; then nothing has changed.
    pub fn apply(
        &mut self,
        body: &[u8],
        etag: Option<String>,
        now: SystemTime,
    ) -> Result<Applied, Refused> {
        let document = serde_json::from_slice(body).map_err(|_| Refused::Unreadable)?;
        self.take(document, etag, now)
    }

    fn take(
        &mut self,
        document: Value,
        etag: Option<String>,
        confirmed: SystemTime,
    ) -> Result<Applied, Refused> {
        let edition = Edition::read(&document).ok_or(Refused::Unreadable)?;
        if edition.models() == 0 {
            return Err(Refused::Empty);
        }
        let before = self.held.as_ref().map(|held| &held.edition);
        if let Some(before) = before {
            let counts = [
                ("models", before.models(), edition.models()),
                ("prices", before.priced(), edition.priced()),
            ];
            for (what, had, has) in counts {
                if has * 2 < had {
                    return Err(Refused::Shrunk { what, had, has });
                }
            }
        }
        let applied = Applied {
            models: edition.models(),
            priced: edition.priced(),
            skipped: edition.skipped(),
            changed: before.is_none_or(|before| before.revision() != edition.revision()),
        };
        self.held = Some(Held {
            edition,
            document,
            etag,
            confirmed,
        });
        Ok(applied)
    }

    /// The router says that nothing has changed (304).
    pub fn confirm(&mut self, now: SystemTime) {
        if let Some(held) = &mut self.held {
            held.confirmed = now;
        }
    }

    /// What marks the edition for the router.
    pub fn etag(&self) -> Option<&str> {
        self.held.as_ref()?.etag.as_deref()
    }

    /// When the router last stood by the edition; none without one.
    pub fn confirmed(&self) -> Option<SystemTime> {
        self.held.as_ref().map(|held| held.confirmed)
    }

    /// The edition.
    pub fn edition(&self) -> Option<&Edition> {
        self.held.as_ref().map(|held| &held.edition)
    }

    /// As it is kept on disk: `{at, etag, list}`, `at` in seconds since 1970; none without an edition.
    pub fn to_document(&self) -> Option<Value> {
        let held = self.held.as_ref()?;
        let at = held.confirmed.duration_since(UNIX_EPOCH).ok()?.as_secs();
        Some(json!({ "at": at, "etag": held.etag, "list": held.document }))
    }

    /// From disk; none where the document is no kept edition.
    pub fn from_document(document: &Value) -> Option<Self> {
        let at = document.get("at")?.as_u64()?;
        let confirmed = UNIX_EPOCH.checked_add(Duration::from_secs(at))?;
        let etag = document.get("etag")?.as_str().map(str::to_owned);
        let mut shelf = Self::default();
        let list = document.get("list")?.clone();
        shelf.take(list, etag, confirmed).ok()?;
        Some(shelf)
    }

    /// Whether the edition is a day old. A clock that has jumped back makes it as stale as one that ran on.
    pub fn is_stale(&self, now: SystemTime) -> bool {
        self.confirmed().is_some_and(|at| {
            let age = now.duration_since(at).unwrap_or_else(|e| e.duration());
            age > STALE_AFTER
        })
    }

    /// What the edition says of a model run by whom `choice` names, for a request of this shape.
    ///
    /// Where the router chooses, the price is the highest of all who may be chosen, and not known as soon as one
    /// of theirs isn't; abilities and context are those that all of them have.
    pub fn look(
        &self,
        model: &str,
        choice: &ProviderChoice,
        shape: &Shape,
        now: SystemTime,
    ) -> Known {
        let mut known = Known {
            suffix: match choice {
                ProviderChoice::Whoever => None,
                ProviderChoice::Pinned(name)
                | ProviderChoice::Policy(name)
                | ProviderChoice::Auto(name) => Some(Arc::clone(name)),
            },
            provider: match choice {
                ProviderChoice::Pinned(name) => Some(Arc::clone(name)),
                _ => None,
            },
            ..Known::default()
        };
        let Some(held) = &self.held else {
            return known;
        };
        let stale = self.is_stale(now);
        let offers = held.edition.offers(model);
        known.stale = stale;
        known.revision = Some(Arc::clone(held.edition.revision()));
        if offers.is_empty() {
            return known;
        }
        let candidates: Vec<&Offer> = match choice {
            ProviderChoice::Pinned(name) => offers.iter().filter(|o| o.provider == *name).collect(),
            ProviderChoice::Auto(policy) => {
                choose(offers, policy, shape, stale).into_iter().collect()
            }
            ProviderChoice::Policy(_) | ProviderChoice::Whoever => {
                offers.iter().filter(|o| o.live).collect()
            }
        };
        if let (ProviderChoice::Auto(_), [chosen]) = (choice, candidates.as_slice()) {
            known.provider = Some(Arc::clone(&chosen.provider));
            known.suffix = known.provider.clone();
        }
        known.live = Some(candidates.iter().any(|o| o.live));
        // Who doesn't say how long a context it serves is taken to serve the shortest that anybody does.
        let shortest = offers.iter().filter_map(|o| o.context_length).min();
        known.context_length = candidates
            .iter()
            .map(|o| o.context_length.or(shortest))
            .min()
            .flatten();
        known.tools = all(candidates.iter().map(|o| o.tools));
        known.structured_output = all(candidates.iter().map(|o| o.structured_output));
        known.price = candidates
            .iter()
            .map(|o| price(o, stale))
            .reduce(highest)
            .flatten();
        known.is_free = known.price == Some(Price::FREE);
        known.first_token = match candidates.as_slice() {
            [one] => one
                .first_token_ms
                .and_then(|ms| Duration::try_from_secs_f64(ms / 1000.0).ok()),
            _ => None,
        };
        known
    }

    /// What a provider's tokens cost, for an answer that another than the pinned one made.
    pub fn price_of(&self, model: &str, provider: &str, now: SystemTime) -> Option<Price> {
        let mut offers = self.edition()?.offers(model).iter();
        price(
            offers.find(|o| &*o.provider == provider)?,
            self.is_stale(now),
        )
    }
}

/// Yes where all say yes, no where one says no, else not known.
fn all(mut answers: impl Iterator<Item = Option<bool>> + Clone) -> Option<bool> {
    if answers.clone().any(|answer| answer == Some(false)) {
        return Some(false);
    }
    let some = answers.clone().next().is_some();
    (some && answers.all(|answer| answer == Some(true))).then_some(true)
}

fn highest(a: Option<Price>, b: Option<Price>) -> Option<Price> {
    let (a, b) = (a?, b?);
    Some(Price {
        input_pusd: a.input_pusd.max(b.input_pusd),
        cached_pusd: None,
        output_pusd: a.output_pusd.max(b.output_pusd),
    })
}

fn price(offer: &Offer, stale: bool) -> Option<Price> {
    let margin = |pusd: u64| match stale {
        true => pusd + pusd.div_ceil(STALE_MARGIN),
        false => pusd,
    };
    match offer.listed {
        Some(listed) => Some(Price {
            input_pusd: margin(listed.input_pusd),
            cached_pusd: None,
            output_pusd: margin(listed.output_pusd),
        }),
        None => (offer.is_free && !stale).then_some(Price::FREE),
    }
}

/// Who runs a request of this shape best, by `fastest` or, whatever else the policy is called, by price.
///
/// Only who serves, can do what the request needs and has room for it. A price that is not known loses against
/// any that is. Ties go to whoever made the model, then by name, so that the same catalogue gives the same choice.
fn choose<'a>(offers: &'a [Offer], policy: &str, shape: &Shape, stale: bool) -> Option<&'a Offer> {
    let tokens = shape.input_tokens.saturating_add(shape.output_tokens);
    let able = |o: &&Offer| {
        o.live
            && o.context_length.is_none_or(|most| tokens <= most)
            && (!shape.tools || o.tools == Some(true))
            && (!shape.structured_output || o.structured_output == Some(true))
    };
    let cost = |o: &Offer| {
        price(o, stale).map_or(u64::MAX, |price| {
            price.cost_nusd(
                u64::from(shape.input_tokens),
                0,
                u64::from(shape.output_tokens),
            )
        })
    };
    offers.iter().filter(able).min_by(|a, b| {
        let by_policy = match policy {
            "fastest" => {
                let speed = |o: &Offer| o.throughput.unwrap_or(0.0);
                let unpriced = |o: &Offer| cost(o) == u64::MAX;
                (unpriced(a).cmp(&unpriced(b))).then(speed(b).total_cmp(&speed(a)))
            }
            _ => cost(a).cmp(&cost(b)),
        };
        by_policy
            .then(b.is_model_author.cmp(&a.is_model_author))
            .then(a.provider.cmp(&b.provider))
    })
}

#[cfg(test)]
#[path = "shelf_tests.rs"]
mod tests;
