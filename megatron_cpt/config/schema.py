"""Every value of a run: its name, unit, default and meaning.

A run is one RunConfig, made by load.py from a YAML file and `section.key=value` words, and written
resolved into the run folder, from which it can be repeated. Tokens are tokens of the model's input;
durations take suffixes (`300M`, `5B`) or, where said, steps (`100 steps`). docs/configuration.md is
written from this file and from those of single sections beside it: blend.py is `data`, rates.py is `schedule`.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from megatron_cpt.config.batches import Batches, ramp_up
from megatron_cpt.config.blend import DataSettings
from megatron_cpt.config.model import ModelSettings
from megatron_cpt.config.optimizer import OptimizerSettings
from megatron_cpt.config.rates import ScheduleSettings
from megatron_cpt.config.start import StartSettings
from megatron_cpt.config.strict import STRICT
from megatron_cpt.config.units import (
    Count,
    CountOrZero,
    Duration,
    NotNegative,
    Positive,
    Share,
    Span,
    WallTime,
)


@dataclass(frozen=True, kw_only=True)
class WandbSettings:
    """The scalars of TensorBoard, on Weights & Biases too (needs the package `wandb`)."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    project: str
    """The project there."""
    mode: Literal["online", "offline"] = "online"
    """offline: into RUN/wandb, for `wandb sync` later; nothing is sent."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Where a run lives and what makes it repeatable."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    folder: str
    """The run folder. The same command on the same folder goes on where it was."""
    seed: CountOrZero = 1234
    """Seed of the data order, of dropout and of random weights."""
    log_every: Span = field(default=Duration(10, "steps"))
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
class BatchRampSettings:
    """Steps that grow at the beginning of a run, in even stairs to `training.global_batch_size` (batches.py).

    The order of sequences is the same with it, but for phases: those begin at whole steps. Distances in tokens (of
    checkpoints, of marks) are as many steps during the ramp as after it; a schedule is in tokens.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    start: Count
    """Sequences of the first steps."""
    increment: Count
    """Sequences by which a stair is larger than the one before."""
    tokens: Count
    """Tokens until steps have their full size."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How much is trained, and in what batches."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    tokens: Span
    """Length of the run, in tokens or steps; rounded to whole steps."""
    global_batch_size: Count
    """Sequences of one optimizer step, over all ranks."""
    batch_ramp: BatchRampSettings | None = None
    """Smaller steps at the beginning, such as `{start: 64, increment: 64, tokens: 1B}`. None: all are of one size."""
    micro_batch_size: Count = 1
    """Sequences of one forward pass of one data-parallel rank."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Arithmetic of the model. bf16 keeps fp32 main parameters; CPUs without bf16 units want fp32."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations computed again in the backward pass in place of being kept: `selective` those of the MLP or the
    experts (of attention where a layer computes both side by side), `full` those of whole layers."""
    on_bad_step: Literal["stop", "skip", "rewind"] = "stop"
    """A loss or gradient that is not finite, always before the update: `stop` ends the run with exit code 4;
    `skip` leaves the update out and goes on with the next sequences; `rewind` goes back to the last checkpoint and
    leaves out all sequences since. Ten times in a row at most."""
    on_spike: Literal["go_on", "stop", "skip", "rewind"] = "go_on"
    """A loss spike, before the update: `go_on` trains on it, the others are those of `on_bad_step`."""
    spike_deviations: Positive = 6.0
    """A loss is a spike above the mean of the updates before it plus so many of their standard deviations."""
    spike_window: Count = 128
    """Updates that mean and deviation are taken of; a spike is seen once half of them are there."""
    z_loss: NotNegative = 0.0
    """Coefficient of (log Z)^2, Z being the normaliser of the softmax, added to the loss that is trained on, never to
    the one that is reported; 1e-4 in arXiv:2204.02311. Where it is not 0, a copy of the logits is kept."""


@dataclass(frozen=True, kw_only=True)
class ParallelSettings:
    """How ranks share the model; data parallel is what remains of the world size."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

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
    overlap_gradient_reduce: bool = False
    """Sums gradients over data-parallel ranks while the backward pass goes on."""
    overlap_parameter_gather: bool = False
    """Gathers parameters that the distributed optimizer updated while the next forward pass goes on."""


@dataclass(frozen=True, kw_only=True)
class MarksSettings:
    """When a validation set is evaluated (marks.py). Marks count from where the run begins."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    start: bool = True
    """Before the first update: the baseline of every gap figure."""
    log: str | None = None
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

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    paths: list[str]
    """Dataset prefixes (usually `PREFIX.validation`) or globs."""
    role: Literal["domain", "replay"] = "replay"
    """Which kind of text it stands for; the report calls `replay` sets general."""
    tokens: Count | None = None
    """Budget: the first whole sequences that fit. None: the whole set."""
    marks: MarksSettings | None = None
    """Marks of this set alone. None: `validation.marks`."""
    unscored_lead: str | None = None
    """As `unscored_lead` of a source of training text."""


@dataclass(frozen=True, kw_only=True)
class ValidationSettings:
    """Validation sets and when they are evaluated."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    sets: dict[str, ValidationSetSettings] = field(default_factory=dict)
    """The sets by name."""
    marks: MarksSettings = field(default_factory=MarksSettings)
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
    """A set of `replay` text: at its marks, record the norm of the gradient on its first sequences, one global batch.
    None: not measured."""


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """One file of downstream tasks: multiple-choice questions or texts, one JSON object a line (docs/tasks.md)."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    path: str
    """The JSONL file. Its lines may name their tasks; those that do not are a task by the name of this entry."""
    role: Literal["domain", "replay"] = "replay"
    """Which kind of ability it stands for; the report calls `replay` tasks general."""
    shots: CountOrZero = 0
    """Solved examples before each question."""
    examples: str | None = None
    """JSONL file that the examples come from, its first ones. None: the task's own first questions, never itself."""
    delimiter: str = " "
    """What stands between a question and its choice."""
    metric: Literal["accuracy", "normalized_accuracy"] | None = None
    """Which accuracy counts: by log-likelihood, or by log-likelihood per character of the choice. None: the plain one
    for MMLU, PubMedQA, BoolQ, WinoGrande, COPA and RACE, as in lm-evaluation-harness, and else the normalised."""
    limit: Count | None = None
    """The first questions or texts of each task. None: all."""
    marks: MarksSettings | None = None
    """Marks of this file alone. None: `tasks.marks`."""


@dataclass(frozen=True, kw_only=True)
class HarnessSettings:
    """Tasks of lm-evaluation-harness (docs/tasks.md)."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    tasks: list[str]
    """Tasks, groups or tags by name, or paths of YAML files. Their data must be on this machine."""
    include: str | None = None
    """Folder of further tasks, as YAML files; Python functions that they name are run."""
    role: Literal["domain", "replay"] = "replay"
    """Which kind of ability they stand for; the report calls `replay` tasks general."""
    shots: CountOrZero | None = None
    """Solved examples before each question. None: what each task says; one that says 0 keeps it, as in the harness."""
    limit: Count | None = None
    """The first questions of each task. None: all."""
    marks: MarksSettings | None = None
    """Marks of these tasks alone. None: `tasks.marks`."""


@dataclass(frozen=True, kw_only=True)
class TasksSettings:
    """Downstream tasks, scored by log-likelihood on the model while it trains."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    sets: dict[str, TaskSettings] = field(default_factory=dict)
    """Files of tasks by name."""
    harness: dict[str, HarnessSettings] = field(default_factory=dict)
    """Tasks of lm-evaluation-harness, in entries by name (needs `.[eval]`)."""
    groups: dict[str, list[str]] = field(default_factory=dict)
    """Means over tasks: a name, and the tasks. `s1_medical: []` and `s1_general: []` stand for the tasks that
    arXiv:2406.14833 averages, all of which must then be there."""
    marks: MarksSettings = field(default_factory=MarksSettings)
    """When they are scored."""
    micro_batch_size: Count = 8
    """Choices or texts of one forward pass."""


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Hugging Face folders written by the run."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    every: Span | None = None
    """Write one each time so much is trained, in tokens or steps, into RUN/hf_steps/step-N. None: none on the way."""
    end: bool = True
    """Write one after the last update, into RUN/hf."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """dtype of the weights. None: each tensor has the one that it has in the folder the run started from."""


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """Checkpoints to resume from, and exports."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    every: Span | None = None
    """Distance between checkpoints, in tokens or steps. None: one at the end alone."""
    keep_last: Count = 2
    """Older ones are removed once a newer one is whole."""
    keep_every: Span | None = None
    """Checkpoints at multiples of this are kept, in the sharding that loads into any layout."""
    keep_best: str | None = None
    """A validation set: of the checkpoints at its marks, the one with its lowest loss is kept."""
    asynchronous: bool = False
    """Write while training goes on: training waits only until the state is taken."""
    export_hf: ExportSettings | None = None
    """Hugging Face folders. None: the run writes none."""


@dataclass(frozen=True, kw_only=True)
class StopSettings:
    """When a run saves and ends before its end; SIGTERM and SIGUSR1 do the same at any time. Exit code 75."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    after: WallTime | None = None
    """Wall time since the program's start, such as `3h50m`: looked at after each step. None: no limit."""


@dataclass(frozen=True, kw_only=True)
class MegatronSettings:
    """Anything that the installed Megatron-Core's own dataclasses know and that no field above sets."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    transformer: dict[str, Any] = field(default_factory=dict)
    """Fields of TransformerConfig."""
    optimizer: dict[str, Any] = field(default_factory=dict)
    """Fields of OptimizerConfig."""
    ddp: dict[str, Any] = field(default_factory=dict)
    """Fields of DistributedDataParallelConfig."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    run: RunSettings
    model: ModelSettings
    data: DataSettings
    training: TrainingSettings
    schedule: ScheduleSettings
    start: StartSettings = field(default_factory=StartSettings)
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
        ramp, size = self.training.batch_ramp, self.training.global_batch_size
        if ramp is None:
            return Batches(size)
        return Batches(size, ramp_up(ramp.start, ramp.increment, ramp.tokens, size, self.data.sequence_length))

    @property
    def token_batches(self) -> Batches:
        """Tokens of every step."""
        return self.batches.times(self.data.sequence_length)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.training.tokens.steps(self.tokens_per_step, self.token_batches.ramp)

    @property
    def total_tokens(self) -> int:
        """Tokens of the run: whole steps."""
        return self.token_batches.total(self.total_steps)
