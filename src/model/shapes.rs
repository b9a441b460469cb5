//! Real models' shapes with random weights: speed does not depend on values.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

use super::names::{TensorNames, parts};
use super::spec::{Architecture, ModelSpec, Rope, RopeScaling};
use super::weights::Weights;
use super::{Format, ModelError};

struct Shape {
    name: &'static str,
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    intermediate: usize,
    vocab: usize,
    architecture: Architecture,
}

const TABLE: [Shape; 3] = [
    Shape {
        name: "SmolLM2-135M",
        hidden: 576,
        layers: 30,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        intermediate: 1536,
        vocab: 49_152,
        architecture: Architecture::Llama,
    },
    Shape {
        name: "Qwen3-0.6B",
        hidden: 1024,
        layers: 28,
        heads: 16,
        kv_heads: 8,
        head_dim: 128,
        intermediate: 3072,
        vocab: 151_936,
        architecture: Architecture::Qwen3,
    },
    Shape {
        name: "Llama-3.2-1B",
        hidden: 2048,
        layers: 16,
        heads: 32,
        kv_heads: 8,
        head_dim: 64,
        intermediate: 8192,
        vocab: 128_256,
        architecture: Architecture::Llama,
    },
];

/// Names of the built-in shapes.
pub const SHAPES: [&str; 3] = [TABLE[0].name, TABLE[1].name, TABLE[2].name];

/// The spec of a named shape; all three tie their head to the embedding, as the real ones do.
pub(super) fn spec(name: &str) -> Result<ModelSpec, ModelError> {
    let shape = TABLE
        .iter()
        .find(|shape| shape.name.eq_ignore_ascii_case(name))
        .ok_or_else(|| {
            ModelError::unsupported(
                format!("shape:{name}"),
                format!("is not a known shape; {} are", SHAPES.join(", ")),
            )
        })?;
    Ok(ModelSpec {
        architecture: shape.architecture,
        hidden: shape.hidden,
        layers: shape.layers,
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        head_dim: shape.head_dim,
        intermediate: shape.intermediate,
        vocab: shape.vocab,
        max_positions: 8192,
        norm_eps: 1e-5,
        rope: Rope {
            theta: 500_000.0,
            scaling: RopeScaling::None,
            neighbours: false,
        },
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        qk_norm: shape.architecture == Architecture::Qwen3,
        tied: true,
    })
}

/// Weights of a spec, random but finite, every matrix in `format` (rows that the format's block does not
/// divide in F16, as quantisers do), each in memory of its own.
pub(super) fn random_weights(spec: &ModelSpec, format: Format) -> Result<Weights, ModelError> {
    let mut tensors = Vec::new();
    let mut pools: Vec<(Format, Vec<u8>)> = Vec::new();
    for (part, shape) in parts(spec) {
        let (format, data) = match shape[..] {
            [rows, columns] => {
                let format = if format.row_bytes(columns).is_some() {
                    format
                } else {
                    Format::F16
                };
                let len = rows
                    * format
                        .row_bytes(columns)
                        .expect("the format was chosen to fit");
                if !pools.iter().any(|(known, _)| *known == format) {
                    pools.push((format, random_rows(format)?));
                }
                let pool = &pools
                    .iter()
                    .find(|(known, _)| *known == format)
                    .expect("just added")
                    .1;
                (format, pool.iter().copied().cycle().take(len).collect())
            }
            _ => (
                Format::F32,
                std::iter::repeat_n(1.0_f32.to_le_bytes(), shape.iter().product())
                    .flatten()
                    .collect(),
            ),
        };
        tensors.push((TensorNames::Hugging.name(part), format, shape, data));
    }
    Ok(Weights::from_parts("shape".to_owned(), tensors))
}

/// A stretch of quantised noise, a whole number of blocks, long enough that no two rows look alike.
fn random_rows(format: Format) -> Result<Vec<u8>, ModelError> {
    let target = match format {
        Format::F32 => GgmlDType::F32,
        Format::F16 => GgmlDType::F16,
        Format::Bf16 => GgmlDType::BF16,
        Format::Q4_0 => GgmlDType::Q4_0,
        Format::Q4_1 => GgmlDType::Q4_1,
        Format::Q5_0 => GgmlDType::Q5_0,
        Format::Q5_1 => GgmlDType::Q5_1,
        Format::Q8_0 => GgmlDType::Q8_0,
        Format::Q2K => GgmlDType::Q2K,
        Format::Q3K => GgmlDType::Q3K,
        Format::Q4K => GgmlDType::Q4K,
        Format::Q5K => GgmlDType::Q5K,
        Format::Q6K => GgmlDType::Q6K,
    };
    let failed = |e: candle_core::Error| ModelError::Forward(format!("random weights: {e}"));
    let noise = Tensor::randn(0.0_f32, 0.02, (977, 256), &Device::Cpu).map_err(failed)?;
    let quantised = QTensor::quantize(&noise, target).map_err(failed)?;
    Ok(quantised.data().map_err(failed)?.into_owned())
}
