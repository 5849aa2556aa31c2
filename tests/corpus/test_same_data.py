"""The same tokens are the same data, whatever the manifest beside them says, or without one."""

import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_cpt.config.errors import BadInput, IntegrityFault
from megatron_cpt.corpus.indexed import bin_path, manifest_path
from megatron_cpt.corpus.manifest import data_names, open_dataset, read_manifest, verify_dataset, write_manifest
from megatron_cpt.corpus.scores import read_score, write_score
from megatron_cpt.corpus.selection import concatenate, load_selection
from megatron_cpt.corpus.stream import TokenStream
from megatron_cpt.quality.select import HowMany, select
from tests.corpus.datasets import write_dataset


def written(prefix: Path, first: int = 0, known: str = "manifest", lengths: tuple[int, ...] = (30, 20)) -> Path:
    """A dataset with the manifest that the program writes with it, or with what another way leaves beside it."""
    write_dataset(Path(f"{prefix}.part"), lengths, first=first)
    concatenate([f"{prefix}.part"], prefix)
    if known == "older manifest":
        write_manifest(prefix, replace(read_manifest(prefix), samples_sha256=None))
    elif known != "manifest":
        without_manifest(prefix)
    if known == "verified":
        verify_dataset(prefix)
    return prefix


def without_manifest(prefix: Path) -> Path:
    manifest_path(prefix).unlink()
    return prefix


def copy(prefix: Path, to: Path) -> Path:
    """The pair alone, as `cp PREFIX.bin PREFIX.idx` copies it."""
    to.parent.mkdir(exist_ok=True)
    for ending in (".bin", ".idx"):
        shutil.copy(f"{prefix}{ending}", f"{to}{ending}")
    return to


WAYS = ("manifest", "older manifest", "none", "verified")


@given(datasets=st.lists(st.tuples(st.integers(0, 2), st.sampled_from(WAYS)), min_size=2, max_size=4))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_datasets_have_one_name_just_where_their_tokens_are_the_same(datasets: list[tuple[int, str]]) -> None:
    """All have one index: only the tokens tell them apart. A stream and a merge refuse those that are twice there."""
    with TemporaryDirectory() as folder:
        prefixes = [written(Path(folder) / f"{number}", first, known) for number, (first, known) in enumerate(datasets)]
        names = data_names([open_dataset(prefix) for prefix in prefixes])
        for name, (first, _) in zip(names, datasets, strict=True):
            assert [name == other for other in names] == [first == another for another, _ in datasets]
        if len(set(names)) < len(names):
            with pytest.raises(BadInput, match="share 2 documents"):
                TokenStream(prefixes)
            with pytest.raises(BadInput, match="is the same data as"):
                concatenate(prefixes, Path(folder) / "joined")
        else:
            assert TokenStream(prefixes).tokens == concatenate(prefixes, Path(folder) / "joined").tokens


def test_a_copy_without_its_manifest_is_refused_beside_what_was_made_of_the_dataset(tmp_path: Path) -> None:
    prefix, other = written(tmp_path / "data"), written(tmp_path / "other", first=100)
    copied = copy(prefix, tmp_path / "e" / "data")
    selected = select([str(prefix)], tmp_path / "half", HowMany(documents=1), keep="random").selection
    for paths in ([copied, selected.path], [prefix, copied]):
        with pytest.raises(BadInput, match="share"):
            TokenStream(paths)
    with pytest.raises(BadInput, match="share 2 documents"):
        select([str(copied), str(prefix)], tmp_path / "both", HowMany(documents=1), keep="random")
    joined = tmp_path / "joined"
    concatenate([prefix, other], joined)
    with pytest.raises(BadInput, match=r"is in .*joined already, which was joined of it"):
        concatenate([joined, copied], tmp_path / "again")


def test_a_score_and_a_selection_are_known_again_where_the_manifest_came_or_went(tmp_path: Path) -> None:
    prefix = written(tmp_path / "data")
    kept = manifest_path(prefix).read_bytes()
    write_score(prefix, "q", open_dataset(prefix)[1], [np.zeros(2, np.float32)], {})
    name = tmp_path / "half"
    select([str(prefix)], name, HowMany(documents=1), keep="random")

    without_manifest(prefix)
    for read in (lambda: read_score(prefix, "q", open_dataset(prefix)[1]), lambda: load_selection(name)):
        with pytest.raises(BadInput) as error:
            read()
        assert "it lies without one of `prepare`, and is known by samples alone" in str(error.value)
        assert f"run `megatron-cpt inspect {prefix} --verify`" in str(error.value)
    verify_dataset(prefix)
    assert len(read_score(prefix, "q", open_dataset(prefix)[1])) == 2 and load_selection(name).tokens

    without_manifest(prefix)
    # Of what is known by samples.
    write_score(prefix, "q", open_dataset(prefix)[1], [np.zeros(2, np.float32)], {}, overwrite=True)
    manifest_path(prefix).write_bytes(kept)
    assert len(read_score(prefix, "q", open_dataset(prefix)[1])) == 2


def test_verify_takes_the_samples_that_a_manifest_of_a_version_before_does_not_have(tmp_path: Path) -> None:
    prefix = written(tmp_path / "data")
    manifest = read_manifest(prefix)
    write_manifest(prefix, replace(manifest, samples_sha256=None))
    assert verify_dataset(prefix) == read_manifest(prefix) == manifest


@pytest.mark.parametrize("known", ["manifest", "none"])
def test_other_tokens_under_a_manifest_are_found_by_samples(tmp_path: Path, known: str) -> None:
    """Those of a pair without a manifest of its own when it is opened, all at the start of a run."""
    prefix = written(tmp_path / "data", known=known, lengths=(400_000,))
    stream = TokenStream([prefix])
    shutil.copy(bin_path(write_dataset(tmp_path / "other", [400_000], first=1)), bin_path(prefix))
    for read in (stream.spot_check, *([lambda: TokenStream([prefix])] if known == "none" else [])):
        with pytest.raises(IntegrityFault, match=r"data\.bin: samples of its tokens are not those"):
            read()
