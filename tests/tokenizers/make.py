"""Trains the four small tokenizers of this folder: one of each family that models use.

Their text is the demo model's corpus and lines of other scripts, emoji and white space written for this purpose.
Run it with `tokenizers` (requirements.txt) to make the files anew. They are committed: two of the trainers break ties by
chance, so that a second run gives other files of the same kind.
"""

import itertools
import json
import pathlib
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

HERE = pathlib.Path(__file__).parent
sys.path.append(str(HERE.parent.parent / "models/demo"))
import corpus  # noqa: E402

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
LINES = [
    "Größe, Übermut und Straße: für naïve Füße à la façade, déjà vu — cœur.",
    "Привет, мир! Как дела? Хорошо, спасибо. Мир хорош.",
    "日本語のテキストと漢字。日本の首都は東京です。東京は大きい。",
    "ภาษาไทยไม่มีช่องว่างระหว่างคำ",
    "مرحبا بالعالم، كيف الحال؟",
    "Emoji: 🙂🙂 🎉 👩‍👩‍👧‍👦 are here, and 🙂 again.",
    "  indented\n\tlines\r\n\n  with   many   spaces\n",
    '{"name": "get_weather", "arguments": {"city": "Zürich", "days": 3}}',
]


def text():
    yield from LINES * 20
    documents = corpus.Corpus(7).documents()
    yield from (document.text for document in itertools.islice(documents, 400))


def special():
    return [AddedToken(token, special=True) for token in SPECIAL]


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(
                    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
                ),
                "isolated",
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=special(),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text(), trainer)
    return tokenizer


def byte_fallback():
    plain = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    plain.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokens = special() + [AddedToken(f"<0x{byte:02X}>", special=False) for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=800, special_tokens=tokens, limit_alphabet=60, max_token_length=10, show_progress=False
    )
    plain.train_from_iterator(text(), trainer)
    written = json.loads(plain.to_str())
    merges = [tuple(merge) for merge in written["model"]["merges"]]
    tokenizer = Tokenizer(
        models.BPE(plain.get_vocab(), merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = plain.normalizer
    tokenizer.add_special_tokens(special())
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=800, special_tokens=special(), unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(text(), trainer)
    return tokenizer


def wordpiece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=800, special_tokens=special(), show_progress=False)
    tokenizer.train_from_iterator(text(), trainer)
    # Words added after training, as models add markers: not special, and found before anything else.
    tokenizer.add_tokens(["<tool_call>", "</tool_call>", " verbatim "])
    return tokenizer


for make in (byte_level, byte_fallback, unigram, wordpiece):
    (HERE / f"{make.__name__}.json").write_text(make().to_str(pretty=False) + "\n", encoding="utf-8")
