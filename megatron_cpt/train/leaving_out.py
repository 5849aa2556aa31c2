"""Steps that no update was made of: left out, rewound over, or the end of the run."""

from megatron_cpt.checkpoint.position import complete_checkpoints
from megatron_cpt.config.errors import NumericsFault
from megatron_cpt.train.assemble import Run
from megatron_cpt.train.history import History
from megatron_cpt.train.journal import Journal
from megatron_cpt.train.resume import resume
from megatron_cpt.train.saving import Saver
from megatron_cpt.train.step import StepOutcome

# Steps left out in a row: with weights that are broken, all would be.
MOST_LEFT_OUT = 10


def leave_out(
    run: Run, journal: Journal, saver: Saver, history: History, step: int, rate: float, outcome: StepOutcome
) -> History:
    """Does what the settings say of a step without an update, and records it. Returns the history to go on with.

    A rewind puts back the state of the last checkpoint and goes on after this step: the sequences since that
    checkpoint are left out. The run saves after this step, so that the next start knows of it.

    Raises:
        NumericsFault: the settings say `stop`, too many were left out in a row, or there is no checkpoint to rewind to.
    """
    consumed = run.config.batches.total(step)
    policy = run.config.training.on_spike if outcome.finite else run.config.training.on_bad_step
    in_a_row = history.in_a_row + 1
    saver.finish(wait=policy == "rewind")
    checkpoints = complete_checkpoints(run.folder.checkpoints) if policy == "rewind" else []
    if policy == "skip" and in_a_row <= MOST_LEFT_OUT:
        journal.not_updated(step, rate, outcome, "skipped")
        return history.without(run.config.batches.total(step - 1), consumed, in_a_row)
    if policy == "rewind" and in_a_row <= MOST_LEFT_OUT and checkpoints:
        position = resume(checkpoints[-1], run.model, run.optimizer, run.config, run.plan)
        journal.rewound(position.step, step, rate, outcome)
        saver.save_next(step)
        return History.of(position).without(position.sequences, consumed, in_a_row)
    journal.not_updated(step, rate, outcome, "stopped")
    journal.sync()
    what = "a spike" if outcome.finite else "not finite on some rank"
    again = f", {in_a_row} times in a row" if in_a_row > 1 else ""
    no_way_back = "; there is no checkpoint to go back to" if policy == "rewind" and not checkpoints else ""
    raise NumericsFault(
        f"step {step}: loss {outcome.loss}, gradient norm {outcome.gradient_norm}: {what}{again}{no_way_back};"
        " no parameter was changed"
    )
