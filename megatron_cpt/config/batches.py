"""The global batches of a run: how many sequences each step takes, and which steps take how many in all.

Both directions in closed form, in whole numbers. Nothing else in the package multiplies steps by a batch size, so that
a run whose batches grow at its beginning has one count of sequences, tokens and steps.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Stair:
    """Steps at the beginning of a run that are smaller than the later ones."""

    steps: int
    """How many."""
    size: int
    """Of each, in the unit of the batches."""


Ramp = tuple[Stair, ...]


@dataclass(frozen=True)
class Batches:
    """The sizes of all steps, in sequences, or all in tokens."""

    size: int
    """Of a step after the ramp; at the end of the run."""
    ramp: Ramp = ()
    """The stairs before."""

    def total(self, steps: int) -> int:
        """What the first `steps` steps take together."""
        taken = 0
        for stair in self.ramp:
            if steps <= stair.steps:
                return taken + steps * stair.size
            taken += stair.steps * stair.size
            steps -= stair.steps
        return taken + steps * self.size

    def of_step(self, step: int) -> int:
        """The size of a step, counted from 1."""
        return self.total(step) - self.total(step - 1)

    def whole_steps(self, amount: int) -> int:
        """Steps that an amount is enough for."""
        steps = 0
        for stair in self.ramp:
            if amount < stair.steps * stair.size:
                return steps + amount // stair.size
            amount -= stair.steps * stair.size
            steps += stair.steps
        return steps + amount // self.size

    def nearest_step(self, amount: int) -> int:
        """The step whose end is nearest to an amount, the later of two that are as near; 0: the beginning."""
        before = self.whole_steps(amount)
        size = self.of_step(before + 1)
        return before + (amount - self.total(before) + size // 2) // size

    def next_end(self, amount: int) -> int:
        """What has been taken at the end of the step in which an amount of at least 1 is reached."""
        return self.total(self.whole_steps(amount - 1) + 1)

    def last_end(self, amount: int) -> int:
        """What the steps take that an amount is enough for."""
        return self.total(self.whole_steps(amount))

    def after(self, steps: int) -> "Batches":
        """The batches that are left after the first `steps`."""
        left = []
        for stair in self.ramp:
            if stair.steps > steps:
                left.append(replace(stair, steps=stair.steps - steps))
            steps = max(0, steps - stair.steps)
        return Batches(self.size, tuple(left))

    def times(self, factor: int) -> "Batches":
        """The batches in a unit of which each present one is `factor`: of sequences in tokens."""
        stairs = tuple(replace(stair, size=stair.size * factor) for stair in self.ramp)
        return Batches(self.size * factor, stairs)


def ramp_up(start: int, increment: int, tokens: int, size: int, sequence_length: int) -> Ramp:
    """The stairs from `start` by `increment` to below `size` sequences, evenly over `tokens`.

    A step has the size that is due at the sequences consumed before it, so a stair ends with the step that passes its
    bound: the batch sizes of Megatron-LM's `--rampup-batch-size START INCREMENT SAMPLES`. A stair that the step before
    it has passed whole is left out.
    """
    sizes = range(start, size, increment)
    stairs, taken = [], 0
    for number, stair_size in enumerate(sizes, start=1):
        bound = -(-number * tokens // (len(sizes) * sequence_length))
        steps = max(0, -(-(bound - taken) // stair_size))
        taken += steps * stair_size
        if steps:
            stairs.append(Stair(steps, stair_size))
    return tuple(stairs)
