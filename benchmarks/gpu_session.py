"""What a first, short time on one GPU is for: the package's GPU path, part by part, on a page that grows as it runs.

    python benchmarks/gpu_session.py OUTPUT                   on one GPU, within 14 minutes
    python benchmarks/gpu_session.py OUTPUT --device cpu      the script itself, tried with tiny sizes
    python benchmarks/gpu_session.py OUTPUT --only families   some parts

Each part is a process of its own under its own limit: one that fails or hangs leaves the others their time. OUTPUT gets
results.md, which is whole after every part, and a log of each part. What a part found before its limit, or before a
SIGTERM ended the session, is on the page too. Memory is compared with a simulated rank of the
same run, which is simulated meanwhile on the processor.
"""

import argparse
import gc
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from machine import machine, print_result
from torch.profiler import ProfilerActivity, profile
from train_step import LEARNING_RATE, Shape, our_step, start, write_inputs

from megatron_cpt.config.load import config_from_dict, dump_config
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.families.memory import memory_per_rank
from megatron_cpt.families.shape import read_shape
from megatron_cpt.families.size import flops_per_token
from megatron_cpt.parallel import groups
from megatron_cpt.runs.folder import RunFolder, write_json
from megatron_cpt.runs.records import read_records
from megatron_cpt.train.logger import peak_flops
from megatron_cpt.train.program import run_to_end
from megatron_cpt.train.provenance import kernels_of
from megatron_cpt.train.stop import StopRequest

GIB = 2**30


@dataclass(frozen=True)
class Sizes:
    """How large the runs are on a device."""

    shapes: dict[str, Shape]
    """Of the timed steps, by the name of the part."""
    model: dict[str, Any]
    """Fields of config.json of the runs of families."""
    length: int
    """Tokens of their sequences."""
    precision: str


_LLAMA_8B = Shape(32, 4096, 128256, 4096, 1, 6, ffn_hidden=14336, head_dim=128, query_groups=8)
SIZES = {
    "cuda": Sizes(
        {
            "llama-1b": Shape(16, 2048, 128256, 4096, 4, 8, ffn_hidden=8192, head_dim=64, query_groups=8),
            "llama-8b-cut": _LLAMA_8B,
        },
        {"vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4, "head_dim": 64}
        | {"num_attention_heads": 16, "num_key_value_heads": 8, "moe_intermediate_size": 768, "sliding_window": 512}
        | {"rms_norm_eps": 1e-5},
        2048,
        "bf16",
    ),
    "cpu": Sizes(
        {"llama-1b": Shape(2, 64, 512, 64, 2, 2), "llama-8b-cut": Shape(2, 128, 512, 64, 1, 2)},
        {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "moe_intermediate_size": 32, "sliding_window": 16}
        | {"rms_norm_eps": 1e-5},
        64,
        "fp32",
    ),
}
_COMMON = {"max_position_embeddings": 4096, "tie_word_embeddings": False}
_RMS, _OWN = ("num_key_value_heads", "rms_norm_eps"), ("num_key_value_heads", "rms_norm_eps", "head_dim")
FAMILIES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "llama": (_OWN, {}),
    "mistral": ((*_OWN, "sliding_window"), {}),
    "qwen2": (_RMS, {}),
    "qwen3": (_OWN, {}),
    "gemma2": (
        (*_OWN, "sliding_window"),
        {"query_pre_attn_scalar": 64, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    "gemma3_text": ((*_OWN, "sliding_window"), {"query_pre_attn_scalar": 64, "sliding_window_pattern": 2}),
    "olmo2": (_RMS, {}),
    "gpt_neox": ((), {"rotary_pct": 0.25, "rotary_emb_base": 10000}),
    "mixtral": (_OWN, {"num_local_experts": 8, "num_experts_per_tok": 2}),
    "qwen3_moe": ((*_OWN, "moe_intermediate_size"), {"num_experts": 16, "num_experts_per_tok": 4}),
}
"""Which fields of `Sizes.model` a family has beside those that all have, and others of its config.json."""
_ALL = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True)
class Part:
    """A part of the session."""

    name: str
    limit: int
    """Seconds after which it is ended."""
    shows: str
    """What it shows."""


PARTS = (
    Part("doctor", 60, "kernels that are usable here"),
    Part("tests", 150, "the tests marked `gpu`"),
    Part("families", 180, "three steps of each family, loss against the same run in fp32"),
    Part("llama-1b", 90, "a step of Llama 3.2 1B: speed, memory beside the simulation, kernels by time"),
    Part("llama-8b-cut", 120, "a step of Llama 3.1 8B with as many layers as fit"),
    Part("saving", 120, "asynchronous saves, and losses of a resumed run beside those of one that was not stopped"),
)


def main() -> None:
    """Runs the parts, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    parser.add_argument("--device", choices=list(SIZES), default="cuda")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], metavar="PART")
    parser.add_argument("--minutes", type=float, default=14, help="for all parts (default 14)")
    parser.add_argument("--gpu", default="H100-80GB", help="card of the simulated ranks (default %(default)s)")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    assert options.device == "cpu" or torch.cuda.is_available(), "there is no GPU: --device cpu tries the script"
    options.output.mkdir(parents=True, exist_ok=True)
    if options.part:
        print(json.dumps(IN_PROCESS[options.part](SIZES[options.device], options)), flush=True)
        return
    session(options, [part for part in PARTS if options.only is None or part.name in options.only])


_ON_CPU = 3
"""Times its limit that a part may take where the script is tried on processors, which other programs may share."""


@dataclass(frozen=True)
class Result:
    """How a part ended."""

    part: Part
    state: str
    seconds: float
    figures: dict[str, Any]


_TERMINATED = 128 + signal.SIGTERM
"""Exit code of a session that a SIGTERM ended."""


def session(options: argparse.Namespace, parts: list[Part]) -> None:
    """All parts, one after the other, with a page that is written after each. A SIGTERM ends the part at hand too."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(_TERMINATED))
    began, results = time.monotonic(), list[Result]()
    for part in parts:
        left = 60 * options.minutes - (time.monotonic() - began)
        if left < min(part.limit, 30):
            results.append(Result(part, "left out: no time", 0, {}))
        else:
            limit = part.limit * (1 if options.device == "cuda" else _ON_CPU)
            results.append(run_part(part, min(limit, left), options))
        write_page(options.output / "results.md", results)
        print(f"{part.name}: {results[-1].state}, {results[-1].seconds:.0f} s", flush=True)
        if results[-1].state == _ENDED:
            sys.exit(_TERMINATED)
    fine = sum(result.state == "done" for result in results)
    details = {result.part.name: {"state": result.state, **result.figures} for result in results}
    print_result("gpu_session", fine / len(results), "parts that were done", details)


_ENDED = "ended by SIGTERM"


def run_part(part: Part, limit: float, options: argparse.Namespace) -> Result:
    """Runs a part in a process of its own. Whatever is left of it at its limit is ended."""
    commands = {
        "doctor": [sys.executable, "-m", "megatron_cpt.commands.dispatch", "doctor"],
        "tests": [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rs", "tests/parallel/test_gpu.py"],
    }
    own = [sys.executable, __file__, str(options.output), "--device", options.device, "--gpu", options.gpu]
    command, began = commands.get(part.name, [*own, "--part", part.name]), time.monotonic()
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if options.device == "cpu" else {}
    log = options.output / f"{part.name}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=os.environ | hidden
        )
        try:
            state = "done" if process.wait(limit) == 0 else f"failed with code {process.returncode}"
        except subprocess.TimeoutExpired:
            state = f"ended at its limit of {limit:.0f} s"
        except SystemExit:
            state = _ENDED
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return Result(part, state, time.monotonic() - began, figures_of(log.read_text().splitlines()))


def figures_of(lines: list[str]) -> dict[str, Any]:
    """The last figures in a log, which may go on behind them and end anywhere; its last line where it has none."""
    for line in reversed(lines):
        with suppress(ValueError):
            figures = json.loads(line)
            if isinstance(figures, dict):
                return figures
    return {"last line": lines[-1] if lines else ""}


def write_page(path: Path, results: list[Result]) -> None:
    """The page of results so far."""
    rows = [[one.part.name, one.state, f"{one.seconds:.0f}", one.part.shows] for one in results]
    lines = ["# A session on one GPU", "", machine(), "", "| part | state | seconds | shows |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    for one in results:
        lines += ["", f"## {one.part.name}", ""]
        lines += [f"- {name}: {shown(value)}" for name, value in one.figures.items()] or ["nothing"]
    path.write_text("\n".join(lines) + "\n")


def shown(value: Any) -> str:
    """A figure for people."""
    if isinstance(value, dict):
        return "; ".join(f"{name} {shown(one)}" for name, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(shown, value)) or "none"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def timed_steps(name: str, sizes: Sizes, options: argparse.Namespace) -> dict[str, Any]:
    """Speed and memory of a step, its kernels by time, and the peak of a simulated rank of the same run."""
    shape, on_gpu = sizes.shapes[name], options.device == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        config = write_inputs(shape, Path(folder), sizes.precision)
        if on_gpu:
            largest = 0.9 * torch.cuda.get_device_properties(0).total_memory
            while memory_per_rank(read_shape(config.model.hf), config, 1).total > largest:
                shape = replace(shape, layers=shape.layers - 1)
                config = write_inputs(shape, Path(folder), sizes.precision)
        simulated = simulate(config, Path(folder), options.gpu)
        groups.init_process_group()
        run = start(config)
        step, seconds = our_step(run), []
        for _ in range(shape.rounds + 2):
            began = time.perf_counter()
            step()
            synchronize(on_gpu)
            seconds.append(time.perf_counter() - began)
        peak = torch.cuda.max_memory_allocated() if on_gpu else None
        kernels = kernel_times(step, on_gpu)
        model, estimated = read_shape(config.model.hf), memory_per_rank(read_shape(config.model.hf), config, 1).total
        speed = shape.sequences * shape.length / statistics.median(seconds[2:])
        return {
            "shape": shape.name,
            "tokens/s": speed,
            "seconds a step": statistics.median(seconds[2:]),
            "MFU": speed * flops_per_token(model, shape.length) / (peak_flops() or float("nan")),
            "peak GiB": None if peak is None else peak / GIB,
            "estimated GiB": estimated / GIB,
            "simulated GiB": simulated() / GIB,
            "kernels": str(kernels_of(run.model, run.optimizer)),
            "time by kernel, ms": kernels,
        }


def simulate(config: RunConfig, folder: Path, card: str) -> Callable[[], float]:
    """Starts the simulation of a run's rank; the function that is returned waits for its peak, in bytes."""
    path = folder / "simulated.yaml"
    path.write_text(dump_config(config))
    command = [sys.executable, "-W", "ignore", "-m", "megatron_cpt.simulation", str(path), "0", "1", card]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "TORCHDYNAMO_DISABLE": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)

    def peak() -> float:
        output, _ = process.communicate()
        return float(sum(json.loads(output)["memory"].values())) if process.returncode == 0 else float("nan")

    return peak


def synchronize(on_gpu: bool) -> None:
    """Waits for the device."""
    if on_gpu:
        torch.cuda.synchronize()


_KERNELS_SHOWN = 12


def kernel_times(step: Callable[[], None], on_gpu: bool) -> dict[str, float]:
    """Milliseconds of the kernels, or on a processor of the operations, that take most of a step."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as trace:
        step()
        synchronize(on_gpu)
    times = {
        event.key[:80]: (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1000
        for event in trace.key_averages()
    }
    return dict(sorted(times.items(), key=lambda item: -item[1])[:_KERNELS_SHOWN])


def settings_of(folder: Path, kind: str, sizes: Sizes, **training: Any) -> dict[str, Any]:
    """The model folder, the data and the settings of a small run of a family."""
    vocabulary = sizes.model["vocab_size"]
    write_inputs(Shape(1, 64, vocabulary, sizes.length, 1, 1), folder, sizes.precision)
    names, others = FAMILIES[kind]
    fields = {name: sizes.model[name] for name in (*_ALL, *names)}
    write_json(folder / "hf" / "config.json", {"model_type": kind} | _COMMON | fields | others)
    return {
        "run": {"folder": str(folder / "run"), "log_interval": "1 steps"},
        "model": {"hf": str(folder / "hf"), "weights": "random"},
        "data": {"sequence_length": sizes.length, "sources": {"random": {"paths": [str(folder / "data")]}}},
        "training": {"tokens": "3 steps", "global_batch_size": 4, "precision": sizes.precision} | training,
        "schedule": {"kind": "constant", "peak_lr": LEARNING_RATE},
    }


def losses_of(run: Path) -> list[float]:
    """The loss of every step of a run."""
    return [record["loss"] for record in read_records(run / "records.jsonl") if record["kind"] == "train"]


def families(sizes: Sizes, options: argparse.Namespace) -> dict[str, Any]:
    """Three steps of each family, and how far the losses are from those of the same run in fp32."""
    found: dict[str, Any] = {"failed": []}
    for kind in FAMILIES:
        try:
            losses = {}
            for precision in dict.fromkeys((sizes.precision, "fp32")):
                with tempfile.TemporaryDirectory() as scratch:
                    config = config_from_dict(settings_of(Path(scratch), kind, sizes, precision=precision))
                    folder = RunFolder(config.run.folder)
                    folder.create()
                    with StopRequest() as request:
                        run_to_end(config, folder, request)
                    losses[precision] = losses_of(folder.path)
            far = max(abs(one - other) for one, other in zip(losses[sizes.precision], losses["fp32"], strict=True))
            found[kind] = {"loss": losses[sizes.precision][-1], "from fp32": far}
        except Exception as error:  # the others have their turn
            found["failed"].append(kind)
            found[kind] = f"{type(error).__name__}: {str(error)[:200]}"
        groups.destroy()
        gc.collect()
        if options.device == "cuda":
            torch.cuda.empty_cache()
        print(json.dumps(found), flush=True)
    return found


def saving(sizes: Sizes, options: argparse.Namespace) -> dict[str, Any]:
    """A run that saves as it goes, one that is cut in the middle and resumed, and how far their losses are apart."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        settings = settings_of(folder, "llama", sizes, tokens="12 steps")
        settings["checkpoint"] = {"save_interval": "4 steps", "async_save": True}
        for name, words in (("whole", []), ("cut", ["training.tokens=6 steps"]), ("cut", [])):
            path = folder / f"{name}.yaml"
            settings["run"]["folder"] = str(folder / name)
            path.write_text(yaml.safe_dump(settings))
            subprocess.run([sys.executable, "-m", "megatron_cpt.train", str(path), *words], check=True)
        whole, cut = losses_of(folder / "whole"), losses_of(folder / "cut")
        log = (folder / "whole" / "log.txt").read_text().splitlines()
        waits = [line.partition("waited ")[2] for line in log if "training waited" in line]
        return {
            "steps": len(whole),
            "largest difference of a loss": max(abs(one - other) for one, other in zip(whole, cut, strict=True)),
            "waits": " | ".join(waits),
        }


IN_PROCESS: dict[str, Callable[[Sizes, argparse.Namespace], dict[str, Any]]] = {
    "families": families,
    "saving": saving,
    "llama-1b": lambda sizes, options: timed_steps("llama-1b", sizes, options),
    "llama-8b-cut": lambda sizes, options: timed_steps("llama-8b-cut", sizes, options),
}


if __name__ == "__main__":
    main()
