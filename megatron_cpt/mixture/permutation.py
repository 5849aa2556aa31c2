"""A keyed permutation of [0, size), computed position by position: no array of `size` is ever made.

Construction: a Feistel network over a x b >= size pairs (left, right), left in [0, a), right in [0, b),
with modular addition in place of exclusive or (the generalised Feistel cipher of Black and Rogaway,
"Ciphers with Arbitrary Finite Domains", CT-RSA 2002). A round adds a hash of one half to the other, which is undone by
subtracting it, so that every round, and their composition, permutes the a x b pairs. Results outside
[0, size) are sent through the network again until they fall inside (cycle walking, in the same paper):
walking along the cycles of a permutation of the larger set permutes the smaller one. With a near sqrt(size)
and b = ceil(size / a) fewer than `a` pairs lie outside, so that walks are rare. `a` is even: a network
over two odd halves makes even permutations only.

The integer mixing is our own (the finaliser of SplitMix64: Steele, Lea and Flood, OOPSLA 2014), so that
no release of a library can change an order. This is a shuffle, not a cipher: it hides nothing.
"""

from hashlib import blake2b

import numpy as np
import numpy.typing as npt

Unsigned = npt.NDArray[np.uint64]

ROUNDS = 20
"""Each half is hashed into the other ten times. A round moves tiny sizes very little: with 8 rounds the 720
permutations of six positions are visibly not equally likely, from 16 on a chi-square test finds nothing."""

LARGEST_SIZE = 2**62
"""The squares of the halves then stay inside 64 bits."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def mix(value: Unsigned) -> Unsigned:
    """A bijection of 64-bit integers in which each bit of the result depends on every bit of the value."""
    value = (value ^ (value >> np.uint64(30))) * _FIRST
    value = (value ^ (value >> np.uint64(27))) * _SECOND
    return value ^ (value >> np.uint64(31))


_ROUND = mix(np.arange(ROUNDS, dtype=np.uint64) + _GOLDEN)
"""What tells the rounds of a key apart."""


def derive(key: npt.ArrayLike, number: npt.ArrayLike) -> Unsigned:
    """The key of the `number`-th thing under a key: element by element, with numpy broadcasting."""
    return mix(np.atleast_1d(_unsigned(key)) ^ mix(np.atleast_1d(_unsigned(number)) + _GOLDEN))


def key_of(*parts: str | int) -> int:
    """A 64-bit key from words and numbers, the same on every machine and in every process."""
    text = "\0".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def permute(position: npt.ArrayLike, size: npt.ArrayLike, key: npt.ArrayLike) -> Unsigned:
    """Where each position of [0, size) goes under the permutation that `key` names.

    position, size and key are integers or integer arrays that broadcast to one shape [n]: every element
    may have its own size and key. Returns uint64 [n]. Raises ValueError for a size outside [1, 2^62] or a
    position outside [0, size).
    """
    positions, sizes, keys = np.broadcast_arrays(*map(np.atleast_1d, map(_unsigned, (position, size, key))))
    if np.any(sizes > LARGEST_SIZE) or np.any(positions >= sizes):
        raise ValueError("permute: a position lies outside [0, size), or a size outside [1, 2^62]")
    columns = _columns(sizes)
    result = _network(positions, sizes, columns, keys)
    outside = np.flatnonzero(result >= sizes)
    while outside.size:
        result[outside] = _network(result[outside], sizes[outside], columns[outside], keys[outside])
        outside = outside[result[outside] >= sizes[outside]]
    return result


def _network(position: Unsigned, size: Unsigned, columns: Unsigned, key: Unsigned) -> Unsigned:
    """One pass of all rounds over the pairs of [0, columns) x [0, rows)."""
    rows = (size + columns - np.uint64(1)) // columns
    left, right = np.divmod(position, rows)
    for first in range(0, ROUNDS, 2):
        left = (left + _hash(key, first, right)) % columns
        right = (right + _hash(key, first + 1, left)) % rows
    return left * rows + right


def _hash(key: Unsigned, number: int, half: Unsigned) -> Unsigned:
    """Of a half in a round: 63 bits, so that a half can be added without a carry out of 64."""
    return mix(mix(key ^ _ROUND[number]) + half * _GOLDEN) >> np.uint64(1)


def _columns(size: Unsigned) -> Unsigned:
    """The smallest even number whose square holds the size; the float root is off by one at most."""
    root = np.sqrt(size.astype(np.float64)).astype(np.uint64)
    root = root - (root * root > size)
    root = root + (root * root < size)
    return root + (root & np.uint64(1))


def _unsigned(value: npt.ArrayLike) -> Unsigned:
    return np.asarray(value).astype(np.uint64) if not isinstance(value, int) else np.asarray(value, np.uint64)
