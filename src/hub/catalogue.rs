//! The catalogue: small models that are known to be served well, a card for each in `models/`, part of the binary.
//!
//! A card's name stands for its first variant wherever a model is named; `auto` stands for the most capable one that
//! this machine's memory holds.

use std::sync::LazyLock;

use serde::Deserialize;

use super::error::{HubError, size};
use super::fetch::find;
use super::name::ModelName;
use super::settings::HubSettings;

/// A model of the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// The file's name: what the model may be called by.
    #[serde(skip)]
    pub name: &'static str,
    /// What people call it.
    pub title: String,
    /// Its licence's identifier at the hub.
    pub license: String,
    /// Numbers in its weights.
    pub parameters: u64,
    /// Tokens of prompt and answer together.
    pub context: u64,
    layers: u64,
    kv_heads: u64,
    head_dim: u64,
    /// What its chat template does.
    pub notes: String,
    /// A larger model for what is too hard for it, as upstreams call it.
    pub remote: Option<String>,
    /// Its files, the one to take first.
    #[serde(rename = "variant")]
    pub variants: Vec<Variant>,
}

/// A model's weights in one format.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// What most of its weights are in.
    pub quantisation: String,
    /// The repository, and which of its GGUF files.
    pub model: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// Bytes of the weights.
    pub weight_bytes: u64,
}

/// The name of whatever model of the catalogue fits this machine.
pub const AUTO: &str = "auto";
/// Tokens of KV cache that memory needs are said for.
pub const CONTEXT: u64 = 4096;

impl Card {
    /// Bytes of a variant's weights and of a KV cache of 4,096 tokens in 32-bit floats.
    pub fn memory_bytes(&self, variant: &Variant) -> u64 {
        let per_token = 2 * self.layers * self.kv_heads * self.head_dim * 4;
        variant.weight_bytes + per_token * self.context.min(CONTEXT)
    }
}

const FILES: [(&str, &str); 10] = [
    (
        "llama-3.2-1b",
        include_str!("../../models/llama-3.2-1b.toml"),
    ),
    (
        "llama-3.2-3b",
        include_str!("../../models/llama-3.2-3b.toml"),
    ),
    (
        "qwen2.5-0.5b",
        include_str!("../../models/qwen2.5-0.5b.toml"),
    ),
    (
        "qwen2.5-1.5b",
        include_str!("../../models/qwen2.5-1.5b.toml"),
    ),
    ("qwen3-0.6b", include_str!("../../models/qwen3-0.6b.toml")),
    ("qwen3-1.7b", include_str!("../../models/qwen3-1.7b.toml")),
    ("qwen3-4b", include_str!("../../models/qwen3-4b.toml")),
    (
        "smollm2-1.7b",
        include_str!("../../models/smollm2-1.7b.toml"),
    ),
    (
        "smollm2-135m",
        include_str!("../../models/smollm2-135m.toml"),
    ),
    (
        "smollm2-360m",
        include_str!("../../models/smollm2-360m.toml"),
    ),
];

/// Every card, the smallest model first.
pub fn cards() -> &'static [Card] {
    #[expect(
        clippy::expect_used,
        reason = "the cards are part of the binary, and a test reads them"
    )]
    static CARDS: LazyLock<Vec<Card>> = LazyLock::new(|| {
        let cards = FILES.iter().map(|(name, text)| {
            let card: Card = toml::from_str(text).expect("a card of the catalogue");
            Card { name, ..card }
        });
        let mut cards: Vec<Card> = cards.collect();
        cards.sort_by_key(|card| card.parameters);
        cards
    });
    &CARDS
}

/// A model as a name leads to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The repository, and which of its GGUF files.
    pub model: ModelName,
    /// The revision of its card, if it has one.
    pub revision: Option<String>,
    /// How the name led there, if that is not plain.
    pub why: Option<String>,
}

/// Reads a name: a card's, or one at the hub.
///
/// Errors: a text that is neither.
pub fn named(text: &str) -> Result<Named, HubError> {
    match cards()
        .iter()
        .find(|card| card.name.eq_ignore_ascii_case(text))
    {
        Some(card) => of_card(card, &card.variants[0], None),
        None => Ok(Named {
            model: text.parse()?,
            revision: None,
            why: None,
        }),
    }
}

fn of_card(card: &Card, variant: &Variant, why: Option<String>) -> Result<Named, HubError> {
    let why = why.unwrap_or_else(|| {
        format!(
            "`{}` is {} in {} ({})",
            card.name, card.title, variant.quantisation, card.license
        )
    });
    Ok(Named {
        model: variant.model.parse()?,
        revision: Some(variant.revision.clone()),
        why: Some(why),
    })
}

/// As [`choose`], of what the settings let be had: offline only what is in the cache.
///
/// Errors: as [`choose`].
pub fn choose_for(settings: &HubSettings, free_bytes: u64) -> Result<Named, HubError> {
    choose(free_bytes, |named| {
        !settings.offline || find(settings, &named.model, named.revision.as_deref()).is_ok()
    })
}

/// Chooses the most capable model of the catalogue for this machine: of those that may be had, the one with most
/// parameters whose weights and KV cache take at most half of the memory that is free.
///
/// Errors: none fits, or none may be had, with the numbers.
pub fn choose(free_bytes: u64, may_be_had: impl Fn(&Named) -> bool) -> Result<Named, HubError> {
    let room = free_bytes / 2;
    let mut fits = false;
    let mut larger: Option<(&Card, u64)> = None;
    for card in cards().iter().rev() {
        let needs = card
            .variants
            .iter()
            .map(|variant| (variant, card.memory_bytes(variant)));
        let fitting = needs.clone().filter(|(_, need)| *need <= room);
        for (variant, need) in fitting {
            fits = true;
            let why = format!(
                "`auto` takes {} in {}: {} of memory are free, and with a KV cache of {CONTEXT} tokens it needs {}{}",
                card.title,
                variant.quantisation,
                size(free_bytes),
                size(need),
                larger.map_or_else(String::new, |(card, need)| format!(
                    ", where {} would need {}, more than half of it",
                    card.title,
                    size(need)
                )),
            );
            let named = of_card(card, variant, Some(why))?;
            if may_be_had(&named) {
                return Ok(named);
            }
        }
        let least = needs.map(|(_, need)| need).min();
        if let Some(need) = least.filter(|need| *need > room) {
            larger = Some((card, need));
        }
    }
    let problem = match larger {
        Some((card, need)) if !fits => format!(
            "no model of the catalogue fits: {} of memory are free, half of it may be taken, and {} needs {}",
            size(free_bytes),
            card.title,
            size(need)
        ),
        _ => "no model of the catalogue that fits this machine is in the cache, and offline none can be fetched; `sconce list --available` names them".to_owned(),
    };
    Err(HubError::NoneFits(problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_card_of_the_folder_is_read_and_sound() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/models");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .expect("the catalogue")
            .flatten()
            .filter_map(|entry| {
                entry
                    .file_name()
                    .to_str()?
                    .strip_suffix(".toml")
                    .map(str::to_owned)
            })
            .collect();
        files.sort();
        let mut known = FILES.map(|(name, _)| name.to_owned());
        known.sort();
        assert_eq!(files, known);
        for card in cards() {
            assert!(!card.variants.is_empty(), "{}", card.name);
            for variant in &card.variants {
                let name: ModelName = variant.model.parse().expect(&variant.model);
                assert_eq!(
                    name.tag().is_some(),
                    variant.model.contains("GGUF"),
                    "{}",
                    card.name
                );
                let bits = variant.weight_bytes as f64 * 8.0 / card.parameters as f64;
                assert!(
                    (4.5..=16.01).contains(&bits),
                    "{}: {bits} bits a weight",
                    card.name
                );
                assert!(
                    name.tag().is_none_or(|tag| tag == variant.quantisation),
                    "{}",
                    card.name
                );
            }
        }
    }

    #[test]
    fn auto_takes_the_most_capable_model_that_fits_and_says_why() {
        let all = |_: &Named| true;
        let chosen = |gib: u64| choose(gib << 30, all).map(|named| named.model.to_string());
        assert_eq!(
            chosen(64).ok().as_deref(),
            Some("Qwen/Qwen3-4B-GGUF:Q4_K_M")
        );
        assert_eq!(
            chosen(6).ok().as_deref(),
            Some("bartowski/Llama-3.2-3B-Instruct-GGUF:Q4_K_M")
        );
        assert_eq!(
            chosen(1).ok().as_deref(),
            Some("bartowski/SmolLM2-135M-Instruct-GGUF:Q8_0")
        );
        let why = choose(6 << 30, all)
            .expect("one that fits")
            .why
            .expect("a reason");
        assert!(
            why.contains("6.00 GiB of memory are free") && why.contains("Qwen3 4B would need"),
            "{why}"
        );
        let small = choose(100 << 20, all).expect_err("none").to_string();
        assert!(
            small.contains("100.00 MiB of memory are free, half of it may be taken, and SmolLM2 135M Instruct needs"),
            "{small}"
        );
        let cached = |named: &Named| named.model.repo() == "Qwen/Qwen3-0.6B-GGUF";
        assert_eq!(
            choose(64 << 30, cached)
                .expect("the cached one")
                .model
                .to_string(),
            "Qwen/Qwen3-0.6B-GGUF:Q8_0"
        );
        let none = choose(64 << 30, |_| false).expect_err("none").to_string();
        assert!(none.contains("offline none can be fetched"), "{none}");
    }

    #[test]
    fn names_of_cards_go_before_names_at_the_hub() {
        let card = named("Qwen3-4B").expect("a card");
        assert_eq!(
            (card.model.to_string().as_str(), card.revision.as_deref()),
            ("Qwen/Qwen3-4B-GGUF:Q4_K_M", Some("main"))
        );
        let hub = named("org/name:Q8_0").expect("a name");
        assert_eq!(
            (hub.model.to_string().as_str(), hub.revision, hub.why),
            ("org/name:Q8_0", None, None)
        );
        assert!(named("a b").is_err());
    }
}
