"""Asks llama.cpp and a running sconce server the same questions about the demo model's file.

Both must split every prompt into the same tokens and continue it with the same greedy text: the file means the
same to both. The prompts are some written here and the frozen sample of the model's evaluation. llama.cpp rounds
activations to 8 bits, so that where two tokens are nearly as likely, as names in a story are, it may take the other
one: there, and only there, the texts may part. Needs llama-cpp-python; exits with 1 when any answer differs.

    python ask_llama_cpp.py --url http://127.0.0.1:3000
"""

import argparse
import json
import sys
import urllib.request
from pathlib import Path

from llama_cpp import Llama

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "models" / "demo" / "model.gguf"
FROZEN = ROOT / "tests" / "it" / "golden" / "demo_answers.json"

PROMPTS = [
    "What is Deep Learning?",
    "What is the capital of France?",
    "What is the capital of Japan?",
    "Hello!",
    "What is 7 + 9?",
    "3 + 4 =",
    "Once upon a time",
    "Tell me a story about a bear.",
    "What is the weather in Paris?",
    "Explain overfitting.",
    "Define gravity.",
    "What is a token?",
    "What is the opposite of hot?",
    "How many legs does a spider have?",
    "what day comes after Monday?",
    "<|im_start|>user\nWhat can you do?<|im_end|>\n<|im_start|>assistant\n",
]
NEW_TOKENS = 200
# Log-probabilities of two tokens that rounding may swap differ by less.
NEARLY_TIED = 0.2


def post(url, body):
    """The JSON answer to a JSON body."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)


def parts_at_a_tie(answer, theirs):
    """Whether the first token in which another text differs had a rival that was nearly as likely."""
    details, text = answer["details"], ""
    for token, top in zip(details["tokens"], details["top_tokens"]):
        text += token["text"]
        if not theirs.startswith(text):
            best, second = sorted((other["logprob"] for other in top), reverse=True)[:2]
            return best - second < NEARLY_TIED
    return False


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:3000")
    url = parser.parse_args().url
    llama = Llama(str(DEMO), n_ctx=1024, verbose=False)
    prompts = PROMPTS + [question["prompt"] for question in json.loads(FROZEN.read_text())]
    differing = ties = 0
    for prompt in prompts:
        ids = llama.tokenize(prompt.encode(), add_bos=False, special=True)
        completion = llama.create_completion(
            ids, max_tokens=NEW_TOKENS, temperature=0.0, top_k=1, repeat_penalty=1.0
        )
        theirs = (ids, completion["choices"][0]["text"])
        tokens = post(f"{url}/tokenize", {"inputs": prompt})
        answer = post(
            f"{url}/generate",
            {"inputs": prompt, "parameters": {"max_new_tokens": NEW_TOKENS, "details": True, "top_n_tokens": 2}},
        )
        ours = ([token["id"] for token in tokens], answer["generated_text"])
        if ours[0] == theirs[0] and ours[1] != theirs[1] and parts_at_a_tie(answer, theirs[1]):
            ties += 1
        elif ours != theirs:
            differing += 1
            print(f"{prompt!r}\n  sconce    {ours}\n  llama.cpp {theirs}")
    same = len(prompts) - differing - ties
    print(f"{same} of {len(prompts)} answers are the same, {ties} part where two tokens are nearly tied")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
