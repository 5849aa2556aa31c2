"""Arms of one base configuration, overrides times seeds, as configurations and one script that runs them.

The script is resumable: each arm is `megatron-cpt train`, which goes on where it was and passes over what is done.
The same script runs on this machine, one arm after another, and as a Slurm array, one arm a task.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from difflib import get_close_matches
from fractions import Fraction
from math import floor
from pathlib import Path
from shlex import quote
from typing import Any

import yaml

from megatron_cpt.config.checks import config_faults
from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.config.load import dump_config, load_config, read_yaml
from megatron_cpt.config.schedule import ANNEALING_DECAY
from megatron_cpt.config.schema import RunConfig, name_faults
from megatron_cpt.config.units import counted
from megatron_cpt.runs.folder import FULL, refuse_to_replace, write_durably

_KEYS = {"config", "folder", "arms", "grid", "seeds", "nproc"}
"""What an ARMS.yaml may hold."""
_PILOT_EVALUATIONS = 50
"""Evaluations of a pilot run: enough points for a fit."""
_LONGEST_NAME = 120
"""Bytes of an arm's name: with seed and ending, and the temporary name of a write, a file system takes 255."""
_SET_BY_SWEEP = {
    "run.seed": "is set for every run, from `seeds`: every seed would be this one.",
    "run.folder": "is set for every run, below `folder`: all runs would have this one.",
}
SCRIPT = "run.sh"


@dataclass(frozen=True)
class Sweep:
    """What is to be run."""

    config: Path
    """Base configuration."""
    folder: Path
    """Where configurations, run folders and the script go."""
    arms: tuple[dict[str, Any], ...]
    """Overrides of each arm: `section.key` to value, and `name`, which stands in its files' names in place of the
    values. One empty arm is the base itself."""
    seeds: tuple[int, ...]
    """Each arm is run with each of them (`run.seed`)."""
    nproc: int = 1
    """Processes of one run."""


def read_sweep(path: Path) -> Sweep:
    """A sweep from ARMS.yaml: `config`, `folder`, `seeds`, `nproc`, and `arms` (a list of overrides, with a `name`
    where their values make a long one) or `grid` (`section.key` to a list of values, all combinations). Paths are as
    the command's own working folder has them.

    Raises BadInput for a file that cannot be read, an unknown key, neither or both of `arms` and `grid`, an arm that
    sets what the sweep sets (`run.seed`, `run.folder`), names that no file can have, or values that are there twice.
    """
    content = read_yaml(path)
    faults = [
        Fault(f"{path}: {key}", "is not a key of a sweep.", f"Use {', '.join(sorted(_KEYS))}.")
        for key in content.keys() - _KEYS
    ]
    faults += [
        Fault(f"{path}: {key}", "is missing.", f"Say {what}.")
        for key, what in (("config", "which RUN.yaml the arms change"), ("folder", "where the sweep is written"))
        if not isinstance(content.get(key), str)
    ]
    arms, grid, seeds, nproc = (content.get(key) for key in ("arms", "grid", "seeds", "nproc"))
    if (arms is None) == (grid is None):
        faults.append(Fault(str(path), "gives neither or both of `arms` and `grid`.", "Give one of them."))
    elif arms is not None and not (isinstance(arms, list) and arms and all(isinstance(arm, dict) for arm in arms)):
        faults.append(Fault(f"{path}: arms", "is not a list of overrides.", "Write `- {data.replay_ratio: 0.1}`."))
    elif grid is not None and not (isinstance(grid, dict) and all(isinstance(v, list) and v for v in grid.values())):
        faults.append(Fault(f"{path}: grid", "is not names with lists.", "Write `data.replay_ratio: [0, 0.1]`."))
    elif arms is not None:
        faults += [fault for arm in arms for fault in _key_faults(f"{path}: arms", arm)]
        faults += _given_name_faults(f"{path}: arms", [arm["name"] for arm in arms if "name" in arm])
    elif grid is not None:
        faults += _key_faults(f"{path}: grid", {key: None for key in grid if key != "name"})
        if "name" in grid:
            rule = "is no setting: the arms of a grid are named by their values."
            faults.append(Fault(f"{path}: grid: name", rule, "Take it out, or list `arms`, which may have a `name`."))
        faults += [fault for key, values in grid.items() for fault in repeat_faults(f"{path}: grid: {key}", values)]
    seeds = [1] if seeds is None else seeds
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        faults.append(Fault(f"{path}: seeds", "is not a list of whole numbers.", "Write `seeds: [1, 2]`."))
    else:
        faults += repeat_faults(f"{path}: seeds", seeds)
    if nproc is not None and (type(nproc) is not int or nproc < 1):
        faults.append(Fault(f"{path}: nproc", "is not a number of processes.", "Write `nproc: 1`."))
    refuse(list(dict.fromkeys(faults)))
    chosen: list[dict[str, Any]] = _grid_arms(grid) if grid is not None else content["arms"]
    return Sweep(Path(content["config"]), Path(content["folder"]), tuple(chosen), tuple(seeds), nproc or 1)


def _key_faults(where: str, arm: Mapping[Any, Any]) -> Iterator[Fault]:
    """Keys of an arm that are no settings, and those of the sweep itself."""
    sections = [field.name for field in fields(RunConfig)]
    for key, value in arm.items():
        if not isinstance(key, str):
            yield Fault(f"{where}: {key}", "a setting is a text.", "Write it as `section.key`.")
            continue
        inside = [f"run.{name}" for name in value] if key.strip() == "run" and isinstance(value, Mapping) else []
        for name in {key.strip(), *inside} & _SET_BY_SWEEP.keys():
            yield Fault(f"{where}: {name}", _SET_BY_SWEEP[name], "Take it out of the arms.")
        if key != "name" and "." not in key and key.strip() not in sections:
            close = get_close_matches(key, ["name", *sections], n=1)
            remedy = f"The nearest is `{close[0]}`." if close else "Write `section.key`, or `name` for the arm's name."
            yield Fault(f"{where}: {key}", "is not a setting.", remedy)


def _given_name_faults(where: str, names: Sequence[Any]) -> Iterator[Fault]:
    """Names of arms that files cannot have, or not all of them at once: some disks do not tell `A` from `a`."""
    texts = [name for name in names if isinstance(name, str)]
    yield from name_faults(f"{where}: name", texts)
    for name in names:
        if not isinstance(name, str):
            yield Fault(f"{where}: name: {name}", "a name is a text.", f'Put quotes around it: "{name}".')
        elif len(name.encode()) > _LONGEST_NAME:
            rule = f"is longer than {_LONGEST_NAME} bytes: it stands in names of files."
            yield Fault(f"{where}: name: {name}", rule, "Shorten it.")
    for name in _later_equals(texts):
        rule = "another arm has this name (`A` and `a` are one name on some disks)."
        yield Fault(f"{where}: name: {name}", rule, "Give each arm a name of its own.")


def _later_equals(names: Sequence[str]) -> list[str]:
    """The names that an earlier one equals, but for case."""
    folded = [name.casefold() for name in names]
    return [name for number, name in enumerate(names) if name.casefold() in folded[:number]]


def repeat_faults(where: str, values: Sequence[Any]) -> Iterator[Fault]:
    """Values of a list that are there twice, each of which would be the same runs again."""
    for number, value in enumerate(values):
        if value in values[:number]:
            yield Fault(where, f"{_text(value)} is there twice.", "Name each value once.")


def _grid_arms(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """All combinations of the values, the last name changing fastest."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def matched_epochs(config: RunConfig, source_tokens: Mapping[str, int], fit_steps: int) -> dict[str, Any]:
    """Settings with which a shorter run repeats its sources as often as the whole run does (arXiv:2606.07597).

    Each source is a fixed sample of itself, as much shorter as the run is; targets in tokens or epochs are too.

    Args:
        source_tokens: tokens of one pass over each source.
        fit_steps: steps of the shorter run.
    Raises:
        BadInput: the run is not shorter, a source is read in another way, or its sample would be less than a sequence.
    """
    length, part = config.data.sequence_length, Fraction(fit_steps * config.tokens_per_step, config.total_tokens)
    faults: list[Fault] = []
    settings: dict[str, Any] = {}
    if part > 1:
        rule = f"the run has {config.total_steps} steps: a pilot is not longer."
        faults.append(Fault(f"--fit-steps {fit_steps}", rule, "Lower it."))
    for name, source in config.data.sources.items():
        where, sample = f"data.sources.{name}", floor(part * source_tokens[name] / length) * length
        if source.quality is not None or source.sample_per_epoch is not None:
            rule = "is sampled or has buckets of its own: its repeats cannot be matched."
            faults.append(Fault(where, rule, "Take --match-epochs out, or `quality` and `sample_per_epoch`."))
        elif sample < length:
            rule = f"{floor(part * source_tokens[name])} tokens would be its sample, less than a sequence of {length}."
            faults.append(Fault(where, rule, "Raise --fit-steps."))
        settings[f"{where}.sample_per_epoch"] = {"tokens": sample, "resample": "fixed"}
        target = source.tokens if source.epochs is None else round(source.epochs * source_tokens[name])
        if target is not None:
            settings |= {f"{where}.epochs": None, f"{where}.tokens": max(1, floor(part * target))}
    refuse(faults)
    return settings


def pilot_sweep(
    config: Path,
    folder: Path,
    grid: Mapping[str, Sequence[Any]],
    seeds: int,
    fit_steps: int,
    nproc: int = 1,
    settings: Mapping[str, Any] | None = None,
) -> Sweep:
    """Pilot runs to fit the law to: every combination, `fit_steps` long, with evaluations enough for a fit.

    Args:
        settings: further overrides of every run.
    """
    length = dict(settings or {}) | {
        "training.tokens": f"{fit_steps} steps",
        "validation.eval_interval.every": f"{max(1, fit_steps // _PILOT_EVALUATIONS)} steps",
    }
    return Sweep(config, folder, tuple(arm | length for arm in _grid_arms(grid)), tuple(range(1, seeds + 1)), nproc)


def decay_is_fitted(fit_steps: int) -> bool:
    """Whether runs are so short that a decay of 0.999 an update does not show and is fitted with the rest."""
    return fit_steps < 2 / (1 - ANNEALING_DECAY)


def write_sweep(sweep: Sweep) -> dict[Path, RunConfig]:
    """Writes FOLDER/configs/ARM.yaml for every arm and seed and FOLDER/run.sh; returns what each of the first holds.

    Each arm is checked by every rule that needs no data (config/checks.py, with the sweep's processes); every fault of
    every arm is raised at once, and then nothing is written. A sweep that is written again over its own runs leaves
    them as they are. BadInput also names the files that are there with other content.
    """
    names = _arm_names(sweep)
    configs: dict[Path, RunConfig] = {}
    faults: dict[Fault, list[str]] = {}
    for (arm, of_arm), seed in itertools.product(zip(sweep.arms, names, strict=True), sweep.seeds):
        name = f"{of_arm}-seed-{seed}" if of_arm else f"seed-{seed}"
        settings = {key: value for key, value in arm.items() if key != "name"}
        settings |= {"run.folder": str(sweep.folder / "runs" / name), "run.seed": seed}
        try:
            config = load_config(sweep.config, [f"{key}={_text(value)}" for key, value in settings.items()])
            found: Sequence[Fault] = config_faults(config, sweep.nproc)
            configs[sweep.folder / "configs" / f"{name}.yaml"] = config
        except BadInput as error:
            found = error.faults
        for fault in found:
            faults.setdefault(fault, []).append(name)
    runs = len(names) * len(sweep.seeds)
    refuse([fault if len(of) == runs else _fault_of(of, fault) for fault, of in faults.items()])
    texts = {path: dump_config(config) for path, config in configs.items()}
    script = sweep.folder / SCRIPT
    texts[script] = script_text(list(configs), sweep.nproc)
    refuse_to_replace(path for path, text in texts.items() if path.exists() and path.read_text() != text)
    _write(texts)
    script.chmod(0o755)
    return configs


def _fault_of(names: Sequence[str], fault: Fault) -> Fault:
    """A fault that some of the runs have, with the first of them."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return Fault(f"{fault.value} ({names[0]}{more})", fault.rule, fault.remedy)


def _write(texts: Mapping[Path, str]) -> None:
    """Writes files, each into its folder, or none of them. Raises BadInput with what the disk refused."""
    folders = {path.parent: None for path in texts}
    new = [path for path in (*texts, *folders) if not path.exists()]
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            write_durably(path, text)
    except OSError as error:
        for path in new:
            with suppress(OSError):  # it may not have come so far
                path.rmdir() if path in folders else path.unlink()
        if error.errno in FULL:
            raise
        fault = Fault(str(error.filename), f"cannot be made: {error.strerror}.", "Give another folder.")
        raise BadInput(fault) from error


_NAME_ARMS = "List them as `arms`, each with a `name` of its own."


def _arm_names(sweep: Sweep) -> list[str]:
    """A name for each arm: its own, or one of the values in which arms differ.

    Raises BadInput where two are equal but for case, or one is too long for a file.
    """
    keys = [key for key in dict.fromkeys(itertools.chain(*sweep.arms)) if key != "name"]
    varied = [key for key in keys if len({_text(arm.get(key)) for arm in sweep.arms}) > 1]
    names = [
        arm["name"] if "name" in arm else arm_name({key: arm[key] for key in varied if key in arm})
        for arm in sweep.arms
    ]
    shown = [name or "an arm without overrides" for name in names]
    faults = [
        Fault(name, "two arms have these values, or values that make this name.", _NAME_ARMS)
        for name in _later_equals(shown)
    ]
    faults += [
        Fault(f"{name[:40]}...", f"made of an arm's values, it is longer than {_LONGEST_NAME} bytes.", _NAME_ARMS)
        for name in names
        if len(name.encode()) > _LONGEST_NAME
    ]
    refuse(faults)
    return names


def arm_name(values: Mapping[str, Any]) -> str:
    """A part of file names such as `replay_ratio-0.05-peak_lr-0.0003`, from the values in which an arm differs."""
    words = (f"{key.rpartition('.')[2]}-{value}" for key, value in values.items())
    return re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(words))


def script_text(configs: Sequence[Path], nproc: int) -> str:
    """The script: all arms one after another, or, in a Slurm array, the arm of the task."""
    listed = "\n".join(f"  {quote(str(path))}" for path in configs)
    return f"""#!/bin/bash
#SBATCH --array=0-{len(configs) - 1}
#SBATCH --requeue
# {counted(len(configs), "run")}, from the folder that the sweep was written in: `bash {SCRIPT}` here, `sbatch {SCRIPT}`
# on Slurm (add partition, GPUs and time). Called again it goes on with what is not done.
configs=(
{listed}
)
if [ -n "$SLURM_ARRAY_TASK_ID" ]; then
  exec megatron-cpt train "${{configs[$SLURM_ARRAY_TASK_ID]}}" --nproc {nproc}
fi
# kill and Ctrl-C: the run at hand saves and ends, and then this script.
stopped='' run=''
stop() {{ stopped=1; [ -z "$run" ] || kill -TERM "$run" 2>/dev/null; }}
trap stop TERM INT USR1
failed=0
for config in "${{configs[@]}}"; do
  (trap - TERM INT USR1; exec megatron-cpt train "$config" --nproc {nproc}) &
  run=$!
  [ -z "$stopped" ] || stop
  while kill -0 "$run" 2>/dev/null; do wait "$run"; done  # a signal ends the wait, not the run
  wait "$run"; code=$?
  run=
  [ -n "$stopped" ] && [ $code = 143 ] && code=75  # it had not begun to train
  [ $code = 75 ] && exit 75  # stopped from outside and saved: the rest waits
  [ $code = 0 ] || {{ echo "$config: exit code $code" >&2; failed=$code; }}
  [ -n "$stopped" ] && break
done
[ -n "$stopped" ] && [ $failed = 0 ] && exit 75
exit $failed
"""


def _text(value: Any) -> str:
    """A value as one line of YAML."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")
