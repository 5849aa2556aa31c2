"""A dataset in parts: the same documents in the same order, decided once, each part joined by itself."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from megatron_cpt.commands.dispatch import main
from megatron_cpt.config.errors import BadInput
from megatron_cpt.corpus.indexed import IndexedDataset, idx_path
from megatron_cpt.corpus.manifest import Manifest, documents_column, load_manifest, verify_dataset
from megatron_cpt.corpus.parts import named_by, part_faults, part_prefixes, source_files
from megatron_cpt.corpus.stream import TokenStream, expand_paths
from megatron_cpt.preparation.contamination import EvaluationItem, EvaluationSet, read_contamination
from megatron_cpt.preparation.inputs import find_inputs
from megatron_cpt.preparation.job import PrepareSettings
from megatron_cpt.preparation.prepare import Shard, merge, prepare, prepare_shard
from megatron_cpt.quality.score import open_datasets, open_references
from megatron_cpt.tasks.task_files import evaluation_sets
from tests.planning.small_run import faults_of, settings
from tests.preparation.test_interruptions import SETTINGS, corpus, digests
from tests.reliability.running import DISPATCH, run

WriteJsonl = Callable[..., Path]
__all__ = ["corpus"]
LISTS = ("rejected.jsonl", "duplicates.jsonl", "near_duplicates.jsonl", "contaminated.jsonl")


def read(folder: Path, ending: str = "") -> tuple[list[bytes], list[bytes], str, list[int]]:
    """Documents, their records and ids in the order of the dataset `x`, and how many each of its parts has."""
    documents, records, ids, counts = [], [], "", []
    for prefix in expand_paths([str(folder / f"x{ending}")]):
        manifest = verify_dataset(prefix)
        dataset = IndexedDataset(prefix)
        documents += [dataset.document(number).tobytes() for number in range(dataset.documents)]
        records += [record.tobytes() for record in documents_column(prefix, manifest)]
        ids += Path(f"{prefix}.ids.jsonl").read_text()
        counts.append(dataset.documents)
    return documents, records, ids, counts


def lists(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in digests(folder).items() if name.removeprefix("x.") in LISTS}


def manifests(folder: Path, ending: str = "") -> list[Manifest]:
    return [load_manifest(prefix) for prefix in expand_paths([str(folder / f"x{ending}")])]


@pytest.mark.parametrize("order", ["shuffled", "as_read"])
def test_any_number_of_parts_is_the_same_dataset(
    tmp_path: Path, corpus: list[str], tokenizer_folder: Path, texts: list[str], order: Literal["shuffled", "as_read"]
) -> None:
    """Of one process, of shards, and of parts that are joined one by one: the same bytes for each number of parts."""
    near = 0.6 if importlib.util.find_spec("rensa") else None
    asked_for = replace(SETTINGS, order=order, holdout=0.0, holdout_tokens=3000, near_duplicates=near)
    items = tuple(EvaluationItem(f"q{number}", (text[200:600],)) for number, text in enumerate(texts[::9]))
    evaluation = [EvaluationSet("planted", "planted.jsonl", "0", items)]
    whole = tmp_path / "1"
    single = prepare(corpus, tokenizer_folder, whole / "x", asked_for, evaluation=evaluation, workers=1)
    assert single.training.part is None and single.training.contaminated
    overlap = read_contamination(whole / "x", single.training)
    assert overlap is not None and overlap.sets[0].documents_left_out
    for of in (2, 7):
        folder, asked = tmp_path / str(of), replace(asked_for, parts=of)
        parts = prepare(corpus, tokenizer_folder, folder / "x", asked, evaluation=evaluation, workers=3)
        assert len(parts.parts) == of and not parts.reused
        for ending in ("", ".validation"):
            assert read(folder, ending)[:3] == read(whole, ending)[:3]
        assert len(lists(folder)) == (3 if near is None else 4) and lists(folder) == lists(whole)
        of_parts = manifests(folder)
        assert [one.part and (one.part.number, one.part.of) for one in of_parts] == [(n + 1, of) for n in range(of)]
        assert len({one.part and one.part.job for one in [*of_parts, *manifests(folder, ".validation")]}) == 1
        assert sum(one.tokens for one in of_parts) == single.training.tokens
        assert {one.duplicates for one in of_parts} == {single.training.duplicates}
        found = [read_contamination(p, m) for p, m in zip(part_prefixes(folder / "x", of), of_parts, strict=True)]
        left_out = [one.sets[0].documents_left_out for one in found if one is not None]
        assert len(left_out) == of and sum(left_out) == overlap.sets[0].documents_left_out
        assert not (folder / "x.pieces").exists()
        assert prepare(corpus, tokenizer_folder, folder / "x", asked, evaluation=evaluation).reused

        shards = tmp_path / f"{of}-shards"
        for number in (2, 1):
            shard = Shard(number, 2)
            prepare_shard(corpus, tokenizer_folder, shards / "x", asked_for, shard, evaluation=evaluation, workers=1)
        for number in [*range(of, 0, -1)]:
            assert (shards / "x.pieces").exists()
            assert not merge(shards / "x", parts=of, part=number).reused
        assert digests(shards) == digests(folder)
        # Slurm starts a task again whose node was lost at its end.
        assert merge(shards / "x", parts=of, part=1).reused


def test_a_source_of_parts_reads_as_the_single_dataset(
    tmp_path: Path, corpus: list[str], tokenizer_folder: Path
) -> None:
    for of in (1, 7):
        prepare(corpus, tokenizer_folder, tmp_path / str(of) / "x", replace(SETTINGS, parts=of), workers=2)
    for ending in ("", ".validation"):
        one, seven = (TokenStream([tmp_path / of / f"x{ending}"]) for of in ("1", "7"))
        assert one.tokens == seven.tokens > 0
        assert (one.read(0, one.tokens) == seven.read(0, one.tokens)).all()
        assert (one.document_starts(0, one.tokens) == seven.document_starts(0, one.tokens)).all()
    by_glob = TokenStream([str(tmp_path / "7" / "x-*")])
    assert by_glob.identity == TokenStream([tmp_path / "7" / "x"]).identity


def test_the_inputs_are_named_once(tmp_path: Path, corpus: list[str], tokenizer_folder: Path) -> None:
    """By the first part: a thousand parts of a hundred thousand files would else name them a thousand times."""
    asked = replace(SETTINGS, parts=3)
    prepare(corpus, tokenizer_folder, tmp_path / "x", asked, workers=1)
    for ending in ("", ".validation"):
        first, *others = manifests(tmp_path, ending)
        assert first.sources and all(one.sources is None for one in others)
        assert {one.sources_sha256 for one in others} == {first.sources_sha256}
        prefixes = [Path(f"{prefix}{ending}") for prefix in part_prefixes(tmp_path / "x", 3)]
        assert [source_files(prefix, load_manifest(prefix)) for prefix in prefixes] == [first.sources] * 3
    assert prepare(corpus, tokenizer_folder, tmp_path / "x", asked).reused
    # Of another input, a part whose manifest names no file is refused like the first.
    more = tmp_path / "more.jsonl"
    more.write_text('{"text": "more"}')
    for file in tmp_path.glob("x-00001-of-00003.*"):
        file.unlink()
    with pytest.raises(BadInput, match=r"x-00002-of-00003: is a finished dataset .* \(other input\)"):
        prepare([*corpus, str(more)], tokenizer_folder, tmp_path / "x", asked)
    # A part whose first is gone does not know its files.
    second = part_prefixes(tmp_path / "x", 3)[1]
    assert source_files(second, load_manifest(second)) is None


def test_parts_without_the_others_are_refused(tmp_path: Path, corpus: list[str], tokenizer_folder: Path) -> None:
    for name, of, seed in (("a", 3, 1), ("b", 3, 2), ("c", 2, 1)):
        asked = replace(SETTINGS, parts=of, seed=seed)
        prepare(corpus, tokenizer_folder, tmp_path / name / "x", asked, workers=2)
    a, b, c = (part_prefixes(tmp_path / name / "x", of) for name, of in (("a", 3), ("b", 3), ("c", 2)))
    assert part_faults([*a, *b]) == []
    assert part_faults([Path(f"{prefix}.validation") for prefix in a]) == []
    (fault,) = part_faults([a[0], a[2]])
    assert fault.rule == "is part 1 of 3, and part 2 of that dataset is not among the paths."
    assert [fault.value for fault in part_faults([a[0], b[1], a[2]])] == [str(a[0]), str(b[1])]
    (fault,) = part_faults([*a, *c])
    assert "in another number of parts" in fault.rule


def test_a_plan_refuses_a_source_of_some_parts(tmp_path: Path, corpus: list[str], tokenizer_folder: Path) -> None:
    prepare(corpus, tokenizer_folder, tmp_path / "x", replace(SETTINGS, parts=3), workers=2)
    sections = settings(tmp_path / "run")
    sections["data"]["sources"]["law"]["paths"] = [str(tmp_path / "x")]
    sections["validation"]["sets"]["law"]["paths"] = [str(tmp_path / "x.validation")]
    assert not any("of that dataset" in fault for fault in faults_of(sections))
    sections["validation"]["sets"]["law"]["paths"] = [str(tmp_path / "x-00002-of-00003.validation")]
    for path in tmp_path.glob("x-00002-of-00003.*"):
        if ".validation" not in path.name:
            path.unlink()
    told = "\n".join(faults_of(sections))
    assert f"data.sources.law.paths: {tmp_path}/x-00001-of-00003: is part 1 of 3, and part 2 of that dataset" in told
    assert f"validation.sets.law.paths: {tmp_path}/x-00002-of-00003.validation: is part 2 of 3, and part 1, 3" in told


def test_a_dataset_is_not_there_in_two_divisions(tmp_path: Path, corpus: list[str], tokenizer_folder: Path) -> None:
    for first, second in ((1, 2), (2, 1), (2, 3)):
        output = tmp_path / f"{first}-{second}" / "x"
        prepare(corpus, tokenizer_folder, output, replace(SETTINGS, parts=first), workers=2)
        before = digests(output.parent)
        with pytest.raises(BadInput, match="in different numbers of parts"):
            prepare(corpus, tokenizer_folder, output, replace(SETTINGS, parts=second), overwrite=True)
        assert digests(output.parent) == before
    with pytest.raises(BadInput, match=r"x-00001-of-00002: is a finished dataset that was made otherwise \(other seed"):
        prepare(corpus, tokenizer_folder, tmp_path / "2-3" / "x", replace(SETTINGS, parts=2, seed=7))


JOIN_SLOWLY = (
    "import sys, time; from megatron_cpt.preparation import join; from megatron_cpt.commands.dispatch import main; "
    "join.PORTION_BYTES = 4000; written = join._Writer.add; "
    "join._Writer.add = lambda *words: (time.sleep(0.05), written(*words)); sys.exit(main(sys.argv[1:]))"
)


@pytest.mark.ci
def test_a_part_that_is_killed_costs_that_part_alone(tmp_path: Path, corpus: list[str], tokenizer_folder: Path) -> None:
    """Three processes at a time, one of them killed; the dataset is that of a single call."""
    prepare(corpus, tokenizer_folder, tmp_path / "right" / "x", replace(SETTINGS, parts=3), workers=2)
    output = tmp_path / "out" / "x"
    prepare_shard(corpus, tokenizer_folder, output, SETTINGS, Shard(1, 1), workers=1)
    command = [sys.executable, "-c", JOIN_SLOWLY, "merge", str(output), "--parts", "3", "--part"]
    processes = [subprocess.Popen([*command, str(part)], stdout=subprocess.DEVNULL) for part in (1, 2, 3)]
    deadline = time.monotonic() + 120
    unfinished = f".{output.name}-00002-of-00003.bin.partial-*"
    while not list(output.parent.glob(unfinished)) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(processes[1].pid, signal.SIGKILL)
    assert [process.wait(120) for process in processes] == [0, -signal.SIGKILL, 0]
    first, second, third = part_prefixes(output, 3)
    assert not idx_path(second).exists() and list(output.parent.glob(unfinished))
    times = [idx_path(prefix).stat().st_mtime_ns for prefix in (first, third)]
    decided = [path.stat().st_mtime_ns for path in output.parent.glob("x.pieces/*-decided.json")]
    with pytest.raises(BadInput, match="--part 4: is none of the parts, which are 1 to 3"):
        merge(output, parts=3, part=4)
    assert [path.stat().st_mtime_ns for path in output.parent.glob("x.pieces/*-decided.json")] == decided != []
    merge(output, parts=3)
    assert [idx_path(prefix).stat().st_mtime_ns for prefix in (first, third)] == times
    assert digests(output.parent) == digests(tmp_path / "right")


@pytest.mark.ci
def test_two_divisions_begun_at_once_are_never_mixed(tmp_path: Path, corpus: list[str], tokenizer_folder: Path) -> None:
    """Tasks of two arrays: those of the division that began first join it, the others are refused."""
    output = tmp_path / "out" / "x"
    prepare_shard(corpus, tokenizer_folder, output, SETTINGS, Shard(1, 1), workers=1)
    command = [sys.executable, "-c", JOIN_SLOWLY, "merge", str(output), "--parts"]
    tasks = [(of, part) for part in (1, 2) for of in (2, 3)]
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen([*command, str(of), "--part", str(part)], stdout=subprocess.DEVNULL, stderr=pipe, text=True)
        for of, part in tasks
    ]
    told = [process.communicate(timeout=300)[1] for process in processes]
    ended = {task: (process.returncode, error) for task, process, error in zip(tasks, processes, told, strict=True)}
    (first,) = {of for (of, _), (code, _) in ended.items() if code == 0}
    for (of, _), (code, error) in ended.items():
        assert code == (0 if of == first else 2), ended
        # The last of them find it complete.
        refusals = ("in which process", "would be there twice", "holds no shards")
        assert of == first or any(refusal in error for refusal in refusals), ended
    assert not list(output.parent.glob(f"x-0000?-of-0000{5 - first}.*"))
    if first == 3:
        merge(output, parts=3)
    prepare(corpus, tokenizer_folder, tmp_path / "right" / "x", replace(SETTINGS, parts=first), workers=2)
    assert digests(output.parent) == digests(tmp_path / "right")


BEGIN_SLOWLY = (
    "import sys, time; from megatron_cpt.preparation import job; from megatron_cpt.commands.dispatch import main; "
    "read = job.load_job; job.load_job = lambda output: (read(output), time.sleep(2))[0]; sys.exit(main(sys.argv[1:]))"
)


@pytest.mark.ci
def test_shards_of_two_divisions_begun_at_once(tmp_path: Path, corpus: list[str], tokenizer_folder: Path) -> None:
    """Neither finds pieces of the other: one of them is refused all the same."""
    words = ["prepare", *corpus, "--tokenizer", str(tokenizer_folder), "--quiet", "--max-rejected", "50%", "--shard"]
    command = [sys.executable, "-c", BEGIN_SLOWLY, *words, "1/1", "--output", str(tmp_path / "x"), "--parts"]
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen([*command, str(of)], stdout=subprocess.DEVNULL, stderr=pipe, text=True) for of in (2, 3)
    ]
    told = [process.communicate(timeout=300)[1] for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 2]
    assert "x.pieces: holds shards of another call (other parts)" in "".join(told)
    (parts,) = [of for of, process in zip((2, 3), processes, strict=True) if process.returncode == 0]
    assert len(merge(tmp_path / "x").parts) == parts


@pytest.mark.ci
def test_what_a_killed_division_left_half_is_no_obstacle_to_another(
    tmp_path: Path, corpus: list[str], tokenizer_folder: Path
) -> None:
    """A part without its manifest goes, a finished one is named."""
    prepare(corpus, tokenizer_folder, tmp_path / "right" / "x", replace(SETTINGS, parts=2), workers=2)
    output = tmp_path / "out" / "x"
    prepare_shard(corpus, tokenizer_folder, output, SETTINGS, Shard(1, 1), workers=1)
    merging = [*DISPATCH, "merge", output, "--parts"]
    killed = {"folder": output.parent, "place": "rename x-00001-of-00003.manifest.json", "at": 1}
    assert run([*merging, "3", "--part", "1"], failpoint=killed).code == -signal.SIGKILL
    assert idx_path(part_prefixes(output, 3)[0]).exists()
    assert run([*merging, "2", "--part", "2"]).code == 0
    assert not list(output.parent.glob("x-0000?-of-00003*"))
    refused = run([*merging, "3", "--part", "2"])
    assert refused.code == 2 and "x-00002-of-00002: is there, and " in refused.err
    assert run([*merging, "2", "--part", "1"]).code == 0
    assert digests(output.parent) == digests(tmp_path / "right")


def test_more_parts_than_documents(tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path) -> None:
    """Parts may be empty; they are datasets all the same."""
    text = str(write_jsonl("a.jsonl", ["one", "two", "three"]))
    prepared = prepare([text], tokenizer_folder, tmp_path / "x", PrepareSettings(parts=9), workers=2)
    assert sum(part.training.documents for part in prepared.parts) == 3
    assert {part.training.documents for part in prepared.parts} >= {0}
    prepare([text], tokenizer_folder, tmp_path / "y")
    parts, whole = TokenStream([tmp_path / "x"]), TokenStream([tmp_path / "y"])
    assert np.array_equal(parts.read(0, 20), whole.read(0, 20))
    for prefix in part_prefixes(tmp_path / "x", 9):
        verify_dataset(prefix)
    again = prepare([str(tmp_path / "x")], tokenizer_folder, tmp_path / "z")
    assert again.training.documents == 3
    assert sum(len(part.items) for part in evaluation_sets([str(tmp_path / "x")])) == 3
    assert main(["inspect", str(tmp_path / "x")]) == 0
    assert main(["score", str(tmp_path / "x"), "--by", "ngram", "--reference", str(tmp_path / "x"), "--quiet"]) == 0


def test_what_a_call_does_to_the_folder_does_not_grow_with_the_parts_squared(
    tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path
) -> None:
    """Listing it for each file of each part took a second for 100 parts, and would take 100 for 1,000."""
    text = str(write_jsonl("a.jsonl", ["one", "two", "three"]))
    listed: list[int] = []
    counts = {"os.scandir": 0, "os.listdir": 0}

    def heard(event: str, arguments: tuple[object, ...]) -> None:
        if event in counts:
            counts[event] += 1

    sys.addaudithook(heard)
    for of in (4, 8):
        output = tmp_path / str(of) / "x"
        prepare([text], tokenizer_folder, output, PrepareSettings(parts=of), workers=1)
        before = sum(counts.values())
        prepare([text], tokenizer_folder, output, PrepareSettings(parts=of, seed=2), workers=1, overwrite=True)
        listed.append(sum(counts.values()) - before)
    assert listed[0] == listed[1] < 60


def test_the_command_lines(
    tmp_path: Path, corpus: list[str], tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["prepare", *corpus, "--tokenizer", str(tokenizer_folder), "--quiet", "--holdout", "20%"]
    words += ["--max-rejected", "50%", "--workers", "2"]
    assert main([*words, "--output", str(tmp_path / "x"), "--parts", "2"]) == 0
    told = capsys.readouterr().out
    assert f"{tmp_path}/x, 2 parts: " in told and f"{tmp_path}/x.validation, 2 parts: " in told
    assert main([*words, "--output", str(tmp_path / "y"), "--shard", "1/1"]) == 0
    assert main(["merge", str(tmp_path / "y"), "--parts", "2", "--part", "2"]) == 0
    assert f"{tmp_path}/y, part 2 of 2: " in capsys.readouterr().out
    assert main(["merge", str(tmp_path / "y"), "--parts", "2"]) == 0
    for number in (1, 2):
        x, y = (tmp_path / f"{name}-0000{number}-of-00002.bin" for name in "xy")
        assert x.read_bytes() == y.read_bytes()


def test_a_merge_of_what_is_complete_says_so_and_a_part_needs_its_parts(
    tmp_path: Path, corpus: list[str], tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["prepare", *corpus, "--tokenizer", str(tokenizer_folder), "--quiet", "--holdout", "20%"]
    words += ["--max-rejected", "50%", "--shard", "1/1", "--output"]
    folder = tmp_path / "out"
    one, some = str(folder / "one"), str(folder / "some")
    for prefix in (one, some):
        assert main([*words, prefix]) == 0
    before = digests(folder / "one.pieces")
    assert main(["merge", one, "--part", "1"]) == 2
    assert "--part 1: needs --parts" in capsys.readouterr().err
    assert digests(folder / "one.pieces") == before and not idx_path(one).exists()
    assert main(["merge", one]) == main(["merge", some, "--parts", "2"]) == 0
    before = digests(folder)
    for complete in (
        [one],
        [one, "--parts", "1"],
        [some, "--parts", "2"],
        [some],
        [some, "--parts", "2", "--part", "2"],
    ):
        capsys.readouterr()
        assert main(["merge", *complete]) == 0
        assert "already complete: nothing was done" in capsys.readouterr().out
    for other, told in (
        ([one, "--part", "1"], "--part 1: needs --parts"),
        ([one, "--parts", "2"], "holds no shards"),
        ([some, "--parts", "3"], "holds no shards"),
        ([some, "--parts", "2", "--part", "3"], "is none of the parts, which are 1 to 2"),
    ):
        assert main(["merge", *other]) == 2
        assert told in capsys.readouterr().err
    assert digests(folder) == before
    held_out = part_prefixes(folder / "some", 2)[1].with_name("some-00002-of-00002.validation.idx")
    held_out.unlink()
    assert main(["merge", some]) == 2
    assert "holds no shards" in capsys.readouterr().err


@pytest.mark.parametrize("holdout", [[], ["--holdout", "50%"], ["--holdout", "1k"]])
def test_without_a_document_the_causes_are_told(
    tmp_path: Path,
    corpus: list[str],
    tokenizer_folder: Path,
    capsys: pytest.CaptureFixture[str],
    holdout: list[str],
) -> None:
    words = ["prepare", *corpus, "--tokenizer", str(tokenizer_folder), "--quiet", "--max-rejected", "50%", "--output"]
    assert main([*words, str(tmp_path / "x")]) == 0
    assert main([*words, str(tmp_path / "y"), "--dedup-against", str(tmp_path / "x"), *holdout]) == 2
    told = capsys.readouterr().err
    assert "y: would get no document: " in told and " copies, 2 rejected. Give others." in told


def moved(folder: Path, prefix: Path, to: Path) -> None:
    """Gives a dataset of the folder, with its held-out part, another prefix."""
    for path in [*folder.glob(f"{prefix.name}.*")]:
        path.rename(to.with_name(to.name + path.name.removeprefix(prefix.name)))


def test_a_prefix_stands_for_all_parts_of_one_dataset(
    tmp_path: Path, corpus: list[str], tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever names datasets refuses what some of a dataset's parts are, and two datasets of one name."""
    for name, of, seed in (("a", 3, 1), ("b", 3, 2), ("c", 2, 2)):
        prepare(corpus, tokenizer_folder, tmp_path / name / "x", replace(SETTINGS, parts=of, seed=seed), workers=2)
    (a, b, c), x = (tmp_path / name for name in "abc"), str(tmp_path / "a" / "x")
    assert [Path(name) for name in named_by(x)] == part_prefixes(a / "x", 3)

    def refused(rule: str) -> None:
        for named in (x, f"{x}-*", f"{x}.validation"):
            with pytest.raises(BadInput, match=rule):
                expand_paths([named])
        for named in (x, f"{x}-*.bin"):
            with pytest.raises(BadInput, match=rule):
                find_inputs([named])
        words = ["prepare", *corpus, "--tokenizer", str(tokenizer_folder), "--quiet", "--output", str(tmp_path / "o")]
        for line in (
            ["score", x, "--by", "ngram", "--reference", corpus[0]],
            ["score", str(b / "x"), "--by", "ngram", "--reference", x],
            ["select", x, "--share", "50%", "--keep", "random", "--output", str(tmp_path / "s")],
            ["inspect", x],
            [*words, "--dedup-against", x],
            [*words, "--decontaminate", f"{x}.validation"],
        ):
            capsys.readouterr()
            assert main(line) != 0
            assert "of that dataset" in capsys.readouterr().err
        assert not list(tmp_path.glob("o.*")) and not list(tmp_path.glob("s.*"))

    second = part_prefixes(a / "x", 3)[1]
    moved(a, second, a / "away")
    refused("is part 1 of 3, and part 2 of that dataset")
    moved(b, part_prefixes(b / "x", 3)[1], second)
    refused("is part 1 of 3, and part 2 of that dataset")
    moved(a, second, part_prefixes(b / "x", 3)[1])
    moved(a, a / "away", second)
    assert len(open_datasets([x])) == 3
    first = part_prefixes(a / "x", 3)[0]
    for old, new in ((first, a / "away"), (second, first), (a / "away", second)):  # they change names
        moved(a, old, new)
    with pytest.raises(BadInput, match="is part 2 of 3 by its manifest"):
        named_by(x)
    for old, new in ((first, a / "away"), (second, first), (a / "away", second)):
        moved(a, old, new)
    for one in part_prefixes(c / "x", 2):
        moved(c, one, a / one.name)
    with pytest.raises(BadInput, match="x: is there in different numbers of parts: 2, 3"):
        named_by(x)


def test_a_glob_that_the_shell_expands_names_the_datasets(
    tmp_path: Path,
    corpus: list[str],
    tokenizer_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """.bin and .idx as PREFIX, which stands for all parts; another file of a dataset is told what it is."""
    prepare(corpus, tokenizer_folder, tmp_path / "x", replace(SETTINGS, parts=3), workers=2)
    monkeypatch.chdir(tmp_path)

    def expanded(*patterns: str) -> list[str]:
        return sorted(path.name for pattern in patterns for path in tmp_path.glob(pattern))

    def selected(*named: str) -> bytes:
        words = ["select", *named, "--share", "50%", "--keep", "lowest", "--by", "ngram", "--output", "s"]
        assert main([*words, "--overwrite"]) == 0
        return (tmp_path / "s.selection.npy").read_bytes()

    scoring = ["--by", "ngram", "--reference", "x.validation", "--quiet"]
    assert main(["score", *expanded("x-*-of-00003.bin", "x-*-of-00003.idx"), *scoring]) == 0
    assert capsys.readouterr().out.count("already there") == 0
    assert main(["score", "x", *scoring]) == 0
    assert capsys.readouterr().out.count("already there") == 3
    right = selected("x")
    for patterns in (["x-*-of-00003.bin"], ["x-*-of-00003.idx"], ["x-*-of-00003.bin", "x-*-of-00003.idx"]):
        assert selected(*expanded(*patterns)) == right
    for words in (["score", *scoring], ["select", "--share", "50%", "--keep", "random", "--output", "t"]):
        capsys.readouterr()
        assert main([words[0], *expanded("x-0000[12]*"), *words[1:]]) == 2
        told = capsys.readouterr().err
        assert "is a file beside the dataset x-00001-of-00003, not one itself." in told and told.count("\n") == 1
    assert main(["select", *expanded("x-*.bin"), "--share", "50%", "--keep", "random", "--output", "t"]) == 2
    assert (
        "x-00001-of-00003.validation: is held out from x-00001-of-00003, which is read too" in capsys.readouterr().err
    )


def test_parts_do_not_have_the_name_of_held_out_documents(
    tmp_path: Path, corpus: list[str], tokenizer_folder: Path
) -> None:
    with pytest.raises(BadInput, match="would name the held-out documents of the parts of x too"):
        prepare(corpus, tokenizer_folder, tmp_path / "x.validation", replace(SETTINGS, parts=2), workers=1)
    assert not list(tmp_path.glob("x.*"))


def test_parts_without_manifests_are_known_by_their_names(tmp_path: Path) -> None:
    for name in ("00001-of-00002", "00002-of-00002"):
        idx_path(tmp_path / f"x-{name}").touch()
    assert len(named_by(str(tmp_path / "x"))) == 2
    idx_path(tmp_path / "x-00001-of-00002").unlink()
    with pytest.raises(BadInput, match="is in 2 parts, and part 1 is not there"):
        named_by(str(tmp_path / "x"))


@pytest.mark.parametrize("of", [1, 2])
def test_the_dataset_that_is_written_is_not_what_is_compared_with(
    tmp_path: Path, corpus: list[str], tokenizer_folder: Path, capsys: pytest.CaptureFixture[str], of: int
) -> None:
    output = tmp_path / "out" / "x"
    prepare(corpus, tokenizer_folder, output, replace(SETTINGS, parts=of), workers=2)
    before = digests(output.parent)
    named = [output, *part_prefixes(output, of)]
    named += [Path(f"{prefix}.validation") for prefix in named]
    words = ["prepare", *corpus, "--tokenizer", str(tokenizer_folder), "--quiet", "--overwrite", "--output"]
    for option in ("--dedup-against", "--decontaminate"):
        for prefix in dict.fromkeys(named):
            for parts in ("1", "2"):
                assert main([*words, str(output), "--parts", parts, option, str(prefix)]) != 0
                assert "is the dataset that is written. Name others." in capsys.readouterr().err
    assert digests(output.parent) == before


def test_the_parts_of_a_prefix_are_read_as_one_input(
    tmp_path: Path, corpus: list[str], tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the input of prepare, as items, as a reference, and of inspect; held-out parts never beside others."""
    for of in (1, 2):
        prepare(corpus, tokenizer_folder, tmp_path / str(of) / "x", replace(SETTINGS, parts=of), workers=2)
    one, two = str(tmp_path / "1" / "x"), str(tmp_path / "2" / "x")
    whole = load_manifest(one)
    for name, named in (("p", two), ("q", one)):
        prepare([named], tokenizer_folder, tmp_path / name, PrepareSettings(order="as_read"))
    assert (tmp_path / "p.bin").read_bytes() == (tmp_path / "q.bin").read_bytes()
    with pytest.warns(UserWarning, match=r"x-0000[12]-of-00002.validation: is held out, and left out"):
        by_glob = find_inputs([f"{two}-*.bin"])
    assert by_glob.inputs == find_inputs([two]).inputs and len(by_glob.inputs) == 2
    assert len(find_inputs([f"{two}-*.validation.bin"]).inputs) == 2
    with pytest.raises(BadInput, match=r"x.validation: is held out from .*x, which is read too"):
        find_inputs([one, f"{one}.validation"])

    for ending in ("", ".validation"):
        sets = evaluation_sets([f"{two}{ending}"])
        (single,) = evaluation_sets([f"{one}{ending}"])
        assert [item.texts for part in sets for item in part.items] == [item.texts for item in single.items]
        (reference,) = open_references("--reference", [f"{two}{ending}"], whole)
        (other,) = open_references("--reference", [f"{one}{ending}"], whole)
        assert sum(part.tokens for part in reference.parts) == other.parts[0].tokens > 0
        assert main(["inspect", f"{two}{ending}", "--show", "2", "--verify"]) == 0
        told = capsys.readouterr().out
        assert f"=== {two}-00002-of-00002{ending}, part 2 of 2" in told and told.count("--- document") == 2
