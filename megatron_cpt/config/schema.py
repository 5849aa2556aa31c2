"""Every value of a run: its name, unit, default and meaning.

load.py makes a RunConfig from a YAML file and `section.key=value` arguments. The run folder keeps it with all defaults
spelled out, and the run can be repeated from that file alone. Tokens are tokens of the model's input. Durations take
suffixes (`300M`, `5B`) or, where said, steps (`100 steps`). docs/configuration.md is generated from this file.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from megatron_cpt.config.errors import Fault
from megatron_cpt.config.units import (
    Batches,
    Count,
    CountOrZero,
    Duration,
    EpochsOfSource,
    NotNegative,
    Positive,
    Share,
    ShareOfPeak,
    Span,
    SpanOrZero,
    WallTime,
    ramp_up,
)

# Names stand in file names, TensorBoard tags and `data.sources.NAME.weight=2`.
_NAME = re.compile(r"[\w-]+")


def name_faults(section: str, names: Iterable[str]) -> Iterator[Fault]:
    """Names that cannot stand where names do."""
    for name in names:
        if not _NAME.fullmatch(name):
            rule = "a name holds letters, digits, `-` and `_`: it stands in file names and dotted settings."
            yield Fault(f"{section}: '{name}'", rule, "Rename it.")


def path_faults(name: str, paths: list[str]) -> Iterator[Fault]:
    """No path, or an empty one."""
    remedy = "Name dataset prefixes (`DIR/NAME` of `DIR/NAME.bin`), selections or globs."
    if not paths:
        yield Fault(f"{name} is empty", "there is nothing to read.", remedy)
    elif not all(path.strip() for path in paths):
        yield Fault(f"{name} has an empty path", "a path names something.", remedy)


Precision = Literal["fp32", "bf16"]
Recompute = Literal["none", "selective", "full"]
Attention = Literal["across_documents", "within_documents"]

# Without `extra="forbid"` pydantic drops unknown keys of a dataclass in silence.
_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True)
class InitFromSettings:
    """What a new run takes from another run's checkpoint, each switch by itself.

    Once it has a checkpoint of its own, a run goes on from that.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    checkpoint: str | None = None
    """Where the weights come from: RUN/checkpoints/step-N, or a checkpoint that `convert from-hf` wrote.
    None: `model.weights` says."""
    load_optimizer: bool = False
    """Adam's moments and, with bf16, the fp32 main weights."""
    load_schedule: bool = False
    """Whether `schedule` goes on at the tokens that the checkpoint was trained on; else it begins at 0. A final decay
    of a kept schedule may not be longer than the run (docs/schedules.md has a recipe)."""
    load_data_position: bool = False
    """Whether steps, tokens and the data order go on counting where the checkpoint stood, with the random states;
    `training.tokens` then counts from the beginning of the run that wrote it, and evaluation marks count from the
    checkpoint. The sources must be the same."""


@dataclass(frozen=True, kw_only=True)
class QualitySettings:
    """A source divided by a score of its documents, best first: each bucket is a stream with epochs of its own.

    One of `epochs`, `shares` and `temperature` says what the buckets give. They are named SOURCE.1 (the best),
    SOURCE.2, ... in plans and records.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    score: str
    """Name of the score: `PREFIX.SCORE.npy` beside each dataset, one number a document (`megatron-cpt score`)."""
    best: Literal["lowest", "highest"] = "lowest"
    """Which scores are best: `lowest` for perplexities, `highest` for classifiers."""
    buckets: list[Share] = field(default_factory=lambda: [tenth / 10 for tenth in range(11)])
    """Bounds of the buckets as shares of the source's tokens, the best first, from 0 to 1. Default: tenths."""
    epochs: list[NotNegative] | None = None
    """Passes over each bucket, a target as `epochs` of a source is; 0 drops it."""
    shares: list[NotNegative] | None = None
    """Shares of the source's tokens that each bucket gives, relative to one another; 0 drops it."""
    temperature: Positive | None = None
    """A bucket gives tokens by its size times the mean of exp(z / temperature) over its tokens, z the score in standard
    deviations from its mean, better being higher (the weighting of arXiv:2402.09739, in whole buckets)."""


@dataclass(frozen=True, kw_only=True)
class LossMaskSettings:
    """Which labels count in the loss, of training and of validation sets alike; a set's identity says so.

    A label that does not count is read as input all the same.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    eod: bool = True
    """Whether the token that ends a document counts, which its manifest names."""
    document_starts: bool = True
    """Whether the first token of a document counts, which nothing before it tells. Megatron-LM's --eod-mask-loss
    leaves it out."""
    ignored_token_ids: list[CountOrZero] = field(default_factory=list)
    """Token ids that never count."""


@dataclass(frozen=True, kw_only=True)
class SamplePerEpochSettings:
    """A part of the source for each epoch of a mixture (strategy III of arXiv:2406.14833)."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    tokens: Count
    """Tokens of a draw: chosen at random, in whole sequences, none twice within a draw."""
    resample: Literal["fixed", "each_epoch"] = "each_epoch"
    """`fixed`: the same draw in every epoch, in another order; `each_epoch`: each epoch draws anew from the source."""


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """One source of training text: datasets and selections read as one stream."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    paths: list[str]
    """Dataset prefixes, selections (`NAME.selection.json`) or globs of either."""
    role: Literal["domain", "replay"] = "domain"
    """`domain`: what is learnt; `replay`: what the model knew. `data.replay_ratio` divides the run among them."""
    weight: NotNegative = 1.0
    """Share relative to the other sources of its role, or, without a replay ratio, to all sources. It multiplies a
    target in tokens or epochs."""
    tokens: Count | None = None
    """Target: tokens that the source is to give, its weight and its limit at once. Sources that share a role, or
    without a replay ratio all, have targets or none has."""
    epochs: Positive | None = None
    """Target in passes over the source, in place of `tokens`."""
    max_epochs: Positive | None = None
    """Passes over the source that the run may make, rounded down to whole sequences; `data.when_exhausted` says what
    happens beyond."""
    quality: QualitySettings | None = None
    """Buckets by score. None: all documents alike."""
    sample_per_epoch: SamplePerEpochSettings | None = None
    """Read a draw of the source in each epoch of a mixture. None: the whole source, in true epochs."""
    prompt_length_column: str | None = None
    """Name of a column `PREFIX.NAME.npy` beside each dataset, one number a document: so many of its first tokens are
    read and do not count in the loss, such as a prompt. None: all count."""

    @property
    def has_target(self) -> bool:
        """Whether tokens or epochs say what it gives."""
        return bool(self.tokens or self.epochs or (self.quality and self.quality.epochs))


@dataclass(frozen=True, kw_only=True)
class PhaseSettings:
    """A stretch of training with a blend of its own. What it leaves out is that of `data`.

    A phase begins at one of `from_tokens`, `from_lr` and `from_epoch`, rounded to whole steps, and lasts until the
    next; the first begins at 0 tokens. A run goes on with phases appended that begin after what it has trained on:
    every source goes on where it stood.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    from_tokens: SpanOrZero | None = None
    """Where it begins, in tokens or steps."""
    from_lr: ShareOfPeak | None = None
    """It begins once the learning rate, after its highest, has fallen to this: `0.2 of peak` (arXiv:2407.07263). Where
    that is depends on the length of the run: one that is made longer after such a phase has begun goes on only with
    the phase's place written as `from_tokens`, which the refusal names."""
    from_epoch: EpochsOfSource | None = None
    """It begins once a source has been read this often: `2 of law`."""
    ramp: Span | None = None
    """Shares go from those of the phase before to its own over so many tokens or steps. None: at once."""
    ramp_block: Span | None = None
    """A ramp is stairs; length of a stair, in tokens or steps. None: a 32nd of the ramp, at least a step."""
    replay_ratio: Share | None = None
    """Share of its tokens that `replay` sources give. None: `data.replay_ratio`."""
    weights: dict[str, NotNegative] = field(default_factory=dict)
    """Weights by the name of the source. A source that is not named keeps the weight it has in `data.sources`."""

    @property
    def beginning(self) -> str:
        """Where it begins, as it is configured: `from_lr = 0.2 of peak`."""
        ways = {"from_tokens": self.from_tokens, "from_lr": self.from_lr, "from_epoch": self.from_epoch}
        return ", ".join(f"{name} = {value}" for name, value in ways.items() if value is not None)


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The blend of training sources."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    sequence_length: Count
    """Tokens of a training sequence."""
    sources: dict[str, SourceSettings]
    """The sources by name. The name is part of the order: a renamed source is another source."""
    replay_ratio: Share | None = None
    """Share of all training tokens that `replay` sources give. None: weights alone decide."""
    attention: Attention = "across_documents"
    """Whether a token sees what stands before it in its sequence, as in Megatron-LM, or in its own document alone.
    Validation sets are read alike, and a set's identity says so."""
    loss_mask: LossMaskSettings = field(default_factory=LossMaskSettings)
    """Labels that do not count in the loss."""
    phases: list[PhaseSettings] = field(default_factory=list)
    """Stretches of training with other blends. Empty: one blend for the whole run."""
    when_exhausted: Literal["error", "redistribute", "stop"] = "error"
    """When a source reaches its `max_epochs` or its target: the run is refused, or its share goes to the other sources
    of its role (without a replay ratio, to all others), or the run ends with the last whole step before, and its
    schedule and marks with it."""

    def in_phase(self, phase: PhaseSettings) -> "DataSettings":
        """The settings that hold during a phase: a single blend. Names of the phase that are no sources are ignored."""
        return replace(
            self,
            replay_ratio=self.replay_ratio if phase.replay_ratio is None else phase.replay_ratio,
            sources={
                name: replace(source, weight=phase.weights.get(name, source.weight))
                for name, source in self.sources.items()
            },
            phases=[],
        )


@dataclass(frozen=True, kw_only=True)
class InitialLossCheckSettings:
    """The loss of the first 8 sequences before the first update, beside transformers' own; a difference is refused.

    Rank 0 computes it where the whole model fits its GPU or its machine's memory; elsewhere nothing is compared.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    enabled: bool = True
    """Whether they are compared."""
    reference_file: str | None = None
    """A recording to compare with: `initial_loss_check.json` of a run that begins as this one does, or of
    `megatron-cpt convert record-reference`. None: transformers computes it."""
    tolerance: Positive | None = None
    """Largest difference of one sequence's loss, in nats per token. None: 0.001 in fp32, 0.02 in bf16."""
    worse_than_guessing: Literal["warn", "refuse"] = "warn"
    """A mean loss of these sequences above ln(vocabulary), that of guessing, as damaged weights or another tokenizer
    have it. Looked at before the first update of a run that starts from a checkpoint, too."""


@dataclass(frozen=True, kw_only=True)
class FrozenSettings:
    """Parts of the model that keep their weights."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    bottom: CountOrZero = 0
    """So many layers next to the input."""
    top: CountOrZero = 0
    """So many layers next to the output."""
    embeddings: bool = False
    """Embedding and output layer."""


@dataclass(frozen=True, kw_only=True)
class RopeSettings:
    """Rotary positions that differ from the folder's, for longer sequences than the model was made for.

    The model is trained, checked, saved and exported with a config.json that says so.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    max_position_embeddings: Count
    """Longest sequence that the model is to read, in tokens: `max_position_embeddings`."""
    rope_theta: Positive | None = None
    """Base of the wavelengths: `rope_theta`. None: the folder's."""
    scaling: Literal["keep", "none", "linear", "llama3", "yarn"] = "keep"
    """How the wavelengths are scaled; `keep`: as the folder says."""
    factor: Positive | None = None
    """Of `linear`, `llama3` and `yarn`: by how much. None: `max_position_embeddings` over `original_positions`."""
    original_positions: Count | None = None
    """Longest sequence before the scaling, in tokens. None: what the folder states."""
    extra: dict[str, float] = field(default_factory=dict)
    """Further fields of the scaling, under transformers' names: `low_freq_factor`, `beta_fast`, ..."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The model, always described by a Hugging Face folder."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    hf: str
    """Hugging Face folder: config.json, the tokenizer, and the weights unless `weights: random`."""
    weights: Literal["hf", "random"] = "hf"
    """Where the weights come from: the folder's safetensors, or drawn at random (training from scratch)."""
    dropout: Share = 0.0
    """Dropout of hidden states and of attention. Continual pretraining uses 0."""
    initial_loss_check: InitialLossCheckSettings = field(default_factory=InitialLossCheckSettings)
    """The check before the first update of a run that does not start from random weights."""
    frozen: FrozenSettings = field(default_factory=FrozenSettings)
    """Parts that are not trained."""
    rope: RopeSettings | None = None
    """Other rotary positions. None: the folder's."""


Part = Literal["embedding", "output", "norms_and_biases"]


@dataclass(frozen=True, kw_only=True)
class LayerLrMultiplierSettings:
    """A learning rate for some layers."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    first: CountOrZero
    """The first of them, counted from 0 at the input."""
    last: CountOrZero
    """The last of them."""
    multiplier: NotNegative
    """Relative to the learning rate of the schedule; 0 holds them."""


@dataclass(frozen=True, kw_only=True)
class LrMultiplierSettings:
    """Learning rates of parts of the model, relative to that of the schedule. Where two apply, they multiply.

    At 0 a part keeps its weights, but has gradients and moments still; `model.frozen` saves both.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    embedding: NotNegative = 1.0
    """The embedding; the output layer too, where it has the same weights."""
    output: NotNegative = 1.0
    """An output layer with weights of its own."""
    norms_and_biases: NotNegative = 1.0
    """All parameters of one dimension."""
    layers: list[LayerLrMultiplierSettings] = field(default_factory=list)
    """Layers by their number; no layer is named twice."""


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """AdamW, with decoupled weight decay on matrices."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    beta1: Share = 0.9
    """Decay of the first moment."""
    beta2: Share = 0.95
    """Decay of the second moment."""
    epsilon: Positive = 1e-8
    """Added to the root of the second moment."""
    weight_decay: NotNegative = 0.1
    """Weight decay per step and unit of learning rate."""
    no_weight_decay: list[Part] = field(default_factory=lambda: ["norms_and_biases"])
    """Parts without weight decay."""
    clip_grad: NotNegative = 1.0
    """Largest gradient norm; 0 switches clipping off."""
    moment_warmup_steps: CountOrZero = 0
    """Steps at rate 0 before the first update, on its sequences and those after: they fill Adam's moments, which a
    Hugging Face folder has none of, and change no weight."""
    lr_multipliers: LrMultiplierSettings = field(default_factory=LrMultiplierSettings)
    """Learning rates of parts of the model."""


DecayShape = Literal["linear", "cosine", "exponential", "1-sqrt"]


@dataclass(frozen=True, kw_only=True)
class PieceSettings:
    """A step of the learning rate."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    from_tokens: Span
    """Tokens, or steps, trained before it."""
    lr: NotNegative
    """The learning rate from there on."""


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """The learning rate as a function of tokens trained (docs/schedules.md shows each kind)."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    kind: Literal["constant", "linear", "cosine", "wsd", "infinite", "piecewise"] = "cosine"
    """Shape after warm-up. wsd: stable, decay. infinite: cool down to `plateau_lr`, stay, decay. piecewise: as
    listed."""
    peak_lr: Positive
    """Peak learning rate."""
    final_lr: NotNegative = 0.0
    """Learning rate at the end of the run (not used by `constant` and `piecewise`)."""
    initial_lr: NotNegative = 0.0
    """Where the warm-up begins, such as the base run's final rate."""
    warmup: Span | None = None
    """Length of the linear warm-up, in tokens or steps. None: none."""
    decay: Span | None = None
    """wsd and infinite: length of the final decay, in tokens or steps. None: a tenth of the run."""
    decay_shape: DecayShape | None = None
    """wsd and infinite: shape of the final decay. None: linear for wsd, exponential for infinite."""
    cooldown: Span | None = None
    """infinite: length of the way from `peak_lr` to `plateau_lr`, in tokens or steps."""
    plateau_lr: Positive | None = None
    """infinite: the rate that stays until the final decay."""
    pieces: list[PieceSettings] = field(default_factory=list)
    """piecewise: drops (or rises) of the rate, in the order of training."""


@dataclass(frozen=True, kw_only=True)
class WandbSettings:
    """The scalars of TensorBoard, on Weights & Biases too (needs the package `wandb`)."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    project: str
    """The project there."""
    mode: Literal["online", "offline"] = "online"
    """offline: into RUN/wandb, for `wandb sync` later; nothing is sent."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Where a run lives and what makes it repeatable."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    folder: str
    """The run folder. The same command on the same folder goes on where it was."""
    seed: CountOrZero = 1234
    """Seed of the data order, of dropout and of random weights."""
    log_interval: Span = field(default=Duration(10, "steps"))
    """How often the progress line is written to the log, in tokens or steps."""
    profile: str | None = None
    """Steps of which a torch profiler trace is written into RUN/profile, one file a rank: `10` or `10-12`."""
    peak_flops: Positive | None = None
    """FLOP/s of one rank's device at its best, for MFU. None: the dense bf16 peak of a GPU that is known."""
    wandb: WandbSettings | None = None
    """Weights & Biases. None: not used."""
    allow_loss_changes: bool = False
    """Go on from a checkpoint although `data.attention`, the labels that count or a validation set or task is no longer
    what it was: losses before and after are not comparable. The report keeps the baseline and shows the break."""


@dataclass(frozen=True, kw_only=True)
class BatchSizeRampupSettings:
    """Steps that grow at the beginning of a run, in even stairs to `training.global_batch_size` (units.py).

    The order of sequences is the same with it, but for phases: those begin at whole steps. Distances in tokens (of
    checkpoints, of marks) are as many steps during the ramp as after it; a schedule is in tokens.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    start: Count
    """Sequences of the first steps."""
    increment: Count
    """Sequences by which a stair is larger than the one before."""
    tokens: Count
    """Tokens until steps have their full size."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How much is trained, and in what batches."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    tokens: Span
    """Length of the run, in tokens or steps; rounded to whole steps."""
    global_batch_size: Count
    """Sequences of one optimizer step, over all ranks."""
    batch_size_rampup: BatchSizeRampupSettings | None = None
    """Smaller steps at the beginning, such as `{start: 64, increment: 64, tokens: 1B}`. None: all are of one size."""
    micro_batch_size: Count = 1
    """Sequences of one forward pass of one data-parallel rank."""
    precision: Precision = "bf16"
    """Arithmetic of the model. bf16 keeps fp32 main parameters; CPUs without bf16 units want fp32."""
    recompute: Recompute = "none"
    """Activations computed again in the backward pass in place of being kept: `selective` those of the MLP or the
    experts (of attention where a layer computes both side by side), `full` those of whole layers."""
    on_nonfinite: Literal["stop", "skip", "rewind"] = "stop"
    """A loss or gradient that is not finite, always before the update: `stop` ends the run with exit code 4;
    `skip` leaves the update out and goes on with the next sequences; `rewind` goes back to the last checkpoint and
    leaves out all sequences since. Ten times in a row at most."""
    on_spike: Literal["ignore", "stop", "skip", "rewind"] = "ignore"
    """A loss spike, before the update: `ignore` trains on it, the others are those of `on_nonfinite`."""
    spike_sigmas: Positive = 6.0
    """A loss is a spike above the mean of the updates before it plus so many of their standard deviations."""
    spike_window: Count = 128
    """Updates that mean and deviation are taken of; a spike is seen once half of them are there."""
    z_loss: NotNegative = 0.0
    """Coefficient of (log Z)^2, Z being the normaliser of the softmax, added to the loss that is trained on, never to
    the one that is reported; 1e-4 in arXiv:2204.02311. Where it is not 0, a copy of the logits is kept."""


@dataclass(frozen=True, kw_only=True)
class ParallelSettings:
    """How ranks share the model; data parallel is what remains of the world size."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    tensor: Count = 1
    """Tensor-parallel size."""
    sequence: bool = False
    """Divides sequences over the tensor-parallel ranks between attention and MLP (sequence parallelism): less memory
    for the same traffic."""
    pipeline: Count = 1
    """Pipeline-parallel size (stages)."""
    virtual_pipeline: Count = 1
    """Model chunks of a stage (interleaved pipeline): less idle time, more traffic."""
    context: Count = 1
    """Context-parallel size: ranks that share each sequence, for sequences too long for one."""
    expert: Count = 1
    """Expert-parallel size: ranks among which the experts of a layer are divided. They are ranks that would otherwise
    hold the same experts (data and context parallel), so it takes no further ranks."""
    distributed_optimizer: bool = False
    """Shards optimizer state over data-parallel ranks (ZeRO-1)."""
    overlap_grad_reduce: bool = False
    """Sums gradients over data-parallel ranks while the backward pass goes on."""
    overlap_param_gather: bool = False
    """Gathers parameters that the distributed optimizer updated while the next forward pass goes on."""


@dataclass(frozen=True, kw_only=True)
class EvalIntervalSettings:
    """When a validation set is evaluated (eval_schedule.py). Marks count from where the run begins."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    start: bool = True
    """Before the first update: the baseline of every gap figure."""
    log_spaced: str | None = None
    """Dense early marks, log-spaced: `8 per decade to 1000 steps`."""
    every: Span | None = None
    """Regular marks, in tokens or steps."""
    end: bool = True
    """After the last update."""
    at: list[Span] = field(default_factory=list)
    """Further marks, in tokens or steps."""


@dataclass(frozen=True, kw_only=True)
class ValidationSetSettings:
    """One named validation set: the same sequences at every mark and in every run."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    paths: list[str]
    """Dataset prefixes (usually `PREFIX.validation`) or globs."""
    role: Literal["domain", "general"] = "general"
    """Which kind of text it stands for: `domain` what is learnt, `general` what the model knew."""
    tokens: Count | None = None
    """Budget: the first whole sequences that fit. None: the whole set."""
    eval_interval: EvalIntervalSettings | None = None
    """Marks of this set alone. None: `validation.eval_interval`."""
    prompt_length_column: str | None = None
    """As `prompt_length_column` of a source of training text."""


@dataclass(frozen=True, kw_only=True)
class ValidationSettings:
    """Validation sets and when they are evaluated."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    sets: dict[str, ValidationSetSettings] = field(default_factory=dict)
    """The sets by name."""
    eval_interval: EvalIntervalSettings = field(default_factory=EvalIntervalSettings)
    """When they are evaluated."""
    micro_batch_size: Count | None = None
    """Sequences of one forward pass. None: that of training."""
    max_overhead: Share | None = None
    """Largest cost of all evaluations, those of tasks included, over the compute of training. What is beyond is left
    out mark by mark, evenly, never the first and the last; the plan says which. None: no limit."""
    weight_updates: bool = False
    """Record at every mark how far the bottom and the top layers have moved since the start (docs/gap.md). The
    start weights of those layers are kept in host memory."""
    stability_gradient: str | None = None
    """A set of `general` text: at its marks, record the norm of the gradient on its first sequences, one global batch.
    None: not measured."""


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """One file of downstream tasks: multiple-choice questions or texts, one JSON object a line (docs/tasks.md)."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    path: str
    """The JSONL file. Its lines may name their tasks; those that do not are a task by the name of this entry."""
    role: Literal["domain", "general"] = "general"
    """Which kind of ability it stands for: `domain` what is learnt, `general` what the model knew."""
    num_fewshot: CountOrZero = 0
    """Solved examples before each question."""
    fewshot_file: str | None = None
    """JSONL file that the examples come from, its first ones. None: the task's own first questions, never itself."""
    delimiter: str = " "
    """What stands between a question and its choice."""
    metric: Literal["accuracy", "normalized_accuracy"] | None = None
    """Which accuracy counts: by log-likelihood, or by log-likelihood per character of the choice. None: the plain one
    for MMLU, PubMedQA, BoolQ, WinoGrande, COPA and RACE, as in lm-evaluation-harness, and else the normalised."""
    limit: Count | None = None
    """The first questions or texts of each task. None: all."""
    eval_interval: EvalIntervalSettings | None = None
    """Marks of this file alone. None: `tasks.eval_interval`."""


@dataclass(frozen=True, kw_only=True)
class LmEvalSettings:
    """Tasks of lm-evaluation-harness (docs/tasks.md)."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    tasks: list[str]
    """Tasks, groups or tags by name, or paths of YAML files. Their data must be on this machine."""
    include: str | None = None
    """Folder of further tasks, as YAML files; Python functions that they name are run."""
    role: Literal["domain", "general"] = "general"
    """Which kind of ability they stand for: `domain` what is learnt, `general` what the model knew."""
    num_fewshot: CountOrZero | None = None
    """Solved examples before each question. None: what each task says; one that says 0 keeps it, as in the harness."""
    limit: Count | None = None
    """The first questions of each task. None: all."""
    eval_interval: EvalIntervalSettings | None = None
    """Marks of these tasks alone. None: `tasks.eval_interval`."""


@dataclass(frozen=True, kw_only=True)
class TasksSettings:
    """Downstream tasks, scored by log-likelihood on the model while it trains."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    files: dict[str, TaskSettings] = field(default_factory=dict)
    """Files of tasks by name."""
    lm_eval: dict[str, LmEvalSettings] = field(default_factory=dict)
    """Tasks of lm-evaluation-harness, in entries by name (needs `.[eval]`)."""
    groups: dict[str, list[str]] = field(default_factory=dict)
    """Means over tasks: a name, and the tasks. `s1_medical: []` and `s1_general: []` stand for the tasks that
    arXiv:2406.14833 averages, all of which must then be there."""
    eval_interval: EvalIntervalSettings = field(default_factory=EvalIntervalSettings)
    """When they are scored."""
    micro_batch_size: Count = 8
    """Choices or texts of one forward pass."""


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Hugging Face folders written by the run."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    every: Span | None = None
    """Write one each time so much is trained, in tokens or steps, into RUN/hf_steps/step-N. None: none on the way."""
    end: bool = True
    """Write one after the last update, into RUN/hf."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """dtype of the weights. None: each tensor has the one that it has in the folder the run started from."""


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """Checkpoints to resume from, and exports."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    save_interval: Span | None = None
    """Distance between checkpoints, in tokens or steps. None: one at the end alone."""
    keep_last: Count = 2
    """Older ones are removed once a newer one is whole."""
    keep_every: Span | None = None
    """Checkpoints at multiples of this are kept, in the sharding that loads into any layout."""
    keep_best: str | None = None
    """A validation set: of the checkpoints at its marks, the one with its lowest loss is kept."""
    async_save: bool = False
    """Write while training goes on: training waits only until the state is taken."""
    export_hf: ExportSettings | None = None
    """Hugging Face folders. None: the run writes none."""


@dataclass(frozen=True, kw_only=True)
class StopSettings:
    """When a run saves and ends before its end; SIGTERM and SIGUSR1 do the same at any time. Exit code 75."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    after: WallTime | None = None
    """Wall time since the program's start, such as `3h50m`: looked at after each step. None: no limit."""


@dataclass(frozen=True, kw_only=True)
class MegatronSettings:
    """Anything that the installed Megatron-Core's own dataclasses know and that no field above sets."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    transformer: dict[str, Any] = field(default_factory=dict)
    """Fields of TransformerConfig."""
    optimizer: dict[str, Any] = field(default_factory=dict)
    """Fields of OptimizerConfig."""
    ddp: dict[str, Any] = field(default_factory=dict)
    """Fields of DistributedDataParallelConfig."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    run: RunSettings
    model: ModelSettings
    data: DataSettings
    training: TrainingSettings
    schedule: ScheduleSettings
    init_from: InitFromSettings = field(default_factory=InitFromSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    parallel: ParallelSettings = field(default_factory=ParallelSettings)
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    tasks: TasksSettings = field(default_factory=TasksSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    stop: StopSettings = field(default_factory=StopSettings)
    megatron: MegatronSettings = field(default_factory=MegatronSettings)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step; of one after the ramp, where there is one."""
        return self.training.global_batch_size * self.data.sequence_length

    @property
    def batches(self) -> Batches:
        """Sequences of every step."""
        ramp, size = self.training.batch_size_rampup, self.training.global_batch_size
        if ramp is None:
            return Batches(size)
        return Batches(size, ramp_up(ramp.start, ramp.increment, ramp.tokens, size, self.data.sequence_length))

    @property
    def token_batches(self) -> Batches:
        """Tokens of every step."""
        return self.batches.times(self.data.sequence_length)

    def sequences_at(self, step: int) -> int:
        """Sequences read by the first `step` optimizer steps together."""
        return self.batches.total(step)

    def tokens_at(self, step: int) -> int:
        """Tokens of the model's input read by the first `step` optimizer steps together."""
        return self.sequences_at(step) * self.data.sequence_length

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.training.tokens.steps(self.tokens_per_step, self.token_batches.ramp)

    @property
    def total_tokens(self) -> int:
        """Tokens of the run: whole steps."""
        return self.tokens_at(self.total_steps)
