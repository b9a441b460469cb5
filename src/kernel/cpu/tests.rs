//! Every operation on every tier against its slow twin, and the law: the same bits for any company a row is in.

use std::num::NonZeroUsize;

use candle_core::quantized::k_quants::{
    BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K,
    BlockQ8_0, GgmlType,
};

use super::*;
use crate::kernel::reference;

/// `SplitMix64`: seeded, so that a failure repeats.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// Roughly normal, with one in a hundred six times as large.
    fn float(&mut self) -> f32 {
        let sum: f32 = (0..4)
            .map(|_| (self.next() >> 40) as f32 / (1 << 24) as f32 - 0.5)
            .sum();
        if self.below(100) == 0 {
            12.0 * sum
        } else {
            2.0 * sum
        }
    }

    fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float()).collect()
    }

    /// Weight bytes: any codes, finite scales of either sign, some zero or subnormal. One byte in front spoils alignment.
    fn weights(&mut self, format: Format, n: usize, k: usize) -> Vec<u8> {
        let mut bytes = vec![0xff];
        for _ in 0..n * k / format.block_len() {
            let mut block: Vec<u8> = (0..format.block_bytes())
                .map(|_| self.next() as u8)
                .collect();
            let scales: &[usize] = match format {
                Format::F32 => {
                    block = self.float().to_le_bytes().to_vec();
                    &[]
                }
                Format::F16 => &[0],
                Format::Bf16 => {
                    block = half::bf16::from_f32(self.float()).to_le_bytes().to_vec();
                    &[]
                }
                Format::Q4_0 | Format::Q5_0 | Format::Q8_0 => &[0],
                Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[0, 2],
                Format::Q2K => &[80, 82],
                Format::Q3K => &[108],
                Format::Q6K => &[208],
            };
            for &at in scales {
                let scale = match self.below(20) {
                    0 => 0.0,
                    1 => 3e-7,
                    _ => self.float() * 0.1,
                };
                block[at..at + 2].copy_from_slice(&half::f16::from_f32(scale).to_le_bytes());
            }
            bytes.extend(block);
        }
        bytes
    }
}

fn cpu(threads: usize, tier: Tier) -> Cpu {
    Cpu::new(NonZeroUsize::new(threads).unwrap(), Some(tier)).unwrap()
}

fn tiers() -> Vec<Tier> {
    Tier::ALL
        .into_iter()
        .filter(|tier| tier.is_available())
        .collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn assert_close(actual: &[f32], expected: &[f32], size: impl Fn(usize) -> f64, what: &str) {
    assert_eq!(actual.len(), expected.len());
    for (i, (&a, &e)) in actual.iter().zip(expected).enumerate() {
        let error = (f64::from(a) - f64::from(e)).abs();
        assert!(
            error <= 1e-6 * size(i),
            "{what}: element {i} is {a}, not {e}, size {}",
            size(i)
        );
    }
}

fn product(cpu: &Cpu, x: &[f32], k: usize, weights: &[MatrixView<'_>]) -> Vec<f32> {
    let width: usize = weights.iter().map(MatrixView::n).sum();
    let mut out = vec![f32::NAN; x.len() / k * width];
    cpu.matmul(x, k, weights, &mut out);
    out
}

/// Row lengths that a format allows, with tails of every kind where it allows any.
fn depths(format: Format) -> &'static [usize] {
    match format.block_len() {
        1 => &[1, 7, 16, 17, 31, 33, 49, 64, 96, 255, 256, 288, 1025],
        32 => &[32, 64, 96, 256, 288, 1056],
        _ => &[256, 512, 768, 2048],
    }
}

#[test]
fn dequantisation_agrees_with_candle_bit_for_bit() {
    fn candle<T: GgmlType>(bytes: &[u8]) -> Vec<f32> {
        let count = bytes.len() / size_of::<T>();
        let mut blocks = vec![T::zeros(); count];
        // SAFETY: candle's blocks are plain bytes laid out as in the file, and `count` of them fit.
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                blocks.as_mut_ptr().cast(),
                count * size_of::<T>(),
            )
        };
        let mut out = vec![f32::NAN; count * T::BLCK_SIZE];
        T::to_float(&blocks, &mut out);
        out
    }
    let mut random = Random(1);
    for format in [
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q8_0,
        Format::Q2K,
        Format::Q3K,
        Format::Q4K,
        Format::Q5K,
        Format::Q6K,
    ] {
        let (n, k) = (9, 768);
        let bytes = &random.weights(format, n, k)[1..];
        let expected = match format {
            Format::Q4_0 => candle::<BlockQ4_0>(bytes),
            Format::Q4_1 => candle::<BlockQ4_1>(bytes),
            Format::Q5_0 => candle::<BlockQ5_0>(bytes),
            Format::Q5_1 => candle::<BlockQ5_1>(bytes),
            Format::Q8_0 => candle::<BlockQ8_0>(bytes),
            Format::Q2K => candle::<BlockQ2K>(bytes),
            Format::Q3K => candle::<BlockQ3K>(bytes),
            Format::Q4K => candle::<BlockQ4K>(bytes),
            Format::Q5K => candle::<BlockQ5K>(bytes),
            _ => candle::<BlockQ6K>(bytes),
        };
        let table = MatrixView::new(format, n, k, bytes).unwrap();
        assert_eq!(reference::dequantize(table), expected, "{format}: the twin");
        for tier in tiers() {
            let mut out = vec![f32::NAN; n * k];
            let ids: Vec<u32> = (0..n as u32).collect();
            cpu(2, tier).embed(table, &ids, &mut out);
            assert_eq!(out, expected, "{format} on {tier}");
        }
    }
}

#[test]
fn embedding_rows_are_the_twin_s() {
    let mut random = Random(2);
    for format in Format::ALL {
        for &k in depths(format) {
            let bytes = random.weights(format, 11, k);
            let table = MatrixView::new(format, 11, k, &bytes[1..]).unwrap();
            let all = reference::dequantize(table);
            let ids = [3, 10, 0, 3];
            let expected: Vec<f32> = ids
                .iter()
                .flat_map(|&id| &all[id as usize * k..][..k])
                .copied()
                .collect();
            for tier in tiers() {
                let mut out = vec![f32::NAN; 4 * k];
                cpu(1, tier).embed(table, &ids, &mut out);
                assert_eq!(out, expected, "{format} [{k}] on {tier}");
            }
        }
    }
}

#[test]
fn products_agree_with_the_twin() {
    let mut random = Random(3);
    for tier in tiers() {
        let cpu = cpu(2, tier);
        for format in Format::ALL {
            for &k in depths(format) {
                for m in [1, 2, 3, 4, 5, 7, 8, 1 + random.below(70)] {
                    let (n, other) = (1 + random.below(70), 1 + random.below(40));
                    let (a, b) = (
                        random.weights(format, n, k),
                        random.weights(format, other, k),
                    );
                    let a = MatrixView::new(format, n, k, &a[1..]).unwrap();
                    let b = MatrixView::new(format, other, k, &b[1..]).unwrap();
                    let x = random.floats(m * k);
                    let out = product(&cpu, &x, k, &[a, b]);
                    for (weight, before) in [(a, 0), (b, n)] {
                        let width = weight.n();
                        let expected = reference::matmul(&x, weight);
                        let weights = reference::dequantize(weight);
                        let size = |i: usize| -> f64 {
                            let (x, w) = (&x[i / width * k..][..k], &weights[i % width * k..][..k]);
                            x.iter().zip(w).map(|(x, w)| f64::from((x * w).abs())).sum()
                        };
                        let own: Vec<f32> = out
                            .chunks_exact(n + other)
                            .flat_map(|row| &row[before..][..width])
                            .copied()
                            .collect();
                        assert_close(
                            &own,
                            &expected,
                            size,
                            &format!("{format} [{m}, {width}, {k}] on {tier}"),
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn products_are_the_same_bits_in_any_company() {
    let mut random = Random(4);
    for format in Format::ALL {
        for k in if format.block_len() == 1 {
            [1025, 40]
        } else {
            [1024, 256]
        } {
            let n = 70;
            let bytes = random.weights(format, n, k);
            let weight = MatrixView::new(format, n, k, &bytes[1..]).unwrap();
            let x = random.floats(70 * k);
            let mut of_tiers = Vec::new();
            for tier in tiers() {
                let together = bits(&product(&cpu(1, tier), &x, k, &[weight]));
                for threads in [1, 2, 3, 7] {
                    let cpu = cpu(threads, tier);
                    assert_eq!(
                        bits(&product(&cpu, &x, k, &[weight])),
                        together,
                        "{format} {tier} {threads}"
                    );
                    for m in [1, 2, 3, 4, 5, 6, 16] {
                        for first in [0, 1, 70 - m] {
                            let part = product(&cpu, &x[first * k..][..m * k], k, &[weight]);
                            assert_eq!(
                                bits(&part),
                                together[first * n..][..m * n],
                                "{format} {tier} {m} rows"
                            );
                        }
                    }
                    let (left, right) = (weight.rows(0, 33), weight.rows(33, 37));
                    assert_eq!(
                        bits(&product(&cpu, &x, k, &[left, right])),
                        together,
                        "{format} {tier} split"
                    );
                }
                of_tiers.push((tier, together));
            }
            if let [(Tier::Avx512, a), (Tier::Avx2, b), ..] = of_tiers.as_slice() {
                assert_eq!(a, b, "{format} [{k}]");
            }
        }
    }
}

#[test]
fn what_is_not_a_number_stays_in_its_row() {
    let mut random = Random(5);
    let (n, k) = (37, 256);
    for tier in tiers() {
        let cpu = cpu(2, tier);
        for format in Format::ALL {
            let bytes = random.weights(format, n, k);
            let weight = MatrixView::new(format, n, k, &bytes[1..]).unwrap();
            for m in [2, 4, 9] {
                let mut x = random.floats(m * k);
                let clean = product(&cpu, &x, k, &[weight]);
                for (bad, value) in [(0, f32::NAN), (1, f32::INFINITY)] {
                    x[bad * k + 100] = value;
                }
                let out = product(&cpu, &x, k, &[weight]);
                assert!(out[..n].iter().all(|y| y.is_nan()));
                assert!(out[n..2 * n].iter().all(|y| !y.is_finite()));
                assert_eq!(
                    bits(&out[2 * n..]),
                    bits(&clean[2 * n..]),
                    "{format} {tier}"
                );
            }
        }
    }
}

#[test]
fn a_product_writes_its_output_and_nothing_else() {
    let mut random = Random(6);
    for tier in tiers() {
        for (m, n) in [(1, 3), (3, 5), (6, 33), (7, 1)] {
            let k = 50;
            let bytes = random.weights(Format::F16, n, k);
            let weight = MatrixView::new(Format::F16, n, k, &bytes[1..]).unwrap();
            let x = random.floats(m * k);
            let mut buffer = vec![f32::NAN; m * n + 64];
            cpu(2, tier).matmul(&x, k, &[weight], &mut buffer[32..32 + m * n]);
            assert!(
                buffer[..32]
                    .iter()
                    .chain(&buffer[32 + m * n..])
                    .all(|x| x.is_nan())
            );
            assert!(buffer[32..32 + m * n].iter().all(|x| x.is_finite()));
        }
    }
}

#[test]
fn views_refuse_what_does_not_fit() {
    let bytes = [0; 144];
    assert!(MatrixView::new(Format::Q4K, 1, 256, &bytes).is_ok());
    assert!(MatrixView::new(Format::Q4K, 1, 255, &bytes).is_err());
    assert!(MatrixView::new(Format::Q4K, 2, 256, &bytes).is_err());
    assert!(MatrixView::new(Format::F32, 0, 0, &[]).is_err());
    assert!(MatrixView::new(Format::F32, usize::MAX, 9, &bytes).is_err());
    assert!(MatrixView::new(Format::F32, 0, 9, &[]).is_ok());
}

#[test]
fn norms_agree_with_the_twin() {
    let mut random = Random(7);
    for width in [1, 8, 24, 64, 80, 1000, 1024] {
        let (m, weight) = (9, random.floats(width));
        let x = random.floats(m * width);
        let expected = reference::rms_norm(&x, &weight, 1e-6);
        let mut of_tiers = Vec::new();
        for tier in tiers() {
            let cpu = cpu(2, tier);
            let mut out = vec![f32::NAN; x.len()];
            cpu.rms_norm(&x, &weight, 1e-6, &mut out);
            assert_close(
                &out,
                &expected,
                |i| f64::from(expected[i].abs()) + 1e-9,
                &format!("{tier} [{width}]"),
            );
            let mut alone = vec![f32::NAN; width];
            cpu.rms_norm(&x[4 * width..][..width], &weight, 1e-6, &mut alone);
            assert_eq!(bits(&alone), bits(&out[4 * width..][..width]));

            // The same rows as heads 1 and 2 of four.
            let mut heads = vec![f32::NAN; 4 * m * width];
            for (row, x) in heads.chunks_exact_mut(4 * width).zip(x.chunks_exact(width)) {
                row[width..2 * width].copy_from_slice(x);
                row[2 * width..3 * width].copy_from_slice(x);
            }
            cpu.rms_norm_in_place(&mut heads, 4 * width, 1..3, &weight, 1e-6);
            for (row, out) in heads.chunks_exact(4 * width).zip(out.chunks_exact(width)) {
                assert!(
                    row[..width]
                        .iter()
                        .chain(&row[3 * width..])
                        .all(|x| x.is_nan())
                );
                assert_eq!(bits(&row[width..2 * width]), bits(out));
                assert_eq!(bits(&row[2 * width..3 * width]), bits(out));
            }
            of_tiers.push(bits(&out));
        }
        if tiers().len() == 3 {
            assert_eq!(of_tiers[0], of_tiers[1]);
        }
    }
}

#[test]
fn sums_and_biases_are_exact() {
    let mut random = Random(8);
    for len in [1, 30, 70_000 * 3] {
        let (x, y) = (random.floats(len), random.floats(len));
        let cpu = cpu(3, Tier::detect());
        let mut out = x.clone();
        cpu.add(&mut out, &y);
        assert!(
            out.iter()
                .zip(&x)
                .zip(&y)
                .all(|((out, x), y)| *out == x + y)
        );
        let bias = random.floats(if len == 1 { 1 } else { 3 });
        let mut out = x.clone();
        cpu.add_bias(&mut out, &bias);
        assert!(
            out.iter()
                .zip(&x)
                .enumerate()
                .all(|(i, (out, x))| *out == x + bias[i % bias.len()])
        );
    }
}

#[test]
fn gates_agree_with_the_twin() {
    let mut random = Random(9);
    for width in [1, 15, 16, 96, 1003] {
        let mut gate_up = random.floats(40 * width);
        gate_up[0] = -300.0;
        let expected = reference::silu_mul(&gate_up, width);
        let mut of_tiers = Vec::new();
        for tier in tiers() {
            let mut out = vec![f32::NAN; 20 * width];
            cpu(2, tier).silu_mul(&gate_up, &mut out, width);
            assert_close(
                &out,
                &expected,
                |i| f64::from(expected[i].abs()) + 1e-30,
                &format!("{tier} [{width}]"),
            );
            of_tiers.push(bits(&out));
        }
        if tiers().len() == 3 {
            assert_eq!(of_tiers[0], of_tiers[1]);
        }
    }
}

#[test]
fn rotations_agree_with_the_twin() {
    let mut random = Random(10);
    for pairing in [Pairing::Halves, Pairing::Neighbours] {
        for (head_dim, rotary) in [(8, 8), (24, 24), (64, 64), (80, 32), (128, 128)] {
            let frequencies: Vec<f32> = (0..rotary / 2)
                .map(|i| 1e4_f32.powf(-2.0 * i as f32 / rotary as f32))
                .collect();
            let rope = Rope::new(&frequencies, 1.25, pairing, 5000);
            assert_eq!((rope.rotary_dims(), rope.max_positions()), (rotary, 5000));
            let stride = 5 * head_dim + 3;
            let positions = [0, 1, 4999, 77, 77];
            let x = random.floats(positions.len() * stride);
            let mut expected = x.clone();
            for (row, &position) in expected.chunks_exact_mut(stride).zip(&positions) {
                for head in row[head_dim..4 * head_dim].chunks_exact_mut(head_dim) {
                    reference::rope(head, &frequencies, 1.25, pairing, position);
                }
            }
            let mut of_tiers = Vec::new();
            for tier in tiers() {
                let mut out = x.clone();
                cpu(2, tier).rope(&mut out, stride, 1..4, head_dim, &rope, &positions);
                assert_close(
                    &out,
                    &expected,
                    |_| 4.0,
                    &format!("{pairing:?} {tier} [{head_dim}]"),
                );
                of_tiers.push(bits(&out));
            }
            if tiers().len() == 3 {
                assert_eq!(of_tiers[0], of_tiers[1]);
            }
        }
    }
}

/// Sequences whose keys and values lie both plainly and in scattered blocks of a cache full of NaN.
struct Paged {
    kv: Vec<(Vec<f32>, Vec<f32>)>,
    tables: Vec<Vec<u32>>,
    cache: KvCacheLayer,
}

impl Paged {
    fn new(
        random: &mut Random,
        kv: &[(Vec<f32>, Vec<f32>)],
        kv_heads: usize,
        head_dim: usize,
    ) -> Self {
        let width = kv_heads * head_dim;
        let lens: Vec<usize> = kv.iter().map(|(keys, _)| keys.len() / width).collect();
        let blocks = lens
            .iter()
            .map(|len| len.div_ceil(BLOCK_TOKENS))
            .sum::<usize>()
            + 3;
        let mut cache = KvCacheLayer::new(blocks, kv_heads, head_dim);
        cache.k.fill(f32::NAN);
        cache.v.fill(f32::NAN);
        let mut free: Vec<u32> = (0..blocks as u32).collect();
        let writer = cpu(2, Tier::detect());
        let mut tables = Vec::new();
        for ((keys, values), len) in kv.iter().zip(lens) {
            let table: Vec<u32> = (0..len.div_ceil(BLOCK_TOKENS))
                .map(|_| free.swap_remove(random.below(free.len())))
                .collect();
            let slots: Vec<u32> = (0..len)
                .map(|t| table[t / BLOCK_TOKENS] * 16 + (t % BLOCK_TOKENS) as u32)
                .collect();
            let stride = 2 * width + 5;
            let mut rows = vec![f32::NAN; len * stride];
            for (t, row) in rows.chunks_exact_mut(stride).enumerate() {
                row[3..3 + width].copy_from_slice(&keys[t * width..][..width]);
                row[4 + width..4 + 2 * width].copy_from_slice(&values[t * width..][..width]);
            }
            writer.write_kv(&rows, stride, 3, 4 + width, &slots, &mut cache);
            tables.push(table);
        }
        let kv = kv.to_vec();
        Self { kv, tables, cache }
    }

    fn attend(&self, cpu: &Cpu, q: &[f32], heads: usize, rows: &[(u32, u32)]) -> Vec<f32> {
        let tables: Vec<&[u32]> = self.tables.iter().map(Vec::as_slice).collect();
        let batch = AttentionBatch {
            tables: &tables,
            rows,
        };
        let width = heads * self.cache.head_dim();
        let mut out = vec![f32::NAN; rows.len() * width];
        let stride = q.len() / rows.len();
        cpu.attention(q, stride, heads, &self.cache, &batch, 0.3, &mut out);
        out
    }
}

#[test]
fn attention_agrees_with_the_twin_and_with_itself() {
    let mut random = Random(11);
    for (heads, kv_heads, head_dim) in [
        (6, 2, 24),
        (2, 2, 8),
        (3, 1, 64),
        (4, 2, 80),
        (40, 1, 16),
        (6, 2, 128),
    ] {
        let kv: Vec<_> = [70, 1, 16, 17, 200]
            .map(|len| {
                (
                    random.floats(len * kv_heads * head_dim),
                    random.floats(len * kv_heads * head_dim),
                )
            })
            .to_vec();
        let here = Paged::new(&mut random, &kv, kv_heads, head_dim);
        let there = Paged::new(&mut random, &kv, kv_heads, head_dim);
        // A prefill, the rows of decodes, a prefill that goes on, and one row twice.
        let mut rows: Vec<(u32, u32)> = (0..70).map(|p| (0, p)).collect();
        rows.extend([(1, 0), (2, 15), (3, 16), (3, 0), (4, 199), (4, 199)]);
        rows.extend((150..190).map(|p| (4, p)));
        let (width, stride) = (heads * head_dim, (heads + 2 * kv_heads) * head_dim);
        let q = random.floats(rows.len() * stride);
        let dense: Vec<f32> = q
            .chunks_exact(stride)
            .flat_map(|row| &row[..width])
            .copied()
            .collect();
        let batch = AttentionBatch {
            tables: &[],
            rows: &rows,
        };
        let expected =
            reference::attention(&dense, heads, kv_heads, head_dim, &here.kv, &batch, 0.3);
        let mut of_tiers = Vec::new();
        for tier in tiers() {
            let one = cpu(1, tier);
            let out = here.attend(&one, &q, heads, &rows);
            assert_close(
                &out,
                &expected,
                |_| 100.0,
                &format!("{tier} {heads}:{kv_heads} [{head_dim}]"),
            );
            let out = bits(&out);
            for threads in [2, 3, 7] {
                assert_eq!(
                    bits(&here.attend(&cpu(threads, tier), &q, heads, &rows)),
                    out,
                    "{threads} threads"
                );
            }
            assert_eq!(
                bits(&there.attend(&one, &q, heads, &rows)),
                out,
                "other blocks"
            );
            for i in 0..rows.len() {
                let alone = here.attend(&one, &q[i * stride..][..stride], heads, &rows[i..=i]);
                assert_eq!(
                    bits(&alone),
                    out[i * width..][..width],
                    "{tier}: row {i} alone"
                );
            }
            of_tiers.push(out);
        }
        if tiers().len() == 3 {
            assert_eq!(of_tiers[0], of_tiers[1], "{heads}:{kv_heads} [{head_dim}]");
        }
    }
}

#[test]
fn the_later_of_two_rows_wins_a_slot() {
    let mut cache = KvCacheLayer::new(2, 1, 8);
    let rows: Vec<f32> = (0..48).map(|i| i as f32).collect();
    cpu(2, Tier::detect()).write_kv(&rows, 16, 0, 8, &[17, 3, 17], &mut cache);
    let key: Vec<f32> = (0..8)
        .map(|d| cache.k[cache.tile_len() + d * 16 + 1])
        .collect();
    assert_eq!(key, rows[32..40]);
    assert_eq!(cache.v[cache.tile_len() + 8..][..8], rows[40..48]);
    assert_eq!(cache.v[3 * 8..][..8], rows[24..32]);
}

#[test]
fn tiers_have_names() {
    for tier in Tier::ALL {
        assert_eq!(tier.to_string().parse::<Tier>().unwrap(), tier);
        assert_eq!(
            Cpu::new(NonZeroUsize::MIN, Some(tier)).is_ok(),
            tier.is_available()
        );
    }
    assert!("sse".parse::<Tier>().is_err());
}
