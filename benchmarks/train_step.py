"""Training speed on this machine: our trainer against plain PyTorch and against a bare Megatron-Core loop.

    python benchmarks/train_step.py             four shapes on this processor, within five minutes
    python benchmarks/train_step.py --all       4x128, 6x256, 8x512; vocabulary 4k, 32k; sequences of 512, 1,024
    python benchmarks/train_step.py --gpu       1B and 8B Llama shapes in bf16: tokens/s, MFU, memory

Each variant is a process of its own, with the same threads; they take turns on each shape, round after round, while
the others sleep. Speeds and ratios are medians over rounds, a ratio being taken within each round. Ours is the whole
trainer: data read from disk, source losses, records, TensorBoard. Plain is a Llama in plain PyTorch with
scaled_dot_product_attention and fused AdamW, on a batch in memory; compiled is the same under torch.compile; kept is
plain with the one setting of the C library that ours makes (parallel/groups.py). Bare is Megatron-Core's model,
schedule and optimizer with our kernels, on a batch in memory. The result is ours over plain, the worst of the shapes.
Where the time of a step goes is shown for the first shape.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine, print_result
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from plain_llama import PlainLlama
from tokenizers import Tokenizer, models, pre_tokenizers

from megatron_cpt.config.load import config_from_dict
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.corpus.indexed import IndexedWriter
from megatron_cpt.families.memory import memory_per_rank
from megatron_cpt.families.shape import read_shape
from megatron_cpt.families.size import flops_per_token
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.groups import keep_freed_memory
from megatron_cpt.planning.plan import make_plan
from megatron_cpt.runs.folder import RunFolder, write_json
from megatron_cpt.train.logger import RunLogger, peak_flops
from megatron_cpt.train.optimizer import clear_gradients, train_step
from megatron_cpt.train.provenance import kernels_of
from megatron_cpt.train.run import Run, assemble

LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class Shape:
    """One model and batch."""

    layers: int
    hidden: int
    vocabulary: int
    length: int
    """Tokens of a sequence."""
    sequences: int
    """Sequences of a step, in one micro batch."""
    rounds: int
    """Steps that are timed, after two that are not."""
    ffn_hidden: int = 0
    """Width inside the MLP; 0: 11/4 of the hidden width."""
    head_dim: int = 32
    """Width of a head."""
    query_groups: int = 0
    """Key and value heads; 0: half the heads."""

    @property
    def name(self) -> str:
        return f"{self.layers}x{self.hidden}, vocabulary {self.vocabulary}, {self.sequences} x {self.length} tokens"


SHAPES = (
    Shape(4, 128, 4096, 512, 4, 12),
    Shape(4, 128, 32768, 512, 4, 6),
    Shape(6, 256, 4096, 1024, 2, 6),
    Shape(8, 512, 32768, 1024, 1, 3),
)
ALL_SHAPES = tuple(
    Shape(layers, hidden, vocabulary, length, sequences, rounds)
    for layers, hidden, sequences, rounds in ((4, 128, 4, 24), (6, 256, 2, 16), (8, 512, 1, 12))
    for vocabulary in (4096, 32768)
    for length in (512, 1024)
)
# Llama 3.2 1B and Llama 3.1 8B, sequences of 4,096 tokens.
GPU_SHAPES = (
    Shape(16, 2048, 128256, 4096, 4, 10, ffn_hidden=8192, head_dim=64, query_groups=8),
    Shape(32, 4096, 128256, 4096, 1, 10, ffn_hidden=14336, head_dim=128, query_groups=8),
)


def main() -> None:
    """Measures the shapes and prints the table and the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="all twelve shapes")
    parser.add_argument("--gpu", action="store_true", help="1B and 8B in bf16 on a GPU")
    options = parser.parse_args()
    print(machine())
    if options.gpu:
        measure_gpu()
    else:
        measure_cpu(ALL_SHAPES if options.all else SHAPES)


def measure_cpu(shapes: tuple[Shape, ...]) -> None:
    """All variants on each shape, in fp32."""
    print(f"{'tokens/s':<48} " + " ".join(f"{name:>9}" for name in VARIANTS) + "  ours/plain  ours/kept  ours/bare")
    worst, details = float("inf"), {}
    for shape in shapes:
        with tempfile.TemporaryDirectory() as folder:
            seconds = measure(shape, Path(folder), profiled=shape is shapes[0])
        tokens = shape.sequences * shape.length
        speeds = {name: tokens / statistics.median(times) for name, times in seconds.items()}
        ratios = {name: times_as_fast(seconds[name], seconds["ours"]) for name in ("plain", "kept", "bare")}
        columns = " ".join(f"{speed:>9.0f}" for speed in speeds.values())
        print(f"{shape.name:<48} {columns} " + " ".join(f"{ratio:>10.3f}" for ratio in ratios.values()), flush=True)
        details[shape.name] = {name: round(speed, 1) for name, speed in speeds.items()}
        worst = min(worst, ratios["plain"])
    print_result("train_step", worst, "eager plain PyTorch, SDPA, fused AdamW; the worst shape", details)


def measure_gpu() -> None:
    """Our trainer alone in bf16, each shape in a process of its own, which leaves the GPU's memory to the next."""
    assert torch.cuda.is_available(), "--gpu needs a GPU"
    details = {}
    for shape in GPU_SHAPES:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            name, figures = process.submit(gpu_figures, shape).result()
        print(f"{name}: " + ", ".join(f"{key} {value:,.3f}" for key, value in figures.items()), flush=True)
        details[name] = figures
    worst = min(figures["mfu"] for figures in details.values())
    print_result("train_step_gpu", worst, "dense bf16 peak of the GPU (MFU); the worst shape", details)


def gpu_figures(shape: Shape) -> tuple[str, dict[str, float]]:
    """A shape with as many layers as fit, and its figures. MFU: causal attention at half, no recomputation."""
    groups.init_process_group()
    with tempfile.TemporaryDirectory() as folder:
        config = write_inputs(shape, Path(folder), "bf16")
        largest = 0.9 * torch.cuda.get_device_properties(0).total_memory
        while memory_per_rank(read_shape(config.model.hf), config, 1).total > largest:
            shape = replace(shape, layers=shape.layers - 1)
            config = write_inputs(shape, Path(folder), "bf16")
        flops = flops_per_token(read_shape(config.model.hf), shape.length)
        run = start(config)
        print(f"kernels: {kernels_of(run.model, run.optimizer)}", flush=True)
        step = our_step(run)
        seconds = []
        for _ in range(shape.rounds + 2):
            torch.cuda.synchronize()
            began = time.perf_counter()
            step()
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
    per_step = statistics.median(seconds[2:])
    speed = shape.sequences * shape.length / per_step
    return shape.name, {
        "tokens_per_second": speed,
        "seconds_per_step": per_step,
        "mfu": speed * flops / (peak_flops() or float("nan")),
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30,
    }


def start(config: RunConfig) -> Run:
    """A run, ready for its first step."""
    folder = RunFolder(config.run.folder)
    folder.create()
    return assemble(config, make_plan(config), folder)


def measure(shape: Shape, folder: Path, profiled: bool) -> dict[str, list[float]]:
    """Seconds of each variant's steps, one a round."""
    context = multiprocessing.get_context("spawn")
    ends: dict[str, Connection] = {}
    for name in VARIANTS:
        ends[name], other = context.Pipe()
        (folder / name).mkdir()
        context.Process(target=serve, args=(name, shape, folder / name, other), daemon=True).start()
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(shape.rounds + 2):
        for name, end in ends.items():
            end.send("step")
            seconds[name].append(end.recv())
    if profiled:
        print_profile({name: asked(ends[name], "profile") for name in ("plain", "bare", "ours")})
    for end in ends.values():
        asked(end, "end")
    return {name: times[2:] for name, times in seconds.items()}


def times_as_fast(baseline: list[float], ours: list[float]) -> float:
    """Median over rounds of how many times as fast ours is: a machine's speed drifts from round to round."""
    return statistics.median(theirs / mine for theirs, mine in zip(baseline, ours, strict=True))


def asked(end: Connection, word: str) -> Any:
    """What a variant answers."""
    end.send(word)
    return end.recv()


def serve(name: str, shape: Shape, folder: Path, end: Connection) -> None:
    """A variant's process: steps when it is told to, and says how long each took."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    groups.init_process_group()
    step = VARIANTS[name](shape, folder)
    while (word := end.recv()) != "end":
        end.send(profile_of(step) if word == "profile" else seconds_of(step))
    end.send(None)


def seconds_of(step: Callable[[], None]) -> float:
    """Wall time of a step."""
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def plain(shape: Shape, folder: Path) -> Callable[[], None]:
    """Plain PyTorch."""
    write_inputs(shape, folder, "fp32")
    return plain_step(PlainLlama(read_shape(folder / "hf"), shape.length), shape)


def kept(shape: Shape, folder: Path) -> Callable[[], None]:
    """Plain PyTorch that keeps what it frees."""
    keep_freed_memory()
    return plain(shape, folder)


def compiled(shape: Shape, folder: Path) -> Callable[[], None]:
    """Plain PyTorch under torch.compile."""
    write_inputs(shape, folder, "fp32")
    return plain_step(torch.compile(PlainLlama(read_shape(folder / "hf"), shape.length)), shape)


def bare(shape: Shape, folder: Path) -> Callable[[], None]:
    """Megatron-Core's own schedule, with our kernels."""
    keep_freed_memory()
    return bare_step(start(write_inputs(shape, folder, "fp32")), shape)


def ours(shape: Shape, folder: Path) -> Callable[[], None]:
    """Our trainer."""
    keep_freed_memory()
    run = start(write_inputs(shape, folder, "fp32"))
    print(f"kernels: {kernels_of(run.model, run.optimizer)}", flush=True)
    return our_step(run)


VARIANTS: dict[str, Callable[[Shape, Path], Callable[[], None]]] = {
    "plain": plain,
    "compiled": compiled,
    "kept": kept,
    "bare": bare,
    "ours": ours,
}


def profile_of(step: Callable[[], None], repeats: int = 4) -> dict[str, float]:
    """Milliseconds of the processor in each operation of a step."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(repeats):
            step()
    return {row.key: row.self_cpu_time_total / 1000 / repeats for row in profile.key_averages()}


def print_profile(found: dict[str, dict[str, float]]) -> None:
    """Where the processor's time of one step goes, by operation; and what all of them take."""
    keys = sorted(found["ours"], key=lambda key: -found["ours"][key])[:12]
    print(f"\n{'milliseconds of a step, under the profiler':<44} {'plain':>8} {'bare':>8} {'ours':>8}")
    for key in keys:
        print(f"  {key[:42]:<42} " + " ".join(f"{times.get(key, 0.0):>8.1f}" for times in found.values()))
    print(f"  {'all operations':<42} " + " ".join(f"{sum(times.values()):>8.1f}" for times in found.values()) + "\n")


def plain_step(model: torch.nn.Module, shape: Shape) -> Callable[[], None]:
    """A step of plain PyTorch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens, labels = random_batch(shape)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(tokens, labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def bare_step(run: Run, shape: Shape) -> Callable[[], None]:
    """A step of Megatron-Core's own schedule and optimizer around the same model, and nothing of ours."""
    tokens, labels = random_batch(shape)
    positions = torch.arange(shape.length).expand_as(tokens)
    count = torch.tensor(tokens.numel(), dtype=torch.int)

    def forward(
        batches: object, model: torch.nn.Module
    ) -> tuple[torch.Tensor, Callable[..., tuple[torch.Tensor, ...]]]:
        return model(tokens, positions, None, labels=labels), lambda nats: (nats.sum(), count.clone(), nats.detach())

    def step() -> None:
        clear_gradients(run.model, run.optimizer)
        get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=None,
            model=list(run.model),
            num_microbatches=1,
            seq_length=shape.length,
            micro_batch_size=shape.sequences,
            forward_only=False,
        )
        run.optimizer.step()

    return step


def our_step(run: Run) -> Callable[[], None]:
    """A step of the training loop, from reading the data to writing the record."""
    logger = RunLogger(run)
    done = 0

    def step() -> None:
        nonlocal done
        started = time.perf_counter()
        batches = run.data.global_batch(done * run.config.training.global_batch_size, groups.device())
        outcome = train_step(run.model, run.optimizer, batches, run.step_shape, LEARNING_RATE, 0.1)
        done += 1
        logger.log_train_step(done, LEARNING_RATE, outcome, time.perf_counter() - started)

    return step


def random_batch(shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels in memory."""
    windows = torch.randint(shape.vocabulary, (shape.sequences, shape.length + 1))
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def write_inputs(shape: Shape, folder: Path, precision: str) -> RunConfig:
    """A model folder without weights, a dataset of random tokens, and the config of a run on them."""
    hf = folder / "hf"
    hf.mkdir(exist_ok=True)
    write_json(
        hf / "config.json",
        {
            "model_type": "llama",
            "hidden_size": shape.hidden,
            "intermediate_size": shape.ffn_hidden or shape.hidden * 11 // 4,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.hidden // shape.head_dim,
            "num_key_value_heads": shape.query_groups or shape.hidden // shape.head_dim // 2,
            "vocab_size": shape.vocabulary,
            "max_position_embeddings": shape.length,
            "tie_word_embeddings": False,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
        },
    )
    words = {"<|endoftext|>": 0} | {f"w{number}": number for number in range(1, shape.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(hf / "tokenizer.json"))
    write_json(hf / "tokenizer_config.json", {"eos_token": "<|endoftext|>"})
    with IndexedWriter(
        folder / "data", np.int32 if shape.vocabulary > 65_500 else np.uint16, shape.vocabulary
    ) as writer:
        writer.add(np.random.default_rng(0).integers(1, shape.vocabulary, 100_000))
    return config_from_dict(
        {
            "run": {"folder": str(folder / "run")},
            "model": {"hf": str(hf), "weights": "random"},
            "data": {"sequence_length": shape.length, "sources": {"random": {"paths": [str(folder / "data")]}}},
            "training": {
                "tokens": "1000 steps",
                "global_batch_size": shape.sequences,
                "micro_batch_size": shape.sequences,
                "precision": precision,
            },
            "schedule": {"kind": "constant", "peak_lr": LEARNING_RATE},
        }
    )


if __name__ == "__main__":
    main()
