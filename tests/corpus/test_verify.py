from dataclasses import replace
from pathlib import Path

import pytest

from megatron_cpt.config.errors import IntegrityFault
from megatron_cpt.corpus.manifest import Manifest, load_manifest, verify_dataset, write_manifest
from tests.corpus.datasets import write_dataset


def described(prefix: Path, **known: int) -> Manifest:
    """A manifest that says more of the pair than its files do."""
    manifest = replace(load_manifest(prefix), **known)  # type: ignore[arg-type]
    write_manifest(prefix, manifest)
    return manifest


def test_what_the_manifest_says_is_proved(tmp_path: Path) -> None:
    # Documents [0 1 2], [], [3 4].
    prefix = write_dataset(tmp_path / "data", [3, 0, 2])
    manifest = described(prefix, vocabulary_size=5)
    assert replace(verify_dataset(prefix), whole_sha256=None) == manifest
    described(prefix, vocabulary_size=4)
    with pytest.raises(IntegrityFault, match="token 4 is 4, outside the vocabulary"):
        verify_dataset(prefix)


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"eod": 2}, r"1 documents do not end with EOD \(2\), the first is document 2"),
        ({"bos": 3}, r"1 documents do not begin with BOS \(3\), the first is document 0"),
    ],
)
def test_documents_that_begin_or_end_otherwise_are_found(tmp_path: Path, known: dict[str, int], message: str) -> None:
    prefix = write_dataset(tmp_path / "data", [3, 0, 2])
    described(prefix, **known)
    with pytest.raises(IntegrityFault, match=message):
        verify_dataset(prefix)
