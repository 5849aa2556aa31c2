"""The fixed sequences of a validation set."""

import numpy as np
import numpy.typing as npt


def scored_tokens(stream_tokens: int, sequence_length: int, budget: int | None) -> npt.NDArray[np.int64]:
    """Tokens that count in each sequence of a set: int64 [sequences].

    Sequence s of a stream is scored on tokens s L + 1 to s L + L: the last token of the stream has no label
    after it, and the last sequence may be short. A budget is filled with whole sequences, at least one.

    >>> scored_tokens(100, 32, None).tolist()
    [32, 32, 32, 3]
    >>> scored_tokens(100, 32, 70).tolist()
    [32, 32]
    """
    targets = stream_tokens - 1
    if budget is not None:
        targets = min(targets, max(1, budget // sequence_length) * sequence_length)
    sequences = -(-targets // sequence_length)
    scored = np.full(sequences, sequence_length, dtype=np.int64)
    if sequences:
        scored[-1] = targets - (sequences - 1) * sequence_length
    return scored
