"""Which labels count in the loss."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megatron_cpt.config.blend import DataSettings
from megatron_cpt.corpus.stream import TokenStream
from megatron_cpt.mixture.shares import source_of

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LabelMask:
    """What of a stream's labels does not count."""

    tokens: tuple[int, ...] = ()
    """Ids that do not, ascending."""
    document_starts: bool = True
    """Whether the first token of a document does."""
    lead: str | None = None
    """The column that says how many first tokens of a document do not."""

    @property
    def leaves_out(self) -> bool:
        """Whether some label may not count."""
        return bool(self.tokens) or not self.document_starts or self.lead is not None

    def counted(self, stream: TokenStream, start: int, labels: Integers) -> npt.NDArray[np.bool_]:
        """Which labels count, bool[n], of the tokens [start, start + n) of a stream."""
        counts = np.isin(labels, self.tokens, invert=True)
        if not self.document_starts:
            counts[stream.document_starts(start, len(labels))] = False
        if self.lead is not None:
            counts &= ~stream.within_leads(start, len(labels), self.lead)
        return counts

    def describe(self, stream: TokenStream) -> str:
        """What does not count, as a part of a validation set's identity; empty where all do."""
        words = [f"unscored={','.join(map(str, self.tokens))}"] if self.tokens else []
        if not self.document_starts:
            words.append("document_starts=unscored")
        if self.lead is not None:
            leads = stream.leads(self.lead).astype("<i8")
            words.append(f"leads={hashlib.sha256(leads.tobytes()).hexdigest()}")
        return " ".join(words)


def label_mask(data: DataSettings, stream: TokenStream, lead: str | None) -> LabelMask:
    """The mask of one stream of a run; the manifests of its datasets name their EOD.

    Args:
        lead: `unscored_lead` of its source or validation set.
    """
    tokens = set(data.labels.unscored_tokens)
    if not data.labels.eod:
        tokens |= {manifest.eod for manifest in stream.manifests if manifest.eod is not None}
    return LabelMask(tuple(sorted(tokens)), data.labels.document_starts, lead)


def label_masks(data: DataSettings, streams: Mapping[str, TokenStream], names: Sequence[str]) -> list[LabelMask]:
    """The masks of the named streams of training text."""
    return [label_mask(data, streams[name], data.sources[source_of(name)].unscored_lead) for name in names]
