"""Conversations over an older dataset of conversations: no tokens are ever read with the spans of others."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_cpt.corpus.indexed import idx_path
from megatron_cpt.corpus.manifest import verify_dataset
from megatron_cpt.corpus.stream import TokenStream
from tests.preparation.chats import TEMPLATES, said, unmarked, write_chat_tokenizer, write_conversations
from tests.reliability.running import DISPATCH, digests, run

Record = Callable[[str, object], None]
CHANGES = "re* x.[!p]*"
"""Places at which a file of the dataset, and not of its pieces, is renamed into being, or removed."""


@pytest.mark.ci
@pytest.mark.parametrize("every", [6, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(1500)])])
def test_P2_killed_where_conversations_replace_others(
    tmp_path: Path, texts: list[str], every: int, record_property: Record
) -> None:
    folder = write_chat_tokenizer(tmp_path / "chat", texts, unmarked(TEMPLATES["headers"]))
    prefix = tmp_path / "out" / "x"

    def preparing(name: str, count: int) -> list[str | Path]:
        values: list[object] = [said(f"Question {n}?", f"Answer {name} {n}.") for n in range(count)]
        corpus = write_conversations(tmp_path / f"{name}.jsonl", values)
        words = ["prepare", corpus, "--chat", "--tokenizer", folder, "--output", prefix, "--workers", "1"]
        return [*DISPATCH, *words, "--quiet", "--overwrite"]

    before, words = preparing("old", 60), preparing("new", 80)
    assert run(before).code == 0
    shutil.copytree(prefix.parent, tmp_path / "old")
    right = [digests(prefix.parent)]
    assert run(words, failpoint={"folder": prefix.parent, "log": tmp_path / "log", "place": CHANGES}).code == 0
    passed = (tmp_path / "log").read_text().splitlines()
    right.append(digests(prefix.parent))
    kills = range(1, len(passed) + 1, every)
    for at in kills:
        shutil.rmtree(prefix.parent)
        shutil.copytree(tmp_path / "old", prefix.parent)
        killed = run(words, failpoint={"folder": prefix.parent, "at": at, "place": CHANGES})
        assert killed.code in (-signal.SIGKILL, 1), f"place {at}, {passed[at - 1]}: {killed}"
        if idx_path(prefix).is_file():
            there = digests(prefix.parent)
            files = [f"x.{ending}" for ending in ("bin", "idx", "loss_spans.npy")]
            assert any(all(there.get(name) == one[name] for name in files) for one in right), passed[at - 1]
            verify_dataset(prefix)
            TokenStream([prefix]).open_loss_masks(None)
        assert run(words).code == 0, passed[at - 1]
        assert digests(prefix.parent) == right[1], passed[at - 1]
    record_property("kills", len(kills))
