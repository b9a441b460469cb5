"""The deprecated `text-generation` client, whose last release still talks to many a TGI.

Its `chat(stream=True)` cannot read a TGI's stream (it wants `tool_calls` in every delta and takes `[DONE]` for
JSON), so only plain chats are asked here.
"""

import asyncio
import json
import re

import pytest
from text_generation import AsyncClient, Client
from text_generation.errors import OverloadedError, UnknownError, ValidationError
from text_generation.types import FinishReason, Grammar, GrammarType

from conftest import (
    FACT,
    QUESTION,
    WEATHER,
    check_arguments,
    check_reading,
    schema_of_reading,
)

# The package was written for an earlier pydantic.
pytestmark = pytest.mark.filterwarnings("ignore:The `dict` method is deprecated")

CHAT = [{"role": "user", "content": QUESTION}]


@pytest.fixture
def client(server):
    return Client(server, timeout=60)


def test_generate(client):
    answer = client.generate(QUESTION, max_new_tokens=40)
    assert FACT in answer.generated_text
    details = answer.details
    assert details.finish_reason == FinishReason.EndOfSequenceToken
    assert details.generated_tokens == len(details.tokens)
    assert details.prefill == []
    assert details.seed is None
    text = "".join(token.text for token in details.tokens if not token.special)
    assert text == answer.generated_text


def test_default_length(client):
    details = client.generate("Tell me a story about a cat.").details
    assert details.generated_tokens <= 20
    assert details.finish_reason in (FinishReason.Length, FinishReason.EndOfSequenceToken)


def test_generate_with_parameters(client):
    answer = client.generate(
        QUESTION,
        do_sample=True,
        max_new_tokens=10,
        repetition_penalty=1.1,
        frequency_penalty=0.1,
        return_full_text=True,
        seed=5,
        stop_sequences=["never"],
        temperature=0.8,
        top_k=20,
        top_p=0.9,
        truncate=50,
        typical_p=0.95,
        decoder_input_details=True,
        top_n_tokens=2,
    )
    assert answer.generated_text.startswith(QUESTION)
    assert answer.details.seed == 5
    assert answer.details.prefill[0].logprob is None
    assert all(len(top) >= 1 for top in answer.details.top_tokens)


def test_best_of(client):
    details = client.generate(QUESTION, do_sample=True, best_of=2, max_new_tokens=5).details
    assert len(details.best_of_sequences) == 1


def test_stop(client):
    answer = client.generate(QUESTION, max_new_tokens=40, stop_sequences=["France"])
    assert answer.details.finish_reason == FinishReason.StopSequence
    assert answer.generated_text.endswith("France")


def test_generate_stream(client):
    whole = client.generate(QUESTION, max_new_tokens=40)
    events = list(client.generate_stream(QUESTION, max_new_tokens=40))
    assert "".join(event.token.text for event in events if not event.token.special) == (
        whole.generated_text
    )
    assert all(event.generated_text is None and event.details is None for event in events[:-1])
    assert events[-1].generated_text == whole.generated_text
    assert events[-1].details.finish_reason == whole.details.finish_reason
    assert events[-1].details.generated_tokens == len(events) == whole.details.generated_tokens


def test_grammar(client):
    grammar = Grammar(type=GrammarType.Json, value=schema_of_reading())
    answer = client.generate("How is the weather?", grammar=grammar, max_new_tokens=200)
    check_reading(json.loads(answer.generated_text))
    grammar = Grammar(type=GrammarType.Regex, value="[0-9]{3}-[0-9]{4}")
    answer = client.generate("My number?", grammar=grammar, max_new_tokens=30)
    assert re.fullmatch("[0-9]{3}-[0-9]{4}", answer.generated_text)


def test_errors(client, locked_server, api_key):
    with pytest.raises(ValidationError, match="`truncate` must be strictly positive and less than"):
        client.generate(QUESTION, truncate=100_000)
    with pytest.raises(ValidationError, match="`stop` supports up to 4"):
        list(client.generate_stream(QUESTION, stop_sequences=list("abcde")))
    with pytest.raises(UnknownError):
        Client(locked_server, timeout=60).generate(QUESTION)
    client = Client(locked_server, headers={"Authorization": f"Bearer {api_key}"}, timeout=60)
    assert FACT in client.generate(QUESTION, max_new_tokens=40).generated_text


def test_overload(busy):
    client = Client(busy.url, timeout=60)
    refusal = busy.refused(lambda: client.generate(QUESTION), OverloadedError)
    assert "Model is overloaded" in str(refusal)
    busy.refused(lambda: list(client.generate_stream(QUESTION)), OverloadedError)


def test_async(server):
    async def talk():
        client = AsyncClient(server, timeout=60)
        answer = await client.generate(QUESTION, max_new_tokens=40)
        events = [event async for event in client.generate_stream(QUESTION, max_new_tokens=40)]
        with pytest.raises(ValidationError, match="`truncate`"):
            await client.generate(QUESTION, truncate=100_000)
        return answer, events

    answer, events = asyncio.run(talk())
    assert FACT in answer.generated_text
    assert events[-1].generated_text == answer.generated_text


def test_chat(client):
    answer = client.chat(CHAT, max_tokens=40, temperature=0.0)
    (choice,) = answer.choices
    assert FACT in choice.message.content
    assert choice.finish_reason == "stop"
    assert answer.object == "chat.completion"
    usage = answer.usage
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_chat_with_parameters(client):
    answer = client.chat(
        CHAT,
        repetition_penalty=1.1,
        frequency_penalty=0.1,
        logprobs=True,
        top_logprobs=2,
        max_tokens=5,
        n=1,
        presence_penalty=0.1,
        seed=4,
        temperature=0.7,
        top_p=0.9,
    )
    assert len(answer.choices[0].logprobs["content"]) == answer.usage["completion_tokens"]


def test_chat_tools(client):
    answer = client.chat(
        CHAT, tools=[WEATHER], tool_choice="get_weather", max_tokens=200, temperature=0.0
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call["function"]["name"] == "get_weather"
    check_arguments("get_weather", call["function"]["arguments"])


def test_chat_errors(client):
    with pytest.raises(ValidationError, match="`temperature` must be strictly positive"):
        client.chat(CHAT, temperature=-1.0)
