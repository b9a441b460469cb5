//! What a model is, in numbers: read from `config.json` or from GGUF metadata into one form.
//!
//! The decoder is driven by this alone, so a field that would change the arithmetic and is not understood
//! is refused here, never ignored.

use serde_json::Value as Json;

use super::gguf::Metadata;

/// The families served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 2 and 3, SmolLM2, and what calls itself `llama`.
    Llama,
    /// Qwen2 and Qwen2.5: biased q, k and v.
    Qwen2,
    /// Qwen3 (dense): normalised q and k.
    Qwen3,
}

/// How rotary frequencies are stretched for long contexts.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// Every frequency divided.
    Linear {
        /// The divisor.
        factor: f32,
    },
    /// Low frequencies divided, high ones kept, those between blended (Llama 3.1).
    Llama3 {
        /// The divisor of low frequencies.
        factor: f32,
        /// Below `original / low` tokens of wavelength nothing is fully divided.
        low_freq_factor: f32,
        /// Above `original / high` tokens of wavelength nothing is kept whole.
        high_freq_factor: f32,
        /// The context the model was first trained on.
        original_max_positions: f32,
    },
}

/// Rotary position embedding: base, scaling, and which dimensions turn together.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// The base of the frequencies.
    pub theta: f32,
    /// Their scaling.
    pub scaling: RopeScaling,
    /// Whether pair `i` is dimensions `2i, 2i+1` (GGUF files of `llama`) instead of `i, i + dim/2`.
    pub neighbours: bool,
}

impl Rope {
    /// Frequencies of a head of `head_dim` dimensions, radians per position. Shape: `[head_dim / 2]`.
    ///
    /// Computed in f32 in the order `transformers` uses, so that angles agree to the last bit or two.
    /// Source: Su et al. 2021 (RoFormer) §3.2; Llama 3.1's scaling as in `transformers`'
    /// `modeling_rope_utils`.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        (0..head_dim / 2)
            .map(|i| 1.0 / self.theta.powf((2 * i) as f32 / head_dim as f32))
            .map(|frequency| self.scale(frequency))
            .collect()
    }

    fn scale(&self, frequency: f32) -> f32 {
        match self.scaling {
            RopeScaling::None => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_positions: original,
            } => {
                let wavelength = 2.0 * std::f32::consts::PI / frequency;
                if wavelength < original / high {
                    frequency
                } else if wavelength > original / low {
                    frequency / factor
                } else {
                    let smooth = (original / wavelength - low) / (high - low);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        }
    }
}

/// A decoder's dimensions and variations.
///
/// Invariants: no dimension is 0; `heads` is a multiple of `kv_heads`; `head_dim` is even.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// The family.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Decoder blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads (GQA, Ainslie et al. 2023).
    pub kv_heads: usize,
    /// Width of one head; `heads * head_dim` need not be `hidden`.
    pub head_dim: usize,
    /// Width of the feed-forward network.
    pub intermediate: usize,
    /// Rows of the embedding, at least the tokenizer's vocabulary.
    pub vocab: usize,
    /// Longest context.
    pub max_positions: usize,
    /// Added to the mean square before the root.
    pub norm_eps: f32,
    /// Rotary positions.
    pub rope: Rope,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether the attention output has a bias.
    pub output_bias: bool,
    /// Whether the feed-forward matrices have biases.
    pub mlp_bias: bool,
    /// Whether q and k are normalised per head before rotation.
    pub qk_norm: bool,
    /// Whether the embedding also is the head.
    pub tied: bool,
}

impl ModelSpec {
    /// Bytes of KV cache one token takes, over all layers, at 4 bytes a value.
    pub fn kv_bytes_per_token(&self) -> usize {
        [
            2,
            self.layers,
            self.kv_heads,
            self.head_dim,
            size_of::<f32>(),
        ]
        .into_iter()
        .fold(1, usize::saturating_mul)
    }

    /// Reads a `config.json` as `transformers` 4 or 5 writes it.
    ///
    /// Errors: one sentence naming the field that is missing, wrong, or asks for what is not served.
    pub fn from_config(config: &Json) -> Result<Self, String> {
        let fields = Fields(config);
        let kind = fields.text("model_type")?.unwrap_or_default();
        let architecture = match kind.as_str() {
            "llama" => Architecture::Llama,
            "qwen2" => Architecture::Qwen2,
            "qwen3" => Architecture::Qwen3,
            other => return Err(unknown_architecture("model_type", other)),
        };
        fields.refuse_unserved()?;
        let attention_bias = fields.flag("attention_bias")?.unwrap_or(false);
        let hidden = fields.count("hidden_size")?;
        let heads = fields.count("num_attention_heads")?;
        Self {
            architecture,
            hidden,
            layers: fields.count("num_hidden_layers")?,
            heads,
            kv_heads: fields
                .optional_count("num_key_value_heads")?
                .unwrap_or(heads),
            head_dim: fields.optional_count("head_dim")?.unwrap_or(hidden / heads),
            intermediate: fields.count("intermediate_size")?,
            vocab: fields.count("vocab_size")?,
            max_positions: fields.count("max_position_embeddings")?,
            norm_eps: fields.number("rms_norm_eps")?.unwrap_or(1e-6),
            rope: fields.rope()?,
            qkv_bias: architecture == Architecture::Qwen2 || attention_bias,
            output_bias: architecture != Architecture::Qwen2 && attention_bias,
            mlp_bias: fields.flag("mlp_bias")?.unwrap_or(false),
            qk_norm: architecture == Architecture::Qwen3,
            tied: fields.flag("tie_word_embeddings")?.unwrap_or(false),
        }
        .checked()
    }

    /// Reads GGUF metadata; `vocab` and `tied` are what the tensors say.
    ///
    /// Errors: one sentence naming the key that is missing, wrong, or asks for what is not served.
    pub fn from_gguf(metadata: &Metadata, vocab: usize, tied: bool) -> Result<Self, String> {
        let name = metadata
            .string("general.architecture")?
            .ok_or_else(|| missing("general.architecture"))?;
        let architecture = match name {
            "llama" => Architecture::Llama,
            "qwen2" => Architecture::Qwen2,
            "qwen3" => Architecture::Qwen3,
            other => return Err(unknown_architecture("general.architecture", other)),
        };
        let key = |suffix: &str| format!("{name}.{suffix}");
        let optional = |suffix: &str| metadata.u32(&key(suffix)).map(|v| v.map(|v| v as usize));
        let count = |suffix: &str| optional(suffix)?.ok_or_else(|| missing(&key(suffix)));
        let hidden = count("embedding_length")?;
        let heads = count("attention.head_count")?;
        if heads == 0 {
            return Err(format!("metadata `{}` is 0", key("attention.head_count")));
        }
        let head_dim = optional("attention.key_length")?.unwrap_or(hidden / heads);
        if optional("attention.value_length")?.is_some_and(|v| v != head_dim) {
            return Err(format!(
                "metadata `{}` differs from the key length",
                key("attention.value_length")
            ));
        }
        if optional("rope.dimension_count")?.is_some_and(|v| v != head_dim) {
            return Err(format!(
                "metadata `{}` asks for partial rotation, which is not served",
                key("rope.dimension_count")
            ));
        }
        if optional("expert_count")?.is_some_and(|n| n > 0) {
            return Err(format!(
                "metadata `{}` asks for a mixture of experts, which is not served",
                key("expert_count")
            ));
        }
        if metadata.get(&key("rope.scale_linear")).is_some() {
            return Err(format!(
                "metadata `{}` is an older form that is not read; convert the model anew",
                key("rope.scale_linear")
            ));
        }
        let scaling = match metadata.string(&key("rope.scaling.type"))? {
            None | Some("none") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear {
                factor: metadata.f32(&key("rope.scaling.factor"))?.unwrap_or(1.0),
            },
            Some(other) => return Err(unknown_scaling(&key("rope.scaling.type"), other)),
        };
        Self {
            architecture,
            hidden,
            layers: count("block_count")?,
            heads,
            kv_heads: optional("attention.head_count_kv")?.unwrap_or(heads),
            head_dim,
            intermediate: count("feed_forward_length")?,
            vocab,
            max_positions: count("context_length")?,
            norm_eps: metadata
                .f32(&key("attention.layer_norm_rms_epsilon"))?
                .unwrap_or(1e-5),
            rope: Rope {
                theta: metadata.f32(&key("rope.freq_base"))?.unwrap_or(10_000.0),
                scaling,
                neighbours: architecture == Architecture::Llama,
            },
            qkv_bias: architecture == Architecture::Qwen2,
            output_bias: false,
            mlp_bias: false,
            qk_norm: architecture == Architecture::Qwen3,
            tied,
        }
        .checked()
    }

    fn checked(self) -> Result<Self, String> {
        let sizes = [
            ("hidden size", self.hidden),
            ("layer count", self.layers),
            ("head count", self.heads),
            ("KV head count", self.kv_heads),
            ("head size", self.head_dim),
            ("feed-forward size", self.intermediate),
            ("vocabulary size", self.vocab),
            ("context length", self.max_positions),
        ];
        if let Some((name, size)) = sizes
            .iter()
            .find(|(_, size)| *size == 0 || *size > MAX_SIZE)
        {
            return Err(format!("the {name} is {size}"));
        }
        if self.layers > MAX_LAYERS {
            return Err(format!("the layer count is {}", self.layers));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(format!(
                "the head count {} is not a multiple of the KV head count {}",
                self.heads, self.kv_heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(format!("the head size {} is odd", self.head_dim));
        }
        let factors_are_sound = match self.rope.scaling {
            RopeScaling::None => true,
            RopeScaling::Linear { factor } => factor > 0.0,
            RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_positions: original,
            } => factor > 0.0 && low > 0.0 && high > low && original > 0.0,
        };
        if !factors_are_sound {
            return Err(format!(
                "the rope scaling {:?} is not sound",
                self.rope.scaling
            ));
        }
        if !(self.rope.theta > 0.0 && self.norm_eps >= 0.0) {
            return Err("the rope base and the norm epsilon must be positive".to_owned());
        }
        Ok(self)
    }
}

/// No dimension of a sound model is larger.
const MAX_SIZE: usize = 1 << 24;
/// No sound model is deeper; what is done for each layer before its tensors are seen stays small.
const MAX_LAYERS: usize = 1024;

fn missing(key: &str) -> String {
    format!("metadata `{key}` is missing")
}

fn unknown_architecture(field: &str, name: &str) -> String {
    format!("`{field}` is `{name}`, which is not served; llama, qwen2 and qwen3 are")
}

fn unknown_scaling(field: &str, name: &str) -> String {
    format!("`{field}` is `{name}`, which is not served; none, linear and llama3 are")
}

/// A `config.json` with errors that name the field.
struct Fields<'a>(&'a Json);

impl Fields<'_> {
    fn present(&self, key: &str) -> Option<&Json> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn text(&self, key: &str) -> Result<Option<String>, String> {
        self.present(key)
            .map(|v| {
                v.as_str()
                    .map(str::to_owned)
                    .ok_or_else(|| format!("`{key}` should be text"))
            })
            .transpose()
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, String> {
        self.present(key)
            .map(|v| {
                v.as_bool()
                    .ok_or_else(|| format!("`{key}` should be true or false"))
            })
            .transpose()
    }

    fn number(&self, key: &str) -> Result<Option<f32>, String> {
        self.present(key)
            .map(|v| {
                v.as_f64()
                    .map(|x| x as f32)
                    .ok_or_else(|| format!("`{key}` should be a number"))
            })
            .transpose()
    }

    fn optional_count(&self, key: &str) -> Result<Option<usize>, String> {
        self.present(key)
            .map(|v| {
                v.as_u64()
                    .filter(|&n| n > 0)
                    .and_then(|n| usize::try_from(n).ok())
                    .ok_or_else(|| format!("`{key}` should be a whole number above 0"))
            })
            .transpose()
    }

    fn count(&self, key: &str) -> Result<usize, String> {
        self.optional_count(key)?
            .ok_or_else(|| format!("`{key}` is missing"))
    }

    /// Refuses settings that change the arithmetic in ways the decoder does not know.
    fn refuse_unserved(&self) -> Result<(), String> {
        if self.present("quantization_config").is_some() {
            return Err("`quantization_config` asks for a quantised checkpoint, which is not served; use the GGUF form".to_owned());
        }
        for key in ["hidden_act", "hidden_activation"] {
            if let Some(name) = self.text(key)?
                && name != "silu"
            {
                return Err(format!("`{key}` is `{name}`, which is not served; silu is"));
            }
        }
        let slides = |v: &Json| v.as_str().is_some_and(|kind| kind != "full_attention");
        if self
            .present("layer_types")
            .and_then(Json::as_array)
            .is_some_and(|t| t.iter().any(slides))
            || self.flag("use_sliding_window")? == Some(true)
        {
            return Err("`layer_types` or `use_sliding_window` asks for sliding-window attention, which is not served".to_owned());
        }
        Ok(())
    }

    fn rope(&self) -> Result<Rope, String> {
        let field = if self.present("rope_parameters").is_some() {
            "rope_parameters"
        } else {
            "rope_scaling"
        };
        let nothing = Json::Object(serde_json::Map::new());
        if self.present(field).is_some_and(|value| !value.is_object()) {
            return Err(format!("`{field}` should be an object"));
        }
        let inner = Fields(self.present(field).unwrap_or(&nothing));
        let theta = match inner.number("rope_theta")? {
            Some(theta) => theta,
            None => self.number("rope_theta")?.unwrap_or(10_000.0),
        };
        for fields in [self, &inner] {
            if fields
                .number("partial_rotary_factor")?
                .is_some_and(|part| part != 1.0)
            {
                return Err(
                    "`partial_rotary_factor` asks for partial rotation, which is not served"
                        .to_owned(),
                );
            }
        }
        let need = |key: &str| {
            inner
                .number(key)?
                .ok_or_else(|| format!("`{field}.{key}` is missing"))
        };
        let kind = match inner.text("rope_type")? {
            Some(kind) => Some(kind),
            None => inner.text("type")?,
        };
        let scaling = match kind.as_deref() {
            None | Some("default") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear {
                factor: need("factor")?,
            },
            Some("llama3") => RopeScaling::Llama3 {
                factor: need("factor")?,
                low_freq_factor: need("low_freq_factor")?,
                high_freq_factor: need("high_freq_factor")?,
                original_max_positions: need("original_max_position_embeddings")?,
            },
            Some(other) => return Err(unknown_scaling(&format!("{field}.rope_type"), other)),
        };
        Ok(Rope {
            theta,
            scaling,
            neighbours: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn llama() -> Json {
        json!({
            "model_type": "llama", "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 6,
            "num_key_value_heads": 2, "intermediate_size": 200, "vocab_size": 320,
            "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        })
    }

    #[test]
    fn both_spellings_of_rope_are_read() {
        let mut old = llama();
        old["rope_theta"] = json!(500000.0);
        old["rope_scaling"] = json!({"type": "linear", "factor": 2.0});
        let mut new = llama();
        new["rope_parameters"] =
            json!({"rope_type": "linear", "rope_theta": 500000.0, "factor": 2.0});
        assert_eq!(ModelSpec::from_config(&old), ModelSpec::from_config(&new));
        let spec = ModelSpec::from_config(&old).expect("a sound config");
        assert_eq!((spec.rope.theta, spec.head_dim), (500_000.0, 16));
    }

    #[test]
    fn what_is_not_served_is_refused_by_name() {
        for (key, value, word) in [
            ("model_type", json!("gemma3"), "gemma3"),
            ("hidden_act", json!("gelu"), "gelu"),
            (
                "rope_scaling",
                json!({"rope_type": "yarn", "factor": 4.0}),
                "yarn",
            ),
            ("layer_types", json!(["sliding_attention"]), "sliding"),
            ("quantization_config", json!({}), "quantization_config"),
            ("num_attention_heads", json!(7), "multiple"),
            ("hidden_size", json!("wide"), "hidden_size"),
            ("num_hidden_layers", Json::Null, "num_hidden_layers"),
        ] {
            let mut config = llama();
            config[key] = value;
            let error = ModelSpec::from_config(&config).expect_err(key);
            assert!(error.contains(word), "{key}: {error}");
        }
    }

    #[test]
    fn llama3_scaling_divides_low_frequencies_only() {
        let rope = |scaling| Rope {
            theta: 10_000.0,
            scaling,
            neighbours: false,
        };
        let plain = rope(RopeScaling::None).frequencies(64);
        let scaled = rope(RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 64.0,
        })
        .frequencies(64);
        assert_eq!(plain[0], scaled[0]);
        assert_eq!(plain[31] / 8.0, scaled[31]);
        assert!(
            plain
                .iter()
                .zip(&scaled)
                .all(|(p, s)| s <= p && *s >= p / 8.0)
        );
    }
}
