"""Trains the demo model from scratch on the corpus of `corpus.py`.

Makes the tokenizer (byte-level BPE, one token per digit) from the corpus, then trains
a small Llama on an endless seeded stream of documents. Each step packs whole
documents into rows of one width; every document starts at position 0 and sees nothing
but itself. Answers weigh 1 in the loss, questions little. Muon trains the matrices and
AdamW the embedding and the norms; the learning rate warms up, stays flat and falls to
zero over the last third (WSD), so a stopped run can be lengthened. The forward pass runs in bfloat16, the weights stay in float32.

The work folder receives `tokenizer.json`, `checkpoint.pt` (weights, optimizer states and
step; written atomically) and `log.jsonl` (the loss curve). A run that finds a
checkpoint goes on from it.

    python train.py --work WORK
"""

import argparse
import json
import math
import os
import time
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from corpus import END_OF_TEXT, IM_END, IM_START, Corpus

CORPUS_SEED = 1
TOKENIZER_SEED = 2
WEIGHTS_SEED = 3
TOKENIZER_DOCUMENTS = 30_000
VOCAB_SIZE = 2048
QUESTION_WEIGHT = 0.1
ROWS, WIDTH = 8, 512


def make_tokenizer():
    """Trains the tokenizer. llama.cpp knows this pre-tokenizer as `smollm`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=[END_OF_TEXT, IM_START, IM_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    stream = Corpus(TOKENIZER_SEED).documents()
    tokenizer.train_from_iterator((doc.text for doc in islice(stream, TOKENIZER_DOCUMENTS)), trainer)
    return tokenizer


def make_model(vocab_size):
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=256, intermediate_size=768, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=1024, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=0, pad_token_id=0)
    torch.manual_seed(WEIGHTS_SEED)
    return LlamaForCausalLM(config)


def encode(tokenizer, documents):
    """Tokens of each document with a loss weight for each."""
    for document, encoding in zip(documents, tokenizer.encode_batch([doc.text for doc in documents])):
        weights = [1.0 if any(start <= at < end for start, end in document.answers) else QUESTION_WEIGHT
                   for at, _ in encoding.offsets]
        yield encoding.ids, weights


class Packer:
    """Packs whole documents into rows of one width, so that every step has the same shape and little padding.

    A document that fits into no row of a step is kept for the next one; one that is wider than a row is left out.
    """

    def __init__(self, stream, tokenizer):
        self.stream, self.tokenizer, self.waiting = stream, tokenizer, []

    def step(self, rows, width):
        """(ids, loss weights, positions, attention mask) of a step, and its number of tokens."""
        filled, kept = [[] for _ in range(rows)], []
        room = [width] * rows
        while len(kept) < 16:
            if not self.waiting:
                self.waiting = [sample for sample in encode(self.tokenizer, list(islice(self.stream, 64))) if len(sample[0]) <= width]
            sample = self.waiting.pop()
            row = next((row for row in range(rows) if room[row] >= len(sample[0])), None)
            if row is None:
                kept.append(sample)
            else:
                filled[row].append(sample)
                room[row] -= len(sample[0])
        self.waiting += kept

        ids, weights = torch.zeros(rows, width, dtype=torch.long), torch.zeros(rows, width)
        positions, owners = torch.zeros(rows, width, dtype=torch.long), torch.full((rows, width), -1)
        for row, samples in enumerate(filled):
            at = 0
            for owner, (sample_ids, sample_weights) in enumerate(samples):
                span = slice(at, at + len(sample_ids))
                ids[row, span], positions[row, span] = torch.tensor(sample_ids), torch.arange(len(sample_ids))
                # The first token of a document has nothing before it to be predicted from.
                weights[row, span] = torch.tensor([0.0] + sample_weights[1:])
                owners[row, span] = owner
                at = span.stop
        seen = (owners[:, :, None] == owners[:, None, :]) & torch.ones(width, width, dtype=torch.bool).tril()
        mask = torch.where(seen, 0.0, float("-inf"))[:, None]
        return (ids, weights, positions, mask), rows * width - sum(room)


def learning_rate(step, steps, peak, warmup=50):
    """Warm-up, flat, and a linear fall to zero over the last third."""
    fall = steps - steps // 3
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak if step < fall else peak * (steps - step) / (steps - fall)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--peak", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=100)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    tokenizer_file, checkpoint_file = args.work / "tokenizer.json", args.work / "checkpoint.pt"
    if tokenizer_file.exists():
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    else:
        tokenizer = make_tokenizer()
        tokenizer.save(str(tokenizer_file))

    model = make_model(tokenizer.get_vocab_size())
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() == 1 or "embed" in name]
    optimizers = [
        torch.optim.Muon(matrices, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]
    step, tokens, seconds = 0, 0, 0.0
    if checkpoint_file.exists():
        state = torch.load(checkpoint_file)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        step, tokens, seconds = state["step"], state["tokens"], state["seconds"]
    # A resumed run draws documents it has not seen.
    packer = Packer(Corpus(CORPUS_SEED + 1000 * step).documents(), tokenizer)

    log = (args.work / "log.jsonl").open("a")
    model.train()
    recent = []
    while step < args.steps:
        started = time.time()
        rate = learning_rate(step, args.steps, args.peak)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        (ids, weights, positions, mask), total = packer.step(ROWS, WIDTH)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids, position_ids=positions, attention_mask=mask).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        weights = weights[:, 1:].flatten()
        loss = (losses * weights).sum() / weights.sum()
        loss.backward()
        loss_value = loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        assert math.isfinite(loss_value), f"the loss is {loss_value} at step {step}"
        step += 1
        tokens += total
        seconds += time.time() - started
        recent.append(loss_value)
        if step % 20 == 0:
            line = {"step": step, "tokens": tokens, "loss": round(sum(recent) / len(recent), 4), "rate": rate,
                    "seconds": round(seconds)}
            print(json.dumps(line), flush=True)
            log.write(json.dumps(line) + "\n")
            log.flush()
            recent = []
        if step % args.save_every == 0 or step == args.steps:
            temporary = checkpoint_file.with_suffix(".tmp")
            torch.save({"model": model.state_dict(), "optimizers": [optimizer.state_dict() for optimizer in optimizers], "step": step,
                        "tokens": tokens, "seconds": seconds, "config": model.config.to_dict()}, temporary)
            os.replace(temporary, checkpoint_file)


if __name__ == "__main__":
    main()
