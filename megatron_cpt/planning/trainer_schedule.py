"""Learning rate and AdamW of transformers' Trainer, and of the programs that are built on it, as keys of a run.yaml.

The schedules are those of transformers' optimization.py: their first update has the rate of no steps, here it has the
rate after its own tokens. The Trainer leaves biases and norms without weight decay, as optimizer.no_weight_decay does.
"""

from collections.abc import Callable
from math import ceil
from typing import Any

from megatron_cpt.config.errors import Fault
from megatron_cpt.planning.config_keys import ConfigTranslation

_KWARGS = "lr_scheduler_kwargs"
_ADAMW = {
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_torch_xla",
    "adamw_torch_npu_fused",
    "adamw_apex_fused",
    "adamw_hf",
    "paged_adamw_32bit",
    "paged_adamw",
}
"""Names of AdamW with a state in fp32."""


def translate_schedule(translation: ConfigTranslation, steps: int) -> None:
    """Keys of `schedule`, and what becomes of the keys that decide them.

    Args:
        steps: of the whole run.
    """
    name = str(translation.value("lr_scheduler_type")).lower()
    rules: dict[str, Callable[[ConfigTranslation, int], None]] = {
        "linear": _linear,
        "cosine": _cosine,
        "cosine_with_restarts": _cosine,
        "cosine_with_min_lr": _cosine_to_lowest,
        "cosine_warmup_with_min_lr": _cosine_to_lowest,
        "constant": _constant,
        "constant_with_warmup": _constant,
        "polynomial": _polynomial,
        "warmup_stable_decay": _stable,
    }
    translation.take("learning_rate", "schedule.peak_lr", translation.number("learning_rate"))
    rule = rules.get(name)
    if rule is None:
        translation.write("schedule.kind", "constant", "")
        words = "There is no such schedule. Choose one of docs/schedules.md (schedule.kind); the file has `constant`"
        translation.refuse("lr_scheduler_type", words)
    else:
        rule(translation, steps)
    translate_warmup(translation, steps, has_one=name != "constant")
    kwargs = translation.value(_KWARGS)
    if kwargs and not isinstance(kwargs, dict):
        reason = "is neither a mapping nor JSON of one."
        translation.faults.append(Fault(translation.text(_KWARGS), reason, "Write, for example, {min_lr: 1e-6}."))
    for key in _kwargs(translation):
        translation.refuse(f"{_KWARGS}.{key}", "The schedule has no such number here. See docs/schedules.md")
    translation.equal(_KWARGS, words="nothing is set")


def _kwargs(translation: ConfigTranslation) -> list[str]:
    place = f"{_KWARGS}."
    return [key.removeprefix(place) for key in translation.values if key.startswith(place)]


def _kind(translation: ConfigTranslation, kind: str, remark: str = "") -> None:
    translation.take("lr_scheduler_type", "schedule.kind", kind, remark)


def _linear(translation: ConfigTranslation, steps: int) -> None:
    _kind(translation, "linear")
    translation.write("schedule.final_lr", 0.0)


def _constant(translation: ConfigTranslation, steps: int) -> None:
    _kind(translation, "constant")


def _polynomial(translation: ConfigTranslation, steps: int) -> None:
    power, end = _number(translation, "power", 1.0), _number(translation, "lr_end", 1e-7)
    if power == 1:
        _kind(translation, "linear", "a polynomial of power 1")
        translation.equal(f"{_KWARGS}.power", words="schedule.kind: linear")
    else:
        translation.write("schedule.kind", "linear", "")
        words = f"The power is {power:g}. schedule.kind: linear is a polynomial of power 1, which the file has"
        translation.refuse("lr_scheduler_type", words)
    _final(translation, "lr_end", end)


def _cosine(translation: ConfigTranslation, steps: int) -> None:
    usual = 0.5 if translation.value("lr_scheduler_type") == "cosine" else 1
    cycles = _number(translation, "num_cycles", usual)
    if cycles == usual:
        _kind(translation, "cosine", "half a wave, without restarts")
        translation.equal(f"{_KWARGS}.num_cycles", words="half a wave, without restarts")
    else:
        translation.write("schedule.kind", "cosine", "")
        words = "The rate rises again there. A cosine falls once here. For restarts see schedule.kind: piecewise"
        translation.refuse(f"{_KWARGS}.num_cycles", words)
        translation.refuse("lr_scheduler_type", words)
    if (share := translation.number("cosine_min_lr_ratio")) is not None:
        final = rounded(share * (translation.number("learning_rate") or 0))
        translation.take("cosine_min_lr_ratio", "schedule.final_lr", final, f"{share:g} of the peak")
    else:
        translation.write("schedule.final_lr", 0.0)


def _cosine_to_lowest(translation: ConfigTranslation, steps: int) -> None:
    _kind(translation, "cosine")
    peak = translation.number("learning_rate") or 0
    if f"{_KWARGS}.min_lr" in translation.values:
        _final(translation, "min_lr", _number(translation, "min_lr", 0.0))
    else:
        _final(translation, "min_lr_rate", _number(translation, "min_lr_rate", 0.0) * peak)


def _stable(translation: ConfigTranslation, steps: int) -> None:
    _kind(translation, "wsd")
    peak, share = translation.number("learning_rate") or 0, _number(translation, "min_lr_ratio", 0.0)
    _final(translation, "min_lr_ratio", share * peak)
    if share and warmup_steps(translation, steps)[1]:
        translation.write("schedule.initial_lr", rounded(share * peak), "the warm-up begins at the lowest rate")
    decay = int(_number(translation, "num_decay_steps", 0))
    stable = f"{_KWARGS}.num_stable_steps"
    if stable in translation.values:
        left = steps - warmup_steps(translation, steps)[1] - int(_number(translation, "num_stable_steps", 0))
        if decay and decay != left:
            translation.refuse(stable, f"The decay ends with the run here: {decay} steps of the {left} that are left")
        translation.equal(stable, words="the decay is the rest of the run")
    if decay:
        translation.take(f"{_KWARGS}.num_decay_steps", "schedule.decay", f"{min(decay, steps)} steps")
    shape = str(translation.values.get(f"{_KWARGS}.decay_type") or "cosine")
    if shape in ("linear", "cosine", "1-sqrt"):
        translation.write("schedule.decay_shape", shape)
        translation.equal(f"{_KWARGS}.decay_type", words=f"schedule.decay_shape: {shape}")
    if translation.values.get(f"{_KWARGS}.warmup_type") == "linear":
        translation.equal(f"{_KWARGS}.warmup_type", words="a warm-up is linear")


def _final(translation: ConfigTranslation, key: str, rate: float) -> None:
    final = rounded(rate)
    if f"{_KWARGS}.{key}" in translation.values:
        translation.take(f"{_KWARGS}.{key}", "schedule.final_lr", final)
    else:
        translation.write("schedule.final_lr", final)


def _number(translation: ConfigTranslation, key: str, default: float) -> float:
    number = translation.number(f"{_KWARGS}.{key}")
    return default if number is None else number


def rounded(rate: float) -> float:
    """A rate with six digits."""
    return float(f"{rate:.6g}")


def warmup_steps(translation: ConfigTranslation, steps: int) -> tuple[str, int]:
    """The key that decides the warm-up, and its steps: a number from 1 on, a share of the run below."""
    for key in ("warmup_steps", "warmup_ratio"):
        if amount := translation.number(key):
            return key, int(amount) if amount >= 1 and key == "warmup_steps" else ceil(amount * steps)
    if translation.program.name == "axolotl" and not any(map(translation.has, ("warmup_steps", "warmup_ratio"))):
        return "warmup_ratio", min(int(0.03 * steps), 100)
    return "warmup_steps", 0


def translate_warmup(translation: ConfigTranslation, steps: int, has_one: bool) -> None:
    """`schedule.warmup`, and what becomes of the keys that decide it.

    Args:
        has_one: whether the schedule has a warm-up.
    """
    key, length = warmup_steps(translation, steps)
    if length and has_one:
        share = translation.number(key)
        remark = f"{share:g} of {steps:,} steps" if share and share < 1 else ""
        if not share:
            remark = "3 % of the run, 100 steps at most, is axolotl's own"
        translation.take(key, "schedule.warmup", f"{length} steps", remark)
    words = "no warm-up" if not length else "a constant rate has no warm-up" if not has_one else f"{key} gives it"
    translation.equal("warmup_steps", "warmup_ratio", words=words)


def translate_optimizer(translation: ConfigTranslation) -> None:
    """Keys of `optimizer`."""
    kind = str(translation.value("optim")).lower()
    if translation.has("deepspeed.optimizer.type"):
        translation.equal("optim", words="deepspeed.optimizer holds over it")
    elif kind in _ADAMW:
        translation.equal("optim", words="AdamW with a state in fp32")
    else:
        translation.refuse("optim", "Only AdamW with a state in fp32 is there. Choose schedule.peak_lr for it")
    for key, place in (
        ("weight_decay", "weight_decay"),
        ("adam_beta1", "beta1"),
        ("adam_beta2", "beta2"),
        ("adam_epsilon", "epsilon"),
        ("max_grad_norm", "clip_grad"),
    ):
        number: Any = translation.number(key)
        if key == "max_grad_norm" and _does_not_clip(translation):
            remark = "DeepSpeed clips, and deepspeed.gradient_clipping is not there"
            translation.take(key, "optimizer.clip_grad", 0.0, remark)
        elif number is not None:
            translation.take(key, f"optimizer.{place}", number)
    _embedding_rate(translation)


def _does_not_clip(translation: ConfigTranslation) -> bool:
    """Whether DeepSpeed trains and clips no gradients: accelerate leaves it to DeepSpeed, whose default is not to."""
    is_read = any(name.startswith("deepspeed.") for name in translation.values)
    return is_read and not translation.has("deepspeed.gradient_clipping")


def _embedding_rate(translation: ConfigTranslation) -> None:
    """axolotl's own rate of embedding and output layer, as a factor."""
    rate, peak = translation.number("embedding_lr"), translation.number("learning_rate")
    scale = translation.number("embedding_lr_scale")
    key = "embedding_lr_scale" if scale else "embedding_lr"
    factor = scale or (rate / peak if rate and peak else None)
    if factor:
        translation.write("optimizer.lr_multipliers.embedding", rounded(factor))
        translation.take(key, "optimizer.lr_multipliers.output", rounded(factor), "embedding and output layer")
