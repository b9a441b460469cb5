"""LangChain's classes for Hugging Face endpoints: HuggingFaceEndpoint and, on top of it, ChatHuggingFace."""

import asyncio

import pytest
from huggingface_hub.errors import HfHubHTTPError, ValidationError
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.tools import tool
from langchain_huggingface import ChatHuggingFace, HuggingFaceEndpoint
from pydantic import BaseModel
from typing import Literal

from conftest import FACT, QUESTION


# Its own defaults sample at 0.8, and ChatHuggingFace takes a 0 for "not set": this is as good as greedy.
def endpoint(server, **parameters):
    return HuggingFaceEndpoint(
        endpoint_url=server, max_new_tokens=60, temperature=0.001, **parameters
    )


@pytest.fixture
def llm(server):
    return endpoint(server)


@pytest.fixture
def chat(llm):
    return ChatHuggingFace(llm=llm)


class Reading(BaseModel):
    """The weather in a city."""

    city: Literal["Paris", "Rome"]
    sunny: bool


@tool
def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """Says what the weather is like in a city."""
    return f"sunny in {city}"


# -- HuggingFaceEndpoint --


def test_invoke(llm):
    answer = llm.invoke(QUESTION)
    assert isinstance(answer, str)
    assert FACT in answer
    assert QUESTION not in answer


def test_stream(llm):
    pieces = list(llm.stream(QUESTION))
    assert len(pieces) > 3
    # It hands out the text of special tokens too.
    assert "".join(pieces).startswith(llm.invoke(QUESTION))


def test_streaming_answer(server):
    assert FACT in endpoint(server, streaming=True).invoke(QUESTION)


def test_stop(llm, server):
    assert llm.invoke(QUESTION, stop=["France"]).endswith("capital of ")
    assert endpoint(server, stop_sequences=["France"]).invoke(QUESTION).endswith("capital of ")


def test_batch(llm):
    assert llm.batch([QUESTION] * 4) == [llm.invoke(QUESTION)] * 4


def test_chain(llm):
    chain = (
        PromptTemplate.from_template("What is the capital of {country}?") | llm | StrOutputParser()
    )
    assert FACT in chain.invoke({"country": "France"})


def test_async(llm):
    async def talk():
        pieces = [piece async for piece in llm.astream(QUESTION)]
        return await llm.ainvoke(QUESTION), "".join(pieces)

    whole, streamed = asyncio.run(talk())
    assert FACT in whole
    assert streamed.startswith(whole)


def test_errors(server):
    with pytest.raises(ValidationError, match="`stop` supports up to 4 stop sequences"):
        endpoint(server).invoke(QUESTION, stop=list("abcde"))
    with pytest.raises(ValidationError, match="`typical_p` must be > 0.0 and < 1.0"):
        endpoint(server, typical_p=1.0).invoke(QUESTION)


# -- ChatHuggingFace --


def test_chat(chat):
    answer = chat.invoke([HumanMessage(QUESTION)])
    assert isinstance(answer, AIMessage)
    assert FACT in answer.content
    assert answer.tool_calls == []
    assert answer.response_metadata["finish_reason"] == "stop"
    usage = answer.usage_metadata
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_chat_conversation(chat):
    prompt = ChatPromptTemplate.from_messages(
        [
            ("system", "You are a helpful assistant."),
            ("human", "Hello!"),
            ("ai", "Hello! How can I help you?"),
            ("human", "What is the capital of {country}?"),
        ]
    )
    assert FACT in (prompt | chat | StrOutputParser()).invoke({"country": "France"})


def test_chat_stream(chat):
    chunks = list(chat.stream([HumanMessage(QUESTION)]))
    assert (
        "".join(chunk.content for chunk in chunks) == chat.invoke([HumanMessage(QUESTION)]).content
    )
    reasons = [chunk.response_metadata.get("finish_reason") for chunk in chunks]
    assert [reason for reason in reasons if reason] == ["stop"]


def test_chat_stream_usage(llm):
    chat = ChatHuggingFace(llm=llm, stream_usage=True)
    total = None
    for chunk in chat.stream([HumanMessage(QUESTION)]):
        total = chunk if total is None else total + chunk
    assert total.usage_metadata == chat.invoke([HumanMessage(QUESTION)]).usage_metadata


def test_chat_tools(chat):
    messages = [SystemMessage("You use tools."), HumanMessage("How is the weather in Paris?")]
    answer = chat.bind_tools([get_weather], tool_choice="get_weather").invoke(messages)
    (call,) = answer.tool_calls
    assert call["name"] == "get_weather"
    assert call["args"]["city"] in ("Paris", "Rome")
    assert call["id"]
    assert answer.invalid_tool_calls == []
    # The loop that every agent runs: call the tool, give its result back, ask again.
    result = get_weather.invoke(call)
    assert isinstance(result, ToolMessage)
    final = chat.invoke(messages + [answer, result])
    assert isinstance(final.content, str)


def test_chat_tools_required(chat):
    answer = chat.bind_tools([get_weather], tool_choice="required").invoke(QUESTION)
    assert [call["name"] for call in answer.tool_calls] == ["get_weather"]


def test_chat_tools_stream(chat):
    total = None
    for chunk in chat.bind_tools([get_weather], tool_choice="get_weather").stream(QUESTION):
        total = chunk if total is None else total + chunk
    (call,) = total.tool_calls
    assert call["name"] == "get_weather"
    assert call["args"]["city"] in ("Paris", "Rome")


def test_structured_output(chat):
    """A schema is sent as `response_format`, of type `json_object` and under the key `schema`."""
    answer = chat.with_structured_output(Reading, method="json_schema").invoke(QUESTION)
    Reading.model_validate(answer if isinstance(answer, dict) else answer.model_dump())


def test_chat_async(chat):
    async def talk():
        pieces = [chunk.content async for chunk in chat.astream([HumanMessage(QUESTION)])]
        return (await chat.ainvoke([HumanMessage(QUESTION)])).content, "".join(pieces)

    whole, streamed = asyncio.run(talk())
    assert FACT in whole
    assert streamed == whole


def test_chat_errors(chat):
    with pytest.raises(HfHubHTTPError, match="`temperature` must be strictly positive"):
        chat.invoke([HumanMessage(QUESTION)], temperature=-1.0)
