"""What repeated tokens are worth: effective unique tokens (Muennighoff et al., arXiv:2305.16264).

Fitted there on models trained from scratch, of up to 9B parameters and 900B tokens; for continual
pretraining a guide, no more.
"""

from math import exp

REPETITION_DECAY = 15.39
"""R*: repetitions after which a further one is worth 1/e of a fresh pass (as fitted in arXiv:2305.16264)."""

CHEAP_EPOCHS = 4
"""Up to here repeated tokens are worth almost as much as new ones (arXiv:2305.16264, abstract)."""


def expected_unique(source_tokens: int, draw_tokens: int, tokens_read: int) -> float:
    """Tokens of a source that draws, each made anew from all of it, are expected to have read at least once.

    A token is missed by a draw with probability 1 - draw_tokens / source_tokens.
    """
    draws, rest = divmod(tokens_read, draw_tokens)
    missed = (1 - draw_tokens / source_tokens) ** draws * (1 - rest / source_tokens)
    return source_tokens * (1 - missed)


def effective_unique_tokens(source_tokens: int, tokens_read: int) -> float:
    """D' = U + U R* (1 - exp(-R / R*)): fresh tokens that would do as much as the tokens read.

    U = min(source_tokens, tokens_read) tokens are unique and R = tokens_read / U - 1 times repeated.
    """
    unique = min(source_tokens, tokens_read)
    if unique == 0:
        return 0.0
    repetitions = tokens_read / unique - 1
    return unique * (1 + REPETITION_DECAY * (1 - exp(-repetitions / REPETITION_DECAY)))
