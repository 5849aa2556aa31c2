"""Documents that two sources, or a source and a validation set, both read.

The same bytes are the same text, wherever they lie; of datasets with the same bytes, document numbers are compared.
Text that was tokenized twice from different files is another matter (megatron-cpt prepare removes copies).
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import combinations

from megatron_cpt.config.blend import DataSettings
from megatron_cpt.config.errors import Fault
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.corpus.stream import DocumentSet, TokenStream
from megatron_cpt.mixture.shares import source_of
from megatron_cpt.planning.inputs import RunInputs

Pair = tuple[str, str]


def shared_faults(config: RunConfig, inputs: RunInputs) -> list[Fault]:
    """Text that is both trained on and validated on, and text that two sources give at the same time."""
    return [*_validated_faults(inputs), *_source_faults(config.data, inputs.sources)]


def shared_warnings(config: RunConfig, inputs: RunInputs) -> Iterator[str]:
    """Sources that share documents and give them at different times."""
    for (first, second), count in _shared_by_sources(inputs.sources).items():
        if not _read_together(config.data, first, second):
            yield (
                f"sources {first} and {second} share {count:,} documents; they give them in different phases, and the "
                "epochs of each are counted apart."
            )


def _validated_faults(inputs: RunInputs) -> Iterator[Fault]:
    trained = _by_data(inputs.sources)
    for name, stream in inputs.validation_sets.items():
        for held_out in stream.document_sets:
            for source, documents in trained[held_out.data_sha256]:
                if count := documents.shared_with(held_out):
                    yield Fault(
                        f"validation.sets.{name}.paths: {held_out.prefix}",
                        f"data.sources.{source} trains on {count:,} of its documents, so its loss would say nothing "
                        "about new text.",
                        "Name a held-out dataset (`megatron-cpt prepare --holdout` writes PREFIX.validation).",
                    )


def _source_faults(data: DataSettings, sources: Mapping[str, TokenStream]) -> Iterator[Fault]:
    for (first, second), count in _shared_by_sources(sources).items():
        if _read_together(data, first, second):
            yield Fault(
                f"data.sources.{first} and data.sources.{second}",
                f"share {count:,} documents, which would be read by both: neither's epochs would be true.",
                "Select documents that the other leaves out, raise one source's weight instead, or let "
                " the two give tokens in different phases.",
            )


def _shared_by_sources(sources: Mapping[str, TokenStream]) -> dict[Pair, int]:
    """Documents that two sources share, for each pair that does."""
    counts: dict[Pair, int] = defaultdict(int)
    for readers in _by_data(sources).values():
        for (first, documents), (second, others) in combinations(readers, 2):
            if first != second and (count := documents.shared_with(others)):
                counts[first, second] += count
    return counts


def _by_data(streams: Mapping[str, TokenStream]) -> dict[str, list[tuple[str, DocumentSet]]]:
    """Who reads which documents of the same bytes."""
    readers: dict[str, list[tuple[str, DocumentSet]]] = defaultdict(list)
    for name, stream in streams.items():
        for documents in stream.document_sets:
            readers[documents.data_sha256].append((source_of(name), documents))
    return readers


def _read_together(data: DataSettings, first: str, second: str) -> bool:
    """Whether some phase gives weight to both sources."""
    blends = [data.in_phase(phase).sources for phase in data.phases] or [data.sources]
    return any(bool(sources[first].weight and sources[second].weight) for sources in blends)
