"""When a run saves, what a checkpoint says of it, and which checkpoints stay."""

import time
from types import TracebackType
from typing import Self

from megatron_cpt.checkpoint import retention
from megatron_cpt.checkpoint.position import FREQUENT, KEPT, Position
from megatron_cpt.checkpoint.writer import CheckpointWriter
from megatron_cpt.config.errors import NumericsFault
from megatron_cpt.model.build import gather_parameters, unwrap
from megatron_cpt.parallel import groups
from megatron_cpt.planning.start_faults import batch_settings
from megatron_cpt.train.assemble import Run
from megatron_cpt.train.history import History
from megatron_cpt.train.journal import Journal
from megatron_cpt.train.provenance import run_lineage
from megatron_cpt.train.resume import layout, trained_parts


class Saver:
    """Saves a run after some of its steps. At the end of its context all that was begun is whole."""

    def __init__(self, run: Run, journal: Journal) -> None:
        self._run, self._journal = run, journal
        self._writer = CheckpointWriter(run.folder.checkpoints)
        every, keep_every = run.config.checkpoint.every, run.config.checkpoint.keep_every
        self._every = every.steps(run.config.tokens_per_step) if every else None
        self._keep_every = keep_every.steps(run.config.tokens_per_step) if keep_every else None
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

    def save(self, step: int, history: History, losses: dict[str, float]) -> None:
        """Saves after a step. Returns when the state is taken or, without `checkpoint.asynchronous`, when it is whole.

        The records up to the step are on disk before.

        Args:
            losses: of the validation sets that were evaluated at this step, by name.
        Raises:
            StorageFault: this checkpoint, or the one before it, could not be written.
        """
        run = self._run
        self._journal.sync()
        started = time.perf_counter()
        self.finish(wait=True)
        waited = time.perf_counter() - started
        gather_parameters(run.model)
        planned = self._writer.begin(
            unwrap(run.model),
            run.optimizer,
            self._position(step, history, losses),
            run.hf_folder,
            run.dtypes,
            run_lineage(run, step),
        )
        if not run.config.checkpoint.asynchronous:
            self.finish(wait=True)
        stalled = time.perf_counter() - started
        self._journal.stalled("saves", stalled)
        self._journal.say(
            f"step {step}: training waited {stalled:.2f} s to save"
            f" (for the save before {waited:.2f} s, to take the state {planned:.2f} s)"
        )

    def finish(self, wait: bool = False) -> None:
        """Seals a checkpoint whose writing has ended, and then removes what need not stay."""
        checkpoint = self._writer.finish(wait)
        if checkpoint is not None and groups.rank() == 0:
            settings = self._run.config.checkpoint
            self._journal.saved(int(checkpoint.name.removeprefix("step-")), checkpoint)
            retention.prune(checkpoint.parent, settings.keep_last, self._keep_every, settings.keep_best)

    def _position(self, step: int, history: History, losses: dict[str, float]) -> Position:
        run, config = self._run, self._run.config
        round_distance = self._keep_every is not None and step % self._keep_every == 0
        sequences = config.batches.total(step)
        return Position(
            step=step,
            tokens=config.token_batches.total(step),
            sequences=sequences,
            order=run.plan.blend.describe(sequences),
            order_fingerprint=run.plan.blend.fingerprint(sequences),
            source_sequences=run.plan.blend.source_sequences(sequences),
            layout=layout(config),
            sharding=KEPT if round_distance or step == run.plan.steps else FREQUENT,
            validation=losses,
            left_out=[list(span) for span in history.left_out],
            left_out_in_a_row=history.in_a_row,
            recent_losses=list(history.losses),
            parts=trained_parts(config),
            begun_at=run.beginning.begun_at,
            schedule_shift=run.beginning.schedule_shift,
            batches=batch_settings(config),
            measures=dict(run.measures),
        )
