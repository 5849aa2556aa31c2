"""Hugging Face folders that a run writes: on its way, and at its end."""

from pathlib import Path

from megatron_cpt.checkpoint.hf_export import export_hf
from megatron_cpt.checkpoint.model_card import model_card, training_of
from megatron_cpt.model.build import gather_parameters, unwrap
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


def export(run: Run, step: int, output: Path) -> None:
    """Writes the model of a step, unless an earlier attempt has written it. Every rank calls it."""
    if not all_agree(not output.exists()):
        return
    sequences = run.config.batches.total(step)
    blend, history = run.plan.blend, run_lineage(run, step)
    training = training_of(
        step, run.config.token_batches.total(step), blend.describe(sequences), blend.source_sequences(sequences)
    )
    assert run.config.checkpoint.export_hf is not None
    gather_parameters(run.model)
    export_hf(
        unwrap(run.model),
        run.shape,
        run.hf_folder,
        output,
        run.config.checkpoint.export_hf.dtype,
        lineage=history,
        card=model_card(Path(run.config.model.hf).name, run.folder.path.name, training, history),
    )
