"""Make, or check, the frozen golden files which `sconce` is compared with.

Each case is a tiny random model in its own folder: the model as `transformers`
saves it or as one GGUF file, and `expected.json` with what `transformers`
computes in float32 from the stored weights.  See README.md.
"""

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from cases import CASES, CONFIG_CLASSES, Case
from ggufs import read_weights, write_gguf
from tokens import KINDS, prompt_of_length, train

GOLDEN = Path(__file__).parent / "golden"
EXPECTED = "expected.json"
STEPS = 64
MIN_GAP = 2e-3
MIN_DISTINCT = 12
TOLERANCE = 1e-4
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "gguf")

VOCAB_OWNERS = ("embed_tokens", "lm_head")
GAINS = {
    "embed_tokens": 3.0,
    "lm_head": 3.0,
    "q_proj": 1.5,
    "k_proj": 1.5,
    "o_proj": 1.5,
    "gate_proj": 1.5,
    "down_proj": 2.0,
}
PADDED_ROW_SCALE = 0.5

CHAT = (
    {"role": "system", "content": "You bake scones."},
    {"role": "user", "content": "How many are warm? I'd like 12."},
)


def main() -> int:
    arguments = parse_arguments()
    quiet_and_deterministic()
    if arguments.check is None:
        for case in wanted(arguments.case):
            make(case, arguments.out / case.name)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        differences = list(check(arguments.check, Path(folder), arguments.case))
    print("\n".join(differences) or "no differences")
    return 1 if differences else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=GOLDEN, help="folder to write the cases to")
    parser.add_argument("--check", type=Path, metavar="DIR", help="compare with the cases in DIR instead")
    parser.add_argument("--case", choices=[case.name for case in CASES], help="only this case")
    return parser.parse_args()


def wanted(only: str | None) -> list[Case]:
    return [case for case in CASES if only in (None, case.name)]


def quiet_and_deterministic() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True)


def make(case: Case, folder: Path) -> None:
    """Write one case: the model first, then what is computed from the files just written."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train(KINDS[case.tokenizer], case.tokenizer_size)
    stored = store_and_reload(folder, case, random_model(case, tokenizer), tokenizer)
    expected = expectations(case, stored.eval(), tokenizer)
    (folder / EXPECTED).write_text(readable_json(expected), encoding="utf-8")


def store_and_reload(
    folder: Path, case: Case, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> PreTrainedModel:
    """Write the model, and give it back in float32 with the weights which the files hold."""
    if case.gguf_type is not None:
        path = folder / "model.gguf"
        write_gguf(path, case, model, tokenizer)
        model.load_state_dict(read_weights(path, case, model))
        return model
    model.to(getattr(torch, case.dtype)).save_pretrained(folder, max_shard_size=case.max_shard_size)
    tokenizer.save_pretrained(folder, save_jinja_files=not case.inline_chat_template)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def random_model(case: Case, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    config = CONFIG_CLASSES[case.family](
        vocab_size=case.vocab,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **case.config,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    generator = np.random.default_rng(case.seed)
    for name, parameter in model.named_parameters():
        values = random_values(name, parameter.shape, generator)
        if owner_of(name) in VOCAB_OWNERS:
            values[case.tokenizer_size :] *= PADDED_ROW_SCALE
        parameter.copy_(torch.from_numpy(values))
    stop_ids = sorted(tokenizer.added_tokens_decoder) if case.all_specials_stop else tokenizer.eos_token_id
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=stop_ids, pad_token_id=tokenizer.pad_token_id
    )
    return model


def random_values(name: str, shape: torch.Size, generator: np.random.Generator) -> np.ndarray:
    """Values at which every weight shows in the output, and logits are neither flat nor saturated."""
    noise = generator.standard_normal(shape, dtype=np.float32)
    if name.endswith(".bias"):
        return 0.4 * noise
    if len(shape) == 1:
        return 1 + 0.3 * noise
    gain = GAINS.get(owner_of(name), 1.0)
    return gain / np.sqrt(shape[1], dtype=np.float32) * noise


def owner_of(name: str) -> str:
    """The module a parameter belongs to, such as `q_proj`."""
    return name.split(".")[-2]


def expectations(case: Case, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    stop_ids = model.generation_config.eos_token_id
    chat = tokenizer.apply_chat_template(list(CHAT), add_generation_prompt=True, tokenize=False)
    return {
        "case": case.name,
        "architecture": case.family,
        "weights": case.dtype if case.gguf_type is None else case.gguf_type.name,
        "seed": case.seed,
        "eos_token_ids": stop_ids if isinstance(stop_ids, list) else [stop_ids],
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "chat": {
            "messages": list(CHAT),
            "text": chat,
            "ids": tokenizer.encode(chat, add_special_tokens=False),
        },
        "prompts": [prompt_expectations(case, model, tokenizer, length) for length in case.prompt_lengths],
    }


def prompt_expectations(
    case: Case, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, length: int
) -> dict[str, Any]:
    text, ids = prompt_of_length(tokenizer, length)
    tokens = greedy(model, ids)
    logits = next_token_logits(model, ids + tokens)[:-1]
    chosen = torch.tensor((ids + tokens)[1:]).unsqueeze(-1)
    logprobs = logits.log_softmax(-1).gather(-1, chosen).squeeze(-1).tolist()
    best = logits[length - 1 :].topk(2).values
    gaps = (best[:, 0] - best[:, 1]).tolist()
    refuse_degenerate(case, tokens, gaps)
    return {
        "text": text,
        "ids": ids,
        "prompt_logprobs": [None, *rounded(logprobs[: length - 1])],
        "tokens": tokens,
        "generated_text": tokenizer.decode(tokens, skip_special_tokens=True),
        "logprobs": rounded(logprobs[length - 1 :]),
        "gaps": rounded(gaps),
    }


def greedy(model: PreTrainedModel, ids: list[int]) -> list[int]:
    """The likeliest continuation of `STEPS` tokens, past any end of sequence, computed without a cache."""
    tokens: list[int] = []
    for _ in range(STEPS):
        tokens.append(int(next_token_logits(model, ids + tokens)[-1].argmax()))
    return tokens


def next_token_logits(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids]), use_cache=False).logits[0]


def refuse_degenerate(case: Case, tokens: list[int], gaps: list[float]) -> None:
    """Near ties would make the tokens depend on rounding; loops would hide mistakes."""
    problems = []
    if min(gaps) < MIN_GAP:
        problems.append(f"a gap of {min(gaps):.1e}")
    if len(set(tokens)) < MIN_DISTINCT:
        problems.append(f"only {len(set(tokens))} distinct tokens")
    if max(tokens) >= case.tokenizer_size:
        problems.append("a padded token")
    if problems:
        raise ValueError(f"{case.name}: seed {case.seed} gives {', '.join(problems)}; choose another")


def rounded(values: list[float]) -> list[float]:
    return [round(value, 6) for value in values]


def readable_json(expected: dict[str, Any]) -> str:
    """JSON with one line per key, and each of the long lists on one line."""
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in expected.items() if key != "prompts"]
    prompts = []
    for prompt in expected["prompts"]:
        fields = [f"   {json.dumps(key)}: {json.dumps(value)}" for key, value in prompt.items()]
        prompts.append("  {\n" + ",\n".join(fields) + "\n  }")
    lines.append('"prompts": [\n' + ",\n".join(prompts) + "\n ]")
    return "{\n " + ",\n ".join(lines) + "\n}\n"


def check(golden: Path, fresh: Path, only: str | None) -> Iterator[str]:
    """Differences between the cases in `golden` and the same cases made anew."""
    names = {case.name for case in CASES}
    for folder in sorted(golden.iterdir()):
        if folder.is_dir() and folder.name not in names:
            yield f"{folder.name}: no such case"
    for case in wanted(only):
        path = golden / case.name / EXPECTED
        if not path.is_file():
            yield f"{case.name}: {EXPECTED} is missing"
            continue
        make(case, fresh / case.name)
        old, new = (json.loads(file.read_text("utf-8")) for file in (path, fresh / case.name / EXPECTED))
        del old["versions"], new["versions"]
        yield from compare(case.name, old, new)


def compare(where: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        for key in old:
            yield from compare(f"{where}.{key}", old[key], new[key])
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (left, right) in enumerate(zip(old, new, strict=True)):
            yield from compare(f"{where}[{index}]", left, right)
    elif isinstance(old, float) and isinstance(new, float):
        if not abs(old - new) <= TOLERANCE:
            yield f"{where}: {old} became {new}"
    elif old != new:
        yield f"{where}: {old!r} became {new!r}"


if __name__ == "__main__":
    sys.exit(main())
