"""From a config to a run that can take its next step, whether it starts or resumes.

1. plan (torch-free): blend, steps, evaluations; every fault of the input is raised here, all at once
2. ranks: process groups, seeds
3. lm-evaluation-harness's tasks, which may take a while to open and may fail
4. model: built, weights read from the Hugging Face folder or a checkpoint, or random; wrapped; optimizer
5. start state: the newest whole checkpoint of the run, or what `init_from` takes of another run's
6. data and validation sets, opened lazily; tasks
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import chain
from pathlib import Path
from statistics import fmean, pstdev

from megatron.core.distributed import DistributedDataParallel
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.optimizer.optimizer import MegatronOptimizer

from megatron_cpt.checkpoint.hf_dtypes import TensorDtypes, parent_dtypes
from megatron_cpt.checkpoint.hf_folder import copy_tokenizer_files
from megatron_cpt.checkpoint.hf_others import (
    OtherTensors,
    find_others,
    hashed_others,
    refuse_unlike,
    source_of_others,
    write_others,
)
from megatron_cpt.checkpoint.hf_weights import load_hf_weights
from megatron_cpt.checkpoint.load import load, load_weights
from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.config.schedule import Areas
from megatron_cpt.config.schema import RunConfig, TrainingSettings
from megatron_cpt.corpus.label_mask import label_mask
from megatron_cpt.data.loader import Slots, TrainingData, label_masks, loss_weights
from megatron_cpt.evaluate.scoring import LmEvalTask
from megatron_cpt.evaluate.validation import ValidationSet, open_set
from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.multimodal import multimodal_of
from megatron_cpt.families.shape import read_config, read_shape
from megatron_cpt.model.build import ModelOptions, build_model, freeze, unwrap, wrap_for_training
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.groups import first_on_rank_zero, seed_everything
from megatron_cpt.planning.evaluations import group_members
from megatron_cpt.planning.inputs import RunInputs
from megatron_cpt.planning.plan import RunPlan
from megatron_cpt.planning.resume_changes import changed_measures, measure_faults, measures
from megatron_cpt.planning.start_state import schedule_shift
from megatron_cpt.runs.checkpoint_state import (
    CheckpointState,
    Layout,
    complete_checkpoints,
    read_state,
)
from megatron_cpt.runs.folder import RunFolder, write_json
from megatron_cpt.runs.library_warnings import take_warnings
from megatron_cpt.runs.records import RunLog
from megatron_cpt.tasks.task_files import Task
from megatron_cpt.tokenizer.tokenizer import Tokenizer
from megatron_cpt.train.optimizer import StepShape, build_optimizer, group_settings, mend_after_load
from megatron_cpt.train.weight_updates import InitialWeights


@dataclass(frozen=True)
class UpdateHistory:
    """What the next step depends on, beside weights, optimizer and random states: past losses and skipped steps."""

    losses: tuple[float, ...] = ()
    """Losses of the last updates, nats per token, oldest first."""
    skipped_ranges: tuple[tuple[int, int], ...] = ()
    """Ranges of the order, [first sequence, end), that no update was made of."""
    skipped_in_a_row: int = 0
    """Steps skipped since the last update."""

    @classmethod
    def of(cls, state: CheckpointState) -> "UpdateHistory":
        """The history that a checkpoint keeps."""
        return cls(
            tuple(state.recent_losses),
            tuple((first, end) for first, end in state.skipped_ranges),
            state.skipped_in_a_row,
        )

    def loss_limit(self, settings: TrainingSettings) -> float:
        """The loss above which the next step is a spike; infinite while there is too little to judge by.

        Mean plus a number of standard deviations of the last updates, as in OLMo-core's SkipStepOptimizer.
        """
        if settings.on_spike == "ignore" or len(self.losses) < max(2, settings.spike_window // 2):
            return math.inf
        return fmean(self.losses) + settings.spike_sigmas * pstdev(self.losses)

    def with_update(self, loss: float, settings: TrainingSettings) -> "UpdateHistory":
        """The history after an update."""
        if math.isnan(loss):  # no label counted
            return replace(self, skipped_in_a_row=0)
        losses = () if settings.on_spike == "ignore" else (*self.losses, loss)[-settings.spike_window :]
        return replace(self, losses=losses, skipped_in_a_row=0)

    def with_skipped(self, first_sequence: int, end: int, in_a_row: int) -> "UpdateHistory":
        """The history after skipped steps. Their range of the order joins the last one where the two touch."""
        ranges = self.skipped_ranges
        if ranges and ranges[-1][1] >= first_sequence:
            first_sequence, ranges = ranges[-1][0], ranges[:-1]
        return replace(self, skipped_ranges=(*ranges, (first_sequence, end)), skipped_in_a_row=in_a_row)


@dataclass(frozen=True)
class StartState:
    """Where a run stands before its next step."""

    first_step: int
    """Steps done before: 0, or the step of the checkpoint it goes on from."""
    first_own_step: int
    """Steps that were done when the run began: more than 0 where it goes on counting another run's."""
    schedule_shift: int
    """Tokens by which the schedule is ahead of the run's own count."""
    history: UpdateHistory
    """What the run remembers of its past."""
    measures: dict[str, str] | None = None
    """Identities of the validation sets and tasks that it was measured on; None: on none that are known."""


def _load_start_weights(model: Sequence[LanguageModule], shape: ModelShape, config: RunConfig) -> None:
    """Loads the weights of `init_from.checkpoint` or of `model.hf`; with neither the model keeps its random ones."""
    if config.init_from.checkpoint is not None:
        load_weights(Path(config.init_from.checkpoint), model)
    elif config.model.weights == "hf":
        load_hf_weights(model, shape, Path(config.model.hf), by_one_replica=True)


def _load_start_state(
    checkpoints: Sequence[Path],
    model: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    config: RunConfig,
) -> StartState:
    """Loads the newest checkpoint of the run or, at its beginning, what `init_from` takes of another run's.

    The start weights are in the model already.


    Args:
        checkpoints: the run's own, oldest first.
    Raises:
        BadInput: a layout that the optimizer state does not load into.
        IntegrityFault: a checkpoint is not what was written.
    """
    if checkpoints:
        state = resume(checkpoints[-1], model, optimizer, config)
        return StartState(
            state.step,
            state.first_own_step,
            state.schedule_shift,
            UpdateHistory.of(state),
            state.measures,
        )
    start = config.init_from
    if start.checkpoint is None or not (start.load_optimizer or start.load_schedule or start.load_data_position):
        return StartState(0, 0, 0, UpdateHistory())
    checkpoint = Path(start.checkpoint)
    state = read_state(checkpoint)
    shift = schedule_shift(start, state.tokens, state.schedule_shift)
    if not start.load_data_position:
        if start.load_optimizer:
            _load_state(checkpoint, model, optimizer, config)
            seed_everything(config.run.seed + 1)
        return StartState(0, 0, shift, UpdateHistory())
    if start.load_optimizer:
        resume(checkpoint, model, optimizer, config)
    return StartState(state.step, state.step, shift, UpdateHistory.of(state))


def resume(
    checkpoint: Path, model: Sequence[DistributedDataParallel], optimizer: MegatronOptimizer, config: RunConfig
) -> CheckpointState:
    """Loads a checkpoint of this run, or of one whose data order it goes on with, and returns its CheckpointState.

    That data order, sizes of the steps done and trained parts are still the same was checked before
    (planning/resume_changes.py).

    Raises:
        BadInput: the optimizer state does not load into this layout.
        IntegrityFault: the checkpoint is not what was written.
    """
    state = read_state(checkpoint)
    # Those of a rank of another layout are of no use here; the same resume draws the same numbers again.
    seed_everything(config.run.seed + 1 + state.step)
    _load_state(checkpoint, model, optimizer, config)
    return state


def _load_state(
    checkpoint: Path, model: Sequence[DistributedDataParallel], optimizer: MegatronOptimizer, config: RunConfig
) -> None:
    """Loads weights, optimizer and random states; what the config says of the optimizer stays as it says.

    Raises as `resume` does.
    """
    settings = group_settings(optimizer)
    load(checkpoint, unwrap(model), optimizer, layout(config))
    mend_after_load(optimizer, settings)


def layout(config: RunConfig) -> Layout:
    """The layout of this run, as its checkpoints name it."""
    parallel = config.parallel
    return Layout(
        world=groups.world_size(),
        tensor=parallel.tensor,
        pipeline=parallel.pipeline,
        virtual_pipeline=parallel.virtual_pipeline,
        context=parallel.context,
        expert=parallel.expert,
        distributed_optimizer=parallel.distributed_optimizer,
    )


def _hf_config_dir(config: RunConfig, folder: RunFolder) -> Path:
    """The folder with the model's config.json and tokenizer: `model.hf`, or RUN/model where that has been written."""
    return folder.model if _has_own_config(config) else Path(config.model.hf)


def _has_own_config(config: RunConfig) -> bool:
    """Whether RUN/model describes the model: `model.rope` changes it, or it has tensors that are not trained."""
    base = Path(config.model.hf)
    return (
        config.model.rope is not None or multimodal_of(read_config(base)) is not None or find_others(base) is not None
    )


def write_hf_config_dir(config: RunConfig, folder: RunFolder) -> None:
    """Writes RUN/model where it describes the model. Every rank calls it.

    Raises:
        BadInput: the tensors beside the language model are not those that the run, or the checkpoint that it starts
            from, had before; or an export will need them and they are not there.
    """
    with first_on_rank_zero():
        if groups.rank() != 0 or not _has_own_config(config):
            return
        base = Path(config.model.hf)
        others = _others_of_run(config, folder)
        folder.model.mkdir(exist_ok=True)
        copy_tokenizer_files(base, folder.model)
        write_json(folder.model / "config.json", read_config(base, config.model.rope))
        write_others(folder.model, others)


def _others_of_run(config: RunConfig, folder: RunFolder) -> OtherTensors | None:
    """The tensors beside the language model; None where there are none. Raises BadInput as write_hf_config_dir does."""
    base, exports = Path(config.model.hf), config.checkpoint.export_hf is not None
    others = hashed_others(base)
    if others is None and multimodal_of(read_config(base)) is not None and exports:
        rule = "holds no weights, and an export is to have those beside the language model."
        remedy = "Name the whole folder of the model, or take checkpoint.export_hf out."
        raise BadInput(Fault(f"model.hf = {base}", rule, remedy))
    start = config.init_from.checkpoint
    for known in (folder.model, *([] if start is None else [Path(start) / "hf"])):
        if (known / "config.json").is_file():
            refuse_unlike(others, find_others(known), known)
    if others is not None and exports:
        refuse_unlike(hashed_others(source_of_others(others)), others, base)
    return others


LmEvalTasks = Mapping[str, Sequence[LmEvalTask]]


def open_lm_eval_tasks(config: RunConfig, tasks: Mapping[str, Sequence[Task]], longest: int) -> LmEvalTasks:
    """The tasks of each entry of `tasks.lm_eval`. Every rank calls it.

    Args:
        tasks: those of the files, by the file's name in the config.
        longest: tokens of the model's input at most.
    Raises:
        BadInput: a task that cannot be opened or followed, that is there twice, or that a group misses.
    """
    if not config.tasks.lm_eval:
        return {}
    # An optional library.
    from megatron_cpt.evaluate.lm_eval import open_lm_eval  # noqa: PLC0415

    opened = open_lm_eval(config.tasks.lm_eval, Path(config.model.hf), longest)
    refuse(list(_name_faults(tasks, opened)))
    refuse(list(_group_faults(config, tasks, opened)))
    return opened


def _name_faults(tasks: Mapping[str, Sequence[Task]], opened: LmEvalTasks) -> Iterator[Fault]:
    """Tasks that two entries hold."""
    holders = {task.name: f"tasks.files.{file}" for file, its_tasks in tasks.items() for task in its_tasks}
    for entry, its_tasks in opened.items():
        for task in its_tasks:
            if task.name in holders:
                rule = f"holds task {task.name!r}, which {holders[task.name]} holds too."
                yield Fault(f"tasks.lm_eval.{entry}", rule, "Give each task in one entry.")
            holders[task.name] = f"tasks.lm_eval.{entry}"


def _group_faults(config: RunConfig, tasks: Mapping[str, Sequence[Task]], opened: LmEvalTasks) -> Iterator[Fault]:
    """Groups by the name of a task, and with members that have no accuracy."""
    metrics = {task.name: task.metric for its_tasks in tasks.values() for task in its_tasks}
    metrics |= {task.name: task.metric for its_tasks in opened.values() for task in its_tasks}
    for group, members in group_members(config).items():
        if group in metrics:
            yield Fault(f"tasks.groups.{group}", "a task has the same name.", "Rename the group.")
        absent = [member for member in members if metrics.get(member, "loss") == "loss"]
        if absent:
            rule = f"{', '.join(absent)}: there is no such task with an accuracy, and the mean would be another figure."
            yield Fault(f"tasks.groups.{group}", rule, f"There are: {', '.join(metrics)}.")


@dataclass(frozen=True)
class Run:
    """A run, ready for its next step."""

    config: RunConfig
    plan: RunPlan
    folder: RunFolder
    shape: ModelShape
    dtypes: TensorDtypes
    """Dtypes of the tensors in the Hugging Face folder that the model comes from; exports have them again."""
    model: list[DistributedDataParallel]
    """The chunks of the model that this rank holds: one, unless pipelines are interleaved."""
    optimizer: MegatronOptimizer
    data: TrainingData
    validation_sets: list[ValidationSet]
    tasks: Mapping[str, Sequence[Task]]
    """The tasks of each file, by the file's name in the config."""
    lm_eval_tasks: LmEvalTasks
    """lm-evaluation-harness's tasks, by the entry's name in the config."""
    start_weights: InitialWeights | None
    """The weights before the first update, where updates are measured from them."""
    start_state: StartState
    """Where it stands."""
    measures: Mapping[str, str]
    """Identity of every validation set and task, by its name in messages."""
    areas: Areas = field(default_factory=Areas)
    """Sums over the learning rates of its updates so far (provenance.py)."""

    @property
    def changed_measures(self) -> list[str]:
        """Names of the validation sets and tasks that are no longer what they were at the checkpoint."""
        return changed_measures(self.start_state.measures, self.measures)

    @property
    def first_step(self) -> int:
        """Steps done before: 0, or the step of the checkpoint it goes on from."""
        return self.start_state.first_step

    @property
    def hf_folder(self) -> Path:
        """The Hugging Face folder that describes the model: config and tokenizer."""
        return _hf_config_dir(self.config, self.folder)

    @property
    def step_shape(self) -> StepShape:
        """The sizes of every step after the ramp of batch sizes."""
        return StepShape(
            self.data.slots.micro_batches,
            self.config.training.micro_batch_size,
            self.config.data.sequence_length,
            len(self.data.streams),
        )

    def shape_of(self, step: int) -> StepShape:
        """The sizes of a step, counted from 1."""
        slots = self.data.slots_at(self.config.sequences_at(step - 1))
        return replace(self.step_shape, micro_batches=slots.micro_batches)

    def reweighting_at(self, step: int) -> float | None:
        """The temperature of the weights that the sequences of a step get by their losses; None: they get none."""
        settings = self.config.training.loss_reweighting
        after = self.config.reweighted_after(self.start_state.first_own_step)
        return settings.temperature if settings is not None and after is not None and step > after else None


def assemble(config: RunConfig, plan: RunPlan, folder: RunFolder, timeout: timedelta = groups.TIMEOUT) -> Run:
    """Builds everything a run needs on this rank. The process groups are up.

    Args:
        timeout: of the groups that share the model.
    Raises:
        BadInput: what only the weights or a checkpoint could tell.
        IntegrityFault: a checkpoint or a dataset is not what was written.
    """
    take_warnings(RunLog(folder.log, groups.rank()).write, groups.is_first)
    groups.init_model_parallel(config.parallel, timeout)
    seed_everything(config.run.seed)
    shape = read_shape(Path(config.model.hf), config.model.rope)
    lm_eval_tasks = open_lm_eval_tasks(config, plan.inputs.tasks, shape.max_positions)
    checkpoints = complete_checkpoints(folder.checkpoints)
    dtypes = _dtypes_before_training(config, checkpoints)
    options = ModelOptions.of_run(config)
    bare_model = build_model(shape, options)
    keeps_start = config.validation.weight_updates
    if keeps_start or not checkpoints:
        _load_start_weights(bare_model, shape, config)
    freeze(bare_model, shape, config.model.frozen)
    model = wrap_for_training(bare_model, options)
    optimizer = build_optimizer(model, config.optimizer, config.schedule.peak_lr, config.megatron.optimizer)
    start_weights = InitialWeights(model, optimizer) if keeps_start else None
    # From here on, dropout draws; weights drawn at random above must not shift it.
    seed_everything(config.run.seed + 1)
    beginning = _load_start_state(checkpoints, model, optimizer, config)
    with first_on_rank_zero():
        if groups.rank() == 0:
            for stream in (*plan.inputs.sources.values(), *plan.inputs.validation_sets.values()):
                stream.spot_check()
    data = TrainingData(
        order=plan.blend.order,
        streams=[plan.inputs.sources[name] for name in plan.blend.sources],
        slots=Slots(
            config.training.global_batch_size,
            config.training.micro_batch_size,
            groups.data_rank(),
            groups.data_size(),
        ),
        sequence_length=config.data.sequence_length,
        seed=config.run.seed,
        within_documents=config.data.attention == "within_documents",
        label_masks=label_masks(config.data, plan.inputs.sources, plan.blend.sources),
        loss_weights=loss_weights(config.data, plan.blend.sources),
        ramp=config.batches.ramp,
    )
    sets = open_validation_sets(config, plan.inputs)
    run = Run(
        config=config,
        plan=plan,
        folder=folder,
        shape=shape,
        dtypes=dtypes,
        model=model,
        optimizer=optimizer,
        data=data,
        validation_sets=sets,
        tasks=plan.inputs.tasks,
        lm_eval_tasks=lm_eval_tasks,
        start_weights=start_weights,
        start_state=beginning,
        measures=measures(config, plan.inputs)
        | {f"task {one.name}": one.identity for one in chain(*lm_eval_tasks.values())},
    )
    refuse(measure_faults(config, run.changed_measures))
    return run


def _dtypes_before_training(config: RunConfig, checkpoints: Sequence[Path]) -> TensorDtypes:
    """What exports go by. The run's own checkpoints know it, whatever has become of the folder since."""
    started = [Path(config.init_from.checkpoint)] if config.init_from.checkpoint else []
    return parent_dtypes(*(path / "hf" for path in (*checkpoints[-1:], *started)), Path(config.model.hf))


def open_validation_sets(config: RunConfig, inputs: RunInputs) -> list[ValidationSet]:
    """The named sets of a config, in its order."""
    token_bytes = Tokenizer.load(config.model.hf).token_bytes()
    return [
        open_set(
            name,
            settings.role,
            inputs.validation_sets[name],
            config.data.sequence_length,
            settings.tokens,
            token_bytes,
            config.data.attention,
            label_mask(config.data, inputs.validation_sets[name], settings.loss_mask_column),
        )
        for name, settings in config.validation.sets.items()
    ]
