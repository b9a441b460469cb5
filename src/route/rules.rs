//! Which of the operator's rules a request meets.
//!
//! This is the one place of the floor that looks at texts, and only a rule's name comes out of it.

use serde::{Deserialize, Serialize};

use super::config::{Rule, Then, When};

/// What rules look at.
#[derive(Debug, Clone, Copy)]
pub struct Sight<'a> {
    /// The model as the caller named it; empty for the default.
    pub model: &'a str,
    /// The name of the caller's key.
    pub key: Option<&'a str>,
    /// The route the request came in by.
    pub route: &'a str,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Every text that somebody wrote.
    pub texts: &'a [&'a str],
    /// Headers, by lower-case name.
    pub headers: &'a [(String, String)],
    /// Whether tools are offered.
    pub tools: bool,
    /// Whether the answer is streamed.
    pub stream: bool,
}

/// The rule that decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleHit {
    /// Its name.
    pub name: String,
    /// What it does.
    pub then: Then,
}

/// Finds the first rule whose conditions all hold.
///
/// Cost: linear in the texts for each pattern that is reached; patterns are tried last.
pub fn first_hit(rules: &[Rule], sight: &Sight<'_>) -> Option<RuleHit> {
    let rule = rules.iter().find(|rule| holds(&rule.when, sight))?;
    Some(RuleHit {
        name: rule.name.clone(),
        then: rule.then.clone(),
    })
}

fn holds(when: &When, sight: &Sight<'_>) -> bool {
    let When {
        model,
        key,
        route,
        min_prompt_tokens,
        max_prompt_tokens,
        pattern,
        headers,
        tools,
        stream,
    } = when;
    let key_holds = || key.contains(sight.key.unwrap_or("anonymous"));
    let header_holds = |name: &str, value: &regex::Regex| {
        let mut given = sight.headers.iter().filter(|(given, _)| given == name);
        given.any(|(_, given)| value.is_match(given))
    };
    (model.is_empty() || model.contains(sight.model))
        && (key.is_empty() || key_holds())
        && (route.is_empty() || route.contains(sight.route))
        && min_prompt_tokens.is_none_or(|least| sight.prompt_tokens >= least)
        && max_prompt_tokens.is_none_or(|most| sight.prompt_tokens <= most)
        && tools.is_none_or(|tools| tools == sight.tools)
        && stream.is_none_or(|stream| stream == sight.stream)
        && headers
            .iter()
            .all(|(name, value)| header_holds(name, value))
        && pattern
            .as_ref()
            .is_none_or(|pattern| sight.texts.iter().any(|text| pattern.is_match(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sight<'a>(texts: &'a [&'a str], headers: &'a [(String, String)]) -> Sight<'a> {
        Sight {
            model: "small",
            key: None,
            route: "/v1/chat/completions",
            prompt_tokens: 100,
            texts,
            headers,
            tools: false,
            stream: true,
        }
    }

    fn regex(pattern: &str) -> regex::Regex {
        regex::Regex::new(pattern).expect("a pattern")
    }

    fn set(name: &str) -> std::collections::BTreeSet<String> {
        [name.to_owned()].into()
    }

    #[test]
    fn every_condition_counts_and_all_that_are_given_must_hold() {
        let headers = [("x-team".to_owned(), "legal".to_owned())];
        let texts = ["hello", "my iban is DE00"];
        let sight = sight(&texts, &headers);
        type Change = fn(&mut When, bool);
        let conditions: [Change; 9] = [
            |w, ok| w.model = set(if ok { "small" } else { "large" }),
            |w, ok| w.key = set(if ok { "anonymous" } else { "alice" }),
            |w, ok| {
                w.route = set(if ok {
                    "/v1/chat/completions"
                } else {
                    "/generate"
                })
            },
            |w, ok| w.min_prompt_tokens = Some(if ok { 100 } else { 101 }),
            |w, ok| w.max_prompt_tokens = Some(if ok { 100 } else { 99 }),
            |w, ok| w.pattern = Some(regex(if ok { "(?i)iban" } else { "passport" })),
            |w, ok| {
                let value = regex(if ok { "^legal$" } else { "^sales$" });
                w.headers = [("x-team".to_owned(), value)].into();
            },
            |w, ok| w.tools = Some(!ok),
            |w, ok| w.stream = Some(ok),
        ];
        let mut all = When::default();
        for condition in conditions {
            let mut alone = When::default();
            condition(&mut alone, true);
            assert!(holds(&alone, &sight));
            condition(&mut all, true);
        }
        assert!(holds(&all, &sight));
        for condition in conditions {
            let mut broken = all.clone();
            condition(&mut broken, false);
            assert!(!holds(&broken, &sight), "{broken:?}");
        }
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let rule = |name: &str, model: &str, then| Rule {
            name: name.to_owned(),
            when: When {
                model: set(model),
                ..When::default()
            },
            then,
        };
        let rules = [
            rule("no", "large", Then::Remote),
            rule("yes", "small", Then::Local),
            rule("late", "small", Then::Remote),
        ];
        let hit = first_hit(&rules, &sight(&[], &[])).expect("a rule matches");
        assert_eq!((hit.name.as_str(), hit.then), ("yes", Then::Local));
        assert_eq!(first_hit(&rules[..1], &sight(&[], &[])), None);
    }

    #[test]
    fn a_missing_header_meets_no_pattern() {
        let when = When {
            headers: [("x-team".to_owned(), regex(".*"))].into(),
            ..When::default()
        };
        assert!(!holds(&when, &sight(&[], &[])));
    }
}
