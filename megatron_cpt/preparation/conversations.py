"""A JSON object to a conversation, in the four forms in which instruction data are published.

| keys | form |
|---|---|
| `messages` | role and content, as chat templates take them (OpenAI, transformers) |
| `conversations` | ShareGPT's `from` and `value`, or role and content |
| `instruction`, `input`, `output` | Alpaca's: `input` follows the instruction after a blank line |
| `prompt`, `response` or `completion` | one question, one answer; or a list of messages each (TRL) |

`history` beside the last two, `[[question, answer], ...]`, holds the turns before (LLaMA-Factory). `system` and `tools`
beside them are the system message and the tools' JSON schemas, as a list or as its JSON. A key with null is not there.

A line may have the keys of several forms, as merged tables do. The first form of the table is read. What its messages
do not say again of the other keys would be lost, and is a reason to reject the line; but for a question without an
answer, which is no conversation and often the whole one, formatted.

`weight` (OpenAI), `train` (axolotl) and `loss` (ms-swift) of a message say whether it counts in the loss. What else the
forms do not know of a message (`tool_calls`, `reasoning_content`, `name`) is handed on to the chat template as it is.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

_ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT = {"human": "user", "gpt": "assistant", "observation": "tool"} | {role: role for role in _ROLES}
"""Roles by ShareGPT's words; converters also write the usual ones there."""
_LOSS_MARKS = ("weight", "train", "loss")
"""Keys of a message that say whether it counts in the loss: 0 or 1, false or true."""
_FINER_MARKS = ("train_detail", "loss_scale")
"""Those of axolotl and ms-swift for parts of a message, and for weights."""
_FORMS = {
    "messages": ("messages",),
    "conversations": ("conversations",),
    "instruction": ("instruction", "input", "output", "history"),
    "prompt": ("prompt", "response", "completion", "history"),
}
"""By the key that tells a form, all keys that are read of it. The first form that is there is read."""
_OF_OTHERS = ("conversations", "input", "output", "response", "completion", "history", "system_prompt")
"""Keys whose texts belong to a conversation, whatever its form."""
_WITHIN = ("input", "system_prompt")
"""Those of which others are made: a question of an instruction and an input."""
_NOT_READ = ("chat_template_kwargs", "images", "videos", "audios")
"""What TRL and others keep beside messages that changes what the template writes, or what no token of text says."""
_GOOD = ("label", "kto_tag")
"""TRL's and LLaMA-Factory's keys of whether the answer is one to give."""
_FALSE = (False, "false", "False", "0")
"""What tables make of `false`, 0 included, which is equal to it."""
_OLDER = {"function_call": "tool_calls", "functions": "tools"}
"""OpenAI's older keys, by which no chat template of today is written, and what stands for them."""


class Unusable(Exception):
    """Why a line gives no conversation, or a conversation no tokens."""


@dataclass(frozen=True)
class Conversation:
    """Messages in the order said."""

    messages: list[dict[str, Any]]
    """Each with a `role`; at least one user's, and behind it at least one assistant's."""
    tools: list[Any] | None
    """JSON schemas of the tools that the assistant may call."""
    marked: dict[int, bool]
    """By the number of a message, whether it is to count in the loss, where it says so itself."""
    untrained: list[int]
    """Numbers of the assistant's messages that do not count."""
    canonical: bytes
    """JSON of all with sorted keys: equal for equal conversations, whatever form they were read in."""

    @property
    def text(self) -> str:
        """All that is said in it, roles and tools' schemas aside."""
        return "\n".join(_strings(_without_roles(self.messages)))

    @property
    def answers(self) -> list[int]:
        """Numbers of the assistant's messages."""
        return _answers(self.messages)

    @property
    def trained_answers(self) -> list[int]:
        """Numbers of those that count in the loss."""
        return [number for number in self.answers if number not in self.untrained]

    def strings(self) -> Iterator[str]:
        """Every string that the template may write, roles aside: those of messages and tools, keys too."""
        return _strings([*_without_roles(self.messages), self.tools])


def read_conversation(value: Mapping[str, Any]) -> Conversation:
    """The conversation of a JSON object.

    Raises Unusable: its form is not known, a role is missing, an answer empty, or something of it would be lost.
    """
    value = _there(value)
    form = next((key for key in _FORMS if key in value), None)
    if form is None:
        raise Unusable("no key 'messages', 'conversations', 'instruction' or 'prompt'")
    said, in_prompt = _messages(value, form)
    messages = [_there(message) for message in said]
    if system := _system(value, messages):
        messages, in_prompt = [system, *messages], in_prompt + 1
    _refuse_older(value, messages)
    _check(messages)
    _refuse_losses(value, form, messages)
    marked = _marked(messages)
    messages = [{key: one for key, one in message.items() if key not in _LOSS_MARKS} for message in messages]
    tools = _tools(value.get("tools"))
    untrained = [number for number in _answers(messages) if not marked.get(number, number >= in_prompt)]
    if len(untrained) == len(_answers(messages)):
        raise Unusable("no answer counts in the loss")
    content = {"messages": messages, "tools": tools} | ({"untrained": untrained} if untrained else {})
    try:
        canonical = orjson.dumps(content, option=orjson.OPT_SORT_KEYS)
    except TypeError as error:  # lone surrogates, integers of more than 64 bits
        raise Unusable(f"broken JSON: {error}") from None
    return Conversation(messages, tools, marked, untrained, canonical)


def _there(value: Mapping[str, Any]) -> dict[str, Any]:
    """An object without the keys that hold null: tables have every column in every row."""
    return {key: one for key, one in value.items() if one is not None}


def _messages(value: Mapping[str, Any], form: str) -> tuple[list[dict[str, Any]], int]:
    """The messages, and how many of them are a prompt, whose answers count only where they say so (TRL)."""
    if form in ("messages", "conversations"):
        said = value[form]
        if not isinstance(said, list) or not all(isinstance(message, dict) for message in said):
            raise Unusable(f"{form!r} is not a list of messages")
        return [_of_sharegpt(message) if "from" in message else message for message in said], 0
    if form == "instruction":
        asked = [value["instruction"], value.get("input") or ""]
        if not all(isinstance(part, str) for part in asked):
            raise Unusable("the question is not a string")
        question = "\n\n".join(part for part in asked if part.strip())
        return [*_history(value), *_said("user", question), *_answer(value, "output")], 0
    prompt = value["prompt"]
    before, history = _listed(prompt, "prompt", "user"), _history(value)
    if history and not isinstance(prompt, str):
        raise Unusable("'history' and a 'prompt' that is a list both hold the turns before")
    in_prompt = 0 if isinstance(prompt, str) else len(before)
    return [*history, *before, *_answer(value, "response", "completion")], in_prompt


def _system(value: Mapping[str, Any], messages: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The system message beside the messages, where it is not the first of them."""
    system = value.get("system", "")
    if not isinstance(system, str):
        raise Unusable("'system' is not a string")
    first = messages[0] if messages else {}
    if not system.strip():
        return None
    if first.get("role") != "system":
        return {"role": "system", "content": system}
    if str(first.get("content")).strip() != system.strip():
        raise Unusable("two system messages: 'system' and message 1")
    return None


def _refuse_losses(value: Mapping[str, Any], form: str, messages: list[dict[str, Any]]) -> None:
    """Raises Unusable where an object says something of a conversation beside its messages, and they do not."""
    contents = [text.strip() for text in _strings(_without_roles(messages))]
    for key in (key for key in _OF_OTHERS if key not in _FORMS[form]):
        for text in filter(None, (text.strip() for text in _texts(value.get(key)))):
            # An answer such as "no" stands in many a text.
            if not (any(text in one for one in contents) if key in _WITHIN else text in contents):
                raise Unusable(f"{key!r} stands beside {form!r}, and its text is that of no message")
    if lost := next((key for key in _NOT_READ if value.get(key)), None):
        raise Unusable(f"{lost!r} stands beside the messages, and is not known")
    if bad := next((key for key in _GOOD if value.get(key) in _FALSE), None):
        raise Unusable(f"{bad!r} is {value[bad]!r}: the answer is one that is not to be given")
    for key in _LOSS_MARKS:
        mark = value.get(key, 1)
        if mark in (0, False) or (key == "weight" and mark != 1):
            raise Unusable(f"{key!r} stands beside the messages, and is known only in them: {mark!r}")
    if finer := next((key for key in _FINER_MARKS if value.get(key)), None):
        raise Unusable(f"{finer!r} is not known, an answer counts as a whole or not at all")


def _refuse_older(value: Mapping[str, Any], messages: list[dict[str, Any]]) -> None:
    for number, part in ((0, value), *enumerate(messages, start=1)):
        where = f": message {number}" if number else ""
        if older := next((key for key in _OLDER if part.get(key)), None):
            raise Unusable(f"{older!r} is OpenAI's older form of {_OLDER[older]!r}, and not known{where}")


def _texts(value: Any) -> Iterator[str]:
    """The texts of a key, a string or a list of messages or turns."""
    if isinstance(value, dict):
        yield from (text for name in ("content", "value") for text in _texts(value.get(name)))
    elif isinstance(value, list):
        yield from (text for one in value for text in _texts(one))
    elif isinstance(value, str):
        yield value


def _answer(value: Mapping[str, Any], *keys: str) -> list[dict[str, Any]]:
    """What the one of the keys holds that is there."""
    there = [key for key in keys if value.get(key) is not None]
    if not there:
        raise Unusable(f"a question without an answer: no key {' or '.join(map(repr, keys))}")
    if len(there) > 1:
        raise Unusable(f"two answers: {' and '.join(map(repr, there))}")
    return _listed(value[there[0]], there[0], "assistant")


def _history(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The turns before the question."""
    turns = value.get("history") or []
    if not isinstance(turns, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in turns):
        raise Unusable("'history' is not a list of [question, answer]")
    return [
        message for question, answer in turns for message in (*_said("user", question), *_said("assistant", answer))
    ]


def _listed(said: Any, key: str, role: str) -> list[dict[str, Any]]:
    """What a key holds, a string or a list of messages, as the latter."""
    if isinstance(said, str):
        return _said(role, said)
    if not isinstance(said, list) or not all(isinstance(message, dict) for message in said):
        raise Unusable(f"{key!r} is neither a string nor a list of messages")
    return said


def _said(role: str, content: Any) -> list[dict[str, Any]]:
    return [{"role": role, "content": content}]


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


def _answers(messages: list[dict[str, Any]]) -> list[int]:
    return [number for number, message in enumerate(messages) if message["role"] == "assistant"]


def _marked(messages: list[dict[str, Any]]) -> dict[int, bool]:
    """Which messages say whether they count, by their numbers, and what they say."""
    marked = {}
    for number, message in enumerate(messages):
        for key in _FINER_MARKS:
            if key in message:
                raise Unusable(f"{key!r} is not known, an answer counts as a whole or not at all: message {number + 1}")
        found = {key: message[key] for key in _LOSS_MARKS if key in message}
        for key, value in found.items():
            if value not in (0, 1):  # true and false are equal to these
                raise Unusable(f"{key!r} is neither 0 nor 1, false nor true: {value!r} of message {number + 1}")
        if len(set(found.values())) > 1:
            raise Unusable(f"{' and '.join(map(repr, found))} contradict each other: message {number + 1}")
        if found:
            marked[number] = bool(next(iter(found.values())))
    return marked


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
