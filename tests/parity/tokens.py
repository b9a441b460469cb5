"""Small byte-level BPE tokenizers, trained on a text of our own.

Three kinds are made, each with the pre-tokenizer of a family in use and the
name which GGUF files give to it: `smollm`, `llama-bpe` and `qwen2`.
"""

from dataclasses import dataclass, field

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

TRAINING_TEXT = """
The baker lights the oven before dawn, and the light of the oven is the light of the street.
A loaf wants flour, water, salt and time; of the four, time is the one that can't be bought.
She said: "we'll weigh it again", and they'd weighed it 3 times: 1250 g, 1248 g and 1251 g.
In the morning the children of the village come by with a basket and 2 coins, or with nothing.
Scones are best warm. Scones are second best an hour later, with butter, with jam, with tea.
The river runs past the mill, past the bakery, past the school, and nobody hurries after it.
    let total = items.iter().map(|item| item.price).sum::<u64>();
    for (name, count) in &basket { println!("{name}: {count}"); }
Le boulanger a déjà goûté la pâte; l'été, elle lève en 45 minutes à peine.
Der Bäcker zählt die Brötchen: 10, 20, 30 und noch 7 übrige für die Nachbarn.
パンは温かいうちに。 面包还是热的。 Хлеб ещё тёплый. 🥐🍞
"""

PROMPT_TEXT = """
Before the scones there was the oven, and before the oven there was the dough that waited.
The children weighed 1250 coins against 48 loaves; it wasn't a fair trade, they'd say later.
    let warm = basket.iter().filter(|scone| scone.is_warm()).count();
Le boulanger compte les brötchen à l'été: パン, хлеб, 🥐, and then he closes the door, slowly.
Nobody in the village hurries after the river, because the river runs past in any case.
"""

CHATML_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA_SPECIALS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)

WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_SPLIT = rf"{ENDINGS}|{WORDS}|\p{{N}}{{1,3}}|{REST}"
QWEN_SPLIT = rf"{ENDINGS}|{WORDS}|\p{{N}}|{REST}"

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA_CHAT = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Kind:
    """How one family splits text, and which special tokens it has."""

    name: str
    pre_tokenizer: pre_tokenizers.PreTokenizer
    specials: tuple[str, ...]
    chat_template: str
    roles: dict[str, str]
    specials_first: bool = False
    adds_bos: bool = False
    normalizer: normalizers.Normalizer | None = None
    model_options: dict[str, bool] = field(default_factory=dict)


def split_then_bytes(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            name="smollm",
            pre_tokenizer=pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Digits(individual_digits=True),
                    pre_tokenizers.ByteLevel(add_prefix_space=False),
                ]
            ),
            specials=CHATML_SPECIALS,
            chat_template=CHATML,
            roles={"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
            specials_first=True,
        ),
        Kind(
            name="llama-bpe",
            pre_tokenizer=split_then_bytes(LLAMA_SPLIT),
            specials=LLAMA_SPECIALS,
            chat_template=LLAMA_CHAT,
            roles={"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
            adds_bos=True,
            model_options={"ignore_merges": True},
        ),
        Kind(
            name="qwen2",
            pre_tokenizer=split_then_bytes(QWEN_SPLIT),
            specials=CHATML_SPECIALS,
            chat_template=CHATML,
            roles={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
            normalizer=normalizers.NFC(),
        ),
    )
}


def train(kind: Kind, size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of exactly `size` tokens, special ones included."""
    core = Tokenizer(models.BPE(**kind.model_options))
    core.pre_tokenizer = kind.pre_tokenizer
    core.decoder = decoders.ByteLevel()
    if kind.normalizer is not None:
        core.normalizer = kind.normalizer
    trainer = BpeTrainer(
        vocab_size=size if kind.specials_first else size - len(kind.specials),
        special_tokens=list(kind.specials) if kind.specials_first else [],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator([TRAINING_TEXT], trainer)
    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in kind.specials])
    if kind.adds_bos:
        core.post_processor = prepend(kind.roles["bos_token"], core)
    if core.get_vocab_size() != size:
        raise ValueError(f"{kind.name}: the text is too short for {size} tokens")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=512, **kind.roles)
    tokenizer.chat_template = kind.chat_template
    return tokenizer


def prepend(token: str, core: Tokenizer) -> processors.PostProcessor:
    return processors.TemplateProcessing(
        single=f"{token} $A",
        pair=f"{token} $A {token}:1 $B:1",
        special_tokens=[(token, core.token_to_id(token))],
    )


def prompt_of_length(tokenizer: PreTrainedTokenizerFast, length: int) -> tuple[str, list[int]]:
    """The first stretch of the prompt text which is exactly `length` tokens, and these tokens.

    The start moves on with the length, so that prompts do not begin alike.
    """
    for start in range(6 * length, len(PROMPT_TEXT)):
        ids = tokenizer.encode(PROMPT_TEXT[start:])[:length]
        text = tokenizer.decode(ids, skip_special_tokens=True)
        if text and tokenizer.encode(text) == ids:
            return text, ids
    raise ValueError(f"no prompt of {length} tokens")
