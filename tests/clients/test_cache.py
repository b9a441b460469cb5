"""The cache of models is one and the same for sconce and for huggingface_hub."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from huggingface_hub import scan_cache_dir, snapshot_download

from hub import COMMIT, Hub

GOLDEN = Path(__file__).parents[1] / "parity/golden"
NEEDED = {"chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture(scope="module")
def binary():
    if "SCONCE_BINARY" not in os.environ:
        pytest.exit("SCONCE_BINARY is not set: start the tests with tests/clients/run", returncode=2)
    return os.environ["SCONCE_BINARY"]


@pytest.fixture
def hub():
    files = {path.name: path.read_bytes() for path in (GOLDEN / "llama-tied").iterdir() if path.name != "expected.json"}
    with Hub("org/tiny", files | {"README.md": b"# tiny\n"}) as hub:
        yield hub


def sconce(binary, home, *arguments, **variables):
    environment = {"HF_HOME": str(home)} | variables
    done = subprocess.run([binary, *arguments], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_huggingface_hub_finds_what_sconce_has_downloaded(binary, hub, tmp_path):
    sconce(binary, tmp_path, "pull", "org/tiny", HF_ENDPOINT=hub.url)
    cache = tmp_path / "hub"
    asked = len(hub.paths)
    found = Path(snapshot_download("org/tiny", cache_dir=cache, local_files_only=True))
    assert found.name == COMMIT and contents(found) == {name: hub.files[name] for name in NEEDED}
    (repo,) = scan_cache_dir(cache).repos
    assert (repo.repo_id, repo.size_on_disk) == ("org/tiny", sum(len(hub.files[name]) for name in NEEDED))
    assert not scan_cache_dir(cache).warnings
    # With the hub at hand it fetches what it misses, and nothing that is here.
    everything = Path(snapshot_download("org/tiny", cache_dir=cache, endpoint=hub.url))
    assert contents(everything) == hub.files
    assert not any(path.startswith("/storage/") for path in hub.paths[asked:])


def test_sconce_finds_what_huggingface_hub_has_downloaded(binary, hub, tmp_path):
    snapshot_download("org/tiny", cache_dir=tmp_path / "hub", endpoint=hub.url)
    (row,) = (json.loads(line) for line in sconce(binary, tmp_path, "list", "--json").splitlines())
    assert (row["model"], row["revision"], row["commit"], row["format"]) == ("org/tiny", "main", COMMIT, "safetensors")
    assert row["problem"] is None and row["memory_bytes"] > row["size_bytes"] > 0
    offline = sconce(binary, tmp_path, "check", "--model-id", "org/tiny", HF_HUB_OFFLINE="1")
    assert "org/tiny" in offline
    asked = len(hub.paths)
    assert "up to date" in sconce(binary, tmp_path, "pull", "org/tiny", HF_ENDPOINT=hub.url)
    assert hub.paths[asked:] == ["/api/models/org/tiny/revision/main"]
    # Now it is known what the commit has not, as huggingface_hub notes it.
    assert (tmp_path / "hub/models--org--tiny/.no_exist" / COMMIT / "processor_config.json").exists()
