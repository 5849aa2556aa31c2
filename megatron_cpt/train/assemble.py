"""From a config to a run that can take its next step: the parts, put together in order.

1. plan (torch-free): blend, steps, marks; every fault of the input is raised here, all at once
2. ranks: process groups, seeds
3. the harness's tasks, opened, which may take a while and may fail
4. model: built, weights read from the Hugging Face folder or a checkpoint, or drawn; wrapped; optimizer
5. beginning: the newest whole checkpoint, if there is one, is loaded over all that
6. data and validation sets, opened lazily; tasks
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer.optimizer import MegatronOptimizer

from megatron_cpt.checkpoint.hf_dtypes import TensorDtypes, parent_dtypes
from megatron_cpt.checkpoint.position import complete_checkpoints
from megatron_cpt.config.errors import refuse
from megatron_cpt.config.schedule import Areas
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.data.labels import label_mask, label_masks
from megatron_cpt.data.sampler import Slots
from megatron_cpt.data.training_data import TrainingData
from megatron_cpt.evaluate.validate import ValidationSet, open_set
from megatron_cpt.families.shape import ModelShape, read_shape
from megatron_cpt.model.build import build_model, wrap_for_training
from megatron_cpt.model.frozen import freeze
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.seed import seed_everything
from megatron_cpt.planning.inputs import RunInputs
from megatron_cpt.planning.plan import RunPlan
from megatron_cpt.planning.resume_changes import measure_faults
from megatron_cpt.runs.folder import RunFolder
from megatron_cpt.runs.library_warnings import take_warnings
from megatron_cpt.runs.log import RunLog
from megatron_cpt.tasks.task import Task
from megatron_cpt.tokenizer.tokenize import Tokenizer
from megatron_cpt.train.beginning import Beginning, begin, load_start_weights
from megatron_cpt.train.described import description
from megatron_cpt.train.harness import HarnessTasks, open_harness_tasks
from megatron_cpt.train.optimizer import build_optimizer
from megatron_cpt.train.step import StepShape
from megatron_cpt.train.weight_updates import StartWeights


@dataclass(frozen=True)
class Run:
    """A run, ready for its next step."""

    config: RunConfig
    plan: RunPlan
    folder: RunFolder
    shape: ModelShape
    dtypes: TensorDtypes
    """Those that the tensors of the model had in the Hugging Face folder that it comes from."""
    model: list[DistributedDataParallel]
    """The chunks of the model that this rank holds: one, unless pipelines are interleaved."""
    optimizer: MegatronOptimizer
    data: TrainingData
    validation_sets: list[ValidationSet]
    tasks: Mapping[str, Sequence[Task]]
    """The tasks of each file, by the file's name in the config."""
    harness: HarnessTasks
    """lm-evaluation-harness's tasks, by the entry's name in the config."""
    start_weights: StartWeights | None
    """The weights before the first update, where updates are measured from them."""
    beginning: Beginning
    """Where it stands."""
    measures: Mapping[str, str]
    """Identity of every validation set and task, by its name in messages."""
    areas: Areas = field(default_factory=Areas)
    """Of the learning rates of its updates, as far as they were summed (provenance.py)."""

    @property
    def changed_measures(self) -> list[str]:
        """Names of the validation sets and tasks that are no longer what they were at the checkpoint."""
        before = self.beginning.measures or {}
        return [name for name, identity in self.measures.items() if before.get(name, identity) != identity]

    @property
    def first_step(self) -> int:
        """Steps done before: 0, or the step of the checkpoint it goes on from."""
        return self.beginning.first_step

    @property
    def hf_folder(self) -> Path:
        """The Hugging Face folder that describes the model: config and tokenizer."""
        return description(self.config, self.folder)

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
        slots = self.data.slots_at(self.config.batches.total(step - 1))
        return replace(self.step_shape, micro_batches=slots.micro_batches)


def assemble(config: RunConfig, plan: RunPlan, folder: RunFolder) -> Run:
    """Builds everything a run needs on this rank. The process groups are up.

    Raises:
        BadInput: what only the weights or a checkpoint could tell.
        IntegrityFault: a checkpoint or a dataset is not what was written.
    """
    take_warnings(RunLog(folder.log).write, groups.is_first)
    groups.divide_world(config.parallel)
    seed_everything(config.run.seed)
    shape = read_shape(Path(config.model.hf), config.model.rope)
    harness = open_harness_tasks(config, plan.inputs.tasks, shape.max_positions)
    checkpoints = complete_checkpoints(folder.checkpoints)
    dtypes = dtypes_before_training(config, checkpoints)
    bare_model = build_model(shape, config)
    keeps_start = config.validation.weight_updates
    if keeps_start or not checkpoints:
        load_start_weights(bare_model, shape, config)
    freeze(bare_model, shape, config.model.frozen)
    model = wrap_for_training(bare_model, config)
    optimizer = build_optimizer(model, config)
    start_weights = StartWeights(model) if keeps_start else None
    # From here on, dropout draws; weights drawn at random above must not shift it.
    seed_everything(config.run.seed + 1)
    beginning = begin(checkpoints, model, optimizer, config, plan)
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
        harness=harness,
        start_weights=start_weights,
        beginning=beginning,
        measures={f"validation.sets.{one.name}": one.identity for one in sets}
        | {
            f"task {one.name}": one.identity
            for opened in (plan.inputs.tasks, harness)
            for one in chain(*opened.values())
        },
    )
    refuse(measure_faults(config, run.changed_measures))
    return run


def dtypes_before_training(config: RunConfig, checkpoints: Sequence[Path]) -> TensorDtypes:
    """What exports go by. The run's own checkpoints know it, whatever has become of the folder since."""
    started = [Path(config.start.checkpoint)] if config.start.checkpoint else []
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
            label_mask(config.data, inputs.validation_sets[name], settings.unscored_lead),
        )
        for name, settings in config.validation.sets.items()
    ]
