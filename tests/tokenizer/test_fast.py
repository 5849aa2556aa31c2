import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from megatron_cpt.preparation.job import PrepareSettings
from megatron_cpt.preparation.prepare import prepare
from megatron_cpt.tokenizer.formats import Encoded, HuggingFace
from megatron_cpt.tokenizer.gigatoken import FastTokenizer, NotEqual
from megatron_cpt.tokenizer.tokenizer import Tokenizer
from tests.texts import SHARED, save_tokenizer, unigram

pytest.importorskip("gigatoken", reason="the optional gigatoken is not installed")
STORIES = SHARED / "model_stories260K/hf"


def folder_with(tmp_path: Path, source: Path, **changes: object) -> Path:
    """A copy of a tokenizer folder with other entries in its tokenizer.json."""
    content = json.loads(source.read_text()) | changes
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    return tmp_path


def assert_equal(tokenizer: Tokenizer, texts: list[str]) -> None:
    fast = FastTokenizer(tokenizer, texts)
    ours, theirs = fast.encode_flat(texts), tokenizer.encode_flat(texts)
    assert ours.tokens.tolist() == theirs.tokens.tolist()
    assert ours.lengths.tolist() == theirs.lengths.tolist()
    assert tokenizer.control_tokens(ours) == {}


CONTROL = ["a <|endoftext|> b", "<|endoftext|>", "<s>x</s>", "<unk>"]


def test_control_tokens_in_text_stay_text(tokenizer_folder: Path, texts: list[str]) -> None:
    assert_equal(Tokenizer.load(tokenizer_folder), [*texts, *CONTROL, ""])


@pytest.mark.parametrize("name", ["gpt2", "gptneox20b"])
def test_tokenizers_of_real_models_give_the_same_ids(
    tmp_path: Path, unpack: Callable[[str], Path], texts: list[str], name: str
) -> None:
    folder = folder_with(tmp_path, unpack(f"tokenizers/{name}_tokenizer.json.zst"))
    corpus = unpack("general_wikitext2_test_raw/general_wikitext2_test_raw.jsonl.zst")
    articles = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    assert_equal(Tokenizer.load(folder), [*texts, *articles[:10], *CONTROL])


def test_a_sentencepiece_model_is_equal_or_refused(texts: list[str]) -> None:
    if not STORIES.is_dir():
        pytest.skip("shared data model_stories260K is not on this machine")
    tokenizer = Tokenizer.load(STORIES)
    try:
        fast = FastTokenizer(tokenizer, texts)
    except NotEqual:
        return
    assert fast.encode_flat(texts).tokens.tolist() == tokenizer.encode_flat(texts).tokens.tolist()


def test_a_tokenizer_that_it_cannot_load_is_refused(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, unigram("▁ab", ["<unk>", "</s>"]), {"eos_token": "</s>"})
    with pytest.raises(NotEqual, match="cannot load "):
        FastTokenizer(Tokenizer.load(tmp_path), ["ab"])


class Differing(HuggingFace):
    """The library as it is, but for texts with a certain word."""

    def encode(self, texts: Sequence[str]) -> Encoded:
        ids = super().encode(texts).each()
        return Encoded.of([found[::-1] if "quick" in text else found for text, found in zip(texts, ids, strict=True)])


def test_one_different_text_refuses_it(tokenizer_folder: Path, texts: list[str]) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder)
    assert isinstance(tokenizer.library, HuggingFace)
    other = replace(tokenizer, library=Differing(tokenizer.library.backend, tokenizer.library.content))
    plain = [text for text in texts if "quick" not in text]
    FastTokenizer(other, plain)
    with pytest.raises(NotEqual, match="other ids for 'thequickening'"):
        FastTokenizer(other, [*plain, "thequickening"])


def test_the_bytes_do_not_tell_which_library_made_them(
    tmp_path: Path, write_jsonl: Callable[..., Path], tokenizer_folder: Path, texts: list[str]
) -> None:
    corpus = [str(write_jsonl("a.jsonl", [*texts, *CONTROL]))]
    made = {}
    for fast in (True, False):
        output = tmp_path / str(fast)
        prepare(corpus, tokenizer_folder, output / "x", PrepareSettings(holdout=0.2), fast=fast)
        made[fast] = {path.name: path.read_bytes() for path in output.iterdir()}
    assert made[True] == made[False]
    assert len(made[True]) == 8


def test_prepare_falls_back_with_a_warning(tmp_path: Path, write_jsonl: Callable[..., Path]) -> None:
    words = {"<unk>": 0, "one": 1, "two": 2, "</s>": 3}
    backend = tokenizers.Tokenizer(models.WordLevel(words, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["</s>"])
    save_tokenizer(tmp_path / "words", backend, {"eos_token": "</s>"})
    corpus = [str(write_jsonl("a.jsonl", ["one two"]))]
    with pytest.warns(UserWarning, match="gigatoken is not used: it cannot load"):
        prepared = prepare(corpus, tmp_path / "words", tmp_path / "out")
    assert prepared.training.tokens == 3
    assert np.fromfile(tmp_path / "out.bin", np.uint16).tolist() == [1, 2, 3]


def test_the_process_beside_ends_with_one_that_is_killed(tokenizer_folder: Path) -> None:
    code = """if True:
        import os, signal, sys
        from megatron_cpt.tokenizer.gigatoken import encoded_beside
        from megatron_cpt.tokenizer.tokenizer import Tokenizer
        with encoded_beside(Tokenizer.load(sys.argv[1]), ["a b c d"] * 100_000):
            os.kill(os.getpid(), signal.SIGKILL)
    """
    # Both hold the standard output: it is closed when neither runs any more.
    done = subprocess.run([sys.executable, "-c", code, str(tokenizer_folder)], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
