//! Server-sent events from bytes, however the network cut them.
//!
//! A state machine that is fed chunks and hands out events as they become whole; it knows neither sockets nor
//! JSON. It follows the WHATWG's rules but for two things: an event at the end of the stream that no blank line
//! closed counts, since servers forget the blank line, and one event may not grow beyond a bound. Names, data
//! and comments are all that matters here, so ids and retry times are read over.

use std::borrow::Cow;

/// One event, valid during the call that hands it out.
#[derive(Debug, PartialEq, Eq)]
pub struct SseEvent<'a> {
    /// The `event:` line's text, if there was one.
    pub name: Option<&'a str>,
    /// The `data:` lines' text, joined by line feeds. Bytes that are not UTF-8 are replaced.
    pub data: &'a str,
    /// Whether a blank line closed it; one at the end of the stream may have been cut.
    pub closed: bool,
}

/// One event is longer than allowed; nothing after it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("one event is longer than {0} bytes")]
pub struct TooLong(pub usize);

/// Reads a stream of events.
///
/// Invariants: how the bytes are cut into chunks does not change the events; at most the bound and one chunk
/// are held.
/// Source: WHATWG HTML, 9.2.5 and 9.2.6 (parsing and interpreting an event stream).
#[derive(Debug)]
pub struct SseParser {
    most: usize,
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    name: Vec<u8>,
    /// The last byte was a carriage return, so that a line feed now belongs to it.
    after_cr: bool,
    /// No line has ended yet: a byte order mark may stand before the first.
    first_line: bool,
    too_long: bool,
}

impl SseParser {
    /// A reader of events of at most so many bytes each.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            line: Vec::new(),
            data: Vec::new(),
            has_data: false,
            name: Vec::new(),
            after_cr: false,
            first_line: true,
            too_long: false,
        }
    }

    /// Reads more bytes; `each` gets every event they complete, in order.
    ///
    /// Errors: [`TooLong`], after the events before it were handed out, and on every call from then on.
    /// Cost: O(bytes); no allocation once the buffers have grown.
    pub fn push(
        &mut self,
        mut chunk: &[u8],
        mut each: impl FnMut(SseEvent<'_>),
    ) -> Result<(), TooLong> {
        if self.too_long {
            return Err(TooLong(self.most));
        }
        while !chunk.is_empty() {
            if self.after_cr {
                self.after_cr = false;
                if chunk[0] == b'\n' {
                    chunk = &chunk[1..];
                    continue;
                }
            }
            let end = chunk.iter().position(|&b| b == b'\n' || b == b'\r');
            let piece = &chunk[..end.unwrap_or(chunk.len())];
            if self.data.len() + self.line.len() + piece.len() > self.most {
                self.too_long = true;
                return Err(TooLong(self.most));
            }
            let Some(end) = end else {
                self.line.extend_from_slice(piece);
                return Ok(());
            };
            self.after_cr = chunk[end] == b'\r';
            if self.line.is_empty() {
                self.end_line(piece, &mut each);
            } else {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(piece);
                self.end_line(&line, &mut each);
                line.clear();
                self.line = line;
            }
            chunk = &chunk[end + 1..];
        }
        Ok(())
    }

    /// Ends the stream: hands out the event that no blank line closed, if there is one.
    pub fn finish(&mut self, mut each: impl FnMut(SseEvent<'_>)) {
        if self.too_long {
            return;
        }
        if !self.line.is_empty() {
            let line = std::mem::take(&mut self.line);
            self.end_line(&line, &mut each);
        }
        self.dispatch(false, &mut each);
    }

    fn end_line(&mut self, line: &[u8], each: &mut impl FnMut(SseEvent<'_>)) {
        let line = if std::mem::take(&mut self.first_line) {
            line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line)
        } else {
            line
        };
        if line.is_empty() {
            return self.dispatch(true, each);
        }
        let colon = line.iter().position(|&b| b == b':').unwrap_or(line.len());
        let value = line.get(colon + 1..).unwrap_or_default();
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match &line[..colon] {
            b"data" => {
                if self.has_data {
                    self.data.push(b'\n');
                }
                self.has_data = true;
                self.data.extend_from_slice(value);
            }
            b"event" => {
                self.name.clear();
                self.name.extend_from_slice(value);
            }
            // A comment has an empty name; ids, retry times and unknown fields say nothing here.
            _ => {}
        }
    }

    fn dispatch(&mut self, closed: bool, each: &mut impl FnMut(SseEvent<'_>)) {
        if self.has_data {
            let name = String::from_utf8_lossy(&self.name);
            let data = String::from_utf8_lossy(&self.data);
            each(SseEvent {
                name: Some(&*name).filter(|name: &&str| !name.is_empty()),
                data: match &data {
                    Cow::Borrowed(data) => data,
                    Cow::Owned(data) => data,
                },
                closed,
            });
        }
        self.data.clear();
        self.has_data = false;
        self.name.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Owned = (Option<String>, String);

    fn parse(chunks: &[&[u8]], most: usize) -> (Vec<Owned>, bool) {
        let mut parser = SseParser::new(most);
        let mut events = Vec::new();
        let mut keep =
            |e: SseEvent<'_>| events.push((e.name.map(str::to_owned), e.data.to_owned()));
        for chunk in chunks {
            if parser.push(chunk, &mut keep).is_err() {
                return (events, true);
            }
        }
        parser.finish(&mut keep);
        (events, false)
    }

    fn all(bytes: &[u8]) -> Vec<Owned> {
        parse(&[bytes], 1 << 20).0
    }

    /// The WHATWG's text, sentence by sentence: decode all, split into lines, interpret. An unclosed event at
    /// the end counts.
    fn reference(bytes: &[u8]) -> Vec<Owned> {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        let mut lines: Vec<&str> = text.split('\n').collect();
        lines.push("");
        let (mut events, mut name, mut data) = (Vec::new(), String::new(), String::new());
        for line in lines {
            if line.is_empty() {
                if !data.is_empty() {
                    data.pop();
                    let name = Some(name.clone()).filter(|n| !n.is_empty());
                    events.push((name, data.clone()));
                }
                name.clear();
                data.clear();
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "data" => {
                    data.push_str(value);
                    data.push('\n');
                }
                "event" => name = value.to_owned(),
                _ => {}
            }
        }
        events
    }

    fn event(data: &str) -> Owned {
        (None, data.to_owned())
    }

    #[test]
    fn every_line_ending_and_every_field() {
        assert_eq!(
            all(b"data: a\n\ndata:b\r\n\r\ndata:  c\r\r"),
            vec![event("a"), event("b"), event(" c")]
        );
        assert_eq!(
            all(b": hello\n\n:\n\nid: 1\nretry: 5\nevent: error\ndata: x\ndata\ndata: y\n\n"),
            vec![(Some("error".to_owned()), "x\n\ny".to_owned())]
        );
        assert_eq!(
            all(b"\xEF\xBB\xBFdata: a\n\n\xEF\xBB\xBFdata: b\n\n"),
            vec![event("a")]
        );
        assert_eq!(
            all(b"data:\n\nevent: x\n\ndata: z"),
            vec![event(""), event("z")]
        );
        assert_eq!(all("data: é\n\n".as_bytes()), vec![event("é")]);
        assert_eq!(all(b"data: \xFF\n\n"), vec![event("\u{fffd}")]);
    }

    #[test]
    fn the_end_tells_whether_the_event_was_closed() {
        let mut parser = SseParser::new(100);
        let mut closed = Vec::new();
        parser
            .push(b"data: a\n\ndata: b", |e| closed.push(e.closed))
            .unwrap();
        parser.finish(|e| closed.push(e.closed));
        assert_eq!(closed, [true, false]);
    }

    #[test]
    fn one_event_is_bounded_whatever_it_is_made_of() {
        assert_eq!(
            parse(&[b"data: ok\n\ndata: 12345678\n\n"], 12),
            (vec![event("ok")], true)
        );
        assert!(parse(&[b"data: 12\ndata: 34\ndata: 56\n\n"], 12).1);
        assert!(!parse(&[b"data: 12\n\ndata: 34\n\ndata: 56\n\n"], 12).1);
        assert!(parse(&[b": a very long comment"], 12).1);
        let mut parser = SseParser::new(4);
        assert_eq!(parser.push(b"data: x", |_| {}), Err(TooLong(4)));
        assert_eq!(parser.push(b"\n\n", |_| {}), Err(TooLong(4)));
    }

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            Just(b"data:".to_vec()),
            Just(b"data".to_vec()),
            Just(b"event: n".to_vec()),
            Just(b"id: 1".to_vec()),
            Just(b"retry: 3".to_vec()),
            Just(b":".to_vec()),
            Just(b" ".to_vec()),
            Just(b"\n".to_vec()),
            Just(b"\n\n".to_vec()),
            Just(b"\r".to_vec()),
            Just(b"\r\n".to_vec()),
            Just(b"\xEF\xBB\xBF".to_vec()),
            Just("é€😀".as_bytes().to_vec()),
            Just(b"\xE2\x82".to_vec()),
            Just(b"{\"a\":1}".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..4),
        ];
        proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn agrees_with_the_standard(bytes in bytes()) {
            prop_assert_eq!(all(&bytes), reference(&bytes));
        }

        #[test]
        fn cuts_change_nothing(bytes in bytes(), cuts in proptest::collection::vec(0usize..200, 0..8), most in 1usize..80) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            prop_assert_eq!(parse(&chunks, most), parse(&[&bytes], most));
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            prop_assert_eq!(parse(&single, most), parse(&[&bytes], most));
        }
    }
}
