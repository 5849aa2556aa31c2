"""What a chat template leaves out of a conversation, found by a probe.

A template is a program that takes what it knows and drops the rest in silence: tools, a system message, the content
beside a call, thinking. A search for the texts themselves would not tell, since a question may have the name of a tool
in it. So the template is given the same conversation with words in place of its texts that nobody writes, and has to
write them all.

Thinking is a case of its own, and so is what is said beside a call. Some templates write it in the last turn alone, by
design (Qwen3, gpt-oss): it is left out only where the template does not write it even if nothing follows.
"""

from dataclasses import dataclass, field
from typing import Any

from megatron_cpt.preparation.conversations import Conversation

_THINKING = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message by which templates and servers know thinking apart from the answer."""
THINKING_TAGS = THINK, END_OF_THINKING = "<think>", "</think>"
"""What parts thinking from the answer within its content."""


@dataclass(frozen=True)
class Part:
    """A part of a conversation that a template has to write."""

    name: str
    """What it is, for people: `tools: weather`."""
    words: tuple[str, ...]
    """One of these has to stand in what the template writes."""
    message: int | None = None
    """The number of the message whose thinking it is, which may be dropped where others follow. None: it may not."""


@dataclass
class Probe:
    """A conversation with other words. `probe_of` makes one."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[Any] | None = None
    parts: list[Part] = field(default_factory=list)

    def word(self, name: str, *others: str, message: int | None = None) -> str:
        """A word that nobody writes, for a part; `others` say as well that the part is written."""
        word = f"qzx{len(self.parts):04d}xzq"
        self.parts.append(Part(name, (word, *others), message))
        return word


def probe_of(conversation: Conversation) -> Probe:
    """The probe of a conversation: equal for conversations that differ in their texts alone."""
    probe = Probe()
    if conversation.tools is not None:
        probe.tools = [_tool(probe, tool) for tool in conversation.tools]
    for number, message in enumerate(conversation.messages):
        probe.messages.append(_message(probe, number, message))
    return probe


def plain_probe(system: bool) -> Probe:
    """Two questions and answers, behind a system message or not."""
    roles = (["system"] if system else []) + ["user", "assistant"] * 2
    messages = [{"role": role, "content": "x"} for role in roles]
    return probe_of(Conversation(messages, None, {}, [], b""))


def _tool(probe: Probe, tool: dict[str, Any]) -> dict[str, Any]:
    inner = tool.get("function", tool)
    named = inner | {"name": probe.word(f"tools: {inner.get('name')}")}
    return tool | {"function": named} if "function" in tool else named


def _message(probe: Probe, number: int, message: dict[str, Any]) -> dict[str, Any]:
    where = f"of message {number + 1}"
    changed = dict(message)
    words: dict[str, str] = {}
    """Of thinking, by its text, which servers give under two keys."""

    def thought(text: str, key: str) -> str:
        if text.strip() not in words:
            words[text.strip()] = probe.word(f"the {key!r} {where}", message=number)
        return words[text.strip()]

    for key in _THINKING:
        if isinstance(message.get(key), str) and message[key].strip():
            changed[key] = thought(message[key], key)
    content = message.get("content") or ""
    before, end, said = content.rpartition(END_OF_THINKING) if message["role"] == "assistant" else ("", "", content)
    if end:
        inside = before.replace(THINK, "").strip()
        before = f"{THINK}\n{thought(inside, THINK) if inside else ''}\n"
        end += "\n\n"
    if said.strip():
        said = probe.word(f"the content {where}", message=number if message.get("tool_calls") else None)
    if content:
        changed["content"] = before + end + said
    if message.get("tool_calls"):
        changed["tool_calls"] = [_call(probe, call, where) for call in message["tool_calls"]]
    return changed


def _call(probe: Probe, call: dict[str, Any], where: str) -> dict[str, Any]:
    inner = call.get("function", call)
    name, arguments, told = inner.get("name"), inner.get("arguments"), f"tool calls: {inner.get('name')} {where}"
    # Kimi-K2's template writes the id alone, which has the name in it.
    number = call.get("id")
    others = [number] if isinstance(number, str) and isinstance(name, str) and name in number else []
    named = inner | {"name": probe.word(told, *others)}
    if arguments and isinstance(arguments, (dict, str)):
        word = probe.word(f"the arguments of {told}")
        named["arguments"] = {word: word} if isinstance(arguments, dict) else f'{{"{word}": "{word}"}}'
    return call | {"function": named} if "function" in call else named
