//! How far each key's text goes: levels against places.

use serde_json::json;

use super::{MARKER, MODEL, Setup, ask, departures, edit, has_received, new_key, willing};
use crate::support::server::Server;
use crate::support::upstream::Upstream;

/// Kinds of places by the name of the model that leads there, from the nearest to the farthest.
const PLACES: [&str; 5] = ["own", "listed", "chosen", "unlisted", "router"];

/// Upstreams and targets for every kind of place, all at one address.
fn places(upstream: &Upstream) -> Setup {
    let url = upstream.url();
    let mut text = format!(
        "[[remote.upstream]]\nname = \"own\"\nkind = \"openai_compat\"\nengine = \"openai\"\nbase_url = \"{url}\"\n\
         [[remote.upstream]]\nname = \"hf\"\nkind = \"hf_router\"\nbase_url = \"{url}\"\nmax_usd_per_day = 1000\n\
         [[remote.target]]\nname = \"own\"\nupstream = \"own\"\nmodel = \"{MODEL}\"\n\
         [[route.model]]\nname = \"own\"\nlocal = false\ntargets = [\"own\"]\n"
    );
    for (name, provider) in [
        ("listed", "together"),
        ("chosen", "auto:cheapest"),
        ("unlisted", "groq"),
        ("router", "cheapest"),
    ] {
        text += &format!(
            "[[remote.target]]\nname = \"{name}\"\nupstream = \"hf\"\nmodel = \"{MODEL}\"\nprovider = \"{provider}\"\n\
             price = {{ input = 1, output = 1 }}\n\
             [[route.model]]\nname = \"{name}\"\nlocal = false\ntargets = [\"{name}\"]\n"
        );
    }
    Setup::new().add(&text).flag("--model-id", "none")
}

/// Waits until the catalogue has told whom `auto:cheapest` means.
fn await_catalogue(server: &Server, upstream: &Upstream) {
    crate::support::eventually("the catalogue is read", || {
        let asked = upstream.requests_for("/v1/models");
        asked
            .iter()
            .any(|request| request.pieces_sent > 0)
            .then_some(())
    });
    assert_eq!(server.get("/health/live").status, 200);
}

#[test]
fn each_level_reaches_as_far_as_it_says_and_no_farther() {
    let upstream = Upstream::start(willing);
    let mut setup =
        places(&upstream).add("[egress]\nanonymous = \"deny\"\ndefault = \"dedicated\"\n");
    let levels = [
        ("none", "egress = \"deny\"", &PLACES[..0]),
        ("near", "egress = \"dedicated\"", &PLACES[..1]),
        (
            "some",
            "egress = \"allowlist\"\nproviders = [\"together\"]",
            &PLACES[..3],
        ),
        ("all", "egress = \"any\"", &PLACES[..]),
        ("silent", "", &PLACES[..1]),
    ];
    let mut keys = Vec::new();
    for (name, level, reaches) in levels {
        let (shown, hash) = new_key(name);
        setup = setup.add(&format!(
            "[[keys]]\nname = \"{name}\"\nhash = \"{hash}\"\n{level}\n"
        ));
        keys.push((name, shown, reaches));
    }
    let setup = setup.flag("--api-key", "everyone-4711");
    let server = setup.serve();
    await_catalogue(&server, &upstream);
    keys.push(("anonymous", "everyone-4711".to_owned(), &PLACES[..0]));
    for (name, shown, reaches) in keys {
        for place in PLACES {
            let text = format!("{MARKER} {name} {place}");
            let body = json!({"model": place, "messages": [{"role": "user", "content": text}], "max_tokens": 4});
            let bearer = format!("Bearer {shown}");
            for policy in ["remote-only", "prefer-local"] {
                let headers = [
                    ("authorization", bearer.as_str()),
                    ("x-route-policy", policy),
                ];
                let reply = ask(&server, "/v1/chat/completions", &headers, &body);
                if reaches.contains(&place) {
                    reply.ok();
                    assert_eq!(reply.header("x-route-target"), Some("remote"));
                    continue;
                }
                assert_ne!(reply.status, 200, "{name} {place}");
                assert!(
                    [422, 424].contains(&reply.status),
                    "{name} {place}: {reply:?}"
                );
                assert_eq!(reply.header("x-route-attempts"), Some("0"));
                assert!(!has_received(&upstream, &text), "{name} {place}");
            }
            assert_eq!(has_received(&upstream, &text), reaches.contains(&place));
        }
    }
    for request in departures(&upstream) {
        let sent = [request.header("authorization"), request.header("cookie")];
        assert_eq!(
            sent,
            [None, None],
            "a caller's key is nobody else's business"
        );
    }
}

#[test]
fn a_wrong_key_is_not_an_anonymous_caller() {
    let upstream = Upstream::start(willing);
    let (_, hash) = new_key("some");
    let setup = places(&upstream)
        .add("[egress]\nanonymous = \"any\"\n")
        .add(&format!(
            "[[keys]]\nname = \"some\"\nhash = \"{hash}\"\negress = \"deny\"\n"
        ));
    let server = setup.serve();
    let body = json!({"model": "own", "messages": [{"role": "user", "content": MARKER}]});
    for bearer in ["Bearer sk-sconce-0-0", "Bearer ", "Basic YTpi"] {
        let reply = ask(
            &server,
            "/v1/chat/completions",
            &[("authorization", bearer)],
            &body,
        );
        assert_eq!(reply.status, 401, "{bearer} {reply:?}");
    }
    super::assert_untouched(&upstream);
}

#[test]
fn what_is_not_known_of_a_provider_fulfils_no_demand() {
    let known =
        "[providers.together]\nretention_days = 0\nregion = \"eu\"\nzdr = true\ntrains = false\n";
    let wrong =
        "[providers.together]\nretention_days = 30\nregion = \"us\"\nzdr = false\ntrains = true\n";
    let demands = [
        "max_retention_days = 0",
        "regions = [\"eu\", \"ch\"]",
        "zdr = true",
        "no_training = true",
    ];
    for demand in demands {
        for (facts, allowed) in [("", false), (wrong, false), (known, true)] {
            let upstream = Upstream::start(willing);
            let setup = places(&upstream).policy("remote-only").add(&format!(
                "[egress]\nanonymous = \"any\"\n[egress.require]\n{demand}\n{facts}"
            ));
            let server = setup.serve();
            let ask = |place: &str| {
                let body = json!({"model": place, "messages": [{"role": "user", "content": MARKER}], "max_tokens": 4});
                server.post("/v1/chat/completions", &body)
            };
            let reply = ask("listed");
            assert_eq!(reply.status == 200, allowed, "{demand} {facts}: {reply:?}");
            if !allowed {
                let setting = demand.split(' ').next().unwrap_or_default();
                let reason = format!("egress_denied:{setting}");
                assert_eq!(reply.header("x-route-reason"), Some(reason.as_str()));
            }
            // Whoever the router may choose is known to fulfil nothing.
            let reply = ask("router");
            assert_ne!(reply.status, 200, "{demand} {facts}: {reply:?}");
            assert_eq!(departures(&upstream).len(), usize::from(allowed));
            // The operator's own machine is not a provider.
            ask("own").ok();
        }
    }
}

#[test]
fn a_host_of_models_is_no_machine_of_ones_own_whoever_pays() {
    let upstream = Upstream::start(willing);
    let url = upstream.url();
    let setup = Setup::new()
        .add(&format!(
            "[[remote.upstream]]\nname = \"r\"\nkind = \"replicate\"\nbilling = \"own\"\nbase_url = \"{url}\"\n\
             [[remote.target]]\nname = \"r\"\nupstream = \"r\"\nmodel = \"{MODEL}\"\n\
             [[remote.upstream]]\nname = \"h\"\nkind = \"hf_router\"\nbilling = \"own\"\nbase_url = \"{url}\"\n\
             [[remote.target]]\nname = \"h\"\nupstream = \"h\"\nmodel = \"{MODEL}\"\nprovider = \"together\"\n\
             [[route.model]]\nname = \"r\"\nlocal = false\ntargets = [\"r\"]\n\
             [[route.model]]\nname = \"h\"\nlocal = false\ntargets = [\"h\"]\n\
             [egress]\nanonymous = \"dedicated\"\n"
        ))
        .flag("--model-id", "none");
    let server = setup.serve();
    for model in ["r", "h"] {
        let body = json!({"model": model, "messages": [{"role": "user", "content": MARKER}], "max_tokens": 4});
        let headers = [("x-route-strict", "false")];
        let reply = ask(&server, "/v1/chat/completions", &headers, &body);
        assert_eq!(
            reply.header("x-route-reason"),
            Some("egress_denied:level"),
            "{model}: {reply:?}"
        );
    }
    super::assert_untouched(&upstream);
}

#[test]
fn a_level_that_is_lowered_holds_from_the_next_request_on() {
    let upstream = Upstream::start(willing);
    let (shown, hash) = new_key("some");
    let setup = places(&upstream).add(&format!(
        "[egress]\ndefault = \"any\"\n[[keys]]\nname = \"some\"\nhash = \"{hash}\"\negress = \"any\"\n"
    ));
    let server = setup.serve();
    let bearer = format!("Bearer {shown}");
    let ask = |text: &str| {
        let body = json!({"model": "own", "messages": [{"role": "user", "content": text}], "max_tokens": 4});
        ask(
            &server,
            "/v1/chat/completions",
            &[("authorization", &bearer)],
            &body,
        )
    };
    ask("walnut").ok();
    edit(&setup, &server, "egress = \"any\"", "egress = \"deny\"");
    crate::support::eventually("the file is read again", || {
        let log = server.log();
        log.contains("keys read again").then_some(())
    });
    // Grants are read right after the keys; what is asked until then says nothing.
    crate::support::eventually("the level holds", || {
        (ask("walnut").status != 200).then_some(())
    });
    let reply = ask(MARKER);
    assert_eq!(
        reply.header("x-route-reason"),
        Some("egress_denied:level"),
        "{reply:?}"
    );
    assert!(!has_received(&upstream, MARKER));
}

#[test]
fn what_is_tightened_in_the_file_holds_or_the_log_says_that_it_waits_for_a_restart() {
    let rule =
        format!("[[egress.rule]]\nname = \"new\"\npattern = '{MARKER}'\naction = \"block\"\n");
    let edits = [
        ("anonymous = \"any\"", "anonymous = \"deny\""),
        ("max_bytes = 100000", "max_bytes = 10"),
        ("policy = \"prefer-remote\"", "policy = \"local-only\""),
        ("[[remote.upstream]]", &format!("{rule}[[remote.upstream]]")),
    ];
    let mut silent = Vec::new();
    for (from, to) in edits {
        let upstream = Upstream::start(willing);
        let (shown, hash) = new_key("some");
        let setup = Setup::new().add(&format!(
            "[egress]\nanonymous = \"any\"\ndefault = \"any\"\nmax_bytes = 100000\n\
             [[remote.upstream]]\nname = \"up\"\nkind = \"openai_compat\"\nengine = \"openai\"\nbase_url = \"{}\"\n\
             [[remote.target]]\nname = \"far\"\nupstream = \"up\"\nmodel = \"{MODEL}\"\n\
             [[route.model]]\nname = \"default\"\nlocal = true\ntargets = [\"far\"]\n\
             [[keys]]\nname = \"some\"\nhash = \"{hash}\"\npolicy = \"prefer-remote\"\n",
            upstream.url()
        ));
        let setup = setup
            .policy("remote-only")
            .flag("--api-key", "everyone-4711");
        let server = setup.serve();
        let shown = match from.starts_with("anonymous") {
            true => "everyone-4711".to_owned(),
            false => shown,
        };
        let bearer = format!("Bearer {shown}");
        let headers = [("authorization", bearer.as_str())];
        let ask = |text: &str| {
            ask(
                &server,
                "/v1/chat/completions",
                &headers,
                &super::super::chat(text),
            )
        };
        assert_eq!(ask("walnut").header("x-route-target"), Some("remote"));
        edit(&setup, &server, from, to);
        crate::support::eventually("the file is read again", || {
            server.log().contains("keys read again").then_some(())
        });
        // What else is read again is read within moments, or not at all.
        let mut tries = 0..50;
        let left = crate::support::eventually("it holds, or it never will", || {
            let away = ask("walnut").header("x-route-target") == Some("remote");
            let held = !away || server.log().contains("restart");
            (held || tries.next().is_none()).then_some(!held)
        });
        let blocks = to.contains("rule") && ask(MARKER).status == 422;
        if left && !blocks {
            silent.push(to.lines().next().unwrap_or_default().to_owned());
        }
    }
    assert_eq!(
        silent,
        Vec::<String>::new(),
        "taken for read, and not in force"
    );
}
