"""Nested keys of text, id and fields, in JSON lines and in tables."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_cpt.commands.dispatch import main
from megatron_cpt.corpus.manifest import load_manifest, read_score
from megatron_cpt.preparation.fields import field_of

NAMES = st.text("ab", min_size=1, max_size=2)
OBJECTS = st.recursive(st.integers() | st.none(), lambda inner: st.dictionaries(NAMES, inner, max_size=3))


def leaves(value: Any, way: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    found = [(way, value)] if way else []
    if isinstance(value, dict):
        found += [leaf for name, inner in value.items() for leaf in leaves(inner, (*way, name))]
    return found


@given(st.dictionaries(NAMES, OBJECTS, max_size=4))
def test_every_value_is_found_by_the_keys_on_the_way_and_a_literal_key_wins(document: dict[str, Any]) -> None:
    for way, value in leaves(document):
        key = ".".join(way)
        assert field_of(document, key) is value
        assert field_of(document | {key: "literal"}, key) == "literal"
        assert field_of(document, f"{key}.none", "missing") == "missing"


def documents(texts: list[str]) -> list[dict[str, Any]]:
    return [
        {"text": {"content": text, "source": "x"}, "meta": {"id": f"d-{number}", "quality": {"score": number / 8}}}
        for number, text in enumerate(texts)
    ]


def test_nested_text_id_and_score_of_json_lines_and_tables(
    tmp_path: Path, tokenizer_folder: Path, texts: list[str]
) -> None:
    lines, table = tmp_path / "a.jsonl", tmp_path / "a.parquet"
    lines.write_text("".join(json.dumps(document) + "\n" for document in documents(texts)))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(documents(texts)), table, row_group_size=9)
    for path in (lines, table):
        out = path.with_suffix("")
        words = ["prepare", str(path), "--tokenizer", str(tokenizer_folder), "--order", "as_read", "--quiet"]
        words += ["--text-key", "text.content", "--id-key", "meta.id", "--output", f"{out}.{path.suffix[1:]}-out"]
        assert main(words) == 0
        prefix = words[-1]
        assert load_manifest(prefix).documents == len(texts)
        ids = [json.loads(line) for line in Path(f"{prefix}.ids.jsonl").read_text().splitlines()]
        assert ids == [f"d-{number}" for number in range(len(texts))]
        words = ["score", prefix, "--by", "field", "--field", "meta.quality.score", "--name", "quality"]
        assert main(words) == 0
        scores = read_score(prefix, "quality", load_manifest(prefix))
        assert scores.tolist() == [number / 8 for number in range(len(texts))]
    for ending in ("bin", "idx"):
        one, other = Path(f"{tmp_path}/a.jsonl-out.{ending}"), Path(f"{tmp_path}/a.parquet-out.{ending}")
        assert one.read_bytes() == other.read_bytes()


def test_a_literal_key_wins_in_lines_and_tables_and_what_is_not_there_is_told(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = {"text.content": "the literal one", "text": {"content": "the nested one"}}
    lines, table = tmp_path / "a.jsonl", tmp_path / "a.parquet"
    odd = [{"text": "flat"}, {"text": {"other": "x"}}, {"text": {"content": None}}, {"text": {"content": 3}}]
    lines.write_text("".join(json.dumps(line) + "\n" for line in [both, {"text": {"content": "nested"}}, *odd]))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([both]), table)
    words = ["--tokenizer", str(tokenizer_folder), "--order", "as_read", "--quiet", "--text-key", "text.content"]
    assert main(["prepare", str(lines), *words, "--output", f"{tmp_path}/lines", "--max-rejected", "80%"]) == 0
    assert main(["prepare", str(table), *words, "--output", f"{tmp_path}/rows"]) == 0
    for name in ("lines", "rows"):
        capsys.readouterr()
        assert main(["inspect", f"{tmp_path}/{name}", "--show", "1"]) == 0
        assert "the literal one" in capsys.readouterr().out
    reasons = [json.loads(line)["reason"] for line in Path(f"{tmp_path}/lines.rejected.jsonl").read_text().splitlines()]
    missing, no_text = "no key 'text.content'", "'text.content' is not a string"
    assert reasons == [missing, missing, no_text, no_text]
    assert main(["prepare", str(table), *words, "--text-key", "text.contents", "--output", f"{tmp_path}/x"]) == 2
    told = capsys.readouterr().err
    assert "text.contents" in told and "Its columns are text.content, text.content" in told


def test_a_nested_text_that_is_half_a_character_is_rejected(tmp_path: Path, tokenizer_folder: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": {"content": "\\ud800"}}\n{"text": {"content": "fine"}, "meta": {"odd": "\\ud800"}}\n')
    words = ["--tokenizer", str(tokenizer_folder), "--text-key", "text.content", "--max-rejected", "50%", "--quiet"]
    assert main(["prepare", str(path), *words, "--output", f"{tmp_path}/out"]) == 0
    assert load_manifest(tmp_path / "out").documents == 1
    assert "broken JSON" in (tmp_path / "out.rejected.jsonl").read_text()


def test_documents_without_a_number_are_refused_or_get_the_one_given(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    lines = [{"text": "one", "meta": {"score": 2}}, {"text": "two", "meta": {}}, {"text": "three", "meta": None}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["--tokenizer", str(tokenizer_folder), "--order", "as_read", "--quiet", "--output", f"{tmp_path}/out"]
    assert main(["prepare", str(path), *words]) == 0
    words = ["score", f"{tmp_path}/out", "--by", "field", "--field", "meta.score", "--name", "quality"]
    assert main(words) == 2
    assert "gives no number for 2 of the 3 documents" in capsys.readouterr().err
    assert main([*words, "--missing", "-1"]) == 0
    assert read_score(tmp_path / "out", "quality", load_manifest(tmp_path / "out")).tolist() == [2, -1, -1]
    assert main([*words, "--missing", "0"]) == 2  # another score of this name
