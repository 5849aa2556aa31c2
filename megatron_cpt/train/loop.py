"""The training loop."""

import time
from dataclasses import dataclass

from megatron_cpt.config.errors import NumericsFault
from megatron_cpt.config.schedule import learning_rate
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.collectives import largest
from megatron_cpt.train.assemble import Run
from megatron_cpt.train.export import export_due, export_step
from megatron_cpt.train.journal import Journal
from megatron_cpt.train.marks import evaluate_marks
from megatron_cpt.train.saving import Saver
from megatron_cpt.train.step import StepOutcome, train_step
from megatron_cpt.train.stop import StopRequest, reason

# Updates that `on_bad_step: skip` leaves out in a row: with weights that are broken, all would be.
MOST_SKIPPED = 10


@dataclass(frozen=True)
class Stop:
    """Where a run ended before its end, all of it saved."""

    step: int
    """The last step done."""
    reason: str
    """Why, in words."""


def train(run: Run, journal: Journal, request: StopRequest) -> Stop | None:
    """Takes a run from where it stands to its end, and returns None; or as far as it may go, and returns a Stop.

    At each step: update, record, evaluate, and then, once the records are on disk, checkpoint. A resume
    therefore finds every record up to its checkpoint, and drops what a killed run wrote beyond it. An
    asynchronous save is whole some steps later; a run does not end before it is.
    A stop leaves no record: stopped and resumed, a run has the records of one that never was.
    """
    config, shape = run.config, run.step_shape
    if stop := agreed_stop(run, run.first_step, request):
        return stop
    if run.first_step == 0:
        evaluate_marks(run, journal, step=0)
    skipped = 0  # updates left out in a row
    with Saver(run, journal) as saver:
        for step in range(run.first_step + 1, run.plan.steps + 1):
            started = time.perf_counter()
            rate = rate_of(run, step)
            batches = run.data.global_batch((step - 1) * config.training.global_batch_size, groups.device())
            outcome = train_step(run.model, run.optimizer, batches, shape, rate, config.optimizer.weight_decay)
            if outcome.updated:
                skipped = 0
                journal.trained(step, rate, outcome, time.perf_counter() - started)
            else:
                skipped += 1
                bad_step(run, journal, step, rate, outcome, skipped)
            evaluate_marks(run, journal, step)
            if export_due(run, step):
                export_step(run, step)
            stop = agreed_stop(run, step, request)
            saver.finish()
            if stop or saver.due(step):
                saver.save(step)
            if stop:
                return stop
    journal.sync()
    return None


def bad_step(run: Run, journal: Journal, step: int, rate: float, outcome: StepOutcome, in_a_row: int) -> None:
    """Records a step whose update was not made. Raises NumericsFault unless it may be left out."""
    skip = run.config.training.on_bad_step == "skip" and in_a_row <= MOST_SKIPPED
    journal.not_updated(step, rate, outcome, "skipped" if skip else "stopped")
    if not skip:
        journal.sync()
        again = f", {in_a_row} times in a row" if in_a_row > 1 else ""
        raise NumericsFault(
            f"step {step}: loss {outcome.loss}, gradient norm {outcome.gradient_norm}: not finite on some rank{again};"
            " no parameter was changed"
        )


def agreed_stop(run: Run, step: int, request: StopRequest) -> Stop | None:
    """A Stop on all ranks if one of them is asked to stop, else None; None after the last step.

    Costs one all-reduce of 8 bytes over all ranks. The limit of wall time counts from the first update on:
    one that is shorter than the start-up would otherwise never get anywhere.
    """
    after = run.config.stop.after if step > run.first_step else None
    code = largest(request.code(after))
    return Stop(step, reason(code, after)) if code and step < run.plan.steps else None


def rate_of(run: Run, step: int) -> float:
    """The learning rate of the update that ends a step: the schedule at the tokens consumed after it."""
    per_step = run.config.tokens_per_step
    return learning_rate(run.config.schedule, step * per_step, run.config.total_tokens, per_step)
