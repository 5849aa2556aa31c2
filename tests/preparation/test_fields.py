"""Nested keys of text, id and fields, and conditions on fields, in JSON lines and in tables."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_cpt.commands.dispatch import main
from megatron_cpt.config.errors import BadInput
from megatron_cpt.corpus.manifest import load_manifest
from megatron_cpt.corpus.parts import part_prefixes
from megatron_cpt.corpus.scores import read_score
from megatron_cpt.preparation import pieces
from megatron_cpt.preparation.fields import Unanswerable, field_of, parse_condition

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


def test_a_dataset_of_a_set_may_have_no_number_where_another_has(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    lines = [{"text": "one"}, {"text": "two"}, {"text": "three", "score": 2}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["prepare", str(path), "--tokenizer", str(tokenizer_folder), "--order", "as_read", "--quiet"]
    assert main([*words, "--output", f"{tmp_path}/out", "--parts", "3"]) == 0
    words = ["score", f"{tmp_path}/out", "--by", "field", "--name", "quality", "--field"]
    capsys.readouterr()
    assert main([*words, "scor", "--missing", "-1"]) == 2
    assert "gives no number for 3 of the 3 documents of" in capsys.readouterr().err
    assert main([*words, "score"]) == 2
    assert "or give those documents a --missing number" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.score.json"))
    for _ in range(2):
        assert main([*words, "score", "--missing", "-1"]) == 0
    prefixes = part_prefixes(tmp_path / "out", 3)
    assert [read_score(one, "quality", load_manifest(one)).tolist() for one in prefixes] == [[-1], [-1], [2]]


def test_documents_without_a_number_are_refused_or_get_the_one_given(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    lines = [
        {"text": "one", "meta": {"score": 2}},
        {"text": "two", "meta": {}},
        {"text": "three", "meta": {"score": 1e300}},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["--tokenizer", str(tokenizer_folder), "--order", "as_read", "--quiet", "--output", f"{tmp_path}/out"]
    assert main(["prepare", str(path), *words]) == 0
    words = ["score", f"{tmp_path}/out", "--by", "field", "--field", "meta.score", "--name", "quality"]
    assert main(words) == 2
    assert "gives no number for 2 of the 3 documents" in capsys.readouterr().err
    misspelt = ["meta.scor" if word == "meta.score" else word for word in words]
    assert main([*misspelt, "--missing", "-1"]) == 2
    assert "gives no number for 3 of the 3 documents" in capsys.readouterr().err
    assert main([*words, "--missing", "-1"]) == 0
    assert "-1 to 2; 2 without a number have that of --missing" in capsys.readouterr().out
    assert read_score(tmp_path / "out", "quality", load_manifest(tmp_path / "out")).tolist() == [2, -1, -1]
    assert main([*words, "--missing", "0"]) == 2  # another score of this name


NUMBERS, STRINGS = st.integers(-3, 3) | st.sampled_from([0.5, -1.5]), st.sampled_from(["a", "b", "ab", ""])
ORDERS = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
COMPARISONS = st.one_of(
    st.builds("{} {} {!r}".format, st.sampled_from("xy"), ORDERS, NUMBERS),
    st.builds("{!r} {} s {} t".format, STRINGS, ORDERS, ORDERS),
    st.builds("{!r} <= x < {!r}".format, NUMBERS, NUMBERS),
    st.builds("{} {} {!r}".format, st.sampled_from("xy"), st.sampled_from(["in", "not in"]), st.lists(NUMBERS)),
    st.builds("s {} t".format, st.sampled_from(["in", "not in"])),
    st.builds("len(s) {} {!r}".format, ORDERS, NUMBERS),
    st.builds("flag {} {!r}".format, st.sampled_from(["==", "!="]), st.booleans()),
    st.sampled_from(["flag", "x is None", "s is not None", "t in ('a', 'b')"]),
)
CONDITIONS = st.recursive(
    COMPARISONS,
    lambda inner: st.one_of(
        st.builds("({}) and ({})".format, inner, inner),
        st.builds("({}) or ({})".format, inner, inner),
        st.builds("not ({})".format, inner),
        st.builds("{} and not {}".format, COMPARISONS, COMPARISONS),
    ),
)
FIELDS = st.fixed_dictionaries({"x": NUMBERS, "y": NUMBERS, "s": STRINGS, "t": STRINGS, "flag": st.booleans()})


@given(CONDITIONS, FIELDS)
def test_a_condition_means_what_it_means_in_python(text: str, fields: dict[str, Any]) -> None:
    condition = parse_condition(text)
    assert condition.met(partial(field_of, fields)) == eval(text, {"__builtins__": {"len": len}}, fields)
    assert set(condition.fields) <= set(fields)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is no condition"),
        ("score >", "is no condition"),
        ("score", "score is a number, not true or false"),
        ("3", "3 alone is neither true nor false"),
        ("score + 1 > 3", "score + 1 has no part in one"),
        ("__import__('os').system('true') == 0", "has no part in one"),
        ("open('x') == 1", "has no part in one"),
        ("(lambda: 1)() == 1", "has no part in one"),
        ("text[0] == 'a'", "has no part in one"),
        ("len(text, text) > 1", "has no part in one"),
        ("score == None", "None is compared with `is None`"),
        ("score is 3", "only None comes behind `is`"),
        ("score == (1, 2)", "a list comes behind `in`"),
        ("score in 3", "nothing is in 3"),
        ("score in (1, text)", "text has no part in one"),
        ("(" * 5000 + "score" + ")" * 5000, "is no condition"),
        ("score > 3 if text else flag", "alone is neither true nor false"),
        ("score > 1j", "1j has no part in one"),
        # What a document does not have, or has otherwise.
        ("none > 3", "no none, which --where asks for"),
        ("meta.none > 3", "no meta.none, which"),
        ("text > 3", "text is a text and 3 is a number, which --where cannot compare"),
        ("flag == 1", "flag is true or false and 1 is a number"),
        ("flag in (0, 1)", "flag is true or false, which cannot be in"),
        ("not nan > 3", "nan is NaN, which --where cannot compare"),
        ("tags == 'a'", "tags is a list and 'a' is a text"),
        ("tags > tags", "tags is a list"),
        ("score in 'abc'", "score is a number, which cannot be in 'abc'"),
        ("text in (1, 2)", "text is a text, which cannot be in (1, 2)"),
        ("1 in tags", "1 is a number, which cannot be in tags"),
        ("'a' in meta", "cannot be in meta"),
        ("none", "no none"),
        ("len(score) > 1", "score is a number, which has no length"),
        ("len(none) > 1", "no none"),
    ],
)
def test_what_is_no_condition_or_cannot_be_judged_is_told(text: str, told: str) -> None:
    document = {"score": 2, "text": "a b", "tags": ["a", "b"], "meta": {"quality-score": 4}, "odd.key": 1}
    document |= {"flag": True, "nan": float("nan")}
    with pytest.raises((BadInput, Unanswerable)) as error:
        parse_condition(text).met(partial(field_of, document))
    assert told in str(error.value)


def test_parts_of_conditions() -> None:
    document = {"score": 2, "text": "a b", "tags": ["a", "b"], "meta": {"quality-score": 4, "none": None}, "odd.key": 1}
    for text in (
        "'a' in tags and 'c' not in tags",
        "field('meta.quality-score') == 4 and odd.key == 1",
        "score is not None and meta.none is None and nothing.at.all is None",
        "nothing is None or nothing > 3",
        "len(tags) == 2 and len(text) >= 3",
        "(\n  score == 2\n  and -5 < -1\n)",
    ):
        assert parse_condition(text).met(partial(field_of, document)), text


def test_where_takes_the_same_documents_of_lines_and_tables_whatever_the_pieces(
    tmp_path: Path, tokenizer_folder: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [
        {"text": text, "language": "de" if number % 3 else "en", "meta": {"score": number % 7}}
        for number, text in enumerate(dict.fromkeys(texts))
    ]
    del found[5]["meta"]["score"]
    lines, table, chosen = tmp_path / "a.jsonl", tmp_path / "a.parquet", tmp_path / "chosen.jsonl"
    lines.write_text("".join(json.dumps(document) + "\n" for document in found))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(found), table, row_group_size=9)
    kept = [one for one in found if one["language"] == "de" and one["meta"].get("score", 0) > 2]
    chosen.write_text("".join(json.dumps({"text": one["text"]}) + "\n" for one in kept))
    words = ["--tokenizer", str(tokenizer_folder), "--order", "as_read", "--quiet", "--max-rejected", "5%"]
    assert main(["prepare", str(chosen), *words, "--output", f"{tmp_path}/expected"]) == 0
    where = ["--where", "language == 'de' and meta.score > 2"]
    monkeypatch.setattr(pieces, "SMALLEST_PIECE", 2000)
    for path in (lines, table):
        prefix = tmp_path / path.suffix[1:]
        assert main(["prepare", str(path), *words, *where, "--output", str(prefix), "--workers", "2"]) == 0
        manifest = load_manifest(prefix)
        assert (manifest.documents, manifest.filtered) == (len(kept), len(found) - len(kept) - 1)
        (entry,) = map(json.loads, prefix.with_name(f"{prefix.name}.rejected.jsonl").read_text().splitlines())
        assert (entry["line"], entry["reason"]) == (6, "no meta.score, which --where asks for")
        for ending in ("bin", "idx"):
            assert Path(f"{prefix}.{ending}").read_bytes() == Path(f"{tmp_path}/expected.{ending}").read_bytes()
    # Shards agree on it: other conditions are other jobs.
    out = ["--output", f"{tmp_path}/shards"]
    assert main(["prepare", str(lines), *words, *where, *out, "--shard", "1/2"]) == 0
    assert main(["prepare", str(lines), *words, "--where", "len(text) > 3", *out, "--shard", "2/2"]) == 2
    assert main(["prepare", str(lines), *words, *where, *out, "--shard", "2/2"]) == 0
    assert main(["merge", f"{tmp_path}/shards"]) == 0
    assert (tmp_path / "shards.bin").read_bytes() == (tmp_path / "expected.bin").read_bytes()
    assert load_manifest(tmp_path / "shards").filtered == load_manifest(tmp_path / "jsonl").filtered


def test_a_condition_that_is_none_or_leaves_nothing_is_refused(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one", "score": 1}\n')
    words = ["prepare", str(path), "--tokenizer", str(tokenizer_folder), "--quiet", "--output", f"{tmp_path}/out"]
    assert main([*words, "--where", "score >> 3"]) == 2
    assert "is no condition" in capsys.readouterr().err
    assert main([*words, "--where", "score > 3"]) == 2
    assert "would get no document. Left out: --where 1." in capsys.readouterr().err
    assert main([*words, "--where", "scores > 3"]) == 2
    assert "no scores, which --where asks for" in capsys.readouterr().err
    assert not (tmp_path / "out.idx").exists()
