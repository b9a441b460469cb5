//! The template's text, read just far enough to bring it into minijinja's form.
//!
//! Some things are written differently there: line ends, which Jinja2 makes `\n`; the tag
//! `generation`, with which training marks what the assistant said and which has no effect here; and the `%`
//! between a string and its values, which minijinja knows as the filter `format` only; slices; and what a loop goes over. What is changed stays on
//! its line, so that errors name the right one.

use std::ops::Range;

/// The filter that refuses to iterate over what Python does not.
pub(super) const ITERATED: &str = "__iter__";
const ITERATED_END: &str = ")|__iter__";

/// The method a slice becomes, with start, stop and step.
pub(super) const SLICE: &str = "__slice__";
const SLICE_FROM: &str = ".__slice__(";
const SLICE_FROM_NONE: &str = ".__slice__(none";

/// A token inside a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Name,
    Text,
    Number,
    Symbol(char),
}

#[derive(Debug, Clone)]
struct Token {
    kind: Kind,
    at: Range<usize>,
}

/// What stands between `{{` and `}}`, or between `{%` and `%}`.
#[derive(Debug)]
struct Tag {
    is_block: bool,
    tokens: Vec<Token>,
}

/// Brings a template into the form minijinja reads.
pub(super) fn prepare(source: &str) -> String {
    let mut text = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut edits: Vec<(Range<usize>, &str)> = Vec::new();
    for Tag { is_block, tokens } in tags(&text) {
        let word = |token: &Token| &text[token.at.clone()];
        match tokens.as_slice() {
            [only] if is_block && word(only) == "generation" => {
                edits.push((only.at.clone(), "with"));
            }
            [only] if is_block && word(only) == "endgeneration" => {
                edits.push((only.at.clone(), "endwith"));
            }
            tokens => {
                percent_to_filter(tokens, &mut edits);
                slice_to_method(tokens, &mut edits);
                if is_block {
                    check_iterated(&text, tokens, &mut edits);
                }
            }
        }
    }
    // Stable: of two edits at one place, the end of what a loop goes over comes behind all that ends in it.
    edits.sort_by_key(|(at, _)| at.start);
    for (at, replacement) in edits.into_iter().rev() {
        text.replace_range(at, replacement);
    }
    text
}

/// Whether a template reads the variable `name`.
pub(super) fn reads_variable(source: &str, name: &str) -> bool {
    let symbol = |token: Option<&Token>, c: char| token.is_some_and(|t| t.kind == Kind::Symbol(c));
    tags(source).iter().any(|Tag { tokens, .. }| {
        tokens.iter().enumerate().any(|(i, token)| {
            let before = i.checked_sub(1).and_then(|i| tokens.get(i));
            let assigned = symbol(tokens.get(i + 1), '=') && !symbol(tokens.get(i + 2), '=');
            token.kind == Kind::Name
                && source[token.at.clone()] == *name
                && !symbol(before, '.')
                && !assigned
        })
    })
}

/// Rewrites `"..." % value` to `("..."|format(value))`.
///
/// Only where the left side is a literal, because only then it is known to be text; a literal that is itself the
/// right side of a product stays, as there the product is what is formatted.
fn percent_to_filter(tokens: &[Token], edits: &mut Vec<(Range<usize>, &str)>) {
    let kind = |i: usize| tokens.get(i).map(|token| token.kind);
    for (i, token) in tokens.iter().enumerate() {
        if token.kind != Kind::Symbol('%') || i == 0 || kind(i - 1) != Some(Kind::Text) {
            continue;
        }
        let mut first = i - 1;
        while first > 0 && kind(first - 1) == Some(Kind::Text) {
            first -= 1;
        }
        let product = first > 0
            && matches!(
                kind(first - 1),
                Some(Kind::Symbol('*' | '/' | '%' | '|' | '.'))
            );
        let Some(end) = operand(tokens, i + 1).filter(|_| !product) else {
            continue;
        };
        let opened = tokens[first].at.start;
        let closed = tokens[end - 1].at.end;
        edits.push((opened..opened, "("));
        if is_tuple(tokens, i + 1, end) {
            edits.push((token.at.start..tokens[i + 1].at.end, "|format("));
            edits.push((closed..closed, ")"));
        } else {
            edits.push((token.at.clone(), "|format("));
            edits.push((closed..closed, "))"));
        }
    }
}

/// Sends what a `for` loop goes over through the filter [`ITERATED`], as minijinja takes `none` for an empty list.
fn check_iterated(text: &str, tokens: &[Token], edits: &mut Vec<(Range<usize>, &str)>) {
    let is = |token: &Token, word: &str| text[token.at.clone()] == *word;
    if !tokens.first().is_some_and(|token| is(token, "for")) {
        return;
    }
    let Some(start) = tokens.iter().position(|token| is(token, "in")) else {
        return;
    };
    let mut depth = 0usize;
    let mut last = None;
    for token in &tokens[start + 1..] {
        match token.kind {
            Kind::Symbol('(' | '[' | '{') => depth += 1,
            Kind::Symbol(')' | ']' | '}') => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 && (is(token, "if") || is(token, "recursive")) {
            break;
        }
        last = Some(token.at.end);
    }
    if let Some(end) = last {
        let begin = tokens[start].at.end;
        edits.push((begin..begin, " ("));
        edits.push((end..end, ITERATED_END));
    }
}

/// Rewrites `value[a:b:c]` to a call of the method [`SLICE`], as minijinja's slices differ from Python's in what
/// they accept and return.
fn slice_to_method(tokens: &[Token], edits: &mut Vec<(Range<usize>, &str)>) {
    for (open, token) in tokens.iter().enumerate() {
        if token.kind != Kind::Symbol('[') {
            continue;
        }
        let Some(end) = closing(tokens, open) else {
            continue;
        };
        let mut depth = 0usize;
        let mut marks = Vec::new();
        for (i, token) in tokens.iter().enumerate().take(end).skip(open) {
            match token.kind {
                Kind::Symbol('(' | '[' | '{') => depth += 1,
                Kind::Symbol(')' | ']' | '}') => depth -= 1,
                Kind::Symbol(':') if depth == 1 => marks.push(i),
                _ => {}
            }
        }
        if marks.is_empty() {
            continue;
        }
        let absent = |mark: usize| mark + 1 == end - 1 || marks.contains(&(mark + 1));
        let opening = if marks[0] == open + 1 {
            SLICE_FROM_NONE
        } else {
            SLICE_FROM
        };
        edits.push((token.at.clone(), opening));
        for &mark in &marks {
            let separator = if absent(mark) { ", none" } else { ", " };
            edits.push((tokens[mark].at.clone(), separator));
        }
        edits.push((tokens[end - 1].at.clone(), ")"));
    }
}

/// Where the value that starts at a token ends, with everything that binds to it closer than `%`.
fn operand(tokens: &[Token], start: usize) -> Option<usize> {
    let kind = |i: usize| tokens.get(i).map(|token| token.kind);
    let mut end = match kind(start)? {
        Kind::Symbol('(' | '[' | '{') => closing(tokens, start)?,
        Kind::Symbol(_) => return None,
        Kind::Name | Kind::Text | Kind::Number => start + 1,
    };
    loop {
        end = match (kind(end), kind(end + 1)) {
            (Some(Kind::Symbol('.' | '|')), Some(Kind::Name | Kind::Number)) => end + 2,
            (Some(Kind::Symbol('(' | '[')), _) => closing(tokens, end)?,
            _ => return Some(end),
        };
    }
}

/// The place behind the bracket that closes the one at `start`.
fn closing(tokens: &[Token], start: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (i, token) in tokens.iter().enumerate().skip(start) {
        match token.kind {
            Kind::Symbol('(' | '[' | '{') => depth += 1,
            Kind::Symbol(')' | ']' | '}') => depth = depth.checked_sub(1)?,
            _ => {}
        }
        if depth == 0 {
            return Some(i + 1);
        }
    }
    None
}

/// Whether a value is written as a tuple: in parentheses, with a comma directly inside.
fn is_tuple(tokens: &[Token], start: usize, end: usize) -> bool {
    if tokens[start].kind != Kind::Symbol('(') || closing(tokens, start) != Some(end) {
        return false;
    }
    let mut depth = 0usize;
    tokens[start..end].iter().any(|token| {
        match token.kind {
            Kind::Symbol('(' | '[' | '{') => depth += 1,
            Kind::Symbol(')' | ']' | '}') => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 1 && token.kind == Kind::Symbol(',')
    })
}

/// The tokens of every `{{ }}` and `{% %}`, without the signs of whitespace control.
///
/// What cannot be read ends the list; minijinja then says what is wrong with it.
fn tags(source: &str) -> Vec<Tag> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(open) = source[at..].find('{').map(|offset| at + offset) {
        let rest = &source[open..];
        if rest.starts_with("{#") {
            match rest.find("#}") {
                Some(length) => at = open + length + 2,
                None => break,
            }
        } else if rest.starts_with("{{") || rest.starts_with("{%") {
            let is_block = rest.starts_with("{%");
            let end = if is_block { "%}" } else { "}}" };
            let Some((tokens, behind)) = tag(source, open + 2, end) else {
                break;
            };
            at = behind;
            let raw = is_block
                && matches!(tokens.as_slice(), [only] if source[only.at.clone()] == *"raw");
            if raw {
                match source[at..].find("endraw") {
                    Some(length) => at += length + "endraw".len(),
                    None => break,
                }
            }
            found.push(Tag { is_block, tokens });
        } else {
            at = open + 1;
        }
    }
    found
}

/// The tokens from `start` to the tag's end, and the place behind it.
fn tag(source: &str, start: usize, end: &str) -> Option<(Vec<Token>, usize)> {
    let mut tokens: Vec<Token> = Vec::new();
    let mut depth = 0usize;
    let mut at = start;
    if source[at..].starts_with(['-', '+']) {
        at += 1;
    }
    loop {
        let rest = &source[at..];
        let c = rest.chars().next()?;
        if depth == 0 && rest.starts_with(end) {
            let sign = tokens.last().is_some_and(|token| {
                token.at.end == at && matches!(token.kind, Kind::Symbol('-' | '+'))
            });
            if sign {
                tokens.pop();
            }
            return Some((tokens, at + end.len()));
        }
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let (kind, length) = match c {
            c if c.is_whitespace() => {
                at += c.len_utf8();
                continue;
            }
            '\'' | '"' => (Kind::Text, quoted(rest, c)?),
            c if c.is_ascii_digit() => (Kind::Number, rest.find(|c| !is_word(c))?),
            c if is_word(c) => (Kind::Name, rest.find(|c| !is_word(c))?),
            c => {
                match c {
                    '(' | '[' | '{' => depth += 1,
                    ')' | ']' | '}' => depth = depth.saturating_sub(1),
                    _ => {}
                }
                (Kind::Symbol(c), c.len_utf8())
            }
        };
        tokens.push(Token {
            kind,
            at: at..at + length,
        });
        at += length;
    }
}

/// The length of a string literal with its quotes.
fn quoted(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}
