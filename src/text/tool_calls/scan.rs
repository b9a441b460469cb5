//! Finding where a JSON value ends in text that arrives character by character.
//!
//! Arguments are passed on while they are written, so a call's reader must know where the object ends
//! without a tree of it. The scan counts brackets and skips strings; it does not validate, hence a broken
//! value still ends somewhere, and what a model wrote reaches the client as it is.

/// What one character did to a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scan {
    /// White space before the value.
    Blank,
    /// The character belongs to the value, which goes on.
    Inside,
    /// The character is the value's last one.
    Last,
    /// The value ended before this character.
    Before,
    /// No value begins with this character.
    Bad,
}

/// Position inside one JSON value.
#[derive(Debug, Clone, Default)]
pub(super) struct ValueScan {
    begun: bool,
    depth: usize,
    quoted: bool,
    escaped: bool,
}

impl ValueScan {
    /// Reads the next character; after [`Scan::Last`] or [`Scan::Before`] the scan is over.
    pub(super) fn step(&mut self, c: char) -> Scan {
        if self.quoted {
            if self.escaped {
                self.escaped = false;
            } else if c == '\\' {
                self.escaped = true;
            } else if c == '"' {
                self.quoted = false;
                if self.depth == 0 {
                    return Scan::Last;
                }
            }
            return Scan::Inside;
        }
        let scalar = self.begun && self.depth == 0;
        match c {
            _ if c.is_whitespace() && !self.begun => return Scan::Blank,
            _ if scalar && (c.is_whitespace() || matches!(c, ',' | '}' | ']')) => {
                return Scan::Before;
            }
            ',' | ':' | '}' | ']' if !self.begun => return Scan::Bad,
            _ if scalar => {}
            '"' => self.quoted = true,
            '{' | '[' => self.depth += 1,
            '}' | ']' => {
                self.depth -= 1;
                if self.depth == 0 {
                    return Scan::Last;
                }
            }
            _ => {}
        }
        self.begun = true;
        Scan::Inside
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of the value at the start of `text`, blanks before it included.
    fn end(text: &str) -> Option<usize> {
        let mut scan = ValueScan::default();
        text.char_indices().find_map(|(at, c)| match scan.step(c) {
            Scan::Last => Some(at + c.len_utf8()),
            Scan::Before => Some(at),
            Scan::Blank | Scan::Inside | Scan::Bad => None,
        })
    }

    #[test]
    fn values_end_where_json_says() {
        assert_eq!(end(r#"{"a": "}\"}"} rest"#), Some(13));
        assert_eq!(end(r#" [1, [2]],"#), Some(9));
        assert_eq!(end(r#""é\"", "#), Some(6));
        assert_eq!(end("-1.5e3}"), Some(6));
        assert_eq!(end("null ,"), Some(4));
        assert_eq!(end("{"), None);
    }
}
