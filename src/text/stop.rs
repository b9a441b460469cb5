//! Finding stop strings in text that arrives in pieces.
//!
//! A stop string may end inside a token or span several, so matching looks at bytes and ignores where
//! one piece ends and the next begins. The only state is the end of the text seen so far, one byte
//! shorter than the longest stop string: more cannot be part of a match that is still to come.
//! The module decides nothing about output; the native rule keeps the stop string and the OpenAI rule
//! drops it, and both can be carried out with what [`StopMatcher::push`] and [`StopMatcher::held_back`] say.

/// What one piece of text did to the search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopOutcome {
    /// No stop string has ended yet.
    None,
    /// A stop string ended inside this piece.
    Matched {
        /// Bytes of this piece up to and including the stop string's last one.
        keep_bytes: usize,
        /// Length in bytes of the stop string, which may have begun in an earlier piece: the text without
        /// it is all text up to `keep_bytes` less its last `stop_bytes`.
        stop_bytes: usize,
    },
}

/// Searches a growing text for the first stop string that is completed.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    /// Never empty strings; longest first, so that of two that end together the longer is found.
    stops: Vec<Vec<u8>>,
    /// The last bytes seen, at most one fewer than the longest stop string has.
    tail: Vec<u8>,
}

impl StopMatcher {
    /// Starts a search for `stops` in a text still empty; empty stop strings are ignored.
    pub fn new(stops: &[String]) -> Self {
        let mut stops: Vec<Vec<u8>> = stops
            .iter()
            .filter(|stop| !stop.is_empty())
            .map(|stop| stop.as_bytes().to_vec())
            .collect();
        stops.sort_by_key(|stop| std::cmp::Reverse(stop.len()));
        Self {
            stops,
            tail: Vec::new(),
        }
    }

    /// Appends `piece` to the text and reports the stop string that ends first in it.
    ///
    /// Of several stop strings the one whose end comes first wins, and of those that end together the
    /// longest. The search is over after a match; what later calls say is unspecified.
    ///
    /// Units: bytes; both counts fall on character boundaries.
    /// Cost: O(stops × stop length × (piece + longest stop)), no allocation for short pieces.
    pub fn push(&mut self, piece: &str) -> StopOutcome {
        let seen = self.tail.len();
        self.tail.extend_from_slice(piece.as_bytes());
        let mut first: Option<(usize, usize)> = None;
        for stop in &self.stops {
            if let Some(end) = first_end(&self.tail, stop, seen)
                && first.is_none_or(|(best, _)| end < best)
            {
                first = Some((end, stop.len()));
            }
        }
        let keep = self.stops.first().map_or(0, |longest| longest.len() - 1);
        let surplus = self.tail.len().saturating_sub(keep);
        self.tail.drain(..surplus);
        match first {
            None => StopOutcome::None,
            Some((end, stop_bytes)) => StopOutcome::Matched {
                keep_bytes: end - seen,
                stop_bytes,
            },
        }
    }

    /// Counts the bytes at the end of the text that may turn out to begin a stop string.
    ///
    /// Under the OpenAI rule these must not be sent yet. The count falls on a character boundary and is
    /// smaller than the longest stop string.
    pub fn held_back(&self) -> usize {
        (0..self.tail.len())
            .find(|&start| {
                let suffix = &self.tail[start..];
                self.stops.iter().any(|stop| stop.starts_with(suffix))
            })
            .map_or(0, |start| self.tail.len() - start)
    }
}

/// End of the first occurrence of `stop` in `text` that ends behind byte `seen`.
fn first_end(text: &[u8], stop: &[u8], seen: usize) -> Option<usize> {
    let from = (seen + 1).saturating_sub(stop.len());
    text[from..]
        .windows(stop.len())
        .position(|window| window == stop)
        .map(|start| from + start + stop.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matcher(stops: &[&str]) -> StopMatcher {
        StopMatcher::new(
            &stops
                .iter()
                .map(|stop| (*stop).to_owned())
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn finds_a_stop_inside_a_piece() {
        let outcome = matcher(&["\n\n"]).push("end.\n\nNext");
        assert_eq!(
            outcome,
            StopOutcome::Matched {
                keep_bytes: 6,
                stop_bytes: 2
            }
        );
    }

    #[test]
    fn finds_a_stop_across_pieces() {
        let mut search = matcher(&["STOP"]);
        assert_eq!(search.push("a ST"), StopOutcome::None);
        assert_eq!(search.held_back(), 2);
        assert_eq!(search.push("O"), StopOutcome::None);
        assert_eq!(search.held_back(), 3);
        assert_eq!(search.push(""), StopOutcome::None);
        assert_eq!(
            search.push("P!"),
            StopOutcome::Matched {
                keep_bytes: 1,
                stop_bytes: 4
            }
        );
    }

    #[test]
    fn of_two_that_end_together_the_longer_wins() {
        let outcome = matcher(&["b", "ab"]).push("xab");
        assert_eq!(
            outcome,
            StopOutcome::Matched {
                keep_bytes: 3,
                stop_bytes: 2
            }
        );
    }

    #[test]
    fn empty_stops_never_match() {
        let mut search = matcher(&["", ""]);
        assert_eq!(search.push("anything"), StopOutcome::None);
        assert_eq!(search.held_back(), 0);
    }

    #[test]
    fn memory_is_bounded_by_the_longest_stop() {
        let mut search = matcher(&["aab", "x"]);
        for _ in 0..1000 {
            assert_eq!(search.push("aaaa"), StopOutcome::None);
            assert!(search.tail.len() <= 2);
            assert_eq!(search.held_back(), 2);
        }
    }

    /// The stop that ends first in `text`, longest on a tie, as (start, end).
    fn naive(text: &str, stops: &[String]) -> Option<(usize, usize)> {
        (1..=text.len()).find_map(|end| {
            stops
                .iter()
                .filter(|stop| {
                    !stop.is_empty() && text.as_bytes()[..end].ends_with(stop.as_bytes())
                })
                .map(|stop| (end - stop.len(), end))
                .min()
        })
    }

    proptest! {
        #[test]
        fn agrees_with_a_search_over_the_whole_text(
            text in "[abé🙂]{0,40}",
            stops in prop::collection::vec("[abé🙂]{0,4}", 0..4),
            cuts in prop::collection::vec(0_usize..200, 0..20),
        ) {
            let mut cuts: Vec<usize> = cuts
                .into_iter()
                .map(|cut| cut % (text.len() + 1))
                .filter(|cut| text.is_char_boundary(*cut))
                .chain([0, text.len()])
                .collect();
            cuts.sort_unstable();
            let mut search = StopMatcher::new(&stops);
            let mut found = None;
            for pair in cuts.windows(2) {
                let outcome = search.push(&text[pair[0]..pair[1]]);
                if let StopOutcome::Matched { keep_bytes, stop_bytes } = outcome {
                    let end = pair[0] + keep_bytes;
                    found = Some((end - stop_bytes, end));
                    break;
                }
                let seen = &text[..pair[1]];
                let held = (0..=seen.len()).find(|start| {
                    seen.is_char_boundary(*start)
                        && stops.iter().any(|stop| stop.len() > seen.len() - start && stop.starts_with(&seen[*start..]))
                });
                prop_assert_eq!(search.held_back(), held.map_or(0, |start| seen.len() - start));
            }
            prop_assert_eq!(found, naive(&text, &stops));
        }
    }
}
