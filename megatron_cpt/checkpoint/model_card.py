"""The README.md of an exported model: what it came from and what it was trained on."""

from dataclasses import dataclass
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
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        *(["tags:", "- continual-pretraining"] if training else []),
        "---",
        "",
        f"# {name}",
        "",
        "Before you publish this model, add above its `license` (that of the base model holds for it) and `base_model`",
        "(the base model's name on the Hub), and below what it is for and what it should not be used for.",
        "",
        f"Base model: `{parent}`.",
    ]
    if training:
        lines += ["", "## Training", "", *_training_lines(training, lineage or {})]
    return "\n".join([*lines, "", "Made with megatron-cpt.", ""])


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
