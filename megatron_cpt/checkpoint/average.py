"""One model out of several: a weighted mean of their weights (arXiv:2203.05482, model soups).

Of checkpoints of one run it stands for a decay that was not trained (arXiv:2306.03241); of a run's last checkpoint
and its base, a way back towards what the base knew (arXiv:2109.01903).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from megatron.core.models.gpt.gpt_model import GPTModel

from megatron_cpt.checkpoint.hf_convert import load_model
from megatron_cpt.checkpoint.hf_dtypes import parent_dtypes
from megatron_cpt.checkpoint.integrity import is_complete
from megatron_cpt.checkpoint.writer import save_weights
from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.families.shape import read_shape
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.collectives import first_on_rank_zero


def average(sources: Sequence[Path], shares: Sequence[float], output: Path) -> str:
    """Writes the mean as a checkpoint of weights alone, to be evaluated, exported or started from. Every rank calls it.

    Sums are taken in fp32, one model beside the sum in memory; the shares need not be scaled to 1.

    Args:
        sources: checkpoints or Hugging Face folders of one model.
        shares: one for each, not negative.
    Returns:
        The dtype that the mean is stored in: bfloat16 where all tensors of the first source are in it, else float32.
    Raises:
        BadInput: the sources are not of one model, the shares make no mean, or there is something at `output`.
        IntegrityFault: a source is not what was written.
    """
    folders = [source / "hf" if is_complete(source) else source for source in sources]
    with first_on_rank_zero():
        if groups.rank() == 0 and output.exists():
            raise BadInput(Fault(str(output), "there is something here already.", "Name another folder."))
    if len(shares) != len(sources) or min(shares, default=0) < 0 or not sum(shares) > 0:
        rule = f"is no list of {len(sources)} shares, not negative and not all 0."
        raise BadInput(Fault(f"shares {list(shares)}", rule, "Give one for each source."))
    shape = read_shape(folders[0])
    for folder in folders[1:]:
        if read_shape(folder) != shape:
            raise BadInput(
                Fault(str(folder), f"is of another model than {folders[0]}.", "Average models of one shape.")
            )
    mean = load_model(sources[0], shape, "fp32")
    with torch.no_grad():
        for parameter in parameters(mean):
            parameter.mul_(shares[0] / sum(shares))
        for source, share in zip(sources[1:], shares[1:], strict=True):
            other = load_model(source, shape, "fp32")
            for parameter, addend in zip(parameters(mean), parameters(other), strict=True):
                parameter.add_(addend, alpha=share / sum(shares))
    narrow = parent_dtypes(folders[0]).are_all("bfloat16")
    if narrow:
        for chunk in mean:
            chunk.bfloat16()
    save_weights(output, mean, folders[0])
    return "bfloat16" if narrow else "float32"


def parameters(model: Sequence[GPTModel]) -> Iterator[torch.nn.Parameter]:
    """The parameters of all chunks, in one order."""
    return (parameter for chunk in model for parameter in chunk.parameters())
