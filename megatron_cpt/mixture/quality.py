"""A source divided by a score of its documents into buckets, best first, each a stream of its own.

1. The documents of a source are ranked by score, ties by their place, and laid end to end.
2. A document is in the bucket in which its middle token falls, the bounds being shares of the source's tokens.
3. Each bucket has its part of the source's weight, from its epochs, its share or a temperature.

Ranking takes memory by document, not by token, on every rank.
Where that is too much, `megatron-cpt select` makes the buckets once, as selections that are mapped from disk.
"""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.config.schema import QualitySettings, SourceSettings
from megatron_cpt.corpus.columns import column_path
from megatron_cpt.corpus.manifest import Described
from megatron_cpt.corpus.packing import PackedStream
from megatron_cpt.corpus.scores import read_score
from megatron_cpt.corpus.selection import SelectedDataset
from megatron_cpt.corpus.stream import TokenStream
from megatron_cpt.mixture.phases import decimal

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def open_source(
    name: str, settings: SourceSettings, packed_length: int | None = None, described: Described | None = None
) -> tuple[dict[str, TokenStream], dict[str, Fraction]]:
    """The streams of a source by name, SOURCE.1 first, and the part of its weight that each has.

    Args:
        packed_length: tokens of the sequences into which documents are packed. None: they are not.
        described: as `open_dataset` takes it.

    Raises BadInput where a dataset or its score is missing, IntegrityFault where one is corrupt.
    """
    quality = settings.quality
    if quality is None:
        return {name: _opened(settings, None, packed_length, described)}, {name: Fraction(1)}
    parts = TokenStream(settings.paths, described=described).documents()
    scores = [_scores(part, quality) for part in parts]
    lengths = [part.lengths for part in parts]
    joined, all_lengths = np.concatenate([np.empty(0), *scores]), np.concatenate([np.empty(0, np.int64), *lengths])
    buckets = bucket_numbers(joined, all_lengths, quality.buckets)
    portions = bucket_portions(quality, joined, all_lengths, buckets)
    ends = np.cumsum([len(part.documents) for part in parts])
    by_part = list(zip(parts, np.split(buckets, ends[:-1]), strict=True)) if parts else []
    streams = {
        f"{name}.{number + 1}": _opened(
            settings, [_only(part, own == number) for part, own in by_part], packed_length, None
        )
        for number in range(len(portions))
    }
    return streams, dict(zip(streams, portions, strict=True))


def _opened(
    settings: SourceSettings,
    only: Sequence[SelectedDataset] | None,
    packed_length: int | None,
    described: Described | None,
) -> TokenStream:
    if packed_length is None:
        return TokenStream(settings.paths, only, described)
    return PackedStream(settings.paths, only, packed_length, described)


def bucket_numbers(scores: Floats, lengths: Integers, bounds: Sequence[float]) -> Integers:
    """The bucket of each document, from 0, the best: int64[documents].

    Args:
        scores: float64[documents], lower is better.
        lengths: int64[documents], tokens.
        bounds: shares of the tokens at which buckets begin and end, from 0 to 1.
    """
    ranked = np.argsort(scores, kind="stable")
    ends = np.cumsum(lengths[ranked])
    # Twice the middle, so that it stays a whole number.
    middles = 2 * ends - lengths[ranked]
    total = int(ends[-1]) if len(ends) else 0
    inner = np.array([float(2 * total * decimal(bound)) for bound in bounds[1:-1]])
    numbers = np.empty(len(scores), np.int64)
    numbers[ranked] = np.searchsorted(inner, middles, side="right")
    return numbers


def bucket_portions(
    quality: QualitySettings, scores: Floats, lengths: Integers, buckets: Integers
) -> tuple[Fraction, ...]:
    """The part of its source's weight that each bucket has; they sum to 1.

    Args:
        scores: float64[documents], lower is better.
        lengths: int64[documents], tokens.
        buckets: int64[documents], from `bucket_numbers`.
    """
    count = len(quality.buckets) - 1
    tokens = [int(total) for total in np.bincount(buckets, lengths, count)]
    if quality.epochs is not None:
        raw = [decimal(epochs) * size for epochs, size in zip(quality.epochs, tokens, strict=True)]
    elif quality.shares is not None:
        raw = [decimal(share) for share in quality.shares]
    else:
        raw = _by_temperature(quality.temperature or 1.0, scores, lengths, buckets, count)
    total = sum(raw, Fraction(0))
    return tuple(part / total if total else Fraction(0) for part in raw)


def _by_temperature(
    temperature: float, scores: Floats, lengths: Integers, buckets: Integers, count: int
) -> list[Fraction]:
    """The sum over each bucket's tokens of exp(z / temperature).

    To six digits, so that machines agree, but for a sum on a rounding edge.
    """
    everything = float(lengths.sum()) or 1.0
    mean = float(scores @ lengths) / everything
    spread = float(np.sqrt(((scores - mean) ** 2) @ lengths / everything)) or 1.0
    exponents = (mean - scores) / spread / temperature
    factors = np.exp(exponents - exponents.max(initial=0))
    sums = np.bincount(buckets, factors * lengths, count)
    return [decimal(float(f"{total:.6g}")) for total in sums.tolist()]


def _scores(part: SelectedDataset, quality: QualitySettings) -> Floats:
    """Scores of the documents of a part, lower is better."""
    scores = np.asarray(read_score(part.prefix, quality.score, part.manifest)[part.documents], np.float64)
    if not np.isfinite(scores).all():
        shown = str(column_path(part.prefix, quality.score))
        raise BadInput(Fault(shown, "does not have a finite number for each document.", "Score the dataset again."))
    return -scores if quality.best == "highest" else scores


def _only(part: SelectedDataset, mask: npt.NDArray[np.bool_]) -> SelectedDataset:
    return replace(part, documents=part.documents[mask], starts=part.starts[mask], lengths=part.lengths[mask])
