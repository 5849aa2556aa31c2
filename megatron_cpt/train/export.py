"""Hugging Face folders that a run writes: on its way, and at its end."""

from pathlib import Path

from megatron_cpt.checkpoint.hf_dtypes import Conversion, TensorDtypes, roundings, word_of
from megatron_cpt.checkpoint.hf_export import export_hf
from megatron_cpt.checkpoint.hf_weights import hf_sizes
from megatron_cpt.checkpoint.model_card import model_card, training_of
from megatron_cpt.families.shape import stated_dtype
from megatron_cpt.model.build import DTYPES, gather_parameters, unwrap
from megatron_cpt.parallel.collectives import all_agree
from megatron_cpt.train.assemble import Run
from megatron_cpt.train.provenance import run_lineage


def export_due(run: Run, step: int) -> bool:
    """Whether the run exports after this step, the end apart."""
    settings = run.config.checkpoint.export_hf
    if settings is None or settings.every is None:
        return False
    return step % settings.every.steps(run.config.tokens_per_step) == 0


def export_step(run: Run, step: int) -> None:
    """Writes the model as it stands after a step, before the checkpoint: a run that is cut short makes up for it."""
    export(run, step, run.folder.hf_of_step(step))


def export_end(run: Run) -> None:
    """Writes the trained model, if the config asks for it."""
    settings = run.config.checkpoint.export_hf
    if settings is not None and settings.end:
        export(run, run.plan.steps, run.folder.hf)


def dtype_notes(run: Run) -> list[str]:
    """What is rounded on the way from the parent into the model and from there into exports, a sentence each."""
    config, hf_folder, notes = run.config, Path(run.config.model.hf), []
    trained = DTYPES[config.training.precision]
    from_folder = config.model.weights == "hf" and config.start.checkpoint is None and not run.first_step
    if from_folder:
        rounded = roundings(
            Conversion(word_of(run.dtypes.of(name, trained)), word_of(trained)) for name in hf_sizes(run.shape)
        )
        if rounded:
            notes.append(f"weights: read from model.hf in the dtype of training.precision; rounded: {rounded}")
        stated = stated_dtype(hf_folder)
        if stated is not None and stated != run.dtypes.common:
            notes.append(
                f"weights: config.json of model.hf says {stated}, its tensors are {run.dtypes}; the tensors hold"
            )
    if config.checkpoint.export_hf is not None:
        dtypes = export_dtypes(run)
        written = roundings(
            Conversion(word_of(trained), word_of(dtypes.of(name, trained))) for name in hf_sizes(run.shape)
        )
        if written:
            by = "checkpoint.export_hf.dtype" if config.checkpoint.export_hf.dtype else "the parent's tensors"
            notes.append(f"exports: in the dtype of {by}; rounded from what is trained: {written}")
    return notes


def export_dtypes(run: Run) -> TensorDtypes:
    """The dtypes of an export's tensors: what is asked for, else those of the folder the model comes from."""
    settings = run.config.checkpoint.export_hf
    return TensorDtypes(settings.dtype) if settings is not None and settings.dtype else run.dtypes


def export(run: Run, step: int, output: Path) -> None:
    """Writes the model of a step, unless an earlier attempt has written it. Every rank calls it."""
    if not all_agree(not output.exists()):
        return
    sequences = run.config.batches.total(step)
    blend, history = run.plan.blend, run_lineage(run, step)
    training = training_of(
        step, run.config.token_batches.total(step), blend.describe(sequences), blend.source_sequences(sequences)
    )
    gather_parameters(run.model)
    export_hf(
        unwrap(run.model),
        run.shape,
        run.hf_folder,
        output,
        export_dtypes(run),
        lineage=history,
        card=model_card(Path(run.config.model.hf).name, run.folder.path.name, training, history),
    )
