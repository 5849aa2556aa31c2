"""Every value of a run: its name, unit, default and meaning.

load.py makes a RunConfig from a YAML file and `section.key=value` arguments. The run folder keeps it with all defaults,
and the run can be repeated from that file alone. Tokens are tokens of the model's input. Lengths take suffixes (`300M`,
`5B`); a `Span` may also be in steps (`100 steps`). docs/configuration.md is generated from this file.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict

from megatron_cpt.config.base_history import with_public_values
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
    StepNumbers,
    WallTime,
    ramp_up,
    wall_seconds,
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
    """What a new run takes from another run's checkpoint. Each switch is independent.

    Once a run has a checkpoint of its own, it goes on from that one.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    checkpoint: str | None = None
    """Where the weights come from: RUN/checkpoints/step-N, or what `convert from-hf` or `from-megatron` wrote.
    None: `model.weights` decides."""
    load_optimizer: bool = False
    """Adam's moments and, with bf16, the fp32 main weights."""
    load_schedule: bool = False
    """Whether `schedule` continues at the tokens that the checkpoint was trained on; otherwise it begins at 0. The
    final decay of a continued schedule may not be longer than the run (docs/schedules.md has a recipe)."""
    load_data_position: bool = False
    """Whether steps, tokens, the data order and the random states continue from the checkpoint. `training.tokens` then
    counts from the beginning of the run that wrote it, and evaluations count from the checkpoint. The sources must be
    the same."""


@dataclass(frozen=True, kw_only=True)
class QualitySettings:
    """A source divided into buckets by a score of its documents. Each bucket is a stream with its own epochs.

    One of `epochs`, `shares` and `temperature` decides how much each bucket gives. Plans and records name the buckets
    SOURCE.1 (the best), SOURCE.2, ...
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    score: str
    """Name of the score: `PREFIX.SCORE.npy` beside each dataset, one number a document (`megatron-cpt score`)."""
    best: Literal["lowest", "highest"] = "lowest"
    """Which scores are best: `lowest` for perplexities, `highest` for classifiers."""
    buckets: list[Share] = field(default_factory=lambda: [tenth / 10 for tenth in range(11)])
    """Bounds of the buckets, from 0 to 1, as shares of the source's tokens; the best come first. Default: tenths."""
    epochs: list[NotNegative] | None = None
    """Passes over each bucket, as targets like `epochs` of a source; 0 drops the bucket."""
    shares: list[NotNegative] | None = None
    """Relative shares of the source's tokens that the buckets give; 0 drops a bucket."""
    temperature: Positive | None = None
    """A bucket's share is its size times the mean of exp(z / temperature) over its tokens. z is the score in standard
    deviations from its mean, with better scores higher (the weighting of arXiv:2402.09739, for whole buckets)."""


@dataclass(frozen=True, kw_only=True)
class LossMaskSettings:
    """Which labels count in the loss of training and validation sets. They are part of a set's identity.

    A token whose label does not count is still read as input.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    eod: bool = True
    """Whether the end-of-document token counts; the manifest of a dataset names it. In conversations it may be the end
    of every answer too, and always counts there: which of their tokens count was decided when they were prepared."""
    document_starts: bool = True
    """Whether the first token of a document counts. Nothing before it in the document predicts it; Megatron-LM's
    --eod-mask-loss leaves it out."""
    ignored_token_ids: list[CountOrZero] = field(default_factory=list)
    """Token ids that never count."""


@dataclass(frozen=True, kw_only=True)
class SamplePerEpochSettings:
    """A part of the source for each epoch of a mixture (strategy III of arXiv:2406.14833)."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    tokens: Count
    """Tokens of a sample: whole sequences, chosen at random without repetition."""
    resample: Literal["fixed", "each_epoch"] = "each_epoch"
    """`fixed`: the same sample in every epoch, in another order; `each_epoch`: a new sample in each epoch."""


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """One source of training text: datasets and selections read as one stream."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    paths: list[str]
    """Dataset prefixes, selections (`NAME.selection.json`) or globs of either. A prefix stands for all its parts."""
    role: Literal["domain", "replay"] = "domain"
    """`domain`: new text; `replay`: text like that of pretraining. `data.replay_ratio` divides the run among them."""
    weight: NotNegative = 1.0
    """Share relative to the other sources of its role; without a replay ratio, relative to all sources. A target in
    tokens or epochs is multiplied by it."""
    tokens: Count | None = None
    """Target: tokens that the source gives. It is both its weight and its limit. Either all sources of a role have
    targets or none has; without a replay ratio this holds for all sources together."""
    epochs: Positive | None = None
    """Target in passes over the source, instead of `tokens`."""
    max_epochs: Positive | None = None
    """Most passes over the source, rounded down to whole sequences; `data.when_exhausted` decides what happens
    then."""
    quality: QualitySettings | None = None
    """Buckets by score. None: all documents are treated alike."""
    sample_per_epoch: SamplePerEpochSettings | None = None
    """Read a sample of the source in each epoch of a mixture. None: the whole source, in true epochs."""
    loss_weight: NotNegative = 1.0
    """Factor on the loss of its tokens in what is trained on. It changes gradients, neither the text that is read nor
    the losses that are reported. The weighted sum of the losses is divided by the number of tokens that count."""
    loss_mask_column: str | None = None
    """Name of a column `PREFIX.NAME.npy` beside each dataset that says which tokens count in the loss: spans of tokens,
    or one number a document, how many of its first tokens, such as a prompt, do not. None: what each dataset says of
    itself; conversations (`prepare --chat`) count in their answers, other text in all of it."""

    @property
    def has_target(self) -> bool:
        """Whether tokens or epochs say what it gives."""
        return bool(self.tokens or self.epochs or (self.quality and self.quality.epochs))


@dataclass(frozen=True, kw_only=True)
class PhaseSettings:
    """A part of training with a blend of its own. Settings that it does not give are those of `data`.

    A phase begins at one of `from_tokens`, `from_lr` and `from_epoch`, rounded to whole steps, and lasts until the
    next phase. The first begins at 0 tokens. A resumed run may have further phases, if they begin after the tokens that
    it has trained on; every source continues from its position.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    from_tokens: SpanOrZero | None = None
    """Where it begins, in tokens or steps."""
    from_lr: ShareOfPeak | None = None
    """It begins once the learning rate has fallen from its highest value to this: `0.2 of peak` (arXiv:2407.07263).
    The place depends on the length of the run. To make a run longer after such a phase has begun, write the place as
    `from_tokens`; the error message states the number."""
    from_epoch: EpochsOfSource | None = None
    """It begins once a source has been read so many times: `2 of law`."""
    ramp: Span | None = None
    """Length over which the shares change from those of the phase before, in tokens or steps, in up to 32 even parts.
    None: at once."""
    replay_ratio: Share | None = None
    """Share of the phase's tokens from `replay` sources. None: `data.replay_ratio`."""
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
    """Share of all training tokens from `replay` sources. None: the weights alone decide."""
    attention: Attention = "across_documents"
    """Whether a token attends to everything before it in its sequence, as in Megatron-LM, or only to its own document.
    Validation sets are read in the same way; the setting is part of their identity."""
    packing: Literal["best_fit"] | None = None
    """`best_fit`: whole documents are packed into training sequences (arXiv:2404.10830), longer ones cut, the rest of a
    sequence padded; it needs `attention: within_documents`. None: documents follow each other, and a sequence begins
    and ends anywhere. Validation sets are never packed."""
    loss_mask: LossMaskSettings = field(default_factory=LossMaskSettings)
    """Labels that do not count in the loss."""
    phases: list[PhaseSettings] = field(default_factory=list)
    """Parts of training with other blends. Empty: one blend for the whole run."""
    when_exhausted: Literal["error", "redistribute", "stop"] = "error"
    """When a source reaches its `max_epochs` or its target. `error`: the run is refused. `redistribute`: its share goes
    to the other sources of its role (without a replay ratio, to all others). `stop`: the run, its schedule and its
    evaluations end with the last whole step before."""

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
    """Compares the loss of the first 8 sequences before the first update with transformers'; a difference is refused.

    Rank 0 computes the reference if the whole model fits its GPU or its machine's memory. There it uses all cores, and
    the log says beforehand how long it will take. If that is more than half of `timeout.start`, or the model does not
    fit, nothing is compared.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    enabled: bool = True
    """Whether the losses are compared."""
    reference_file: str | None = None
    """A file to compare with: `initial_loss_check.json` of a run that begins as this one does, or the output of
    `megatron-cpt convert record-reference`. None: transformers computes the losses."""
    tolerance: Positive | None = None
    """Largest difference of one sequence's loss, in nats per token. None: 0.001 in fp32, 0.02 in bf16."""
    worse_than_guessing: Literal["warn", "refuse"] = "warn"
    """What happens if the mean loss is above ln(vocabulary), the loss of guessing. Damaged weights and a wrong
    tokenizer cause this. It is also checked in a run that starts from a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class FrozenSettings:
    """Parts of the model that keep their weights."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    bottom: CountOrZero = 0
    """Number of layers next to the input."""
    top: CountOrZero = 0
    """Number of layers next to the output."""
    embeddings: bool = False
    """Embedding and output layer."""


@dataclass(frozen=True, kw_only=True)
class RopeSettings:
    """Rotary positions that differ from the folder's, for longer sequences than the model was made for.

    They are written into the config.json that checks, checkpoints and exports use.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    max_position_embeddings: Count
    """Longest sequence that the model is to read, in tokens."""
    rope_theta: Positive | None = None
    """Base of the wavelengths. None: the folder's."""
    scaling: Literal["keep", "none", "linear", "llama3", "yarn"] = "keep"
    """How the wavelengths are scaled; `keep`: as in the folder."""
    factor: Positive | None = None
    """Factor of `linear`, `llama3` and `yarn`. None: `max_position_embeddings` over `original_positions`."""
    original_positions: Count | None = None
    """Longest sequence before the scaling, in tokens. None: what the folder states."""
    extra: dict[str, float] = field(default_factory=dict)
    """Other fields of the scaling, under transformers' names: `low_freq_factor`, `beta_fast`, ..."""


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
    """Parts of the model that are not trained."""
    rope: RopeSettings | None = None
    """Other rotary positions. None: the folder's."""


Part = Literal["embedding", "output", "norms_and_biases"]


@dataclass(frozen=True, kw_only=True)
class LayerLrMultiplierSettings:
    """A learning-rate multiplier for some layers."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    first: CountOrZero
    """The first of them, counted from 0 at the input."""
    last: CountOrZero
    """The last of them."""
    multiplier: NotNegative
    """Factor on the learning rate of the schedule; 0 keeps the layers as they are."""


@dataclass(frozen=True, kw_only=True)
class LrMultiplierSettings:
    """Factors on the schedule's learning rate for parts of the model. If two apply to a part, they are multiplied.

    At 0 a part keeps its weights but still has gradients and moments; `model.frozen` saves the memory of both.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    embedding: NotNegative = 1.0
    """The embedding, and an output layer that shares its weights."""
    output: NotNegative = 1.0
    """An output layer with weights of its own."""
    norms_and_biases: NotNegative = 1.0
    """All parameters of one dimension."""
    layers: list[LayerLrMultiplierSettings] = field(default_factory=list)
    """Ranges of layers; they may not overlap."""


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
    """Steps at learning rate 0 before the first update, on its sequences and those after it. They fill Adam's moments,
    which a Hugging Face folder does not hold, and change no weight."""
    lr_multipliers: LrMultiplierSettings = field(default_factory=LrMultiplierSettings)
    """Learning-rate factors for parts of the model."""


DecayShape = Literal["linear", "cosine", "exponential", "1-sqrt"]


@dataclass(frozen=True, kw_only=True)
class PieceSettings:
    """A piece of a piecewise constant learning rate."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    from_tokens: Span
    """Tokens or steps trained before the piece."""
    lr: NotNegative
    """Learning rate of the piece."""


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """The learning rate as a function of tokens trained (docs/schedules.md shows each kind)."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    kind: Literal["constant", "linear", "cosine", "wsd", "infinite", "piecewise"] = "cosine"
    """Shape after the warm-up. wsd: stable, then decay. infinite: cooldown to `plateau_lr`, constant, then decay.
    piecewise: as listed in `pieces`."""
    peak_lr: Positive
    """Peak learning rate."""
    final_lr: NotNegative = 0.0
    """Learning rate at the end of the run (not used by `constant` and `piecewise`)."""
    initial_lr: NotNegative = 0.0
    """Learning rate at the start of the warm-up, such as the final one of the base run."""
    warmup: Span | None = None
    """Length of the linear warm-up, in tokens or steps. None: none."""
    decay: Span | None = None
    """wsd and infinite: length of the final decay, in tokens or steps. None: a tenth of the run."""
    decay_shape: DecayShape | None = None
    """wsd and infinite: shape of the final decay. None: linear for wsd, exponential for infinite."""
    cooldown: Span | None = None
    """infinite: length of the cooldown from `peak_lr` to `plateau_lr`, in tokens or steps."""
    plateau_lr: Positive | None = None
    """infinite: constant learning rate until the final decay."""
    pieces: list[PieceSettings] = field(default_factory=list)
    """piecewise: the pieces, in the order of training."""
    tokens: Span | None = None
    """Length of the schedule from its first token to the end of its decay, in tokens or steps; then the rate stays at
    `final_lr`. None: it ends with the run."""
    consumed: Span | None = None
    """Part of the schedule that lies before the run, in tokens or steps: the rest of the schedule of a run that another
    program began (docs/migrating.md). None: the run begins with the schedule."""


@dataclass(frozen=True, kw_only=True)
class BaseHistorySettings:
    """How a base that was made elsewhere was trained: what scaling laws would read in its lineage.json.

    `base_history: NAME` takes all values of a public base (megatron_cpt/config/base_histories.yaml lists them with
    their sources); with `name` in the section, given values replace those of the table. What is not known is left out.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: str | None = None
    """A public base, such as `llama-2-7b`. None: only what is given here is known."""
    tokens: Count | None = None
    """Tokens that it was trained on."""
    tokens_per_step: Count | None = None
    """Tokens of one optimizer step."""
    kind: Literal["constant", "linear", "cosine", "wsd"] | None = None
    """Schedule after the warm-up, as in `schedule.kind`. With `tokens`, `tokens_per_step`, `peak_lr` and `final_lr` it
    gives the forward and annealing areas S1 and S2."""
    peak_lr: Positive | None = None
    """Peak learning rate."""
    final_lr: NotNegative | None = None
    """Learning rate at the end of its schedule (not used by `constant`)."""
    warmup: Span | None = None
    """Length of its linear warm-up from 0, in tokens or steps. None: none."""
    decay: Span | None = None
    """wsd: length of the final decay, in tokens or steps. None: a tenth of the schedule."""
    decay_shape: DecayShape | None = None
    """wsd: shape of the final decay. None: linear."""
    schedule_tokens: Count | None = None
    """Length of its schedule, where its training ended earlier: a checkpoint that is not annealed. None: `tokens`."""
    source: str | None = None
    """Where the values come from."""

    @property
    def schedule(self) -> ScheduleSettings | None:
        """Its schedule; None where it is not known."""
        final = self.peak_lr if self.kind == "constant" else self.final_lr
        if self.kind is None or self.peak_lr is None or final is None:
            return None
        return ScheduleSettings(
            kind=self.kind,
            peak_lr=self.peak_lr,
            final_lr=final,
            warmup=self.warmup,
            decay=self.decay,
            decay_shape=self.decay_shape,
        )


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Folder, seed and logging of a run."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    folder: str
    """The run folder. The same command on the same folder resumes the run."""
    seed: CountOrZero = 1234
    """Seed of the data order, of dropout and of random weights."""
    log_interval: Span = field(default=Duration(10, "steps"))
    """How often the progress line is written to the log, in tokens or steps."""
    profile: StepNumbers | None = None
    """Steps for a torch profiler trace in RUN/profile: `10` or `10-12`."""
    profile_ranks: list[CountOrZero] = field(default_factory=lambda: [0])
    """Ranks that write a trace of these steps, a file each."""
    peak_flops: Positive | None = None
    """Peak FLOP/s of one rank's device, for MFU. None: the dense bf16 peak, if the GPU is a known one."""
    wandb_project: str | None = None
    """Project of Weights & Biases that gets the scalars of TensorBoard too (needs the package `wandb`). Its environment
    variables hold: `WANDB_MODE=offline` writes into RUN/wandb for a later `wandb sync`. None: not used."""
    mlflow_experiment: str | None = None
    """Experiment of MLflow that gets the same scalars (needs the package `mlflow` or `mlflow-skinny`). Its environment
    variables hold: `MLFLOW_TRACKING_URI` names the server or a local store. None: not used."""
    allow_loss_changes: bool = False
    """Go on from a checkpoint although `data.attention`, the labels that count, a validation set or a task has changed.
    Losses before and after are then not comparable. The report keeps the baseline and shows the break."""


@dataclass(frozen=True, kw_only=True)
class BatchSizeRampupSettings:
    """Batch sizes that grow in even steps to `training.global_batch_size` at the beginning of a run (units.py).

    The ramp does not change the order of sequences, except that phases begin at whole steps. An interval in tokens
    (checkpoints, evaluations) is the same number of steps during the ramp as after it. A schedule counts tokens.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    start: Count
    """Sequences of the first steps."""
    increment: Count
    """Sequences by which each batch size is larger than the one before."""
    tokens: Count
    """Tokens until the batch size is `training.global_batch_size`."""


@dataclass(frozen=True, kw_only=True)
class LossReweightingSettings:
    """Weights of a step's sequences by their losses: LinUpper (arXiv:2502.06733).

    From the lowest loss of the global batch up to the middle between it and the highest, the weight grows e^(1 / r)
    times. Above, it stays. Each step takes a forward pass more. Reported losses are not weighted.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    temperature: Positive = 1.0
    """r: the larger, the more equal the weights. The paper has 1.0 and 0.4."""
    start: Span = field(default=Duration(1000, "steps"))
    """Where it begins, counted from where the run begins. All weights are equal before."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How much is trained, and in what batches."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    tokens: Span
    """Length of the run, in tokens or steps; rounded to whole steps."""
    global_batch_size: Count
    """Sequences of one optimizer step, over all ranks."""
    batch_size_rampup: BatchSizeRampupSettings | None = None
    """Smaller batches at the beginning, such as `{start: 64, increment: 64, tokens: 1B}`. None: one size."""
    micro_batch_size: Count = 1
    """Sequences of one forward pass of one data-parallel rank."""
    precision: Precision = "bf16"
    """Arithmetic of the model. bf16 keeps fp32 main parameters; CPUs without bf16 units want fp32."""
    recompute: Recompute = "none"
    """Activations that the backward pass computes again instead of keeping them. `selective`: those of the MLP or the
    experts (in layers with parallel attention and MLP, those of attention). `full`: those of whole layers."""
    on_nonfinite: Literal["stop", "skip", "rewind"] = "stop"
    """What happens if a loss or gradient is not finite; no update is made of it. `stop`: the run ends with exit code 4.
    `skip`: it goes on with the next sequences. `rewind`: it goes back to the last checkpoint and leaves out all
    sequences since. At most ten times in a row."""
    on_spike: Literal["ignore", "stop", "skip", "rewind"] = "ignore"
    """What happens at a loss spike, before the update. `ignore`: it is trained on. The others as in `on_nonfinite`."""
    spike_sigmas: Positive = 6.0
    """A loss is a spike if it is more than so many standard deviations above the mean of the losses before it."""
    spike_window: Count = 128
    """Number of updates for that mean and deviation; spikes are detected once half of them are there."""
    z_loss: NotNegative = 0.0
    """Coefficient of (log Z)^2, where Z is the normaliser of the softmax; 1e-4 in arXiv:2204.02311. It is added to the
    training loss, not to the reported one. Above 0 it needs memory for a copy of the logits."""
    loss_reweighting: LossReweightingSettings | None = None
    """Weights of sequences by their losses. None: every token counts the same."""


@dataclass(frozen=True, kw_only=True)
class ParallelSettings:
    """How ranks share the model. The data-parallel size is the world size divided by the sizes below."""

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
    """Context-parallel size: ranks that share each sequence, for sequences that are too long for one rank."""
    expert: Count = 1
    """Expert-parallel size: ranks that share the experts of a layer. They are data- and context-parallel ranks, which
    would otherwise hold the same experts, so no further ranks are needed."""
    distributed_optimizer: bool = False
    """Shards optimizer state over data-parallel ranks (ZeRO-1)."""
    overlap_grad_reduce: bool = False
    """Sums gradients over data-parallel ranks while the backward pass goes on."""
    overlap_param_gather: bool = False
    """Gathers parameters that the distributed optimizer updated while the next forward pass goes on."""


@dataclass(frozen=True, kw_only=True)
class EvalIntervalSettings:
    """When a validation set is evaluated (eval_schedule.py), counted from where the run begins."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    start: bool = True
    """Before the first update: the baseline of every gap figure."""
    log_spaced: str | None = None
    """Dense, log-spaced evaluations at the beginning: `8 per decade to 1000 steps`."""
    every: Span | None = None
    """Interval of regular evaluations, in tokens or steps."""
    end: bool = True
    """After the last update."""
    at: list[Span] = field(default_factory=list)
    """Further evaluations, in tokens or steps."""


@dataclass(frozen=True, kw_only=True)
class ValidationSetSettings:
    """One named validation set: the same sequences at every evaluation and in every run."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    paths: list[str]
    """Dataset prefixes (usually `PREFIX.validation`) or globs."""
    role: Literal["domain", "general"] = "general"
    """Kind of text: `domain` new text, `general` text like that of pretraining."""
    tokens: Count | None = None
    """Budget: as many whole sequences as fit, from the first on. None: the whole set."""
    eval_interval: EvalIntervalSettings | None = None
    """Evaluations of this set only. None: `validation.eval_interval`."""
    loss_mask_column: str | None = None
    """As `loss_mask_column` of a source of training text."""


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
    """Largest cost of all evaluations, with tasks, as a share of the training compute. Evaluations beyond it are left
    out evenly, never the first and the last; the plan lists them. None: no limit."""
    weight_updates: bool = False
    """Record at every evaluation how far the bottom and top layers have moved since the start (docs/gap.md). The
    initial weights of these layers are kept in host memory."""
    gradient_conflict: list[str] = field(default_factory=list)
    """Names of sets. At their evaluations after the first update, record the gradient of their first sequences (one
    global batch) beside that of the training step: norms, cosine, and the change of the loss that the step made
    (docs/gap.md). The gradient of each set is kept in host memory during the step."""


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """One file of downstream tasks: multiple-choice questions or texts, one JSON object a line (docs/tasks.md)."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    path: str
    """The JSONL file. A line that names no task belongs to the task with the name of this entry."""
    role: Literal["domain", "general"] = "general"
    """Kind of ability: `domain` newly learnt, `general` known before."""
    num_fewshot: CountOrZero = 0
    """Solved examples before each question."""
    fewshot_file: str | None = None
    """JSONL file whose first lines are the examples. None: the task's own first questions, without the one asked."""
    delimiter: str = " "
    """Text between a question and its choice."""
    metric: Literal["accuracy", "normalized_accuracy"] | None = None
    """Which accuracy counts: by log-likelihood, or by log-likelihood per character of the choice. None: as in
    lm-evaluation-harness, the plain one for MMLU, PubMedQA, BoolQ, WinoGrande, COPA and RACE, else the normalised."""
    limit: Count | None = None
    """The first questions or texts of each task. None: all."""
    eval_interval: EvalIntervalSettings | None = None
    """Evaluations of this file only. None: `tasks.eval_interval`."""


@dataclass(frozen=True, kw_only=True)
class LmEvalSettings:
    """Tasks of lm-evaluation-harness (docs/tasks.md)."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    tasks: list[str]
    """Tasks, groups or tags by name, or paths of YAML files. Their data must be on this machine."""
    include: str | None = None
    """Folder of further tasks, as YAML files. Python functions that they name are run."""
    role: Literal["domain", "general"] = "general"
    """Kind of ability: `domain` newly learnt, `general` known before."""
    num_fewshot: CountOrZero | None = None
    """Solved examples before each question. None: the task's own number. A task with 0 keeps 0, as in the harness."""
    limit: Count | None = None
    """The first questions of each task. None: all."""
    eval_interval: EvalIntervalSettings | None = None
    """Evaluations of these tasks only. None: `tasks.eval_interval`."""


@dataclass(frozen=True, kw_only=True)
class TasksSettings:
    """Downstream tasks, scored by log-likelihood on the model while it trains."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    files: dict[str, TaskSettings] = field(default_factory=dict)
    """Task files by name."""
    lm_eval: dict[str, LmEvalSettings] = field(default_factory=dict)
    """Entries of lm-evaluation-harness tasks by name (needs `.[eval]`)."""
    groups: dict[str, list[str]] = field(default_factory=dict)
    """Means over tasks: a name and its tasks. `s1_medical: []` and `s1_general: []` stand for the tasks that
    arXiv:2406.14833 averages; all of them must be there."""
    eval_interval: EvalIntervalSettings = field(default_factory=EvalIntervalSettings)
    """When they are scored."""
    micro_batch_size: Count = 8
    """Choices or texts in one forward pass."""


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Hugging Face folders written by the run."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    every: Span | None = None
    """Interval, in tokens or steps, of exports into RUN/hf_steps/step-N. None: none before the end."""
    end: bool = True
    """Write one after the last update, into RUN/hf."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """dtype of the weights. None: each tensor has its dtype in the folder that the run started from."""


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """Checkpoints to resume from, and exports."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    save_interval: Span | None = None
    """Interval between checkpoints, in tokens or steps. None: only one at the end."""
    keep_last: Count = 2
    """Number of newest checkpoints to keep. Older ones are removed once a newer one is complete."""
    keep_every: Span | None = None
    """Checkpoints at multiples of this are kept, in the format that loads into any layout."""
    keep_best: str | None = None
    """Name of a validation set: of the checkpoints at its evaluations, the one with its lowest loss is kept."""
    async_save: bool = False
    """Write while training goes on. Training waits only until the state is copied."""
    export_hf: ExportSettings | None = None
    """Hugging Face folders. None: the run writes none."""

    def keep_every_steps(self, tokens_per_step: int) -> int | None:
        """`keep_every` in steps. None: it is not set.

        Where it and `save_interval` are in tokens, it is as many saves as they say: each alone is rounded to steps.

        >>> CheckpointSettings(save_interval=Duration(1000), keep_every=Duration(5000)).keep_every_steps(300)
        15
        """
        kept, every = self.keep_every, self.save_interval
        if kept is None:
            return None
        if every is not None and kept.unit == every.unit and kept.amount % every.amount == 0:
            return kept.amount // every.amount * every.steps(tokens_per_step)
        return kept.steps(tokens_per_step)


@dataclass(frozen=True, kw_only=True)
class StopSettings:
    """When a run saves and stops early, with exit code 75. SIGTERM, SIGUSR1, SIGHUP and Ctrl-C do so at any time."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    after: WallTime | None = None
    """Wall time since the start of the program, such as `3h50m`, checked after each step. None: no limit. Under
    torchrun, which may start the ranks again, it is the time since torchrun's start."""


TimeoutPart = Literal["start", "step", "evaluation", "save", "export"]


@dataclass(frozen=True, kw_only=True)
class TimeoutSettings:
    """How long a part of a run may take. After that it is taken to hang: the stacks of all ranks go to the log, the run
    names the rank that is silent or behind, and ends with exit code 1. None: no limit."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    start: WallTime | None = "1h"
    """From the start of a rank to the first step: the other ranks, plan, model, weights, checkpoint, loss check. Also a
    rewind."""
    step: WallTime | None = "10m"
    """One step."""
    evaluation: WallTime | None = "2h"
    """All validation sets and tasks after one step."""
    save: WallTime | None = "1h"
    """What training waits for when it saves, with the rest of the save before."""
    export: WallTime | None = "1h"
    """One Hugging Face folder."""

    def seconds(self) -> dict[TimeoutPart, float]:
        """Seconds of each part that has a limit."""
        given: dict[TimeoutPart, str | None] = {
            "start": self.start,
            "step": self.step,
            "evaluation": self.evaluation,
            "save": self.save,
            "export": self.export,
        }
        return {part: float(wall_seconds(limit)) for part, limit in given.items() if limit is not None}


@dataclass(frozen=True, kw_only=True)
class MegatronSettings:
    """Fields of the installed Megatron-Core's dataclasses that no setting above decides."""

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
    base_history: Annotated[BaseHistorySettings, BeforeValidator(with_public_values)] | None = None
    schedule: ScheduleSettings
    init_from: InitFromSettings = field(default_factory=InitFromSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    parallel: ParallelSettings = field(default_factory=ParallelSettings)
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    tasks: TasksSettings = field(default_factory=TasksSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    stop: StopSettings = field(default_factory=StopSettings)
    timeout: TimeoutSettings = field(default_factory=TimeoutSettings)
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

    def reweighted_after(self, first_own_step: int) -> int | None:
        """The step after which sequences are weighted by their losses; None: they never are.

        Args:
            first_own_step: step at which the run begins, above 0 where it goes on with the data of another.
        """
        settings = self.training.loss_reweighting
        if settings is None:
            return None
        return first_own_step + settings.start.whole_steps(self.tokens_per_step, self.token_batches.ramp)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.training.tokens.steps(self.tokens_per_step, self.token_batches.ramp)

    @property
    def total_tokens(self) -> int:
        """Tokens of the run: whole steps."""
        return self.tokens_at(self.total_steps)
