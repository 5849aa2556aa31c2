"""Which tokens of a conversation the assistant says: as transformers has it, whatever the template."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from megatron_cpt.checkpoint.new_tokenizer import add_tokens, read_tokenizer
from megatron_cpt.config.errors import BadInput
from megatron_cpt.preparation.chat_template import ChatTemplate, ConversationEncoder, TokenizedConversation
from megatron_cpt.preparation.conversations import Unusable, read_conversation
from megatron_cpt.tokenizer.tokenizer import Tokenizer
from tests.preparation.chats import (
    SPECIAL,
    SYSTEM_LAST,
    SYSTEM_LOST,
    TEMPLATES,
    marked,
    said,
    unmarked,
    write_chat_tokenizer,
)

Open = Callable[[str], ConversationEncoder]

TOOLS = {
    "messages": [
        {"role": "user", "content": "Weather in Rome?"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Rome"}}}]},
        {"role": "tool", "content": "sunny"},
        {"role": "assistant", "content": "It is sunny."},
        {"role": "user", "content": "Thanks"},
        {"role": "assistant", "content": "Welcome."},
    ],
    "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}],
}


OSLO: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "How is the weather in Oslo? Ask weather for the city."},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Oslo"}}}],
        },
        {"role": "tool", "content": "rain"},
        {"role": "assistant", "content": "It rains."},
    ],
    "tools": TOOLS["tools"],
}
"""Tool and arguments have names that the question has too."""
TOLD = [OSLO["messages"][0], OSLO["messages"][1] | {"content": "I look."}, *OSLO["messages"][2:]]
THOUGHT_BESIDE = {
    "messages": [
        {"role": "user", "content": "hm?"},
        {"role": "assistant", "content": "b", "reasoning_content": "hm"},
    ]
}
WITH_TOOLS_ALONE = "{{- tools | tojson -}}" + TEMPLATES["headers"]
_CALLS = "{%- for call in m.tool_calls or [] -%}{{- call.function.WRITTEN -}}{%- endfor -%}"
WITH_NAMES_OF_CALLS = WITH_TOOLS_ALONE.replace("«", "«" + _CALLS.replace("WRITTEN", "name"))
# As Llama-3.1's: of a message with calls these alone.
CALL_OR_CONTENT = TEMPLATES["thinking"].replace(
    "set said = m.content or ''", "set said = '' if m.tool_calls else m.content or ''"
)
# As the distilled models of DeepSeek-R1.
WITHOUT_THINKING = TEMPLATES["headers"].replace(
    "if m.role == 'assistant' -%}«{{- m.content", "if m.role == 'assistant' -%}«{{- m.content.split('</think>')[-1]"
)
# As Qwen3's, which takes thinking from a key too.
THINKING_BESIDE = TEMPLATES["thinking"].replace(
    "{%- set said = said.split", "{%- set thought = m.reasoning_content or thought -%}{%- set said = said.split"
)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Callable[[str | None], Path]:
    """The tokenizer with a template, each made once."""
    made: dict[str | None, Path] = {}

    def folder(template: str | None) -> Path:
        if template not in made:
            made[template] = write_chat_tokenizer(tmp_path_factory.mktemp("chat"), texts, template)
        return made[template]

    return folder


@pytest.fixture(scope="module")
def encoder_of(folder_of: Callable[[str], Path]) -> Open:
    opened: dict[str, ConversationEncoder] = {}

    def encoder(template: str) -> ConversationEncoder:
        if template not in opened:
            tokenizer = Tokenizer.load(folder_of(template), None, parse_special=True)
            opened[template] = ConversationEncoder(
                ChatTemplate.load(tokenizer), "responses", tokenizer.eod, None, truncate=False, control_tokens=False
            )
        return opened[template]

    return encoder


def counted(found: TokenizedConversation) -> list[int]:
    mask = np.zeros(len(found.ids), np.int64)
    for begin, end in found.spans:
        mask[begin:end] = 1
    return mask.tolist()


def texts_of(encoder: ConversationEncoder, found: TokenizedConversation) -> list[str]:
    return [encoder.template.tokenizer.decode(found.ids[begin:end]) for begin, end in found.spans]


def by_transformers(folder: Path, value: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Ids and assistant mask of a template that marks answers."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    found = tokenizer.apply_chat_template(
        value["messages"], tools=value.get("tools"), return_dict=True, return_assistant_tokens_mask=True
    )
    return found["input_ids"], found["assistant_masks"]


TURNS = st.lists(st.text("ab .\n1é漢😀<(", min_size=1, max_size=12).filter(str.strip), min_size=2, max_size=6).map(
    lambda texts: said(*texts[: len(texts) // 2 * 2])
)
THOUGHT = said("Hi", "<think>\nhm\n</think>\n\nHello!", "And?", "<think>\nso\n</think>\n\nx")


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=25, deadline=None)
@given(value=TURNS)
def test_answers_are_those_of_transformers_mask(
    folder_of: Callable[[str], Path], encoder_of: Open, name: str, value: dict[str, Any]
) -> None:
    """With marks they are the mask's; without, the same or the conversation is rejected, and why is said."""
    ids, mask = by_transformers(folder_of(marked(TEMPLATES[name])), value)
    for template in (marked(TEMPLATES[name]), unmarked(TEMPLATES[name])):
        encoder = encoder_of(template)
        try:
            found = encoder.encode(read_conversation(value))
        except Unusable as error:
            assert template == unmarked(TEMPLATES[name])
            assert "writes tokens otherwise in the whole conversation" in str(error)
            continue
        closed = [] if ids[-1] == encoder.eod else [encoder.eod]
        assert found.ids.tolist() == [*ids, *closed]
        assert counted(found) == [*mask, *(0 for _ in closed)]


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_of_several_turns_are_found_without_marks(
    folder_of: Callable[[str], Path], encoder_of: Open, name: str, system: str | None
) -> None:
    value = said("Hi there", "Hello!\n\nYou?", " What is 3+4? ", "It is 7.", "(", "(a) ]) [x]", system=system)
    encoder = encoder_of(unmarked(TEMPLATES[name]))
    if name == "alternating" and system:
        with pytest.raises(Unusable, match="the chat template refuses it: no system message is known"):
            encoder.encode(read_conversation(value))
        return
    found = encoder.encode(read_conversation(value))
    _, mask = by_transformers(folder_of(marked(TEMPLATES[name])), value)
    assert counted(found)[: len(mask)] == mask
    first, second, last = texts_of(encoder, found)
    assert ("Hello!\n\nYou?" in first, "It is 7." in second, "(a) ]) [x]" in last) == (True, True, True)


def test_thinking_that_the_template_drops_is_not_trained_on(folder_of: Callable[[str], Path], encoder_of: Open) -> None:
    encoder = encoder_of(unmarked(TEMPLATES["thinking"]))
    found = encoder.encode(read_conversation(THOUGHT))
    assert texts_of(encoder, found) == ["Hello!<|turn_end|>\n", "<think>\nso\n</think>\n\nx<|turn_end|>\n"]
    assert counted(found)[:-1] == by_transformers(folder_of(marked(TEMPLATES["thinking"])), THOUGHT)[1]


def test_thinking_of_earlier_turns_may_be_dropped_and_is_said_once(encoder_of: Open) -> None:
    """Under whichever keys: servers give it under two."""
    messages: Any = [dict(message) for message in said("a", "b", "c", "d")["messages"]]  # type: ignore[attr-defined]
    messages[1] |= {"reasoning_content": "so", "reasoning": "so"}
    messages[3] |= {"reasoning_content": "hm"}
    encoder = encoder_of(unmarked(THINKING_BESIDE))
    found = encoder.encode(read_conversation({"messages": messages}))
    assert texts_of(encoder, found) == ["b<|turn_end|>\n", "<think>\nhm\n</think>\n\nd<|turn_end|>\n"]
    with pytest.raises(Unusable, match="does not write the 'thinking' of message 4"):
        encoder.encode(read_conversation({"messages": [*messages[:3], messages[3] | {"thinking": "else"}]}))


def test_a_reason_names_what_this_conversation_has(encoder_of: Open) -> None:
    encoder = encoder_of(unmarked(TEMPLATES["headers"]))
    for name in ("weather", "tide"):
        with pytest.raises(Unusable, match=f"does not write tools: {name}$"):
            encoder.encode(read_conversation(said("a", "b") | {"tools": [{"function": {"name": name}}]}))


def test_calls_may_be_written_by_their_ids(encoder_of: Open) -> None:
    """As Kimi-K2's template does, with the name in the id."""
    template = TEMPLATES["thinking"].replace("(call.function | tojson)", "call.id + (call.function.arguments | tojson)")
    messages: Any = [dict(message) for message in OSLO["messages"]]
    messages[1]["tool_calls"] = [OSLO["messages"][1]["tool_calls"][0] | {"id": "functions.weather:0"}]
    encoder = encoder_of(unmarked(template))
    found = encoder.encode(read_conversation(OSLO | {"messages": messages}))
    assert 'functions.weather:0{"city": "Oslo"}' in texts_of(encoder, found)[0]


def test_calls_of_tools_are_answers_and_their_results_are_not(
    folder_of: Callable[[str], Path], encoder_of: Open
) -> None:
    encoder = encoder_of(unmarked(TEMPLATES["thinking"]))
    found = encoder.encode(read_conversation(TOOLS))
    call, answer, last = texts_of(encoder, found)
    assert '"name": "weather"' in call and "sunny" not in call
    assert answer == "It is sunny.<|turn_end|>\n" and last.endswith("Welcome.<|turn_end|>\n")
    assert counted(found)[:-1] == by_transformers(folder_of(marked(TEMPLATES["thinking"])), TOOLS)[1]


@pytest.mark.parametrize(
    ("template", "value", "reason"),
    [
        # The system message is in the first question of the prefix, and in the last one of the whole.
        (SYSTEM_LAST, said("a", "b", "c", "d", system="s"), "the chat template writes tokens otherwise.*message 3"),
        (
            SYSTEM_LOST,
            said("a", "b", "c", "d", system="s"),
            "the chat template does not write the content of message 1",
        ),
        (TEMPLATES["headers"], TOOLS, "the chat template does not write tools: weather"),
        (TEMPLATES["headers"], OSLO, "the chat template does not write tools: weather"),
        (WITH_TOOLS_ALONE, OSLO, "the chat template does not write tool calls: weather of message 2"),
        (WITH_NAMES_OF_CALLS, OSLO, "does not write the arguments of tool calls: weather of message 2"),
        (CALL_OR_CONTENT, {"messages": TOLD}, "the chat template does not write the content of message 2"),
        (TEMPLATES["headers"], THOUGHT_BESIDE, "the chat template does not write the 'reasoning_content' of message 2"),
        (WITHOUT_THINKING, said("a", "<think>b</think>c"), "does not write the '<think>' of message 2"),
        (TEMPLATES["alternating"], said("a", "b", system="s"), "refuses it: no system message is known"),
        (TEMPLATES["headers"], said("a <|head|> b", "c"), r"the text gives the control token <\|head\|>"),
        (TEMPLATES["headers"], said("a", "c <eos>"), "the text gives the control token <eos>"),
    ],
)
def test_conversations_that_a_template_does_not_tell_are_rejected(
    encoder_of: Open, template: str, value: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Unusable, match=reason):
        encoder_of(unmarked(template)).encode(read_conversation(value))


def test_tokens_around_messages_are_control_tokens_however_they_were_added(
    folder_of: Callable[[str | None], Path], tmp_path: Path
) -> None:
    """As `convert extend --new-tokens` adds them: none is special by its entry. Thinking may be said in a message."""
    template = unmarked(TEMPLATES["thinking"]).replace("|head|>", "|opens|>").replace("|turn_end|>", "|closes|>")
    folder = tmp_path / "extended"
    shutil.copytree(folder_of(None), folder)
    new = ["<|opens|>", "<|closes|>", "<think>", "</think>", "<call>", "Oslo", "user"]
    add_tokens(read_tokenizer(folder), new).save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(template)
    tokenizer = Tokenizer.load(folder, None, parse_special=True)
    encoder = ConversationEncoder(ChatTemplate.load(tokenizer), "responses", tokenizer.eod, None, False, False)
    assert {*encoder.template.control_names} == {*SPECIAL, "<|opens|>", "<|closes|>"}
    for text in ("a <|closes|>\n<|opens|>user", "<|opens|>"):
        for value in (said(text, "b"), said("a", text), said("a", "b", system=text)):
            with pytest.raises(Unusable, match=r"the text gives the control token <\|(open|close)s\|>"):
                encoder.encode(read_conversation(value))
    found = encoder.encode(read_conversation(said("Oslo, user?", "<think>x</think>Oslo", "c", "<think>so</think>d")))
    assert texts_of(encoder, found) == ["Oslo<|closes|>\n", "<think>\nso\n</think>\n\nd<|closes|>\n"]


def test_marks_tell_what_prefixes_do_not(folder_of: Callable[[str], Path], encoder_of: Open) -> None:
    value = said("a", "b", "c", "d", system="s")
    found = encoder_of(marked(SYSTEM_LAST)).encode(read_conversation(value))
    assert counted(found) == by_transformers(folder_of(marked(SYSTEM_LAST)), value)[1]


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_answer_that_is_not_to_count_is_left_out_alone(encoder_of: Open, name: str) -> None:
    """With marks and without."""
    value = said("a", "b c", "d", "e", "f", "g h")
    with_marks, without = (encoder_of(of(TEMPLATES[name])) for of in (marked, unmarked))
    whole = texts_of(with_marks, with_marks.encode(read_conversation(value)))
    for left_out in range(3):
        messages: Any = [dict(message) for message in value["messages"]]  # type: ignore[attr-defined]
        messages[2 * left_out + 1]["weight"] = 0
        for encoder in (with_marks, without):
            found = encoder.encode(read_conversation({"messages": messages}))
            assert texts_of(encoder, found) == whole[:left_out] + whole[left_out + 1 :]


def test_answers_that_marks_join_are_not_told_apart(encoder_of: Open) -> None:
    messages = [{"role": role, "content": "a"} for role in ("user", "assistant", "assistant")]
    with pytest.raises(Unusable, match="the chat template does not mark an answer by itself: message 3"):
        encoder_of(marked(TEMPLATES["brackets"])).encode(
            read_conversation({"messages": [*messages[:2], messages[2] | {"train": False}]})
        )


def test_a_comment_is_no_mark(encoder_of: Open) -> None:
    commented = "{#- Without {% generation %} -#}" + unmarked(TEMPLATES["headers"])
    encoder = encoder_of(commented)
    assert texts_of(encoder, encoder.encode(read_conversation(said("a", "b")))) == ["b<|turn_end|>"]


def test_eod_closes_a_conversation_once(encoder_of: Open) -> None:
    for name, ends in (("brackets", [0]), ("headers", [4, 0])):
        ids = encoder_of(unmarked(TEMPLATES[name])).encode(read_conversation(said("a", "b"))).ids.tolist()
        assert ids[-len(ends) :] == ends and ids.count(0) == 1


def test_a_long_conversation_is_cut_behind_the_last_answer_that_fits(encoder_of: Open) -> None:
    opened = encoder_of(unmarked(TEMPLATES["thinking"]))

    def encoder(max_length: int, truncate: bool) -> ConversationEncoder:
        return ConversationEncoder(opened.template, "responses", opened.eod, max_length, truncate, False)

    value = read_conversation(said("a", "b", "c", "d", "e", "f g h"))
    whole = len(opened.encode(value).ids)
    assert len(encoder(whole, False).encode(value).ids) == whole
    with pytest.raises(Unusable, match=rf"more than {whole - 1} tokens: {whole}"):
        encoder(whole - 1, False).encode(value)
    cut = encoder(whole - 1, True).encode(value)
    assert cut.truncated and not opened.encode(value).truncated
    shorter = opened.encode(read_conversation(said("a", "b", "c", "d")))
    assert (cut.ids.tolist(), cut.spans.tolist()) == (shorter.ids.tolist(), shorter.spans.tolist())
    with pytest.raises(Unusable, match="more than 5 tokens"):
        encoder(5, True).encode(value)


def test_a_tokenizer_without_a_template_is_refused(
    folder_of: Callable[[str | None], Path], tmp_path: Path, texts: list[str]
) -> None:
    with pytest.raises(BadInput, match=r"has no chat template\. .*chat_template\.jinja"):
        ChatTemplate.load(Tokenizer.load(folder_of(None), None, parse_special=True))
    # As the template was kept before transformers had a file for it.
    folder = write_chat_tokenizer(tmp_path / "old", texts, None)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    content = config | {"chat_template": unmarked(TEMPLATES["headers"])}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    assert ChatTemplate.load(Tokenizer.load(folder, None, parse_special=True)).renderer.chat_template
