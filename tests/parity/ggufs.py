"""GGUF files as llama.cpp's converter lays them out, and the weights read back from them."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as QuantType
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from cases import Case
from kquant import quantize
from tokens import KINDS

QUANTIZATION_VERSION = 2
FILE_TYPES = {
    QuantType.F32: gguf.LlamaFileType.ALL_F32,
    QuantType.F16: gguf.LlamaFileType.MOSTLY_F16,
    QuantType.BF16: gguf.LlamaFileType.MOSTLY_BF16,
    QuantType.Q8_0: gguf.LlamaFileType.MOSTLY_Q8_0,
    QuantType.Q4_0: gguf.LlamaFileType.MOSTLY_Q4_0,
    QuantType.Q5_0: gguf.LlamaFileType.MOSTLY_Q5_0,
    QuantType.Q3_K: gguf.LlamaFileType.MOSTLY_Q3_K_M,
    QuantType.Q4_K: gguf.LlamaFileType.MOSTLY_Q4_K_M,
    QuantType.Q5_K: gguf.LlamaFileType.MOSTLY_Q5_K_M,
    QuantType.Q6_K: gguf.LlamaFileType.MOSTLY_Q6_K,
}
ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}


def write_gguf(path: Path, case: Case, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    writer = gguf.GGUFWriter(path, case.family)
    writer.add_name(case.name)
    writer.add_quantization_version(QUANTIZATION_VERSION)
    writer.add_file_type(FILE_TYPES[case.gguf_type])
    add_hyperparameters(writer, model.config)
    add_tokenizer(writer, case, tokenizer)
    for name, gguf_name, heads in tensor_names(case, model):
        rows = model.state_dict()[name].numpy()
        if heads is not None:
            rows = interleave_halves(rows, heads)
        kind = tensor_type(case, gguf_name, rows)
        writer.add_tensor(gguf_name, quantize(rows, kind), raw_dtype=kind)
    if model.config.rope_parameters["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", rope_divisors(model.config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_weights(path: Path, case: Case, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The weights of the file, dequantised, under the names which `transformers` gives them."""
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    weights = {}
    for name, gguf_name, heads in tensor_names(case, model):
        rows = gguf.quants.dequantize(stored[gguf_name].data, stored[gguf_name].tensor_type)
        if heads is not None:
            rows = separate_halves(rows, heads)
        weights[name] = torch.from_numpy(np.array(rows, dtype=np.float32))
    if model.config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    return weights


def tensor_names(case: Case, model: PreTrainedModel) -> Iterator[tuple[str, str, int | None]]:
    """Name here, name in GGUF, and the head count where GGUF wants interleaved rotary halves."""
    config = model.config
    names = gguf.get_tensor_name_map(ARCHITECTURES[case.family], config.num_hidden_layers)
    interleaved = {}
    if case.family == "llama":
        interleaved = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name in model.state_dict():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        yield name, gguf_name, interleaved.get(name.split(".")[-2])


def tensor_type(case: Case, gguf_name: str, rows: np.ndarray) -> QuantType:
    if rows.ndim == 1:
        return QuantType.F32
    for suffix, kind in case.gguf_overrides.items():
        if gguf_name.endswith(suffix):
            return kind
    return case.gguf_type


def interleave_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head reordered from split halves to adjacent rotary pairs."""
    return rows.reshape(heads, 2, -1, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def separate_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `interleave_halves`."""
    return rows.reshape(heads, -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def rope_divisors(config: PreTrainedConfig) -> np.ndarray:
    """What each rotary frequency is divided by under `llama3` scaling."""
    rope = config.rope_parameters
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    divisors = []
    for index in range(0, config.head_dim, 2):
        frequency = rope["rope_theta"] ** (-index / config.head_dim)
        turns = rope["original_max_position_embeddings"] * frequency / (2 * math.pi)
        blend = min(max((turns - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / ((1 - blend) / rope["factor"] + blend))
    return np.array(divisors, dtype=np.float32)


def add_hyperparameters(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if config.model_type != "qwen2":
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if config.model_type == "llama":
        writer.add_vocab_size(config.vocab_size)
        writer.add_rope_dimension_count(config.head_dim)


def add_tokenizer(writer: gguf.GGUFWriter, case: Case, tokenizer: PreTrainedTokenizerFast) -> None:
    """Vocabulary, padded to the embedding's rows, with merges, special tokens and template."""
    specials = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    texts = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    types = [gguf.TokenType.CONTROL if id in specials else gguf.TokenType.NORMAL for id in range(len(texts))]
    for id in range(len(texts), case.vocab):
        texts.append(f"[PAD{id}]")
        types.append(gguf.TokenType.UNUSED)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(case.tokenizer)
    writer.add_token_list(texts)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    add_special_ids(writer, tokenizer)
    if case.tokenizer != "smollm":
        writer.add_add_bos_token(KINDS[case.tokenizer].adds_bos)
    writer.add_chat_template(tokenizer.chat_template)


def add_special_ids(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    setters: tuple[tuple[int | None, Callable[[int], None]], ...] = (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.eos_token_id, writer.add_eos_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
    )
    for token_id, setter in setters:
        if token_id is not None:
            setter(token_id)
