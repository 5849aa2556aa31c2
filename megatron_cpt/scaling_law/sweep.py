"""Arms of one base configuration, overrides times seeds, as configurations and one script that runs them.

The script is resumable: each arm is `megatron-cpt train`, which goes on where it was and passes over what is done.
The same script runs on this machine, one arm after another, and as a Slurm array, one arm a task.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from pathlib import Path
from shlex import quote
from typing import Any

import yaml

from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.config.load import dump_config, load_config, read_yaml
from megatron_cpt.config.schedule import ANNEALING_DECAY
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.runs.folder import refuse_to_replace, write_durably

_KEYS = {"config", "folder", "arms", "grid", "seeds", "nproc"}
"""What an ARMS.yaml may hold."""
_PILOT_EVALUATIONS = 50
"""Evaluations of a pilot run: enough points for a fit."""
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

    Raises BadInput for a file that cannot be read, an unknown key, or neither or both of `arms` and `grid`.
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
    seeds = [1] if seeds is None else seeds
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        faults.append(Fault(f"{path}: seeds", "is not a list of whole numbers.", "Write `seeds: [1, 2]`."))
    if nproc is not None and (type(nproc) is not int or nproc < 1):
        faults.append(Fault(f"{path}: nproc", "is not a number of processes.", "Write `nproc: 1`."))
    refuse(faults)
    chosen: list[dict[str, Any]] = _grid_arms(grid) if grid is not None else content["arms"]
    return Sweep(Path(content["config"]), Path(content["folder"]), tuple(chosen), tuple(seeds), nproc or 1)


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


def write_sweep(sweep: Sweep) -> list[Path]:
    """Writes FOLDER/configs/ARM.yaml for every arm and seed and FOLDER/run.sh; returns the configurations.

    Each arm is checked as `megatron-cpt train` would; every fault of every arm is raised at once, and then nothing is
    written. A sweep that is written again over its own runs leaves them as they are. BadInput also names the files that
    are there with other content.
    """
    keys = [key for key in dict.fromkeys(itertools.chain(*sweep.arms)) if key != "name"]
    varied = [key for key in keys if len(_values(sweep, key)) > 1]
    configs: dict[str, RunConfig] = {}
    faults: list[Fault] = []
    for arm, seed in itertools.product(sweep.arms, sweep.seeds):
        named = {} if "name" in arm else {key: arm[key] for key in varied if key in arm}
        name = arm_name(named, seed, str(arm.get("name", "")))
        if name in configs:
            faults.append(Fault(name, "two arms have this name.", "Give each arm other values."))
        overrides = {"run.folder": str(sweep.folder / "runs" / name), "run.seed": seed}
        overrides |= {key: value for key, value in arm.items() if key != "name"}
        try:
            configs[name] = load_config(sweep.config, [f"{key}={_text(value)}" for key, value in overrides.items()])
        except BadInput as error:
            faults += error.faults
    refuse(list(dict.fromkeys(faults)))
    paths = [sweep.folder / "configs" / f"{name}.yaml" for name in configs]
    texts = [dump_config(config) for config in configs.values()]
    script, commands = sweep.folder / SCRIPT, script_text(paths, sweep.nproc)
    other = [
        path
        for path, text in zip([*paths, script], [*texts, commands], strict=True)
        if path.exists() and path.read_text() != text
    ]
    refuse_to_replace(other)
    folder = sweep.folder / "configs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fault = Fault(str(folder), f"cannot be made: {error.strerror}.", "Give another folder.")
        raise BadInput(fault) from error
    for path, text in zip(paths, texts, strict=True):
        write_durably(path, text)
    write_durably(script, commands)
    script.chmod(0o755)
    return paths


def arm_name(values: Mapping[str, Any], seed: int, name: str = "") -> str:
    """A file name such as `replay_ratio-0.05-peak-0.0003-seed-1`, from the arm's name and what differs between arms."""
    words = [*([name] if name else []), *(f"{key.rpartition('.')[2]}-{value}" for key, value in values.items())]
    return re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join([*words, f"seed-{seed}"]))


def script_text(configs: Sequence[Path], nproc: int) -> str:
    """The script: all arms one after another, or, in a Slurm array, the arm of the task."""
    listed = "\n".join(f"  {quote(str(path))}" for path in configs)
    return f"""#!/bin/bash
#SBATCH --array=0-{len(configs) - 1}
#SBATCH --requeue
# {len(configs)} runs, from the folder that the sweep was written in: `bash {SCRIPT}` here, `sbatch {SCRIPT}`
# on Slurm (add partition, GPUs and time). Called again it goes on with what is not done.
configs=(
{listed}
)
if [ -n "$SLURM_ARRAY_TASK_ID" ]; then
  exec megatron-cpt train "${{configs[$SLURM_ARRAY_TASK_ID]}}" --nproc {nproc}
fi
failed=0
for config in "${{configs[@]}}"; do
  megatron-cpt train "$config" --nproc {nproc}
  code=$?
  [ $code = 75 ] && exit 75  # stopped from outside and saved: the rest waits
  [ $code = 0 ] || {{ echo "$config: exit code $code" >&2; failed=$code; }}
done
exit $failed
"""


def _values(sweep: Sweep, key: str) -> set[str]:
    return {_text(arm.get(key)) for arm in sweep.arms}


def _text(value: Any) -> str:
    """A value as one line of YAML."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")
