//! The last good edition: what replaces it, and what is read from it.

use proptest::prelude::*;

use super::*;

fn at(hours: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000 + hours * 3600)
}

/// A catalogue re-created in the shape of the router's: one model of several providers, and fillers.
fn sample() -> Value {
    json!({"object": "list", "data": [
        {"id": "meta/llama", "object": "model", "created": 1, "owned_by": "meta", "architecture": {"input_modalities": ["text"]},
         "providers": [
            {"provider": "wide", "status": "live", "context_length": 131072, "pricing": {"input": 0.1, "output": 0.9},
             "supports_tools": true, "supports_structured_output": true, "throughput": 60, "is_model_author": false},
            {"provider": "terse", "status": "live", "context_length": 8192, "pricing": {"input": 0.5, "output": 0.5},
             "supports_tools": true, "supports_structured_output": false, "throughput": 90, "is_model_author": false},
            {"provider": "broken", "status": "error", "context_length": 131072, "pricing": {"input": 0.01, "output": 0.01}, "throughput": 900},
        ]},
        {"id": "meta/part", "providers": [
            {"provider": "priced", "status": "live", "context_length": 4096, "pricing": {"input": 1, "output": 2}},
            {"provider": "unpriced", "status": "live"},
        ]},
        {"id": "gift", "providers": [{"provider": "giver", "status": "live", "is_free": true}]},
        {"id": "sale", "providers": [{"provider": "giver", "status": "live", "is_free": true, "pricing": {"input": 0.2, "output": 0.2}}]},
    ]})
}

fn shelf() -> Shelf {
    let mut shelf = Shelf::default();
    let body = sample().to_string();
    let applied = shelf.apply(body.as_bytes(), Some("\"1\"".to_owned()), at(0));
    assert!(applied.is_ok_and(|applied| applied.changed && applied.models == 4));
    shelf
}

fn auto(policy: &str) -> ProviderChoice {
    ProviderChoice::Auto(policy.into())
}

fn shape(input_tokens: u32, output_tokens: u32) -> Shape {
    Shape {
        input_tokens,
        output_tokens,
        ..Shape::default()
    }
}

fn usd(input: u64, output: u64) -> Option<Price> {
    Some(Price {
        input_pusd: input,
        cached_pusd: None,
        output_pusd: output,
    })
}

#[test]
fn the_cheapest_is_so_for_the_requests_shape_and_broken_offers_never_count() {
    let shelf = shelf();
    let pick = |shape: Shape, policy: &str| {
        let known = shelf.look("meta/llama", &auto(policy), &shape, at(1));
        assert_eq!(known.provider, known.suffix);
        known.provider.expect("somebody")
    };
    assert_eq!(&*pick(shape(6000, 100), "cheapest"), "wide");
    assert_eq!(&*pick(shape(100, 6000), "cheapest"), "terse");
    assert_eq!(&*pick(shape(100, 100), "fastest"), "terse");
    // It doesn't fit the shorter context, and the other's schemas are kept to.
    assert_eq!(&*pick(shape(7000, 7000), "fastest"), "wide");
    let strict = Shape {
        structured_output: true,
        ..shape(100, 6000)
    };
    assert_eq!(&*pick(strict, "cheapest"), "wide");
}

#[test]
fn a_pin_gets_its_own_price_and_a_policy_the_highest() {
    let shelf = shelf();
    let look =
        |model: &str, choice: &ProviderChoice| shelf.look(model, choice, &Shape::default(), at(1));
    let pinned = look("meta/llama", &ProviderChoice::Pinned("terse".into()));
    assert_eq!(pinned.price, usd(500_000, 500_000));
    assert_eq!(
        (pinned.live, pinned.context_length),
        (Some(true), Some(8192))
    );
    let broken = look("meta/llama", &ProviderChoice::Pinned("broken".into()));
    assert_eq!(broken.live, Some(false));
    let gone = look("meta/llama", &ProviderChoice::Pinned("gone".into()));
    assert_eq!((gone.live, gone.price), (Some(false), None));

    let policy = look("meta/llama", &ProviderChoice::Policy("cheapest".into()));
    assert_eq!(policy.price, usd(500_000, 900_000));
    assert_eq!(policy.provider, None);
    assert_eq!(policy.suffix.as_deref(), Some("cheapest"));
    assert_eq!(
        (policy.tools, policy.structured_output),
        (Some(true), Some(false))
    );
    assert_eq!(policy.context_length, Some(8192));

    // The router might choose who has no price.
    let part = look("meta/part", &ProviderChoice::Whoever);
    assert_eq!((part.price, part.context_length), (None, Some(4096)));
    assert_eq!(
        look("meta/part", &auto("cheapest")).provider.as_deref(),
        Some("priced")
    );
    let unknown = look("nobody/knows", &auto("cheapest"));
    assert_eq!(
        (unknown.live, unknown.price, unknown.provider),
        (None, None, None)
    );
    assert_eq!(unknown.suffix.as_deref(), Some("cheapest"));
}

#[test]
fn a_gift_is_free_while_the_promise_is_fresh_and_a_listed_price_wins() {
    let shelf = shelf();
    let pin = ProviderChoice::Pinned("giver".into());
    let look = |model: &str, hours: u64| shelf.look(model, &pin, &Shape::default(), at(hours));
    assert_eq!(look("gift", 1).price, Some(Price::FREE));
    assert!(look("gift", 1).is_free);
    assert_eq!(look("gift", 25).price, None);
    assert_eq!(look("sale", 1).price, usd(200_000, 200_000));
    let stale = look("sale", 25);
    assert!(stale.stale);
    assert_eq!(stale.price, usd(250_000, 250_000));
    assert_eq!(
        shelf.price_of("sale", "giver", at(1)),
        usd(200_000, 200_000)
    );
    assert_eq!(shelf.price_of("sale", "other", at(1)), None);
}

#[test]
fn a_router_that_stands_by_its_edition_keeps_it_fresh() {
    let mut shelf = shelf();
    assert!(!shelf.is_stale(at(24)));
    assert!(shelf.is_stale(at(25)));
    shelf.confirm(at(24));
    assert!(!shelf.is_stale(at(47)));
    // A clock that was set back by days says nothing about the edition's age.
    assert!(shelf.is_stale(at(0) - Duration::from_secs(3600)));
    assert_eq!(shelf.etag(), Some("\"1\""));
}

fn catalogue(models: usize, priced: usize) -> String {
    let list: Vec<_> = (0..models)
        .map(|n| {
            let pricing = (n < priced).then(|| json!({"input": 1, "output": 1}));
            json!({"id": format!("m{n}"), "providers": [{"provider": "p", "status": "live", "pricing": pricing}]})
        })
        .collect();
    json!({ "data": list }).to_string()
}

#[test]
fn a_catalogue_that_shrinks_by_more_than_half_is_not_believed() {
    let mut shelf = Shelf::default();
    assert!(
        shelf
            .apply(catalogue(100, 80).as_bytes(), None, at(0))
            .is_ok()
    );
    let refused = |shelf: &mut Shelf, models, priced| {
        let before = shelf.clone();
        let refused = shelf.apply(catalogue(models, priced).as_bytes(), None, at(1));
        assert_eq!(*shelf, before);
        refused.expect_err("refused")
    };
    let shrunk = |what, had, has| Refused::Shrunk { what, had, has };
    assert_eq!(refused(&mut shelf, 49, 49), shrunk("models", 100, 49));
    assert_eq!(refused(&mut shelf, 100, 39), shrunk("prices", 80, 39));
    assert_eq!(refused(&mut shelf, 0, 0), Refused::Empty);
    assert!(
        shelf
            .apply(catalogue(50, 40).as_bytes(), None, at(2))
            .is_ok()
    );
    assert_eq!(shelf.confirmed(), Some(at(2)));
}

#[test]
fn what_was_kept_on_disk_says_the_same() {
    let before = shelf();
    let document = before.to_document().expect("an edition");
    let text = document.to_string();
    let read = serde_json::from_str(&text).expect("JSON");
    assert_eq!(Shelf::from_document(&read).expect("a shelf"), before);
    for broken in [
        json!(null),
        json!({"at": 1}),
        json!({"at": 1, "etag": null, "list": []}),
    ] {
        assert_eq!(Shelf::from_document(&broken), None);
    }
    assert_eq!(Shelf::default().to_document(), None);
}

proptest! {
    #[test]
    fn no_run_of_refreshes_loses_the_last_good_edition(
        steps in prop::collection::vec((0_usize..40, 0_usize..40, any::<bool>()), 1..30),
    ) {
        let mut shelf = Shelf::default();
        let mut last: Option<(usize, usize)> = None;
        for (hour, (models, priced, garbage)) in (0_u64..).zip(steps) {
            let priced = priced.min(models);
            let body = if garbage { "{\"data\": 7".to_owned() } else { catalogue(models, priced) };
            match shelf.apply(body.as_bytes(), None, at(hour)) {
                Ok(applied) => {
                    prop_assert!(!garbage && models > 0);
                    if let Some((m, p)) = last {
                        prop_assert!(models * 2 >= m && priced * 2 >= p);
                    }
                    prop_assert_eq!((applied.models, applied.priced), (models, priced));
                    last = Some((models, priced));
                }
                Err(_) => prop_assert_eq!(
                    shelf.edition().map(|e| (e.models(), e.priced())),
                    last
                ),
            }
        }
    }

    #[test]
    fn no_bytes_make_it_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut shelf = shelf();
        let before = shelf.clone();
        if shelf.apply(&body, None, at(1)).is_err() {
            prop_assert_eq!(shelf, before);
        }
    }
}
