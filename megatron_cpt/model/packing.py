"""Documents apart: a micro batch as one row of documents, none of which sees another.

Megatron-Core and Transformer Engine know such rows as packed sequences (`thd`): rotary positions begin anew with
every document, and attention is computed for each by itself, so that no mask is there to be forgotten. Where ranks
share sequences the row is this rank's part of them (shared_documents.py).
"""

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from megatron_cpt.data.batches import Batch
from megatron_cpt.model.shared_documents import shared_documents
from megatron_cpt.parallel import groups


def packed_forward(model: torch.nn.Module, batch: Batch) -> Tensor:
    """The nats of each label, [b, s], of a micro batch whose documents are kept apart."""
    shared = groups.context_size() > 1
    output: Tensor = model(
        batch.tokens.view(1, -1),
        batch.positions.reshape(1, -1),
        None,
        labels=batch.labels.view(1, -1),
        packed_seq_params=shared_documents(batch) if shared else packed_parameters(batch),
    )
    # The last pipeline stage has nats, [1, b s], or penalties beside them, [1, b s, 2]; the others pass hidden states
    # on, [b s, 1, h].
    if output.shape[:2] != (1, batch.tokens.numel()):
        return output
    return output.view(*batch.tokens.shape, *output.shape[2:])


def packed_parameters(batch: Batch) -> PackedSeqParams:
    """Where the documents of a micro batch begin and end."""
    assert batch.document_lengths is not None, "the batch says where documents begin"
    lengths = torch.tensor((0, *batch.document_lengths), dtype=torch.int32, device=batch.tokens.device)
    ends = lengths.cumsum(0, dtype=torch.int32)
    longest = max(batch.document_lengths)
    return PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=ends, cu_seqlens_kv=ends, max_seqlen_q=longest, max_seqlen_kv=longest
    )
