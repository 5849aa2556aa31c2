"""The README.md of an exported model: what it came from and what it was trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class SourceRead:
    """What a model has read of one source."""

    name: str
    """Its name in the run."""
    tokens: int
    """Tokens read, repetitions among them."""
    epochs: float
    """Passes over the source."""


@dataclass(frozen=True)
class Training:
    """The training that an export comes from."""

    steps: int
    """Optimizer steps."""
    tokens: int
    """Tokens trained."""
    sequence_length: int
    """Tokens of a sequence."""
    seed: int
    """Seed of the data order."""
    sources: tuple[SourceRead, ...]
    """What was read of each source."""


def training_of(step: int, tokens: int, order: dict[str, Any], source_sequences: dict[str, int]) -> Training:
    """The training that a checkpoint's position.json states (CheckpointState)."""
    length = order["sequence_length"]
    return Training(
        steps=step,
        tokens=tokens,
        sequence_length=length,
        seed=order["seed"],
        sources=tuple(
            SourceRead(name, count * length, count * length / order["sources"][name]["tokens"])
            for name, count in source_sequences.items()
            if count
        ),
    )


def model_card(parent: str, name: str, training: Training | None, lineage: dict[str, Any] | None) -> str:
    """The card, in Markdown with the front matter that the Hugging Face Hub reads.

    Args:
        parent: name of the folder that training started from.
        name: of the exported folder.
        training: None for weights that were converted and not trained.
        lineage: content of lineage.json, for the learning rates.
    """
    lines = [f"Base model: `{parent}`."]
    if training:
        lines += ["", "## Training", "", *_training_lines(training, lineage or {})]
    return _card(name, ["continual-pretraining"] if training else [], lines)


_METHODS = {
    "linear": "Weighted mean of models (arXiv:2203.05482).",
    "task_arithmetic": "Sum of weighted differences from a base (task arithmetic, arXiv:2212.04089).",
    "ties": "TIES: differences from a base, trimmed, and averaged where they have the elected sign (arXiv:2306.01708).",
}


def averaged_card(name: str, averaged: dict[str, Any]) -> str:
    """The card of a model that was made of several, by what `average` left of it (Averaging.described)."""
    settings = {
        "Base model": f"`{_shown(averaged['base'])}`" if averaged["base"] else None,
        "Density": averaged["density"],
        "Scale of the whole difference": averaged["scale"],
    }
    lines = [
        "## Average",
        "",
        _METHODS[averaged["method"]],
        *(f"{title}: {value}." for title, value in settings.items() if value is not None),
        "",
        "| model | weight |",
        "|---|---|",
        *(
            f"| {_shown(source)} | {weight:g} |"
            for source, weight in zip(averaged["sources"], averaged["weights"], strict=True)
        ),
    ]
    return _card(name, ["merge"], lines)


def _shown(source: str) -> str:
    """A model without the place where it was: its folder's name, a checkpoint's with that of its run."""
    path = Path(source)
    return f"{path.parent.parent.name}/{path.name}" if path.parent.name == "checkpoints" else path.name


def _card(name: str, tags: Sequence[str], lines: Sequence[str]) -> str:
    """A card with what every one has around the lines that tell of its model."""
    head = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        *(["tags:", *(f"- {tag}" for tag in tags)] if tags else []),
        "---",
        "",
        f"# {name}",
        "",
        "Before you publish this model, add above its `license` (that of the base model holds for it) and `base_model`",
        "(the base model's name on the Hub), and below what it is for and what it should not be used for.",
        "",
    ]
    return "\n".join([*head, *lines, "", "Made with megatron-cpt.", ""])


def _training_lines(training: Training, lineage: dict[str, Any]) -> list[str]:
    """What it was trained on, and how far."""
    lines = [
        f"Continual pretraining of the base model: {training.tokens:,} tokens in {training.steps:,} steps, in",
        f"sequences of {training.sequence_length:,} tokens, with data seed {training.seed}.",
    ]
    if lineage.get("peak_learning_rate") is not None:
        lines.append(
            f"Learning rate: peak {lineage['peak_learning_rate']:g}, at the end {lineage['final_learning_rate']:g}."
        )
    total = sum(source.tokens for source in training.sources)
    return [
        *lines,
        "",
        "| source | tokens read | share | epochs |",
        "|---|---|---|---|",
        *(
            f"| {source.name} | {source.tokens:,} | {source.tokens / total:.1%} | {source.epochs:.3g} |"
            for source in training.sources
        ),
    ]
