//! What each tensor of a decoder is called in either kind of file, and its shape.

use super::spec::ModelSpec;

/// Which naming a checkpoint follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TensorNames {
    /// `transformers`' names, in safetensors files.
    Hugging,
    /// llama.cpp's names, in GGUF files.
    Gguf,
}

/// A tensor's part in the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Embedding,
    FinalNorm,
    Head,
    /// Divisors of the rotary frequencies (GGUF files of Llama 3.1 and later).
    RopeFactors,
    AttentionNorm(usize),
    Query(usize),
    Key(usize),
    Value(usize),
    QueryBias(usize),
    KeyBias(usize),
    ValueBias(usize),
    QueryNorm(usize),
    KeyNorm(usize),
    Output(usize),
    OutputBias(usize),
    MlpNorm(usize),
    Gate(usize),
    Up(usize),
    Down(usize),
    GateBias(usize),
    UpBias(usize),
    DownBias(usize),
}

impl TensorNames {
    /// The tensor's name.
    pub(super) fn name(self, part: Part) -> String {
        let (layer, hugging, gguf) = match part {
            Part::Embedding => (None, "model.embed_tokens.weight", "token_embd.weight"),
            Part::FinalNorm => (None, "model.norm.weight", "output_norm.weight"),
            Part::Head => (None, "lm_head.weight", "output.weight"),
            Part::RopeFactors => (None, "rope_freqs.weight", "rope_freqs.weight"),
            Part::AttentionNorm(i) => (Some(i), "input_layernorm.weight", "attn_norm.weight"),
            Part::Query(i) => (Some(i), "self_attn.q_proj.weight", "attn_q.weight"),
            Part::Key(i) => (Some(i), "self_attn.k_proj.weight", "attn_k.weight"),
            Part::Value(i) => (Some(i), "self_attn.v_proj.weight", "attn_v.weight"),
            Part::QueryBias(i) => (Some(i), "self_attn.q_proj.bias", "attn_q.bias"),
            Part::KeyBias(i) => (Some(i), "self_attn.k_proj.bias", "attn_k.bias"),
            Part::ValueBias(i) => (Some(i), "self_attn.v_proj.bias", "attn_v.bias"),
            Part::QueryNorm(i) => (Some(i), "self_attn.q_norm.weight", "attn_q_norm.weight"),
            Part::KeyNorm(i) => (Some(i), "self_attn.k_norm.weight", "attn_k_norm.weight"),
            Part::Output(i) => (Some(i), "self_attn.o_proj.weight", "attn_output.weight"),
            Part::OutputBias(i) => (Some(i), "self_attn.o_proj.bias", "attn_output.bias"),
            Part::MlpNorm(i) => (
                Some(i),
                "post_attention_layernorm.weight",
                "ffn_norm.weight",
            ),
            Part::Gate(i) => (Some(i), "mlp.gate_proj.weight", "ffn_gate.weight"),
            Part::Up(i) => (Some(i), "mlp.up_proj.weight", "ffn_up.weight"),
            Part::Down(i) => (Some(i), "mlp.down_proj.weight", "ffn_down.weight"),
            Part::GateBias(i) => (Some(i), "mlp.gate_proj.bias", "ffn_gate.bias"),
            Part::UpBias(i) => (Some(i), "mlp.up_proj.bias", "ffn_up.bias"),
            Part::DownBias(i) => (Some(i), "mlp.down_proj.bias", "ffn_down.bias"),
        };
        match (self, layer) {
            (Self::Hugging, None) => hugging.to_owned(),
            (Self::Hugging, Some(i)) => format!("model.layers.{i}.{hugging}"),
            (Self::Gguf, None) => gguf.to_owned(),
            (Self::Gguf, Some(i)) => format!("blk.{i}.{gguf}"),
        }
    }
}

/// Every tensor a spec asks for, with its shape; vectors have one dimension.
pub(super) fn parts(spec: &ModelSpec) -> Vec<(Part, Vec<usize>)> {
    let (hidden, ffn) = (spec.hidden, spec.intermediate);
    let (query, key) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
    let mut parts = vec![
        (Part::Embedding, vec![spec.vocab, hidden]),
        (Part::FinalNorm, vec![hidden]),
    ];
    if !spec.tied {
        parts.push((Part::Head, vec![spec.vocab, hidden]));
    }
    for i in 0..spec.layers {
        parts.extend([
            (Part::AttentionNorm(i), vec![hidden]),
            (Part::Query(i), vec![query, hidden]),
            (Part::Key(i), vec![key, hidden]),
            (Part::Value(i), vec![key, hidden]),
            (Part::Output(i), vec![hidden, query]),
            (Part::MlpNorm(i), vec![hidden]),
            (Part::Gate(i), vec![ffn, hidden]),
            (Part::Up(i), vec![ffn, hidden]),
            (Part::Down(i), vec![hidden, ffn]),
        ]);
        if spec.qkv_bias {
            parts.push((Part::QueryBias(i), vec![query]));
            parts.push((Part::KeyBias(i), vec![key]));
            parts.push((Part::ValueBias(i), vec![key]));
        }
        if spec.output_bias {
            parts.push((Part::OutputBias(i), vec![hidden]));
        }
        if spec.mlp_bias {
            parts.push((Part::GateBias(i), vec![ffn]));
            parts.push((Part::UpBias(i), vec![ffn]));
            parts.push((Part::DownBias(i), vec![hidden]));
        }
        if spec.qk_norm {
            parts.push((Part::QueryNorm(i), vec![spec.head_dim]));
            parts.push((Part::KeyNorm(i), vec![spec.head_dim]));
        }
    }
    parts
}
