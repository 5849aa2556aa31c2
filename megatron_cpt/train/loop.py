"""The training loop: update, record, evaluate, save; skipped steps and rewinds; profiler traces."""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from types import TracebackType
from typing import Self

import torch
from torch.profiler import ProfilerActivity, profile

from megatron_cpt.checkpoint import save
from megatron_cpt.checkpoint.save import CheckpointWriter
from megatron_cpt.config.errors import NumericsFault
from megatron_cpt.config.schedule import learning_rate
from megatron_cpt.config.units import profiled_steps
from megatron_cpt.data.loader import BatchReader
from megatron_cpt.model.build import gather_parameters, unwrap
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.groups import largest
from megatron_cpt.planning.checks import batch_settings
from megatron_cpt.planning.resume_changes import trained_parts
from megatron_cpt.runs.checkpoint_state import FREQUENT, KEPT, CheckpointState, complete_checkpoints
from megatron_cpt.runs.records import Record
from megatron_cpt.train.evaluation import evaluate_due
from megatron_cpt.train.gradient_conflict import held_out_gradients, record_conflict
from megatron_cpt.train.logger import RunLogger
from megatron_cpt.train.optimizer import StepOutcome, train_step
from megatron_cpt.train.provenance import export_due, export_step, run_lineage
from megatron_cpt.train.run import Run, UpdateHistory, layout, resume
from megatron_cpt.train.stop import StopRequest, reason
from megatron_cpt.train.watchdog import Watchdog


@dataclass(frozen=True)
class Stop:
    """Where a run ended before its end, all of it saved."""

    step: int
    """The last step done."""
    reason: str
    """Why, in words."""


def train(run: Run, logger: RunLogger, request: StopRequest, watchdog: Watchdog) -> Stop | None:
    """Takes a run from where it stands to its end, and returns None; or as far as it may go, and returns a Stop.

    At each step: update, record, evaluate, and then, once the records are on disk, checkpoint. A resume
    therefore finds every record up to its checkpoint, and drops what a killed run wrote beyond it. An
    asynchronous save is whole some steps later; a run does not end before it is.
    A stop leaves no record: stopped and resumed, a run has the records of one that never was.
    """
    config, history = run.config, run.start_state.history
    if stop := _agreed_stop(run, run.first_step, request):
        return stop
    if run.first_step == run.start_state.first_own_step:
        _evaluate(run, logger, watchdog, run.first_step)
        warm_up_moments(run, logger, watchdog)
    steps = range(run.first_step + 1, run.plan.steps + 1)
    firsts = (config.sequences_at(step - 1) for step in steps)
    with (
        _Saver(run, logger) as saver,
        BatchReader(run.data, groups.device(), firsts) as reader,
        _manual_gc(),
    ):
        for step in steps:
            watchdog.at("step", step)
            before = held_out_gradients(run, step)
            started = time.perf_counter()
            rate = _learning_rate_at(run, step)
            batches = watchdog.reading(reader.global_batch(config.sequences_at(step - 1)))
            limit = history.loss_limit(config.training)
            with profiled(run, step):
                outcome = train_step(
                    run.model,
                    run.optimizer,
                    batches,
                    run.shape_of(step),
                    rate,
                    config.optimizer.weight_decay,
                    limit,
                    partial(_stop_code, run, step, request),
                    run.reweighting_at(step),
                )
            if outcome.updated:
                history = history.with_update(outcome.loss, config.training)
                logger.log_train_step(step, rate, outcome, time.perf_counter() - started)
            else:
                watchdog.at("start", step)  # a rewind loads a checkpoint
                history = _skip_step(run, logger, saver, history, step, rate, outcome)
            logger.advance()
            record_conflict(run, logger, step, before, outcome)
            is_long = _is_measured(run, step) or export_due(run, step) or not outcome.updated
            losses = _evaluate(run, logger, watchdog, step)
            if export_due(run, step):
                exported = time.perf_counter()
                watchdog.at("export", step)
                export_step(run, step)
                logger.took("exports", 1, time.perf_counter() - exported)
            watchdog.at("step", step)
            # A request that came since the update is heard after the next one, but after what may have taken long.
            stop = _agreed_stop(run, step, request) if is_long else _stop_at(run, step, outcome.stop)
            saver.finish()
            if is_long or step % _COLLECTED_EVERY == 0:
                gc.collect()
            if stop or saver.due(step):
                watchdog.at("save", step)
                saver.save(step, history, losses)
            if stop:
                return stop
    logger.sync()
    return None


def _evaluate(run: Run, logger: RunLogger, watchdog: Watchdog, step: int) -> dict[str, float]:
    """Measures what is due at a step, and has it on disk; returns the losses of the validation sets, by name."""
    if _is_measured(run, step):
        watchdog.at("evaluation", step)
    losses = evaluate_due(run, logger, step)
    if _is_measured(run, step):
        logger.sync()  # for who reports a run under way
    return losses


def _is_measured(run: Run, step: int) -> bool:
    """Whether something is evaluated at a step."""
    return any(step in one.steps for one in run.plan.evaluations)


def warm_up_moments(run: Run, logger: RunLogger, watchdog: Watchdog) -> None:
    """Steps at rate 0: they fill Adam's moments and change no weight. Training then begins with the same sequences."""
    settings = run.config.optimizer
    for number in range(settings.moment_warmup_steps):
        step = run.first_step + number + 1
        watchdog.at("step", step)
        batches = run.data.global_batch(run.config.sequences_at(step - 1), groups.device())
        outcome = train_step(run.model, run.optimizer, batches, run.shape_of(step), 0.0, settings.weight_decay)
        logger.record(_event(run, "moments_filled", run.first_step, 0.0, outcome) | {"number": number + 1})


def _agreed_stop(run: Run, step: int, request: StopRequest) -> Stop | None:
    """A Stop on all ranks if one of them is asked to stop, else None; None after the last step."""
    return _stop_at(run, step, largest(_stop_code(run, step, request)))


def _stop_code(run: Run, step: int, request: StopRequest) -> int:
    """Why this rank is to stop after a step (StopRequest.code).

    The limit of wall time counts from the first update on: one that is shorter than the start-up would otherwise never
    get anywhere.
    """
    return request.code(run.config.stop.after if step > run.first_step else None)


def _stop_at(run: Run, step: int, code: int) -> Stop | None:
    """The Stop that the ranks have agreed on."""
    return Stop(step, reason(code, run.config.stop.after)) if code and step < run.plan.steps else None


_COLLECTED_EVERY = 100
"""Steps between two collections of garbage."""


@contextmanager
def _manual_gc() -> Iterator[None]:
    """Turns Python's automatic garbage collection off: the loop collects on all ranks after the same steps.

    Left on, each rank collects at a moment of its own, and all others wait for it.
    """
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _learning_rate_at(run: Run, step: int) -> float:
    """The learning rate of the update that ends a step: the schedule at the tokens consumed after it."""
    config, shift = run.config, run.start_state.schedule_shift
    tokens = config.tokens_at(step)
    return learning_rate(config.schedule, tokens + shift, config.total_tokens + shift, config.tokens_per_step)


class _Saver:
    """Saves a run after some of its steps. At the end of its context all that was begun is whole."""

    def __init__(self, run: Run, logger: RunLogger) -> None:
        self._run, self._logger = run, logger
        self._writer = CheckpointWriter(run.folder.checkpoints, run.plan.disk.checkpoint_bytes)
        settings = run.config.checkpoint
        self._every = settings.save_interval.steps(run.config.tokens_per_step) if settings.save_interval else None
        self._keep_every = settings.keep_every_steps(run.config.tokens_per_step)
        self._wanted: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Waits for a save that is under way, save after an error that only this rank may have met."""
        if kind is None or issubclass(kind, NumericsFault):
            self.finish(wait=True)

    def due(self, step: int) -> bool:
        """Whether the run saves after this step: at regular distances, at the end, and where it was asked for."""
        regular = self._every is not None and step % self._every == 0
        return regular or step in (self._run.plan.steps, self._wanted)

    def save_next(self, step: int) -> None:
        """Asks for a save after this step."""
        self._wanted = step

    def save(self, step: int, history: UpdateHistory, losses: dict[str, float]) -> None:
        """Saves after a step. Returns when the state is taken or, without `checkpoint.async_save`, when it is whole.

        The records up to the step are on disk before.

        Args:
            losses: of the validation sets that were evaluated at this step, by name.
        Raises:
            StorageFault: this checkpoint, or the one before it, could not be written.
        """
        run = self._run
        self._logger.sync()
        started = time.perf_counter()
        self.finish(wait=True)
        waited = time.perf_counter() - started
        gather_parameters(run.model)
        planned = self._writer.begin(
            unwrap(run.model),
            run.optimizer,
            self._checkpoint_state(step, history, losses),
            run.hf_folder,
            run.dtypes,
            run_lineage(run, step),
        )
        if not run.config.checkpoint.async_save:
            self.finish(wait=True)
        stalled = time.perf_counter() - started
        self._logger.took("saves", 1, stalled)
        self._logger.log(
            f"step {step}: training waited {stalled:.2f} s to save"
            f" (for the previous save {waited:.2f} s, to copy the state {planned:.2f} s)"
        )

    def finish(self, wait: bool = False) -> None:
        """Seals a checkpoint whose writing has ended, and then removes what need not stay."""
        checkpoint = self._writer.finish(wait)
        if checkpoint is not None and groups.rank() == 0:
            settings = self._run.config.checkpoint
            self._logger.checkpoint_saved(checkpoint)
            save.prune(checkpoint.parent, settings.keep_last, self._keep_every, settings.keep_best)

    def _checkpoint_state(self, step: int, history: UpdateHistory, losses: dict[str, float]) -> CheckpointState:
        run, config = self._run, self._run.config
        round_distance = self._keep_every is not None and step % self._keep_every == 0
        sequences = config.sequences_at(step)
        return CheckpointState(
            step=step,
            tokens=config.tokens_at(step),
            sequences=sequences,
            order=run.plan.blend.describe(sequences),
            order_fingerprint=run.plan.blend.fingerprint(sequences),
            source_sequences=run.plan.blend.source_sequences(sequences),
            layout=layout(config),
            sharding=KEPT if round_distance or step == run.plan.steps else FREQUENT,
            validation=losses,
            skipped_ranges=[list(span) for span in history.skipped_ranges],
            skipped_in_a_row=history.skipped_in_a_row,
            recent_losses=list(history.losses),
            parts=trained_parts(config),
            first_own_step=run.start_state.first_own_step,
            schedule_shift=run.start_state.schedule_shift,
            batches=batch_settings(config),
            measures=dict(run.measures),
            datasets={name: [asdict(one) for one in known] for name, known in run.plan.datasets.items()},
            records=self._logger.records_digest(),
        )


# Steps skipped in a row. With broken weights every step would be.
_MOST_SKIPPED = 10


def _skip_step(
    run: Run, logger: RunLogger, saver: _Saver, history: UpdateHistory, step: int, rate: float, outcome: StepOutcome
) -> UpdateHistory:
    """Does what the settings say of a step without an update, and records it. Returns the history to go on with.

    A rewind puts back the state of the last checkpoint and goes on after this step: the sequences since that
    checkpoint are skipped. The run saves after this step, so that the next start knows of it.

    Raises:
        NumericsFault: the settings say `stop`, too many were skipped in a row, or there is no checkpoint to rewind to.
    """
    consumed = run.config.sequences_at(step)
    policy = run.config.training.on_spike if outcome.finite else run.config.training.on_nonfinite
    in_a_row = history.skipped_in_a_row + 1
    cause = "spike" if outcome.finite else "not_finite"
    found = f"loss {outcome.loss}, gradient norm {outcome.gradient_norm}"
    why = f"{found}, {'a spike' if outcome.finite else 'not finite'}"
    saver.finish(wait=policy == "rewind")
    checkpoints = complete_checkpoints(run.folder.checkpoints) if policy == "rewind" else []
    if policy == "skip" and in_a_row <= _MOST_SKIPPED:
        logger.record(_event(run, f"skipped_{cause}", step, rate, outcome), line=f"step {step}: skipped: {why}")
        return history.with_skipped(run.config.sequences_at(step - 1), consumed, in_a_row)
    if policy == "rewind" and in_a_row <= _MOST_SKIPPED and checkpoints:
        state = resume(checkpoints[-1], run.model, run.optimizer, run.config)
        logger.go_back(state.step)
        logger.record(
            _event(run, f"rewound_{cause}", step, rate, outcome)
            | {"to_step": state.step, "left_out_sequences": [run.config.sequences_at(state.step), consumed]},
            line=f"step {step}: {why}: went back to the weights of step {state.step}; "
            f"the sequences of steps {state.step + 1} to {step} are skipped",
        )
        saver.save_next(step)
        return UpdateHistory.of(state).with_skipped(state.sequences, consumed, in_a_row)
    logger.record(_event(run, f"stopped_{cause}", step, rate, outcome), line=f"step {step}: stopped: {why}")
    logger.sync()
    what = "a spike" if outcome.finite else "not finite on some rank"
    again = f", {in_a_row} times in a row" if in_a_row > 1 else ""
    no_way_back = "; there is no checkpoint to go back to" if policy == "rewind" and not checkpoints else ""
    raise NumericsFault(f"step {step}: {found}: {what}{again}{no_way_back}; no parameter was changed")


def _event(run: Run, event: str, step: int, rate: float, outcome: StepOutcome) -> Record:
    """A record in place of an update that was not made."""
    return {
        "kind": "event",
        "event": event,
        "step": step,
        "tokens": run.config.tokens_at(step),
        "learning_rate": rate,
        "loss": outcome.loss,
        "grad_norm": outcome.gradient_norm,
    }


@contextmanager
def profiled(run: Run, step: int) -> Iterator[None]:
    """Writes a profiler trace of the block if `run.profile` names the step and `run.profile_ranks` this rank."""
    chosen = run.config.run.profile
    if chosen is None or step not in profiled_steps(chosen) or groups.rank() not in run.config.run.profile_ranks:
        yield
        return
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=activities, record_shapes=True, profile_memory=True) as trace:
        yield
    run.folder.profile.mkdir(exist_ok=True)
    trace.export_chrome_trace(str(run.folder.profile / f"step-{step:08}-rank-{groups.rank():05}.json.gz"))
