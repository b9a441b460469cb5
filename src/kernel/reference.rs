//! The slow, obvious twin of every kernel, for tests to compare with.
//!
//! Written from the definitions, not from the fast code: one element at a time, sums in f64, no tiles, no threads.
//! Nothing in the server calls it.

use half::{bf16, f16};

use super::{AttentionBatch, Format, MatrixView, Pairing};

fn f16_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The 6-bit scale and minimum of group `j` of a Q4_K or Q5_K block.
///
/// Source: ggml `get_scale_min_k4`.
fn scale_and_min(q: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (q[j] & 63, q[j + 4] & 63)
    } else {
        (
            q[j + 4] & 15 | (q[j - 4] >> 6) << 4,
            q[j + 4] >> 4 | (q[j] >> 6) << 4,
        )
    };
    (f32::from(scale), f32::from(min))
}

/// Element `i` of a block.
///
/// Source: ggml `ggml-quants.c`, `dequantize_row_q4_0` and its neighbours.
fn element(format: Format, block: &[u8], i: usize) -> f32 {
    match format {
        Format::F32 => f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
        Format::F16 => f16_at(block, 0),
        Format::Bf16 => bf16::from_le_bytes([block[0], block[1]]).to_f32(),
        Format::Q4_0 => {
            let byte = block[2 + i % 16];
            let code = if i < 16 { byte & 15 } else { byte >> 4 };
            (f32::from(code) - 8.0) * f16_at(block, 0)
        }
        Format::Q4_1 => {
            let byte = block[4 + i % 16];
            let code = if i < 16 { byte & 15 } else { byte >> 4 };
            f32::from(code) * f16_at(block, 0) + f16_at(block, 2)
        }
        Format::Q5_0 | Format::Q5_1 => {
            let (bits, minimum) = if format == Format::Q5_0 {
                (2, -16.0 * f16_at(block, 0))
            } else {
                (4, f16_at(block, 2))
            };
            let byte = block[bits + 4 + i % 16];
            let low = if i < 16 { byte & 15 } else { byte >> 4 };
            let high = block[bits + i / 8] >> (i % 8) & 1;
            f32::from(low + high * 16) * f16_at(block, 0) + minimum
        }
        Format::Q8_0 => f32::from(block[2 + i].cast_signed()) * f16_at(block, 0),
        Format::Q2K => {
            let (half, quarter, l) = (i / 128, i % 128 / 32, i % 32);
            let code = block[16 + half * 32 + l] >> (2 * quarter) & 3;
            let packed = block[i / 16];
            let (scale, min) = (f32::from(packed & 15), f32::from(packed >> 4));
            f16_at(block, 80) * scale * f32::from(code) - f16_at(block, 82) * min
        }
        Format::Q3K => {
            let (half, quarter, l) = (i / 128, i % 128 / 32, i % 32);
            let low = block[32 + half * 32 + l] >> (2 * quarter) & 3;
            let high = block[l] >> (4 * half + quarter) & 1;
            let (run, scales) = (i / 16, &block[96..108]);
            let nibble = scales[run % 8] >> (run / 8 * 4) & 15;
            let top = scales[8 + run % 4] >> (run / 4 * 2) & 3;
            let scale = f32::from(nibble + top * 16) - 32.0;
            f16_at(block, 108) * scale * (f32::from(low + high * 4) - 4.0)
        }
        Format::Q4K | Format::Q5K => {
            let group = i / 32;
            let (scale, min) = scale_and_min(&block[4..16], group);
            let low_bits = if format == Format::Q4K { 16 } else { 48 };
            let byte = block[low_bits + group / 2 * 32 + i % 32];
            let mut code = if group.is_multiple_of(2) {
                byte & 15
            } else {
                byte >> 4
            };
            if format == Format::Q5K {
                code += (block[16 + i % 32] >> group & 1) * 16;
            }
            f16_at(block, 0) * scale * f32::from(code) - f16_at(block, 2) * min
        }
        Format::Q6K => {
            let (half, quarter, l) = (i / 128, i % 128 / 32, i % 32);
            let byte = block[half * 64 + quarter % 2 * 32 + l];
            let low = if quarter < 2 { byte & 15 } else { byte >> 4 };
            let high = block[128 + half * 32 + l] >> (2 * quarter) & 3;
            let code = f32::from(low + high * 16) - 32.0;
            f16_at(block, 208) * f32::from(block[192 + i / 16].cast_signed()) * code
        }
    }
}

/// All elements of a matrix, `[n, k]`.
#[must_use]
pub fn dequantize(matrix: MatrixView<'_>) -> Vec<f32> {
    let format = matrix.format();
    let (len, bytes) = (format.block_len(), format.block_bytes());
    (0..matrix.n() * matrix.k())
        .map(|i| element(format, &matrix.data()[i / len * bytes..][..bytes], i % len))
        .collect()
}

/// Twin of [`Cpu::matmul`](super::Cpu::matmul) for one weight: `[m, n]`.
#[must_use]
pub fn matmul(x: &[f32], weight: MatrixView<'_>) -> Vec<f32> {
    let weights = dequantize(weight);
    let mut out = Vec::with_capacity(x.len() / weight.k() * weight.n());
    for x in x.chunks_exact(weight.k()) {
        for w in weights.chunks_exact(weight.k()) {
            let sum: f64 = x
                .iter()
                .zip(w)
                .map(|(&x, &w)| f64::from(x) * f64::from(w))
                .sum();
            out.push(sum as f32);
        }
    }
    out
}

/// Twin of [`Cpu::rms_norm`](super::Cpu::rms_norm).
#[must_use]
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks_exact(weight.len()) {
        let mean = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / row.len() as f64;
        let scale = 1.0 / (mean + f64::from(eps)).sqrt();
        out.extend(
            row.iter()
                .zip(weight)
                .map(|(&x, &w)| (f64::from(x) * scale * f64::from(w)) as f32),
        );
    }
    out
}

/// Twin of [`Cpu::rope`](super::Cpu::rope) for one head.
pub fn rope(
    head: &mut [f32],
    inverse_frequencies: &[f32],
    attention_factor: f32,
    pairing: Pairing,
    position: u32,
) {
    let pairs = inverse_frequencies.len();
    for (i, &frequency) in inverse_frequencies.iter().enumerate() {
        let (a, b) = match pairing {
            Pairing::Halves => (i, i + pairs),
            Pairing::Neighbours => (2 * i, 2 * i + 1),
        };
        let (sin, cos) = f64::from(frequency * position as f32).sin_cos();
        let (sin, cos) = (
            sin * f64::from(attention_factor),
            cos * f64::from(attention_factor),
        );
        let (x, y) = (f64::from(head[a]), f64::from(head[b]));
        head[a] = (x * cos - y * sin) as f32;
        head[b] = (y * cos + x * sin) as f32;
    }
}

/// Twin of [`Cpu::silu_mul`](super::Cpu::silu_mul).
#[must_use]
pub fn silu_mul(gate_up: &[f32], width: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(gate_up.len() / 2);
    for row in gate_up.chunks_exact(2 * width) {
        let (gate, up) = row.split_at(width);
        for (&gate, &up) in gate.iter().zip(up) {
            let gate = f64::from(gate);
            out.push((gate / (1.0 + (-gate).exp()) * f64::from(up)) as f32);
        }
    }
    out
}

/// Twin of [`Cpu::attention`](super::Cpu::attention) over keys and values that are not paged.
///
/// Shapes: `q: [m, heads, head_dim]` · `kv[s]`: keys and values of sequence `s`, each `[tokens, kv_heads, head_dim]`;
/// `batch.tables` is not read.
#[must_use]
pub fn attention(
    q: &[f32],
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    kv: &[(Vec<f32>, Vec<f32>)],
    batch: &AttentionBatch<'_>,
    scale: f32,
) -> Vec<f32> {
    let mut out = Vec::with_capacity(q.len());
    for (row, &(sequence, position)) in q.chunks_exact(heads * head_dim).zip(batch.rows) {
        let (keys, values) = &kv[sequence as usize];
        for (h, query) in row.chunks_exact(head_dim).enumerate() {
            let kv_head = h / (heads / kv_heads);
            let place = |token: usize| (token * kv_heads + kv_head) * head_dim;
            let scores: Vec<f64> = (0..=position as usize)
                .map(|token| {
                    let key = &keys[place(token)..][..head_dim];
                    let product: f64 = query
                        .iter()
                        .zip(key)
                        .map(|(&q, &k)| f64::from(q) * f64::from(k))
                        .sum();
                    product * f64::from(scale)
                })
                .collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
            let total: f64 = weights.iter().sum();
            for d in 0..head_dim {
                let sum: f64 = weights
                    .iter()
                    .enumerate()
                    .map(|(token, weight)| weight * f64::from(values[place(token) + d]))
                    .sum();
                out.push((sum / total) as f32);
            }
        }
    }
    out
}
