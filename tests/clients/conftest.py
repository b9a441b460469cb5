"""What all tests of the Python clients share: the servers' addresses and how to keep one busy.

The servers are started by `tests/clients/run`, which hands over their addresses in the environment.
The demo model they serve is tiny: tests rely on a few facts that it knows, never on its prose.
"""

import json
import os
import time
import urllib.request

import pytest

# A fact the demo model knows, with and without a chat template.
QUESTION = "What is the capital of France?"
FACT = "Paris"


def address(variable):
    if variable not in os.environ:
        pytest.exit(f"{variable} is not set: start the tests with tests/clients/run", returncode=2)
    return os.environ[variable]


@pytest.fixture(scope="session")
def server():
    """A server with default settings, but for prompts' log-probabilities, which callers may ask for."""
    return address("SCONCE_URL")


@pytest.fixture(scope="session")
def openai_server():
    """A server that answers /v1 as OpenAI does, errors and all (COMPAT=openai)."""
    return address("SCONCE_OPENAI_URL")


@pytest.fixture(scope="session")
def locked_server():
    """A server that wants the key `api_key`."""
    return address("SCONCE_LOCKED_URL")


@pytest.fixture(scope="session")
def api_key():
    return os.environ["SCONCE_LOCKED_KEY"]


@pytest.fixture
def busy(request):
    """A server that serves one request at a time; `busy.hold()` occupies it."""
    return Busy(address("SCONCE_SINGLE_URL"))


class Busy:
    def __init__(self, url):
        self.url = url

    def hold(self):
        """Starts a long answer; the server is full until it ends or until the caller leaves.

        At this temperature all tokens are about equally likely, so the answer doesn't end early.
        """
        body = {
            "inputs": "Once upon a time",
            "parameters": {"temperature": 100.0, "max_new_tokens": 1000},
        }
        request = urllib.request.Request(
            f"{self.url}/generate_stream",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        for _ in range(100):
            stream = urllib.request.urlopen(request, timeout=60)
            first = stream.readline()
            if b"Model is overloaded" not in first:
                assert first.startswith(b"data:") and b'"error"' not in first, first
                return stream
            # A caller that left a moment ago is noticed at the next step.
            time.sleep(0.05)
        pytest.fail("the server stays full")

    def refused(self, call, error):
        """The `error` of a call that came while another was answered.

        A long answer takes a fraction of a second, so on a machine that pauses it may be over too early.
        """
        for _ in range(20):
            with self.hold():
                try:
                    call()
                except error as refusal:
                    return refusal
        pytest.fail(f"20 calls beside a running one, and no {error.__name__}")


def schema_of_reading():
    """A schema whose values a grammar bounds, so that any model fills it in."""
    return {
        "type": "object",
        "properties": {
            "city": {"type": "string", "enum": ["Paris", "Rome", "Oslo"]},
            "sunny": {"type": "boolean"},
            "days": {"type": "integer", "enum": [1, 2, 3]},
        },
        "required": ["city", "sunny", "days"],
        "additionalProperties": False,
    }


def check_reading(value):
    assert set(value) == {"city", "sunny", "days"}
    assert value["city"] in ("Paris", "Rome", "Oslo")
    assert isinstance(value["sunny"], bool)
    assert value["days"] in (1, 2, 3)


def tool(name, **properties):
    """A function in OpenAI's shape, all of whose arguments are required."""
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Calls {name}.",
            "parameters": {
                "type": "object",
                "properties": properties,
                "required": list(properties),
                "additionalProperties": False,
            },
        },
    }


WEATHER = tool("get_weather", city={"type": "string", "enum": ["Paris", "Rome"]})
CLOCK = tool("get_time", zone={"type": "string", "enum": ["UTC", "CET"]})


def check_arguments(name, arguments):
    """The arguments of a call, as the JSON text that a client hands out, fit the tool."""
    allowed = {"get_weather": ("city", ("Paris", "Rome")), "get_time": ("zone", ("UTC", "CET"))}
    key, values = allowed[name]
    given = json.loads(arguments) if isinstance(arguments, str) else arguments
    assert list(given) == [key] and given[key] in values, given
