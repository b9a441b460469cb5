//! Leaves out a stop string that the upstream shows and the caller does not want to see.

/// Holds back whatever may begin a stop string until that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cutter {
    stops: Vec<String>,
    held: String,
    cut: Option<String>,
}

impl Cutter {
    pub(super) fn new(stops: &[String]) -> Self {
        Self {
            stops: stops.iter().filter(|s| !s.is_empty()).cloned().collect(),
            held: String::new(),
            cut: None,
        }
    }

    /// Takes more text and returns what is certain; nothing behind a stop string is.
    pub(super) fn push(&mut self, text: &str) -> String {
        if self.cut.is_some() {
            return String::new();
        }
        self.held += text;
        let found = self.stops.iter().filter_map(|stop| {
            let at = self.held.find(stop.as_str())?;
            Some((at, stop))
        });
        if let Some((at, stop)) = found.min_by_key(|(at, _)| *at) {
            self.cut = Some(stop.clone());
            let mut before = std::mem::take(&mut self.held);
            before.truncate(at);
            return before;
        }
        let may_begin = |at: &usize| {
            let tail = &self.held[*at..];
            self.stops.iter().any(|stop| stop.starts_with(tail))
        };
        let starts = self.held.char_indices().map(|(at, _)| at);
        let certain = starts
            .into_iter()
            .find(may_begin)
            .unwrap_or(self.held.len());
        let rest = self.held.split_off(certain);
        std::mem::replace(&mut self.held, rest)
    }

    /// What was held back for nothing.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The stop string that was cut off.
    pub(super) fn cut(&self) -> Option<&str> {
        self.cut.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(stops: &[&str], texts: &[&str]) -> (Vec<String>, Option<String>) {
        let stops: Vec<String> = stops.iter().map(|&s| s.to_owned()).collect();
        let mut cutter = Cutter::new(&stops);
        let mut shown: Vec<String> = texts.iter().map(|text| cutter.push(text)).collect();
        shown.push(cutter.finish());
        (shown, cutter.cut().map(str::to_owned))
    }

    #[test]
    fn a_stop_string_is_cut_wherever_it_is_broken() {
        let (shown, cut) = read(&["###"], &["a#", "#", "#b", "c"]);
        assert_eq!(
            (shown.concat(), cut.as_deref()),
            ("a".to_owned(), Some("###"))
        );
        assert_eq!(shown[0], "a");
    }

    #[test]
    fn what_only_looked_like_one_is_shown_as_soon_as_that_is_known() {
        let (shown, cut) = read(&["é!", "END"], &["xE", "Né", "?", "E"]);
        assert_eq!(shown, ["x", "EN", "é?", "", "E"]);
        assert_eq!(cut, None);
    }
}
