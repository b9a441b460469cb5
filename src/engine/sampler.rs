//! Draws one token from a shaped row, and says how probable it and its rivals were.
//!
//! A token is a function of the row, the seed and its place in the answer, nothing else: no generator
//! state to lose in a preemption, and the same request repeats its answer in any company.

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use super::logits::{Candidate, Shaped, gather};
use super::softmax::{STRETCH, best, exp, stretch_sum, sum_exp};
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
/// Errors: none when every score is `-inf` or one is not a number, that is, when the forward pass went
/// wrong.
/// Cost: two or three passes over the row, one more for `top_n`.
pub fn sample(row: Shaped<'_>, seed: Option<u64>, place: usize, top_n: usize) -> Option<Sampled> {
    match row {
        Shaped::Whole(scores) => sample_whole(scores, seed, place, top_n),
        Shaped::Few(few) => sample_few(few, seed, place, top_n),
    }
}

fn sample_whole(row: &[f32], seed: Option<u64>, place: usize, top_n: usize) -> Option<Sampled> {
    let best = best(row);
    if !best.is_finite() {
        return None;
    }
    let total = sum_exp(row, best);
    let token = match seed {
        None => first_of(row, best)?,
        Some(seed) => draw(row, best, uniform(seed, place) * total),
    };
    let chosen = Candidate {
        id: token as u32,
        score: row[token],
    };
    let top = top_tokens(candidates(row, top_n), top_n);
    Some(report(chosen, &top, best, total))
}

fn sample_few(few: &[Candidate], seed: Option<u64>, place: usize, top_n: usize) -> Option<Sampled> {
    let best = few
        .iter()
        .map(|c| c.score)
        .fold(f32::NEG_INFINITY, f32::max);
    if !best.is_finite() {
        return None;
    }
    let weight = |c: &Candidate| f64::from(exp(c.score - best));
    let total: f64 = few.iter().map(weight).sum();
    let chosen = match seed {
        None => few.iter().find(|c| c.score == best)?,
        Some(seed) => {
            let mut left = uniform(seed, place) * total;
            let passed = |c: &&Candidate| {
                left -= weight(c);
                left < 0.0
            };
            few.iter().find(passed).or(few.last())?
        }
    };
    let among = if top_n == 0 { Vec::new() } else { few.to_vec() };
    let top = top_tokens(among, top_n);
    Some(report(*chosen, &top, best, total))
}

fn report(chosen: Candidate, top: &[Candidate], best: f32, total: f64) -> Sampled {
    Sampled {
        token: TokenId(chosen.id),
        logprob: logprob(chosen.score, best, total),
        top: top
            .iter()
            .map(|c| (TokenId(c.id), logprob(c.score, best, total)))
            .collect(),
    }
}

fn logprob(score: f32, best: f32, total: f64) -> f32 {
    (f64::from(score - best) - total.ln()) as f32
}

/// The log-probability of one token of a row.
pub fn logprob_of(row: &[f32], token: TokenId) -> f32 {
    let best = best(row);
    logprob(row[token.0 as usize], best, sum_exp(row, best))
}

/// A number in \[0, 1) that depends on seed and place only.
fn uniform(seed: u64, place: usize) -> f64 {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    generator.set_word_pos(2 * place as u128);
    (generator.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

/// The first token of the best score.
fn first_of(row: &[f32], best: f32) -> Option<usize> {
    let chunk = row
        .chunks(64)
        .position(|c| c.iter().fold(false, |any, &s| any | (s == best)))?;
    (chunk * 64..row.len()).find(|&id| row[id] == best)
}

/// The token at which the running sum of weights passes `left`: whole stretches first, then within one.
fn draw(row: &[f32], best: f32, mut left: f64) -> usize {
    let mut last = 0;
    for (i, stretch) in row.chunks(STRETCH).enumerate() {
        let sum = f64::from(stretch_sum(stretch, best));
        let first = i * STRETCH;
        if left >= sum {
            left -= sum;
            if sum > 0.0 {
                last = first;
            }
            continue;
        }
        for (offset, &score) in stretch.iter().enumerate() {
            let weight = f64::from(exp(score - best));
            if weight > 0.0 {
                last = first + offset;
                left -= weight;
                if left < 0.0 {
                    break;
                }
            }
        }
        return last;
    }
    // Rounding alone leads here: the last token that can be drawn at all.
    (last..row.len())
        .rev()
        .find(|&id| exp(row[id] - best) > 0.0)
        .unwrap_or(last)
}

/// Every token that may be among the `n` best: those of the `n` best chunks' scores and above.
fn candidates(row: &[f32], n: usize) -> Vec<Candidate> {
    let mut few = Vec::new();
    if n == 0 {
        return few;
    }
    let mut tops: Vec<f32> = row.chunks(64).map(best).collect();
    // With fewer chunks than wanted tokens no chunk's best score bounds anything.
    let floor = if tops.len() < n {
        f32::NEG_INFINITY
    } else {
        *tops.select_nth_unstable_by(n - 1, |a, b| b.total_cmp(a)).1
    };
    gather(&mut few, row, |score| {
        score >= floor && score > f32::NEG_INFINITY
    });
    few
}

/// The `n` best, best first, and all that equal the last of them.
fn top_tokens(mut among: Vec<Candidate>, n: usize) -> Vec<Candidate> {
    let Some(last) = n.checked_sub(1) else {
        return Vec::new();
    };
    among.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.id.cmp(&b.id)));
    if let Some(nth) = among.get(last).copied() {
        let end = among.partition_point(|c| c.score >= nth.score);
        among.truncate(end);
    }
    among
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: [f32; 4] = [0.0, f32::NEG_INFINITY, 2.0, 2.0];

    fn few() -> Vec<Candidate> {
        [(0, 0.0), (2, 2.0), (3, 2.0)]
            .map(|(id, score)| Candidate { id, score })
            .to_vec()
    }

    #[test]
    fn greedy_takes_the_first_best_and_reports_ties() {
        for row in [Shaped::Whole(&ROW), Shaped::Few(&few())] {
            let sampled = sample(row, None, 0, 1).expect("a finite row");
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
            assert_eq!(sample(row, None, 0, 9).expect("a finite row").top.len(), 3);
        }
    }

    #[test]
    fn the_best_tokens_of_a_long_row_are_found() {
        let row: Vec<f32> = (0..3000).map(|i| ((i * 7919) % 3001) as f32).collect();
        for n in [1, 5, 60] {
            let mut expected: Vec<usize> = (0..row.len()).collect();
            expected.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
            let top = sample(Shaped::Whole(&row), None, 0, n)
                .expect("a finite row")
                .top;
            let ids: Vec<usize> = top.iter().map(|(id, _)| id.0 as usize).collect();
            assert_eq!(ids, expected[..n]);
        }
    }

    #[test]
    fn draws_follow_the_probabilities_and_repeat_with_the_seed() {
        for row in [Shaped::Whole(&ROW), Shaped::Few(&few())] {
            let n = 20_000;
            let mut counts = [0; 4];
            for place in 0..n {
                let sampled = sample(row, Some(7), place, 0).expect("a finite row");
                assert_eq!(
                    sampled,
                    sample(row, Some(7), place, 0).expect("a finite row")
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
    }

    #[test]
    fn draws_reach_every_stretch_of_a_long_row() {
        let row = vec![0.0; 1000];
        let mut quarters = [0; 4];
        for place in 0..4000 {
            let sampled = sample(Shaped::Whole(&row), Some(3), place, 0).expect("a finite row");
            quarters[sampled.token.0 as usize / 250] += 1;
        }
        assert!(
            quarters.iter().all(|&n| (900..1100).contains(&n)),
            "{quarters:?}"
        );
        assert_eq!(draw(&row, 0.0, 999.999_999), 999);
        assert_eq!(draw(&row, 0.0, 1001.0), 999);
        assert_eq!(draw(&row, 0.0, 0.0), 0);
    }

    #[test]
    fn a_broken_row_is_no_token() {
        for row in [
            [f32::NEG_INFINITY; 2],
            [0.0, f32::NAN],
            [0.0, f32::INFINITY],
        ] {
            assert_eq!(sample(Shaped::Whole(&row), None, 0, 0), None);
        }
    }
}
