"""A JSON object to a conversation, in the four forms in which instruction data are published.

| keys | form |
|---|---|
| `messages` | role and content, as chat templates take them (OpenAI, transformers) |
| `conversations` | ShareGPT's `from` and `value`, or role and content |
| `instruction`, `input`, `output` | Alpaca's: `input` follows the instruction after a blank line |
| `prompt`, `response` | one question, one answer |

`system` and `tools` beside them are the system message and the tools' JSON schemas, as a list or as its JSON. What the
forms do not know of a message (`tool_calls`, `reasoning_content`, `name`) is handed on to the chat template as it is.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import orjson

_ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT = {"human": "user", "gpt": "assistant", "observation": "tool"} | {role: role for role in _ROLES}
"""Roles by ShareGPT's words; converters also write the usual ones there."""


class Unusable(Exception):
    """Why a line gives no conversation, or a conversation no tokens."""


@dataclass(frozen=True)
class Conversation:
    """Messages in the order said."""

    messages: list[dict[str, Any]]
    """Each with a `role`; at least one user's, and behind it at least one assistant's."""
    tools: list[Any] | None
    """JSON schemas of the tools that the assistant may call."""
    canonical: bytes
    """JSON of both with sorted keys: equal for equal conversations, whatever form they were read in."""

    @property
    def text(self) -> str:
        """All that is said in it, roles and tools' schemas aside."""
        return "\n".join(_strings(_without_roles(self.messages)))

    @property
    def answers(self) -> list[int]:
        """Numbers of the assistant's messages."""
        return [number for number, message in enumerate(self.messages) if message["role"] == "assistant"]

    def tool_names(self) -> Iterator[str]:
        """Names of the tools that it has and calls."""
        calls = (message.get("tool_calls") or [] for message in self.messages)
        for tool in [*(self.tools or []), *chain.from_iterable(calls)]:
            name = tool.get("function", tool).get("name")
            if isinstance(name, str):
                yield name

    def strings(self) -> Iterator[str]:
        """Every string that the template may write, roles aside: those of messages and tools, keys too."""
        return _strings([*_without_roles(self.messages), self.tools])


def read_conversation(value: Mapping[str, Any]) -> Conversation:
    """The conversation of a JSON object. Raises Unusable: its form is not known, a role is missing, an answer empty."""
    messages = [{key: one for key, one in message.items() if one is not None} for message in _messages(value)]
    system = value.get("system")
    if isinstance(system, str) and system.strip() and not (messages and messages[0].get("role") == "system"):
        messages = [{"role": "system", "content": system}, *messages]
    _check(messages)
    tools = _tools(value.get("tools"))
    try:
        canonical = orjson.dumps({"messages": messages, "tools": tools}, option=orjson.OPT_SORT_KEYS)
    except TypeError as error:  # lone surrogates, integers of more than 64 bits
        raise Unusable(f"broken JSON: {error}") from None
    return Conversation(messages, tools, canonical)


def _messages(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    if "messages" in value or "conversations" in value:
        key = "messages" if "messages" in value else "conversations"
        said = value[key]
        if not isinstance(said, list) or not all(isinstance(message, dict) for message in said):
            raise Unusable(f"{key!r} is not a list of messages")
        return [_of_sharegpt(message) if "from" in message else message for message in said]
    if "instruction" in value:
        asked = [value["instruction"], *([value["input"]] if value.get("input") else [])]
        return _one_turn(asked, value.get("output"))
    if "prompt" in value:
        return _one_turn([value["prompt"]], value.get("response"))
    raise Unusable("no key 'messages', 'conversations', 'instruction' or 'prompt'")


def _one_turn(asked: list[Any], answer: Any) -> list[dict[str, Any]]:
    if not all(isinstance(part, str) for part in asked):
        raise Unusable("the question is not a string")
    return [{"role": "user", "content": "\n\n".join(asked)}, {"role": "assistant", "content": answer}]


def _of_sharegpt(message: Mapping[str, Any]) -> dict[str, Any]:
    role = message["from"]
    rest = {key: value for key, value in message.items() if key not in ("from", "value")}
    return {
        "role": _SHAREGPT.get(role, role) if isinstance(role, str) else role,
        "content": message.get("value"),
    } | rest


def _check(messages: list[dict[str, Any]]) -> None:
    """Raises Unusable with the first fault, messages counted from 1."""
    asked = answered = False
    for number, message in enumerate(messages, start=1):
        role, content = message.get("role"), message.get("content")
        if role is None:
            raise Unusable(f"no role: message {number}")
        if role not in _ROLES:
            raise Unusable(f"unknown role: {role!r} of message {number}")
        if content is not None and not isinstance(content, str):
            raise Unusable(f"content is not a string: message {number}")
        calls = message.get("tool_calls") or []
        if not isinstance(calls, list) or not all(_is_tool(call) for call in calls):
            raise Unusable(f"'tool_calls' is not a list of calls: message {number}")
        if role == "assistant" and not (content and content.strip()) and not calls:
            raise Unusable(f"empty answer: message {number}")
        if role == "user" and not (content and content.strip()):
            raise Unusable(f"empty question: message {number}")
        if role == "assistant" and not asked:
            raise Unusable(f"no question before the answer: message {number}")
        asked, answered = asked or role == "user", answered or role == "assistant"
    if not answered:
        raise Unusable("no answer: no message of the role assistant")


def _tools(value: Any) -> list[Any] | None:
    if isinstance(value, str) and value.strip():
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            raise Unusable("'tools' is not JSON") from None
    if not value:
        return None
    if not isinstance(value, list) or not all(_is_tool(tool) for tool in value):
        raise Unusable("'tools' is not a list of JSON schemas")
    return value


def _is_tool(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("function", value), dict)


def _without_roles(messages: list[dict[str, Any]]) -> list[list[Any]]:
    return [[value for key, value in message.items() if key != "role"] for message in messages]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)
    elif isinstance(value, dict):
        for key, one in value.items():
            yield key
            yield from _strings(one)
