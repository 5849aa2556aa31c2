"""Which documents are held out for validation: decided by the content alone.

The decision is a keyed hash of the document's content hash, so a document is held out whatever the
order, the seed and the shards of the input, every exact duplicate shares its fate, in other corpora
too, and a larger share holds out what a smaller one did.
"""

from hashlib import blake2b

KEY = b"megatron_cpt held-out documents"
_HASHES = 1 << 64


def content_hash(text: bytes) -> bytes:
    """64-bit hash of a document's UTF-8 text, 8 bytes little-endian: equal for exact duplicates."""
    return blake2b(text, digest_size=8).digest()


def is_held_out(content: bytes, share: float) -> bool:
    """Whether the document of a content hash belongs to the held-out `share` (0 to 1) of documents."""
    keyed = blake2b(content, digest_size=8, key=KEY).digest()
    return int.from_bytes(keyed, "little") < int(share * _HASHES)
