"""A first run.yaml for a model and datasets, with values that `plan` accepts: what `megatron-cpt init` writes.

The values are usual ones of continual pretraining, and each is to be changed. Where the datasets are there, lengths
follow from their tokens; the layout follows from the memory that `plan` estimates.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal

from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.config.load import config_from_dict
from megatron_cpt.config.schema import Recompute, RunConfig, name_faults
from megatron_cpt.config.units import short_count
from megatron_cpt.corpus.parts import named_by
from megatron_cpt.corpus.selection import SUFFIX
from megatron_cpt.corpus.stream import TokenStream, expand_paths, prefix_of
from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.memory import memory_per_rank
from megatron_cpt.families.shape import read_shape
from megatron_cpt.families.size import parameter_count
from megatron_cpt.planning.cards import Card, card_of, gpu_layout
from megatron_cpt.planning.checks import shared_by_sources
from megatron_cpt.planning.run_file import (
    Entry,
    base_entries,
    count_text,
    distinct_names,
    log_spaced,
    rounded,
    source_name,
)

REPLAY_RATIO = 0.2
"""The best of 10, 20 and 30 % in Table 1 of arXiv:2406.14833."""
_LONGEST_SEQUENCE = 8192
_LARGEST_STEP = 1 << 20
"""Tokens of a step."""
_STEPS = 1000
"""Steps that a run has at least, unless its text is very short."""
_TOKENS = 5_000_000_000
"""Length of the run, where datasets are not there yet."""
_DOMAIN_EPOCHS = 4
"""Passes over new text that are worth nearly as much as new text (arXiv:2305.16264)."""
_PEAK_LR, _FINAL_SHARE, _WARMUP_SHARE = 3e-5, 0.1, 0.01
_VALIDATION_TOKENS, _VALIDATION_SEQUENCES = 2_000_000, 16
"""Tokens of a set at most, and sequences at least."""
_VALIDATION_SHARE = 0.2
"""Compute of all evaluations over that of training, where sets are not too small for it."""
_EVALUATIONS, _CHECKPOINTS = 20, 10
"""Regular ones of a run."""
_EARLY_EVALUATIONS = 24
"""Those of `log_spaced`."""

Role = Literal["domain", "replay"]


@dataclass(frozen=True)
class FirstRun:
    """The arguments of `init`."""

    model: str
    """Hugging Face folder."""
    domain: Sequence[str]
    """Datasets of new text: PREFIX or NAME=PREFIX."""
    replay: Sequence[str] = ()
    """Datasets of text like that of pretraining, likewise."""
    replay_ratio: float = REPLAY_RATIO
    """Share of the tokens that replay gives, where there is any."""
    tokens: int | None = None
    """Length of the run. None: one pass over the new text."""
    folder: str | None = None
    """Run folder. None: runs/NAME of the first source."""
    gpus: int = 8
    """Ranks of the run."""
    gpu: str = "H100-80GB"
    """Their kind, of planning/cards.py."""


@dataclass(frozen=True)
class _Source:
    """A source of training text, and its validation set."""

    name: str
    role: Role
    path: str
    tokens: int | None
    """None: the dataset is not there yet."""
    validation: tuple[str, ...]
    """Its held-out documents: PREFIX.validation of each dataset that is read, behind selections too."""
    held_out: int | None
    """Tokens of these, 0 where there are none; None: not known yet."""
    stream: TokenStream | None = None
    """Its text; None: the dataset is not there yet."""


@dataclass(frozen=True)
class WrittenRun:
    """The lines of the file, and what its writer should know."""

    entries: tuple[Entry, ...]
    notes: tuple[str, ...]


def first_run(request: FirstRun) -> WrittenRun:
    """Keys and values of a first run.

    Raises BadInput for a folder without a model that can be read, names that are none, no new text.
    """
    shape = _shape_of(request.model)
    sources = _sources(request)
    ratio = request.replay_ratio if request.replay else 0.0
    tokens = request.tokens or _one_pass(sources, ratio) or _TOKENS
    length = min(shape.max_positions, _LONGEST_SEQUENCE)
    layout, fits = _layout(request, shape, length, card_of(request.gpu))
    ranks = request.gpus // (layout.parallel.tensor * layout.parallel.pipeline)
    batch = _batch(tokens, length, max(1, ranks))
    every = rounded(max(tokens / _EVALUATIONS, batch * length))
    sets = [source for source in sources if source.held_out is None or source.held_out > length]
    entries = (
        *_data_entries(request, sources, length),
        *base_entries(request.model),
        *_training_entries(tokens, batch, length, layout),
        *_parallel_entries(layout, request.gpus),
        *_validation_entries(sets, tokens, length, every),
        Entry("checkpoint.save_interval", count_text(rounded(max(tokens / _CHECKPOINTS, batch * length)))),
        Entry("checkpoint.export_hf.end", True, "a Hugging Face folder RUN/hf at the end"),
    )
    return WrittenRun(entries, tuple(_notes(request, sources, sets, shape, fits)))


def _shape_of(folder: str) -> ModelShape:
    if not Path(folder, "config.json").is_file():
        rule = "is no Hugging Face folder: there is no config.json in it."
        remedy = "Fetch a model first, such as `hf download meta-llama/Meta-Llama-3-8B --local-dir Llama-3-8B`."
        raise BadInput(Fault(f"--model {folder}", rule, remedy))
    return read_shape(folder)


def _sources(request: FirstRun) -> list[_Source]:
    words: list[tuple[Role, str]] = [("domain", word) for word in request.domain]
    words += [("replay", word) for word in request.replay]
    if not request.domain:
        raise BadInput(Fault("--domain", "was not given: there is nothing to learn.", "Name a dataset's PREFIX."))
    paths = [prefix_of(word.partition("=")[2] or word) for _, word in words]
    made = distinct_names(map(source_name, paths))
    names = [word.partition("=")[0] if "=" in word else name for (_, word), name in zip(words, made, strict=True)]
    refuse(
        [
            *name_faults("--domain, --replay", names),
            *(
                Fault(f"{name}={path}", "another source has this name.", "Give it another: NAME=PREFIX.")
                for number, (name, path) in enumerate(zip(names, paths, strict=True))
                if name in names[:number]
            ),
            *(
                Fault(path, "is named twice.", "Name it once, as new text or as replay.")
                for number, path in enumerate(paths)
                if path in paths[:number]
            ),
        ]
    )
    return [_source(name, role, path) for name, (role, _), path in zip(names, words, paths, strict=True)]


def _source(name: str, role: Role, path: str) -> _Source:
    """A source and its validation part. Raises BadInput for a dataset that cannot be read."""
    if not _is_there(path):
        if Path(f"{path}{SUFFIX}").is_file():
            rule, remedy = f"is no dataset, and {path}{SUFFIX} is a selection.", f"Name it: {path}{SUFFIX}."
            raise BadInput(Fault(f"--{role} {path}", rule, remedy))
        return _Source(name, role, path, None, (f"{path}.validation",), None)
    stream = TokenStream([path])
    in_parts = named_by(path) != [path]
    prefixes = [path] if in_parts else dict.fromkeys(str(one.prefix) for one in stream.document_sets)
    held_out = tuple(part for part in (f"{prefix}.validation" for prefix in prefixes) if _is_there(part))
    return _Source(name, role, path, stream.tokens, held_out, TokenStream(held_out).tokens, stream)


def _folder(request: FirstRun, sources: Sequence[_Source]) -> str:
    return request.folder or f"runs/{sources[0].name}"


def _is_there(path: str) -> bool:
    """Whether a path names something: globs are asked when they are opened."""
    if any(mark in path for mark in "*?[") or Path(path).is_file() or Path(f"{path}.idx").is_file():
        return True
    return named_by(path) != [path]


def _one_pass(sources: Sequence[_Source], ratio: float) -> int | None:
    """Tokens of a run that reads the new text once; None where not all of it is there."""
    counts = [source.tokens for source in sources if source.role == "domain"]
    return None if None in counts else int(sum(filter(None, counts)) / (1 - ratio))


def _batch(tokens: int, length: int, replicas: int) -> int:
    """Sequences of a step: a multiple of the data-parallel size, of at most 1M tokens and so that steps are many."""
    wanted = max(1, min(_LARGEST_STEP, tokens // _STEPS) // length)
    power = 1 << (wanted.bit_length() - 1)
    return -(-power // replicas) * replicas


def _layout(request: FirstRun, shape: ModelShape, length: int, card: Card) -> tuple[RunConfig, bool]:
    """The least division of the model, and recomputation, that fits the GPUs by the estimate, and whether any does."""
    layout = _smallest(request, length)
    for recompute, pipeline, tensor in product(_RECOMPUTE, (1, 2, 4, 8), (1, 2, 4, 8)):
        if request.gpus % (tensor * pipeline) or shape.heads % tensor or shape.query_groups % tensor:
            continue
        if shape.delta_key_heads % tensor:
            continue
        if shape.ffn_hidden % tensor or shape.layers % pipeline or tensor * pipeline > request.gpus:
            continue
        parallel = gpu_layout(request.gpus > tensor * pipeline, tensor=tensor, pipeline=pipeline)
        layout = replace(layout, parallel=parallel, training=replace(layout.training, recompute=recompute))
        if memory_per_rank(shape, layout, request.gpus).total <= card.usable_memory:
            return layout, True
    return layout, False


_RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")


def _smallest(request: FirstRun, length: int) -> RunConfig:
    """A configuration of the values that memory depends on."""
    return config_from_dict(
        {
            "run": {"folder": request.folder or "runs"},
            "model": {"hf": request.model},
            "data": {"sequence_length": length, "sources": {}},
            "training": {"tokens": "1 steps", "global_batch_size": request.gpus * 8},
            "schedule": {"peak_lr": _PEAK_LR},
        }
    )


def _data_entries(request: FirstRun, sources: Sequence[_Source], length: int) -> Iterator[Entry]:
    yield Entry("run.folder", _folder(request, sources))
    yield Entry("model.hf", request.model, "a local folder: config.json, tokenizer, safetensors")
    yield Entry("data.sequence_length", length)
    if any(source.stream is not None and source.stream.has_own_mask for source in sources):
        yield Entry("data.attention", "within_documents", "no conversation sees another")
        yield Entry("data.packing", "best_fit", "whole conversations in each sequence")
    if request.replay:
        yield Entry("data.replay_ratio", request.replay_ratio)
    for source in sources:
        size = "" if source.tokens is None else f"{short_count(source.tokens)} tokens"
        yield Entry(f"data.sources.{source.name}.paths", [source.path], size)
        if source.role == "replay":
            yield Entry(f"data.sources.{source.name}.role", "replay", "text like that of pretraining")
        else:
            yield Entry(f"data.sources.{source.name}.max_epochs", _DOMAIN_EPOCHS)


def _training_entries(tokens: int, batch: int, length: int, layout: RunConfig) -> Iterator[Entry]:
    yield Entry("training.tokens", count_text(tokens))
    yield Entry("training.global_batch_size", batch, f"sequences: {batch * length:,} tokens a step")
    yield Entry("training.micro_batch_size", 1)
    yield Entry("training.precision", "bf16", "CPUs without bf16 units want fp32")
    if layout.training.recompute != "none":
        yield Entry("training.recompute", layout.training.recompute)
    yield Entry("schedule.kind", "cosine", "others: docs/schedules.md")
    yield Entry("schedule.peak_lr", _PEAK_LR, "the value to try first; the base's own peak is the upper end")
    yield Entry("schedule.final_lr", round(_PEAK_LR * _FINAL_SHARE, 12))
    yield Entry("schedule.warmup", count_text(rounded(tokens * _WARMUP_SHARE)))


def _parallel_entries(layout: RunConfig, gpus: int) -> Iterator[Entry]:
    parallel = layout.parallel
    yield Entry("parallel.tensor", parallel.tensor)
    if parallel.sequence:
        yield Entry("parallel.sequence", True)
    if parallel.pipeline > 1:
        yield Entry("parallel.pipeline", parallel.pipeline)
    yield Entry("parallel.distributed_optimizer", parallel.distributed_optimizer)
    if parallel.overlap_grad_reduce:
        yield Entry("parallel.overlap_grad_reduce", True)
        yield Entry("parallel.overlap_param_gather", True)


def _validation_entries(sets: Sequence[_Source], tokens: int, length: int, every: int) -> Iterator[Entry]:
    evaluations = (_EVALUATIONS + _EARLY_EVALUATIONS) * max(1, len(sets))
    affordable = rounded(_VALIDATION_SHARE * 3 * tokens / evaluations)  # a forward pass is a third of a step
    budget = min(_VALIDATION_TOKENS, max(affordable, _VALIDATION_SEQUENCES * length))
    for source in sets:
        place = f"validation.sets.{source.name}"
        yield Entry(f"{place}.paths", list(source.validation), "")
        yield Entry(f"{place}.role", "domain" if source.role == "domain" else "general", "")
        if source.held_out is None or source.held_out >= budget:
            yield Entry(f"{place}.tokens", count_text(budget))
    yield log_spaced()
    yield Entry("validation.eval_interval.every", count_text(every))


def _notes(
    request: FirstRun, sources: Sequence[_Source], sets: Sequence[_Source], shape: ModelShape, fits: bool
) -> Iterator[str]:
    """What the file cannot say for itself."""
    missing = [source.path for source in sources if source.tokens is None]
    if missing:
        yield (
            f"not there yet: {', '.join(missing)}. `megatron-cpt prepare TEXT... --tokenizer {request.model} "
            f"--output {missing[0]} --holdout 0.5%` writes one, with its .validation."
        )
        if request.tokens is None:
            yield f"training.tokens is a guess, {short_count(_TOKENS, zeros=False)}, until the datasets are there."
    streams = {source.name: source.stream for source in sources if source.stream is not None}
    for source in sources:
        if source.stream is not None and (found := [str(path) for path in expand_paths([source.path])]) != [
            source.path
        ]:
            yield f"{source.path} is {', '.join(found)}."
    for (first, second), count in shared_by_sources(streams).items():
        yield (
            f"data.sources.{first} and data.sources.{second} share {count:,} documents, which `plan` refuses: name "
            "datasets or selections that hold none of each other's."
        )
    folder = _folder(request, sources)
    if (Path(folder) / "config.yaml").exists():
        yield f"{folder} holds a run already, which `train` would go on with: give another --folder for a new one."
    for source in sources:
        if source not in sets:
            yield (
                f"{source.path} has no validation part of a whole sequence beside it, so {source.name} is not "
                "evaluated: prepare it with --holdout."
            )
    if not request.replay:
        yield "there is no replay: what the model knew will fade. Name general text with --replay."
    if not fits:
        yield (
            f"{short_count(parameter_count(shape))} parameters do not fit {request.gpus} GPUs {request.gpu} "
            "by the estimate: give more with --gpus."
        )
