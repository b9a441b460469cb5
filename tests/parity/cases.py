"""The frozen cases: which models are made, and how their weights are stored.

Shapes are odd on purpose: widths which are no multiple of a vector or block
size, grouped heads, heads wider or narrower than the hidden size.
"""

from dataclasses import dataclass, field
from typing import Any

from gguf import GGMLQuantizationType as QuantType
from transformers import LlamaConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

CONFIG_CLASSES: dict[str, type[PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}


@dataclass(frozen=True)
class Case:
    """One model and its prompts.

    `seed` is chosen so that no greedy step is a near tie; `make.py` refuses
    one which is not.
    """

    name: str
    family: str
    tokenizer: str
    seed: int
    config: dict[str, Any]
    dtype: str = "float32"
    vocab: int = 320
    tokenizer_size: int = 320
    max_shard_size: str = "1GB"
    inline_chat_template: bool = False
    all_specials_stop: bool = False
    prompt_lengths: tuple[int, ...] = (1, 7, 40)
    gguf_type: QuantType | None = None
    gguf_overrides: dict[str, QuantType] = field(default_factory=dict)


def shape(hidden: int, inner: int, heads: int, kv_heads: int, layers: int = 2, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "num_hidden_layers": layers,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        **more,
    }


def llama3_rope(original_length: int) -> dict[str, Any]:
    """Scaling as in Llama 3.2, over an original length short enough to matter here."""
    return {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": original_length,
    }


def default_rope(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


SMALL_GGUF = shape(128, 160, heads=4, kv_heads=2, head_dim=32)
QWEN_ROPE = default_rope(1000000.0)

CASES = (
    Case(
        name="llama-gqa3",
        family="llama",
        tokenizer="smollm",
        seed=1,
        config=shape(96, 200, heads=6, kv_heads=2, head_dim=24),
        vocab=317,
        tokenizer_size=317,
    ),
    Case(
        name="llama-tied",
        family="llama",
        tokenizer="llama-bpe",
        seed=2,
        config=shape(
            64,
            152,
            heads=4,
            kv_heads=1,
            head_dim=32,
            layers=3,
            tie_word_embeddings=True,
            rope_parameters=llama3_rope(32),
        ),
        prompt_lengths=(2, 16, 33),
    ),
    Case(
        name="llama-bias",
        family="llama",
        tokenizer="smollm",
        seed=103,
        config=shape(72, 176, heads=4, kv_heads=4, attention_bias=True, mlp_bias=True),
        max_shard_size="200KB",
        inline_chat_template=True,
    ),
    Case(
        name="llama-linear-rope",
        family="llama",
        tokenizer="llama-bpe",
        seed=4,
        config=shape(
            80,
            216,
            heads=5,
            kv_heads=1,
            layers=3,
            rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
        ),
        dtype="bfloat16",
        prompt_lengths=(2, 15, 48),
    ),
    Case(
        name="qwen2",
        family="qwen2",
        tokenizer="qwen2",
        seed=5,
        config=shape(
            84, 188, heads=6, kv_heads=2, layers=3, tie_word_embeddings=True, rope_parameters=QWEN_ROPE
        ),
        dtype="float16",
        vocab=352,
        tokenizer_size=311,
    ),
    Case(
        name="qwen2-untied",
        family="qwen2",
        tokenizer="qwen2",
        seed=6,
        config=shape(64, 144, heads=8, kv_heads=4, layers=3, rope_parameters=QWEN_ROPE),
        prompt_lengths=(1, 17, 32),
    ),
    Case(
        name="qwen3",
        family="qwen3",
        tokenizer="qwen2",
        seed=7,
        config=shape(56, 168, heads=8, kv_heads=2, head_dim=32, rope_parameters=QWEN_ROPE),
    ),
    Case(
        name="qwen3-tied",
        family="qwen3",
        tokenizer="qwen2",
        seed=8,
        config=shape(
            64,
            136,
            heads=2,
            kv_heads=2,
            head_dim=48,
            layers=3,
            tie_word_embeddings=True,
            rope_parameters=QWEN_ROPE,
        ),
        inline_chat_template=True,
        all_specials_stop=True,
    ),
    Case(
        name="llama-gguf-f32",
        family="llama",
        tokenizer="llama-bpe",
        seed=9,
        config={**SMALL_GGUF, "rope_parameters": llama3_rope(32)},
        prompt_lengths=(2, 7, 40),
        gguf_type=QuantType.F32,
    ),
    Case(
        name="llama-gguf-f16",
        family="llama",
        tokenizer="smollm",
        seed=10,
        config={**SMALL_GGUF, "tie_word_embeddings": True},
        gguf_type=QuantType.F16,
    ),
    Case(
        name="llama-gguf-bf16",
        family="llama",
        tokenizer="llama-bpe",
        seed=211,
        config={**SMALL_GGUF, "rope_parameters": default_rope(500000.0)},
        prompt_lengths=(2, 17, 32),
        gguf_type=QuantType.BF16,
    ),
    Case(
        name="llama-gguf-q8_0",
        family="llama",
        tokenizer="smollm",
        seed=12,
        config={**SMALL_GGUF, "tie_word_embeddings": True},
        gguf_type=QuantType.Q8_0,
    ),
    Case(
        name="llama-gguf-q4_0",
        family="llama",
        tokenizer="smollm",
        seed=213,
        config=SMALL_GGUF,
        prompt_lengths=(1, 16, 33),
        gguf_type=QuantType.Q4_0,
    ),
    Case(
        name="llama-gguf-q5_0",
        family="llama",
        tokenizer="smollm",
        seed=301,
        config={**SMALL_GGUF, "tie_word_embeddings": True},
        gguf_type=QuantType.Q5_0,
        gguf_overrides={"ffn_down.weight": QuantType.Q5_1, "attn_v.weight": QuantType.Q4_1},
    ),
    Case(
        name="qwen2-gguf-q3_k",
        family="qwen2",
        tokenizer="qwen2",
        seed=302,
        config=shape(256, 256, heads=4, kv_heads=2, rope_parameters=QWEN_ROPE),
        tokenizer_size=311,
        gguf_type=QuantType.Q3_K,
        gguf_overrides={"ffn_gate.weight": QuantType.Q2_K, "attn_q.weight": QuantType.Q2_K, "output.weight": QuantType.Q6_K},
    ),
    Case(
        name="llama-gguf-q5_k",
        family="llama",
        tokenizer="smollm",
        seed=114,
        config=shape(256, 256, heads=4, kv_heads=2, head_dim=64),
        gguf_type=QuantType.Q5_K,
        gguf_overrides={"output.weight": QuantType.Q6_K},
    ),
    Case(
        name="qwen2-gguf-q4_k",
        family="qwen2",
        tokenizer="qwen2",
        seed=115,
        config=shape(256, 256, heads=4, kv_heads=2, tie_word_embeddings=True, rope_parameters=QWEN_ROPE),
        tokenizer_size=311,
        gguf_type=QuantType.Q4_K,
        gguf_overrides={"ffn_down.weight": QuantType.Q6_K},
    ),
    Case(
        name="qwen3-gguf-q6_k",
        family="qwen3",
        tokenizer="qwen2",
        seed=16,
        config=shape(256, 256, heads=8, kv_heads=2, head_dim=64, layers=1, rope_parameters=QWEN_ROPE),
        gguf_type=QuantType.Q6_K,
    ),
)
