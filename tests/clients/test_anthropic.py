"""The `anthropic` package: messages, streams, tools, structured answers, counting, errors."""

import asyncio
from typing import Literal

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic
from pydantic import BaseModel

from conftest import FACT, QUESTION, check_arguments

CHAT = [{"role": "user", "content": QUESTION}]
# The package has no sampling parameters any more: `extra_body` is how to send them.
BEST = {"temperature": 0}
GREEDY = {"model": "tgi", "max_tokens": 40, "extra_body": BEST}
WEATHER = {
    "name": "get_weather",
    "description": "Says what the weather is like.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
CLOCK = {
    "name": "get_time",
    "input_schema": {
        "type": "object",
        "properties": {"zone": {"type": "string", "enum": ["UTC", "CET"]}},
        "required": ["zone"],
        "additionalProperties": False,
    },
}


def connect(url, **options):
    return Anthropic(base_url=url, **{"api_key": "-", "timeout": 60, "max_retries": 0} | options)


@pytest.fixture(params=["tgi", "openai"])
def client(request, server, openai_server):
    """Anthropic's route answers alike whichever way the other routes follow."""
    return connect({"tgi": server, "openai": openai_server}[request.param])


# -- messages.create --


def test_create(client):
    answer = client.messages.create(messages=CHAT, **GREEDY)
    assert (answer.type, answer.role) == ("message", "assistant")
    assert answer.id and answer.model
    (block,) = answer.content
    assert block.type == "text"
    assert FACT in block.text
    assert answer.stop_reason == "end_turn"
    assert answer.stop_sequence is None
    assert answer.usage.input_tokens > 0 and answer.usage.output_tokens > 0


def test_conversation(client):
    answer = client.messages.create(
        system=[{"type": "text", "text": "You are a helpful assistant."}],
        messages=[
            {"role": "user", "content": "Hello!"},
            {
                "role": "assistant",
                "content": [{"type": "text", "text": "Hello! How can I help you?"}],
            },
            {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
        ],
        **GREEDY,
    )
    assert FACT in answer.content[0].text
    answer = client.messages.create(
        system="You are a helpful assistant.", messages=CHAT, metadata={"user_id": "x"}, **GREEDY
    )
    assert FACT in answer.content[0].text


def test_begun_answer(client):
    begun = CHAT + [{"role": "assistant", "content": "The capital of France is"}]
    answer = client.messages.create(messages=begun, **GREEDY)
    assert answer.content[0].text.strip().startswith(FACT)


def test_limits(client):
    answer = client.messages.create(messages=CHAT, **GREEDY | {"max_tokens": 3})
    assert answer.stop_reason == "max_tokens"
    assert answer.usage.output_tokens == 3
    answer = client.messages.create(messages=CHAT, stop_sequences=["Italy", "France"], **GREEDY)
    assert answer.stop_reason == "stop_sequence"
    assert answer.stop_sequence == "France"
    assert answer.content[0].text.endswith("capital of ")


def test_sampling(client):
    answer = client.messages.create(
        model="tgi", messages=CHAT, max_tokens=5, extra_body={"temperature": 0.9, "top_k": 10}
    )
    assert answer.content[0].text


# -- streams --


def test_raw_stream(client):
    whole = client.messages.create(messages=CHAT, **GREEDY)
    events = list(client.messages.create(messages=CHAT, stream=True, **GREEDY))
    types = [event.type for event in events if event.type != "ping"]
    assert types[:2] == ["message_start", "content_block_start"]
    assert types[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(types[2:-3]) == {"content_block_delta"}
    deltas = [event.delta.text for event in events if event.type == "content_block_delta"]
    assert "".join(deltas) == whole.content[0].text
    (end,) = [event for event in events if event.type == "message_delta"]
    assert end.delta.stop_reason == "end_turn"
    assert end.usage.output_tokens == whole.usage.output_tokens
    assert events[0].message.usage.input_tokens == whole.usage.input_tokens


def test_stream_helper(client):
    whole = client.messages.create(messages=CHAT, **GREEDY)
    with client.messages.stream(messages=CHAT, **GREEDY) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text
    assert final.content[0].text == text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_leaving_a_stream(client):
    with client.messages.stream(
        model="tgi", messages=CHAT, max_tokens=500, extra_body={"temperature": 2.0}
    ) as stream:
        next(iter(stream))
    assert client.messages.create(messages=CHAT, **GREEDY).content


# -- tools --


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_tools(client, choice):
    tools = [CLOCK, WEATHER]
    answer = client.messages.create(
        model="tgi", messages=CHAT, tools=tools, tool_choice=choice, extra_body=BEST, max_tokens=200
    )
    assert answer.stop_reason == "tool_use"
    (call,) = [block for block in answer.content if block.type == "tool_use"]
    assert call.id
    if choice["type"] == "tool":
        assert call.name == "get_weather"
    check_arguments(call.name, call.input)
    result = {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}],
    }
    final = client.messages.create(
        messages=CHAT + [{"role": "assistant", "content": answer.content}, result],
        tools=tools,
        **GREEDY,
    )
    assert final.content


def test_tools_auto_and_none(client):
    answer = client.messages.create(messages=CHAT, tools=[WEATHER], **GREEDY)
    assert answer.content
    called = any(block.type == "tool_use" for block in answer.content)
    assert called == (answer.stop_reason == "tool_use")
    answer = client.messages.create(
        messages=CHAT, tools=[WEATHER], tool_choice={"type": "none"}, **GREEDY
    )
    assert FACT in answer.content[0].text


def test_tools_stream(client):
    with client.messages.stream(
        model="tgi",
        messages=CHAT,
        tools=[WEATHER],
        tool_choice={"type": "tool", "name": "get_weather"},
        extra_body=BEST,
        max_tokens=200,
    ) as stream:
        types = [event.type for event in stream]
        final = stream.get_final_message()
    assert "input_json" in types
    (call,) = final.content
    check_arguments(call.name, call.input)
    assert final.stop_reason == "tool_use"


# -- structured answers, counting --


class Reading(BaseModel):
    city: Literal["Paris", "Rome"]
    sunny: bool


def test_parse(client):
    answer = client.messages.parse(
        model="tgi", messages=CHAT, output_format=Reading, extra_body=BEST, max_tokens=200
    )
    assert isinstance(answer.parsed_output, Reading)


def test_count_tokens(client):
    counted = client.messages.count_tokens(model="tgi", messages=CHAT)
    answer = client.messages.create(messages=CHAT, **GREEDY)
    assert counted.input_tokens == answer.usage.input_tokens


# -- errors --


def check_error(error, kind):
    assert error.body["type"] == "error"
    assert error.body["error"]["type"] == kind
    assert error.body["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_bad_parameter(client, stream):
    with pytest.raises(anthropic.BadRequestError, match="temperature") as refusal:
        client.messages.create(
            model="tgi", messages=CHAT, max_tokens=5, extra_body={"temperature": -1}, stream=stream
        )
    check_error(refusal.value, "invalid_request_error")


def test_bad_bodies(client):
    for call in (
        lambda: client.messages.create(model="tgi", messages="nonsense", max_tokens=5),
        lambda: client.messages.create(
            model="tgi", messages=[{"role": "user", "content": "word " * 3000}], max_tokens=5
        ),
        lambda: client.messages.create(
            model="tgi",
            messages=CHAT,
            max_tokens=5,
            tools=[WEATHER],
            tool_choice={"type": "tool", "name": "nobody"},
        ),
    ):
        with pytest.raises(anthropic.BadRequestError) as refusal:
            call()
        check_error(refusal.value, "invalid_request_error")


def test_key(locked_server, api_key):
    with pytest.raises(anthropic.AuthenticationError) as refusal:
        connect(locked_server, api_key="wrong").messages.create(messages=CHAT, **GREEDY)
    check_error(refusal.value, "authentication_error")
    # As `x-api-key`, which is Anthropic's way, and as a bearer token.
    for client in (
        connect(locked_server, api_key=api_key),
        connect(locked_server, api_key=None, auth_token=api_key),
    ):
        assert client.messages.create(messages=CHAT, **GREEDY).content


def test_overload(busy):
    client = connect(busy.url)
    refusal = busy.refused(
        lambda: client.messages.create(messages=CHAT, **GREEDY), anthropic.APIStatusError
    )
    assert isinstance(refusal, (anthropic.RateLimitError, anthropic.OverloadedError))
    assert int(refusal.response.headers["retry-after"]) >= 1
    with busy.hold():
        patient = connect(busy.url, max_retries=3)
        assert patient.messages.create(messages=CHAT, **GREEDY).content


# -- the asynchronous client --


def test_async(server):
    async def talk():
        async with AsyncAnthropic(base_url=server, api_key="-", timeout=60) as client:
            whole = await client.messages.create(messages=CHAT, **GREEDY)
            async with client.messages.stream(messages=CHAT, **GREEDY) as stream:
                pieces = [piece async for piece in stream.text_stream]
            many = await asyncio.gather(
                *(client.messages.create(messages=CHAT, **GREEDY) for _ in range(8))
            )
        return whole.content[0].text, "".join(pieces), [answer.content[0].text for answer in many]

    whole, streamed, many = asyncio.run(talk())
    assert FACT in whole
    assert streamed == whole
    assert many == [whole] * 8
