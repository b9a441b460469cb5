//! Draws one token from a shaped row, and says how probable it and its rivals were.
//!
//! A token is a function of the row, the seed and its place in the answer, nothing else: no generator
//! state to lose in a preemption, and the same request repeats its answer in any company.

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use super::logits::normaliser;
use crate::generation::TokenId;

/// A drawn token.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// The token.
    pub token: TokenId,
    /// Natural logarithm of its probability in the shaped row.
    pub logprob: f32,
    /// The best tokens of the row with their log-probabilities, best first; more than asked on ties.
    pub top: Vec<(TokenId, f32)>,
}

/// Draws from a shaped row: the best token when `seed` is none, else by inverse transform.
///
/// `place` is the token's index within the answer; `top_n` is how many rivals to report.
/// Errors: none when every score is `-inf` or one is NaN, that is, when the forward pass went wrong.
/// Cost: two passes over the row, one more for `top_n`.
pub fn sample(row: &[f32], seed: Option<u64>, place: usize, top_n: usize) -> Option<Sampled> {
    let (best, total) = normaliser(row);
    if !best.is_finite() || !total.is_finite() {
        return None;
    }
    let token = match seed {
        None => row.iter().position(|&score| score == best)?,
        Some(seed) => draw(row, best, total, uniform(seed, place)),
    };
    let log_total = total.ln();
    let logprob = |score: f32| (f64::from(score - best) - log_total) as f32;
    let top = best_tokens(row, top_n)
        .into_iter()
        .map(|id| (TokenId(id), logprob(row[id as usize])));
    Some(Sampled {
        token: TokenId(token as u32),
        logprob: logprob(row[token]),
        top: top.collect(),
    })
}

/// The log-probability of one token of a row.
pub fn logprob_of(row: &[f32], token: TokenId) -> f32 {
    let (best, total) = normaliser(row);
    (f64::from(row[token.0 as usize] - best) - total.ln()) as f32
}

/// A number in \[0, 1) that depends on seed and place only.
fn uniform(seed: u64, place: usize) -> f64 {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    generator.set_word_pos(2 * place as u128);
    (generator.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

fn draw(row: &[f32], best: f32, total: f64, uniform: f64) -> usize {
    let mut left = uniform * total;
    let mut last = 0;
    for (id, &score) in row.iter().enumerate() {
        let weight = f64::from((score - best).exp());
        if weight > 0.0 {
            last = id;
            left -= weight;
            if left < 0.0 {
                return id;
            }
        }
    }
    last
}

/// The `n` best tokens, best first, and all that equal the last of them.
fn best_tokens(row: &[f32], n: usize) -> Vec<u32> {
    if n == 0 {
        return Vec::new();
    }
    let mut best: Vec<f32> = Vec::with_capacity(n + 1);
    for &score in row {
        if score > f32::NEG_INFINITY && (best.len() < n || score > best[n - 1]) {
            let at = best.partition_point(|&other| other >= score);
            best.insert(at, score);
            best.truncate(n);
        }
    }
    let Some(&floor) = best.last() else {
        return Vec::new();
    };
    let mut ids: Vec<u32> = (0..row.len() as u32)
        .filter(|&id| row[id as usize] >= floor)
        .collect();
    ids.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]));
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: [f32; 4] = [0.0, f32::NEG_INFINITY, 2.0, 2.0];

    #[test]
    fn greedy_takes_the_first_best_and_reports_ties() {
        let sampled = sample(&ROW, None, 0, 1).expect("a finite row");
        assert_eq!(sampled.token, TokenId(2));
        assert!(
            (sampled.logprob - (-0.758_72)).abs() < 1e-4,
            "{}",
            sampled.logprob
        );
        assert_eq!(
            sampled.top.iter().map(|(id, _)| id.0).collect::<Vec<_>>(),
            [2, 3]
        );
        assert_eq!(sample(&ROW, None, 0, 9).expect("a finite row").top.len(), 3);
    }

    #[test]
    fn draws_follow_the_probabilities_and_repeat_with_the_seed() {
        let n = 20_000;
        let mut counts = [0; 4];
        for place in 0..n {
            let sampled = sample(&ROW, Some(7), place, 0).expect("a finite row");
            assert_eq!(
                sampled,
                sample(&ROW, Some(7), place, 0).expect("a finite row")
            );
            counts[sampled.token.0 as usize] += 1;
        }
        let share = |id: usize| f64::from(counts[id]) / n as f64;
        assert_eq!(counts[1], 0);
        assert!(
            (share(0) - 0.0634).abs() < 0.01 && (share(2) - 0.468).abs() < 0.015,
            "{counts:?}"
        );
    }

    #[test]
    fn a_broken_row_is_no_token() {
        assert_eq!(sample(&[f32::NEG_INFINITY; 3], None, 0, 0), None);
        assert_eq!(sample(&[0.0, f32::NAN], None, 0, 0), None);
        assert_eq!(sample(&[0.0, f32::INFINITY], None, 0, 0), None);
    }
}
