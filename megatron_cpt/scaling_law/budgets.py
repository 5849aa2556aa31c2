"""Laws of the loss at the end of training, over model size, tokens and mixture, each a plain function.

Losses are in nats per token. `domain_share` is the share of new data among the training tokens.
"""

import numpy as np


def domain_pretraining_law(
    model_size: float | np.ndarray,
    tokens: float | np.ndarray,
    share: float | np.ndarray,
    floor: float,
    size_amplitude: float,
    size_exponent: float,
    token_amplitude: float,
    share_power: float,
    token_exponent: float,
    share_amplitude: float,
    share_offset: float,
    share_exponent: float,
) -> np.ndarray:
    """L = E + A / N^alpha + B r^eta / D^beta + C / (r + epsilon)^gamma, the D-CPT law (arXiv:2406.01375).

    Fitted for each validation set by itself; `share` is that set's own data among the training tokens (general or
    domain). `model_size` N and `tokens` D in any unit, which the amplitudes then have too.
    """
    by_size = size_amplitude / np.asarray(model_size) ** size_exponent
    by_tokens = token_amplitude * np.asarray(share) ** share_power / np.asarray(tokens) ** token_exponent
    return floor + by_size + by_tokens + share_amplitude / (np.asarray(share) + share_offset) ** share_exponent


def forgetting_law(
    model_size: float | np.ndarray,
    domain_tokens: float | np.ndarray,
    injected_share: float | np.ndarray,
    start: float,
    amplitude: float,
    exponent: float,
    injection_gain: float,
    size_exponent: float,
) -> np.ndarray:
    """L = L0 + A D^beta / ((1 + B p) N)^alpha, the loss on the old data (arXiv:2502.06042).

    Args:
        model_size: N, parameters.
        domain_tokens: D, unique tokens of the new data.
        injected_share: p, share of old data among the training tokens.
        start: L0, the loss before, nats.
        amplitude, exponent, injection_gain, size_exponent: A, beta, B, alpha.
    """
    capacity = (1 + injection_gain * np.asarray(injected_share)) * np.asarray(model_size)
    return start + amplitude * np.asarray(domain_tokens) ** exponent / capacity**size_exponent


def mixing_law(shares: np.ndarray, floor: float, scale: float, slopes: np.ndarray) -> np.ndarray:
    """L = c + k exp(sum_j t_j r_j), the data mixing law (arXiv:2403.16952).

    Args:
        shares: float64 [mixtures, sources], each row adding up to 1.
        floor, scale: c and k, nats.
        slopes: float64 [sources], t.

    Returns:
        float64 [mixtures].
    """
    return floor + scale * np.exp(shares @ slopes)


def critical_mixture_share(tokens: float | np.ndarray, amplitude: float, exponent: float, offset: float) -> np.ndarray:
    """R = a T^s + b, the largest share of new data whose general loss still comes back in time (arXiv:2407.17467).

    `tokens` is T in units of 0.2B tokens, as the printed constants have it. The result is cut to [0, 1].
    """
    return np.clip(amplitude * np.asarray(tokens, dtype=float) ** exponent + offset, 0.0, 1.0)


def other_set_loss(
    old_loss: float | np.ndarray, new_loss: float | np.ndarray, old_weight: float, new_weight: float
) -> np.ndarray:
    """L = w1 L_old + w2 L_new, the loss on a set that is neither (arXiv:2505.07796 Eq. 6).

    The weights belong to the data sets alone, whatever the schedule; they need not add up to 1.
    """
    return old_weight * np.asarray(old_loss) + new_weight * np.asarray(new_loss)
