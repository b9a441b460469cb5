"""Asks llama.cpp and a running sconce server the same questions about the demo model's file.

Both must split every prompt into the same tokens and continue it with the same greedy text: the file means the
same to both. Needs llama-cpp-python; exits with 1 when any answer differs.

    python ask_llama_cpp.py --url http://127.0.0.1:3000
"""

import argparse
import json
import sys
import urllib.request
from pathlib import Path

from llama_cpp import Llama

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo" / "model.gguf"

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
NEW_TOKENS = 60


def post(url, body):
    """The JSON answer to a JSON body."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:3000")
    url = parser.parse_args().url
    llama = Llama(str(DEMO), n_ctx=512, verbose=False)
    differing = 0
    for prompt in PROMPTS:
        ids = llama.tokenize(prompt.encode(), add_bos=False, special=True)
        completion = llama.create_completion(
            ids, max_tokens=NEW_TOKENS, temperature=0.0, top_k=1, repeat_penalty=1.0
        )
        theirs = (ids, completion["choices"][0]["text"])
        tokens = post(f"{url}/tokenize", {"inputs": prompt})
        answer = post(
            f"{url}/generate",
            {"inputs": prompt, "parameters": {"max_new_tokens": NEW_TOKENS}},
        )
        ours = ([token["id"] for token in tokens], answer["generated_text"])
        if ours != theirs:
            differing += 1
            print(f"{prompt!r}\n  sconce    {ours}\n  llama.cpp {theirs}")
    print(f"{len(PROMPTS) - differing} of {len(PROMPTS)} answers are the same")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
