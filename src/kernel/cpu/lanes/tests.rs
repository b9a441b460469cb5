//! The few lane operations whose mistakes the kernels' own tests could miss.

use super::*;

struct Exp<'a>(&'a mut [f32]);

impl Kernel for Exp<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        for run in self.0.chunks_exact_mut(LANES) {
            L::load(run.as_ptr()).exp().store(run.as_mut_ptr());
        }
    }
}

struct Sums<'a>(&'a mut [f32]);

impl Kernel for Sums<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let p = self.0.as_mut_ptr();
        let four = [
            L::load(p),
            L::load(p.add(16)),
            L::load(p.add(32)),
            L::load(p.add(48)),
        ];
        let sums = L::sum_across(four);
        let alone = four[2].sum();
        self.0[..4].copy_from_slice(&sums);
        self.0[4] = alone;
        self.0[5] = four[1].max_across();
    }
}

fn available() -> impl Iterator<Item = Tier> {
    Tier::ALL.into_iter().filter(|tier| tier.is_available())
}

#[test]
fn exp_is_close_and_keeps_the_ends() {
    let inputs: Vec<f32> = (0..400_000)
        .map(|i| -105.0 + 195.0 * i as f32 / 400_000.0)
        .collect();
    let mut results = Vec::new();
    for tier in available() {
        let mut out = inputs.clone();
        // SAFETY: the tier is available.
        unsafe { run(tier, Exp(&mut out)) };
        for (&x, &y) in inputs.iter().zip(&out) {
            let exact = f64::from(x).exp();
            if exact > f64::from(f32::MAX) {
                assert_eq!(y, f32::INFINITY, "e^{x}");
            } else {
                // One unit in the last place is 2^-23 of the result, and never less than the smallest subnormal.
                let unit = (exact * 2.0_f64.powi(-23)).max(2.0_f64.powi(-149));
                assert!(
                    (f64::from(y) - exact).abs() <= 2.0 * unit,
                    "{tier}: e^{x} = {y}, not {exact}"
                );
            }
        }
        let mut ends = [f32::NEG_INFINITY; LANES];
        ends[1..7].copy_from_slice(&[f32::INFINITY, f32::NAN, 0.0, -0.0, 1e30, -1e30]);
        // SAFETY: the tier is available.
        unsafe { run(tier, Exp(&mut ends)) };
        assert_eq!(ends[0], 0.0);
        assert_eq!(ends[1], f32::INFINITY);
        assert!(ends[2].is_nan());
        assert_eq!(ends[3..7], [1.0, 1.0, f32::INFINITY, 0.0]);
        results.push((tier, out));
    }
    if let [(Tier::Avx512, a), (Tier::Avx2, b), ..] = results.as_slice() {
        assert!(a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits()));
    }
}

#[test]
fn sums_have_one_order() {
    let inputs: Vec<f32> = (0..64)
        .map(|i| 1.0 / (i as f32 + 0.7) * if i % 3 == 0 { -1e3 } else { 1.0 })
        .collect();
    let expected: Vec<f32> = inputs
        .chunks_exact(16)
        .map(|v| {
            let pair = |i: usize| v[i] + v[i + 8];
            let quad = |i: usize| pair(i) + pair(i + 4);
            (quad(0) + quad(2)) + (quad(1) + quad(3))
        })
        .collect();
    for tier in available() {
        let mut out = inputs.clone();
        // SAFETY: the tier is available.
        unsafe { run(tier, Sums(&mut out)) };
        assert_eq!(out[..4], expected, "{tier}");
        assert_eq!(out[4], expected[2], "{tier}");
        assert_eq!(
            out[5],
            inputs[16..32].iter().copied().fold(f32::MIN, f32::max),
            "{tier}"
        );
    }
}
