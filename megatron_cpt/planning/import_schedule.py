"""Megatron-LM's arguments of the learning rate as `schedule`, also from a place within it on."""

from dataclasses import dataclass
from math import isclose

from megatron_cpt.planning.argument_translation import ArgumentTranslation
from megatron_cpt.planning.megatron_lm_checkpoint import Progress
from megatron_cpt.planning.outcomes import Outcome, short
from megatron_cpt.planning.run_file import count_text


@dataclass(frozen=True)
class Lengths:
    """What a schedule is measured by."""

    batch: int
    """Sequences of a step."""
    sequence_length: int
    """Tokens of a sequence."""
    whole: int
    """Sequences of the whole run, with those that it has read."""
    progress: Progress | None
    """How far the run had come that is to be continued. None: a run begins."""


def translate_schedule(found: ArgumentTranslation, run: Lengths) -> None:
    """The keys of `schedule`, and what became of the arguments of the learning rate."""
    style = found.value("--lr-decay-style")
    kind = {"constant": "constant", "linear": "linear", "cosine": "cosine", "WSD": "wsd"}.get(style)
    if kind is None:
        found.write("schedule.kind", "constant", "")
        found.refuse("--lr-decay-style", "There is no such schedule. Choose one of docs/schedules.md (schedule.kind)")
    else:
        found.take("--lr-decay-style", "schedule.kind", kind)
    found.take("--lr", "schedule.peak_lr", found.value("--lr"))
    decay = _decay(found, run, kind)
    warmup = _warmup(found, run, decay)
    if kind in ("linear", "cosine", "wsd"):
        found.take("--min-lr", "schedule.final_lr", found.value("--min-lr"))
    elif kind == "constant":
        found.equal("--min-lr", "a constant rate has no end of its own")
    elif found.has("--min-lr"):
        found.refuse("--min-lr", "It belongs to a schedule that is not there. Set schedule.final_lr")
    if kind == "wsd":
        _wsd(found, run)
    if run.progress is not None:
        _rest(found, run, run.progress, kind, decay, warmup)


def _decay(found: ArgumentTranslation, run: Lengths, kind: str | None) -> int:
    """Sequences from the beginning of the schedule to the end of its decay."""
    by_samples = found.value("--train-samples") is not None
    flag, other = "--lr-decay-iters", "--lr-decay-samples"
    if by_samples:
        flag, other = other, flag
    found.equal(other, "Megatron-LM does not read it with this kind of length")
    size = 1 if by_samples else run.batch
    asked = found.value(flag)
    decay: int = run.whole if asked is None else asked * size
    if kind == "constant":
        found.equal(flag, "a constant rate does not decay")
    elif kind is None and found.has(flag):
        found.refuse(flag, "It belongs to a schedule that is not there. Set schedule.tokens")
    elif kind is None:
        pass
    elif run.progress is not None or abs(decay - run.whole) >= run.batch:
        tokens = count_text(decay * run.sequence_length)
        if asked is None:
            found.write("schedule.tokens", tokens)
        else:
            remark = f"{decay / run.whole:.4g} times the run" if decay != run.whole else "that of the whole run"
            found.take(flag, "schedule.tokens", tokens, remark)
    else:
        found.equal(flag, "the schedule ends with the run")
    return decay


def _warmup(found: ArgumentTranslation, run: Lengths, decay: int) -> float:
    """Sequences of the warm-up."""
    fraction = found.value("--lr-warmup-fraction")
    iterations, samples = found.value("--lr-warmup-iters"), found.value("--lr-warmup-samples")
    sequences: float
    if fraction is not None:
        flag, sequences = "--lr-warmup-fraction", fraction * decay
        remark = f"{fraction:g} of the decay's {decay:,} sequences"
    elif samples:
        flag, sequences, remark = "--lr-warmup-samples", samples, f"{samples:,} sequences"
    else:
        flag, sequences, remark = "--lr-warmup-iters", iterations * run.batch, f"{iterations:,} steps"
    if sequences:
        found.take(flag, "schedule.warmup", count_text(round(sequences * run.sequence_length)), remark)
    for other in ("--lr-warmup-fraction", "--lr-warmup-iters", "--lr-warmup-samples"):
        found.equal(other, "no warm-up" if not sequences else "another argument gives the warm-up")
    return sequences


def _rest(
    found: ArgumentTranslation, run: Lengths, progress: Progress, kind: str | None, decay: int, warmup: float
) -> None:
    """Where on its schedule the run goes on.

    Megatron-LM's update has the rate of the samples before it, ours that of the tokens after it: so that the next
    update has the same rate, the schedule begins a step earlier.
    """
    before, lengths = progress.scheduled - run.batch, {"lr_decay_steps": float(decay), "lr_warmup_steps": warmup}
    shown = f"{progress.scheduled:,} samples of the schedule"
    if before > 0:
        tokens = count_text(before * run.sequence_length)
        found.write("schedule.consumed", tokens)
        exact = kind is not None and not (kind == "wsd" and found.value("--lr-wsd-decay-style") == "exponential")
        words = f"schedule.consumed: {tokens}" + " (each update has the rate that it would have had)" * exact
        found.outcomes.append(Outcome(shown, "taken", words))
    elif before < 0:
        words = "They are less than a batch: the schedule begins anew, a step early. Its first rate is not 0"
        found.outcomes.append(Outcome(shown, "refused", words))
    now = {"max_lr": found.value("--lr"), "min_lr": found.value("--min-lr")} | lengths
    flags = {
        "max_lr": "--lr",
        "min_lr": "--min-lr",
        "lr_decay_steps": "its length",
        "lr_warmup_steps": "its warm-up",
    }
    if kind == "constant":
        del now["min_lr"], now["lr_decay_steps"]
    for name, value in now.items():
        stored = progress.scheduler.get(name, value)
        if not isclose(stored, value, rel_tol=1e-9):
            words = f"The arguments say {short(value)}, and that is in the run.yaml. Set {flags[name]} behind `--`"
            found.outcomes.append(Outcome(f"{name} {short(stored)} of the scheduler", "refused", words))
    found.equal("--use-checkpoint-opt_param-scheduler", "the arguments are compared with the scheduler's state")


def _wsd(found: ArgumentTranslation, run: Lengths) -> None:
    by_samples = found.value("--train-samples") is not None
    flag = "--lr-wsd-decay-samples" if by_samples else "--lr-wsd-decay-iters"
    other = "--lr-wsd-decay-iters" if by_samples else "--lr-wsd-decay-samples"
    found.equal(other, "Megatron-LM does not read it with this kind of length")
    decay = found.value(flag)
    if decay is not None:
        sequences = decay * (1 if by_samples else run.batch)
        found.take(flag, "schedule.decay", count_text(sequences * run.sequence_length))
    style = found.value("--lr-wsd-decay-style")
    shape = {"linear": "linear", "cosine": "cosine", "minus_sqrt": "1-sqrt"}.get(style)
    if shape is not None:
        found.take("--lr-wsd-decay-style", "schedule.decay_shape", shape)
        return
    found.write("schedule.decay_shape", "linear")
    words = (
        "Megatron-LM's exponential, 2 * 0.5^x - 1, is not there: schedule.decay_shape: linear is nearest, at most "
        "0.086 of the peak rate above it; `exponential` is a straight line in the logarithm"
    )
    found.refuse("--lr-wsd-decay-style", words)
