import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import zstandard

from megatron_cpt.config.errors import BadInput
from megatron_cpt.corpus.columns import read_column
from megatron_cpt.corpus.indexed import IndexedDataset, IndexedWriter, bin_path, idx_path, manifest_path
from megatron_cpt.corpus.manifest import load_manifest, verify_dataset
from megatron_cpt.preparation.job import PrepareSettings
from megatron_cpt.preparation.prepare import Shard, merge, prepare, prepare_shard
from megatron_cpt.tokenizer.tokenizer import Tokenizer
from tests.texts import save_tokenizer, unigram

WriteJsonl = Callable[..., Path]
AS_READ = PrepareSettings(order="as_read")


def decoded(prefix: Path, folder: Path) -> list[str]:
    """Text of each document, its EOD checked and taken off."""
    tokenizer, dataset = Tokenizer.load(folder), IndexedDataset(prefix)
    texts = []
    for number in range(dataset.documents):
        ids = dataset.document(number)
        assert np.flatnonzero(ids == tokenizer.eod).tolist() == [len(ids) - 1]
        texts.append(tokenizer.decode(ids[:-1].tolist()))
    return texts


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_documents_come_out_whole_and_in_the_order_read(
    tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path, texts: list[str]
) -> None:
    files = [write_jsonl("a.jsonl", texts[:30]), write_jsonl("b.jsonl.gz", texts[30:])]
    prepared = prepare(list(map(str, files)), tokenizer_folder, tmp_path / "out", AS_READ)
    assert decoded(tmp_path / "out", tokenizer_folder) == texts
    manifest = prepared.training
    assert manifest == load_manifest(tmp_path / "out") == verify_dataset(tmp_path / "out")
    assert (manifest.documents, manifest.bytes) == (len(texts), sum(len(text.encode()) for text in texts))
    assert (manifest.eod, manifest.bos, manifest.dtype, manifest.rejected) == (0, None, "uint16", 0)
    records = read_column(tmp_path / "out", "documents", len(texts))
    assert records["bytes"].tolist() == [len(text.encode()) for text in texts]
    assert len(set(records["content_hash"].tolist())) == len(set(texts))
    assert not (tmp_path / "out.rejected.jsonl").exists()


def test_shuffled_order_depends_on_the_seed_alone(
    tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path, texts: list[str]
) -> None:
    corpus = [str(write_jsonl("a.jsonl", texts))]
    orders = {}
    for name, seed in (("one", 1), ("same", 1), ("two", 2)):
        prepare(corpus, tokenizer_folder, tmp_path / name, PrepareSettings(seed=seed))
        orders[name] = decoded(tmp_path / name, tokenizer_folder)
    assert orders["one"] == orders["same"] != orders["two"]
    assert sorted(orders["one"]) == sorted(orders["two"]) == sorted(texts)
    assert orders["one"] != texts
    # The column follows its documents.
    records = read_column(tmp_path / "one", "documents", len(texts))
    assert records["bytes"].tolist() == [len(text.encode()) for text in orders["one"]]


def test_holdout_is_by_content_so_duplicates_are_held_out_together(
    tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path, texts: list[str]
) -> None:
    settings = PrepareSettings(holdout=0.2, keep_duplicates=True)
    corpus = [str(write_jsonl("a.jsonl", [*texts, *texts]))]
    prepared = prepare(corpus, tokenizer_folder, tmp_path / "out", settings)
    training = decoded(tmp_path / "out", tokenizer_folder)
    held_out = decoded(tmp_path / "out.validation", tokenizer_folder)
    assert sorted(training + held_out) == sorted([*texts, *texts])
    assert not set(training) & set(held_out)
    assert prepared.validation == verify_dataset(tmp_path / "out.validation")

    reordered = [str(write_jsonl("b.jsonl", list(reversed(texts))))]
    prepare(reordered, tokenizer_folder, tmp_path / "other", replace(settings, seed=9))
    assert set(decoded(tmp_path / "other.validation", tokenizer_folder)) == set(held_out)


@pytest.mark.parametrize("order", ["as_read", "shuffled"])
def test_exact_copies_are_left_out_and_listed_with_what_they_repeat(
    tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path, texts: list[str], order: Literal["as_read"]
) -> None:
    files = [
        write_jsonl("a.jsonl", [*texts[:50], texts[3]]),
        write_jsonl("b.jsonl", [*texts[40:], texts[3], texts[70]]),
    ]
    settings = PrepareSettings(order=order, holdout=0.2)
    manifest = prepare(list(map(str, files)), tokenizer_folder, tmp_path / "out", settings).training
    kept = decoded(tmp_path / "out", tokenizer_folder) + decoded(tmp_path / "out.validation", tokenizer_folder)
    assert sorted(kept) == sorted(texts)
    assert manifest.duplicates == 13
    verify_dataset(tmp_path / "out")
    listed = [json.loads(line) for line in (tmp_path / "out.duplicates.jsonl").read_text().splitlines()]
    a, b = map(str, files)
    pairs = {((c["file"], c["line"]), (c["of"]["file"], c["of"]["line"])) for c in listed}
    overlap = {((b, line), (a, line + 40)) for line in range(1, 11)}
    repeats = {((a, 51), (a, 4)), ((b, len(texts) - 39), (a, 4)), ((b, len(texts) - 38), (b, 31))}
    assert pairs == overlap | repeats
    assert [entry["content_hash"] for entry in listed] == sorted(entry["content_hash"] for entry in listed)

    # A call that keeps them leaves no list of an earlier one.
    keeping = replace(settings, keep_duplicates=True)
    prepare(list(map(str, files)), tokenizer_folder, tmp_path / "out", keeping, overwrite=True)
    assert not (tmp_path / "out.duplicates.jsonl").exists()
    assert load_manifest(tmp_path / "out").documents > manifest.documents


def test_held_out_documents_of_an_earlier_call_do_not_stay(
    tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path, texts: list[str]
) -> None:
    corpus = [str(write_jsonl("a.jsonl", texts))]
    prepare(corpus, tokenizer_folder, tmp_path / "out", PrepareSettings(holdout=0.2))
    assert list(tmp_path.glob("out.validation.*"))
    prepare(corpus, tokenizer_folder, tmp_path / "out", PrepareSettings(), overwrite=True)
    assert not list(tmp_path.glob("out.validation.*"))


def test_a_dataset_that_has_the_name_of_a_held_out_part_stays(
    tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path, texts: list[str]
) -> None:
    """Neither a call that holds nothing out, of the same input, nor one that does, replaces or removes it."""
    corpus = [str(write_jsonl("a.jsonl", texts))]
    for settings in (PrepareSettings(), PrepareSettings(holdout=0.5)):
        prepare(corpus, tokenizer_folder, tmp_path / "z.validation", settings)
        mine = {name: sha for name, sha in digests(tmp_path).items() if name.startswith("z.validation.")}
        prepare(corpus, tokenizer_folder, tmp_path / "z", PrepareSettings())
        prepare(corpus, tokenizer_folder, tmp_path / "z", PrepareSettings(seed=3), overwrite=True)
        for overwrite in (False, True):
            with pytest.raises(BadInput, match=r"z\.validation: is a dataset that --output .*z did not make"):
                held_out = PrepareSettings(holdout=0.2)
                prepare(corpus, tokenizer_folder, tmp_path / "z", held_out, overwrite=overwrite)
        assert {name: sha for name, sha in digests(tmp_path).items() if name in mine} == mine
        for path in [*tmp_path.glob("z.*")]:
            path.unlink()
    with IndexedWriter(tmp_path / "z.validation", np.uint16) as writer:
        writer.add(np.arange(5))
    with pytest.raises(BadInput, match=r"z\.validation: is a dataset that"):
        prepare(corpus, tokenizer_folder, tmp_path / "z", PrepareSettings(holdout=0.2), overwrite=True)


def test_an_input_is_never_written_over(
    tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path, texts: list[str]
) -> None:
    """The rejected lines of an earlier call, corrected and prepared under the same name."""
    corpus = write_jsonl("z.rejected.jsonl", texts)
    before = corpus.read_bytes()
    for overwrite in (False, True):
        with pytest.raises(BadInput, match=r"z\.rejected\.jsonl: is an input, and a file that --output .*z writes"):
            prepare([str(corpus)], tokenizer_folder, tmp_path / "z", overwrite=overwrite)
    assert corpus.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["z.rejected.jsonl"]


def test_bos_opens_each_document_when_asked(tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path) -> None:
    corpus = [str(write_jsonl("a.jsonl", ["one", "two"]))]
    settings = PrepareSettings(bos="always", eod="z", order="as_read")
    manifest = prepare(corpus, tokenizer_folder, tmp_path / "out", settings).training
    eod = Tokenizer.load(tokenizer_folder, "z").eod
    assert (manifest.bos, manifest.eod) == (0, eod)
    dataset = IndexedDataset(tmp_path / "out")
    assert [dataset.document(n)[[0, -1]].tolist() for n in (0, 1)] == [[0, eod], [0, eod]]
    verify_dataset(tmp_path / "out")


def test_control_tokens_in_text_are_not_injected(
    tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path
) -> None:
    texts = ["a <|endoftext|> b", "<|endoftext|>"]
    corpus = [str(write_jsonl("a.jsonl", texts))]
    prepare(corpus, tokenizer_folder, tmp_path / "out", AS_READ)
    assert decoded(tmp_path / "out", tokenizer_folder) == texts


def test_control_tokens_in_text_are_meant_when_asked(
    tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path
) -> None:
    corpus = [str(write_jsonl("a.jsonl", ["a <|endoftext|> b"]))]
    settings = PrepareSettings(order="as_read", parse_special=True)
    for name, fast in (("slow", False), ("fast", True)):
        prepare(corpus, tokenizer_folder, tmp_path / name, settings, fast=fast)
        ids = IndexedDataset(tmp_path / name).document(0)
        tokenizer = Tokenizer.load(tokenizer_folder)
        assert np.flatnonzero(ids == tokenizer.eod).tolist() == [2, len(ids) - 1]
        assert tokenizer.decode(ids.tolist()) == "a <|endoftext|> b<|endoftext|>"


def test_where_a_model_would_inject_them_the_document_is_rejected(tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    folder = tmp_path / "unigram"
    save_tokenizer(folder, unigram("▁ab</s>", ["<unk>", "</s>"]), {"eos_token": "</s>"})
    corpus = [str(write_jsonl("a.jsonl", ["a</s>b", "ab"]))]
    manifest = prepare(corpus, folder, tmp_path / "out", PrepareSettings(max_rejected=0.5)).training
    assert (manifest.documents, manifest.rejected) == (1, 1)
    listed = json.loads((tmp_path / "out.rejected.jsonl").read_text())
    assert listed["reason"] == "the text gives the control token </s>"


def test_rejected_lines_are_listed_and_the_rest_is_prepared(
    tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path, texts: list[str]
) -> None:
    corpus = write_jsonl("a.jsonl", texts)
    lines = corpus.read_bytes().splitlines(keepends=True)
    lines[2:2] = [b"{broken\n", b'{"text": null}\n']
    corpus.write_bytes(b"".join(lines))
    with pytest.raises(BadInput, match=r"2 of .* were rejected, more than 1.00%"):
        prepare([str(corpus)], tokenizer_folder, tmp_path / "out", AS_READ)
    # What is tokenized waits for a call that allows more.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "out.pieces", "out.rejected.jsonl"]
    manifest = prepare([str(corpus)], tokenizer_folder, tmp_path / "out", replace(AS_READ, max_rejected=0.05)).training
    assert manifest.rejected == 2
    assert not (tmp_path / "out.pieces").exists()
    assert decoded(tmp_path / "out", tokenizer_folder) == texts
    listed = [json.loads(line) for line in (tmp_path / "out.rejected.jsonl").read_text().splitlines()]
    assert [(entry["file"], entry["line"]) for entry in listed] == [(str(corpus), 3), (str(corpus), 4)]


def test_a_second_call_reuses_what_is_whole_and_redoes_what_is_not(
    tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path, texts: list[str]
) -> None:
    corpus = write_jsonl("a.jsonl", texts)
    settings = PrepareSettings(holdout=0.2)

    def again(settings: PrepareSettings = settings, overwrite: bool = False) -> bool:
        return prepare([str(corpus)], tokenizer_folder, tmp_path / "out", settings, overwrite=overwrite).reused

    assert not again()
    before = digests(tmp_path)
    assert again()
    assert not again(replace(settings, seed=2), overwrite=True)
    assert not again(overwrite=True)
    assert digests(tmp_path) == before
    manifest_path(tmp_path / "out.validation").unlink()
    assert not again()
    idx_path(tmp_path / "out").write_bytes(b"MMIDIDX")
    assert not again()
    bin_path(tmp_path / "out").write_bytes(b"")
    assert not again()
    assert digests(tmp_path) == before
    corpus.write_bytes(corpus.read_bytes() + b'{"text": "more"}\n')
    assert not again(overwrite=True)
    assert again()


def test_a_finished_dataset_is_replaced_only_when_asked(
    tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path, texts: list[str]
) -> None:
    first, second = str(write_jsonl("a.jsonl", texts[:40])), str(write_jsonl("b.jsonl", texts[40:]))
    prepare([first], tokenizer_folder, tmp_path / "out", PrepareSettings(holdout=0.2))
    before = digests(tmp_path)
    for inputs, settings, message in (
        ([second], PrepareSettings(holdout=0.2), f"input: {second} was not in it"),
        ([first], PrepareSettings(), "made otherwise (other holdout)"),
        ([first], PrepareSettings(holdout=0.2, seed=5), "made otherwise (other seed)"),
    ):
        with pytest.raises(BadInput, match=re.escape(message)):
            prepare(inputs, tokenizer_folder, tmp_path / "out", settings)
        assert digests(tmp_path) == before
    os.utime(first, (1, 1))
    with pytest.raises(BadInput, match=f"{re.escape(first)} was written again since.*its size is the same"):
        prepare([first], tokenizer_folder, tmp_path / "out", PrepareSettings(holdout=0.2))
    # The part that was held out is kept too where only it stands there still, and so is a pair made elsewhere.
    for file in tmp_path.glob("out.[bim]*"):
        file.unlink()
    with pytest.raises(BadInput, match=r"out\.validation: is a finished dataset"):
        prepare([second], tokenizer_folder, tmp_path / "out", PrepareSettings())
    with IndexedWriter(tmp_path / "foreign", np.uint16) as writer:
        writer.add(np.arange(5))
    with pytest.raises(BadInput, match="foreign: is a dataset that was made elsewhere"):
        prepare([second], tokenizer_folder, tmp_path / "foreign")
    # Shards replace nothing; what joins them does.
    with IndexedWriter(tmp_path / "shards", np.uint16) as writer:
        writer.add(np.arange(5))
    prepare_shard([second], tokenizer_folder, tmp_path / "shards", None, Shard(1, 1))
    with pytest.raises(BadInput, match="shards: is a dataset that was made elsewhere"):
        merge(tmp_path / "shards")
    assert merge(tmp_path / "shards", overwrite=True).training.documents == len(texts) - 40


@pytest.mark.parametrize(
    ("documents", "holdout", "message"),
    [([], 0.0, "no document"), (["one"], 1.0, "no document"), (["one"], 1e-9, "Raise --holdout")],
)
def test_a_part_without_documents_is_refused(
    tmp_path: Path,
    write_jsonl: WriteJsonl,
    tokenizer_folder: Path,
    documents: list[str],
    holdout: float,
    message: str,
) -> None:
    corpus = [str(write_jsonl("a.jsonl", documents))]
    with pytest.raises(BadInput, match=message):
        prepare(corpus, tokenizer_folder, tmp_path / "out", PrepareSettings(holdout=holdout))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "out.pieces"]


@pytest.mark.parametrize(
    ("name", "count"),
    [("general_wikitext2_test_raw", 62), ("med_openstax_anatomy", 169), ("med_pubmedqa_abstracts", 1000)],
)
def test_real_text(
    tmp_path: Path, shared: Callable[[str], Path], tokenizer_folder: Path, name: str, count: int
) -> None:
    corpus = shared(f"{name}/{name}.jsonl.zst")
    manifest = prepare([str(corpus)], tokenizer_folder, tmp_path / "out").training
    with zstandard.open(corpus, "rt", encoding="utf-8", newline="\n") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    assert sorted(decoded(tmp_path / "out", tokenizer_folder)) == sorted(texts)
    assert (manifest.documents, manifest.bytes) == (count, sum(len(text.encode()) for text in texts))
    lengths = Tokenizer.load(tokenizer_folder).token_bytes()
    assert lengths[IndexedDataset(tmp_path / "out").tokens].sum() == manifest.bytes


def test_a_tokenizer_that_names_no_eod_is_refused_before_anything_is_read(
    tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path
) -> None:
    (tmp_path / "tokenizer.json").write_bytes((tokenizer_folder / "tokenizer.json").read_bytes())
    corpus = [str(write_jsonl("a.jsonl", ["one"]))]
    with pytest.raises(BadInput, match="names no eos_token"):
        prepare(corpus, tmp_path, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))
