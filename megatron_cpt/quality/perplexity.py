"""Perplexity of documents under an n-gram model of a reference: low for text like it (arXiv:2406.14833, section 3)."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.corpus.chunks import dataset_chunks
from megatron_cpt.corpus.manifest import Manifest
from megatron_cpt.quality.ngram import train
from megatron_cpt.quality.reference import Reference, tokenized
from megatron_cpt.quality.score import Method, Scorer


def ngram_method(manifest: Manifest, references: Sequence[Reference], order: int, text_key: str) -> Method:
    """The perplexity of each document of datasets tokenized as that of `manifest`. BadInput: an order below 1."""
    if not 1 <= order <= 8:
        raise BadInput(Fault(f"--order {order}", "must be from 1 to 8.", "The paper has 3; 5 is usual for sub-words."))
    how = {
        "by": "ngram",
        "order": order,
        "reference": [reference.described() for reference in references],
        "tokenizer": manifest.tokenizer,
    }

    def learn(folder: Path) -> Scorer:
        parts = tokenized(references, manifest, text_key, folder)
        if not sum(part.tokens for part in parts):
            raise BadInput(Fault("--reference", "holds no text.", "Name text like the one you look for."))
        vocabulary = manifest.vocabulary_size
        if vocabulary is None:
            vocabulary = 1 + max(int(chunk.tokens.max(initial=0)) for part in parts for chunk in dataset_chunks(part))
        return train(lambda: chain.from_iterable(map(dataset_chunks, parts)), order, vocabulary).perplexities

    return Method(how, learn)
