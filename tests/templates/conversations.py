"""The conversations every template is asked to render."""

from typing import Any

HTML = 'A <b>"bold"</b> & \'sharp\' é 漢字 🎉 \u2028 \u00a0 C:\\dir\n\ttail  '

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather <now> & \"here\".",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name of the city", "enum": ["Zürich", "Köln"]},
                "days": {"type": "integer", "default": 1, "minimum": 0},
                "share": {"type": ["number", "null"], "description": "A part of 1.0", "maximum": 0.25},
            },
            "required": ["city"],
        },
    },
}

SEARCH = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Finds documents.",
        "parameters": {
            "type": "object",
            "properties": {
                "items": {"type": "array", "items": {"type": "string"}, "description": "Words to look for"},
                "filter": {
                    "type": "object",
                    "properties": {"keys": {"type": "array", "items": {"type": "integer"}}},
                    "required": [],
                },
            },
        },
        "return": {"type": "string"},
    },
}

BARE = {"type": "function", "function": {"name": "stop", "description": "Stops.", "parameters": {}}}

DOCUMENTS = [
    {"title": "On weather", "text": "It rains <often>."},
    {"title": "On é", "text": "Two\nlines", "id": 7},
]

SYSTEM = {"role": "system", "content": "You answer in one word."}
HELLO = {"role": "user", "content": "Hello"}
HI = {"role": "assistant", "content": "Hi there"}


def call(arguments: Any, id: str = "abc123def", name: str = "get_weather") -> dict[str, Any]:
    """A call of a tool as OpenAI writes it; transformers wants the arguments as an object."""
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


ARGUMENTS = {"city": "Zürich", "days": 3, "share": 0.1, "nested": {"list": [1, None, True], "text": HTML}}
CALLS = {"role": "assistant", "content": "", "tool_calls": [call(ARGUMENTS)]}
NO_CONTENT = {"role": "assistant", "content": None, "tool_calls": [call({"city": "Köln"})]}
TWO_CALLS = {
    "role": "assistant",
    "content": "I look.",
    "tool_calls": [call({"city": "Köln"}, "aaaaaaaaa"), call({"items": ["a"]}, "bbbbbbbbb", "search")],
}
TEXT_CALL = {"role": "assistant", "content": "", "tool_calls": [call('{"city": "Köln"}')]}
RESULT = {"role": "tool", "content": '{"temperature": 21.5, "sky": "<clear>"}', "name": "get_weather", "tool_call_id": "abc123def"}
RESULT_A = {"role": "tool", "content": "21", "name": "get_weather", "tool_call_id": "aaaaaaaaa"}
RESULT_B = {"role": "tool", "content": "none", "name": "search", "tool_call_id": "bbbbbbbbb"}
THOUGHT = {"role": "assistant", "content": "Four.", "reasoning_content": "2 + 2 is 4.\n"}
INLINE_THOUGHT = {"role": "assistant", "content": "<think>\n2 + 2 is 4.\n</think>\n\nFour."}
PARTS = {"role": "user", "content": [{"type": "text", "text": "One. "}, {"type": "text", "text": "Two."}]}


def conversation(name: str, messages: list[dict[str, Any]], **settings: Any) -> dict[str, Any]:
    """A case without what transformers makes of it."""
    return {
        "name": name,
        "messages": messages,
        "tools": None,
        "documents": None,
        "add_generation_prompt": True,
        "continue_final_message": False,
        "kwargs": None,
    } | settings


def conversations() -> list[dict[str, Any]]:
    """All of them, each with its own name."""
    ask = {"role": "user", "content": "How is it in Zürich?"}
    tools = [WEATHER, SEARCH]
    continued = {"add_generation_prompt": False, "continue_final_message": True}
    return [
        conversation("user", [HELLO]),
        conversation("user, no prompt", [HELLO], add_generation_prompt=False),
        conversation("system", [SYSTEM, HELLO]),
        conversation("system only", [SYSTEM]),
        conversation("turns", [SYSTEM, HELLO, HI, {"role": "user", "content": " spaced  \n"}]),
        conversation("turns, no prompt", [HELLO, HI], add_generation_prompt=False),
        conversation("developer", [{"role": "developer", "content": "Be brief."}, HELLO]),
        conversation("unknown role", [{"role": "critic", "content": "No."}, HELLO]),
        conversation("two users", [HELLO, HELLO]),
        conversation("assistant first", [HI, HELLO]),
        conversation("late system", [HELLO, HI, SYSTEM, HELLO]),
        conversation("signs", [{"role": "system", "content": HTML}, {"role": "user", "content": HTML}]),
        conversation("empty texts", [{"role": "system", "content": ""}, {"role": "user", "content": ""}]),
        conversation("empty", []),
        conversation("parts", [PARTS]),
        conversation("parts of all", [{"role": "system", "content": [{"type": "text", "text": "S"}]}, PARTS]),
        conversation("image", [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]),
        conversation("tools", [ask], tools=tools),
        conversation("tools, system", [SYSTEM, ask], tools=tools),
        conversation("one tool without parameters", [ask], tools=[BARE]),
        conversation("no tools", [ask], tools=[]),
        conversation("call", [ask, CALLS], tools=tools, add_generation_prompt=False),
        conversation("call and result", [SYSTEM, ask, CALLS, RESULT], tools=tools),
        conversation("null content", [ask, NO_CONTENT, RESULT], tools=tools),
        conversation("two calls", [ask, TWO_CALLS, RESULT_A, RESULT_B], tools=tools),
        conversation("two calls and an answer", [ask, TWO_CALLS, RESULT_A, RESULT_B, HI, HELLO], tools=tools),
        conversation("arguments as text", [ask, TEXT_CALL, RESULT], tools=tools),
        conversation("result without tools", [ask, CALLS, RESULT]),
        conversation("documents", [SYSTEM, ask], documents=DOCUMENTS),
        conversation("documents and tools", [ask], documents=DOCUMENTS, tools=tools),
        conversation("thinking on", [SYSTEM, HELLO], kwargs={"enable_thinking": True, "thinking": True}),
        conversation("thinking off", [SYSTEM, HELLO], kwargs={"enable_thinking": False, "thinking": False}),
        conversation("effort", [HELLO], kwargs={"reasoning_effort": "high", "thinking_budget": 512}),
        conversation("thought", [HELLO, THOUGHT, HELLO]),
        conversation("last thought", [HELLO, THOUGHT], add_generation_prompt=False),
        conversation("thought under another name", [HELLO, {"role": "assistant", "content": "4", "reasoning": "2+2"}, HELLO]),
        conversation("inline thought", [HELLO, INLINE_THOUGHT, HELLO]),
        conversation("thought before a call", [ask, CALLS | {"reasoning_content": "I need it."}, RESULT], tools=tools),
        conversation("other tokens", [HELLO], kwargs={"bos_token": "<other>", "custom": [1, {"a": None}]}),
        conversation("date", [SYSTEM, HELLO], kwargs={"date_string": "01 Jan 2031"}),
        conversation("continued", [HELLO, HI], **continued),
        conversation("continued, spaces", [HELLO, {"role": "assistant", "content": "  It is  "}], **continued),
        conversation("continued, repeated", [HI, HELLO, HI], **continued),
        conversation("continued, parts", [PARTS, {"role": "assistant", "content": [{"type": "text", "text": "So, "}]}], **continued),
        conversation("continued, thought", [HELLO, INLINE_THOUGHT], **continued),
        conversation("continued, user", [HELLO], **continued),
        conversation("continued, empty", [HELLO, {"role": "assistant", "content": ""}], **continued),
    ]
