"""The loss of a model on every document of datasets, as a score: mean nats a token, low for what it knows.

A document is read alone, in windows of the model's longest input, each of which begins with the last token
of the one before; every token but the document's first is scored once. Where documents begin with BOS, the
first is scored too. Every rank reads the same documents; rank 0 writes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from megatron.core.distributed import DistributedDataParallel
from megatron.core.models.common.language_module.language_module import LanguageModule

from megatron_cpt.corpus.scores import whole_record, write_score
from megatron_cpt.corpus.selection import SelectedDataset
from megatron_cpt.corpus.stream import DocumentChunk, dataset_chunks
from megatron_cpt.evaluate.likelihood import log_likelihoods
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.groups import barrier
from megatron_cpt.quality.score import Scored, already
from megatron_cpt.tasks.task_files import Continuation


@dataclass(frozen=True)
class ScoringModel:
    """A model that scores documents."""

    model: LanguageModule | DistributedDataParallel
    micro_batch_size: int
    """Windows that go through the model at once."""
    longest: int
    """Tokens of its input at most."""
    vocabulary: int
    """Its tokens: a document of which nothing can be scored gets the loss of a guess among them."""

    def losses(self, chunk: DocumentChunk, bos: int | None) -> npt.NDArray[np.float32]:
        """Nats a token of each document, float32[documents]. Every rank calls it alike and gets the same."""
        found = [windows(ids, bos, self.longest) for ids in np.split(chunk.tokens, np.cumsum(chunk.lengths)[:-1])]
        flat = [window for of_document in found for window in of_document]
        owners = np.repeat(np.arange(len(found)), [len(of_document) for of_document in found])
        logs = log_likelihoods(self.model, flat, self.micro_batch_size, self.longest).logs
        nats = -np.bincount(owners, logs, minlength=len(found))
        scored = np.bincount(owners, [window.scored for window in flat], minlength=len(found))
        return np.where(scored > 0, nats / np.maximum(scored, 1), np.log(self.vocabulary)).astype(np.float32)


def windows(ids: npt.NDArray[np.int64], bos: int | None, longest: int) -> list[Continuation]:
    """The windows of a document of int64[n] ids: each but its first id is scored in one of them.

    >>> [(window.ids, window.scored) for window in windows(np.array([5, 6, 7, 8]), 1, 3)]
    [((1, 5, 6, 7), 3), ((7, 8), 1)]
    """
    whole = ids.tolist() if bos is None else [bos, *ids.tolist()]
    cuts = range(0, len(whole) - 1, longest)
    pieces = [tuple(whole[start : start + longest + 1]) for start in cuts]
    return [Continuation(piece, len(piece) - 1, False) for piece in pieces]


def score_documents(
    model: ScoringModel, datasets: Sequence[SelectedDataset], name: str, how: dict[str, Any], overwrite: bool = False
) -> list[Scored]:
    """Writes the score of each dataset that does not have it. Every rank calls it. Raises as `already` does."""
    done = already(datasets, name, how, overwrite)
    # No rank writes before all have looked.
    barrier()
    for part in datasets:
        if done[part.prefix]:
            continue
        losses = _losses(model, part)
        if groups.rank() == 0:
            write_score(part.prefix, name, part.manifest, losses, how, overwrite=overwrite)
        else:
            for _ in losses:
                pass
    barrier()
    return [Scored(part.prefix, whole_record(part.prefix, name), done[part.prefix]) for part in datasets]


def _losses(model: ScoringModel, part: SelectedDataset) -> Iterator[npt.NDArray[np.float32]]:
    for chunk in dataset_chunks(part):
        yield model.losses(chunk, part.manifest.bos)
