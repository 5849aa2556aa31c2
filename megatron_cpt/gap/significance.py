"""Is a rise of the loss more than evaluation noise? Paired standard errors and a max-t test over marks.

The same sequences are scored at every mark, so a change is judged by the differences of each sequence
with itself. What this sees is evaluation noise (which sequences stand for the set), not run noise (what
another seed would have given). Sequences are taken as independent.
"""

import numpy as np

MINIMUM_SEQUENCES = 5
"""With fewer, 2^-sequences > 5 %: no outcome of the sign-flip test could be significant."""

FLIPS = 1999
"""Random sign patterns. The standard error of a p value of 0.05 is then 0.005."""

SEED = 20220514
"""Of the sign patterns; fixed, so that the same records give the same answer."""


def paired_standard_error(differences: np.ndarray, sequence_tokens: np.ndarray) -> np.ndarray:
    """Standard error of the change of the loss, in nats per token.

    `differences` [..., sequences]: summed nats of a sequence now minus then. `sequence_tokens`
    [sequences]: scored tokens. The change is a ratio of sums, c = sum(d) / sum(n); its variance is that
    of the residuals d - c n (ratio estimator: Cochran, Sampling Techniques, 1977, eq. 6.9). Returns [...],
    NaN with fewer than two sequences.
    """
    squares = (differences**2).sum(axis=-1)
    return _standard_error(squares, differences @ sequence_tokens, differences.sum(axis=-1), sequence_tokens)


def family_wise_p_value(
    differences: np.ndarray, sequence_tokens: np.ndarray, flips: int = FLIPS, seed: int = SEED
) -> float | None:
    """Probability of so large a rise at any mark, were there none at all.

    `differences` [marks, sequences]: summed nats at a mark minus those at the baseline. The statistic is
    the largest of change / standard error over marks, one-sided (a rise). Without a rise each sequence's
    row of differences is as likely with the opposite sign, at all marks at once; so flipping the signs of
    whole sequences gives the distribution of the largest t whatever the correlation between marks
    (Westfall and Young, Resampling-Based Multiple Testing, 1993). A test at the maximum alone would call
    flat noise a gap in 33 to 96 % of runs. None with fewer than MINIMUM_SEQUENCES sequences or no mark.
    """
    marks, sequences = differences.shape
    if sequences < MINIMUM_SEQUENCES or marks == 0:
        return None
    squares = (differences**2).sum(axis=-1)
    products = differences * sequence_tokens
    observed = _largest_t(squares, products.sum(axis=-1), differences.sum(axis=-1), sequence_tokens)
    if observed <= 0:
        return 1.0
    generator = np.random.default_rng(seed)
    as_large = 0
    for block in _blocks(flips, sequences):
        signs = generator.integers(0, 2, size=(block, sequences)).astype(np.float64) * 2 - 1
        flipped = _largest_t(squares, signs @ products.T, signs @ differences.T, sequence_tokens)
        # The pattern of all +1 is the observation itself; rounding must not make it smaller.
        as_large += int((flipped >= observed * (1 - 1e-9)).sum())
    return (1 + as_large) / (1 + flips)


def _blocks(flips: int, sequences: int) -> list[int]:
    """Sizes of blocks of sign patterns that hold at most about 32 MB."""
    size = max(1, min(flips, 4_000_000 // sequences))
    return [min(size, flips - start) for start in range(0, flips, size)]


def _largest_t(squares: np.ndarray, products: np.ndarray, sums: np.ndarray, sequence_tokens: np.ndarray) -> np.ndarray:
    """Largest of change / standard error over the last axis (marks). No change at all is 0."""
    changes = sums / sequence_tokens.sum()
    errors = _standard_error(squares, products, sums, sequence_tokens)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(changes == 0, 0.0, changes / errors).max(axis=-1)


def _standard_error(
    squares: np.ndarray, products: np.ndarray, sums: np.ndarray, sequence_tokens: np.ndarray
) -> np.ndarray:
    """sqrt(S/(S-1) * sum (d - c n)^2) / sum n, from sum d^2, sum d n and sum d."""
    sequences, total = len(sequence_tokens), sequence_tokens.sum()
    changes = sums / total
    residuals = squares - 2 * changes * products + changes**2 * (sequence_tokens.astype(np.float64) ** 2).sum()
    if sequences < 2:
        return np.full_like(residuals, np.nan)
    return np.sqrt(np.maximum(residuals, 0) * sequences / (sequences - 1)) / total
