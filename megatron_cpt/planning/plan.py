"""What `plan` prints and `train` obeys: blend, steps, evaluations, size and cost of a run, and warnings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from megatron_cpt.config.checks import best_warnings, schedule_faults
from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.config.schedule import phase_steps
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.config.source_checks import phase_faults, share_faults, source_faults
from megatron_cpt.config.units import Duration, short_count
from megatron_cpt.corpus.manifest import Described
from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.memory import MemoryEstimate, memory_per_rank
from megatron_cpt.families.size import (
    active_parameter_count,
    flops_per_token,
    non_embedding_parameter_count,
    parameter_count,
)
from megatron_cpt.mixture.blend import BlendPlan, plan_blend
from megatron_cpt.mixture.phases import blend_streams, source_of
from megatron_cpt.planning.checks import init_from_faults, input_faults
from megatron_cpt.planning.disk_space import DiskEstimate, disk_estimate, disk_warnings
from megatron_cpt.planning.evaluations import EvaluationPlan, evaluation_lines, overhead_warnings, plan_evaluations
from megatron_cpt.planning.inputs import RunInputs, SourceOverlap, open_inputs, overlap_warnings, source_overlaps
from megatron_cpt.planning.known_datasets import KnownDataset, recognize_datasets
from megatron_cpt.planning.plan_warnings import assumption_warnings, plan_warnings
from megatron_cpt.planning.rates import history_lines, rate_lines, rate_warnings, rates_of
from megatron_cpt.planning.start_state import (
    RunPosition,
    history_faults,
    resume_state,
    start_state,
    verify_checkpoints,
)
from megatron_cpt.planning.text_tables import columns, percent, phase_lines, picture_lines, size


@dataclass(frozen=True)
class ModelSize:
    """How large the model is and what a run of it takes."""

    family: str
    """Model family."""
    parameters: int
    """All parameters; tied ones count once."""
    active_parameters: int
    """Parameters that one token meets; fewer than all where it is sent to some of many experts."""
    non_embedding_parameters: int
    """Without embedding and output layer."""
    flops_per_token: float
    """Floating-point operations of a training token, forward and backward."""
    training_flops: float
    """Of the whole run, evaluation apart."""
    memory: MemoryEstimate
    """Bytes of the fullest rank."""


@dataclass(frozen=True)
class RunPlan:
    """A run before it begins."""

    config: RunConfig
    """The run as it will be: one that an exhausted source ends is configured for the tokens until there."""
    inputs: RunInputs
    """What the run reads, opened."""
    datasets: Mapping[str, Sequence[KnownDataset]]
    """What its datasets are known by, by the setting that names them."""
    start: RunPosition
    """Where it begins: after steps of another run, with `init_from.load_data_position: true`."""
    resume: RunPosition | None
    """Where it goes on: at its newest checkpoint. None where it has none."""
    folder: str
    """The run folder."""
    world_size: int
    """Ranks it is planned for."""
    steps: int
    """The last optimizer step; how many there are, where the run begins at 0."""
    global_batch_size: int
    """Sequences of a step, after the ramp."""
    sequence_length: int
    """Tokens of a sequence."""
    blend: BlendPlan
    """Which sequence comes when, and what each source gives."""
    evaluations: tuple[EvaluationPlan, ...]
    """One for each validation set, each file of tasks and each entry of harness tasks."""
    model: ModelSize
    """Size and cost of the model."""
    disk: DiskEstimate
    """Room that its checkpoints and exports take."""
    overlaps: tuple[SourceOverlap, ...]
    """Every source against every task and validation set."""
    warnings: tuple[str, ...]
    """What works and looks unwise."""

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a step, after the ramp."""
        return self.global_batch_size * self.sequence_length

    @property
    def tokens(self) -> int:
        """Tokens up to the end of the run, counted as its steps are."""
        return self.config.tokens_at(self.steps)

    @property
    def evaluation_steps(self) -> dict[str, tuple[int, ...]]:
        """Steps at which each validation set is evaluated, by its name."""
        return {item.name: item.steps for item in self.evaluations if item.kind == "validation"}

    @property
    def task_steps(self) -> dict[str, tuple[int, ...]]:
        """Steps at which each file of tasks is scored, by its name."""
        return {item.name: item.steps for item in self.evaluations if item.kind == "tasks"}

    @property
    def lm_eval_steps(self) -> dict[str, tuple[int, ...]]:
        """Steps at which each entry of the harness's tasks is scored, by its name."""
        return {item.name: item.steps for item in self.evaluations if item.kind == "lm_eval"}

    def to_dict(self) -> dict[str, Any]:
        """The content of plan.json."""
        return {
            "folder": self.folder,
            "world_size": self.world_size,
            "steps": self.steps,
            "tokens_per_step": self.tokens_per_step,
            "tokens": self.tokens,
            "start": {
                "step": self.start.step,
                "tokens": self.start.tokens,
                "sequences": self.start.sequences,
                "schedule_shift": self.start.schedule_shift,
            },
            "learning_rate": {"kind": self.config.schedule.kind} | rates_of(self.config, self.start),
            **({"batch_size_rampup": [asdict(piece) for piece in ramp]} if (ramp := self.config.batches.ramp) else {}),
            "blend": {
                "sequences": self.blend.total_sequences,
                "sources": [asdict(row) for row in self.blend.rows_from(self.start.sequences)],
                "phases": [
                    {
                        "first_sequence": phase.first_sequence,
                        "shares": dict(zip(self.blend.sources, map(float, phase.shares), strict=True)),
                        "exhausted": list(phase.exhausted),
                    }
                    for phase in self.blend.phases
                ],
                "order": self.blend.describe(self.blend.total_sequences),
                "fingerprint": self.blend.fingerprint(self.blend.total_sequences),
            },
            "evaluations": [asdict(one) | {"compute_share": one.compute_share} for one in self.evaluations],
            "disk": asdict(self.disk),
            "contamination": [asdict(one) for one in self.overlaps],
            "model": asdict(self.model) | {"memory_per_rank": self.model.memory.total},
            "warnings": list(self.warnings),
        }

    def table(self) -> str:
        """The plan as plain text."""
        parts = [
            self._summary(),
            ["Blend", *_indented(self._blend_lines())],
            [
                "Share by source, from the beginning of the run to its end",
                *_indented(picture_lines(self.blend, self.start.sequences)),
            ],
        ]
        if counted := self._loss_lines():
            parts.append(["Counted in the loss", *_indented(counted)])
        if len(self.blend.phases) > 1:
            parts.append(["Phases", *_indented(phase_lines(self.blend, self.start.sequences))])
        if self.evaluations:
            parts.append(["Evaluation", *_indented(evaluation_lines(self.evaluations))])
        if self.warnings:
            parts.append(["Warnings", *(f"  - {warning}" for warning in self.warnings)])
        return "\n\n".join("\n".join(part) for part in parts)

    def _summary(self) -> list[str]:
        model, memory = self.model, self.model.memory
        experts = model.active_parameters < model.parameters
        active = f", {short_count(model.active_parameters)} active for a token" if experts else ""
        most = "at most " if self.config.batches.ramp else ""
        batch = f"{most}{self.global_batch_size} x {self.sequence_length} = {self.tokens_per_step:,} tokens"
        shares = ", ".join(f"{name} {size(count)}" for name, count in asdict(memory).items())
        steps, tokens = self.steps - self.start.step, self.tokens - self.start.tokens
        ranks = "one rank" if self.world_size == 1 else f"the fullest of {self.world_size} ranks"
        return [
            f"Run      {self.folder}: {steps:,} steps of {batch}, {short_count(tokens)} tokens in all",
            *self._counting(),
            *history_lines(self.config),
            *rate_lines(self.config, self.start, self.resume),
            *self._batch_ramp(),
            f"Model    {model.family}, {short_count(model.parameters)} parameters "
            f"({short_count(model.non_embedding_parameters)} without embeddings{active})",
            *self._positions(),
            f"Compute  {short_count(model.flops_per_token)} FLOPs a token, {model.training_flops:.3g} FLOPs in all",
            f"Memory   {size(memory.total)} on {ranks} ({shares})",
            f"Disk     {size(self.disk.total)} at most: {self.disk.words}",
        ]

    def _counting(self) -> list[str]:
        if not self.start.step:
            return []
        checkpoint = self.config.init_from.checkpoint or "the checkpoint that it started from"
        return [
            f"Start    data kept: steps {self.start.step + 1:,} to {self.steps:,}, counted on from {checkpoint}; "
            "evaluations count from there"
        ]

    def _batch_ramp(self) -> list[str]:
        batches = self.config.batches
        if not batches.ramp:
            return []
        first, steps = batches.ramp[0], sum(piece.steps for piece in batches.ramp)
        tokens = short_count(self.config.tokens_at(steps))
        sizes = f"{len(batches.ramp)} sizes" if len(batches.ramp) > 1 else "one size"
        return [
            f"Batches  from {first.size} sequences in {sizes}: {batches.size} after {steps:,} steps, {tokens} tokens"
        ]

    def _positions(self) -> list[str]:
        rope, shape = self.config.model.rope, self.inputs.shape
        if rope is None or shape is None:
            return []
        scaling = "as the folder's" if rope.scaling == "keep" else rope.scaling
        return [
            f"Rope     for {rope.max_position_embeddings:,} tokens: base {shape.rope_base:,.0f}, scaling {scaling} "
            "(model.rope)"
        ]

    def _blend_lines(self) -> list[str]:
        heading = ["source", "role", "tokens read", "share", "of", "epochs", "effective unique"]
        before = self.blend.source_epochs(self.start.sequences)
        rows = [
            [
                row.name,
                row.role,
                short_count(row.tokens),
                percent(row.share),
                short_count(row.source_tokens),
                f"{before[row.name]:.2f} to {before[row.name] + row.epochs:.2f}"
                if self.start.sequences
                else f"{row.epochs:.2f}",
                short_count(row.effective_unique_tokens),
            ]
            for row in self.blend.rows_from(self.start.sequences)
        ]
        return columns([heading, *rows], "llrrrrr")

    def _loss_lines(self) -> list[str]:
        """The sources whose datasets say which tokens count, and how many do; those whose loss has a weight."""
        rows = [
            [name, f"{percent(stream.loss_share)} of the tokens of its datasets"]
            for name, stream in self.inputs.sources.items()
            if stream.loss_share < 1 and self.config.data.sources[source_of(name)].loss_mask_column is None
        ]
        for name, source in self.config.data.sources.items():
            if source.loss_weight != 1:
                rows.append([name, f"losses times {source.loss_weight:g} in training"])
        after, settings = self.config.reweighted_after(self.start.step), self.config.training.loss_reweighting
        if settings is not None and after is not None and after < self.steps:
            words = f"sequences weighted by their losses from step {after + 1:,} on"
            rows.append(["all sources", f"{words}, temperature {settings.temperature:g}"])
        return columns(rows, "ll") if rows else []


def make_plan(
    config: RunConfig,
    world_size: int = 1,
    assumed: Mapping[str, int] | None = None,
    described: Described | None = None,
) -> RunPlan:
    """The plan of a run on `world_size` ranks.

    Args:
        assumed: tokens of sources and validation sets that are not on this machine (open_inputs).
        described: what another rank found datasets to be that have no manifest (open_dataset).
    Raises:
        BadInput: with every fault of the run.
        IntegrityFault: files of a dataset are there and corrupt.
    """
    verify_checkpoints(config)
    inputs = open_inputs(config, assumed, described)
    datasets = recognize_datasets(config, inputs)
    blend = checked_blend(config, world_size, inputs)
    assert inputs.shape is not None, "inputs without faults are whole"
    warnings = plan_warnings(config, inputs, blend, world_size)
    config = _shortened(config, blend)
    start, resume = start_state(config), resume_state(config)
    refuse([*history_faults(config, start)])
    evaluations = plan_evaluations(config, inputs, config.total_steps, start.step)
    overlaps = source_overlaps(config, inputs)
    model = _model_size(config, inputs.shape, world_size, config.total_steps, start.step)
    disk = disk_estimate(config, model.parameters, start.step)
    return RunPlan(
        config=config,
        inputs=inputs,
        datasets=datasets,
        start=start,
        resume=resume,
        folder=config.run.folder,
        world_size=world_size,
        steps=config.total_steps,
        global_batch_size=config.training.global_batch_size,
        sequence_length=config.data.sequence_length,
        blend=blend,
        evaluations=evaluations,
        model=model,
        disk=disk,
        overlaps=overlaps,
        warnings=(
            *assumption_warnings(assumed or {}),
            *warnings,
            *rate_warnings(config, start),
            *disk_warnings(config, disk),
            *best_warnings(config, start.step),
            *overlap_warnings(overlaps),
            *overhead_warnings(config, evaluations),
        ),
    )


def checked_blend(config: RunConfig, world_size: int | None, inputs: RunInputs) -> BlendPlan:
    """The blend of a run on `world_size` ranks (None: not known yet) in which nothing is wrong.

    Raises BadInput with every fault; one that is found in two ways is told once.
    """
    faults = input_faults(config, world_size, inputs)
    blend = None
    try:
        blend = _blend_of(config, inputs)
    except BadInput as error:
        faults += error.faults
    refuse(list(dict.fromkeys(faults)))
    assert blend is not None, "inputs without faults are whole"
    refuse([*_weight_faults(config, blend)])
    return blend


def _weight_faults(config: RunConfig, blend: BlendPlan) -> Iterator[Fault]:
    """Parts of a run in which no loss counts."""
    weights = [config.data.sources[source_of(name)].loss_weight for name in blend.sources]
    for number, phase in enumerate(blend.phases, 1):
        if not any(share and weight for share, weight in zip(phase.shares, weights, strict=True)):
            where = f"phase {number}" if len(blend.phases) > 1 else "the run"
            rule = f"nothing would be trained on in {where}: all that is read there has weight 0."
            yield Fault("data.sources.*.loss_weight", rule, "Give a source that is read a weight above 0.")


def _blend_of(config: RunConfig, inputs: RunInputs) -> BlendPlan | None:
    """The blend of the run; None where a source could not be opened or the config's weights make no shares.

    Raises BadInput as plan_blend does.
    """
    if {source_of(name) for name in inputs.sources} != set(config.data.sources):
        return None
    if [*source_faults(config), *phase_faults(config), *share_faults(config.data)]:
        return None
    return plan_blend(
        config.data,
        blend_streams(
            config.data,
            {name: stream.tokens for name, stream in inputs.sources.items()},
            {name: stream.identity for name, stream in inputs.sources.items()},
            inputs.portions,
        ),
        total_sequences=config.sequences_at(config.total_steps),
        seed=config.run.seed,
        step_sequences=config.training.global_batch_size,
        starts=phase_steps(config),
        ramp=config.batches.ramp,
    )


def _shortened(config: RunConfig, blend: BlendPlan) -> RunConfig:
    """The config with the tokens that the blend gives, where a source at its `max_epochs` ends the run early.

    The schedule and the last evaluations then end with the run. Raises BadInput where the schedule does
    not fit into what is left, or the checkpoint that it counts on from is beyond that.
    """
    if blend.total_sequences == config.sequences_at(config.total_steps):
        return config
    tokens = Duration(blend.total_sequences * config.data.sequence_length)
    until_there = replace(config, training=replace(config.training, tokens=tokens))
    refuse([*schedule_faults(until_there), *init_from_faults(until_there, None)])
    return until_there


def _model_size(config: RunConfig, shape: ModelShape, world_size: int, steps: int, first_step: int = 0) -> ModelSize:
    """Size and cost of the model in a run to a step, from the one after `first_step` on."""
    tokens = config.tokens_at(steps) - config.tokens_at(first_step)
    per_token = flops_per_token(shape, config.data.sequence_length)
    return ModelSize(
        family=shape.family,
        parameters=parameter_count(shape),
        active_parameters=active_parameter_count(shape),
        non_embedding_parameters=non_embedding_parameter_count(shape),
        flops_per_token=per_token,
        training_flops=per_token * tokens,
        memory=memory_per_rank(shape, config, world_size),
    )


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]
