"""Writes the files a server needs from a checkpoint of `train.py`.

`model.gguf` (matrices in Q8_0, norms in F32) follows what llama.cpp expects of
architecture `llama`: the rows of each query and key head are reordered from the two
halves of transformers to neighbouring pairs, and the output matrix is left out because
it is the embedding. The tokenizer, its settings with `chat_template.jinja`, and both configs
are written beside it as JSON. Every file is replaced atomically.

`load_gguf` is the way back: a transformers model with the dequantised weights. `--check`
compares it with the checkpoint, and the chats of the corpus with what the template writes.

    python export.py --work WORK --out models/demo
    python export.py --work WORK --out models/demo --check
"""

import argparse
import json
import os
import random
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import corpus
import tasks

NAME = "sconce demo"
CHECK_SEED = 4
END_OF_TEXT_ID, IM_START_ID, IM_END_ID = 0, 1, 2
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja").read_text().rstrip("\n")
LAYER_TENSORS = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


def tensor_names(layers):
    """Pairs of (transformers name, GGUF name)."""
    yield "model.embed_tokens.weight", "token_embd.weight"
    for i in range(layers):
        for theirs, ours in LAYER_TENSORS.items():
            yield f"model.layers.{i}.{theirs}.weight", f"blk.{i}.{ours}.weight"
    yield "model.norm.weight", "output_norm.weight"


def heads_of(name, config):
    """The number of heads whose rows are reordered in this tensor, or None."""
    if name.endswith("attn_q.weight"):
        return config.num_attention_heads
    if name.endswith("attn_k.weight"):
        return config.num_key_value_heads
    return None


def halves_to_pairs(rows, heads):
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def pairs_to_halves(rows, heads):
    return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(path, config, weights, tokenizer):
    """`weights` are arrays by transformers name; `tokenizer` is the parsed tokenizer.json."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(NAME)
    writer.add_license("apache-2.0")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])

    ids = tokenizer["model"]["vocab"]
    tokens = sorted(ids, key=ids.get)
    assert tokens[:3] == SPECIAL_TOKENS and len(tokens) == config.vocab_size
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in SPECIAL_TOKENS else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(END_OF_TEXT_ID)
    writer.add_eos_token_id(END_OF_TEXT_ID)
    writer.add_eot_token_id(IM_END_ID)
    writer.add_pad_token_id(END_OF_TEXT_ID)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)

    for theirs, ours in tensor_names(config.num_hidden_layers):
        array = weights[theirs]
        if heads := heads_of(ours, config):
            array = halves_to_pairs(array, heads)
        if array.ndim == 1:
            writer.add_tensor(ours, array)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(ours, gguf.quants.quantize(np.ascontiguousarray(array), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load_gguf(path):
    """A transformers model with the dequantised weights of a GGUF file written here."""
    reader = gguf.GGUFReader(path)

    def field(name):
        return reader.get_field(f"llama.{name}").contents()

    config = LlamaConfig(
        vocab_size=field("vocab_size"), hidden_size=field("embedding_length"), intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"), num_attention_heads=field("attention.head_count"),
        num_key_value_heads=field("attention.head_count_kv"), head_dim=field("rope.dimension_count"),
        max_position_embeddings=field("context_length"), rms_norm_eps=field("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": field("rope.freq_base")}, tie_word_embeddings=True,
        bos_token_id=END_OF_TEXT_ID, eos_token_id=END_OF_TEXT_ID, pad_token_id=END_OF_TEXT_ID)
    tensors = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    state = {}
    for theirs, ours in tensor_names(config.num_hidden_layers):
        array = tensors.pop(ours)
        if heads := heads_of(ours, config):
            array = pairs_to_halves(array, heads)
        state[theirs] = torch.tensor(array, dtype=torch.float32)
    assert not tensors, f"unknown tensors: {sorted(tensors)}"
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model = LlamaForCausalLM(config)
    model.load_state_dict(state)
    return model.eval()


def replace_file(path, write):
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    os.replace(temporary, path)


def write_json(path, value):
    replace_file(path, lambda file: file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n"))


def export(work, out):
    state = torch.load(work / "checkpoint.pt", map_location="cpu")
    config = LlamaConfig.from_dict(state["config"])
    weights = {name: tensor.float().numpy() for name, tensor in state["model"].items()}
    tokenizer = json.loads((work / "tokenizer.json").read_text())
    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / "model.gguf", lambda file: write_gguf(file, config, weights, tokenizer))
    write_json(out / "tokenizer.json", tokenizer)
    write_json(out / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.max_position_embeddings,
        "add_bos_token": False, "add_prefix_space": False, "clean_up_tokenization_spaces": False,
        "bos_token": SPECIAL_TOKENS[0], "eos_token": SPECIAL_TOKENS[0], "pad_token": SPECIAL_TOKENS[0],
        "additional_special_tokens": SPECIAL_TOKENS[1:], "chat_template": CHAT_TEMPLATE,
    })
    write_json(out / "config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers, "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads, "head_dim": config.head_dim, "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings, "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_parameters["rope_theta"], "tie_word_embeddings": True, "attention_bias": False,
        "mlp_bias": False, "bos_token_id": END_OF_TEXT_ID, "eos_token_id": END_OF_TEXT_ID,
        "pad_token_id": END_OF_TEXT_ID, "torch_dtype": "float32",
    })
    write_json(out / "generation_config.json", {
        "bos_token_id": END_OF_TEXT_ID, "eos_token_id": [END_OF_TEXT_ID, IM_END_ID], "pad_token_id": END_OF_TEXT_ID,
    })
    print(f"step {state['step']}: wrote {(out / 'model.gguf').stat().st_size} bytes to {out / 'model.gguf'}")


def check(work, out):
    """Compares the logits of the exported file with those of the checkpoint."""
    state = torch.load(work / "checkpoint.pt", map_location="cpu")
    original = LlamaForCausalLM(LlamaConfig.from_dict(state["config"]))
    original.load_state_dict(state["model"])
    ids = torch.randint(0, original.config.vocab_size, (4, 256), generator=torch.Generator().manual_seed(CHECK_SEED))
    with torch.no_grad():
        expected = original.eval()(input_ids=ids).logits
        found = load_gguf(out / "model.gguf")(input_ids=ids).logits
    relative = ((found - expected).norm() / expected.norm()).item()
    agreement = (found.argmax(-1) == expected.argmax(-1)).float().mean().item()
    print(f"relative error of the logits {relative:.4f}, same best token {agreement:.1%}")
    assert relative < 0.03, "the exported weights differ by more than Q8_0 rounding"
    check_template(out)


def check_template(out):
    """The chat template writes chats as the corpus does, with tools, calls and results."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(out / "tokenizer.json"), chat_template=CHAT_TEMPLATE)
    rng = random.Random(CHECK_SEED)
    chats = 200
    for _ in range(chats):
        specs, turns = tasks.tool_turns(rng)
        turns += [("user", "Hello!"), ("assistant", "")]
        system = rng.choice(("", "Be brief."))
        messages = [{"role": "system", "content": system}] if system else []
        for role, text in turns[:-1]:
            calls = text.split("<tool_call>\n")[1:]
            calls = [json.loads(call.removesuffix("\n").removesuffix("\n</tool_call>")) for call in calls]
            messages.append({"role": role, "content": None if calls else text,
                             "tool_calls": [{"type": "function", "function": call} for call in calls]})
        tools = [{"type": "function", "function": {"name": spec["name"], "description": spec["description"], "parameters": {
            "type": "object", "properties": {name: {"type": kind} for name, kind in spec["arguments"].items()}}}} for spec in specs]
        found = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
        system = f"{system}\n\n{tasks.tools_text(specs)}".strip()
        expected = corpus.chat_document(turns, system).text.removesuffix("<|im_end|>\n")
        assert found == expected, f"the template writes\n{found}\nand the corpus\n{expected}"
    print(f"{chats} chats with tools are written alike by template and corpus")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--check", action="store_true", help="compare the exported file with the checkpoint")
    args = parser.parse_args()
    if args.check:
        check(args.work, args.out)
    else:
        export(args.work, args.out)


if __name__ == "__main__":
    main()
