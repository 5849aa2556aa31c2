import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from megatron_cpt.commands.dispatch import main
from megatron_cpt.config.errors import BadInput, IntegrityFault
from megatron_cpt.corpus.columns import column_path
from megatron_cpt.corpus.selection import Selection, array_path, load_selection
from megatron_cpt.quality.select import HowMany, Keep, select
from tests.corpus.datasets import write_dataset


def chosen(selection: Selection) -> dict[str, list[int]]:
    return {part.prefix.name: part.documents.tolist() for part in selection.datasets}


def two_datasets(folder: Path) -> list[str]:
    """Twenty documents of 10 tokens each in two datasets, with scores 0 to 9 and 0.5 to 9.5."""
    prefixes = [write_dataset(folder / name, [10] * 10, first) for name, first in (("a", 0), ("b", 100))]
    for prefix, shift in zip(prefixes, (0, 0.5), strict=True):
        np.save(column_path(prefix, "ngram"), (np.arange(10) + shift).astype("<f4"))
    return [str(prefix) for prefix in prefixes]


@pytest.mark.parametrize(
    ("keep", "expected"),
    [("lowest", {"a": [0, 1, 2], "b": [0, 1]}), ("highest", {"a": [8, 9], "b": [7, 8, 9]})],
)
def test_one_threshold_over_all_datasets(tmp_path: Path, keep: str, expected: dict[str, list[int]]) -> None:
    done = select(two_datasets(tmp_path), tmp_path / "s", HowMany(tokens=59), keep=keep, by="ngram")  # type: ignore[arg-type]
    assert chosen(done.selection) == expected
    assert done.selection.tokens == 50
    assert (done.available_documents, done.available_tokens) == (20, 200)


@pytest.mark.parametrize(
    ("how_many", "keep", "expected"),
    [
        (HowMany(share=0.25), "lowest", {"a": [0, 1, 2], "b": [0, 1]}),
        (HowMany(documents=3), "highest", {"a": [9], "b": [8, 9]}),
        (HowMany(threshold=1.0), "lowest", {"a": [0, 1], "b": [0]}),
        (HowMany(threshold=9.0), "highest", {"a": [9], "b": [9]}),
    ],
)
def test_budgets_of_every_kind(tmp_path: Path, how_many: HowMany, keep: Keep, expected: dict[str, list[int]]) -> None:
    done = select(two_datasets(tmp_path), tmp_path / "s", how_many, keep=keep, by="ngram")
    assert chosen(done.selection) == expected


@pytest.mark.parametrize("keep", ["lowest", "highest"])
def test_scores_equal_to_the_threshold_are_taken_whatever_their_precision(tmp_path: Path, keep: Keep) -> None:
    """0.7 in four bytes is below 0.7 in eight, and 0.1 is above it."""
    for limit in (0.7, 0.1):
        paths = [str(write_dataset(tmp_path / name, [10] * 10, first)) for name, first in (("a", 0), ("b", 100))]
        for path, dtype in zip(paths, ("<f4", "<f8"), strict=True):
            np.save(column_path(path, "q"), np.array([limit] * 5 + [limit - 0.5, limit + 0.5] * 2 + [limit], dtype))
        done = select(paths, tmp_path / "s", HowMany(threshold=limit), keep=keep, by="q", overwrite=True)
        assert sum(len(part.documents) for part in done.selection.datasets) == 2 * 8


def test_the_middle_leaves_out_as_much_at_both_ends(tmp_path: Path) -> None:
    done = select(two_datasets(tmp_path), tmp_path / "s", HowMany(share=0.5), keep="middle", by="ngram")
    assert done.selection.tokens == 100
    assert abs(done.selection.how["lowest_score"] - 2.5) <= 0.5 and abs(done.selection.how["highest_score"] - 7) <= 0.5


def test_five_examples_are_told_with_their_scores(tmp_path: Path) -> None:
    done = select(two_datasets(tmp_path), tmp_path / "s", HowMany(documents=9), keep="lowest", by="ngram")
    assert [example.score for example in done.examples] == [0, 1, 2, 3, 4]
    assert [example.document for example in done.examples] == [0, 1, 2, 3, 4]
    assert done.selection.how["examples"][1]["score"] == 1.0
    assert (done.selection.how["lowest_score"], done.selection.how["highest_score"]) == (0, 4)


def test_random_choice_depends_on_the_seed_alone_and_budgets_are_nested(tmp_path: Path) -> None:
    paths = two_datasets(tmp_path)
    small = select(paths, tmp_path / "small", HowMany(tokens=60), keep="random", seed=3).selection
    again = select(list(reversed(paths)), tmp_path / "again", HowMany(tokens=60), keep="random", seed=3).selection
    large = select(paths, tmp_path / "large", HowMany(tokens=120), keep="random", seed=3).selection
    other = select(paths, tmp_path / "other", HowMany(tokens=60), keep="random", seed=4).selection
    assert chosen(small) == chosen(again) != chosen(other)
    assert all(set(documents) <= set(chosen(large)[name]) for name, documents in chosen(small).items())
    assert sum(map(len, chosen(small).values())) == 6


def test_a_selection_is_replaced_only_when_asked(tmp_path: Path) -> None:
    paths = two_datasets(tmp_path)
    first = select(paths, tmp_path / "s", HowMany(tokens=60), keep="lowest", by="ngram").selection
    assert select(paths, tmp_path / "s", HowMany(tokens=60), keep="lowest", by="ngram").selection.sha256 == first.sha256
    with pytest.raises(BadInput, match="holds another selection"):
        select(paths, tmp_path / "s", HowMany(tokens=60), keep="highest", by="ngram")
    assert load_selection(tmp_path / "s").sha256 == first.sha256
    again = select(paths, tmp_path / "s", HowMany(tokens=60), keep="highest", by="ngram", overwrite=True).selection
    assert again.sha256 == load_selection(tmp_path / "s").sha256 != first.sha256


def test_a_selection_of_a_selection_is_a_selection(tmp_path: Path) -> None:
    paths = two_datasets(tmp_path)
    outer = select(paths, tmp_path / "outer", HowMany(tokens=100), keep="highest", by="ngram").selection
    inner = select([str(outer.path)], tmp_path / "inner", HowMany(tokens=30), keep="lowest", by="ngram").selection
    assert chosen(inner) == {"a": [5, 6], "b": [5]}
    assert inner.how["from"] == [str(outer.path)]


def test_the_array_holds_documents_starts_and_cumulative_tokens(tmp_path: Path) -> None:
    prefix = write_dataset(tmp_path / "a", [1, 5, 2, 4])
    np.save(column_path(prefix, "score"), np.array([9.0, 1.0, 8.0, 2.0]))
    selection = select([str(prefix)], tmp_path / "s", HowMany(tokens=9), keep="lowest", by="score").selection
    table = np.load(array_path(selection.path), mmap_mode="r", allow_pickle=False)
    assert table.tolist() == [[1, 3], [1, 8], [5, 9]]
    assert load_selection(tmp_path / "s").tokens == 9


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"how_many": HowMany(tokens=201), "keep": "random"}, "200 tokens"),
        ({"how_many": HowMany(tokens=0), "keep": "random"}, "above 0"),
        ({"how_many": HowMany(tokens=9), "keep": "random"}, "first document"),
        ({"how_many": HowMany(documents=21), "keep": "random"}, "20 documents"),
        ({"how_many": HowMany(share=1.1), "keep": "random"}, "100%"),
        ({"how_many": HowMany(), "keep": "random"}, "how much"),
        ({"how_many": HowMany(tokens=50, share=0.5), "keep": "random"}, "how much"),
        ({"how_many": HowMany(tokens=50), "keep": "random", "by": "ngram"}, "no score"),
        ({"how_many": HowMany(tokens=50), "keep": "middle"}, "needs a score"),
        ({"how_many": HowMany(tokens=50), "keep": "lowest", "by": "model"}, r"a\.model\.npy"),
        ({"how_many": HowMany(tokens=50), "keep": "lowest", "by": "../a"}, "no name"),
        ({"how_many": HowMany(threshold=5.0), "keep": "middle", "by": "ngram"}, "no threshold"),
        ({"how_many": HowMany(threshold=-1.0), "keep": "lowest", "by": "ngram"}, "from 0 to 9.5"),
        ({"how_many": HowMany(tokens=50), "keep": "gumbel", "by": "ngram", "temperature": 0.0}, "above 0"),
        ({"how_many": HowMany(tokens=50), "keep": "gumbel", "by": "ngram", "temperature": math.inf}, "finite"),
        ({"how_many": HowMany(tokens=50), "keep": "random", "temperature": 1.0}, "random draws by no temperature"),
        ({"how_many": HowMany(threshold=math.inf), "keep": "lowest", "by": "ngram"}, "not a finite number"),
        ({"how_many": HowMany(threshold=math.nan), "keep": "highest", "by": "ngram"}, "not a finite number"),
        ({"how_many": HowMany(share=math.nan), "keep": "random"}, "100%"),
    ],
)
def test_bad_input_is_refused(tmp_path: Path, words: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        select(two_datasets(tmp_path), tmp_path / "s", **words)  # type: ignore[arg-type]


def test_scores_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    paths = two_datasets(tmp_path)
    np.save(column_path(paths[1], "ngram"), np.array([np.nan, *range(9)]))
    with pytest.raises(BadInput, match=r"1 documents of .*b"):
        select(paths, tmp_path / "s", HowMany(tokens=50), keep="lowest", by="ngram")


def test_paths_that_share_documents_are_refused(tmp_path: Path) -> None:
    paths = two_datasets(tmp_path)
    part = select(paths, tmp_path / "part", HowMany(tokens=50), keep="random").selection
    for named_twice in ([paths[0], paths[0]], [*paths, str(part.path)]):
        with pytest.raises(BadInput, match="share"):
            select(named_twice, tmp_path / "s", HowMany(tokens=50), keep="random")


def test_a_selection_whose_dataset_changed_is_refused(tmp_path: Path) -> None:
    paths = two_datasets(tmp_path)
    select(paths, tmp_path / "s", HowMany(tokens=50), keep="random")
    write_dataset(tmp_path / "a", [10] * 10, first=1)
    with pytest.raises(BadInput, match="select` again"):
        load_selection(tmp_path / "s")


def test_an_altered_selection_is_refused(tmp_path: Path) -> None:
    selection = select(two_datasets(tmp_path), tmp_path / "s", HowMany(tokens=50), keep="random").selection
    array = array_path(selection.path)
    content = bytearray(array.read_bytes())
    content[-3] ^= 1
    array.write_bytes(content)
    with pytest.raises(IntegrityFault, match=r"s\.selection\.npy"):
        load_selection(tmp_path / "s")
    selection.path.write_text("{}")
    with pytest.raises(IntegrityFault, match="lacks"):
        load_selection(tmp_path / "s")
    array.unlink()
    with pytest.raises(BadInput, match=r"s\.selection\.npy"):
        load_selection(tmp_path / "s")


def test_datasets_and_selection_move_together(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    selection = select(
        two_datasets(tmp_path / "here"), tmp_path / "here" / "s", HowMany(tokens=50), keep="random"
    ).selection
    assert [entry["prefix"] for entry in json.loads(selection.path.read_text())["datasets"]] == ["a", "b"]
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert chosen(load_selection(tmp_path / "there" / "s")) == chosen(selection)


@pytest.mark.parametrize(
    ("where", "how_many", "expected"),
    [
        ("q >= 0.7", HowMany(), {"a": [3, 4], "b": [0]}),
        ("q > 0.1 and not tokens < 12", HowMany(), {"a": [2, 3, 4], "b": [0]}),
        ("q in (0.7, 5) or tokens in (10, 11)", HowMany(), {"a": [0, 1, 3], "b": [0, 2]}),
        ("field('n-gram') < 3 and 0.1 <= q < 1", HowMany(documents=2), {"a": [1], "b": [0]}),
        ("tokens not in (10.5, 15)", HowMany(tokens=22), {"a": [0, 1], "b": [1]}),
    ],
)
def test_a_condition_on_scores_and_length(
    tmp_path: Path, where: str, how_many: HowMany, expected: dict[str, list[int]]
) -> None:
    paths = [write_dataset(tmp_path / "a", [10, 11, 12, 13, 14]), write_dataset(tmp_path / "b", [15, 1, 10], 100)]
    for path, scores in zip(paths, ([0, 0.1, 0.5, 0.7, 0.9], [0.7, 0, 0.1]), strict=True):
        np.save(column_path(path, "q"), np.array(scores, "<f4"))
        np.save(column_path(path, "n-gram"), np.arange(len(scores)))
    names = [str(path) for path in paths]
    keep: Keep = "lowest" if how_many.given() else "random"
    by = "n-gram" if how_many.given() else None
    done = select(names, tmp_path / "s", how_many, keep=keep, by=by, where=where)
    assert chosen(done.selection) == expected
    assert done.selection.how["where"] == where
    assert done.available_documents + done.selection.how["filtered"] == 8


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("q > 100", "is met by none of 20 documents"),
        ("other > 1", "other.npy"),
        ("ngram is None", "is no condition"),
        ("ngram == 'a'", "'a' is no number"),
        ("len(ngram) > 1", "has no part in one"),
        ("1 < 2", "names no score"),
        ("ngram", "alone is neither true nor false"),
    ],
)
def test_a_condition_that_cannot_be_met_is_refused(tmp_path: Path, where: str, told: str) -> None:
    paths = two_datasets(tmp_path)
    for path in paths:
        np.save(column_path(path, "q"), np.zeros(10))
    with pytest.raises(BadInput, match=told):
        select(paths, tmp_path / "s", HowMany(), keep="random", where=where)


def test_select_by_a_condition_alone_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = two_datasets(tmp_path)
    assert main(["select", *paths, "--where", "ngram > 7", "--output", str(tmp_path / "s")]) == 0
    told = capsys.readouterr().out
    assert "5 of 5 documents" in told and "left out 15 documents that do not meet --where" in told
    assert main(["select", *paths, "--output", str(tmp_path / "t")]) == 2
    assert main(["select", *paths, "--share", "10%", "--output", str(tmp_path / "t")]) == 2
    assert "Give --keep lowest or highest" in capsys.readouterr().err
