//! Shapes one row of scores before a token is drawn, in TGI's order.
//!
//! Bias, repetition penalty, frequency penalty, presence penalty, the grammar's mask, temperature, top-k,
//! top-p, typical-p, min-p; each only when it is set. A row untouched by any of them is never copied, and
//! once tokens have been excluded only the few that stay are looked at. Deliberate differences from TGI, all
//! toward what its parameters promise: rows are not padded, so token 0 is never penalised for padding, and
//! the frequency penalty counts over the sequence's own length, not the longest one of the batch, which
//! would make a request's tokens depend on its neighbours.
//!
//! Source: the text-generation-inference warpers (`utils/logits_process.py`); typical sampling, Meister et
//! al. 2022; nucleus sampling, Holtzman et al. 2020; min-p, Nguyen et al. 2024; the penalties on counts,
//! OpenAI's API reference.

use super::softmax;
use crate::generation::{FrequencyRule, Sampling, TokenId};
use crate::guided::Mask;

/// A row after shaping: the tokens that can still be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shaped<'a> {
    /// Every token of the vocabulary, by id.
    Whole(&'a [f32]),
    /// The tokens that were not excluded, by rising id, with their scores.
    Few(&'a [Candidate]),
}

/// A token with its score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Index in the vocabulary.
    pub id: u32,
    /// Its score after shaping.
    pub score: f32,
}

/// The tokens a sequence has so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen<'a> {
    /// The prompt's.
    pub prompt: &'a [TokenId],
    /// The answer's.
    pub generated: &'a [TokenId],
}

/// Buffers kept between rows, so that a warm step allocates nothing.
#[derive(Debug, Default)]
pub struct Processor {
    scores: Vec<f32>,
    few: Vec<Candidate>,
    work: Vec<f32>,
    counts: Vec<u32>,
}

impl Processor {
    /// Returns what can be drawn from a row; at least one token.
    ///
    /// `mask` says what a grammar allows; tokens beyond it are excluded before the temperature is applied,
    /// and where it leaves no choice nothing else is looked at.
    /// Cost: one pass for each setting that is on; only the tokens that stay are sorted.
    pub fn apply<'a>(
        &'a mut self,
        row: &'a [f32],
        sampling: &Sampling,
        seen: Seen<'_>,
        mask: Option<&Mask>,
    ) -> Shaped<'a> {
        let Sampling {
            temperature,
            repetition_penalty,
            frequency_penalty,
            frequency_rule: _,
            presence_penalty,
            logit_bias,
            top_k,
            top_p,
            typical_p,
            min_p,
            seed: _,
        } = sampling;
        if let Some(id) = mask.and_then(Mask::only)
            && let Some(&score) = row.get(id.0 as usize)
        {
            self.few.clear();
            self.few.push(Candidate { id: id.0, score });
            return Shaped::Few(&self.few);
        }
        let penalised =
            *repetition_penalty != 1.0 || *frequency_penalty != 0.0 || *presence_penalty != 0.0;
        let changed = penalised || !logit_bias.is_empty() || mask.is_some();
        let row = if changed || *temperature != 1.0 {
            self.scores.clear();
            self.scores.extend_from_slice(row);
            for (id, bias) in logit_bias {
                if let Some(score) = self.scores.get_mut(id.0 as usize) {
                    *score += bias;
                }
            }
            if penalised {
                penalise(&mut self.scores, &mut self.counts, sampling, seen);
            }
            if let Some(mask) = mask {
                exclude(&mut self.scores, mask);
            }
            if *temperature != 1.0 {
                // Differences to the best score, so that no temperature, however small, overflows.
                let best = softmax::best(&self.scores);
                self.scores
                    .iter_mut()
                    .for_each(|score| *score = (*score - best) / temperature);
            }
            &self.scores
        } else {
            row
        };
        let min_p = min_p.filter(|&p| p > 0.0);
        if top_k.is_none() && top_p.is_none() && typical_p.is_none() && min_p.is_none() {
            return Shaped::Whole(row);
        }
        let few = &mut self.few;
        let best = softmax::best(row);
        if !best.is_finite() {
            // A broken row is passed on as it is; the sampler refuses it.
            return Shaped::Whole(row);
        }
        few.clear();
        if let Some(k) = top_k {
            keep_best(few, &mut self.work, row, k.get() as usize);
        }
        if let Some(p) = top_p {
            let distance = |score: f32| best - score;
            keep_nearest(few, row, best, *p, distance);
        }
        if let Some(mass) = typical_p {
            let scores = if few.is_empty() {
                row
            } else {
                self.work.clear();
                self.work
                    .extend(few.iter().map(|candidate| candidate.score));
                &self.work
            };
            // Information is `ln total - (score - best)` nats; its mean is the entropy.
            let mean = softmax::sum_weighted(scores, best) / softmax::sum_exp(scores, best);
            let mean = mean as f32;
            keep_nearest(few, row, best, *mass, |score| (score - best - mean).abs());
        }
        if let Some(p) = min_p {
            keep_above_share(few, row, p);
        }
        Shaped::Few(few)
    }
}

/// Each setting on the tokens it is about; penalties of counts follow TGI's or OpenAI's rule.
fn penalise(scores: &mut [f32], counts: &mut Vec<u32>, sampling: &Sampling, seen: Seen<'_>) {
    let Seen { prompt, generated } = seen;
    let Sampling {
        repetition_penalty: repetition,
        frequency_penalty: frequency,
        ..
    } = *sampling;
    count(counts, scores.len(), prompt.iter().chain(generated));
    let length = (prompt.len() + generated.len()).max(1) as f32;
    let by_share = sampling.frequency_rule == FrequencyRule::Share;
    for (score, &count) in scores.iter_mut().zip(counts.iter()) {
        if count > 0 {
            *score = if *score < 0.0 {
                *score * repetition
            } else {
                *score / repetition
            };
            if by_share {
                *score -= frequency * count as f32 / length;
            }
            *score = score.clamp(f32::MIN, f32::MAX);
        }
    }
    let presence = sampling.presence_penalty;
    if presence == 0.0 && (by_share || frequency == 0.0) {
        return;
    }
    count(counts, scores.len(), generated.iter());
    for (score, &count) in scores.iter_mut().zip(counts.iter()) {
        if count > 0 {
            let by_count = if by_share {
                0.0
            } else {
                frequency * count as f32
            };
            *score = (*score - by_count - presence).clamp(f32::MIN, f32::MAX);
        }
    }
}

/// How often each token of the vocabulary occurs.
fn count<'a>(counts: &mut Vec<u32>, vocab: usize, tokens: impl Iterator<Item = &'a TokenId>) {
    counts.clear();
    counts.resize(vocab, 0);
    for token in tokens {
        if let Some(count) = counts.get_mut(token.0 as usize) {
            *count += 1;
        }
    }
}

/// Takes every token out that the mask does not allow.
fn exclude(scores: &mut [f32], mask: &Mask) {
    let words = mask.words().iter().copied().chain(std::iter::repeat(0));
    for (chunk, word) in scores.chunks_mut(32).zip(words) {
        for (bit, score) in chunk.iter_mut().enumerate() {
            if word >> bit & 1 == 0 && !score.is_nan() {
                *score = f32::NEG_INFINITY;
            }
        }
    }
}

/// Keeps the tokens at least `p` times as probable as the best one: of those kept so far, or of the whole
/// row when nothing has been excluded yet.
fn keep_above_share(few: &mut Vec<Candidate>, row: &[f32], p: f32) {
    let kept = few.iter().map(|candidate| candidate.score);
    let best = kept.fold(f32::NEG_INFINITY, f32::max);
    if few.is_empty() {
        let floor = softmax::best(row) + p.ln();
        gather(few, row, |score| score >= floor);
    } else {
        let floor = best + p.ln();
        few.retain(|candidate| candidate.score >= floor);
    }
}

/// Keeps the `k` best scores and all that equal the last of them.
fn keep_best(few: &mut Vec<Candidate>, work: &mut Vec<f32>, row: &[f32], k: usize) {
    let floor = if k >= row.len() {
        f32::NEG_INFINITY
    } else if k <= FEW_BEST {
        kth_of_few(work, row, k)
    } else {
        work.clear();
        work.extend_from_slice(row);
        *work.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
    };
    gather(few, row, |score| {
        score >= floor && score > f32::NEG_INFINITY
    });
}

/// Up to so many best scores, an ordered list of them is cheaper than a partial sort of the whole row.
const FEW_BEST: usize = 256;

/// The `k`-th best score, by keeping the `k` best of what has been seen, best first.
fn kth_of_few(best: &mut Vec<f32>, row: &[f32], k: usize) -> f32 {
    best.clear();
    let mut floor = f32::NEG_INFINITY;
    for chunk in row.chunks(64) {
        let top = softmax::best(chunk);
        if best.len() == k && top <= floor {
            continue;
        }
        for &score in chunk {
            if best.len() < k || score > floor {
                let at = best.partition_point(|&other| other >= score);
                best.insert(at, score);
                best.truncate(k);
                floor = best[best.len() - 1];
            }
        }
    }
    floor
}

/// Keeps the tokens of least distance until they hold the share `mass` of the probability: of those kept so
/// far, or of the whole row when `few` is empty because nothing has been excluded yet.
fn keep_nearest(
    few: &mut Vec<Candidate>,
    row: &[f32],
    best: f32,
    mass: f32,
    distance: impl Fn(f32) -> f32,
) {
    let weight = |score: f32| f64::from(softmax::exp(score - best));
    let narrowed = !few.is_empty();
    let all: f64 = if narrowed {
        few.iter().map(|candidate| weight(candidate.score)).sum()
    } else {
        softmax::sum_exp(row, best)
    };
    let target = f64::from(mass) * all;
    // Most of the probability mostly lies near: look at a small neighbourhood first, and at a larger one
    // only while it does not hold enough.
    for limit in [1.0, 2.0, 4.0, 8.0, 16.0, f32::INFINITY] {
        let is_near = |score: f32| distance(score) <= limit && score > f32::NEG_INFINITY;
        if !narrowed {
            gather(few, row, is_near);
        }
        let near = few.iter().filter(|candidate| is_near(candidate.score));
        let found: f64 = near.map(|candidate| weight(candidate.score)).sum();
        if found >= target || limit == f32::INFINITY {
            few.retain(|candidate| is_near(candidate.score));
            break;
        }
    }
    few.sort_unstable_by(|a, b| {
        distance(a.score)
            .total_cmp(&distance(b.score))
            .then(a.id.cmp(&b.id))
    });
    let mut sum = 0.0;
    let kept = few.iter().take_while(|candidate| {
        let enough = sum >= target;
        sum += weight(candidate.score);
        !enough
    });
    let kept = kept.count().max(1);
    few.truncate(kept);
    few.sort_unstable_by_key(|candidate| candidate.id);
}

/// Collects the tokens whose score is wanted, by rising id.
pub(super) fn gather(few: &mut Vec<Candidate>, row: &[f32], wanted: impl Fn(f32) -> bool) {
    few.clear();
    for (block, chunk) in row.chunks(64).enumerate() {
        // One look at the whole chunk first: hardly any holds a wanted score.
        if chunk.iter().fold(false, |any, &score| any | wanted(score)) {
            let first = (block * 64) as u32;
            let ids = (first..).zip(chunk).filter(|(_, score)| wanted(**score));
            few.extend(ids.map(|(id, &score)| Candidate { id, score }));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    const ROW: [f32; 5] = [1.0, 3.0, 2.0, -1.0, 2.0];

    fn ids(shaped: Shaped<'_>) -> Vec<u32> {
        match shaped {
            Shaped::Whole(row) => (0..row.len() as u32).collect(),
            Shaped::Few(few) => few.iter().map(|candidate| candidate.id).collect(),
        }
    }

    fn kept(sampling: Sampling) -> Vec<u32> {
        ids(Processor::default().apply(&ROW, &sampling, Seen::default(), None))
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
    fn a_large_top_k_keeps_the_same_as_a_full_sort() {
        let row: Vec<f32> = (0..3000).map(|i| ((i * 7919) % 500) as f32).collect();
        for k in [1, 255, 256, 257, 1000, 2999, 3000, 5000] {
            let sampling = Sampling {
                top_k: NonZeroU32::new(k),
                ..Sampling::GREEDY
            };
            let mut sorted = row.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let floor = sorted[(k as usize).min(row.len()) - 1];
            let expected: Vec<u32> = (0..3000).filter(|&i| row[i as usize] >= floor).collect();
            let mut processor = Processor::default();
            assert_eq!(
                ids(processor.apply(&row, &sampling, Seen::default(), None)),
                expected
            );
        }
    }

    #[test]
    fn top_p_keeps_the_smallest_nucleus_and_at_least_one() {
        // Probabilities: 0.072, 0.529, 0.195, 0.010, 0.195.
        let top_p = |p| Sampling {
            top_p: Some(p),
            ..Sampling::GREEDY
        };
        assert_eq!(kept(top_p(0.01)), [1]);
        assert_eq!(kept(top_p(0.56)), [1, 2]);
        assert_eq!(kept(top_p(0.80)), [1, 2, 4]);
        assert_eq!(kept(top_p(0.995)), [0, 1, 2, 3, 4]);
        let both = Sampling {
            top_k: NonZeroU32::new(3),
            ..top_p(0.9)
        };
        assert_eq!(kept(both), [1, 2, 4]);
        // Of the three best alone, the first holds 0.576.
        let both = Sampling {
            top_k: NonZeroU32::new(3),
            ..top_p(0.57)
        };
        assert_eq!(kept(both), [1]);
    }

    #[test]
    fn a_wide_nucleus_holds_just_enough() {
        let row: Vec<f32> = (0..5000)
            .map(|i| ((i * 7919) % 5000) as f32 * 1e-3)
            .collect();
        for p in [0.05, 0.5, 0.9, 0.999] {
            let sampling = Sampling {
                top_p: Some(p),
                ..Sampling::GREEDY
            };
            let mut processor = Processor::default();
            let kept = ids(processor.apply(&row, &sampling, Seen::default(), None));
            let weight = |id: u32| f64::from(row[id as usize]).exp();
            let total: f64 = (0..5000).map(weight).sum();
            let mass: f64 = kept.iter().map(|&id| weight(id)).sum::<f64>() / total;
            let least = kept
                .iter()
                .map(|&id| weight(id))
                .fold(f64::INFINITY, f64::min);
            let dropped = (0..5000).filter(|id| !kept.contains(id));
            assert!(dropped.map(weight).all(|w| w <= least));
            assert!(mass >= f64::from(p) - 1e-6 && mass - least / total < f64::from(p) + 1e-6);
        }
    }

    #[test]
    fn typical_p_prefers_the_expected_information() {
        // Entropy is 1.21 nats; tokens 2 and 4 carry 1.64, token 1 carries 0.64, token 0 carries 2.64.
        let typical = |p| Sampling {
            typical_p: Some(p),
            ..Sampling::GREEDY
        };
        assert_eq!(kept(typical(0.3)), [2, 4]);
        assert_eq!(kept(typical(0.5)), [1, 2, 4]);
    }

    #[test]
    fn penalties_touch_seen_tokens_only() {
        let mut processor = Processor::default();
        let sampling = Sampling {
            repetition_penalty: 2.0,
            frequency_penalty: 1.0,
            ..Sampling::GREEDY
        };
        let seen = Seen {
            prompt: &[TokenId(1), TokenId(1)],
            generated: &[TokenId(3), TokenId(1)],
        };
        let shaped = processor.apply(&ROW, &sampling, seen, None);
        assert_eq!(
            shaped,
            Shaped::Whole(&[1.0, 1.5 - 0.75, 2.0, -2.0 - 0.25, 2.0])
        );
    }

    #[test]
    fn a_bias_is_added_first_and_unknown_tokens_are_ignored() {
        let sampling = Sampling {
            logit_bias: vec![
                (TokenId(1), -100.0),
                (TokenId(0), 100.0),
                (TokenId(99), 5.0),
            ],
            repetition_penalty: 2.0,
            ..Sampling::GREEDY
        };
        let seen = Seen {
            prompt: &[TokenId(0), TokenId(1)],
            generated: &[],
        };
        let mut processor = Processor::default();
        let shaped = processor.apply(&ROW, &sampling, seen, None);
        assert_eq!(
            shaped,
            Shaped::Whole(&[101.0 / 2.0, -97.0 * 2.0, 2.0, -1.0, 2.0])
        );
    }

    #[test]
    fn counts_and_presence_are_those_of_the_answer_alone() {
        let sampling = Sampling {
            frequency_penalty: 0.5,
            frequency_rule: FrequencyRule::Count,
            presence_penalty: 0.25,
            ..Sampling::GREEDY
        };
        let seen = Seen {
            prompt: &[TokenId(1), TokenId(1), TokenId(2)],
            generated: &[TokenId(2), TokenId(4), TokenId(2)],
        };
        let mut processor = Processor::default();
        let expected = [1.0, 3.0, 2.0 - 1.0 - 0.25, -1.0, 2.0 - 0.5 - 0.25];
        let shaped = processor.apply(&ROW, &sampling, seen, None);
        assert_eq!(shaped, Shaped::Whole(&expected));
        // The share is TGI's: over prompt and answer, 3 of 6 and 1 of 6; presence as before.
        let sampling = Sampling {
            frequency_rule: FrequencyRule::Share,
            ..sampling
        };
        let Shaped::Whole(row) = processor.apply(&ROW, &sampling, seen, None) else {
            panic!("nothing was excluded");
        };
        let expected = [1.0, 3.0 - 1.0 / 6.0, 1.5, -1.0, 1.75 - 0.5 / 6.0];
        assert!(
            row.iter()
                .zip(expected)
                .all(|(a, b): (&f32, f32)| (a - b).abs() < 1e-6),
            "{row:?}"
        );
    }

    #[test]
    fn min_p_keeps_what_is_probable_enough_beside_the_best() {
        // Relative to the best: 0.135, 1, 0.368, 0.018, 0.368.
        let min_p = |p| Sampling {
            min_p: Some(p),
            ..Sampling::GREEDY
        };
        assert_eq!(kept(min_p(0.0)), [0, 1, 2, 3, 4]);
        assert_eq!(kept(min_p(0.018)), [0, 1, 2, 3, 4]);
        assert_eq!(kept(min_p(0.13)), [0, 1, 2, 4]);
        assert_eq!(kept(min_p(0.14)), [1, 2, 4]);
        assert_eq!(kept(min_p(0.37)), [1]);
        assert_eq!(kept(min_p(1.0)), [1]);
        // At temperature 2 the roots count: 0.368, 1, 0.607, 0.135, 0.607.
        let flat = Sampling {
            temperature: 2.0,
            ..min_p(0.3)
        };
        assert_eq!(kept(flat), [0, 1, 2, 4]);
        // After typical-p the best of those that stay counts.
        let typical = Sampling {
            typical_p: Some(0.3),
            ..min_p(0.9)
        };
        assert_eq!(kept(typical), [2, 4]);
    }

    #[test]
    fn a_mask_takes_tokens_out_before_anything_is_cut() {
        let mask = Mask::of(&[0, 3], 5);
        let mut processor = Processor::default();
        let mut masked = |sampling: Sampling| -> Vec<u32> {
            match processor.apply(&ROW, &sampling, Seen::default(), Some(&mask)) {
                Shaped::Whole(row) => (0..5).filter(|&i| row[i as usize].is_finite()).collect(),
                few @ Shaped::Few(_) => ids(few),
            }
        };
        assert_eq!(masked(Sampling::GREEDY), [0, 3]);
        for sampling in [
            Sampling {
                top_k: NonZeroU32::new(5),
                ..Sampling::GREEDY
            },
            Sampling {
                top_p: Some(0.999_999),
                temperature: 3.0,
                ..Sampling::GREEDY
            },
            Sampling {
                typical_p: Some(0.999_999),
                ..Sampling::GREEDY
            },
            Sampling {
                min_p: Some(1e-9),
                ..Sampling::GREEDY
            },
        ] {
            assert_eq!(masked(sampling.clone()), [0, 3], "{sampling:?}");
        }
    }

    #[test]
    fn a_mask_shorter_than_the_row_allows_nothing_behind_its_end() {
        let row = [0.0; 100];
        let mut processor = Processor::default();
        let mask = Mask::of(&[1, 2], 3);
        let top_k = Sampling {
            top_k: NonZeroU32::new(100),
            ..Sampling::GREEDY
        };
        let shaped = processor.apply(&row, &top_k, Seen::default(), Some(&mask));
        assert_eq!(ids(shaped), [1, 2]);
    }

    #[test]
    fn a_forced_token_is_certain_whatever_its_score() {
        let mut processor = Processor::default();
        let sampling = Sampling {
            logit_bias: vec![(TokenId(3), -100.0)],
            seed: Some(1),
            ..Sampling::GREEDY
        };
        let mask = Mask::of(&[3], 5);
        let shaped = processor.apply(&ROW, &sampling, Seen::default(), Some(&mask));
        let sampled = super::super::sampler::sample(shaped, Some(1), 0, 5).expect("finite");
        assert_eq!((sampled.token, sampled.logprob), (TokenId(3), 0.0));
        assert_eq!(sampled.top, [(TokenId(3), 0.0)]);
    }

    #[test]
    fn extreme_settings_leave_a_row_that_can_be_drawn_from() {
        let seen = Seen {
            prompt: &[TokenId(2), TokenId(3)],
            generated: &[],
        };
        for (temperature, repetition_penalty) in [(1e-40, 1.0), (1e-40, 1e-40), (1.0, 1e-40)] {
            let sampling = Sampling {
                temperature,
                repetition_penalty,
                ..Sampling::GREEDY
            };
            let mut processor = Processor::default();
            let Shaped::Whole(row) = processor.apply(&ROW, &sampling, seen, None) else {
                panic!("nothing was excluded");
            };
            assert!(softmax::best(row).is_finite(), "{row:?}");
        }
    }

    #[test]
    fn an_untouched_row_is_not_copied() {
        let mut processor = Processor::default();
        let sampling = Sampling {
            seed: Some(1),
            ..Sampling::GREEDY
        };
        let Shaped::Whole(row) = processor.apply(&ROW, &sampling, Seen::default(), None) else {
            panic!("nothing was excluded");
        };
        assert!(std::ptr::eq(row, ROW.as_slice()));
    }
}
