"""Where a run begins: at its own newest checkpoint, with what it takes of another run's, or at nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron.core.distributed import DistributedDataParallel
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.optimizer.optimizer import MegatronOptimizer

from megatron_cpt.checkpoint.hf_weights import load_hf_weights
from megatron_cpt.checkpoint.position import read_position
from megatron_cpt.checkpoint.sharded import load_weights
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.families.shape import ModelShape
from megatron_cpt.parallel.seed import seed_everything
from megatron_cpt.planning.plan import RunPlan
from megatron_cpt.planning.start_state import schedule_shift
from megatron_cpt.train.history import History
from megatron_cpt.train.resume import check_order, check_parts, check_positions, load_state, resume


@dataclass(frozen=True)
class Beginning:
    """Where a run stands before its next step."""

    first_step: int
    """Steps done before: 0, or the step of the checkpoint it goes on from."""
    begun_at: int
    """Steps that were done when the run began: more than 0 where it goes on counting another run's."""
    schedule_shift: int
    """Tokens by which the schedule is ahead of the run's own count."""
    history: History
    """What the run remembers of its past."""
    measures: dict[str, str] | None = None
    """Identities of the validation sets and tasks that it was measured on; None: on none that are known."""


def load_start_weights(model: Sequence[GPTModel], shape: ModelShape, config: RunConfig) -> None:
    """Gives a model the weights that the config starts from; without any, it keeps its random ones."""
    if config.start.checkpoint is not None:
        load_weights(Path(config.start.checkpoint), model)
    elif config.model.weights == "hf":
        load_hf_weights(model, shape, Path(config.model.hf))


def begin(
    checkpoints: Sequence[Path],
    model: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    config: RunConfig,
    plan: RunPlan,
) -> Beginning:
    """Loads what the run goes on from; the weights that it starts from are in the model.

    Args:
        checkpoints: the run's own, oldest first.
    Raises:
        BadInput: other data than before, or a layout that the optimizer state does not load into.
        IntegrityFault: a checkpoint is not what was written.
    """
    if checkpoints:
        check_positions(checkpoints[-1], config)
        position = resume(checkpoints[-1], model, optimizer, config, plan)
        return Beginning(
            position.step, position.begun_at, position.schedule_shift, History.of(position), position.measures
        )
    start = config.start
    if start.checkpoint is None or {start.optimizer, start.schedule, start.data} == {"fresh", "new"}:
        return Beginning(0, 0, 0, History())
    checkpoint = Path(start.checkpoint)
    position = read_position(checkpoint)
    shift = schedule_shift(start, position.tokens, position.schedule_shift)
    if start.data == "new":
        if start.optimizer == "kept":
            check_parts(checkpoint, position, config)
            load_state(checkpoint, model, optimizer, config)
            seed_everything(config.run.seed + 1)
        return Beginning(0, 0, shift, History())
    if start.optimizer == "kept":
        resume(checkpoint, model, optimizer, config, plan)
    else:
        check_order(checkpoint, position, plan.blend, config)
    return Beginning(position.step, position.step, shift, History.of(position))
