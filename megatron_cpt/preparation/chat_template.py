"""Conversations to tokens, and which of them the assistant says, by the tokenizer's own chat template.

transformers runs the template, in jinja's sandbox. Where the template marks answers with `{% generation %}`, their
tokens are those of transformers' assistant mask. Where it does not, they are found by differences of prefixes:

1. An answer begins where the tokens of the messages before it end, with the template's generation prompt.
2. It ends where the tokens of the messages up to it end. A template may write an answer that others follow without its
   beginning (Qwen3 drops earlier thinking): then what it still writes must be the end of what it would have written.
3. Both must be tokens of the whole conversation, one for one. Where they are not, the conversation is rejected: a
   template that moves the system message to the last question writes such.

Answers whose messages say that they are not to count (`weight: 0`) are in no span.

A document is one conversation as the template writes it, and the EOD where it does not end in it. The template writes
BOS, if any.
"""

import hashlib
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import orjson

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.corpus.columns import LOSS_SPAN
from megatron_cpt.preparation.chat_probe import THINKING_TAGS, Probe, plain_probe, probe_of
from megatron_cpt.preparation.conversations import Conversation, Unusable
from megatron_cpt.tokenizer.formats import json_object
from megatron_cpt.tokenizer.tokenizer import Tokenizer

TrainOn = Literal["responses", "all"]
Ids = npt.NDArray[np.int32]

_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


@dataclass(frozen=True)
class TokenizedConversation:
    """A conversation in tokens."""

    ids: Ids
    """Its tokens, EOD included."""
    spans: npt.NDArray[np.void]
    """LOSS_SPAN[spans], ascending: the tokens of it that count in the loss. Empty where all do."""
    text: str
    """All that is said in it."""
    truncated: bool
    """Whether messages at its end were left out."""


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's chat template. `ChatTemplate.load` opens it."""

    tokenizer: Tokenizer
    """Makes the ids; control tokens that the template writes become such tokens."""
    renderer: Any
    """transformers' tokenizer of the same folder."""

    @staticmethod
    def load(tokenizer: Tokenizer) -> "ChatTemplate":
        """The template in the tokenizer's folder. Raises BadInput where there is none."""
        assert tokenizer.parses_special, "a template writes control tokens as text"
        folder = tokenizer.folder
        if not (folder / "tokenizer.json").is_file():
            rule = "has no tokenizer.json, and a chat template is that of a Hugging Face folder with one."
            raise BadInput(Fault(str(folder), rule, "Give the folder of the instruct model."))
        renderer = _opened(folder)
        if not renderer.chat_template:
            remedy = "Give the folder of the instruct model, or put its chat_template.jinja into a copy of this one."
            raise BadInput(Fault(str(folder), "has no chat template.", remedy))
        return ChatTemplate(tokenizer, renderer)

    @property
    def identity(self) -> str:
        """SHA-256 of the template and of the special tokens that it is told."""
        content = [self.renderer.chat_template, self.renderer.special_tokens_map]
        return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()

    def ids(self, conversation: Conversation) -> Ids:
        """The tokens of a conversation. Raises Unusable where the template refuses it, or leaves some of it out."""
        text = self._text(conversation)
        # All of a conversation that is left out without a word depends on its probe, which most have in common.
        probe = probe_of(conversation)
        key = hashlib.sha256(orjson.dumps([probe.messages, probe.tools])).digest()
        if key not in self._written:
            if len(self._written) >= _PROBES_KEPT:
                self._written.clear()
            self._written[key] = self._left_out(conversation, probe)
        left_out = self._written[key]
        if left_out is not None:
            raise Unusable(f"the chat template does not write {probe.parts[left_out].name}")
        return self._ids(text)

    @cached_property
    def control_names(self) -> list[str]:
        """The tokens that no message may have: the tokenizer's control tokens, and those around plain messages.

        A token that was added to a vocabulary (`convert extend`, transformers' add_tokens) is no control token by its
        entry in tokenizer.json. Words (`user`) are none, and <think> and </think> may be said: templates write them
        around no thinking.
        """
        around = "\n".join(part for system in (False, True) for part in self._around(plain_probe(system)))
        added = (name for name in self.renderer.get_added_vocab() if _IN_BRACKETS.fullmatch(name.strip()))
        added = (name for name in added if name in around and name not in THINKING_TAGS)
        return sorted({*self.tokenizer.control_names(), *added})

    @cached_property
    def _control_ids(self) -> Ids:
        numbers = (self.tokenizer.library.number_of(name) for name in self.control_names)
        return np.array([number for number in numbers if number is not None], np.int32)

    @cached_property
    def _written(self) -> dict[bytes, int | None]:
        """By the hash of a probe, which part the template leaves out of such conversations, as `_left_out` tells."""
        return {}

    def _left_out(self, conversation: Conversation, probe: Probe) -> int | None:
        """The number of the first part of a conversation that the template does not write. None: it writes all."""
        text = self._text(_conversation(conversation, probe))
        for number, part in enumerate(probe.parts):
            if any(word in text for word in part.words):
                continue
            if part.message is not None:
                last = self._text(_conversation(conversation, probe), part.message + 1)
                if any(word in last for word in part.words):
                    continue
            return number
        return None

    @cached_property
    def turn_end(self) -> int | None:
        """The control token by which an answer ends, at which a model is to stop. None: the template writes none."""
        behind = self._ids(self._behind_answer)
        closing = behind[np.isin(behind, self._control_ids)]
        return int(closing[0]) if len(closing) else None

    @cached_property
    def _behind_answer(self) -> str:
        """What the template writes behind the last answer; empty too where it refuses plain messages."""
        return self._around(plain_probe(system=False))[1]

    def unknown_stop(self) -> str | None:
        """What to say where transformers would not stop behind an answer, by the files of the tokenizer's folder."""
        folder = self.tokenizer.folder
        if self._behind_answer and self.turn_end is None:
            return (
                f"by the chat template of {folder}, answers end with {self._behind_answer!r}, which has no control "
                "token: a model learns to stop at the end of a conversation alone"
            )
        configs = (json_object(folder / name) for name in ("generation_config.json", "config.json"))
        stops = next((found for config in configs if (found := config.get("eos_token_id")) is not None), None)
        if stops is None or self.turn_end is None or self.turn_end in (stops if isinstance(stops, list) else [stops]):
            return None
        return (
            f"answers end with {self.renderer.convert_ids_to_tokens(self.turn_end)!r}, and by eos_token_id of {folder} "
            f"a model stops at {stops} alone: it would talk on. In generation_config.json of model.hf, which exports "
            f"copy, add {self.turn_end}"
        )

    def _around(self, probe: Probe) -> tuple[str, str]:
        """What the template writes around plain messages: up to the last question, and behind its answer.

        Between them a template may open an answer with thinking that is none.
        """
        try:
            text = self._text(Conversation(probe.messages, None, {}, [], b""))
        except Unusable:  # it takes no system message
            return "", ""
        question, answer = (probe.parts[place].words[0] for place in (-2, -1))
        return text.partition(question)[0], text.rpartition(answer)[2]

    def answers(self, conversation: Conversation, ids: Ids) -> list[list[int]]:
        """Where the answers that count begin and end among the `ids` of a conversation, ascending.

        Raises Unusable where the template does not tell.
        """
        marks = _GENERATION.search(self.renderer.get_chat_template(tools=conversation.tools))
        marked = self._marked(conversation, ids) if marks else []
        if marked and conversation.trained_answers != conversation.answers:
            return self._trained(conversation, marked)
        # The words may also stand in a comment.
        return marked or self._by_prefixes(conversation, ids)

    def _trained(self, conversation: Conversation, marked: list[list[int]]) -> list[list[int]]:
        """Of the marked spans of a conversation those of the answers that count: the marks that an answer adds."""
        bounds: list[list[int]] = []
        counted = 0
        for answer in conversation.answers:
            before, shorter = counted, replace(conversation, messages=conversation.messages[: answer + 1])
            counted = len(self._marked(shorter, self._ids(self._text(shorter))))
            if counted == before:
                raise Unusable(f"the chat template does not mark an answer by itself: message {answer + 1}")
            if answer in conversation.trained_answers:
                bounds += marked[before:counted]
        if counted != len(marked):
            raise Unusable("the chat template marks answers otherwise in the whole conversation")
        return bounds

    def _marked(self, conversation: Conversation, ids: Ids) -> list[list[int]]:
        """Where the answers begin and end that the template marks, by transformers' mask."""
        found = self.renderer.apply_chat_template(
            conversation.messages, tools=conversation.tools, return_dict=True, return_assistant_tokens_mask=True
        )
        if not np.array_equal(found["input_ids"], ids):
            rule = "gives other ids in transformers than its tokenizer.json says."
            remedy = "Save the tokenizer again with transformers' save_pretrained."
            raise BadInput(Fault(str(self.tokenizer.folder), rule, remedy))
        mask = np.array([0, *found["assistant_masks"], 0])
        bounds: list[list[int]] = np.flatnonzero(np.diff(mask)).reshape(-1, 2).tolist()
        return bounds

    def _by_prefixes(self, conversation: Conversation, whole: Ids) -> list[list[int]]:
        """Where the answers that count begin and end, by differences of prefixes."""
        bounds: list[list[int]] = []
        for answer in conversation.trained_answers:
            prompt = self._ids(self._text(conversation, answer, add_generation_prompt=True))
            is_last = answer + 1 == len(conversation.messages)
            written = whole if is_last else self._ids(self._text(conversation, answer + 1))
            begin = len(prompt)
            if not (_begins(whole, prompt) and _begins(written, prompt)):
                raise Unusable(f"{_NOT_A_PREFIX}: those before message {answer + 1}")
            length = self._kept(written[begin:], whole[begin:])
            if length is None:
                raise Unusable(f"{_NOT_A_PREFIX}: those of message {answer + 1}")
            if bounds and bounds[-1][1] == begin:
                bounds[-1][1] = begin + length
            else:
                bounds.append([begin, begin + length])
        return bounds

    def _kept(self, written: Ids, whole: Ids) -> int | None:
        """Tokens of an answer in the whole conversation, given how it is written where nothing follows.

        They are all of it, or its end. That has to have the control token that closes it, which is there once, since
        none is in a text: so no shorter end is taken for it. None: they are neither.
        """
        closing = np.flatnonzero(np.isin(written, self._control_ids))
        last = int(closing[-1]) if len(closing) else 0
        for dropped in (0, *(np.flatnonzero(written[1 : last + 1] == whole[:1]) + 1).tolist()):
            if len(written) > dropped and _begins(whole, written[dropped:]):
                return len(written) - dropped
        return None

    def _ids(self, text: str) -> Ids:
        return self.tokenizer.encode_batch([text])[0]

    def _text(self, conversation: Conversation, end: int | None = None, add_generation_prompt: bool = False) -> str:
        """What the template writes of the messages before the one numbered `end`. Raises Unusable where it refuses."""
        try:
            text: str = self.renderer.apply_chat_template(
                conversation.messages[:end],
                tools=conversation.tools,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )
        except Exception as error:  # The template is a program: it fails in its own ways.
            raise Unusable(f"the chat template refuses it: {error}") from None
        return text


_IN_BRACKETS = re.compile(r"[^\w\s].*\w.*[^\w\s]")
"""Names of tokens that are no words: <|im_start|>, [INST]."""
_PROBES_KEPT = 4096
"""Results of probes that are kept: conversations that each have tools of their own have probes of their own."""
_NOT_A_PREFIX = (
    "the chat template writes tokens otherwise in the whole conversation, and marks no answers with {% generation %}"
)


def _conversation(conversation: Conversation, probe: Probe) -> Conversation:
    return replace(conversation, messages=probe.messages, tools=probe.tools)


def _begins(whole: Ids, prefix: Ids) -> bool:
    return np.array_equal(whole[: len(prefix)], prefix)


@dataclass(frozen=True)
class ConversationEncoder:
    """What is done to every conversation."""

    template: ChatTemplate
    train_on: TrainOn
    """`responses`: only what the assistant says counts in the loss; `all`: all tokens do."""
    eod: int | None
    """Closes each conversation. None: nothing does."""
    max_length: int | None
    """Tokens that one has at most. None: any number."""
    truncate: bool
    """Whether a longer one is cut behind the last answer with which it fits, rather than rejected."""
    control_tokens: bool
    """Whether control tokens that the messages give are meant (--parse-special), and no reason to reject them."""

    def encode(self, conversation: Conversation) -> TokenizedConversation:
        """A conversation in tokens.

        Raises Unusable where it is too long, gives a control token or is to count otherwise than `train_on` says, or
        the template refuses it or does not tell its answers.
        """
        self._refuse_marks(conversation)
        if not self.control_tokens:
            self._refuse_control_tokens(conversation)
        fitting, ids = self._fitting(conversation)
        spans = [] if self.train_on == "all" else self.template.answers(fitting, ids)
        return TokenizedConversation(
            self._closed(ids),
            np.array([tuple(span) for span in spans], LOSS_SPAN),
            text=fitting.text,
            truncated=fitting is not conversation,
        )

    def _fitting(self, conversation: Conversation) -> tuple[Conversation, Ids]:
        """The conversation, or its beginning, with at most `max_length` tokens; and these, without EOD."""
        whole = self.template.ids(conversation)
        if self._fits(whole):
            return conversation, whole
        for answer in reversed(conversation.trained_answers if self.truncate else []):
            shorter = replace(conversation, messages=conversation.messages[: answer + 1])
            ids = self.template.ids(shorter)
            if self._fits(ids):
                return shorter, ids
        raise Unusable(f"more than {self.max_length:,} tokens: {len(self._closed(whole)):,}")

    def _refuse_marks(self, conversation: Conversation) -> None:
        for number, counts in conversation.marked.items():
            if counts and self.train_on == "responses" and number not in conversation.answers:
                raise Unusable(f"marked to count in the loss, and no answer: message {number + 1}")
            if not counts and self.train_on == "all":
                raise Unusable(f"marked not to count in the loss, where all tokens do: message {number + 1}")

    def _fits(self, ids: Ids) -> bool:
        return self.max_length is None or len(self._closed(ids)) <= self.max_length

    @cached_property
    def _control_tokens(self) -> re.Pattern[str]:
        names = sorted(self.template.control_names, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)) or r"(?!)")

    def _refuse_control_tokens(self, conversation: Conversation) -> None:
        for text in conversation.strings():
            if found := self._control_tokens.search(text):
                raise Unusable(f"the text gives the control token {found.group()}")

    def _closed(self, ids: Ids) -> Ids:
        """With EOD at the end, once."""
        return ids if self.eod is None or ids[-1:].tolist() == [self.eod] else np.append(ids, np.int32(self.eod))


def _opened(folder: Path) -> Any:
    """transformers' tokenizer over the folder's tokenizer.json. No code of the folder is executed."""
    # It takes seconds to import.
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    try:
        return PreTrainedTokenizerFast.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, model_max_length=1 << 62
        )
    except Exception as error:  # transformers raises several kinds for what it cannot read
        rule = f"is not read by transformers ({error})."
        remedy = "Save the tokenizer again with transformers' save_pretrained."
        raise BadInput(Fault(str(folder), rule, remedy)) from error
