"""huggingface_hub's InferenceClient; run with the newest release and with the last one before 1.0."""

import asyncio
import json
import re
import urllib.request

import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import (
    HfHubHTTPError,
    OverloadedError,
    UnknownError,
    ValidationError,
)

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


@pytest.fixture
def client(server):
    return InferenceClient(server, timeout=60)


def tokens_of(server, text):
    request = urllib.request.Request(
        f"{server}/tokenize",
        json.dumps({"inputs": text}).encode(),
        {"content-type": "application/json"},
    )
    return json.load(urllib.request.urlopen(request, timeout=60))


# -- text_generation --


def test_text(client):
    answer = client.text_generation(QUESTION, max_new_tokens=40, return_full_text=False)
    assert isinstance(answer, str)
    assert FACT in answer
    # Greedy unless asked otherwise, and the prompt stands in front for a model whose task is unknown.
    assert client.text_generation(QUESTION, max_new_tokens=40) == QUESTION + answer
    assert (
        client.text_generation(QUESTION, max_new_tokens=40, return_full_text=True)
        == QUESTION + answer
    )


def test_generate_url_without_full_text(server):
    answer = InferenceClient(f"{server}/generate", timeout=60).text_generation(
        QUESTION, max_new_tokens=40
    )
    assert FACT in answer
    assert QUESTION not in answer


def test_details(client):
    output = client.text_generation(
        QUESTION, details=True, max_new_tokens=40, return_full_text=False
    )
    details = output.details
    assert details.finish_reason == "eos_token"
    assert details.generated_tokens == len(details.tokens)
    assert details.seed is None
    assert details.prefill == []
    assert details.best_of_sequences is None
    assert details.top_tokens is None
    assert [token.special for token in details.tokens] == [False] * (len(details.tokens) - 1) + [
        True
    ]
    assert all(token.logprob <= 0 and isinstance(token.id, int) for token in details.tokens)
    assert (
        "".join(token.text for token in details.tokens if not token.special)
        == output.generated_text
    )


def test_length(client):
    output = client.text_generation(QUESTION, details=True, max_new_tokens=3)
    assert output.details.finish_reason == "length"
    assert output.details.generated_tokens == 3


def test_stream(client):
    whole = client.text_generation(QUESTION, max_new_tokens=40, return_full_text=False)
    pieces = list(client.text_generation(QUESTION, stream=True, max_new_tokens=40))
    assert all(isinstance(piece, str) for piece in pieces)
    # This client hands out the text of special tokens too.
    assert "".join(pieces[:-1]) == whole
    assert pieces[-1] and pieces[-1] not in whole


def test_stream_with_details(client, server):
    whole = client.text_generation(
        QUESTION, details=True, max_new_tokens=40, return_full_text=False
    )
    events = list(
        client.text_generation(
            QUESTION, stream=True, details=True, max_new_tokens=40, return_full_text=False
        )
    )
    assert [event.index for event in events] == list(range(1, len(events) + 1))
    assert all(event.generated_text is None and event.details is None for event in events[:-1])
    assert [event.token.id for event in events] == [token.id for token in whole.details.tokens]
    last = events[-1]
    assert last.generated_text == whole.generated_text
    assert last.details.finish_reason == "eos_token"
    assert last.details.generated_tokens == len(events)
    assert last.details.input_length == len(tokens_of(server, QUESTION))


def test_stream_url(server):
    client = InferenceClient(f"{server}/generate_stream", timeout=60)
    pieces = list(client.text_generation(QUESTION, stream=True, max_new_tokens=40))
    assert FACT in "".join(pieces)


def test_caller_leaves_a_stream(client):
    """Leaving early must not disturb later calls on the same client."""
    stream = client.text_generation(
        "Once upon a time", stream=True, max_new_tokens=500, temperature=5.0
    )
    next(iter(stream))
    stream.close()
    assert FACT in client.text_generation(QUESTION, max_new_tokens=40)


def test_best_of(client):
    output = client.text_generation(
        "Once upon a time",
        details=True,
        best_of=2,
        do_sample=True,
        max_new_tokens=12,
        return_full_text=False,
    )
    (other,) = output.details.best_of_sequences

    def mean(tokens):
        return sum(token.logprob for token in tokens) / len(tokens)

    assert mean(output.details.tokens) >= mean(other.tokens)
    assert other.generated_tokens == len(other.tokens)
    assert isinstance(output.details.seed, int) and isinstance(other.seed, int)
    assert output.details.seed != other.seed


def test_stop(client):
    output = client.text_generation(
        QUESTION, details=True, stop=["France"], max_new_tokens=40, return_full_text=False
    )
    assert output.details.finish_reason == "stop_sequence"
    assert output.generated_text.endswith("France")
    pieces = list(client.text_generation(QUESTION, stream=True, stop=["France"], max_new_tokens=40))
    assert "".join(pieces) == output.generated_text


def test_seed(client):
    def sample(seed):
        return client.text_generation(
            "Once upon a time",
            details=True,
            do_sample=True,
            temperature=1.5,
            seed=seed,
            max_new_tokens=20,
        )

    first, again, other = sample(7), sample(7), sample(8)
    assert first.details.seed == 7
    assert first.generated_text == again.generated_text
    assert first.generated_text != other.generated_text


def test_sampling_parameters(client):
    """Every parameter that the client has is taken."""
    text = client.text_generation(
        QUESTION,
        do_sample=True,
        frequency_penalty=0.1,
        max_new_tokens=5,
        repetition_penalty=1.1,
        return_full_text=False,
        seed=1,
        stop=["never"],
        temperature=0.7,
        top_k=10,
        top_p=0.9,
        truncate=100,
        typical_p=0.9,
        watermark=False,
    )
    assert text


def test_top_tokens(client):
    details = client.text_generation(
        QUESTION, details=True, max_new_tokens=5, top_n_tokens=3
    ).details
    assert len(details.top_tokens) == len(details.tokens)
    for top, token in zip(details.top_tokens, details.tokens):
        # A tie at the last place is listed whole.
        assert len(top) >= 3
        assert [entry["logprob"] for entry in top] == sorted(
            (entry["logprob"] for entry in top), reverse=True
        )
        assert top[0]["id"] == token.id


def test_truncate(client):
    """The end of the prompt is what counts."""
    long = "Once upon a time. " * 20 + QUESTION
    kept = len(long) // 4
    output = client.text_generation(
        long, details=True, stream=True, truncate=kept, max_new_tokens=2
    )
    assert list(output)[-1].details.input_length == kept


def test_prompt_details(client, server, openai_server):
    output = client.text_generation(
        QUESTION, details=True, decoder_input_details=True, max_new_tokens=2
    )
    prefill = output.details.prefill
    assert [token.id for token in prefill] == [token["id"] for token in tokens_of(server, QUESTION)]
    assert prefill[0].logprob is None
    assert all(token.logprob <= 0 for token in prefill[1:])
    # A server that does not offer them leaves them out.
    plain = InferenceClient(openai_server, timeout=60)
    output = plain.text_generation(
        QUESTION, details=True, decoder_input_details=True, max_new_tokens=2
    )
    assert output.details.prefill == []


def test_emoji(client):
    """Characters of several tokens come out whole."""
    prompt = "Zoë: 👩‍🚀🎉 "
    assert client.text_generation(prompt, max_new_tokens=1).startswith(prompt)
    events = list(
        client.text_generation(
            prompt, stream=True, details=True, max_new_tokens=30, temperature=5.0, seed=3
        )
    )
    text = "".join(event.token.text for event in events if not event.token.special)
    assert events[-1].generated_text == prompt + text


@pytest.mark.parametrize("kind", ["json", "json_schema"])
def test_json_grammar(client, kind):
    schema = schema_of_reading()
    value = {"name": "reading", "schema": schema} if kind == "json_schema" else schema
    output = client.text_generation(
        "How is the weather?",
        details=True,
        grammar={"type": kind, "value": value},
        max_new_tokens=200,
        return_full_text=False,
    )
    check_reading(json.loads(output.generated_text))
    assert output.details.finish_reason == "eos_token"


def test_regex_grammar(client):
    pattern = "((25[0-5]|2[0-4]\\d|[01]?\\d\\d?)\\.){3}(25[0-5]|2[0-4]\\d|[01]?\\d\\d?)"
    for seed in (1, 2):
        text = client.text_generation(
            "What is Google's DNS?",
            do_sample=True,
            seed=seed,
            grammar={"type": "regex", "value": pattern},
            max_new_tokens=40,
            return_full_text=False,
        )
        assert re.fullmatch(pattern, text), text


def test_grammar_in_a_stream(client):
    pieces = list(
        client.text_generation(
            "Yes or no?",
            stream=True,
            details=True,
            grammar={"type": "regex", "value": "(yes|no)"},
            max_new_tokens=20,
            return_full_text=False,
        )
    )
    assert pieces[-1].generated_text in ("yes", "no")


# -- errors of text_generation --


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"temperature": 0.0}, "`temperature` must be strictly positive"),
        ({"top_p": 1.0}, "`top_p` must be > 0.0 and < 1.0"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
        ({"stop": list("abcde")}, "`stop` supports up to 4 stop sequences. Given: 5"),
        ({"truncate": 0}, "`truncate` must be strictly positive and less than"),
        ({"best_of": 2}, "you must use sampling when `best_of` is > 1"),
        ({"best_of": 2, "do_sample": True, "seed": 1}, "`seed` must not be set when `best_of` > 1"),
        ({"best_of": 3, "do_sample": True}, "`best_of` must be > 0 and <= 2. Given: 3"),
        ({"top_n_tokens": 6}, "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
        ({"grammar": {"type": "json", "value": {"type": "object"}}}, "'properties' field"),
        ({"grammar": {"type": "regex", "value": "(["}}, "grammar is not valid"),
        ({"adapter_id": "nobody/has-this"}, "nobody/has-this"),
    ],
)
def test_bad_parameters(client, parameters, text):
    with pytest.raises(ValidationError, match=re.escape(text)) as refusal:
        client.text_generation(QUESTION, **parameters)
    assert "Input validation error: " in str(refusal.value)


def test_bad_prompts(client):
    with pytest.raises(ValidationError, match="`inputs` cannot be empty"):
        client.text_generation("")
    with pytest.raises(ValidationError, match="`inputs` tokens \\+ `max_new_tokens` must be <="):
        client.text_generation("word " * 2000, max_new_tokens=5)


def test_errors_in_streams(client):
    """The answer has begun by then: the error is an event."""
    for parameters, text in [
        ({"best_of": 2}, "`best_of` != 1 is not supported when streaming tokens"),
        ({"decoder_input_details": True}, "`decoder_input_details` == true is not supported"),
        ({"temperature": 0.0}, "`temperature` must be strictly positive"),
    ]:
        with pytest.raises(ValidationError, match=re.escape(text)):
            list(client.text_generation(QUESTION, stream=True, details=True, **parameters))


def test_overload(busy):
    client = InferenceClient(busy.url, timeout=60)
    refusal = busy.refused(lambda: client.text_generation(QUESTION), OverloadedError)
    assert "Model is overloaded" in str(refusal)
    busy.refused(lambda: list(client.text_generation(QUESTION, stream=True)), OverloadedError)


def test_key(locked_server, api_key):
    with pytest.raises((HfHubHTTPError, UnknownError)) as refusal:
        InferenceClient(locked_server, timeout=60).text_generation(QUESTION)
    cause = refusal.value if isinstance(refusal.value, HfHubHTTPError) else refusal.value.__cause__
    assert cause.response.status_code == 401
    client = InferenceClient(locked_server, token=api_key, timeout=60)
    assert FACT in client.text_generation(QUESTION, max_new_tokens=40)


def test_token_without_need(server):
    """A token that is stored locally goes to every server; one without keys ignores it."""
    client = InferenceClient(server, token="hf_something", timeout=60)
    assert FACT in client.text_generation(QUESTION, max_new_tokens=40)


# -- helpers --


def test_endpoint_info(server):
    # The helpers speak to Hugging Face's own kind of server only, which has to be named.
    info = InferenceClient(server, provider="hf-inference", timeout=60).get_endpoint_info()
    assert info["router"] == "text-generation-router"
    assert info["max_total_tokens"] > info["max_input_tokens"] > 0
    assert info["model_id"]


def test_health_check(server):
    client = InferenceClient(server, provider="hf-inference", timeout=60)
    assert client.health_check() is True


# -- chat_completion --


def test_chat(client):
    answer = client.chat_completion(CHAT, max_tokens=40, temperature=0)
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert FACT in choice.message.content
    assert choice.message.tool_calls is None
    assert choice.finish_reason == "stop"
    assert choice.index == 0
    assert answer.usage.prompt_tokens > 0
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.created > 1_700_000_000
    assert answer.id is not None and answer.model and answer.system_fingerprint


@pytest.mark.parametrize("suffix", ["/", "/v1", "/v1/", "/v1/chat/completions"])
def test_chat_urls(server, suffix):
    answer = InferenceClient(server + suffix, timeout=60).chat_completion(
        CHAT, temperature=0, max_tokens=40
    )
    assert FACT in answer.choices[0].message.content


def test_openai_syntax(server):
    client = InferenceClient(base_url=server, api_key="-", timeout=60)
    answer = client.chat.completions.create(CHAT, model="any-name", temperature=0, max_tokens=40)
    assert FACT in answer.choices[0].message.content


def test_chat_stream(client):
    whole = client.chat_completion(CHAT, max_tokens=40, temperature=0).choices[0].message.content
    chunks = list(client.chat_completion(CHAT, max_tokens=40, temperature=0, stream=True))
    assert all(len(chunk.choices) == 1 for chunk in chunks)
    assert all(chunk.choices[0].delta.role == "assistant" for chunk in chunks)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]
    assert all(chunk.usage is None for chunk in chunks)


def test_chat_stream_usage(client):
    usage = client.chat_completion(CHAT, max_tokens=40, temperature=0).usage
    *chunks, last = client.chat_completion(
        CHAT, max_tokens=40, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    assert last.choices == []
    assert dict(last.usage) == dict(usage)
    assert all(chunk.usage is None for chunk in chunks)


def test_chat_length_and_stop(client):
    answer = client.chat_completion(CHAT, max_tokens=2, temperature=0)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 2
    answer = client.chat_completion(CHAT, max_tokens=40, temperature=0, stop=["France"])
    assert answer.choices[0].finish_reason == "stop"
    assert "France" not in answer.choices[0].message.content


def test_chat_logprobs(client):
    answer = client.chat_completion(
        CHAT, max_tokens=5, temperature=0, logprobs=True, top_logprobs=2
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for token in content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) >= 2
        assert token.top_logprobs[0].token == token.token


def test_chat_conversation(client):
    """System message, earlier turns, parts of content, and a begun answer that is continued."""
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Hello! How can I help you?"},
        {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
    ]
    answer = client.chat_completion(messages, max_tokens=40, temperature=0)
    assert FACT in answer.choices[0].message.content
    begun = CHAT + [{"role": "assistant", "content": "The capital of France is"}]
    text = client.chat_completion(begun, max_tokens=10, temperature=0).choices[0].message.content
    assert text.strip().startswith(FACT)


def test_chat_other_parameters(client):
    answer = client.chat_completion(
        CHAT,
        frequency_penalty=0.1,
        presence_penalty=0.1,
        max_tokens=5,
        n=1,
        seed=3,
        temperature=0.7,
        top_p=0.9,
        extra_body={"top_k": 10, "no_such_field": True},
    )
    assert answer.choices[0].message.content


@pytest.mark.parametrize("schema", ["json_schema", "json", "regex"])
def test_chat_response_format(client, schema):
    format = {
        "json_schema": {
            "type": "json_schema",
            "json_schema": {"name": "reading", "schema": schema_of_reading()},
        },
        "json": {"type": "json", "value": schema_of_reading()},
        "regex": {"type": "regex", "value": "(Paris|Rome)"},
    }[schema]
    answer = client.chat_completion(CHAT, response_format=format, max_tokens=200, temperature=0)
    text = answer.choices[0].message.content
    if schema == "regex":
        assert text in ("Paris", "Rome")
    else:
        check_reading(json.loads(text))
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    "choice",
    ["required", "get_weather", {"type": "function", "function": {"name": "get_weather"}}],
    ids=["required", "by-name", "by-object"],
)
def test_chat_tools(client, choice):
    tools = [WEATHER, CLOCK] if choice == "required" else [CLOCK, WEATHER]
    answer = client.chat_completion(
        CHAT, tools=tools, tool_choice=choice, max_tokens=200, temperature=0
    )
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls"
    assert message.content is None
    (call,) = message.tool_calls
    assert call.id and call.type == "function"
    if choice != "required":
        assert call.function.name == "get_weather"
    check_arguments(call.function.name, call.function.arguments)


def test_chat_tools_stream(client):
    chunks = list(
        client.chat_completion(
            CHAT,
            tools=[WEATHER, CLOCK],
            tool_choice="get_weather",
            max_tokens=200,
            temperature=0,
            stream=True,
        )
    )
    # Code written for TGI indexes the calls of every chunk.
    calls = [chunk.choices[0].delta.tool_calls[0] for chunk in chunks]
    assert len({call.id for call in calls}) == 1 and calls[0].id
    assert all(call.index == 0 and call.type == "function" for call in calls)
    assert [call.function.name for call in calls if call.function.name] == ["get_weather"]
    assert calls[0].function.name
    check_arguments("get_weather", "".join(call.function.arguments or "" for call in calls))
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_chat_tools_none_and_auto(client):
    answer = client.chat_completion(
        CHAT, tools=[WEATHER], tool_choice="none", max_tokens=40, temperature=0
    )
    assert FACT in answer.choices[0].message.content
    message = (
        client.chat_completion(
            CHAT, tools=[WEATHER], tool_choice="auto", max_tokens=60, temperature=0
        )
        .choices[0]
        .message
    )
    assert message.content or message.tool_calls


def test_chat_tool_result(client):
    """The second round of a conversation with tools."""
    messages = [
        {"role": "user", "content": "How is the weather in Paris?"},
        {
            "role": "assistant",
            "tool_calls": [
                {
                    "id": "0",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "0", "content": "sunny"},
        {"role": "user", "content": QUESTION},
    ]
    answer = client.chat_completion(messages, max_tokens=40, temperature=0)
    assert answer.choices[0].message.content


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"temperature": -1.0}, "`temperature` must be strictly positive"),
        ({"stop": list("abcde")}, "`stop` supports up to 4 stop sequences. Given: 5"),
        (
            {"tools": [WEATHER], "tool_choice": "nobody"},
            "Tool error: Tool with name nobody not found",
        ),
        (
            {"tools": [WEATHER], "response_format": {"type": "regex", "value": "a"}},
            "Tool error: Grammar and tools are mutually exclusive",
        ),
    ],
)
def test_chat_errors(client, parameters, text):
    with pytest.raises(HfHubHTTPError, match=re.escape(text)) as refusal:
        client.chat_completion(CHAT, **parameters)
    assert refusal.value.response.status_code == 422


def test_chat_error_in_a_stream(client):
    with pytest.raises((UnknownError, HfHubHTTPError), match="must be strictly positive"):
        list(client.chat_completion(CHAT, temperature=-1.0, stream=True))


def test_chat_overload(busy):
    client = InferenceClient(busy.url, timeout=60)
    refusal = busy.refused(lambda: client.chat_completion(CHAT), HfHubHTTPError)
    assert refusal.response.status_code == 429
    assert int(refusal.response.headers["retry-after"]) >= 1


def test_chat_key(locked_server, api_key):
    with pytest.raises(HfHubHTTPError) as refusal:
        InferenceClient(locked_server, timeout=60).chat_completion(CHAT)
    assert refusal.value.response.status_code == 401
    client = InferenceClient(locked_server, token=api_key, timeout=60)
    assert client.chat_completion(CHAT, max_tokens=5).choices


# -- the asynchronous client --


def test_async_text(server):
    async def talk():
        async with AsyncInferenceClient(server, timeout=60) as client:
            return await talk_with(client)

    async def talk_with(client):
        whole = await client.text_generation(QUESTION, max_new_tokens=40, return_full_text=False)
        stream = await client.text_generation(QUESTION, stream=True, max_new_tokens=40)
        pieces = [piece async for piece in stream]
        many = await asyncio.gather(
            *(
                client.text_generation(QUESTION, max_new_tokens=40, return_full_text=False)
                for _ in range(8)
            )
        )
        with pytest.raises(ValidationError, match="`temperature` must be strictly positive"):
            await client.text_generation(QUESTION, temperature=0.0)
        return whole, pieces, many

    whole, pieces, many = asyncio.run(talk())
    assert FACT in whole
    assert "".join(pieces[:-1]) == whole
    assert many == [whole] * 8


def test_async_chat(server):
    async def talk():
        async with AsyncInferenceClient(server, timeout=60) as client:
            return await talk_with(client)

    async def talk_with(client):
        answer = await client.chat_completion(CHAT, max_tokens=40, temperature=0)
        stream = await client.chat_completion(CHAT, max_tokens=40, temperature=0, stream=True)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
        return answer.choices[0].message.content, "".join(pieces)

    whole, streamed = asyncio.run(talk())
    assert FACT in whole
    assert streamed == whole
