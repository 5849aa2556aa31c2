"""Which labels count in a loss, and what of it makes a validation set another one.

The plan of a run and the training program ask here alike. This file imports no torch.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megatron_cpt.config.schema import DataSettings
from megatron_cpt.corpus.stream import TokenStream


@dataclass(frozen=True)
class LabelMask:
    """What of a stream's labels does not count."""

    tokens: tuple[int, ...] = ()
    """Ids that do not, ascending."""
    document_starts: bool = True
    """Whether the first token of a document does."""
    column: str | None = None
    """The column that says which tokens do (loss_mask.py). None: what the datasets say of themselves."""
    own_mask: bool = False
    """Whether datasets of the stream do say it, or documents are packed."""

    @property
    def leaves_out(self) -> bool:
        """Whether some label may not count."""
        return bool(self.tokens) or not self.document_starts or self._reads_column

    @property
    def _reads_column(self) -> bool:
        return self.column is not None or self.own_mask

    def loss_mask(self, stream: TokenStream, start: int, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which labels count, bool[n], of the tokens [start, start + n) of a stream."""
        counts = np.isin(labels, self.tokens, invert=True)
        if not self.document_starts:
            counts[stream.document_starts(start, len(labels))] = False
        if self._reads_column:
            counts &= stream.counts_in_loss(start, len(labels), self.column)
        return counts

    def describe(self, stream: TokenStream) -> str:
        """What does not count, as a part of a validation set's identity; empty where all do."""
        words = [f"unscored={','.join(map(str, self.tokens))}"] if self.tokens else []
        if not self.document_starts:
            words.append("document_starts=unscored")
        if self._reads_column:
            words.append(f"leads={stream.loss_mask_identity(self.column)}")
        return " ".join(words)


def label_mask(data: DataSettings, stream: TokenStream, column: str | None) -> LabelMask:
    """The mask of one stream of a run; the manifests of its datasets name their EOD.

    Args:
        column: `loss_mask_column` of its source or validation set.
    """
    tokens = set(data.loss_mask.ignored_token_ids)
    if not data.loss_mask.eod:
        # Conversations say themselves what counts: where their turns end with this token, answers would have no end.
        texts = [manifest for manifest in stream.manifests if manifest.loss_spans_sha256 is None]
        tokens |= {manifest.eod for manifest in texts if manifest.eod is not None}
    return LabelMask(tuple(sorted(tokens)), data.loss_mask.document_starts, column, stream.has_own_mask)


def set_identity(stream: TokenStream, sequence_length: int, labels: int, attention: str, mask: LabelMask) -> str:
    """Hash of the sequences of a validation set and of what decides their loss: losses of one identity are comparable.

    Args:
        sequence_length: tokens of a sequence.
        labels: of all its sequences (`scored_tokens`), also of those that do not count.
        attention: `data.attention`.
        mask: which labels do not count.
    """
    # What attention sees, and that EOD counts, as in Megatron: part of what the loss means.
    described = f"{stream.identity} {sequence_length} {labels} attention={attention} "
    described += mask.describe(stream) or "eod=scored"
    return hashlib.sha256(described.encode()).hexdigest()
