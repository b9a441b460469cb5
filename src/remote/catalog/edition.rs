//! One answer of a router's `GET /v1/models`, read leniently.
//!
//! Only what decides something is kept: who offers which model, in what state, at what price, with what abilities.
//! A field that is missing or of an unexpected type is not known; an entry without a name is skipped and counted;
//! a provider nobody has heard of is a name like any other. Reading never panics and never guesses a price.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use serde_json::{Map, Number, Value};
use sha2::{Digest, Sha256};

use crate::remote::Price;

/// Prices above this many pico-USD a token (10,000 USD per million) are mistakes.
const MOST_PUSD: u64 = 10_000_000_000;

/// A provider that bills seconds of computing, so that a price by tokens says nothing about its bill.
const BILLED_BY_SECONDS: &str = "hf-inference";

/// One provider's offer of one model.
#[derive(Debug, Clone, PartialEq)]
pub struct Offer {
    /// The provider's name, as a request pins it.
    pub provider: Arc<str>,
    /// Whether it serves; an entry that says nothing of it does.
    pub live: bool,
    /// Tokens of prompt and answer together.
    pub context_length: Option<u32>,
    /// What tokens cost; none where the listing is missing, zero, negative or absurd.
    pub listed: Option<Price>,
    /// Whether tokens are free for the time being.
    pub is_free: bool,
    /// Whether functions may be called.
    pub tools: Option<bool>,
    /// Whether JSON Schemas are kept to.
    pub structured_output: Option<bool>,
    /// Time to the first token when it was last measured, in milliseconds.
    pub first_token_ms: Option<f64>,
    /// Tokens a second when it was last measured.
    pub throughput: Option<f64>,
    /// Whether the provider made the model.
    pub is_model_author: bool,
}

/// One reading of the whole catalogue.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Edition {
    models: BTreeMap<String, Vec<Offer>>,
    skipped: usize,
    priced: usize,
    revision: Arc<str>,
}

impl Edition {
    /// Reads the catalogue: `{"data": [model]}`, or the list alone. None if it is neither.
    pub fn read(document: &Value) -> Option<Self> {
        let list = match document {
            Value::Array(list) => list,
            Value::Object(object) => object.get("data")?.as_array()?,
            _ => return None,
        };
        let mut models = BTreeMap::<String, Vec<Offer>>::new();
        let mut skipped = 0;
        for entry in list {
            let Some((id, offers)) = model(entry, &mut skipped) else {
                skipped += 1;
                continue;
            };
            models.entry(id).or_default().extend(offers);
        }
        let all = models.values().flatten();
        let priced = all.filter(|o| o.listed.is_some() || o.is_free).count();
        let revision = revision(&models);
        Some(Self {
            models,
            skipped,
            priced,
            revision,
        })
    }

    /// Who offers a model; none where nobody does.
    pub fn offers(&self, model: &str) -> &[Offer] {
        self.models.get(model).map_or(&[], Vec::as_slice)
    }

    /// Models in it.
    pub fn models(&self) -> usize {
        self.models.len()
    }

    /// Offers whose price is known.
    pub fn priced(&self) -> usize {
        self.priced
    }

    /// Entries that could not be read.
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    /// A short fingerprint of what it says, for ledgers: the same offers give the same one.
    pub fn revision(&self) -> &Arc<str> {
        &self.revision
    }
}

fn model(entry: &Value, skipped: &mut usize) -> Option<(String, Vec<Offer>)> {
    let entry = entry.as_object()?;
    let id = text(entry, "id")?.to_owned();
    let providers = entry.get("providers").and_then(Value::as_array);
    let mut offers = Vec::new();
    for provider in providers.into_iter().flatten() {
        match provider.as_object().and_then(offer) {
            Some(offer) => offers.push(offer),
            None => *skipped += 1,
        }
    }
    Some((id, offers))
}

fn offer(entry: &Map<String, Value>) -> Option<Offer> {
    let provider: Arc<str> = text(entry, "provider")?.into();
    let flag = |name: &str| entry.get(name).and_then(Value::as_bool);
    let measure = |name: &str| {
        let number = entry.get(name).and_then(Value::as_f64);
        number.filter(|n| n.is_finite() && *n > 0.0)
    };
    let by_tokens = &*provider != BILLED_BY_SECONDS;
    let pricing = entry.get("pricing").and_then(Value::as_object);
    Some(Offer {
        live: entry.get("status").is_none_or(|status| status == "live"),
        context_length: entry
            .get("context_length")
            .and_then(Value::as_u64)
            .and_then(|n| u32::try_from(n).ok())
            .filter(|n| *n > 0),
        listed: pricing.filter(|_| by_tokens).and_then(price),
        is_free: flag("is_free") == Some(true),
        tools: flag("supports_tools"),
        structured_output: flag("supports_structured_output"),
        first_token_ms: measure("first_token_latency_ms"),
        throughput: measure("throughput"),
        is_model_author: flag("is_model_author") == Some(true),
        provider,
    })
}

fn text<'a>(entry: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    let text = entry.get(name)?.as_str()?;
    (!text.is_empty()).then_some(text)
}

/// Both prices, or none. Zero for both is no price: who serves for nothing says so in `is_free`.
fn price(pricing: &Map<String, Value>) -> Option<Price> {
    // A price in quotes is not read: catalogues of others quote prices of one token, a million times smaller.
    let side = |name: &str| match pricing.get(name)? {
        Value::Number(number) => pusd(number),
        _ => None,
    };
    let price = Price {
        input_pusd: side("input")?,
        cached_pusd: None,
        output_pusd: side("output")?,
    };
    (price.input_pusd + price.output_pusd > 0).then_some(price)
}

/// USD per million tokens as pico-USD a token, exact to six decimals and rounded up beyond.
///
/// The number's shortest decimal text that reads back as the same number is taken as what the catalogue wrote,
/// which holds for anything of up to 15 digits. None for what is negative or absurd.
pub fn pusd(number: &Number) -> Option<u64> {
    let text = number.to_string();
    let (digits, exponent) = match text.split_once(['e', 'E']) {
        Some((digits, exponent)) => (digits, exponent.parse::<i32>().ok()?),
        None => (text.as_str(), 0),
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    // The sign of a negative number is no digit, so that it ends here.
    let all = whole.bytes().chain(part.bytes());
    let mut value = 0_u128;
    for digit in all {
        let digit = char::from(digit).to_digit(10)?;
        value = value.checked_mul(10)?.checked_add(u128::from(digit))?;
    }
    if value == 0 {
        return Some(0);
    }
    let places = exponent
        .checked_sub(i32::try_from(part.len()).ok()?)?
        .checked_add(6)?;
    let pusd = if places >= 0 {
        value.checked_mul(10_u128.checked_pow(places.unsigned_abs())?)?
    } else {
        match 10_u128.checked_pow(places.unsigned_abs()) {
            Some(divisor) => value.div_ceil(divisor),
            None => 1,
        }
    };
    u64::try_from(pusd).ok().filter(|pusd| *pusd <= MOST_PUSD)
}

fn revision(models: &BTreeMap<String, Vec<Offer>>) -> Arc<str> {
    let mut hash = Sha256::new();
    for (id, offers) in models {
        hash.update(id.as_bytes());
        for offer in offers {
            let price = offer.listed.unwrap_or(Price::FREE);
            hash.update(format!(
                "\n{}\t{}\t{:?}\t{}\t{}\t{}\t{:?}\t{:?}",
                offer.provider,
                offer.live,
                offer.context_length,
                price.input_pusd,
                price.output_pusd,
                offer.is_free,
                offer.tools,
                offer.structured_output,
            ));
        }
        hash.update(b"\n\n");
    }
    let mut name = String::new();
    for byte in &hash.finalize()[..6] {
        // Writing to a string cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    name.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn number(text: &str) -> Number {
        serde_json::from_str(text).expect("a number")
    }

    #[test]
    fn prices_are_exact_and_mistakes_are_none() {
        let table = [
            ("0.15", Some(150_000)),
            ("3", Some(3_000_000)),
            ("0.1", Some(100_000)),
            ("1.1", Some(1_100_000)),
            ("0.000001", Some(1)),
            ("1e-7", Some(1)),
            ("1e-300", Some(1)),
            ("0.0000015", Some(2)),
            ("0", Some(0)),
            ("0.0", Some(0)),
            ("10000", Some(MOST_PUSD)),
            ("10000.000001", None),
            ("1e300", None),
            ("18446744073709551615", None),
            ("-0.15", None),
            ("-1", None),
        ];
        for (text, expected) in table {
            assert_eq!(pusd(&number(text)), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_price_of_six_decimals_is_read_exactly(pico in 0..=MOST_PUSD) {
            let text = format!("{}.{:06}", pico / 1_000_000, pico % 1_000_000);
            prop_assert_eq!(pusd(&number(&text)), Some(pico));
        }

        #[test]
        fn no_number_panics_or_reads_low(n in prop::num::f64::ANY) {
            if let Some(number) = Number::from_f64(n)
                && let Some(pusd) = pusd(&number)
            {
                prop_assert!(n >= 0.0);
                prop_assert!(pusd as f64 >= (n * 1e6).floor());
            }
        }
    }

    #[test]
    fn what_is_not_understood_is_skipped_and_counted_and_the_rest_stays() {
        let document = json!({"object": "list", "data": [
            {"id": "a/m", "surprise": {"x": [1]}, "providers": [
                {"provider": "nobody-heard-of", "status": "live", "context_length": 32768, "pricing": {"input": 0.1, "output": 0.4},
                 "supports_tools": true, "supports_structured_output": false, "first_token_latency_ms": 210, "throughput": 88.5, "is_model_author": false},
                {"provider": "strange", "status": "error", "context_length": "long", "pricing": {"input": "0.0000001", "output": 1},
                 "supports_tools": "yes", "throughput": -4, "is_free": 1},
                {"provider": "bare"},
                {"status": "live"},
                17,
            ]},
            {"id": "a/none"},
            {"id": 4, "providers": []},
            null,
        ]});
        let edition = Edition::read(&document).expect("a catalogue");
        assert_eq!(
            (edition.models(), edition.skipped(), edition.priced()),
            (2, 4, 1)
        );
        let [good, strange, bare] = edition.offers("a/m") else {
            panic!("three offers: {:?}", edition.offers("a/m"));
        };
        let price = good.listed.expect("a price");
        assert_eq!((price.input_pusd, price.output_pusd), (100_000, 400_000));
        assert_eq!(
            (good.tools, good.structured_output),
            (Some(true), Some(false))
        );
        assert!(!strange.live && strange.listed.is_none() && !strange.is_free);
        assert_eq!((strange.tools, strange.throughput), (None, None));
        assert!(bare.live && bare.context_length.is_none());
        assert!(edition.offers("a/none").is_empty() && edition.offers("b").is_empty());
    }

    #[test]
    fn a_price_of_nothing_and_a_price_of_seconds_are_no_prices() {
        let read = |provider: &str, pricing: Value| {
            let document =
                json!([{"id": "m", "providers": [{"provider": provider, "pricing": pricing}]}]);
            Edition::read(&document).expect("a catalogue").offers("m")[0].listed
        };
        assert_eq!(read("together", json!({"input": 0, "output": 0.0})), None);
        assert_eq!(read("together", json!({"input": 1})), None);
        assert_eq!(read("hf-inference", json!({"input": 1, "output": 1})), None);
        assert!(read("together", json!({"input": 0, "output": 0.5})).is_some());
    }

    #[test]
    fn a_revision_follows_what_is_said_and_nothing_else() {
        let read = |price: f64, seen: f64| {
            let offer = json!({"provider": "p", "pricing": {"input": price, "output": 1}, "throughput": seen});
            Edition::read(&json!([{"id": "m", "providers": [offer]}])).expect("a catalogue")
        };
        assert_eq!(read(0.5, 10.0).revision(), read(0.5, 20.0).revision());
        assert_ne!(read(0.5, 10.0).revision(), read(0.6, 10.0).revision());
        assert_eq!(read(0.5, 10.0).revision().len(), 12);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let word = prop_oneof![
            Just("id".to_owned()),
            Just("data".to_owned()),
            Just("providers".to_owned()),
            Just("provider".to_owned()),
            Just("pricing".to_owned()),
            Just("input".to_owned()),
            Just("output".to_owned()),
            Just("status".to_owned()),
            Just("context_length".to_owned()),
            "[a-z]{0,3}",
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            word.clone().prop_map(Value::from),
        ];
        leaf.prop_recursive(6, 64, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((word.clone(), inner), 0..6)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_json_is_read_or_refused_without_a_panic(document in any_json()) {
            if let Some(edition) = Edition::read(&document) {
                prop_assert!(edition.revision().len() == 12);
            }
            let wrapped = json!({"data": [{"id": "m", "providers": [document]}]});
            prop_assert!(Edition::read(&wrapped).is_some());
        }
    }
}
