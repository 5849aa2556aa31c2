"""A checkpoint of another model than the run's: what it lacks is named, with what to do."""

from pathlib import Path

from megatron_cpt.checkpoint.load import load_weights
from megatron_cpt.config.errors import IntegrityFault, RankFailed
from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.families.shape import read_shape
from megatron_cpt.model.build import ModelOptions, build_model
from megatron_cpt.parallel import groups
from tests.checkpoint.hf_models import write_llama
from tests.checkpoint.weights import save_weights
from tests.ranks import Ranks


def load_another(checkpoint: Path, saved: Path, other: Path) -> str:
    """Job: saves the weights of a model, and loads them into another. What this rank is told."""
    parallel = ParallelSettings(tensor=groups.world_size())
    groups.init_model_parallel(parallel)
    options = ModelOptions(sequence_length=32, parallel=parallel)
    save_weights(checkpoint, build_model(read_shape(saved), options), saved)
    try:
        load_weights(checkpoint, build_model(read_shape(other), options))
    except (IntegrityFault, RankFailed) as error:
        return f"{type(error).__name__}: {error}"
    return "loaded"


def test_missing_keys_are_named_with_the_remedy(two_ranks: Ranks, tmp_path: Path) -> None:
    """And what is there is not: it may be thousands of names."""
    plain, biased = write_llama(tmp_path / "plain"), write_llama(tmp_path / "biased", attention_bias=True)
    checkpoint = tmp_path / "step"
    said = two_ranks.call(load_another, checkpoint=checkpoint, saved=plain, other=biased)
    names = [f"decoder.layers.self_attention.{layer}.bias" for layer in ("linear_proj", "linear_qkv")]
    remedy = "Set `model.hf` to the checkpoint's own hf/, or load its export."
    expected = f"IntegrityFault: {checkpoint}: lacks {', '.join(names)}, which this run's model has. {remedy}"
    assert said == [expected, expected]
