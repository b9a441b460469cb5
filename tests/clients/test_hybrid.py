"""Python's official clients at a server that forwards, and at a full one that may not.

Run by `tests/clients/run hybrid` with the newest releases. What a client sent is counted by the servers.
"""

import contextlib
import json
import threading
import time
import urllib.error
import urllib.request

import openai
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError, OverloadedError
from openai import OpenAI

from conftest import FACT, QUESTION, address

CHAT = [{"role": "user", "content": QUESTION}]
GREEDY = {"temperature": 0, "max_tokens": 40}


@pytest.fixture(scope="module")
def near():
    """A server whose every answer is made by `far`."""
    return address("SCONCE_NEAR_URL")


@pytest.fixture(scope="module")
def far():
    return address("SCONCE_FAR_URL")


@pytest.fixture
def full():
    """A server that serves some requests at a time, knows an upstream and may not send it anything."""
    return Full(address("SCONCE_DENIED_URL"), int(address("SCONCE_DENIED_PLACES")))


def metric(url, name):
    text = urllib.request.urlopen(f"{url}/metrics", timeout=60).read().decode()
    (value,) = (line.rsplit(" ", 1)[1] for line in text.splitlines() if line.startswith(f"{name} "))
    return int(value)


class Full:
    def __init__(self, url, places):
        self.url = url
        self.places = places

    def refusals(self):
        return metric(self.url, 'tgi_request_failure{err="overloaded"}')

    @contextlib.contextmanager
    def held(self):
        """Keeps every place taken: who ends an answer asks for the next one at once."""
        body = {
            "inputs": "Once upon a time",
            "parameters": {"temperature": 100.0, "max_new_tokens": 300},
        }
        request = urllib.request.Request(
            f"{self.url}/generate_stream",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        over = threading.Event()
        holding = threading.Semaphore(0)

        def hold():
            begun = False
            while not over.is_set():
                try:
                    with urllib.request.urlopen(request, timeout=60) as stream:
                        for _ in stream:
                            if not begun:
                                begun = True
                                holding.release()
                            if over.is_set():
                                break
                except urllib.error.HTTPError:
                    pass

        threads = [threading.Thread(target=hold) for _ in range(self.places)]
        for thread in threads:
            thread.start()
        try:
            for _ in threads:
                assert holding.acquire(timeout=60)
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join()

    def refused(self, call, error):
        """The `error` of a call while all places are taken, how often it was asked, and how long it took.

        A place is free for a moment when an answer ends, so a call may slip in.
        """
        for _ in range(10):
            with self.held():
                before, began = self.refusals(), time.monotonic()
                try:
                    call()
                except error as refusal:
                    return refusal, self.refusals() - before, time.monotonic() - began
        pytest.fail(f"10 calls at a full server, and no {error.__name__}")


# -- a full server that may not forward --


def test_hub_asks_once(full):
    client = InferenceClient(full.url, timeout=60)
    refusal, asked, _ = full.refused(
        lambda: client.chat_completion(CHAT, **GREEDY), HfHubHTTPError
    )
    assert refusal.response.status_code == 429
    assert int(refusal.response.headers["retry-after"]) >= 1
    assert refusal.response.headers["x-route-reason"] == "egress_denied:level"
    assert asked == 1
    refusal, asked, _ = full.refused(
        lambda: client.text_generation(QUESTION, max_new_tokens=4), OverloadedError
    )
    assert "Model is overloaded" in str(refusal)
    assert asked == 1


def test_openai_waits_and_gives_up(full):
    """Two retries by default, each no earlier than `Retry-After` says."""
    client = OpenAI(base_url=f"{full.url}/v1", api_key="-", timeout=60)
    refusal, asked, took = full.refused(
        lambda: client.chat.completions.create(model="tgi", messages=CHAT, **GREEDY),
        openai.RateLimitError,
    )
    assert asked == 3
    # At least a second before each retry.
    assert took >= 2.0
    assert int(refusal.response.headers["retry-after"]) >= 1
    assert refusal.body == "Model is overloaded"


def test_openai_is_answered_when_there_is_room_again(full):
    client = OpenAI(base_url=f"{full.url}/v1", api_key="-", timeout=60)
    with full.held():
        before = full.refusals()
        answers = []
        caller = threading.Thread(
            target=lambda: answers.append(
                client.chat.completions.create(model="tgi", messages=CHAT, **GREEDY)
            )
        )
        caller.start()
        for _ in range(600):
            if full.refusals() > before or answers:
                break
            time.sleep(0.05)
    caller.join(timeout=60)
    assert FACT in answers[0].choices[0].message.content


# -- every answer from elsewhere --


def counted(far, calls):
    """What `calls` gives, and how many requests came to the upstream."""
    before = metric(far, "tgi_request_success")
    result = calls()
    return result, metric(far, "tgi_request_success") - before


def test_hub_through_another(near, far):
    here, there = InferenceClient(near, timeout=60), InferenceClient(far, timeout=60)

    def calls(client):
        chunks = client.chat_completion(CHAT, stream=True, **GREEDY)
        return [
            client.chat_completion(CHAT, **GREEDY).choices[0].message.content,
            "".join(chunk.choices[0].delta.content or "" for chunk in chunks),
            client.text_generation(QUESTION, max_new_tokens=40),
            "".join(client.text_generation(QUESTION, stream=True, max_new_tokens=40)),
        ]

    answers, asked = counted(far, lambda: calls(here))
    assert asked == 4
    assert answers == calls(there)
    assert all(FACT in answer for answer in answers)
    details = here.text_generation(QUESTION, details=True, max_new_tokens=40)
    assert details == there.text_generation(QUESTION, details=True, max_new_tokens=40)


def test_openai_through_another(near, far):
    def calls(url):
        client = OpenAI(base_url=f"{url}/v1", api_key="-", timeout=60, max_retries=0)
        asks = {"model": "tgi", "messages": CHAT, **GREEDY}
        stream = client.chat.completions.create(
            stream=True, stream_options={"include_usage": True}, **asks
        )
        chunks = list(stream)
        raw = client.chat.completions.with_raw_response.create(**asks)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        usage = [chunk.usage for chunk in chunks if chunk.usage]
        response = client.responses.create(model="tgi", input=QUESTION, temperature=0)
        return raw.headers, [text, usage, raw.parse().choices, raw.parse().usage, response.output_text]

    (headers, answers), asked = counted(far, lambda: calls(near))
    assert asked == 3
    assert headers["x-route-target"] == "remote"
    assert headers["x-route-upstream"] == "far"
    assert headers["x-route-reason"] == "policy_remote"
    plain, expected = calls(far)
    assert "x-route-target" not in plain
    assert answers == expected
    assert FACT in answers[0]


def test_openai_hears_of_errors_as_from_one_server(near, far):
    for url in (near, far):
        client = OpenAI(base_url=f"{url}/v1", api_key="-", timeout=60, max_retries=0)
        with pytest.raises(openai.UnprocessableEntityError):
            client.chat.completions.create(model="tgi", messages=CHAT, temperature=-1)
