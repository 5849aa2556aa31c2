"""The products of linear layers in fp32 on this processor: torch's (MKL on x86) against oneDNN's.

    python benchmarks/linear.py

The layers are those of train_step.py's shapes. Both sides take turns on the same matrices, round after round; speeds
are medians over rounds. Our trainer takes oneDNN's for outputs and for gradients of inputs, torch's for gradients of
weights. The result: how many times as fast the former two are together, the median of the layers.
"""

import os
import statistics
import time
from collections.abc import Callable

import torch
from machine import machine, print_result
from torch import Tensor
from train_step import ALL_SHAPES, Shape

from megatron_cpt.model.cpu_kernels import product
from megatron_cpt.parallel.groups import keep_freed_memory

ROUNDS, WARM_UP = 25, 5

Product = Callable[[], Tensor]


def main() -> None:
    """Measures the layers and prints the table and the result."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    keep_freed_memory()
    print(machine())
    print(f"{'GFLOP/s, torch / oneDNN':<24} {'outputs':>13} {'of inputs':>13} {'of weights':>13}  two together")
    ratios = {}
    for layer in sorted({layer for shape in ALL_SHAPES for layer in linear_layers(shape)}):
        tokens, width, outputs = layer
        name = f"{tokens} x {width} x {outputs}"
        seconds = measure(*layer)
        work = 2e-9 * tokens * width * outputs
        columns = (f"{work / theirs:.0f} / {work / ours:.0f}" for theirs, ours in seconds)
        (theirs, ours), (theirs_back, ours_back), _ = seconds
        ratios[name] = round((theirs + theirs_back) / (ours + ours_back), 3)
        print(f"{name:<24} " + " ".join(f"{column:>13}" for column in columns) + f"  {ratios[name]:>12.3f}", flush=True)
    print_result("linear", statistics.median(ratios.values()), "torch.matmul; the median of the layers", ratios)


def linear_layers(shape: Shape) -> list[tuple[int, int, int]]:
    """Tokens, inputs and outputs of its linear layers: queries, keys and values; back; the MLP's two; logits."""
    tokens, hidden, ffn = shape.sequences * shape.length, shape.hidden, shape.hidden * 11 // 4
    pairs = [(hidden, 2 * hidden), (hidden, hidden), (hidden, 2 * ffn), (ffn, hidden), (hidden, shape.vocabulary)]
    return [(tokens, *pair) for pair in pairs]


def measure(tokens: int, width: int, outputs: int) -> list[tuple[float, float]]:
    """Seconds of torch's and of oneDNN's product: for outputs, gradients of inputs, gradients of weights."""
    states, weight, gradient = torch.randn(tokens, width), torch.randn(outputs, width), torch.randn(tokens, outputs)
    pairs: list[tuple[Product, Product]] = [
        (lambda: states @ weight.t(), lambda: product(states, weight)),
        (lambda: gradient @ weight, lambda: product(gradient, weight.t())),
        (lambda: gradient.t() @ states, lambda: product(gradient.t(), states.t())),
    ]
    taken: list[tuple[list[float], list[float]]] = [([], []) for _ in pairs]
    for _ in range(ROUNDS):
        for sides, times in zip(pairs, taken, strict=True):
            for side, found in zip(sides, times, strict=True):
                began = time.perf_counter()
                side()
                found.append(time.perf_counter() - began)
    return [(statistics.median(theirs[WARM_UP:]), statistics.median(ours[WARM_UP:])) for theirs, ours in taken]


if __name__ == "__main__":
    main()
