"""Conversations to a dataset whose answers alone count in the loss."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_cpt.commands.dispatch import main
from megatron_cpt.config.errors import BadInput, IntegrityFault
from megatron_cpt.corpus.columns import LOSS_SPAN, column_path
from megatron_cpt.corpus.indexed import IndexedDataset
from megatron_cpt.corpus.manifest import load_manifest, loss_spans, verify_dataset
from megatron_cpt.corpus.selection import concatenate
from megatron_cpt.corpus.stream import TokenStream
from megatron_cpt.preparation.conversations import Unusable, read_conversation
from megatron_cpt.preparation.job import PrepareSettings
from megatron_cpt.preparation.prepare import Shard, merge, prepare, prepare_shard
from megatron_cpt.quality.select import HowMany, select
from megatron_cpt.runs.folder import ExitCode
from megatron_cpt.tokenizer.tokenizer import Tokenizer
from tests.preparation.chats import TEMPLATES, said, unmarked, write_chat_tokenizer, write_conversations

CHAT = PrepareSettings(train_on="responses", keep_duplicates=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    return write_chat_tokenizer(tmp_path_factory.mktemp("chat"), texts, unmarked(TEMPLATES["thinking"]))


def marks(*added: dict[str, Any]) -> dict[str, Any]:
    """A conversation whose messages have further keys."""
    messages: Any = said(*(f"text {n}" for n in range(len(added))))["messages"]
    return {"messages": [message | more for message, more in zip(messages, added, strict=True)]}


def many(count: int) -> list[object]:
    """Conversations of one to three turns."""
    return [
        said(*(text for turn in range(n % 3 + 1) for text in (f"Question {n} {turn}?", f"Answer {n}, part {turn}.")))
        for n in range(count)
    ]


def answers(prefix: Path, folder: Path) -> list[list[str]]:
    """The text of each document's spans."""
    tokenizer, dataset = Tokenizer.load(folder), IndexedDataset(prefix)
    spans = loss_spans(prefix, load_manifest(prefix))
    owners = dataset.document_starts.searchsorted(spans["begin"], side="right") - 1
    found: list[list[str]] = [[] for _ in range(dataset.documents)]
    for owner, (begin, end) in zip(owners.tolist(), spans.tolist(), strict=True):
        found[owner].append(tokenizer.decode(dataset.tokens[begin:end]))
    return found


def expected(value: Any) -> list[str]:
    said_by = [message["content"] for message in value["messages"] if message["role"] == "assistant"]
    return [*(f"{text}<|turn_end|>\n" for text in said_by[:-1]), f"<think>\n\n</think>\n\n{said_by[-1]}<|turn_end|>\n"]


def test_spans_follow_their_conversations_whatever_the_order(folder: Path, tmp_path: Path) -> None:
    values = many(200)
    corpus = [str(write_conversations(tmp_path / "chat.jsonl", values))]
    wanted = sorted(map(expected, values))
    prepared = prepare(corpus, folder, tmp_path / "all", CHAT)
    assert sorted(answers(tmp_path / "all", folder)) == wanted
    manifest = prepared.training
    assert manifest == load_manifest(tmp_path / "all") == verify_dataset(tmp_path / "all")
    assert (manifest.documents, manifest.bos, manifest.eod) == (200, None, 0)
    spans = loss_spans(tmp_path / "all", manifest)
    assert manifest.loss_tokens == (spans["end"] - spans["begin"]).sum()

    prepare(corpus, folder, tmp_path / "read", replace(CHAT, order="as_read"))
    assert answers(tmp_path / "read", folder) == list(map(expected, values))

    prepare(corpus, folder, tmp_path / "split", replace(CHAT, holdout=0.2))
    parts = [answers(tmp_path / name, folder) for name in ("split", "split.validation")]
    assert min(map(len, parts)) > 20
    assert sorted(parts[0] + parts[1]) == wanted

    for number in (2, 1):
        prepare_shard(corpus, folder, tmp_path / "shards", CHAT, Shard(number, 2))
    merge(tmp_path / "shards")
    for ending in ("bin", "idx", "loss_spans.npy"):
        assert (tmp_path / f"shards.{ending}").read_bytes() == (tmp_path / f"all.{ending}").read_bytes()


def test_one_conversation_in_four_forms_is_one_document(folder: Path, tmp_path: Path) -> None:
    forms = [
        {"messages": [{"role": "user", "content": "Why?\n\nx"}, {"role": "assistant", "content": "So."}]},
        {"conversations": [{"from": "human", "value": "Why?\n\nx"}, {"from": "gpt", "value": "So."}]},
        {"conversations": [{"role": "user", "content": "Why?\n\nx"}, {"role": "assistant", "content": "So."}]},
        {"instruction": "Why?", "input": "x", "output": "So."},
        {"prompt": "Why?\n\nx", "response": "So.", "source": "somewhere"},
    ]
    prepared = prepare(
        [str(write_conversations(tmp_path / "a.jsonl", forms))],
        folder,
        tmp_path / "out",
        replace(CHAT, keep_duplicates=False),
    )
    assert (prepared.training.documents, prepared.training.duplicates) == (1, 4)
    assert answers(tmp_path / "out", folder) == [["<think>\n\n</think>\n\nSo.<|turn_end|>\n"]]
    text = Tokenizer.load(folder).decode(IndexedDataset(tmp_path / "out").document(0))
    assert text.startswith("<|head|>user\nWhy?\n\nx<|turn_end|>\n<|head|>assistant\n")


def test_answers_that_are_not_to_count_do_not(folder: Path, tmp_path: Path) -> None:
    """And what is published of them: OpenAI's and Mistral's weight, axolotl's train, ms-swift's loss, TRL's prompt."""
    turns = [("Why?", "Not so."), ("And?", "So.")]
    sharegpt = [
        {"from": who, "value": text, "weight": float(text == "So.")}
        for turn in turns
        for who, text in zip(("human", "gpt"), turn, strict=True)
    ]
    values: list[Any] = [
        marks({}, {"weight": 0}, {}, {"weight": 1}),
        marks({"train": False}, {"train": False}, {}, {}),
        marks({}, {"loss": False}, {}, {"loss": True}),
        marks({}, {"weight": None}, {}, {"weight": 0}),
        {"conversations": sharegpt},
        {
            "prompt": said("Why?", "Not so.", "And?")["messages"],
            "completion": [{"role": "assistant", "content": "So."}],
        },
        {"prompt": "And?", "completion": "So."},
        {"instruction": "And?", "output": "So.", "history": [list(turns[0])]},
        {"instruction": "And?", "output": "So.", "history": [], "system": "s"},
    ]
    end, thought = "<|turn_end|>\n", "<think>\n\n</think>\n\n"
    first, last, so = f"text 1{end}", f"{thought}text 3{end}", f"{thought}So.{end}"
    wanted = [[last], [last], [last], [first], [so], [so], [so], [f"Not so.{end}", so], [so]]
    corpus = [str(write_conversations(tmp_path / "chat.jsonl", values))]
    prepare(corpus, folder, tmp_path / "out", replace(CHAT, order="as_read"))
    assert answers(tmp_path / "out", folder) == wanted
    dataset, tokenizer = IndexedDataset(tmp_path / "out"), Tokenizer.load(folder)
    for number in (4, 5, 7):  # the turns before stand there, and no mark
        text = tokenizer.decode(dataset.document(number))
        assert text.startswith(f"<|head|>user\nWhy?{end}<|head|>assistant\nNot so.{end}<|head|>user\nAnd?{end}")

    prepared = prepare(corpus, folder, tmp_path / "once", replace(CHAT, keep_duplicates=False))
    assert prepared.training.duplicates == 3  # of a conversation in other forms, where the same answers count


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "marked to count in the loss, and no answer: message 3"),
        (["--train-on", "all"], "marked not to count in the loss, where all tokens do: message 2"),
    ],
)
def test_marks_that_the_command_contradicts_are_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], reason: str
) -> None:
    values: list[object] = [marks({}, {"train": False}, {"train": True}, {"train": True})]
    corpus = str(write_conversations(tmp_path / "chat.jsonl", values))
    command = ["prepare", corpus, "--tokenizer", str(folder), "--output", str(tmp_path / "out"), "--chat", *words]
    assert main(command) == ExitCode.BAD_INPUT
    assert reason in capsys.readouterr().err


def test_a_longer_conversation_is_cut_behind_an_answer_that_counts(folder: Path, tmp_path: Path) -> None:
    untrained = {"weight": 0}
    values: list[object] = [marks({}, first, {}, untrained, {}, {}) for first in ({}, untrained)]
    corpus = [str(write_conversations(tmp_path / "chat.jsonl", values))]
    cutting = replace(CHAT, order="as_read", max_length=70, truncate=True, max_rejected=0.5)
    prepared = prepare(corpus, folder, tmp_path / "out", cutting)
    assert (prepared.training.documents, prepared.training.rejected) == (1, 1)
    assert answers(tmp_path / "out", folder) == [["<think>\n\n</think>\n\ntext 1<|turn_end|>\n"]]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"text": "x"}, "no key 'messages', 'conversations', 'instruction' or 'prompt'"),
        ({"messages": "x"}, "'messages' is not a list of messages"),
        ({"messages": []}, "no answer: no message of the role assistant"),
        ({"messages": [{"content": "x"}]}, "no role: message 1"),
        ({"conversations": [{"from": "ghost", "value": "x"}]}, "unknown role: 'ghost' of message 1"),
        ({"conversations": [{"from": None, "value": "x"}]}, "no role: message 1"),
        (said("a", " \n"), "empty answer: message 2"),
        (said("a", "b", "", "c"), "empty question: message 3"),
        ({"messages": said("a", "b")["messages"][1:]}, "no question before the answer: message 1"),  # type: ignore[index]
        ({"messages": [{"role": "user", "content": ["x"]}]}, "content is not a string: message 1"),
        (said("a"), "no answer: no message of the role assistant"),
        ({"instruction": "a", "input": "", "output": ""}, "empty answer: message 2"),
        ({"instruction": "a"}, "a question without an answer: no key 'output'"),
        ({"instruction": ["a"], "output": "b"}, "the question is not a string"),
        ({"prompt": ["a"], "response": "b"}, "'prompt' is neither a string nor a list of messages"),
        ({"prompt": "a", "chosen": "b"}, "a question without an answer: no key 'response' or 'completion'"),
        ({"prompt": "a", "response": "b", "completion": "c"}, "two answers: 'response' and 'completion'"),
        ({"prompt": "a", "response": "b", "system": {"content": "s"}}, "'system' is not a string"),
        ({"prompt": "a", "response": "b", "system": 0}, "'system' is not a string"),
        (said("a", "b", system="s") | {"system": "t"}, "two system messages: 'system' and message 1"),
        (
            said("a", "b") | {"history": [["c", "d"]]},
            "'history' stands beside 'messages', and its text is that of no message",
        ),
        (
            said("a", "b") | {"prompt": "a", "response": "c"},
            "'response' stands beside 'messages', and its text is that of no message",
        ),
        (
            said("a", "b") | {"conversations": [{"from": "human", "value": "c"}]},
            "'conversations' stands beside 'messages', and its text is that of no message",
        ),
        (
            {"instruction": "a", "output": "b", "prompt": "a", "completion": "c"},
            "'completion' stands beside 'instruction', and its text is that of no message",
        ),
        (
            {"prompt": "a", "input": "c", "response": "b"},
            "'input' stands beside 'prompt', and its text is that of no message",
        ),
        (
            {"prompt": "a", "response": "b", "system_prompt": "s"},
            "'system_prompt' stands beside 'prompt', and its text is that of no message",
        ),
        (
            said("Yes or no?", "Yes.") | {"prompt": "x", "response": "no"},
            "'response' stands beside 'messages', and its text is that of no message",
        ),
        (
            said("a", "b") | {"chat_template_kwargs": {"enable_thinking": False}},
            "'chat_template_kwargs' stands beside the messages, and is not known",
        ),
        (said("a", "b") | {"images": ["a.png"]}, "'images' stands beside the messages, and is not known"),
        (said("a", "b") | {"weight": 0}, "'weight' stands beside the messages, and is known only in them: 0"),
        (said("a", "b") | {"weight": 0.5}, "'weight' stands beside the messages, and is known only in them: 0.5"),
        (said("a", "b") | {"train": False}, "'train' stands beside the messages, and is known only in them: False"),
        (
            {"instruction": "a", "output": "b", "loss": False},
            "'loss' stands beside the messages, and is known only in them: False",
        ),
        (
            said("a", "b") | {"loss_scale": [0, 1]},
            "'loss_scale' is not known, an answer counts as a whole or not at all",
        ),
        (
            {"prompt": said("a", "b", "c")["messages"], "completion": "d", "history": [["e", "f"]]},
            "'history' and a 'prompt' that is a list both hold the turns before",
        ),
        (
            marks({}, {"function_call": {"name": "f", "arguments": "{}"}}),
            "'function_call' is OpenAI's older form of 'tool_calls', and not known: message 2",
        ),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "function_call": {"name": "f"}}]},
            "'function_call' is OpenAI's older form of 'tool_calls', and not known: message 2",
        ),
        (
            said("a", "b") | {"functions": [{"name": "f"}]},
            "'functions' is OpenAI's older form of 'tools', and not known",
        ),
        (
            {"prompt": "a", "completion": "b", "label": False},
            "'label' is False: the answer is one that is not to be given",
        ),
        (said("a", "b") | {"kto_tag": "false"}, "'kto_tag' is 'false': the answer is one that is not to be given"),
        (said("a", "b") | {"label": 0}, "'label' is 0: the answer is one that is not to be given"),
        ({"instruction": " ", "input": "", "output": "b"}, "empty question: message 1"),
        ({"instruction": "a", "output": "b", "history": "c"}, "'history' is not a list of [question, answer]"),
        ({"instruction": "a", "output": "b", "history": [["c"]]}, "'history' is not a list of [question, answer]"),
        ({"instruction": "a", "output": "b", "history": [["c", ""]]}, "empty answer: message 2"),
        (marks({}, {"weight": 0.5}), "'weight' is neither 0 nor 1, false nor true: 0.5 of message 2"),
        (marks({}, {"train": "no"}), "'train' is neither 0 nor 1, false nor true: 'no' of message 2"),
        (marks({}, {"weight": 1, "train": False}), "'weight' and 'train' contradict each other: message 2"),
        (
            marks({}, {"train_detail": []}),
            "'train_detail' is not known, an answer counts as a whole or not at all: message 2",
        ),
        (marks({}, {"weight": 0}, {}, {"loss": False}), "no answer counts in the loss"),
        (said("a", "b") | {"tools": "{"}, "'tools' is not JSON"),
        (said("a", "b") | {"tools": "{}x"}, "'tools' is not JSON"),
        (said("a", "b") | {"tools": ["x"]}, "'tools' is not a list of JSON schemas"),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": ["x"]}]},
            "'tool_calls' is not a list of calls: message 2",
        ),
    ],
)
def test_what_is_no_conversation_is_rejected_with_the_reason(value: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unusable) as caught:
        read_conversation(value)
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    "value",
    [
        {"messages": None, "conversations": None, "instruction": "a", "input": None, "output": "b", "system": None},
        {"instruction": None, "prompt": "a", "response": None, "completion": "b", "history": None, "tools": None},
        {"instruction": "", "input": "a", "output": "b"},
        {"instruction": "a", "output": "b", "label": True},
        {"instruction": "a", "output": "b", "label": "class 3"},
        # What is said twice is not lost, and a question without an answer is no conversation.
        {"prompt": "a", "prompt_id": "x", "weight": 1, "train": True} | said("a", "b"),
        {"prompt": "Question: a\nAnswer: b", "instruction": "a", "output": "b"},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": " b"}]} | said("a", "b"),
        {"functions": [], "history": [], "images": [], "chat_template_kwargs": {}} | said("a", "b"),
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "function_call": None}]},
    ],
)
def test_keys_without_a_value_and_copies_are_no_reason(value: dict[str, Any]) -> None:
    """Lines of merged tables, which have every column in every row."""
    assert read_conversation(value).messages == said("a", "b")["messages"]


def test_system_messages_stand_first_wherever_they_are_kept() -> None:
    inside = read_conversation(said("a", "b", system="s"))
    beside = read_conversation({"system": "s", "instruction": "a", "output": "b"})
    assert inside.messages == beside.messages and inside.canonical == beside.canonical
    twice = read_conversation(said("a", "b", system="s") | {"system": "s"})
    assert twice.canonical == inside.canonical
    assert read_conversation(said("a", "b") | {"system": " "}).messages == said("a", "b")["messages"]


def test_the_command_lists_what_it_rejects_and_cuts(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = [*many(20), said("a", ""), said("a", "<|head|>"), said("a " * 300, "b"), said("a", "b", "c", "d " * 300)]
    corpus = str(write_conversations(tmp_path / "chat.jsonl", values))
    words = ["prepare", corpus, "--tokenizer", str(folder), "--output", str(tmp_path / "out"), "--chat", "--quiet"]
    words += ["--max-length", "300", "--truncate"]
    assert main(words) == ExitCode.BAD_INPUT
    assert "3 of 24 documents: were rejected, more than 1.00%" in capsys.readouterr().err
    assert main([*words, "--max-rejected", "20%"]) == 0
    told = capsys.readouterr().out
    assert "of the tokens count in the loss" in told and "cut 1 conversations behind an answer" in told
    entries = [json.loads(line) for line in (tmp_path / "out.rejected.jsonl").read_text().splitlines()]
    assert [(entry["line"], entry["reason"].partition(":")[0]) for entry in entries] == [
        (21, "empty answer"),
        (22, "the text gives the control token <|head|>"),
        (23, "more than 300 tokens"),
    ]
    manifest = load_manifest(tmp_path / "out")
    assert (manifest.documents, manifest.rejected, manifest.truncated) == (21, 3, 1)
    kept = [*values[:20], said("a", "b")]
    assert manifest.bytes == sum(len(read_conversation(value).text) for value in kept)  # type: ignore[arg-type]
    assert np.diff(IndexedDataset(tmp_path / "out").document_starts).max() <= 300
    assert main([*words, "--max-rejected", "20%"]) == 0
    assert "already complete" in capsys.readouterr().out


def test_all_tokens_count_where_that_is_asked_for(folder: Path, tmp_path: Path) -> None:
    corpus = [str(write_conversations(tmp_path / "chat.jsonl", many(30)))]
    prepare(corpus, folder, tmp_path / "out", CHAT)
    assert TokenStream([tmp_path / "out"]).has_own_mask
    prepare(corpus, folder, tmp_path / "out", replace(CHAT, train_on="all"), overwrite=True)
    assert load_manifest(tmp_path / "out").loss_spans_sha256 is None
    assert not TokenStream([tmp_path / "out"]).has_own_mask
    assert not column_path(tmp_path / "out", "loss_spans").exists()


def test_another_template_is_another_dataset(folder: Path, tmp_path: Path, texts: list[str]) -> None:
    corpus = [str(write_conversations(tmp_path / "chat.jsonl", many(30)))]
    prepare(corpus, folder, tmp_path / "out", CHAT)
    assert prepare(corpus, folder, tmp_path / "out", CHAT).reused
    other = write_chat_tokenizer(tmp_path / "other", texts, unmarked(TEMPLATES["headers"]))
    with pytest.raises(BadInput, match=r"made otherwise .*chat_template"):
        prepare(corpus, other, tmp_path / "out", CHAT)


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--truncate"], "--truncate without --chat"),
        (["--train-on", "all"], "--train-on: is of conversations"),
        (["--chat", "--truncate"], "--truncate: needs a length"),
        (["--chat", "--text-key", "body"], "--chat and --text-key"),
        (["--chat", "--text-key", "text"], "--chat and --text-key"),
        (["--chat", "--keep-newlines"], "--keep-newlines: is of sentences"),
        (["--chat", "--lang", "english"], "--lang: is of sentences"),
        (["--lang", "german"], "--lang: is of sentences"),
        (["--chat", "--id-key", "idd"], "--id-key idd: none of the documents has such a key"),
        (["--chat", "--bos", "always"], "--chat and --bos"),
        (["--chat", "--split-sentences"], "--chat and --split-sentences"),
        (["--chat", "--document-per-line"], "--chat and --document-per-line"),
    ],
)
def test_words_that_contradict_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], fault: str
) -> None:
    corpus = str(write_conversations(tmp_path / "chat.jsonl", many(3)))
    assert main(["prepare", corpus, "--tokenizer", str(folder), "--output", str(tmp_path / "o"), *words]) == 2
    assert fault in capsys.readouterr().err


def test_an_answer_that_is_not_written_is_not_trained_on(
    tmp_path: Path, texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The question has the name of the tool in it, and the template knows none."""
    called = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "weather", "arguments": {}}}]}
    asked = {"role": "user", "content": "How is the weather in Oslo?"}
    rest = [{"role": "tool", "content": "rain"}, {"role": "assistant", "content": "It rains."}]
    value = {"messages": [asked, called, *rest], "tools": [{"function": {"name": "weather"}}]}
    folder = write_chat_tokenizer(tmp_path / "chat", texts, unmarked(TEMPLATES["headers"]))
    corpus = write_conversations(tmp_path / "chat.jsonl", [value])
    words = ["prepare", str(corpus), "--tokenizer", str(folder), "--output", str(tmp_path / "out"), "--chat"]
    assert main(words) == ExitCode.BAD_INPUT
    assert "the chat template does not write tools: weather" in capsys.readouterr().err
    write_conversations(corpus, [value | {"tools": None}])
    assert main(words) == ExitCode.BAD_INPUT
    assert "the chat template does not write tool calls: weather of message 2" in capsys.readouterr().err


def test_a_dry_run_warns_of_ids_that_are_not_there(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = [value | {"id": n} for n, value in enumerate(many(3))]  # type: ignore[operator]
    corpus = str(write_conversations(tmp_path / "chat.jsonl", values))
    words = ["prepare", corpus, "--tokenizer", str(folder), "--output", str(tmp_path / "o"), "--chat", "--limit", "9"]
    for key in ("id", "idd"):
        assert main([*words, "--id-key", key]) == 0
        warned = "warning: none of the documents has the key 'idd' of --id-key" in capsys.readouterr().out
        assert warned == (key == "idd")


@pytest.mark.parametrize("stops", [None, "<eos>", "<|turn_end|>", ["<eos>", "<|turn_end|>"]])
def test_a_model_that_would_not_stop_behind_an_answer_is_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stops: str | list[str] | None
) -> None:
    """transformers stops at the ids of generation_config.json, or else of config.json; the data end answers."""
    model = shutil.copytree(folder, tmp_path / "model")
    number = Tokenizer.load(model).library.number_of
    if stops is not None:
        ids = number(stops) if isinstance(stops, str) else [number(name) for name in stops]
        (model / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    corpus = str(write_conversations(tmp_path / "chat.jsonl", many(3)))
    words = ["prepare", corpus, "--tokenizer", str(model), "--output", str(tmp_path / "out"), "--chat", "--quiet"]
    assert main(words) == 0
    warned = f"answers end with '<|turn_end|>', and by eos_token_id of {model} a model stops at {number('<eos>')} alone"
    assert (warned in capsys.readouterr().err) == (stops == "<eos>")


def test_conversations_in_a_text_file_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("user: hi")
    with pytest.raises(BadInput, match="is no JSON lines"):
        prepare([str(tmp_path / "a.txt")], folder, tmp_path / "out", CHAT)


def loss_texts(stream: TokenStream, folder: Path) -> str:
    """What counts of one pass over a stream."""
    counts = stream.counts_in_loss(0, stream.tokens, None)
    return Tokenizer.load(folder).decode(stream.read(0, stream.tokens)[counts])


def test_selections_and_joined_datasets_keep_their_answers(folder: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.jsonl"
    plain.write_text("".join(json.dumps({"text": f"Plain text {n}."}) + "\n" for n in range(5)))
    read = PrepareSettings(order="as_read")
    prepare([str(plain)], folder, tmp_path / "plain", read)
    for name, values in (("one", many(6)), ("two", [said("x", "Only this.")])):
        corpus = [str(write_conversations(tmp_path / f"{name}.jsonl", values))]
        prepare(corpus, folder, tmp_path / name, replace(CHAT, order="as_read"))

    prefixes = [tmp_path / name for name in ("one", "plain", "two")]
    together = "".join(loss_texts(TokenStream([prefix]), folder) for prefix in prefixes)
    assert loss_texts(TokenStream(prefixes), folder) == together
    assert "Plain text 3." in together and "Question" not in together
    joined = concatenate(prefixes, tmp_path / "joined")
    assert joined == verify_dataset(tmp_path / "joined")
    assert loss_texts(TokenStream([tmp_path / "joined"]), folder) == together
    counts = TokenStream([tmp_path / "joined"]).counts_in_loss(0, joined.tokens, None)
    assert joined.loss_tokens == counts.sum()

    np.save(tmp_path / "one.score.npy", np.array([0.0, 9.0, 1.0, 9.0, 9.0, 2.0]))
    few = HowMany(documents=3)
    chosen = select([str(tmp_path / "one")], tmp_path / "few", few, keep="lowest", by="score").selection
    wanted = answers(tmp_path / "one", folder)
    assert loss_texts(TokenStream([chosen.path]), folder) == "".join("".join(wanted[n]) for n in (0, 2, 5))


def test_conversations_are_scored_by_a_field_of_theirs(folder: Path, tmp_path: Path) -> None:
    values = [value | {"quality": {"score": n / 2}} for n, value in enumerate(many(9))]  # type: ignore[operator]
    corpus = str(write_conversations(tmp_path / "chat.jsonl", values))
    prepare([corpus], folder, tmp_path / "out", replace(CHAT, order="as_read"))
    assert main(["score", str(tmp_path / "out"), "--by", "field", "--field", "quality.score", "--name", "q"]) == 0
    assert np.load(tmp_path / "out.q.npy").tolist() == [n / 2 for n in range(9)]


@pytest.mark.parametrize("damage", ["gone", "one bit", "another's"])
def test_spans_that_are_not_what_was_written_are_found(folder: Path, tmp_path: Path, damage: str) -> None:
    for name, count in (("out", 9), ("other", 10)):
        corpus = [str(write_conversations(tmp_path / f"{name}.jsonl", many(count)))]
        prepare(corpus, folder, tmp_path / name, CHAT)
    path = column_path(tmp_path / "out", "loss_spans")
    if damage == "gone":
        path.unlink()
    elif damage == "one bit":
        content = bytearray(path.read_bytes())
        content[-9] ^= 1
        path.write_bytes(content)
    else:
        shutil.copy(column_path(tmp_path / "other", "loss_spans"), path)
    for read in (
        lambda: verify_dataset(tmp_path / "out"),
        lambda: TokenStream([tmp_path / "out"]).open_loss_masks(None),
    ):
        with pytest.raises(IntegrityFault, match=r"out\.loss_spans\.npy"):
            read()
    assert not prepare([str(tmp_path / "out.jsonl")], folder, tmp_path / "out", CHAT).reused
    verify_dataset(tmp_path / "out")


def test_answers_are_known_without_the_manifest(folder: Path, tmp_path: Path) -> None:
    corpus = [str(write_conversations(tmp_path / "chat.jsonl", many(9)))]
    written = prepare(corpus, folder, tmp_path / "out", CHAT).training
    whole = loss_texts(TokenStream([tmp_path / "out"]), folder)
    (tmp_path / "out.manifest.json").unlink()
    assert loss_texts(TokenStream([tmp_path / "out"]), folder) == whole
    assert load_manifest(tmp_path / "out").loss_tokens == written.loss_tokens


def test_a_dataset_of_conversations_is_no_input(folder: Path, tmp_path: Path) -> None:
    corpus = [str(write_conversations(tmp_path / "chat.jsonl", many(9)))]
    prepare(corpus, folder, tmp_path / "out", CHAT)
    with pytest.raises(BadInput, match="has spans of tokens that count in the loss, which would be lost"):
        prepare([str(tmp_path / "out")], folder, tmp_path / "again", PrepareSettings())


@pytest.mark.parametrize("spans", [[(9, 12), (3, 5)], [(-1, 2)], [(3, 1 << 40)], [(5, 3)]])
def test_spans_of_no_tokens_are_told_as_such(folder: Path, tmp_path: Path, spans: list[tuple[int, int]]) -> None:
    """With a manifest and without; of the latter none is kept that describes them."""
    corpus = [str(write_conversations(tmp_path / "chat.jsonl", many(9)))]
    prepare(corpus, folder, tmp_path / "out", CHAT)
    np.save(column_path(tmp_path / "out", "loss_spans"), np.array(spans, LOSS_SPAN))
    for manifest in (tmp_path / "out.manifest.json", None):
        for _ in range(2):
            with pytest.raises(IntegrityFault, match=r"out\.loss_spans\.npy: holds spans that are not in ascending"):
                TokenStream([tmp_path / "out"]).open_loss_masks(None)
        if manifest is not None:
            manifest.unlink()
    assert not (tmp_path / "out.manifest.json").exists()


def test_other_spans_beside_a_manifest_of_its_own_may_be_right(folder: Path, tmp_path: Path) -> None:
    corpus = [str(write_conversations(tmp_path / "chat.jsonl", many(9)))]
    prepare(corpus, folder, tmp_path / "out", CHAT)
    (tmp_path / "out.manifest.json").unlink()
    load_manifest(tmp_path / "out")
    np.save(column_path(tmp_path / "out", "loss_spans"), np.array([(3, 5)], LOSS_SPAN))
    with pytest.raises(IntegrityFault, match="if the new file is right, remove the manifest"):
        TokenStream([tmp_path / "out"]).open_loss_masks(None)
    (tmp_path / "out.manifest.json").unlink()
    assert TokenStream([tmp_path / "out"]).loss_share == 2 / load_manifest(tmp_path / "out").tokens


def test_a_dry_run_shows_conversations(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = str(write_conversations(tmp_path / "chat.jsonl", [said("Why?", "So."), said("a", "")]))
    words = ["prepare", corpus, "--tokenizer", str(folder), "--output", str(tmp_path / "out"), "--chat"]
    assert main([*words, "--limit", "9"]) == 0
    told = capsys.readouterr().out
    assert "'<|head|>'" in told and "empty answer: message 2" in told
    [answer] = expected(said("Why?", "So."))
    assert f"in the loss: {answer!r}" in told
    assert main([*words, "--max-rejected", "60%", "--quiet"]) == 0
    share = next(part for part in capsys.readouterr().out.split(", ") if "count in the loss" in part)
    assert share.split(")")[0] in told


def test_streams_that_differ_in_their_spans_differ(folder: Path, tmp_path: Path) -> None:
    corpus = [str(write_conversations(tmp_path / "chat.jsonl", many(9)))]
    for name, train_on in (("one", "responses"), ("two", "all")):
        prepare(corpus, folder, tmp_path / name, replace(CHAT, train_on=train_on))  # type: ignore[arg-type]
    assert (tmp_path / "one.bin").read_bytes() == (tmp_path / "two.bin").read_bytes()
    assert TokenStream([tmp_path / "one"]).identity != TokenStream([tmp_path / "two"]).identity
