//! What templates must show of Python, the texts of their errors, and that nothing makes rendering panic.

use proptest::prelude::*;
use serde_json::json;

use super::*;

const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

fn compile(source: &str) -> ChatTemplate {
    let sources = TemplateSources {
        default: Some(source.to_owned()),
        named: Vec::new(),
    };
    let tokens = [("bos_token", "<s>"), ("eos_token", "</s>")];
    let tokens = tokens.map(|(role, token)| (role.to_owned(), token.to_owned()));
    ChatTemplate::new(sources, tokens.into()).unwrap()
}

fn conversation(messages: &[Json]) -> Conversation<'_> {
    let day = chrono::NaiveDate::from_ymd_opt(2031, 2, 3).unwrap();
    Conversation {
        messages,
        tools: None,
        documents: None,
        add_generation_prompt: false,
        continue_final_message: false,
        kwargs: None,
        now: day.and_hms_opt(4, 5, 6).unwrap(),
    }
}

fn render(source: &str) -> Result<String, TemplateError> {
    let messages = [json!({"role": "user", "content": "hi"})];
    compile(source).render(&conversation(&messages))
}

fn shows(expression: &str) -> String {
    render(&format!("{{{{ {expression} }}}}")).unwrap()
}

#[test]
fn a_conversation_becomes_a_prompt() {
    let messages = [json!({"role": "user", "content": "<b> & é"})];
    let mut asked = conversation(&messages);
    asked.add_generation_prompt = true;
    assert_eq!(
        compile(CHATML).render(&asked).unwrap(),
        "<|im_start|>user\n<b> & é<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn values_print_as_python_prints_them() {
    for (expression, expected) in [
        ("none", "None"),
        ("true", "True"),
        ("[1, 'a', none, 1.5]", "[1, 'a', None, 1.5]"),
        ("{'a': {'b': (1,)}}", "{'a': {'b': (1,)}}"),
        ("\"it's\"", "it's"),
        ("[\"it's\", '\\n']", "[\"it's\", '\\n']"),
        ("1e16", "1e+16"),
        ("[0.00001]", "[1e-05]"),
        ("missing", ""),
        ("[missing]", "[Undefined]"),
        ("'a' ~ none ~ [1]", "aNone[1]"),
        ("['\u{200b}é']", "['\\u200bé']"),
    ] {
        assert_eq!(shows(expression), expected, "{expression}");
    }
}

#[test]
fn json_is_written_as_python_writes_it() {
    for (expression, expected) in [
        (
            "{'b': [1, none], 'a': '<é>'}|tojson",
            "{\"b\": [1, null], \"a\": \"<é>\"}",
        ),
        (
            "{'b': 1, 'a': 2}|tojson(sort_keys=true)",
            "{\"a\": 2, \"b\": 1}",
        ),
        ("'é🎉'|tojson(true)", "\"\\u00e9\\ud83c\\udf89\""),
        (
            "{'a': [1], 'b': []}|tojson(indent=2)",
            "{\n  \"a\": [\n    1\n  ],\n  \"b\": []\n}",
        ),
        ("[1, 2]|tojson(separators=(',', ':'))", "[1,2]"),
        ("1.0|tojson", "1.0"),
    ] {
        assert_eq!(shows(expression), expected, "{expression}");
    }
}

#[test]
fn python_reaches_through_jinja() {
    for (expression, expected) in [
        ("[1, 2, 3][::-1]", "[3, 2, 1]"),
        ("[][::-1]", "[]"),
        ("'abc'[-2:]", "bc"),
        ("[1, 2, 3][1:][0]", "2"),
        ("none[1:]", ""),
        ("' a  b '.split()", "['a', 'b']"),
        ("'a,b,c'.rsplit(',', 1)", "['a,b', 'c']"),
        ("'a</t>b'.split('</t>')[-1]", "b"),
        ("'xax'.rstrip('x')", "xa"),
        ("\"it's\".title()", "It'S"),
        ("{'items': 1}.items()|list", "[('items', 1)]"),
        ("{'a': 1}.get('b', 'c')", "c"),
        ("'%s is %d' % ('a', 3)", "a is 3"),
        ("'<%s>' % 'a'|upper ~ '!'", "<A>!"),
        ("'a' 'b'", "ab"),
        ("-7 // 2", "-4"),
        ("7 / 2", "3.5"),
        ("strftime_now('%d %b %Y%Z')", "03 Feb 2031"),
        ("'a' is sequence", "True"),
        ("none is iterable", "False"),
        (
            "[{'r': 'x'}]|selectattr('r', 'equalto', 'x')|list|length",
            "1",
        ),
        ("{'b': 1, 'a': 2}|dictsort", "[('a', 2), ('b', 1)]"),
        ("'a' if false", ""),
        ("bos_token + eos_token", "<s></s>"),
        ("unk_token is defined", "False"),
        ("tools is none", "True"),
    ] {
        assert_eq!(shows(expression), expected, "{expression}");
    }
    assert_eq!(
        render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}")
            .unwrap(),
        "01"
    );
    assert_eq!(
        render("{% for i in [1, 2] %}{{ loop.previtem }}{{ loop.nextitem }}{% endfor %}").unwrap(),
        "21"
    );
    assert_eq!(
        render("{% macro m(a, b='c') %}{{ a }}{{ b }}{{ caller() }}{% endmacro %}{% call m(1) %}d{% endcall %}").unwrap(),
        "1cd"
    );
    assert_eq!(
        render("{% set ns = namespace(a=1) %}{% for i in [2] %}{% set ns.a = i %}{% endfor %}{{ ns.a }}").unwrap(),
        "2"
    );
}

#[test]
fn blocks_are_trimmed_and_generation_marks_have_no_effect() {
    let source = "a\r\n  {% generation %}\n  b\n  {%- endgeneration -%}\n c\n{% raw %}{% generation %}{% endraw %}\n";
    assert_eq!(render(source).unwrap(), "a\n  bc\n{% generation %}");
}

#[test]
fn errors_have_tgis_texts() {
    for (source, expected) in [
        (
            "\n{{ raise_exception('Roles must alternate!') }}",
            "syntax error: Roles must alternate! (in <string>:2)",
        ),
        ("{{ a.b }}", "undefined value (in <string>:1)"),
        (
            "{{ 'a'.b() }}",
            "unknown method: string has no method named b (in <string>:1)",
        ),
        (
            "{{ 'a' + 1 }}",
            "invalid operation: tried to use + operator on unsupported types string and number (in <string>:1)",
        ),
        (
            "{% for a in none %}{% endfor %}",
            "invalid operation: none is not iterable (in <string>:1)",
        ),
    ] {
        assert_eq!(render(source).unwrap_err().to_string(), expected);
    }
    let only_tools = TemplateSources {
        default: None,
        named: vec![("tool_use".to_owned(), "{{ tools }}".to_owned())],
    };
    let template = ChatTemplate::new(only_tools, BTreeMap::new()).unwrap();
    assert_eq!(
        template.render(&conversation(&[])).unwrap_err().to_string(),
        "template not found"
    );
}

#[test]
fn a_template_that_is_none_is_refused_at_start() {
    let sources = TemplateSources {
        default: None,
        named: vec![("default".to_owned(), "a\n{% if %}".to_owned())],
    };
    let error = ChatTemplate::new(sources, BTreeMap::new()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "chat template `default`: syntax error: unexpected end of block (in <string>:2)"
    );
}

#[test]
fn a_template_that_does_not_end_is_stopped() {
    let source = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}";
    assert_eq!(
        render(source).unwrap_err().to_string(),
        "engine ran out of fuel (in <string>:1)"
    );
    let source = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
    let error = render(source).unwrap_err().to_string();
    assert!(error.contains("recursion limit"), "{error}");
}

#[test]
fn tools_choose_the_template_and_are_seen_by_it() {
    let sources = TemplateSources {
        default: Some("plain {{ message.tools }} {{ 'tools' }}".to_owned()),
        named: vec![("tool_use".to_owned(), "{{ tools|length }}".to_owned())],
    };
    let template = ChatTemplate::new(
        TemplateSources {
            default: Some("plain".to_owned()),
            ..sources.clone()
        },
        BTreeMap::new(),
    )
    .unwrap();
    let mut asked = conversation(&[]);
    assert_eq!(template.render(&asked).unwrap(), "plain");
    let tools = [json!({"type": "function"})];
    asked.tools = Some(&tools);
    assert_eq!(template.render(&asked).unwrap(), "1");
    assert_eq!(template.source(false), Some("plain"));
    assert_eq!(template.source(true), Some("{{ tools|length }}"));
    assert!(template.mentions_tools());
    let TemplateSources { default, .. } = sources;
    assert!(!compile(&default.unwrap()).mentions_tools());
    let llama = "{% if custom_tools is defined %}{% set tools = custom_tools %}{% endif %}{% if not tools is defined %}{% endif %}";
    assert!(compile(llama).mentions_tools());
}

#[test]
fn the_last_message_is_continued() {
    let continued = |source: &str, messages: &[Json]| {
        let mut asked = conversation(messages);
        asked.continue_final_message = true;
        asked.add_generation_prompt = true;
        compile(source).render(&asked).unwrap()
    };
    let answer = |content: Json| [json!({"role": "assistant", "content": content})];
    assert_eq!(
        continued(CHATML, &answer(json!("It is "))),
        "<|im_start|>assistant\nIt is "
    );
    let trimming = "<{{ messages[-1].content|trim }}>";
    assert_eq!(continued(trimming, &answer(json!(" It is "))), "<It is");
    let parts = "<{{ messages[-1].content[0].text }}>";
    let text = json!([{"type": "text", "text": "So"}]);
    assert_eq!(continued(parts, &answer(text)), "<So");
    // What the template does not write cannot be continued.
    let deaf = "<>{% if add_generation_prompt %}go{% endif %}";
    assert_eq!(continued(deaf, &answer(json!("a"))), "<>go");
    assert_eq!(continued(deaf, &answer(Json::Null)), "<>go");
    assert_eq!(continued(deaf, &[]), "<>go");
}

#[test]
fn null_is_absent_and_reasoning_has_all_its_names() {
    let messages = [json!({"role": "assistant", "content": null, "reasoning": "r"})];
    let template = compile("{{ messages[0] }}");
    assert_eq!(
        template.render(&conversation(&messages)).unwrap(),
        "{'thinking': 'r', 'role': 'assistant', 'reasoning': 'r', 'reasoning_content': 'r'}"
    );
}

#[test]
fn further_variables_override_special_tokens_only() {
    let kwargs =
        json!({"messages": [], "tools": 1, "bos_token": "<t>", "strftime_now": 2, "x": true});
    let messages = [json!({"role": "user", "content": "hi"})];
    let mut asked = conversation(&messages);
    asked.kwargs = kwargs.as_object();
    let source = "{{ messages|length }}{{ tools }}{{ bos_token }}{{ strftime_now('%Y') }}{{ x }}";
    assert_eq!(compile(source).render(&asked).unwrap(), "1None<t>2031True");
}

fn any_json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<f64>().prop_map(Json::from),
        ".*".prop_map(Json::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Json::from),
            proptest::collection::vec(
                (
                    prop_oneof!["role", "content", "text", "tool_calls", ".*"],
                    inner
                ),
                0..6
            )
            .prop_map(|pairs| Json::Object(pairs.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_conversation_makes_rendering_panic(
        messages in proptest::collection::vec(any_json(), 0..5),
        continue_final_message: bool,
    ) {
        let source = "{% for m in messages[::-1] %}{{ m }}{{ m|tojson(indent=1) }}{{ m.content[1:-1:2] }}{{ m.role|trim|title }}{{ '%s' % m.text }}{% for p in m.content %}{{ loop.previtem }}{{ p ~ m }}{% endfor %}{% endfor %}";
        let template = compile(source);
        let mut asked = conversation(&messages);
        asked.continue_final_message = continue_final_message;
        let _ = template.render(&asked);
        let _ = compile(CHATML).render(&asked);
    }

    #[test]
    fn no_template_makes_compiling_panic(source in "([{}%#'\"a-c() .:\\[\\]|,-]|in|for|if|generation|é|\\{%|%\\}|\\{\\{|\\}\\})*") {
        let prepared = source::prepare(&source);
        prop_assert!(prepared.lines().count() <= source.lines().count() + 1);
        let sources = TemplateSources { default: Some(source), named: Vec::new() };
        let _ = ChatTemplate::new(sources, BTreeMap::new());
    }

    #[test]
    fn slices_are_pythons(length in 0usize..6, start in -8i64..8, stop in -8i64..8, step in prop_oneof![-3i64..0, 1i64..4]) {
        // What Python's slice.indices says, counted out.
        let n = length as i64;
        let clamp = |bound: i64| {
            let bound = if bound < 0 { bound + n } else { bound };
            if step > 0 { bound.clamp(0, n) } else { bound.clamp(-1, n - 1) }
        };
        let mut expected = Vec::new();
        let mut at = clamp(start);
        while (step > 0 && at < clamp(stop)) || (step < 0 && at > clamp(stop)) {
            expected.push(at.to_string());
            at += step;
        }
        let shown = shows(&format!("(range({length})|list)[{start}:{stop}:{step}]|join(',')"));
        prop_assert_eq!(shown, expected.join(","));
    }
}
