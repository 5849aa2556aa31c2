from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_cpt.config.errors import BadInput
from megatron_cpt.corpus.indexed import bin_path
from megatron_cpt.corpus.stream import TokenStream, expand_paths
from megatron_cpt.quality.select import HowMany, select
from tests.corpus.datasets import write_dataset


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=6), min_size=1, max_size=3),
    start=st.integers(0, 10**12),
    length=st.integers(0, 90),
    share=st.none() | st.floats(0.3, 1),
)
def test_a_read_is_a_slice_of_the_endless_stream(
    tmp_path: Path, lengths: list[list[int]], start: int, length: int, share: float | None
) -> None:
    paths = []
    for number, documents in enumerate(lengths):
        documents[0] += 1
        paths.append(str(write_dataset(tmp_path / f"d{number}", documents, 1000 * number)))
    expected = [1000 * n + token for n, documents in enumerate(lengths) for token in range(sum(documents))]
    if share is not None:
        budget = max(int(share * len(expected)), max(map(max, lengths)))
        selection = select(paths, tmp_path / "s", HowMany(tokens=budget), keep="random", overwrite=True).selection
        paths = [str(selection.path)]
        expected = [
            1000 * int(part.prefix.name[1:]) + token
            for part in selection.datasets
            for begin, size in zip(part.starts, part.lengths, strict=True)
            for token in range(begin, begin + size)
        ]
    if not expected:
        return
    stream = TokenStream(paths)
    assert stream.tokens == len(expected)
    tokens = stream.read(start, length)
    assert tokens.dtype == np.int64
    assert tokens.tolist() == [expected[(start + i) % len(expected)] for i in range(length)]
    begins = {1000 * n + sum(documents[:i]) for n, documents in enumerate(lengths) for i in range(len(documents))}
    assert stream.document_starts(start, length).tolist() == [i for i in range(length) if int(tokens[i]) in begins]


def test_nothing_but_the_index_is_read_before_the_first_token(tmp_path: Path) -> None:
    prefix = write_dataset(tmp_path / "data", [3, 4])
    stream = TokenStream([prefix])
    identity = stream.identity
    size = bin_path(prefix).stat().st_size
    bin_path(prefix).unlink()
    bin_path(prefix).write_bytes(b"\x05\0\0\0" * (size // 4))
    assert (stream.tokens, stream.identity) == (7, identity)
    assert stream.read(0, 2).tolist() == [5, 5]


def test_identity_is_of_the_content_not_of_where_it_lies(tmp_path: Path) -> None:
    first, copy = write_dataset(tmp_path / "a", [3, 4]), write_dataset(tmp_path / "copy", [3, 4])
    other = write_dataset(tmp_path / "b", [3, 4], first=1)
    assert TokenStream([first]).identity == TokenStream([copy]).identity
    assert TokenStream([first]).identity != TokenStream([other]).identity
    assert TokenStream([first, other]).identity != TokenStream([other, first]).identity
    half = select([str(first)], tmp_path / "half", HowMany(tokens=4), keep="random", seed=1).selection
    assert TokenStream([half.path]).identity != TokenStream([first]).identity
    assert [manifest.tokens for manifest in TokenStream([half.path]).manifests] == [7]


def test_paths_that_share_documents_are_refused(tmp_path: Path) -> None:
    prefix = write_dataset(tmp_path / "a", [3, 4, 5])
    copy = write_dataset(tmp_path / "copy", [3, 4, 5])
    part = select([str(prefix)], tmp_path / "part", HowMany(tokens=5), keep="random").selection
    for paths in ([prefix, prefix], [prefix, copy], [prefix, part.path], [part.path, part.path]):
        with pytest.raises(BadInput, match="share"):
            TokenStream(paths)


def test_selections_of_one_dataset_that_share_nothing_are_read_together(tmp_path: Path) -> None:
    prefix = write_dataset(tmp_path / "a", [3] * 4)
    np.save(tmp_path / "a.score.npy", np.arange(4.0))
    low = select([str(prefix)], tmp_path / "low", HowMany(tokens=6), keep="lowest", by="score").selection
    high = select([str(prefix)], tmp_path / "high", HowMany(tokens=6), keep="highest", by="score").selection
    assert TokenStream([high.path, low.path]).read(0, 12).tolist() == [*range(6, 12), *range(6)]


def test_an_empty_stream_counts_nothing_and_cannot_be_read(tmp_path: Path) -> None:
    stream = TokenStream([write_dataset(tmp_path / "a", [])])
    assert stream.tokens == 0
    with pytest.raises(ValueError):
        stream.read(0, 1)


def test_globs_name_prefixes_or_selections(tmp_path: Path) -> None:
    for name in ("b", "a", "a.validation", "sub/c"):
        write_dataset(tmp_path / name, [1], first=ord(name[-1]))
    (tmp_path / "x.selection.json").write_text("{}")

    def names(*patterns: str) -> list[str]:
        found = expand_paths([str(tmp_path / pattern) for pattern in patterns])
        return [str(path.relative_to(tmp_path)) for path in found]

    assert names("*") == ["a", "b"]
    assert names("*.validation") == ["a.validation"]
    assert names("**/*") == ["a", "b", "sub/c"]
    assert names("*.selection.json", "b", "a.idx") == ["x.selection.json", "b", "a"]
    with pytest.raises(BadInput, match="matches no dataset"):
        names("z*")
    with pytest.raises(BadInput, match="is not there"):
        TokenStream([tmp_path / "missing"])
