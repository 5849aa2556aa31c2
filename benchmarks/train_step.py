"""Training speed on this machine: our trainer against plain PyTorch and against a bare Megatron-Core loop.

    python benchmarks/train_step.py

In one process, with the same threads, the three take turns on each shape, round after round; a speed is the
median over rounds. Ours is the whole trainer: data read from disk, source losses, records, TensorBoard.
Plain is a Llama in plain PyTorch with scaled_dot_product_attention and fused AdamW, on a batch in memory.
Bare is Megatron-Core's model, schedule and optimizer with our kernels, on a batch in memory.
The ratio is ours over plain, the worst of the shapes.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from machine import machine, print_result
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from plain_llama import PlainLlama
from tokenizers import Tokenizer, models, pre_tokenizers

from megatron_cpt.config.load import config_from_dict
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.corpus.indexed import IndexedWriter
from megatron_cpt.families.shape import read_shape
from megatron_cpt.parallel import groups
from megatron_cpt.planning.plan import make_plan
from megatron_cpt.runs.durable import write_json
from megatron_cpt.runs.folder import RunFolder
from megatron_cpt.train.assemble import Run, assemble
from megatron_cpt.train.journal import Journal
from megatron_cpt.train.step import train_step

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
    """Steps that are timed, after one that is not."""

    @property
    def name(self) -> str:
        return f"{self.layers}x{self.hidden}, vocabulary {self.vocabulary}, {self.sequences} x {self.length} tokens"


SHAPES = (
    Shape(4, 128, 4096, 512, 4, 12),
    Shape(6, 256, 4096, 1024, 2, 8),
    Shape(8, 512, 32768, 1024, 1, 4),
)


def main() -> None:
    """Measures all shapes and prints the table and the result."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    groups.join_world()
    print(machine())
    print(f"{'shape':<48} {'plain':>9} {'bare':>9} {'ours':>9}  tokens/s   ours/plain  ours/bare")
    worst, details = float("inf"), {}
    for shape in SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            speeds = measure(shape, Path(folder))
        over_plain, over_bare = speeds["ours"] / speeds["plain"], speeds["ours"] / speeds["bare"]
        columns = " ".join(f"{speeds[name]:>9.0f}" for name in ("plain", "bare", "ours"))
        print(f"{shape.name:<48} {columns} {over_plain:>20.3f} {over_bare:>10.3f}", flush=True)
        details[shape.name] = {name: round(speed, 1) for name, speed in speeds.items()}
        worst = min(worst, over_plain)
    print_result("train_step", worst, "eager plain PyTorch, SDPA, fused AdamW; the worst shape", details)


def measure(shape: Shape, folder: Path) -> dict[str, float]:
    """Tokens per second of each variant: median over interleaved rounds."""
    config = write_inputs(shape, folder)
    run_folder = RunFolder(config.run.folder)
    run_folder.create()
    run = assemble(config, make_plan(config), run_folder)
    steps = {"plain": plain_step(shape, folder), "bare": bare_step(run, shape), "ours": our_step(run)}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(shape.rounds + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    tokens = shape.sequences * shape.length
    return {name: tokens / statistics.median(times[1:]) for name, times in seconds.items()}


def plain_step(shape: Shape, folder: Path) -> Callable[[], None]:
    """A step of plain PyTorch."""
    model = PlainLlama(read_shape(folder / "hf"), shape.length)
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
        run.model.zero_grad_buffer()
        run.optimizer.zero_grad()
        get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=None,
            model=run.model,
            num_microbatches=1,
            seq_length=shape.length,
            micro_batch_size=shape.sequences,
            forward_only=False,
        )
        run.optimizer.step()

    return step


def our_step(run: Run) -> Callable[[], None]:
    """A step of the training loop, from reading the data to writing the record."""
    journal = Journal(run)
    done = 0

    def step() -> None:
        nonlocal done
        started = time.perf_counter()
        batches = run.data.global_batch(done * run.config.training.global_batch_size, groups.device())
        outcome = train_step(run.model, run.optimizer, batches, run.step_shape, LEARNING_RATE, 0.1)
        done += 1
        journal.trained(done, LEARNING_RATE, outcome, time.perf_counter() - started)

    return step


def random_batch(shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels in memory."""
    windows = torch.randint(shape.vocabulary, (shape.sequences, shape.length + 1))
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def write_inputs(shape: Shape, folder: Path) -> RunConfig:
    """A model folder without weights, a dataset of random tokens, and the config of a run on them."""
    hf = folder / "hf"
    hf.mkdir()
    write_json(
        hf / "config.json",
        {
            "model_type": "llama",
            "hidden_size": shape.hidden,
            "intermediate_size": shape.hidden * 11 // 4,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.hidden // 32,
            "num_key_value_heads": shape.hidden // 64,
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
    with IndexedWriter(folder / "data", np.uint16, shape.vocabulary) as writer:
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
                "precision": "fp32",
            },
            "schedule": {"kind": "constant", "peak": LEARNING_RATE},
        }
    )


if __name__ == "__main__":
    main()
