//! The one pre-norm decoder, driven by its spec: Llama, Qwen2, Qwen3.
//!
//! It runs a ragged batch as one pass: every row goes through every matrix together with all others, so
//! a step reads each weight once. Families differ by flags of the spec only. Keys and values of a step
//! are stored before they are attended, so that prefill and decode are the same code.

use std::collections::HashSet;

use crate::kernel::{AttentionBatch, Cpu, KvCacheLayer, Pairing, Rope as RopeTable};

use super::checkpoint::Checkpoint;
use super::names::{self, Part, TensorNames};
use super::spec::ModelSpec;
use super::weights::{Matrix, Weights};
use super::{BLOCK_TOKENS, CausalLm, Logits, ModelError, StepInput};

struct Layer {
    attention_norm: Vec<f32>,
    query: Matrix,
    key: Matrix,
    value: Matrix,
    qkv_bias: Option<Vec<f32>>,
    qk_norm: Option<(Vec<f32>, Vec<f32>)>,
    output: Matrix,
    output_bias: Option<Vec<f32>>,
    mlp_norm: Vec<f32>,
    gate: Matrix,
    up: Matrix,
    gate_up_bias: Option<Vec<f32>>,
    down: Matrix,
    down_bias: Option<Vec<f32>>,
    kv: KvCacheLayer,
}

/// Activations of a step, kept between steps so that a warm step allocates nothing.
///
/// Shapes: `[rows, …]`, `rows` being the step's tokens; all f32.
#[derive(Default)]
struct Scratch {
    ids: Vec<u32>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    /// The residual stream, `[rows, hidden]`.
    x: Vec<f32>,
    /// A normalised or projected copy of it, `[rows, hidden]`.
    h: Vec<f32>,
    /// `[rows, (heads + 2 * kv_heads) * head_dim]`.
    qkv: Vec<f32>,
    /// `[rows, heads * head_dim]`.
    attended: Vec<f32>,
    /// `[rows, 2 * intermediate]`.
    gate_up: Vec<f32>,
    /// `[rows, intermediate]`.
    activated: Vec<f32>,
}

/// A loaded decoder with its KV memory and its share of the machine.
pub struct Decoder {
    spec: ModelSpec,
    cpu: Cpu,
    embedding: Matrix,
    layers: Vec<Layer>,
    final_norm: Vec<f32>,
    head: Matrix,
    rope: RopeTable,
    scratch: Scratch,
}

impl Decoder {
    /// Builds the decoder of a checkpoint with room for `kv_blocks` blocks.
    ///
    /// Errors: a tensor that is missing or has another shape than the spec says.
    /// Cost: weights stay where they lie; KV memory is reserved and touched only when used.
    pub fn new(checkpoint: &Checkpoint, kv_blocks: usize, cpu: Cpu) -> Result<Self, ModelError> {
        let spec = checkpoint.spec().clone();
        let lookup = Lookup {
            weights: checkpoint.weights(),
            names: checkpoint.names(),
        };
        lookup.refuse_unknown(&spec, checkpoint.label())?;
        let embedding = lookup.matrix(Part::Embedding, spec.vocab, spec.hidden)?;
        let head = if spec.tied {
            embedding.clone()
        } else {
            lookup.matrix(Part::Head, spec.vocab, spec.hidden)?
        };
        let layers = (0..spec.layers)
            .map(|i| Layer::new(&lookup, &spec, i, kv_blocks))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            embedding,
            head,
            layers,
            final_norm: lookup.vector(Part::FinalNorm, spec.hidden)?,
            rope: rope_table(&lookup, &spec, kv_blocks * BLOCK_TOKENS)?,
            scratch: Scratch::default(),
            spec,
            cpu,
        })
    }

    /// The model's dimensions.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn check(&self, step: &StepInput<'_>) -> Result<(), ModelError> {
        let bad = |what: String| Err(ModelError::Forward(what));
        let covered = |&(table, position): &(u32, u32)| {
            step.tables
                .get(table as usize)
                .is_some_and(|t| t.len() > position as usize / BLOCK_TOKENS)
        };
        if !step.rows.iter().all(covered) {
            return bad("a block table is too short for its rows".to_owned());
        }
        if step.tokens.len() != step.rows.len() {
            return bad(format!(
                "{} tokens for {} rows",
                step.tokens.len(),
                step.rows.len()
            ));
        }
        if let Some(token) = step
            .tokens
            .iter()
            .find(|token| token.0 as usize >= self.spec.vocab)
        {
            return bad(format!(
                "token {token} is outside the vocabulary of {}",
                self.spec.vocab
            ));
        }
        let too_far = |&&(_, position): &&(u32, u32)| position as usize >= self.spec.max_positions;
        if let Some((_, position)) = step.rows.iter().find(too_far) {
            return bad(format!("position {position} is beyond the context"));
        }
        Ok(())
    }
}

impl CausalLm for Decoder {
    fn vocab_size(&self) -> usize {
        self.spec.vocab
    }

    fn forward(&mut self, step: &StepInput<'_>, logits: &mut Logits) -> Result<(), ModelError> {
        self.check(step)?;
        let Self {
            spec,
            cpu,
            embedding,
            layers,
            final_norm,
            head,
            rope,
            scratch,
        } = self;
        let rows = step.tokens.len();
        let (hidden, head_dim) = (spec.hidden, spec.head_dim);
        let qkv_width = (spec.heads + 2 * spec.kv_heads) * head_dim;
        let scale = (head_dim as f32).sqrt().recip();
        let batch = AttentionBatch {
            tables: step.tables,
            rows: step.rows,
        };
        scratch.ids.clear();
        scratch.ids.extend(step.tokens.iter().map(|token| token.0));
        scratch.positions.clear();
        scratch
            .positions
            .extend(step.rows.iter().map(|&(_, position)| position));
        scratch.slots.clear();
        scratch.slots.extend(
            step.rows
                .iter()
                .map(|&(table, position)| slot(step, table, position)),
        );
        let x = sized(&mut scratch.x, rows * hidden);
        let h = sized(&mut scratch.h, rows * hidden);
        let qkv = sized(&mut scratch.qkv, rows * qkv_width);
        let attended = sized(&mut scratch.attended, rows * spec.heads * head_dim);
        let gate_up = sized(&mut scratch.gate_up, rows * 2 * spec.intermediate);
        let activated = sized(&mut scratch.activated, rows * spec.intermediate);

        cpu.embed(embedding.view(), &scratch.ids, x);
        for layer in layers {
            cpu.rms_norm(x, &layer.attention_norm, spec.norm_eps, h);
            let projections = [layer.query.view(), layer.key.view(), layer.value.view()];
            cpu.matmul(h, hidden, &projections, qkv);
            if let Some(bias) = &layer.qkv_bias {
                cpu.add_bias(qkv, bias);
            }
            let (queries, keys) = (0..spec.heads, spec.heads..spec.heads + spec.kv_heads);
            if let Some((query_norm, key_norm)) = &layer.qk_norm {
                cpu.rms_norm_in_place(qkv, qkv_width, queries.clone(), query_norm, spec.norm_eps);
                cpu.rms_norm_in_place(qkv, qkv_width, keys.clone(), key_norm, spec.norm_eps);
            }
            cpu.rope(
                qkv,
                qkv_width,
                queries.start..keys.end,
                head_dim,
                rope,
                &scratch.positions,
            );
            let (k_at, v_at) = (keys.start * head_dim, keys.end * head_dim);
            cpu.write_kv(qkv, qkv_width, k_at, v_at, &scratch.slots, &mut layer.kv);
            cpu.attention(
                qkv, qkv_width, spec.heads, &layer.kv, &batch, scale, attended,
            );
            cpu.matmul(attended, spec.heads * head_dim, &[layer.output.view()], h);
            if let Some(bias) = &layer.output_bias {
                cpu.add_bias(h, bias);
            }
            cpu.add(x, h);

            cpu.rms_norm(x, &layer.mlp_norm, spec.norm_eps, h);
            cpu.matmul(h, hidden, &[layer.gate.view(), layer.up.view()], gate_up);
            if let Some(bias) = &layer.gate_up_bias {
                cpu.add_bias(gate_up, bias);
            }
            cpu.silu_mul(gate_up, activated, spec.intermediate);
            cpu.matmul(activated, spec.intermediate, &[layer.down.view()], h);
            if let Some(bias) = &layer.down_bias {
                cpu.add_bias(h, bias);
            }
            cpu.add(x, h);
        }

        // Only rows whose scores are wanted meet the head; they are gathered in `h`, which is free by now.
        let outputs = step.outputs.len();
        for (to, &from) in step.outputs.iter().enumerate() {
            let from = from as usize * hidden;
            h[to * hidden..][..hidden].copy_from_slice(&x[from..from + hidden]);
        }
        let (selected, normed) = (&h[..outputs * hidden], &mut x[..outputs * hidden]);
        cpu.rms_norm(selected, final_norm, spec.norm_eps, normed);
        let scores = logits.reset(outputs, spec.vocab);
        cpu.matmul(normed, hidden, &[head.view()], scores);
        Ok(())
    }
}

/// Where a position of a sequence lies in the cache.
fn slot(step: &StepInput<'_>, table: u32, position: u32) -> u32 {
    let block = step.tables[table as usize][position as usize / BLOCK_TOKENS];
    block * BLOCK_TOKENS as u32 + position % BLOCK_TOKENS as u32
}

fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    buffer.resize(len, 0.0);
    buffer
}

impl Layer {
    fn new(
        lookup: &Lookup<'_>,
        spec: &ModelSpec,
        i: usize,
        kv_blocks: usize,
    ) -> Result<Self, ModelError> {
        let (hidden, ffn) = (spec.hidden, spec.intermediate);
        let (query, key) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let joined = |wanted: bool, parts: &[(Part, usize)]| -> Result<_, ModelError> {
            if !wanted {
                return Ok(None);
            }
            let mut all = Vec::new();
            for &(part, len) in parts {
                all.extend(lookup.vector(part, len)?);
            }
            Ok(Some(all))
        };
        let qkv_bias = [
            (Part::QueryBias(i), query),
            (Part::KeyBias(i), key),
            (Part::ValueBias(i), key),
        ];
        let qk_norm = if spec.qk_norm {
            let norm = |part| lookup.vector(part, spec.head_dim);
            Some((norm(Part::QueryNorm(i))?, norm(Part::KeyNorm(i))?))
        } else {
            None
        };
        Ok(Self {
            attention_norm: lookup.vector(Part::AttentionNorm(i), hidden)?,
            query: lookup.matrix(Part::Query(i), query, hidden)?,
            key: lookup.matrix(Part::Key(i), key, hidden)?,
            value: lookup.matrix(Part::Value(i), key, hidden)?,
            qkv_bias: joined(spec.qkv_bias, &qkv_bias)?,
            qk_norm,
            output: lookup.matrix(Part::Output(i), hidden, query)?,
            output_bias: joined(spec.output_bias, &[(Part::OutputBias(i), hidden)])?,
            mlp_norm: lookup.vector(Part::MlpNorm(i), hidden)?,
            gate: lookup.matrix(Part::Gate(i), ffn, hidden)?,
            up: lookup.matrix(Part::Up(i), ffn, hidden)?,
            gate_up_bias: joined(
                spec.mlp_bias,
                &[(Part::GateBias(i), ffn), (Part::UpBias(i), ffn)],
            )?,
            down: lookup.matrix(Part::Down(i), hidden, ffn)?,
            down_bias: joined(spec.mlp_bias, &[(Part::DownBias(i), hidden)])?,
            kv: KvCacheLayer::new(kv_blocks, spec.kv_heads, spec.head_dim),
        })
    }
}

fn rope_table(
    lookup: &Lookup<'_>,
    spec: &ModelSpec,
    capacity: usize,
) -> Result<RopeTable, ModelError> {
    let mut frequencies = spec.rope.frequencies(spec.head_dim);
    if lookup
        .weights
        .contains(&lookup.names.name(Part::RopeFactors))
    {
        let factors = lookup.vector(Part::RopeFactors, frequencies.len())?;
        frequencies
            .iter_mut()
            .zip(factors)
            .for_each(|(f, factor)| *f /= factor);
    }
    let pairing = if spec.rope.neighbours {
        Pairing::Neighbours
    } else {
        Pairing::Halves
    };
    Ok(RopeTable::new(
        &frequencies,
        1.0,
        pairing,
        spec.max_positions.min(capacity),
    ))
}

/// Tensors of one checkpoint by their part.
struct Lookup<'a> {
    weights: &'a Weights,
    names: TensorNames,
}

impl Lookup<'_> {
    /// A tensor the decoder has no place for would change the model's arithmetic if it were used, so its
    /// presence means that the model is of another kind.
    fn refuse_unknown(&self, spec: &ModelSpec, path: &str) -> Result<(), ModelError> {
        let mut known: HashSet<String> = names::parts(spec)
            .into_iter()
            .map(|(part, _)| self.names.name(part))
            .collect();
        // A tied model may carry its head all the same.
        known.extend([Part::Head, Part::RopeFactors].map(|part| self.names.name(part)));
        let stray = |name: &&str| !known.contains(*name) && !name.ends_with("rotary_emb.inv_freq");
        match self.weights.names().filter(stray).min() {
            None => Ok(()),
            Some(name) => Err(ModelError::unsupported(
                path,
                format!(
                    "tensor `{name}` has no place in a {:?} decoder",
                    spec.architecture
                ),
            )),
        }
    }

    fn matrix(&self, part: Part, rows: usize, columns: usize) -> Result<Matrix, ModelError> {
        self.weights.matrix(&self.names.name(part), rows, columns)
    }

    fn vector(&self, part: Part, len: usize) -> Result<Vec<f32>, ModelError> {
        self.weights.vector(&self.names.name(part), len)
    }
}
