//! Reading a call written as one JSON object.
//!
//! Families differ in the keys only: `name` beside `arguments` or `parameters`, both perhaps inside a
//! `function` object, or `_name` among the arguments themselves. One reader knows all of them, because
//! models mix them up. It looks at the keys of the outer objects and passes the arguments on as
//! they are written. What comes before the name is known is kept, so the order of keys is free.

use super::parser::{Calls, Step};
use super::scan::{Scan, ValueScan};

/// Reader of one object, from its `{` on.
#[derive(Debug)]
pub(super) struct JsonCall {
    /// No marker promised a call, so a key no call has means that this is none.
    is_bare: bool,
    /// Objects entered: 1, or 2 within `function`.
    level: usize,
    phase: Phase,
    /// The key or value being read, where it is not passed on at once.
    raw: String,
    /// The key just read, as written with its quotes.
    key: String,
    scan: ValueScan,
    name: Option<String>,
    /// Arguments read before the name.
    early: Option<String>,
    /// Members read in an object that may turn out to hold a `_name`.
    members: Vec<(String, String)>,
    progress: Progress,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// A key, a comma or the end of the object comes next.
    Next,
    Key,
    Colon,
    Value(Role),
}

/// What a member's value is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Name,
    /// The name among the arguments.
    FlatName,
    Arguments,
    /// The object holding name and arguments, or the name itself.
    Function,
    /// An argument beside `_name`, or one if a `_name` follows.
    Member,
    Ignored,
}

/// How far the call has been announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Unknown,
    /// The arguments object is being passed on.
    Arguments,
    /// Members of this object are being passed on as arguments; so many have been.
    Flat {
        level: usize,
        members: usize,
    },
    /// The arguments are complete.
    Complete,
}

impl JsonCall {
    /// Starts before the `{`.
    pub(super) fn new(is_bare: bool) -> Self {
        Self {
            is_bare,
            level: 0,
            phase: Phase::Open,
            raw: String::new(),
            key: String::new(),
            scan: ValueScan::default(),
            name: None,
            early: None,
            members: Vec::new(),
            progress: Progress::Unknown,
        }
    }

    /// Reads the next character.
    pub(super) fn step(&mut self, c: char, calls: &mut Calls) -> Step {
        match self.phase {
            Phase::Open => {
                self.level += 1;
                self.phase = Phase::Next;
                Step::Continue
            }
            Phase::Next => self.next(c, calls),
            Phase::Key => {
                self.raw.push(c);
                if self.scan.step(c) == Scan::Last {
                    self.key = std::mem::take(&mut self.raw);
                    self.phase = Phase::Colon;
                }
                Step::Continue
            }
            Phase::Colon if c.is_whitespace() => Step::Continue,
            Phase::Colon if c == ':' => match self.role() {
                Some(role) => {
                    self.scan = ValueScan::default();
                    self.raw.clear();
                    self.phase = Phase::Value(role);
                    Step::Continue
                }
                None => Step::Fail,
            },
            Phase::Colon => self.give_up(calls),
            Phase::Value(role) => self.value(role, c, calls),
        }
    }

    /// Ends a call whose arguments are complete, whatever else it lacks.
    pub(super) fn finish(&mut self, calls: &mut Calls) {
        if self.progress == Progress::Complete {
            calls.end();
        }
    }

    /// Ends the call if no value is being read.
    pub(super) fn close_before_marker(&mut self, calls: &mut Calls) {
        if self.phase == Phase::Next {
            self.give_up(calls);
        }
    }

    fn next(&mut self, c: char, calls: &mut Calls) -> Step {
        match c {
            ',' => Step::Continue,
            _ if c.is_whitespace() => Step::Continue,
            '"' => {
                self.scan = ValueScan::default();
                self.scan.step(c);
                self.raw.clear();
                self.raw.push(c);
                self.phase = Phase::Key;
                Step::Continue
            }
            '}' => self.close(calls),
            _ => self.give_up(calls),
        }
    }

    /// Reads the `}` of an object entered.
    fn close(&mut self, calls: &mut Calls) -> Step {
        if matches!(self.progress, Progress::Flat { level, .. } if level == self.level) {
            calls.arguments("}");
            self.progress = Progress::Complete;
        }
        if self.level > 1 {
            self.level -= 1;
            return Step::Continue;
        }
        if self.progress == Progress::Unknown {
            let Some(name) = self.name.take() else {
                return Step::Fail;
            };
            self.announce(&name, "{}", calls);
        }
        calls.end();
        Step::Done
    }

    /// Meets a character no object has here: an announced call ends before it, anything else is no call.
    fn give_up(&mut self, calls: &mut Calls) -> Step {
        match self.progress {
            Progress::Unknown => return Step::Fail,
            Progress::Flat { .. } => calls.arguments("}"),
            Progress::Arguments | Progress::Complete => {}
        }
        calls.end();
        Step::Leave
    }

    /// What the member of the key just read is good for; `None` if no call has such a key.
    fn role(&self) -> Option<Role> {
        let is_unknown = self.progress == Progress::Unknown;
        let has_neither = self.name.is_none() && self.early.is_none();
        let role = match (unquote(&self.key).as_str(), self.progress) {
            (_, Progress::Flat { level, .. }) if level == self.level => Role::Member,
            (_, Progress::Flat { .. } | Progress::Arguments | Progress::Complete) => Role::Ignored,
            ("_name", _) if has_neither => Role::FlatName,
            ("name", _) if self.name.is_none() => Role::Name,
            ("arguments" | "parameters", _) if is_unknown && self.early.is_none() => {
                Role::Arguments
            }
            ("function", _) if self.level == 1 && self.name.is_none() => Role::Function,
            ("type" | "id" | "call_id" | "index", _) if self.level == 1 => Role::Ignored,
            _ if self.level > 1 => Role::Member,
            _ if self.is_bare => return None,
            _ => Role::Ignored,
        };
        Some(role)
    }

    fn value(&mut self, role: Role, c: char, calls: &mut Calls) -> Step {
        let is_first = self.raw.is_empty() && self.progress != Progress::Arguments;
        if role == Role::Function && is_first && c == '{' {
            self.level += 1;
            self.phase = Phase::Next;
            return Step::Continue;
        }
        let scan = self.scan.step(c);
        match scan {
            Scan::Blank => return Step::Continue,
            Scan::Bad => return self.give_up(calls),
            Scan::Before => {}
            Scan::Inside | Scan::Last => self.take(role, c, is_first, calls),
        }
        if scan == Scan::Inside {
            return Step::Continue;
        }
        if !self.complete(role, calls) {
            return Step::Fail;
        }
        self.phase = Phase::Next;
        match scan {
            Scan::Before => self.next(c, calls),
            _ => Step::Continue,
        }
    }

    /// Takes a character of a value: passes it on if the call is announced, else keeps it.
    fn take(&mut self, role: Role, c: char, is_first: bool, calls: &mut Calls) {
        let mut buffer = [0; 4];
        let text = &*c.encode_utf8(&mut buffer);
        match (role, &mut self.progress) {
            (Role::Arguments, Progress::Arguments) => calls.arguments(text),
            (Role::Arguments, Progress::Unknown) if is_first && c == '{' && self.name.is_some() => {
                if let Some(name) = self.name.take() {
                    self.announce(&name, text, calls);
                    self.progress = Progress::Arguments;
                }
            }
            (Role::Member, Progress::Flat { members, .. }) => {
                if is_first {
                    separate(members, &self.key, calls);
                    // Not empty any more: the value has begun.
                    self.raw.push(c);
                }
                calls.arguments(text);
            }
            _ => self.raw.push(c),
        }
    }

    /// Settles what a value read to its end means; false if this cannot be a call.
    fn complete(&mut self, role: Role, calls: &mut Calls) -> bool {
        match role {
            Role::Arguments if self.progress == Progress::Arguments => {
                self.progress = Progress::Complete;
            }
            Role::Arguments => {
                let Some(arguments) = object_text(&self.raw) else {
                    return false;
                };
                match self.name.take() {
                    Some(name) => self.announce(&name, &arguments, calls),
                    None => self.early = Some(arguments),
                }
            }
            Role::Name | Role::Function | Role::FlatName => {
                let name = unquote(&self.raw);
                if !self.raw.starts_with('"') || calls.tool(&name).is_none() {
                    return false;
                }
                if role == Role::FlatName {
                    self.announce_flat(&name, calls);
                } else if let Some(arguments) = self.early.take() {
                    self.announce(&name, &arguments, calls);
                } else {
                    self.name = Some(name);
                }
            }
            Role::Member if self.progress == Progress::Unknown => {
                let key = std::mem::take(&mut self.key);
                self.members.push((key, std::mem::take(&mut self.raw)));
            }
            Role::Member | Role::Ignored => {}
        }
        true
    }

    /// Announces the call with complete arguments, or with the beginning of them.
    fn announce(&mut self, name: &str, arguments: &str, calls: &mut Calls) {
        calls.start(name);
        calls.arguments(arguments);
        self.progress = Progress::Complete;
    }

    fn announce_flat(&mut self, name: &str, calls: &mut Calls) {
        calls.start(name);
        calls.arguments("{");
        let mut passed = 0;
        for (key, value) in std::mem::take(&mut self.members) {
            separate(&mut passed, &key, calls);
            calls.arguments(&value);
        }
        self.progress = Progress::Flat {
            level: self.level,
            members: passed,
        };
    }
}

/// Passes on what stands before the value of the next member of an object.
pub(super) fn separate(members: &mut usize, key: &str, calls: &mut Calls) {
    if *members > 0 {
        calls.arguments(", ");
    }
    *members += 1;
    calls.arguments(key);
    calls.arguments(": ");
}

/// The text a JSON string stands for; a broken one for what stands between its quotes.
fn unquote(raw: &str) -> String {
    serde_json::from_str(raw).unwrap_or_else(|_| raw.trim_matches('"').to_owned())
}

/// The arguments object written as `raw`: an object, a string holding one, or nothing at all.
fn object_text(raw: &str) -> Option<String> {
    if raw.starts_with('{') {
        return Some(raw.to_owned());
    }
    if raw == "null" {
        return Some("{}".to_owned());
    }
    let text: String = serde_json::from_str(raw).ok()?;
    let text = text.trim();
    if text.is_empty() {
        return Some("{}".to_owned());
    }
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    value.is_object().then(|| text.to_owned())
}
