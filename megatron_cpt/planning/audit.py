"""What stock Megatron-LM does with a blend, told from the .idx files alone, beside what our order does.

As read in Megatron-Core 0.16.1 (megatron/core/datasets/), which tests hold it against:

1. blended_megatron_dataset_builder.py: a source of normalised weight w is to give ceil(N w) of the N samples, and
   is built for ceil(1.005 ceil(N w)). A single source without a weight is built for N; several without weights are
   read once, in proportion to their samples.
2. gpt_dataset.py: the documents of the split are repeated for as many epochs as hold that many samples of L tokens and
   one token more. A last epoch of which less than 80 % is needed stays apart; all others are joined and shuffled as one
   list of documents, then cut into samples, which are shuffled again.

So after a share f of E joined epochs, a token is still unseen with probability (1 - f)^E and has been read twice or
more with 1 - (1 - f)^E - E f (1 - f)^(E - 1): the copies of a document lie anywhere. That holds for many samples; of
small sources the same steps are done some times, and the mean is taken. These two figures are expectations over the
shuffle; everything else here is exact.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from math import ceil

import numpy as np
import numpy.typing as npt

from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault
from megatron_cpt.config.units import short_count
from megatron_cpt.corpus.indexed import HEADER, MAGIC, idx_path
from megatron_cpt.planning.text_tables import columns, percent

_SURPLUS = 0.005
"""BlendedMegatronDatasetConfig.mid_level_dataset_surplus, its default."""
_SEPARATE_BELOW = 0.80
"""A last epoch of which less is needed is not shuffled into the others."""
QUARTERS = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class SourceAudit:
    """What stock Megatron-LM does with one source."""

    prefix: str
    """Prefix of the dataset."""
    weight: float
    """Normalised weight."""
    tokens: int
    """Tokens of one pass over the documents of the training split."""
    requested: int
    """Samples that it is to give to the run."""
    built: int
    """Samples that are asked of it, with the surplus."""
    available: int
    """Samples in the epochs that are built."""
    epochs: int
    """Epochs built: whole passes over its documents."""
    joined_epochs: int
    """Epochs shuffled together as one list of documents, before a last one that stays apart."""
    joined_samples: int
    """Samples of the joined epochs."""
    sequence_length: int
    """Tokens of a sample."""
    lengths: tuple[int, ...] = field(default=(), repr=False)
    """Tokens of each document of the training split, where the source is small; empty where it is not."""

    @property
    def passes(self) -> float:
        """Passes over its text that the run takes."""
        return self.requested * self.sequence_length / self.tokens

    @property
    def epochs_by_surplus(self) -> int:
        """Epochs that are built for the surplus alone."""
        return self.epochs - epochs_for(self.requested, self.sequence_length, self.tokens)

    def unseen(self, share: float) -> float:
        """Expected share of its text still unseen after a share of the run."""
        if self.lengths:
            return self._simulated(share)[0]
        read = share * self.requested
        if read >= self.joined_samples:
            return 0.0
        return (1 - read / self.joined_samples) ** self.joined_epochs

    def repeated(self, share: float) -> float:
        """Expected share of its text read twice or more after a share of the run."""
        if self.lengths:
            return self._simulated(share)[1]
        read, epochs = share * self.requested, self.joined_epochs
        part = min(1.0, read / max(1, self.joined_samples))
        last = max(0.0, read - self.joined_samples) / max(1, self.available - self.joined_samples)
        once = epochs * part * (1 - part) ** (epochs - 1)
        return 1 - self.unseen(share) - once * (1 - last)

    def _simulated(self, share: float) -> tuple[float, float]:
        epochs, length = (self.joined_epochs, self.epochs), self.sequence_length
        return simulated(self.lengths, epochs, (self.joined_samples, self.available), length, share * self.requested)

    def ours_unseen(self, share: float) -> float:
        """Share of its text unseen after a share of the run in our order: none before the first epoch is whole."""
        return max(0.0, 1 - share * self.passes)


_SPLITS = ("training", "validation", "test")
Span = tuple[float, float]
"""A part of the documents, as shares from 0 to 1."""


def split_spans(split: str) -> tuple[Span | None, ...]:
    """The spans of a `--split`, of training, validation and test, as Megatron-Core sums them. Raises BadInput."""
    try:
        shares = [float(word) for word in split.replace("/", ",").split(",")]
    except ValueError:
        shares = []
    if not 0 < len(shares) <= len(_SPLITS) or not all(0 <= share < math.inf for share in shares) or shares[0] == 0:
        rule = "it should be up to three numbers that are not negative, the first above 0."
        raise BadInput(Fault(f"--split {split}", rule, "Write, for example, 969,30,1."))
    normalised = np.array([*shares, 0.0, 0.0][: len(_SPLITS)])
    normalised = normalised / np.sum(normalised)
    ends = [0.0]
    for share in normalised.tolist():
        ends.append(ends[-1] + share)
    return tuple((begin, end) if end > begin else None for begin, end in pairwise(ends))


_WHOLE: tuple[Span | None, ...] = ((0.0, 1.0), None, None)


def audit(
    prefixes: Sequence[str],
    weights: Sequence[float] | None,
    samples: int,
    sequence_length: int,
    spans: Sequence[Span | None] = _WHOLE,
) -> list[SourceAudit]:
    """What stock Megatron-LM does with a blend, a row a source.

    Args:
        weights: finite and above 0; they are normalised. None: a single prefix, or several read once each.
        samples: `--train-samples`.
        spans: the documents of training, validation and test, from `split_spans`.
    Raises:
        BadInput: an index is missing, one of its splits has no tokens, or a weight is not above 0: the stock order does
            not start, or never ends building.
        IntegrityFault: an index is not one.
    """
    faults: list[Fault] = []
    lengths: list[npt.NDArray[np.int32]] = []
    for value, name in ((samples, "--train-samples"), (sequence_length, "--seq-length")):
        if value < 1:
            faults.append(Fault(f"{name} {value}", "must be 1 or more.", "Give the number of the run."))
    for prefix, weight in zip(prefixes, weights or [1.0] * len(prefixes), strict=True):
        if not 0 < weight < math.inf:
            rule = "stock Megatron-LM takes finite weights above 0 alone."
            faults.append(Fault(f"{prefix}: weight {weight:g}", rule, "Leave the source out, or give it a weight."))
            continue
        try:
            parts = _parts(prefix, spans)
        except BadInput as error:
            faults += error.faults
            continue
        for name, part in zip(_SPLITS, parts, strict=True):
            if part is not None and not part.sum(dtype=np.int64):
                rule = f"its {name} split has no tokens: stock Megatron-LM counts epochs of it without end."
                remedy = "Leave the source out." if name == "training" else "Give --split a larger share for it, or 0."
                faults.append(Fault(prefix, rule, remedy))
        lengths.append(parts[0] if parts[0] is not None else np.empty(0, np.int32))
    if faults:
        raise BadInput(*faults)
    if weights is None and len(prefixes) > 1:
        return _once_each(prefixes, lengths, samples, sequence_length)
    # As numpy.sum rounds, and as Megatron-Core's normalize divides.
    normalised = (np.array(weights or [1.0]) / np.sum(np.array(weights or [1.0]))).tolist()
    surplus = 0.0 if weights is None else _SURPLUS
    return [
        _row(prefix, weight, length, ceil(samples * weight), sequence_length, surplus)
        for prefix, weight, length in zip(prefixes, normalised, lengths, strict=True)
    ]


def _once_each(
    prefixes: Sequence[str], lengths: Sequence[npt.NDArray[np.int32]], samples: int, sequence_length: int
) -> list[SourceAudit]:
    """Sources without weights: one epoch each, drawn in proportion to their samples."""
    counts = [(int(length.sum(dtype=np.int64)) - 1) // sequence_length for length in lengths]
    total = sum(counts)
    size = min(samples, total)
    return [
        SourceAudit(
            prefix=prefix,
            weight=count / total if total else 0.0,
            tokens=int(length.sum(dtype=np.int64)),
            requested=round(size * count / total) if total else 0,
            built=count,
            available=count,
            epochs=1,
            joined_epochs=1,
            joined_samples=count,
            sequence_length=sequence_length,
        )
        for prefix, length, count in zip(prefixes, lengths, counts, strict=True)
    ]


def _parts(prefix: str, spans: Sequence[Span | None]) -> list[npt.NDArray[np.int32] | None]:
    """Tokens of the entries of an index in each span of it, rounded as Megatron-Core rounds."""
    path = idx_path(prefix)
    if not path.is_file():
        raise BadInput(Fault(str(path), "is not there.", "Give prefixes PREFIX of indices PREFIX.idx."))
    with path.open("rb") as file:
        head = file.read(HEADER.size)
    if not head.startswith(MAGIC) or len(head) < HEADER.size:
        raise IntegrityFault(f"{path}: is not a Megatron index")
    entries = HEADER.unpack(head)[3]
    if path.stat().st_size < HEADER.size + 4 * entries:
        raise IntegrityFault(f"{path}: is cut short")
    lengths = np.empty(0, "<i4")
    if entries:
        lengths = np.memmap(path, "<i4", mode="r", offset=HEADER.size, shape=(entries,))
    bounds = [None if span is None else [round(share * float(entries)) for share in span] for span in spans]
    return [None if bound is None else lengths[bound[0] : bound[1]] for bound in bounds]


_SIMULATED_TOKENS = 1 << 20
"""Tokens of all epochs of a source, up to which it is simulated."""
_SIMULATIONS = 16


@lru_cache(maxsize=64)
def simulated(
    lengths: tuple[int, ...], epochs: tuple[int, int], samples: tuple[int, int], sequence_length: int, read: float
) -> tuple[float, float]:
    """Shares of the text that are unseen, and read twice or more, after so many samples: means over some shuffles.

    Args:
        lengths: tokens of each document.
        epochs: those shuffled together, and all.
        samples: of the joined epochs, and of all.
        read: samples read; of the last one a part.
    """
    ends = np.cumsum(lengths)
    tokens = int(ends[-1])
    whole = min(samples[1], round(read))
    sums = np.zeros(2)
    for seed in range(_SIMULATIONS):
        random = np.random.default_rng(seed)
        joined = random.permutation(np.repeat(np.arange(len(lengths)), epochs[0]))
        order = np.concatenate([joined, *(random.permutation(len(lengths)) for _ in range(epochs[1] - epochs[0]))])
        stream = np.concatenate([np.arange(ends[number] - lengths[number], ends[number]) for number in order])
        first = random.permutation(samples[0])
        taken = np.concatenate([first, samples[0] + random.permutation(samples[1] - samples[0])])[:whole]
        places = (taken[:, None] * sequence_length + np.arange(sequence_length)).ravel()
        times = np.bincount(stream[places], minlength=tokens)
        sums += (np.mean(times == 0), np.mean(times >= 2))
    unseen, repeated = (sums / _SIMULATIONS).tolist()
    return unseen, repeated


def epochs_for(samples: int, sequence_length: int, tokens: int) -> int:
    """Whole passes that hold so many samples and one token more (`_get_num_epochs`)."""
    return max(1, -(-(samples * sequence_length + 1) // tokens))


def audit_lines(rows: Sequence[SourceAudit]) -> list[str]:
    """The audit as a table, and a sentence on everything that is likely not meant."""
    heading = ["source", "weight", "tokens", "samples", "with surplus", "passes", "epochs built", "joined"]
    quarters = [f"at {share:.0%}".replace("%", " %") for share in QUARTERS]
    table = columns(
        [
            heading,
            *(
                [
                    row.prefix,
                    percent(row.weight),
                    short_count(row.tokens),
                    f"{row.requested:,}",
                    f"{row.built:,}",
                    f"{row.passes:.3f}",
                    str(row.epochs),
                    str(row.joined_epochs),
                ]
                for row in rows
            ),
        ],
        "lrrrrrrr",
    )
    seen = columns(
        [
            ["share of the text, expected", "", *quarters],
            *(
                [row.prefix, label, *(percent(figure(share)) for share in QUARTERS)]
                for row in rows
                for label, figure in (
                    ("unseen", row.unseen),
                    ("read twice or more", row.repeated),
                    ("unseen in our order", row.ours_unseen),
                )
            ),
        ],
        "llrrrr",
    )
    return [*table, "", *seen, *(f"- {sentence}" for row in rows for sentence in _remarks(row))]


def _row(
    prefix: str,
    weight: float,
    lengths: npt.NDArray[np.int32],
    requested: int,
    sequence_length: int,
    surplus: float,
) -> SourceAudit:
    tokens = int(lengths.sum(dtype=np.int64))
    built = ceil(requested * (1 + surplus))
    epochs = epochs_for(built, sequence_length, tokens)
    available = (epochs * tokens - 1) // sequence_length
    joined_epochs, joined_samples = epochs, available
    if epochs > 1:
        before_last = ((epochs - 1) * tokens - 1) // sequence_length
        if built - before_last < int(_SEPARATE_BELOW * ((tokens - 1) // sequence_length)):
            joined_epochs, joined_samples = epochs - 1, before_last
    return SourceAudit(
        prefix=prefix,
        weight=weight,
        tokens=tokens,
        requested=requested,
        built=built,
        available=available,
        epochs=epochs,
        joined_epochs=joined_epochs,
        joined_samples=joined_samples,
        sequence_length=sequence_length,
        lengths=tuple(lengths.tolist()) if epochs * tokens <= _SIMULATED_TOKENS else (),
    )


def _remarks(row: SourceAudit) -> list[str]:
    remarks = []
    if row.epochs_by_surplus:
        remarks.append(
            f"{row.prefix}: the surplus of {_SURPLUS:.1%} alone adds an epoch: {row.epochs} are built where "
            f"{row.epochs - row.epochs_by_surplus} hold what the run reads."
        )
    if row.requested == 1:
        remarks.append(f"{row.prefix}: its share is one sample or less; the blend may never come to it.")
    if row.unseen(1.0) > 0.005 and row.passes >= 1:
        remarks.append(
            f"{row.prefix}: the run reads {row.passes:.2f} times its text, and {percent(row.unseen(1.0))} of its "
            "text is expected to stay unseen."
        )
    return remarks


def read_blend(flag: str, words: Sequence[str]) -> tuple[list[str], list[float] | None]:
    """Prefixes and weights of a blend; None where it has none. Raises BadInput where only some have one."""
    numbers = [_number(word) for word in words]
    weights = [number for number in numbers[::2] if number is not None]
    if words and not any(number is not None for number in numbers):
        return list(words), None
    if not words or len(words) % 2 or len(weights) < len(words) // 2:
        rule = "a blend is `WEIGHT PREFIX WEIGHT PREFIX ...`, or prefixes alone."
        raise BadInput(Fault(f"{flag} {' '.join(words)}", rule, "Give each prefix a weight, or none."))
    return list(words[1::2]), weights


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None
