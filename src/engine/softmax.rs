//! Sums of exponentials over a whole vocabulary, once a token for every sequence.
//!
//! Plain loops over sixteen lanes that the compiler turns into vector code on any machine; the engine's
//! thread does this while the kernels' threads rest, so it must cost a small part of a step. Sums have one
//! fixed order. It computes nothing that depends on more than one row.

const LANES: usize = 16;

/// Rows are summed in stretches of this length, short enough for f32; the stretches are summed in f64.
pub(super) const STRETCH: usize = 256;

/// `e^x` for `x <= 0`, within two units in the last place; 0 below the smallest normal number.
///
/// Source: Cody & Waite's two-part ln 2 and a Taylor polynomial on `[-ln 2 / 2, ln 2 / 2]`.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding it rounds to whole numbers and leaves them in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let normal = x.max(-87.0);
    let shifted = normal * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = normal - n * LN_2_HIGH - n * LN_2_LOW;
    let mut p = 1.0 / 5040.0;
    for c in [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        p = p * r + c;
    }
    let exponent = shifted
        .to_bits()
        .wrapping_sub(ROUND.to_bits())
        .wrapping_add(127);
    let scaled = p * f32::from_bits(exponent << 23);
    if x < -87.0 { 0.0 } else { scaled }
}

/// The largest score; NaN when there is one, because a broken row must be noticed.
pub(super) fn best(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut broken = [false; LANES];
    let chunks = row.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = if chunk[i] > lanes[i] {
                chunk[i]
            } else {
                lanes[i]
            };
            broken[i] |= chunk[i].is_nan();
        }
    }
    if broken.contains(&true) || rest.iter().any(|x| x.is_nan()) {
        return f32::NAN;
    }
    lanes
        .iter()
        .chain(rest)
        .copied()
        .fold(f32::NEG_INFINITY, f32::max)
}

/// Sum of `exp(score - best)`.
pub(super) fn sum_exp(row: &[f32], best: f32) -> f64 {
    row.chunks(STRETCH)
        .map(|stretch| f64::from(stretch_sum(stretch, best)))
        .sum()
}

/// [`sum_exp`] of at most [`STRETCH`] scores.
pub(super) fn stretch_sum(stretch: &[f32], best: f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let chunks = stretch.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().map(|&x| exp(x - best)).sum();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += exp(chunk[i] - best);
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// Sum of `(score - best) * exp(score - best)`, excluded scores counting nothing.
pub(super) fn sum_weighted(row: &[f32], best: f32) -> f64 {
    let term = |&x: &f32| {
        let distance = x - best;
        if distance > -87.0 {
            distance * exp(distance)
        } else {
            0.0
        }
    };
    row.chunks(STRETCH)
        .map(|stretch| f64::from(stretch.iter().map(term).sum::<f32>()))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulps_and_zero_at_the_end() {
        for i in 0..870_000 {
            let x = -(i as f32) * 1e-4;
            let (ours, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!(
                (ours - exact).abs() <= exact * 2.4e-7,
                "{x}: {ours} for {exact}"
            );
        }
        assert_eq!(
            [exp(0.0), exp(-88.0), exp(f32::NEG_INFINITY)],
            [1.0, 0.0, 0.0]
        );
    }

    #[test]
    fn sums_agree_with_plain_ones_at_any_length() {
        for len in [1, 15, 16, 17, 255, 256, 257, 5000] {
            let row: Vec<f32> = (0..len)
                .map(|i| ((i * 7919) % 1000) as f32 * -0.01)
                .collect();
            let exact: f64 = row.iter().map(|&x| f64::from(x - 1.0).exp()).sum();
            assert!((sum_exp(&row, 1.0) / exact - 1.0).abs() < 1e-5);
            let weighted: f64 = row
                .iter()
                .map(|&x| f64::from(x - 1.0) * f64::from(x - 1.0).exp())
                .sum();
            assert!((sum_weighted(&row, 1.0) / weighted - 1.0).abs() < 1e-5);
            assert_eq!(best(&row), row.iter().copied().fold(f32::MIN, f32::max));
        }
        assert!(best(&[0.0; 20].map(|_: f32| f32::NAN)).is_nan());
        assert!(best(&[0.0, f32::NAN]).is_nan());
    }
}
