"""What stock Megatron-LM does with a blend, told from the .idx files alone, beside what our order does.

As read in Megatron-Core 0.16.1 (megatron/core/datasets/), which tests hold it against:

1. blended_megatron_dataset_builder.py: a source of normalised weight w is to give ceil(N w) of the N samples, and
   is built for ceil(1.005 ceil(N w)).
2. gpt_dataset.py: the documents of the split are repeated for as many epochs as hold that many samples of L tokens and
   one token more. A last epoch of which less than 80 % is needed stays apart; all others are joined and shuffled as one
   list of documents, then cut into samples, which are shuffled again.

So after a share f of E joined epochs, a document is still unseen with probability (1 - f)^E and has been read
twice or more with 1 - (1 - f)^E - E f (1 - f)^(E - 1): the copies of a document lie anywhere. These two figures
are expectations over the shuffle; everything else here is exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, fsum

import numpy as np

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

    @property
    def passes(self) -> float:
        """Passes over its text that the run takes."""
        return self.requested * self.sequence_length / self.tokens

    @property
    def epochs_by_surplus(self) -> int:
        """Epochs that are built for the surplus alone."""
        return self.epochs - epochs_for(self.requested, self.sequence_length, self.tokens)

    def unseen(self, share: float) -> float:
        """Expected share of its documents still unseen after a share of the run."""
        read = share * self.requested
        if read >= self.joined_samples:
            return 0.0
        return (1 - read / self.joined_samples) ** self.joined_epochs

    def repeated(self, share: float) -> float:
        """Expected share of its documents read twice or more after a share of the run."""
        read, epochs = share * self.requested, self.joined_epochs
        part = min(1.0, read / max(1, self.joined_samples))
        last = max(0.0, read - self.joined_samples) / max(1, self.available - self.joined_samples)
        once = epochs * part * (1 - part) ** (epochs - 1)
        return 1 - self.unseen(share) - once * (1 - last)

    def ours_unseen(self, share: float) -> float:
        """Share of its text unseen after a share of the run in our order: none before the first epoch is whole."""
        return max(0.0, 1 - share * self.passes)


def audit(
    prefixes: Sequence[str],
    weights: Sequence[float],
    samples: int,
    sequence_length: int,
    split: tuple[float, float] = (0.0, 1.0),
) -> list[SourceAudit]:
    """What stock Megatron-LM does with a weighted blend, a row a source.

    Args:
        weights: above 0; they are normalised.
        samples: `--train-samples`.
        split: the span of documents that `--split` gives to training, as shares from 0 to 1.
    Raises:
        BadInput: an index is missing, its split has no tokens, or a weight is not above 0: the stock order does
            not start, or never ends building.
        IntegrityFault: an index is not one.
    """
    faults, rows = [], []
    total = fsum(weights)
    for prefix, weight in zip(prefixes, weights, strict=True):
        if not weight > 0:
            rule = "stock Megatron-LM takes weights above 0 alone."
            faults.append(Fault(f"{prefix}: weight {weight:g}", rule, "Leave the source out, or give it a weight."))
            continue
        try:
            tokens = _split_tokens(prefix, split)
        except BadInput as error:
            faults += error.faults
            continue
        if not tokens:
            rule = "its training split has no tokens: stock Megatron-LM counts epochs of it without end."
            faults.append(Fault(prefix, rule, "Leave the source out."))
            continue
        rows.append(_row(prefix, weight / total, tokens, ceil(samples * (weight / total)), sequence_length))
    if faults:
        raise BadInput(*faults)
    return rows


def _split_tokens(prefix: str, split: tuple[float, float]) -> int:
    """Tokens of the entries of an index in a span of it, rounded as Megatron-Core rounds."""
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
    if not entries:
        return 0
    lengths = np.memmap(path, "<i4", mode="r", offset=HEADER.size, shape=(entries,))
    begin, end = (round(share * float(entries)) for share in split)
    return int(lengths[begin:end].sum(dtype=np.int64))


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
            ["documents, expected", "", *quarters],
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


def _row(prefix: str, weight: float, tokens: int, requested: int, sequence_length: int) -> SourceAudit:
    built = ceil(requested * (1 + _SURPLUS))
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
            "documents are expected to stay unseen."
        )
    return remarks
