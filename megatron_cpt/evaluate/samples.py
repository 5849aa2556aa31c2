"""Greedy text of a run's model before and after, written by transformers from the Hugging Face folders.

The text of a folder does not depend on the layout of the run. Prompts are continued one at a time, so that no text
depends on the other prompts.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import GenerationConfig

from megatron_cpt.checkpoint.convert import reference_model, room_for_reference, transformers_tokenizer
from megatron_cpt.checkpoint.hf_dtypes import parent_dtypes
from megatron_cpt.checkpoint.hf_folder import read_history, refuse_altered
from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.config.load import load_config
from megatron_cpt.families.shape import read_shape
from megatron_cpt.parallel import groups
from megatron_cpt.runs.folder import RunFolder, read_status
from megatron_cpt.runs.samples import SampledModel, Samples, write_samples

LENGTH = 64
"""Tokens that a prompt is continued by, at most."""
PROMPTS = (
    "The capital of France is",
    "Water boils when",
    "Once upon a time, in a small village by the sea,",
    "The most important thing about learning a new language is",
    "Q: A train covers 60 km in half an hour. How fast is it?\nA:",
    "def fibonacci(n):\n",
    "The patient was admitted with fever and",
    "In this paper, we show that",
)
"""Prompts where none are given: general text, a question, code, medicine, science."""


def read_prompts(path: Path) -> tuple[str, ...]:
    """The prompts of a file, one a line; `\\n` in a line is a line end. Raises BadInput."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        rule = f"cannot be read as text ({error})."
        raise BadInput(Fault(f"--samples {path}", rule, "Name a UTF-8 file with one prompt a line.")) from error
    prompts = tuple(line.replace("\\n", "\n") for line in lines if line.strip())
    if not prompts:
        raise BadInput(Fault(f"--samples {path}", "holds no prompt.", "Write one prompt a line."))
    return prompts


def sample_runs(runs: Sequence[Path], prompts: Sequence[str]) -> None:
    """Writes samples.json of each run, a model that several runs began with asked once.

    Raises:
        BadInput: a run is not at its end or has no export, a prompt is too long, or there is no room for a model.
        IntegrityFault: a folder is not what was written.
    """
    faults: list[Fault] = []
    models = {run: _models_of(run, faults) for run in runs}
    refuse(faults)
    texts: dict[str, tuple[str, ...]] = {}
    for run, of_run in models.items():
        for model in of_run:
            if model.folder not in texts:
                texts[model.folder] = continued(Path(model.folder), prompts)
        sampled = tuple(replace(model, texts=texts[model.folder]) for model in of_run)
        write_samples(RunFolder(run).samples, Samples(LENGTH, tuple(prompts), sampled))


def _models_of(run: Path, faults: list[Fault]) -> list[SampledModel]:
    """The model that a run began with, where that was a Hugging Face folder, and its last; without their texts."""
    folder = RunFolder(run)
    status, config = read_status(folder.status), load_config(folder.config)
    if status is None or status.state != "done":
        rule = "the run is not at its end: there is no last model yet."
        faults.append(Fault(str(run), rule, "Wait for its end, or leave --samples out."))
        return []
    if not (folder.hf / "config.json").is_file():
        rule = "is not there: samples are made from the Hugging Face folder of the last step."
        remedy = "Run the same train command with checkpoint.export_hf.end=true: at its end a run exports, and no more."
        faults.append(Fault(str(folder.hf), rule, remedy))
    begins = config.model.weights == "hf" and config.init_from.checkpoint is None
    trained = int(read_history(folder.hf).get("tokens") or status.tokens)
    first = [SampledModel(str(Path(config.model.hf)), 0, 0, ())] if begins else []
    return [*first, SampledModel(str(folder.hf), status.step, trained, ())]


@torch.no_grad()
def continued(hf_folder: Path, prompts: Sequence[str], length: int = LENGTH) -> tuple[str, ...]:
    """The most likely token after each prompt, again and again, as text. No code of the folder is executed.

    Args:
        length: tokens of each text, at most: one ends where the model ends it, or at its last position.
    """
    refuse_altered(hf_folder)
    shape, tokenizer = read_shape(hf_folder), transformers_tokenizer(hf_folder)
    encoded = [tokenizer(prompt, return_tensors="pt").input_ids for prompt in prompts]
    most = shape.max_positions
    refuse(
        [
            Fault(f"prompt {prompt[:60]!r}", f"has {ids.shape[1]} tokens: 1 to {most - 1} leave room.", "Shorten it.")
            for prompt, ids in zip(prompts, encoded, strict=True)
            if not 1 <= ids.shape[1] < most
        ]
    )
    dtype = torch.bfloat16 if parent_dtypes(hf_folder).common == "bfloat16" else torch.float32
    device = room_for_reference(shape, dtype, groups.device())
    if device is None:
        rule = f"does not fit into the free memory of this machine in {dtype}."
        raise BadInput(Fault(str(hf_folder), rule, "Make the samples on a machine with more memory."))
    with reference_model(hf_folder, dtype, device) as model:
        end = tokenizer.eos_token_id
        # The folder's own settings may ask for sampling, or punish repetition.
        model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=end, pad_token_id=end if end is not None else 0
        )
        texts = []
        for ids in encoded:
            ids, room = ids.to(device), min(length, most - ids.shape[1])
            written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=room)[0, ids.shape[1] :]
            texts.append(tokenizer.decode(written, skip_special_tokens=True))
    return tuple(texts)
