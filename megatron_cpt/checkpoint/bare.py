"""Models outside of runs: to convert, compare and average them."""

from typing import Literal

from megatron.core.models.gpt.gpt_model import GPTModel

from megatron_cpt.config.rates import ScheduleSettings
from megatron_cpt.config.schema import (
    DataSettings,
    ModelSettings,
    ParallelSettings,
    RunConfig,
    RunSettings,
    TrainingSettings,
)
from megatron_cpt.config.units import Duration
from megatron_cpt.families.family import ModelShape
from megatron_cpt.model.build import build_model, build_outline
from megatron_cpt.parallel import groups

Precision = Literal["fp32", "bf16"]


def build_bare(shape: ModelShape, precision: Precision) -> list[GPTModel]:
    """The model of a shape, on the layout that this process is in, its weights not yet set."""
    return build_model(shape, bare_config(shape, precision))


def outline(shape: ModelShape) -> GPTModel:
    """The whole model of a shape without its weights."""
    assert groups.tensor_size() == groups.pipeline_size() == 1, "the outline is of the whole model"
    return build_outline(shape, bare_config(shape, "fp32"))


def bare_config(shape: ModelShape, precision: Precision) -> RunConfig:
    """What a model is built with where nothing is trained."""
    return RunConfig(
        run=RunSettings(folder="unused"),
        model=ModelSettings(hf="unused"),
        data=DataSettings(sequence_length=shape.max_positions, sources={}),
        training=TrainingSettings(tokens=Duration(1, "steps"), global_batch_size=1, precision=precision),
        schedule=ScheduleSettings(kind="constant", peak=1.0),
        parallel=ParallelSettings(tensor=groups.tensor_size(), pipeline=groups.pipeline_size()),
    )
