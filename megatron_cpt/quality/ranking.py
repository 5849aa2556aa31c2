"""Which documents come first: pure functions of scores, lengths and a pseudo-random number a document.

Whatever is asked for (tokens, a share, a count), the first documents of the ranking that fit are taken,
so a larger budget takes what a smaller one did.
"""

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from megatron_cpt.corpus.mixed import mixed

Keep = Literal["lowest", "highest", "middle", "random", "gumbel"]
KEEPS: tuple[str, ...] = get_args(Keep)


def ranked(
    keep: Keep,
    scores: npt.NDArray[np.float64],
    lengths: npt.NDArray[np.int64],
    ties: npt.NDArray[np.uint64],
    temperature: float = 1.0,
) -> npt.NDArray[np.int64]:
    """The numbers of the documents, int64[documents], those to be taken first in front.

    `lowest`, `highest`: by score. `middle`: outwards from the score below and above which half of the
    tokens lie, so that equal shares are left out at both ends (arXiv:2405.20541 keeps the middle by
    perplexity). `random`: by `ties`. `gumbel`: by score over temperature plus Gumbel noise, highest
    first, which draws without replacement in proportion to exp(score / temperature) (arXiv:2302.03169,
    section 2). `ties` also decides between equal scores.
    """
    if keep == "random":
        return np.argsort(ties, kind="stable")
    if keep == "gumbel":
        return np.lexsort((ties, -(scores / temperature + gumbel_noise(ties))))
    order = np.lexsort((ties, -scores if keep == "highest" else scores))
    if keep == "middle":
        of_order = lengths[order]
        twice_midpoint = 2 * np.cumsum(of_order) - of_order
        order = order[np.argsort(np.abs(twice_midpoint - of_order.sum()), kind="stable")]
    return order


def within_tokens(order: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], tokens: int) -> int:
    """How many of the first documents have at most so many tokens together."""
    return int(np.searchsorted(np.cumsum(lengths[order]), tokens, side="right"))


def within_threshold(order: npt.NDArray[np.int64], scores: npt.NDArray[np.float64], keep: Keep, limit: float) -> int:
    """How many of the first documents have a score of at most (`lowest`) or at least (`highest`) the limit."""
    sorted_scores = scores[order] if keep == "lowest" else -scores[order]
    return int(np.searchsorted(sorted_scores, limit if keep == "lowest" else -limit, side="right"))


def gumbel_noise(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Standard Gumbel noise from pseudo-random 64-bit numbers."""
    uniform = ((numbers >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return -np.log(-np.log(uniform))


def pseudo_random(seed: int, content: str, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """64 pseudo-random bits a document: of the seed, the hexadecimal hash of its dataset, and its number.

    The mixing is splitmix64 (Steele, Lea, Flood 2014, doi:10.1145/2660193.2660195), whose numbers no
    library can change.
    """
    start = (int(content[:16], 16) ^ _splitmix(np.array([seed], np.uint64)).item()) % 2**64
    return _splitmix(np.uint64(start) + numbers.astype(np.uint64))


def _splitmix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    return mixed((values + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))
