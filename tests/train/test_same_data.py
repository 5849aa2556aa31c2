"""A run knows its data by what they are: a manifest that came or went changes nothing, other tokens are refused."""

import shutil
from dataclasses import replace
from itertools import chain
from pathlib import Path

import orjson
import pytest

from megatron_cpt.commands.dispatch import main
from megatron_cpt.config.errors import IntegrityFault
from megatron_cpt.corpus.indexed import IndexedDataset, bin_path, manifest_path
from megatron_cpt.corpus.manifest import read_manifest, samples_of, write_manifest
from megatron_cpt.runs.checkpoint_state import read_hashes, write_marker
from megatron_cpt.runs.folder import ExitCode, file_sha256
from tests.ranks import Ranks
from tests.train.runs import records_of, refusal, train
from tests.train.test_resume import cut_back
from tests.workshop import Workshop

KEPT = ("checkpoint.keep_last=9",)
NAMES = ("domain", "domain.validation", "general", "general.validation")


def copied(workshop: Workshop, folder: Path, endings: tuple[str, ...] = (".bin", ".idx", ".manifest.json")) -> Path:
    """The datasets of the workshop in a folder of their own."""
    folder.mkdir()
    for name in NAMES:
        for ending in endings:
            shutil.copy(f"{workshop.prefix(name)}{ending}", f"{folder / name}{ending}")
    return folder


def config(workshop: Workshop, run: Path, data: Path) -> Path:
    """The run of the workshop on the datasets of a folder."""
    path = workshop.write_config(run)
    path.write_text(path.read_text().replace(f"{workshop.folder}/domain", f"{data}/domain"))
    path.write_text(path.read_text().replace(f"{workshop.folder}/general", f"{data}/general"))
    return path


def without_manifests(data: Path) -> None:
    for name in NAMES:
        manifest_path(data / name).unlink()


def other_tokens(prefix: Path) -> None:
    """A file of the same size and other tokens, beside an index that fits it."""
    content = bin_path(prefix).read_bytes()
    bin_path(prefix).write_bytes(content[-2000:] + content[:-2000])


def forget_samples(checkpoint: Path) -> None:
    """Leaves a checkpoint as of a run on datasets whose manifests hold no samples."""
    path = checkpoint / "position.json"
    position = orjson.loads(path.read_bytes())
    for known in chain(*position["datasets"].values()):
        known["samples_sha256"] = None
    path.write_bytes(orjson.dumps(position))
    write_marker(checkpoint, read_hashes(checkpoint) | {path.name: file_sha256(path)})


def integrity_fault(path: Path) -> str:
    """Job: what a run says of data that are not what was written."""
    with pytest.raises(IntegrityFault) as error:
        train(path)
    return str(error.value)


def test_a_copy_without_its_manifest_does_not_pass_for_other_text(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As what validates, and as a second source."""
    copy = copied(workshop, tmp_path / "e", (".bin", ".idx")) / "domain"
    path = workshop.write_config(tmp_path / "run")
    for word, said in (
        (f"validation.sets.domain.paths=[{copy}]", f"validation.sets.domain.paths: {copy}: data.sources.domain trains"),
        (f"data.sources.copy={{paths: [{copy}]}}", "data.sources.domain and data.sources.copy: share"),
        (f"data.sources.domain.paths=[{workshop.prefix('domain')}, {copy}]", f"{copy}: share"),
    ):
        assert main(["plan", str(path), word]) == ExitCode.BAD_INPUT
        assert said in capsys.readouterr().err
        assert said in one_rank.call(refusal, path=path, overrides=(word,))[0]


@pytest.fixture(scope="module")
def runs(one_rank: Ranks, workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Finished runs on datasets with and without manifests, each with the folder of its data."""
    found = {}
    for name, endings in (("with", (".bin", ".idx", ".manifest.json")), ("without", (".bin", ".idx"))):
        folder = tmp_path_factory.mktemp(name)
        data = copied(workshop, folder / "data", endings)
        one_rank.call(train, path=config(workshop, folder / "run", data), overrides=KEPT)
        found[name] = (folder / "run", data)
    return found


def begun(runs: dict[str, tuple[Path, Path]], name: str, workshop: Workshop, tmp_path: Path) -> tuple[Path, Path, Path]:
    """A copy of one of the runs after its first checkpoint, its data and its configuration."""
    run, data = runs[name]
    cut_back(run, 4, tmp_path / "run")
    shutil.copytree(data, tmp_path / "data")
    return tmp_path / "run", tmp_path / "data", config(workshop, tmp_path / "run", tmp_path / "data")


def unchanged(run: Path, before: Path) -> bool:
    """Whether two runs have the same records, but for what tells that the data were moved."""
    one, other = ([r for r in records_of(path) if r["kind"] != "event"] for path in (run, before))
    return one == other


@pytest.mark.ci
@pytest.mark.parametrize("name", ["with", "without"])
def test_a_manifest_that_comes_or_goes_changes_nothing(
    one_rank: Ranks,
    workshop: Workshop,
    tmp_path: Path,
    runs: dict[str, tuple[Path, Path]],
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    run, data, path = begun(runs, name, workshop, tmp_path)
    if name == "with":
        without_manifests(data)
    else:
        shutil.rmtree(data)
        copied(workshop, data)
    assert main(["plan", str(path)]) == ExitCode.DONE
    one_rank.call(train, path=path, overrides=KEPT)
    assert unchanged(run, runs[name][0])
    for step in (12, 8):
        shutil.rmtree(run / "checkpoints" / f"step-{step:08}")
    one_rank.call(train, path=path, overrides=KEPT)
    shutil.rmtree(run / "checkpoints" / "step-00000012")
    shutil.rmtree(data)  # and back: the checkpoint of step 8 knows both
    shutil.copytree(runs[name][1], data)
    one_rank.call(train, path=path, overrides=KEPT)
    assert unchanged(run, runs[name][0])


def test_what_became_of_the_data_is_told(
    workshop: Workshop, tmp_path: Path, runs: dict[str, tuple[Path, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    """The checkpoint of a version before holds no samples: a dataset is known again once all of it is read."""
    _, data, path = begun(runs, "with", workshop, tmp_path)
    kept = {name: read_manifest(data / name) for name in NAMES}
    forget_samples(tmp_path / "run" / "checkpoints" / "step-00000004")
    without_manifests(data)
    assert main(["plan", str(path)]) == ExitCode.BAD_INPUT
    said = capsys.readouterr().err
    lost = "was known by a hash of all its tokens, and by samples now: its manifest is gone"
    for name in ("data.sources.domain", "data.sources.general"):
        prefix = data / name.rpartition(".")[2]
        assert f"{name}: {prefix} {lost}" in said
        assert f"Copy its manifest beside it again, or run `megatron-cpt inspect {prefix} --verify`" in said
    assert f"which labels count and how); {data}/general.validation {lost}" in said
    for name in NAMES:
        assert main(["inspect", str(data / name), "--verify"]) == ExitCode.DONE
    assert main(["plan", str(path)]) == ExitCode.DONE

    other_tokens(data / "domain")
    dataset = IndexedDataset(data / "domain")
    written_anew = samples_of(dataset.prefix, dataset.index_sha256)
    write_manifest(dataset.prefix, replace(kept["domain"], data_sha256="0" * 64, samples_sha256=written_anew))
    capsys.readouterr()
    assert main(["plan", str(path)]) == ExitCode.BAD_INPUT
    said = capsys.readouterr().err
    moved = f"{data}/domain in place of {runs['with'][1]}/domain"
    assert f"data.sources.domain: {moved} holds other tokens than were read" in said


def test_other_tokens_under_a_manifest_are_refused_at_the_start(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A plan reads no tokens of what has a manifest of its own; a run does, of its validation sets too."""
    for number, name in enumerate(("domain", "general.validation")):
        data = copied(workshop, tmp_path / f"with-{number}")
        other_tokens(data / name)
        said = one_rank.call(integrity_fault, path=config(workshop, tmp_path / f"run-{number}", data))[0]
        assert f"{name}.bin: samples of its tokens are not those that its manifest knows it by" in said
    data = copied(workshop, tmp_path / "without", (".bin", ".idx"))
    path = config(workshop, tmp_path / "run", data)
    assert main(["plan", str(path)]) == ExitCode.DONE
    other_tokens(data / "domain")
    for command in ("plan", "train"):
        assert main([command, str(path)]) == ExitCode.INTEGRITY
        assert (
            "domain.bin: samples of its tokens are not those that its manifest knows it by" in capsys.readouterr().err
        )
