"""The training loop."""

import time
from dataclasses import dataclass

from megatron_cpt.config.schedule import learning_rate
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.collectives import largest
from megatron_cpt.train.assemble import Run
from megatron_cpt.train.export import export_due, export_step
from megatron_cpt.train.journal import Journal
from megatron_cpt.train.leaving_out import leave_out
from megatron_cpt.train.marks import evaluate_marks
from megatron_cpt.train.profile import profiled
from megatron_cpt.train.saving import Saver
from megatron_cpt.train.step import train_step
from megatron_cpt.train.stop import StopRequest, reason


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
    config, history = run.config, run.beginning.history
    if stop := agreed_stop(run, run.first_step, request):
        return stop
    if run.first_step == run.beginning.begun_at:
        evaluate_marks(run, journal, run.first_step)
        fill_moments(run, journal)
    with Saver(run, journal) as saver:
        for step in range(run.first_step + 1, run.plan.steps + 1):
            started = time.perf_counter()
            rate = rate_of(run, step)
            batches = run.data.global_batch(config.batches.total(step - 1), groups.device())
            limit = history.loss_limit(config.training)
            with profiled(run, step):
                outcome = train_step(
                    run.model, run.optimizer, batches, run.shape_of(step), rate, config.optimizer.weight_decay, limit
                )
            if outcome.updated:
                history = history.with_update(outcome.loss, config.training)
                journal.trained(step, rate, outcome, time.perf_counter() - started)
            else:
                history = leave_out(run, journal, saver, history, step, rate, outcome)
            losses = evaluate_marks(run, journal, step)
            if export_due(run, step):
                exported = time.perf_counter()
                export_step(run, step)
                journal.stalled("exports", time.perf_counter() - exported)
            stop = agreed_stop(run, step, request)
            saver.finish()
            if stop or saver.due(step):
                saver.save(step, history, losses)
            if stop:
                return stop
    journal.sync()
    return None


def fill_moments(run: Run, journal: Journal) -> None:
    """Steps at rate 0: they fill Adam's moments and change no weight. Training then begins with the same sequences."""
    settings = run.config.optimizer
    for number in range(settings.fill_moments):
        step = run.first_step + number + 1
        batches = run.data.global_batch(run.config.batches.total(step - 1), groups.device())
        outcome = train_step(run.model, run.optimizer, batches, run.shape_of(step), 0.0, settings.weight_decay)
        journal.filled(number + 1, outcome)


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
    config, shift = run.config, run.beginning.schedule_shift
    tokens = config.token_batches.total(step)
    return learning_rate(config.schedule, tokens + shift, config.total_tokens + shift, config.tokens_per_step)
