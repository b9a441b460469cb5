"""The `openai` package: chat, completions, responses, models; under both ways to answer errors."""

import asyncio
import json
import urllib.request
from contextlib import contextmanager
from enum import Enum
from typing import Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field

from conftest import (
    CLOCK,
    FACT,
    QUESTION,
    WEATHER,
    check_arguments,
    check_reading,
    schema_of_reading,
)

CHAT = [{"role": "user", "content": QUESTION}]
GREEDY = {"model": "tgi", "temperature": 0, "max_tokens": 40}


def connect(url, **options):
    return OpenAI(
        base_url=f"{url}/v1", **{"api_key": "-", "timeout": 60, "max_retries": 0} | options
    )


@pytest.fixture
def client(server):
    return connect(server)


@pytest.fixture
def strict(openai_server):
    """A client of the server that does all as OpenAI does."""
    return connect(openai_server)


@pytest.fixture(params=["tgi", "openai"])
def either(request, server, openai_server):
    return connect({"tgi": server, "openai": openai_server}[request.param])


@contextmanager
def refused(error, text):
    """Expects an error with the server's text, which is where the package leaves a TGI's: in `body`.

    (TGI's clients need `error` to be a string; this package prints it only when it is an object.)
    """
    with pytest.raises(error) as refusal:
        yield refusal
    assert text in refusal.value.body


def check_usage(usage):
    assert usage.prompt_tokens > 0 and usage.completion_tokens > 0
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


# -- chat --


def test_chat(either):
    answer = either.chat.completions.create(messages=CHAT, **GREEDY)
    assert answer.object == "chat.completion"
    assert answer.created > 1_700_000_000
    (choice,) = answer.choices
    assert choice.index == 0
    assert choice.finish_reason == "stop"
    assert choice.message.role == "assistant"
    assert FACT in choice.message.content
    assert not choice.message.tool_calls
    check_usage(answer.usage)


def test_chat_stream(either):
    whole = either.chat.completions.create(messages=CHAT, **GREEDY).choices[0].message.content
    chunks = list(either.chat.completions.create(messages=CHAT, stream=True, **GREEDY))
    # The usual loop takes `chunk.choices[0]` without asking whether there is one.
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]


def test_chat_stream_usage(either):
    usage = either.chat.completions.create(messages=CHAT, **GREEDY).usage
    *chunks, last = either.chat.completions.create(
        messages=CHAT, stream=True, stream_options={"include_usage": True}, **GREEDY
    )
    assert last.choices == []
    check_usage(last.usage)
    assert last.usage.completion_tokens == usage.completion_tokens
    assert last.usage.prompt_tokens == usage.prompt_tokens
    assert all(chunk.usage is None for chunk in chunks)


def test_chat_leaving_a_stream(client):
    with client.chat.completions.create(
        model="tgi", messages=CHAT, stream=True, temperature=2.0, max_tokens=500
    ) as stream:
        next(iter(stream))
    assert client.chat.completions.create(messages=CHAT, **GREEDY).choices


def test_chat_limits(either):
    answer = either.chat.completions.create(
        model="tgi", messages=CHAT, temperature=0, max_completion_tokens=3
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3
    for stop in ("France", ["France", "Italy"]):
        answer = either.chat.completions.create(messages=CHAT, stop=stop, **GREEDY)
        assert answer.choices[0].finish_reason == "stop"
        # OpenAI leaves the stop string out.
        assert answer.choices[0].message.content.endswith("capital of ")
        pieces = either.chat.completions.create(messages=CHAT, stop=stop, stream=True, **GREEDY)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in pieces)
        assert text == answer.choices[0].message.content


def test_chat_n(either):
    answer = either.chat.completions.create(
        model="tgi",
        messages=[{"role": "user", "content": "Tell me a story."}],
        n=2,
        temperature=1.5,
        max_tokens=20,
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].message.content != answer.choices[1].message.content
    check_usage(answer.usage)
    assert answer.usage.completion_tokens <= 40


def test_chat_n_stream(either):
    chunks = either.chat.completions.create(
        model="tgi", messages=CHAT, n=2, temperature=0, max_tokens=40, stream=True
    )
    texts, reasons = ["", ""], [None, None]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert FACT in texts[0] and texts[0] == texts[1]
    assert reasons == ["stop", "stop"]


def test_chat_seed(either):
    def sample(seed):
        answer = either.chat.completions.create(
            model="tgi",
            messages=[{"role": "user", "content": "Tell me a story."}],
            temperature=1.5,
            max_tokens=20,
            seed=seed,
        )
        return answer.choices[0].message.content

    assert sample(11) == sample(11)
    assert sample(11) != sample(12)


def test_chat_logprobs(either):
    answer = either.chat.completions.create(
        messages=CHAT, logprobs=True, top_logprobs=3, **GREEDY | {"max_tokens": 5}
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    assert "".join(token.token for token in content) == answer.choices[0].message.content
    for token in content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) >= 3
        assert token.top_logprobs[0].token == token.token
        assert token.top_logprobs[0].logprob == token.logprob


def test_chat_logprobs_stream(either):
    chunks = either.chat.completions.create(
        messages=CHAT, logprobs=True, top_logprobs=2, stream=True, **GREEDY
    )
    tokens = [
        token
        for chunk in chunks
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    whole = either.chat.completions.create(messages=CHAT, logprobs=True, top_logprobs=2, **GREEDY)
    assert [token.token for token in tokens] == [
        token.token for token in whole.choices[0].logprobs.content
    ]


def test_chat_logit_bias(either, server):
    """A token that is favoured without bounds is all that comes; one that is banned never does."""
    request = urllib.request.Request(
        f"{server}/tokenize", b'{"inputs": "cat"}', {"content-type": "application/json"}
    )
    token = json.load(urllib.request.urlopen(request, timeout=60))[0]
    short = GREEDY | {"max_tokens": 3}
    answer = either.chat.completions.create(messages=CHAT, logit_bias={token["id"]: 100}, **short)
    assert answer.choices[0].message.content == token["text"] * 3
    first = either.chat.completions.create(messages=CHAT, logprobs=True, **short)
    banned = first.choices[0].logprobs.content[0].token
    request = urllib.request.Request(
        f"{server}/tokenize",
        json.dumps({"inputs": banned}).encode(),
        {"content-type": "application/json"},
    )
    ids = [entry["id"] for entry in json.load(urllib.request.urlopen(request, timeout=60))]
    answer = either.chat.completions.create(
        messages=CHAT, logit_bias={id: -100 for id in ids}, logprobs=True, **short
    )
    assert answer.choices[0].logprobs.content[0].token != banned


def test_chat_other_parameters(either):
    """What frameworks send without being asked."""
    answer = either.chat.completions.create(
        model="tgi",
        messages=CHAT,
        temperature=0.7,
        top_p=1,
        n=1,
        presence_penalty=0,
        frequency_penalty=0,
        max_tokens=5,
        user="somebody",
        seed=1,
        store=False,
        metadata={"a": "b"},
        parallel_tool_calls=False,
        service_tier="auto",
        tools=[WEATHER],
        tool_choice="none",
        extra_body={"top_k": 20, "repetition_penalty": 1.1},
    )
    assert answer.choices[0].message.content


def test_chat_conversation(either):
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Hello!", "name": "somebody"},
        {"role": "assistant", "content": "Hello! How can I help you?"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is the capital "},
                {"type": "text", "text": "of France?"},
            ],
        },
    ]
    answer = either.chat.completions.create(messages=messages, **GREEDY)
    assert FACT in answer.choices[0].message.content


# -- tools --


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}]
)
def test_tools(either, choice):
    answer = either.chat.completions.create(
        model="tgi",
        messages=CHAT,
        tools=[CLOCK, WEATHER],
        tool_choice=choice,
        temperature=0,
        max_tokens=200,
    )
    (only,) = answer.choices
    assert only.finish_reason == "tool_calls"
    assert only.message.content is None
    (call,) = only.message.tool_calls
    assert call.id and call.type == "function"
    if choice != "required":
        assert call.function.name == "get_weather"
    check_arguments(call.function.name, call.function.arguments)
    # The message goes back as it came, with the tool's result behind it.
    messages = CHAT + [
        only.message,
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    final = either.chat.completions.create(messages=messages, tools=[CLOCK, WEATHER], **GREEDY)
    assert final.choices[0].message.content or final.choices[0].message.tool_calls


def test_tools_stream(either):
    stream = either.chat.completions.create(
        model="tgi",
        messages=CHAT,
        tools=[WEATHER, CLOCK],
        tool_choice="required",
        temperature=0,
        max_tokens=200,
        stream=True,
    )
    # As OpenAI's guide collects them.
    calls, reason = {}, None
    for chunk in stream:
        reason = chunk.choices[0].finish_reason or reason
        for delta in chunk.choices[0].delta.tool_calls or []:
            if delta.index not in calls:
                calls[delta.index] = delta
            else:
                calls[delta.index].function.arguments += delta.function.arguments or ""
    assert reason == "tool_calls"
    assert list(calls) == [0]
    assert calls[0].id
    check_arguments(calls[0].function.name, calls[0].function.arguments)


def test_tools_auto(either):
    answer = either.chat.completions.create(messages=CHAT, tools=[WEATHER], **GREEDY)
    (choice,) = answer.choices
    if choice.message.tool_calls:
        assert choice.finish_reason == "tool_calls"
    else:
        assert choice.message.content and choice.finish_reason in ("stop", "length")


def test_tools_helper(either):
    """`stream()` accumulates; its events name what arrived."""
    with either.chat.completions.stream(
        model="tgi",
        messages=CHAT,
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        temperature=0,
        max_tokens=200,
    ) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in events
    assert events.count("tool_calls.function.arguments.done") == 1
    (call,) = final.choices[0].message.tool_calls
    check_arguments(call.function.name, call.function.arguments)


# -- structured outputs --


class Mood(str, Enum):
    good = "good"
    bad = "bad"


class Person(BaseModel):
    name: str = Field(max_length=12)
    mood: Mood


class Trip(BaseModel):
    """Nested models, enumerations, lists and options, as people write them."""

    city: Literal["Paris", "Rome"]
    days: Literal[1, 2, 3]
    sunny: bool
    people: list[Person] = Field(min_length=1, max_length=2)
    rating: Literal["high", "low"] | None


def test_parse(either):
    answer = either.chat.completions.parse(
        model="tgi", messages=CHAT, response_format=Trip, temperature=0, max_tokens=400
    )
    message = answer.choices[0].message
    assert isinstance(message.parsed, Trip)
    assert Trip.model_validate_json(message.content) == message.parsed
    assert answer.choices[0].finish_reason == "stop"


def test_parse_sampled(either):
    for seed in range(4):
        answer = either.chat.completions.parse(
            model="tgi",
            messages=CHAT,
            response_format=Trip,
            temperature=2,
            seed=seed,
            max_tokens=800,
        )
        assert isinstance(answer.choices[0].message.parsed, Trip)


def test_parse_stream(either):
    with either.chat.completions.stream(
        model="tgi", messages=CHAT, response_format=Trip, temperature=0, max_tokens=400
    ) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Trip)
    assert text == final.choices[0].message.content


def test_parse_too_short(either):
    """An answer that was cut is an error of its own, not a half object."""
    with pytest.raises(openai.LengthFinishReasonError):
        either.chat.completions.parse(
            model="tgi", messages=CHAT, response_format=Trip, temperature=0, max_tokens=3
        )


def test_response_formats(either):
    answer = either.chat.completions.create(
        messages=CHAT, response_format={"type": "text"}, **GREEDY
    )
    assert FACT in answer.choices[0].message.content
    answer = either.chat.completions.create(
        model="tgi",
        messages=CHAT,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "reading", "strict": True, "schema": schema_of_reading()},
        },
        temperature=0,
        max_tokens=200,
    )
    check_reading(json.loads(answer.choices[0].message.content))
    answer = either.chat.completions.create(
        model="tgi",
        messages=CHAT,
        response_format={"type": "json_object"},
        temperature=0,
        max_tokens=600,
    )
    # Any object may be long: what was not cut is one.
    text = answer.choices[0].message.content
    assert text.lstrip().startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


# -- completions --


def test_completion(either):
    answer = either.completions.create(prompt=QUESTION, **GREEDY)
    assert answer.object == "text_completion"
    (choice,) = answer.choices
    assert FACT in choice.text
    assert choice.finish_reason == "stop"
    check_usage(answer.usage)


def test_completion_prompts(either):
    answer = either.completions.create(prompt=[QUESTION, "What is the capital of Italy?"], **GREEDY)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert FACT in answer.choices[0].text
    assert "Rome" in answer.choices[1].text
    check_usage(answer.usage)


def test_completion_stream(either):
    whole = either.completions.create(prompt=QUESTION, **GREEDY)
    chunks = list(either.completions.create(prompt=QUESTION, stream=True, **GREEDY))
    assert (
        "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    )
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert not any(reasons[:-1])
    assert reasons[-1] == "stop"


def test_completion_prompts_stream(either):
    texts = ["", ""]
    for chunk in either.completions.create(
        prompt=[QUESTION, "What is the capital of Italy?"], stream=True, **GREEDY
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert FACT in texts[0]
    assert "Rome" in texts[1]


def test_completion_stop(either):
    answer = either.completions.create(prompt=QUESTION, stop="France", **GREEDY)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].text.endswith("capital of ")


# -- responses --


def test_response(either):
    answer = either.responses.create(
        model="tgi",
        instructions="You are a helpful assistant.",
        input=QUESTION,
        temperature=0,
        max_output_tokens=40,
    )
    assert answer.object == "response"
    assert answer.status == "completed"
    assert answer.error is None
    assert FACT in answer.output_text
    (item,) = answer.output
    assert (item.type, item.role, item.status) == ("message", "assistant", "completed")
    assert item.content[0].type == "output_text"
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


def test_response_conversation(either):
    answer = either.responses.create(
        model="tgi",
        input=[
            {"role": "user", "content": "Hello!"},
            {"role": "assistant", "content": "Hello! How can I help you?"},
            {"role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
        ],
        temperature=0,
        max_output_tokens=40,
    )
    assert FACT in answer.output_text


def test_response_cut(either):
    answer = either.responses.create(
        model="tgi", input="Tell me a story about a cat.", temperature=0, max_output_tokens=3
    )
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage.output_tokens == 3


def test_response_stream(either):
    whole = either.responses.create(
        model="tgi", input=QUESTION, temperature=0, max_output_tokens=40
    )
    events = list(
        either.responses.create(
            model="tgi", input=QUESTION, temperature=0, max_output_tokens=40, stream=True
        )
    )
    types = [event.type for event in events]
    assert types[0] == "response.created"
    assert types[-1] == "response.completed"
    order = [
        "response.created",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    positions = [types.index(kind) for kind in order]
    assert positions == sorted(positions), types
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text == events[-1].response.output_text
    assert events[-1].response.usage.output_tokens == whole.usage.output_tokens


def test_response_stream_helper(either):
    with either.responses.stream(
        model="tgi", input=QUESTION, temperature=0, max_output_tokens=40
    ) as stream:
        text = "".join(
            event.delta for event in stream if event.type == "response.output_text.delta"
        )
        final = stream.get_final_response()
    assert FACT in text
    assert final.output_text == text


def test_response_parse(either):
    answer = either.responses.parse(
        model="tgi", input=QUESTION, text_format=Trip, temperature=0, max_output_tokens=400
    )
    assert isinstance(answer.output_parsed, Trip)


RESPONSE_TOOL = {"type": "function", "strict": True, **WEATHER["function"]}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}])
def test_response_tools(either, choice):
    question = [{"role": "user", "content": "How is the weather in Paris?"}]
    answer = either.responses.create(
        model="tgi",
        input=question,
        tools=[RESPONSE_TOOL],
        tool_choice=choice,
        temperature=0,
        max_output_tokens=200,
    )
    (call,) = [item for item in answer.output if item.type == "function_call"]
    assert call.name == "get_weather" and call.call_id
    check_arguments(call.name, call.arguments)
    final = either.responses.create(
        model="tgi",
        input=question
        + answer.output
        + [{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}],
        tools=[RESPONSE_TOOL],
        temperature=0,
        max_output_tokens=40,
    )
    assert final.output


def test_response_tools_stream(either):
    events = list(
        either.responses.create(
            model="tgi",
            input=QUESTION,
            tools=[RESPONSE_TOOL],
            tool_choice="required",
            temperature=0,
            max_output_tokens=200,
            stream=True,
        )
    )
    arguments = "".join(
        event.delta for event in events if event.type == "response.function_call_arguments.delta"
    )
    (done,) = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert done.arguments == arguments
    check_arguments("get_weather", arguments)
    assert events[-1].type == "response.completed"


# -- models --


def test_models(either):
    (model,) = either.models.list().data
    assert model.object == "model" and model.id and model.owned_by
    assert either.models.retrieve(model.id).id == model.id
    with pytest.raises(openai.NotFoundError):
        either.models.retrieve("no-such-model")


def test_model_names(client, strict):
    served = client.models.list().data[0].id
    for name in (served, "tgi"):
        for connection in (client, strict):
            connection.chat.completions.create(model=name, messages=CHAT, max_tokens=2)
    # TGI never refuses a name and echoes it; OpenAI refuses those it doesn't know.
    answer = client.chat.completions.create(model="gpt-4o", messages=CHAT, max_tokens=2)
    assert answer.model == "gpt-4o"
    with pytest.raises(openai.NotFoundError) as refusal:
        strict.chat.completions.create(model="gpt-4o", messages=CHAT, max_tokens=2)
    assert refusal.value.code == "model_not_found"
    assert "gpt-4o" in str(refusal.value)


# -- errors --

CALLS = {
    "chat": lambda client, **rest: client.chat.completions.create(
        model="tgi", messages=CHAT, **rest
    ),
    "completions": lambda client, **rest: client.completions.create(
        model="tgi", prompt=QUESTION, **rest
    ),
}


@pytest.mark.parametrize("route", CALLS)
def test_bad_parameter(client, strict, route):
    with refused(openai.UnprocessableEntityError, "`temperature` must be strictly positive"):
        CALLS[route](client, temperature=-1)
    with pytest.raises(openai.BadRequestError, match="temperature") as refusal:
        CALLS[route](strict, temperature=-1)
    assert refusal.value.type == "invalid_request_error"


@pytest.mark.parametrize("route", CALLS)
def test_bad_parameter_in_a_stream(client, strict, route):
    """Under tgi the error is an event of a stream that began, under openai the status says it."""
    with pytest.raises(openai.APIError, match="must be strictly positive") as refusal:
        list(CALLS[route](client, temperature=-1, stream=True))
    assert not isinstance(refusal.value, openai.APIStatusError)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        list(CALLS[route](strict, temperature=-1, stream=True))


def test_long_prompt(client, strict):
    long = [{"role": "user", "content": "word " * 3000}]
    with refused(openai.UnprocessableEntityError, "must be <="):
        client.chat.completions.create(model="tgi", messages=long)
    with pytest.raises(openai.BadRequestError) as refusal:
        strict.chat.completions.create(model="tgi", messages=long)
    assert refusal.value.code == "context_length_exceeded"


def test_bad_tools(client, strict):
    unknown = {"type": "function", "function": {"name": "nobody"}}
    with refused(openai.UnprocessableEntityError, "Tool with name nobody not found"):
        client.chat.completions.create(
            model="tgi", messages=CHAT, tools=[WEATHER], tool_choice=unknown
        )
    with pytest.raises(openai.BadRequestError, match="nobody"):
        strict.chat.completions.create(
            model="tgi", messages=CHAT, tools=[WEATHER], tool_choice=unknown
        )


def test_bad_schema(client, strict):
    format = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nonsense"}}}
    with refused(openai.UnprocessableEntityError, "grammar is not valid"):
        client.chat.completions.create(model="tgi", messages=CHAT, response_format=format)
    with pytest.raises(openai.BadRequestError):
        strict.chat.completions.create(model="tgi", messages=CHAT, response_format=format)


def test_wrong_shapes(client, strict):
    with pytest.raises(openai.UnprocessableEntityError):
        client.chat.completions.create(model="tgi", messages="not a list")
    with pytest.raises(openai.BadRequestError):
        strict.chat.completions.create(model="tgi", messages="not a list")


def test_key(locked_server, api_key):
    for call in CALLS.values():
        with pytest.raises(openai.AuthenticationError):
            call(connect(locked_server, api_key="wrong"), max_tokens=2)
        assert call(connect(locked_server, api_key=api_key), max_tokens=2).choices


def test_overload(busy):
    client = connect(busy.url)
    refusal = busy.refused(
        lambda: client.chat.completions.create(messages=CHAT, **GREEDY), openai.RateLimitError
    )
    assert refusal.body == "Model is overloaded"
    assert int(refusal.response.headers["retry-after"]) >= 1


def test_retries(busy):
    """The package waits as `Retry-After` says and asks again: a full server is no error then."""
    client = connect(busy.url, max_retries=3)
    with busy.hold():
        answer = client.chat.completions.create(messages=CHAT, **GREEDY)
    assert FACT in answer.choices[0].message.content


def test_raw_response(client):
    raw = client.chat.completions.with_raw_response.create(messages=CHAT, **GREEDY)
    assert int(raw.headers["x-generated-tokens"]) == raw.parse().usage.completion_tokens
    assert int(raw.headers["x-prompt-tokens"]) == raw.parse().usage.prompt_tokens


# -- the asynchronous client --


def test_async(server):
    async def talk():
        async with AsyncOpenAI(base_url=f"{server}/v1", api_key="-", timeout=60) as client:
            whole = await client.chat.completions.create(messages=CHAT, **GREEDY)
            stream = await client.chat.completions.create(messages=CHAT, stream=True, **GREEDY)
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
            many = await asyncio.gather(
                *(client.chat.completions.create(messages=CHAT, **GREEDY) for _ in range(8))
            )
            parsed = await client.chat.completions.parse(
                model="tgi", messages=CHAT, response_format=Trip, temperature=0, max_tokens=400
            )
            response = await client.responses.create(model="tgi", input=QUESTION, temperature=0)
            with pytest.raises(openai.UnprocessableEntityError):
                await client.chat.completions.create(model="tgi", messages=CHAT, temperature=-1)
        return (
            whole.choices[0].message.content,
            "".join(pieces),
            [answer.choices[0].message.content for answer in many],
            parsed.choices[0].message.parsed,
            response.output_text,
        )

    whole, streamed, many, parsed, response = asyncio.run(talk())
    assert FACT in whole
    assert streamed == whole
    assert many == [whole] * 8
    assert isinstance(parsed, Trip)
    assert FACT in response
