//! Shapes one row of scores before a token is drawn, in TGI's order.
//!
//! Repetition penalty, frequency penalty, temperature, top-k, top-p, typical-p; each only when it is set.
//! A row untouched by any of them is never copied. Deliberate differences from TGI, all toward what its
//! parameters promise: rows are not padded, so token 0 is never penalised for padding, and the frequency
//! penalty counts over the sequence's own length, not the longest one of the batch, which would make a
//! request's tokens depend on its neighbours.
//!
//! Source: the text-generation-inference warpers (`utils/logits_process.py`); typical sampling, Meister et
//! al. 2022; nucleus sampling, Holtzman et al. 2020.

use crate::generation::{Sampling, TokenId};

/// Buffers kept between rows, so that a warm step allocates nothing.
#[derive(Debug, Default)]
pub struct Processor {
    scores: Vec<f32>,
    order: Vec<u32>,
    counts: Vec<u32>,
}

impl Processor {
    /// Returns the row as it is, or a shaped copy in which excluded tokens are `-inf`.
    ///
    /// `seen` is prompt and answer so far. At least one token always stays.
    /// Cost: one pass for each setting that is on; sorting only for top-p and typical-p.
    pub fn apply<'a>(
        &'a mut self,
        row: &'a [f32],
        sampling: &Sampling,
        seen: &[TokenId],
    ) -> &'a [f32] {
        let Sampling {
            temperature,
            repetition_penalty,
            frequency_penalty,
            top_k,
            top_p,
            typical_p,
            seed: _,
        } = sampling;
        let untouched = *temperature == 1.0
            && *repetition_penalty == 1.0
            && *frequency_penalty == 0.0
            && top_k.is_none()
            && top_p.is_none()
            && typical_p.is_none();
        if untouched {
            return row;
        }
        self.scores.clear();
        self.scores.extend_from_slice(row);
        if *repetition_penalty != 1.0 || *frequency_penalty != 0.0 {
            self.penalise(*repetition_penalty, *frequency_penalty, seen);
        }
        if *temperature != 1.0 {
            self.scores
                .iter_mut()
                .for_each(|score| *score /= temperature);
        }
        if let Some(k) = top_k {
            self.keep_best(k.get() as usize);
        }
        if let Some(p) = top_p {
            self.keep_nucleus(*p);
        }
        if let Some(mass) = typical_p {
            self.keep_typical(*mass);
        }
        &self.scores
    }

    fn penalise(&mut self, repetition: f32, frequency: f32, seen: &[TokenId]) {
        self.counts.clear();
        self.counts.resize(self.scores.len(), 0);
        for token in seen {
            if let Some(count) = self.counts.get_mut(token.0 as usize) {
                *count += 1;
            }
        }
        let length = seen.len().max(1) as f32;
        for (score, &count) in self.scores.iter_mut().zip(&self.counts) {
            if count > 0 {
                *score = if *score < 0.0 {
                    *score * repetition
                } else {
                    *score / repetition
                };
                *score -= frequency * count as f32 / length;
            }
        }
    }

    /// Keeps the `k` best scores and all that equal the last of them.
    fn keep_best(&mut self, k: usize) {
        if k >= self.scores.len() {
            return;
        }
        self.collect_order();
        let scores = &self.scores;
        let (_, &mut kth, _) = self
            .order
            .select_nth_unstable_by(k - 1, |&a, &b| descending(scores, a, b));
        let floor = self.scores[kth as usize];
        self.scores
            .iter_mut()
            .filter(|s| **s < floor)
            .for_each(|s| *s = f32::NEG_INFINITY);
    }

    /// Keeps the best tokens until their probability reaches `p`.
    fn keep_nucleus(&mut self, p: f32) {
        let (best, total) = normaliser(&self.scores);
        let target = f64::from(p) * total;
        self.collect_order();
        let mut mass = 0.0;
        let mut kept = 0;
        let mut sorted = 0;
        // The nucleus is mostly small: sort a few best tokens, and more only while that is not enough.
        while mass < target && kept < self.order.len() {
            if kept == sorted {
                let next = (sorted.max(32) * 8).min(self.order.len());
                let scores = &self.scores;
                let rest = &mut self.order[sorted..];
                let take = next - sorted;
                if take < rest.len() {
                    rest.select_nth_unstable_by(take, |&a, &b| descending(scores, a, b));
                }
                rest[..take].sort_unstable_by(|&a, &b| descending(scores, a, b));
                sorted = next;
            }
            mass += weight(self.scores[self.order[kept] as usize], best);
            kept += 1;
        }
        self.drop_from(kept.max(1));
    }

    /// Keeps the tokens whose information is nearest the row's entropy until their probability reaches
    /// `mass`.
    fn keep_typical(&mut self, mass: f32) {
        let (best, total) = normaliser(&self.scores);
        let log_total = total.ln();
        let information = |score: f32| log_total - f64::from(score - best);
        let entropy: f64 = self
            .scores
            .iter()
            .filter(|score| score.is_finite())
            .map(|&score| weight(score, best) / total * information(score))
            .sum();
        self.collect_order();
        let scores = &self.scores;
        let distance = |id: u32| (information(scores[id as usize]) - entropy).abs();
        self.order
            .sort_unstable_by(|&a, &b| distance(a).total_cmp(&distance(b)).then(a.cmp(&b)));
        let mut sum = 0.0;
        let mut kept = 0;
        while sum < f64::from(mass) * total && kept < self.order.len() {
            sum += weight(self.scores[self.order[kept] as usize], best);
            kept += 1;
        }
        self.drop_from(kept.max(1));
    }

    /// Lists all tokens not excluded yet.
    fn collect_order(&mut self) {
        self.order.clear();
        let finite = self
            .scores
            .iter()
            .enumerate()
            .filter(|(_, score)| **score > f32::NEG_INFINITY);
        self.order.extend(finite.map(|(id, _)| id as u32));
        if self.order.is_empty() {
            self.order.push(0);
        }
    }

    fn drop_from(&mut self, kept: usize) {
        for &id in &self.order[kept..] {
            self.scores[id as usize] = f32::NEG_INFINITY;
        }
    }
}

/// Best first; equal scores by rising id, so that the order is total.
fn descending(scores: &[f32], a: u32, b: u32) -> std::cmp::Ordering {
    scores[b as usize]
        .total_cmp(&scores[a as usize])
        .then(a.cmp(&b))
}

fn weight(score: f32, best: f32) -> f64 {
    f64::from((score - best).exp())
}

/// The best score and the sum of `exp(score - best)`.
pub(super) fn normaliser(scores: &[f32]) -> (f32, f64) {
    let best = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // Partial sums over fixed stretches: a fixed order, and short enough for f32.
    let total = scores
        .chunks(64)
        .map(|chunk| f64::from(chunk.iter().map(|&s| (s - best).exp()).sum::<f32>()))
        .sum();
    (best, total)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    const ROW: [f32; 5] = [1.0, 3.0, 2.0, -1.0, 2.0];

    fn kept(sampling: Sampling) -> Vec<usize> {
        let mut processor = Processor::default();
        let scores = processor.apply(&ROW, &sampling, &[]);
        (0..ROW.len()).filter(|&i| scores[i].is_finite()).collect()
    }

    #[test]
    fn top_k_keeps_ties() {
        let top_k = |k| Sampling {
            top_k: NonZeroU32::new(k),
            ..Sampling::GREEDY
        };
        assert_eq!(kept(top_k(1)), [1]);
        assert_eq!(kept(top_k(2)), [1, 2, 4]);
        assert_eq!(kept(top_k(9)), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn top_p_keeps_the_smallest_nucleus_and_at_least_one() {
        // Probabilities: 0.075, 0.554, 0.204, 0.010, 0.204 (rounded).
        let top_p = |p| Sampling {
            top_p: Some(p),
            ..Sampling::GREEDY
        };
        assert_eq!(kept(top_p(0.01)), [1]);
        assert_eq!(kept(top_p(0.56)), [1, 2]);
        assert_eq!(kept(top_p(0.80)), [1, 2, 4]);
        assert_eq!(kept(top_p(0.995)), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_wide_nucleus_is_found_through_the_growing_sort() {
        let row: Vec<f32> = (0..5000)
            .map(|i| ((i * 7919) % 5000) as f32 * 1e-4)
            .collect();
        let mut processor = Processor::default();
        let sampling = Sampling {
            top_p: Some(0.9),
            ..Sampling::GREEDY
        };
        let scores = processor.apply(&row, &sampling, &[]);
        let (best, total) = normaliser(&row);
        let kept: Vec<f32> = scores.iter().copied().filter(|s| s.is_finite()).collect();
        let mass: f64 = kept.iter().map(|&s| weight(s, best)).sum::<f64>() / total;
        let smallest = kept.iter().copied().fold(f32::INFINITY, f32::min);
        assert!(
            mass >= 0.9 && mass - weight(smallest, best) / total < 0.9,
            "{mass}"
        );
        let dropped = row.iter().filter(|s| !kept.contains(s));
        assert!(dropped.copied().all(|s| s <= smallest));
    }

    #[test]
    fn typical_p_prefers_the_expected_information() {
        // Entropy is 1.24 nats; token 0 carries 2.6, token 1 0.59, tokens 2 and 4 1.59, token 3 4.6.
        let typical = Sampling {
            typical_p: Some(0.3),
            ..Sampling::GREEDY
        };
        assert_eq!(kept(typical), [2, 4]);
    }

    #[test]
    fn penalties_touch_seen_tokens_only() {
        let mut processor = Processor::default();
        let sampling = Sampling {
            repetition_penalty: 2.0,
            frequency_penalty: 1.0,
            ..Sampling::GREEDY
        };
        let seen = [TokenId(1), TokenId(1), TokenId(3), TokenId(1)];
        let scores = processor.apply(&ROW, &sampling, &seen);
        assert_eq!(scores, [1.0, 1.5 - 0.75, 2.0, -2.0 - 0.25, 2.0]);
    }

    #[test]
    fn an_untouched_row_is_not_copied() {
        let mut processor = Processor::default();
        let scores = processor.apply(
            &ROW,
            &Sampling {
                seed: Some(1),
                ..Sampling::GREEDY
            },
            &[],
        );
        assert!(std::ptr::eq(scores, ROW.as_slice()));
    }
}
