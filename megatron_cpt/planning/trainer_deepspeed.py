"""A configuration of DeepSpeed beside the arguments of transformers' Trainer.

Where it has `auto`, the Trainer puts its own value. Where it has another one than the Trainer, the Trainer does not
start (transformers' integrations/deepspeed.py), and no run is made here. Its scheduler takes the place of
`lr_scheduler_type`, its optimizer that of `optim`; what these do not name has DeepSpeed's default. The schedules are
those of DeepSpeed's runtime/lr_schedules.py.
"""

from collections.abc import Sequence
from typing import Any

from megatron_cpt.config.errors import Fault
from megatron_cpt.config.units import parse_number
from megatron_cpt.planning.config_keys import ConfigTranslation
from megatron_cpt.planning.outcomes import short
from megatron_cpt.planning.trainer_schedule import rounded, translate_warmup, warmup_steps

_MICRO, _ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"
_OPTIMIZER, _SCHEDULER = "deepspeed.optimizer.params", "deepspeed.scheduler.params"
_KINDS = {"WarmupLR": "constant", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}
"""DeepSpeed's schedules that `schedule.kind` has too."""
_ONLY_ADAMW = "Only AdamW with a state in fp32 is there. Choose schedule.peak_lr for it"


def has_scheduler(translation: ConfigTranslation) -> bool:
    """Whether DeepSpeed makes the schedule."""
    return translation.has("deepspeed.scheduler.type")


def compare_deepspeed(translation: ConfigTranslation, steps: int) -> None:
    """Notes what DeepSpeed's configuration has of the Trainer's numbers; a fault for each that is not the same.

    Args:
        steps: of the whole run.
    """
    micro, times = (translation.positive(key) for key in (_MICRO, _ACCUMULATION))
    _match(translation, "train_micro_batch_size_per_gpu", micro, _MICRO)
    _match(translation, _ACCUMULATION, times, _ACCUMULATION)
    _match(translation, "train_batch_size", micro * times * (translation.options.ranks or 1), "batches of all ranks")
    _match(translation, "gradient_clipping", translation.number("max_grad_norm"), "max_grad_norm")
    half = translation.switch("fp16") or translation.switch("float16")
    _match(translation, "fp16.enabled", half, "fp16")
    _match(translation, "bf16.enabled", translation.switch("bf16") or translation.switch("pure_bf16"), "bf16")
    _compare_optimizer(translation)
    if has_scheduler(translation):
        _compare_scheduler(translation, steps)


def _compare_optimizer(translation: ConfigTranslation) -> None:
    kind = "deepspeed.optimizer.type"
    if not translation.has(kind):
        return
    plain = translation.value(f"{_OPTIMIZER}.adam_w_mode") is False and translation.number("weight_decay")
    if str(translation.value(kind)).lower() not in ("adam", "adamw") or plain:
        translation.refuse(kind, _ONLY_ADAMW)
    translation.equal(kind, words="AdamW with a state in fp32")
    betas = [translation.number(key) for key in ("adam_beta1", "adam_beta2")]
    for key, value, named in (
        ("lr", translation.number("learning_rate"), "learning_rate"),
        ("betas", betas, "adam_beta1 and adam_beta2"),
        ("eps", translation.number("adam_epsilon"), "adam_epsilon"),
        ("weight_decay", translation.number("weight_decay"), "weight_decay"),
    ):
        _match(translation, f"optimizer.params.{key}", value, named, needed=True)
    harmless = ("torch_adam", "adam_w_mode", "fused")
    translation.equal(*(f"{_OPTIMIZER}.{key}" for key in harmless), words="AdamW with a state in fp32")
    _refuse_others(translation, _OPTIMIZER)


def _compare_scheduler(translation: ConfigTranslation, steps: int) -> None:
    kind = translation.value("deepspeed.scheduler.type")
    if kind not in _KINDS:
        return
    warmup = max(1, warmup_steps(translation, steps)[1])
    _match(translation, "scheduler.params.warmup_num_steps", warmup, "the warm-up of the Trainer", needed=True)
    if kind != "WarmupCosineLR":
        rate = translation.number("learning_rate")
        _match(translation, "scheduler.params.warmup_max_lr", rate, "learning_rate", needed=True)
    if kind != "WarmupLR":
        _match(translation, "scheduler.params.total_num_steps", steps, "the steps of the run", needed=True)


def _match(translation: ConfigTranslation, key: str, value: Any, named: str, needed: bool = False) -> None:
    """Compares a number of DeepSpeed's with the Trainer's.

    Args:
        value: of the Trainer.
        named: what the Trainer calls it.
        needed: whether DeepSpeed's default holds where the key is missing.
    """
    name = f"deepspeed.{key}"
    given = translation.value(name) if needed else translation.values.get(name)
    if given is None and not needed:
        translation.equal(name, words="null: nothing is set")
        return
    if given == "auto" or _same(given, value):
        translation.equal(name, words=f"the Trainer's: {named}")
        return
    here = f"{named}: {short(value)}"
    if translation.has(name):
        rule = f"is another value than the Trainer's ({here}), which does not start so."
    else:
        rule = f"holds in DeepSpeed, and not the Trainer's value ({here})."
    remedy = f"Mend one of them, or take the Trainer's: `-- {name}=auto`."
    translation.faults.append(Fault(translation.text(name), rule, remedy))


def _refuse_others(translation: ConfigTranslation, section: str) -> None:
    """Tells of the numbers of a section that nothing here has."""
    for name in translation.values:
        if name.startswith(f"{section}."):
            translation.refuse(name, "There is no such number here. See docs/schedules.md and the keys of optimizer")


def _same(given: Any, value: Any) -> bool:
    """Whether a value of DeepSpeed's is the Trainer's."""
    if isinstance(value, bool):
        return given is value
    if isinstance(value, Sequence):
        is_list = isinstance(given, list) and len(given) == len(value)
        return is_list and all(map(_same, given, value))
    try:
        return value is not None and parse_number(given) == value
    except (TypeError, ValueError):
        return False


def translate_deepspeed_schedule(translation: ConfigTranslation, steps: int) -> None:
    """Keys of `schedule` from DeepSpeed's scheduler, once it was compared.

    Args:
        steps: of the whole run.
    """
    peak = translation.number("learning_rate") or 0
    translation.take("learning_rate", "schedule.peak_lr", peak)
    place = "deepspeed.scheduler.type"
    given = str(translation.value(place))
    kind = _KINDS.get(given)
    if kind is None:
        translation.write("schedule.kind", "constant", "")
        words = "There is no such schedule. Choose one of docs/schedules.md (schedule.kind); the file has `constant`"
        translation.refuse(place, words)
    else:
        translation.take(place, "schedule.kind", kind)
        _ends(translation, given, peak, warmup_steps(translation, steps)[1])
    for key in ("lr_scheduler_type", "lr_scheduler_kwargs"):
        below = [name for name in translation.values if name.startswith(f"{key}.")]
        translation.equal(key, *below, words="deepspeed.scheduler holds over it")
    translate_warmup(translation, steps, has_one=True)
    _refuse_others(translation, _SCHEDULER)


def _ends(translation: ConfigTranslation, given: str, peak: float, warmup: int) -> None:
    """The rates at which a schedule begins and ends, and the shape of its warm-up."""
    lowest = f"{_SCHEDULER}.warmup_min_ratio" if given == "WarmupCosineLR" else f"{_SCHEDULER}.warmup_min_lr"
    rate = 0.0 if translation.value(lowest) == "auto" else translation.number(lowest) or 0.0
    start = rounded(rate * peak) if given == "WarmupCosineLR" else rate
    if given == "WarmupCosineLR":
        ratio = translation.number(f"{_SCHEDULER}.cos_min_ratio") or 0.0
        translation.take(f"{_SCHEDULER}.cos_min_ratio", "schedule.final_lr", rounded(ratio * peak))
    elif given == "WarmupDecayLR":
        translation.write("schedule.final_lr", start)
    if start and warmup:
        translation.take(lowest, "schedule.initial_lr", start)
    says = "schedule.final_lr says it" if given == "WarmupDecayLR" else "the warm-up begins at zero, or there is none"
    translation.equal(lowest, words=says)
    shape = f"{_SCHEDULER}.warmup_type"
    if warmup and str(translation.value(shape)).lower() != "linear":
        translation.refuse(shape, "The warm-up is logarithmic there, linear here. See schedule.warmup")
    translation.equal(shape, words="a warm-up is linear")
