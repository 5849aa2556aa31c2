"""The script against Megatron-Core's own tokenizer classes and writer."""

import base64
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from types import ModuleType

import numpy as np
import pytest
import sentencepiece
import tokenizers
import torch
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
from megatron.core.tokenizers.text.libraries.huggingface_tokenizer import HuggingFaceTokenizer
from megatron.core.tokenizers.text.libraries.null_tokenizer import NullTokenizer
from megatron.core.tokenizers.text.libraries.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron.core.tokenizers.text.libraries.tiktoken_tokenizer import TikTokenTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Tokenizer

from megatron_cpt.corpus.indexed import IndexedDataset
from megatron_cpt.corpus.manifest import verify_dataset
from megatron_cpt.preparation.job import PrepareSettings
from megatron_cpt.preparation.prepare import prepare

TEXTS = [text[:700] for text in list(topics.values())[:40]] + ["naïve 漢字 😀 1234567", "  two  blanks\n\n\tand a tab "]
Theirs = Callable[[str], list[int]]


def script(name: str) -> ModuleType:
    path = Path(__file__).parents[2] / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(*words: str | Path) -> int:
    return int(script("preprocess_data").main([*map(str, words), "--workers", "2"]))


def trained_bpe(special: list[str]) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    return backend


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that puts BOS before a text when asked for special tokens."""
    backend = trained_bpe(["<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    folder = tmp_path_factory.mktemp("tokenizer")
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def write_theirs(prefix: Path, texts: Sequence[str], encode: Theirs, eod: int | None, vocabulary: int) -> None:
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(vocabulary))
    for text in texts:
        ids = encode(text) + ([] if eod is None else [eod])
        builder.add_document(torch.tensor(ids), [len(ids)])
    builder.finalize(f"{prefix}.idx")


def assert_same(ours: Path, theirs: Path) -> None:
    for ending in ("bin", "idx"):
        assert Path(f"{ours}.{ending}").read_bytes() == Path(f"{theirs}.{ending}").read_bytes(), ending
    verify_dataset(ours)


def write_corpus(path: Path, **texts: Sequence[str]) -> Path:
    rows = zip(*texts.values(), strict=True)
    path.write_text("".join(json.dumps(dict(zip(texts, row, strict=True))) + "\n" for row in rows))
    return path


def test_the_flags_of_real_scripts_are_taken(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl", text=TEXTS)
    words = ["--input", corpus, "--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", folder]
    more = ["--make-vocab-size-divisible-by", "128", "--vocab-extra-ids", "0", "--dataset-impl", "mmap"]
    more += ["--trust-remote-code", "--legacy-tokenizer", "--partitions", "4", "--keep-sequential-samples"]
    assert call(*words, "--output-prefix", tmp_path / "plain") == 0
    assert call(*words, "--output-prefix", tmp_path / "flags", *more) == 0
    assert_same(tmp_path / "flags_text_document", tmp_path / "plain_text_document")
    assert call(*words, "--output-prefix", tmp_path / "extra", "--vocab-extra-ids", "100") == 2
    assert "--vocab-extra-ids 100: is not added here." in capsys.readouterr().err


def test_control_tokens_are_megatrons_with_parse_special(tmp_path: Path, folder: Path) -> None:
    texts = ["a </s> b", "<s>"]
    corpus = write_corpus(tmp_path / "corpus.jsonl", text=texts)
    words = ["--input", corpus, "--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", folder]
    tokenizer = HuggingFaceTokenizer(str(folder), include_special_tokens=False)
    write_theirs(tmp_path / "theirs", texts, tokenizer.text_to_ids, None, tokenizer.vocab_size)
    assert call(*words, "--output-prefix", tmp_path / "ours", "--parse-special") == 0
    assert_same(tmp_path / "ours_text_document", tmp_path / "theirs")
    assert call(*words, "--output-prefix", tmp_path / "plain") == 0
    assert len(IndexedDataset(tmp_path / "plain_text_document").tokens) == 10


@pytest.mark.parametrize("append_eod", [True, False])
def test_the_same_bytes_for_every_key(tmp_path: Path, folder: Path, append_eod: bool) -> None:
    texts = {"title": list(topics)[: len(TEXTS)], "body": TEXTS}
    corpus = write_corpus(tmp_path / "corpus.jsonl", **texts)
    words = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", folder]
    flags = ["--append-eod"] if append_eod else []
    keys = ["--json-keys", "title", "body"]
    assert call("--input", corpus, "--output-prefix", tmp_path / "ours", *keys, *words, *flags) == 0
    tokenizer = HuggingFaceTokenizer(str(folder), include_special_tokens=False)
    for key, documents in texts.items():
        eod = tokenizer.eod if append_eod else None
        write_theirs(tmp_path / key, documents, tokenizer.text_to_ids, eod, tokenizer.vocab_size)
        assert_same(tmp_path / f"ours_{key}_document", tmp_path / key)


def test_a_sentencepiece_model(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("\n".join(TEXTS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "sp"),
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    tokenizer = SentencePieceTokenizer(str(tmp_path / "sp.model"))
    corpus = write_corpus(tmp_path / "corpus.jsonl", text=TEXTS)
    words = ["--tokenizer-type", "Llama2Tokenizer", "--tokenizer-model", tmp_path / "sp.model", "--append-eod"]
    assert call("--input", corpus, "--output-prefix", tmp_path / "ours", *words) == 0
    write_theirs(tmp_path / "theirs", TEXTS, tokenizer.text_to_ids, tokenizer.eos_id, tokenizer.vocab_size)
    assert_same(tmp_path / "ours_text_document", tmp_path / "theirs")


def test_gpt2s_two_files(tmp_path: Path) -> None:
    trained_bpe(["<|endoftext|>"]).model.save(str(tmp_path))
    vocabulary, merges = tmp_path / "vocab.json", tmp_path / "merges.txt"
    tokenizer = GPT2Tokenizer(vocab_file=str(vocabulary), merges_file=str(merges))
    known = json.loads(vocabulary.read_text())
    if isinstance(tokenizer.vocab_size, int) and tokenizer.vocab_size < len(known):
        tokenizer = GPT2Tokenizer(vocab=str(vocabulary), merges=str(merges))
    corpus = write_corpus(tmp_path / "corpus.jsonl", text=TEXTS)
    words = ["--tokenizer-type", "GPT2BPETokenizer", "--vocab-file", vocabulary, "--merge-file", merges]
    assert call("--input", corpus, "--output-prefix", tmp_path / "ours", *words, "--append-eod") == 0
    eod = known["<|endoftext|>"]
    write_theirs(tmp_path / "theirs", TEXTS, lambda text: tokenizer(text).input_ids, eod, len(known))
    assert_same(tmp_path / "ours_text_document", tmp_path / "theirs")


def test_tiktokens_ranks(tmp_path: Path) -> None:
    merges = [b"th", b"the", b" t", b" the", b"in", b"ing", b"er", b"\xe6\xbc"]
    tokens = [*(bytes([byte]) for byte in range(256)), *merges]
    entries = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": token.decode(errors="replace")}
        for rank, token in enumerate(tokens)
    ]
    model = tmp_path / "ranks.json"
    model.write_text(json.dumps(entries))
    sizes = {"num_special_tokens": 20, "vocab_size": 20 + len(tokens)}
    corpus = write_corpus(tmp_path / "corpus.jsonl", text=TEXTS)
    for pattern in ("v1", "v2"):
        tokenizer = TikTokenTokenizer(str(model), pattern=pattern, **sizes)
        words = ["--tokenizer-type", "TikTokenizer", "--tokenizer-model", model, "--tiktoken-pattern", pattern]
        words += ["--tiktoken-num-special-tokens", "20", "--vocab-size", str(20 + len(tokens)), "--append-eod"]
        assert call("--input", corpus, "--output-prefix", tmp_path / pattern, *words) == 0
        theirs = tmp_path / f"theirs-{pattern}"
        write_theirs(theirs, TEXTS, tokenizer.text_to_ids, tokenizer.eod, tokenizer.vocab_size)
        assert_same(tmp_path / f"{pattern}_text_document", theirs)


def test_texts_that_are_numbers(tmp_path: Path) -> None:
    texts = [" ".join(map(str, range(start, start + 50))) for start in range(0, 900, 100)]
    tokenizer = NullTokenizer(1000)
    corpus = write_corpus(tmp_path / "corpus.jsonl", text=[*texts, "not numbers", "1 1001"])
    words = ["--tokenizer-type", "NullTokenizer", "--vocab-size", "1000", "--append-eod", "--max-rejected", "0.5"]
    assert call("--input", corpus, "--output-prefix", tmp_path / "ours", *words) == 0
    # Later releases of Megatron-Core count the EOD among the 1,000.
    write_theirs(tmp_path / "theirs", texts, tokenizer.text_to_ids, 1000, 1001)
    assert_same(tmp_path / "ours_text_document", tmp_path / "theirs")
    assert len((tmp_path / "ours_text_document.rejected.jsonl").read_text().splitlines()) == 2


def test_sentences_are_sequences_of_a_document(tmp_path: Path, folder: Path) -> None:
    texts = ["Dr. Smith came at 3.5 p.m. today. He left.  Nobody saw him!\n\nA second part. ", "One only"] * 3
    corpus = write_corpus(tmp_path / "corpus.jsonl", text=texts)
    words = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", folder, "--append-eod"]
    assert call("--input", corpus, "--output-prefix", tmp_path / "ours", "--split-sentences", *words) == 0
    dataset = IndexedDataset(tmp_path / "ours_text_sentence")
    assert (dataset.documents, dataset.sequences) == (6, 15)
    tokenizer = HuggingFaceTokenizer(str(folder), include_special_tokens=False)
    sentences = ["Dr. Smith came at 3.5 p.m. today.", "He left.", "Nobody saw him!", "A second part."]
    ids = [tokenizer.text_to_ids(sentence) for sentence in sentences]
    assert dataset.document(0).tolist() == [*(number for part in ids for number in part), tokenizer.eod]
    assert dataset.sequence_lengths[:4].tolist() == [*map(len, ids[:3]), len(ids[3]) + 1]
    verify_dataset(tmp_path / "ours_text_sentence")

    kept = ["--split-sentences", "--keep-newlines"]
    assert call("--input", corpus, "--output-prefix", tmp_path / "kept", *kept, *words) == 0
    dataset = IndexedDataset(tmp_path / "kept_text_sentence")
    text = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).decode(dataset.document(0)[:-1].tolist())
    assert text == texts[0].rstrip()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tokenizer-type", "BertWordPieceCase"], "--tokenizer-type BertWordPieceCase: is not read here."),
        (["--tokenizer-type", "NullTokenizer"], "--vocab-size: is needed by"),
        (["--tokenizer-type", "GPT2BPETokenizer"], "--vocab-file: is needed by --tokenizer-type GPT2BPETokenizer."),
        (["--tokenizer-type", "Llama2Tokenizer", "--tokenizer-model", "x"], "--tokenizer-model x: is not there."),
    ],
)
def test_what_cannot_be_read_is_refused(
    tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--input", tmp_path / "x.jsonl", "--output-prefix", tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err


def test_the_scripts_run_as_scripts(tmp_path: Path, folder: Path) -> None:
    tools = Path(__file__).parents[2] / "tools"
    corpus = write_corpus(tmp_path / "corpus.jsonl", text=TEXTS)
    words = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(folder), "--workers", "1"]
    (tmp_path / "pairs").mkdir()
    prefix = str(tmp_path / "pairs" / "a")
    command = [sys.executable, tools / "preprocess_data.py", "--input", corpus, "--output-prefix", prefix, *words]
    subprocess.run(command, check=True, capture_output=True)
    command = [sys.executable, tools / "merge_datasets.py", "--input", tmp_path / "pairs", "--output-prefix"]
    subprocess.run([*command, tmp_path / "merged"], check=True, capture_output=True)
    assert_same(tmp_path / "merged", tmp_path / "pairs" / "a_text_document")


def test_merged_pairs_are_megatrons(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    merge = script("merge_datasets").main
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    builders = {}
    for name, texts in (("b", TEXTS[:10]), ("a-c", TEXTS[10:30]), ("a", TEXTS[30:])):
        tokenizer = HuggingFaceTokenizer(str(folder), include_special_tokens=False)
        write_theirs(pairs / name, texts, tokenizer.text_to_ids, tokenizer.eod, tokenizer.vocab_size)
        builders[name] = pairs / name
    assert merge(["--input", str(pairs), "--output-prefix", str(tmp_path / "ours")]) == 0
    builder = IndexedDatasetBuilder(f"{tmp_path / 'theirs'}.bin", dtype=np.uint16)
    for name in ("a-c", "a", "b"):
        builder.add_index(str(builders[name]))
    builder.finalize(f"{tmp_path / 'theirs'}.idx")
    assert_same(tmp_path / "ours", tmp_path / "theirs")

    assert merge(["--input", str(pairs), "--output-prefix", str(pairs / "a")]) == 2
    assert "a.idx: is there already." in capsys.readouterr().err
    (pairs / "b.bin").write_bytes(b"")
    assert merge(["--input", str(pairs), "--output-prefix", str(tmp_path / "other")]) == 3
    (pairs / "b.idx").unlink()
    assert merge(["--input", str(pairs), "--output-prefix", str(tmp_path / "other")]) == 2
    assert "has no .idx beside it." in capsys.readouterr().err


def test_what_is_merged_is_there_once_and_alike(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Held-out pairs, an earlier output, another EOD, and one pair under two names."""
    merge = script("merge_datasets").main
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    for name, texts in (("a", TEXTS[:20]), ("b", TEXTS[20:])):
        corpus = write_corpus(tmp_path / f"{name}.jsonl", text=texts)
        prepare([str(corpus)], folder, pairs / name, PrepareSettings(holdout=0.3))
    counts = {path.name: IndexedDataset(path.with_suffix("")).documents for path in pairs.glob("*.idx")}
    assert merge(["--input", str(pairs), "--output-prefix", str(pairs / "merged")]) == 0
    told = capsys.readouterr()
    assert told.err.count("is held out, and left out") == 2
    assert IndexedDataset(pairs / "merged").documents == counts["a.idx"] + counts["b.idx"]
    # Held-out pairs alone are meant.
    (tmp_path / "held").mkdir()
    for path in pairs.glob("*.validation.*"):
        shutil.copy(path, tmp_path / "held")
    assert merge(["--input", str(tmp_path / "held"), "--output-prefix", str(tmp_path / "all")]) == 0
    assert IndexedDataset(tmp_path / "all").documents == counts["a.validation.idx"] + counts["b.validation.idx"]
    capsys.readouterr()

    assert merge(["--input", str(pairs), "--output-prefix", str(tmp_path / "again")]) == 2
    told = capsys.readouterr()
    assert "pairs/a: is in " in told.err and "pairs/merged already, which was joined of it." in told.err
    for path in pairs.glob("merged.*"):
        path.unlink()
    for ending in ("bin", "idx"):
        shutil.copy(pairs / f"a.{ending}", pairs / f"c.{ending}")
    assert merge(["--input", str(pairs), "--output-prefix", str(tmp_path / "again")]) == 2
    assert "c: is the same data as " in capsys.readouterr().err
    for path in pairs.glob("c.*"):
        path.unlink()
    prepare([str(tmp_path / "b.jsonl")], folder, pairs / "c", PrepareSettings(eod="<s>"))
    assert merge(["--input", str(pairs), "--output-prefix", str(tmp_path / "again")]) == 2
    assert f"c: has the EOD 0 where {pairs / 'a'} has the EOD 1." in capsys.readouterr().err
