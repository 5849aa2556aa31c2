"""What is seen of models whose layers are Transformer Engine's, in a process with its stub (engine_stub.py): as JSON.

Called with the folders of some models; writes checkpoints and conversions beside them.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from tests.model import engine_stub


def _as_on_a_gpu() -> None:
    """Has the stub's modules build on the CPU, as Megatron-Core's do, and believe that it is a GPU."""
    import torch  # noqa: PLC0415

    from megatron_cpt.parallel import cpu_platform  # noqa: PLC0415

    class Properties:
        major, minor, multi_processor_count, total_memory, name = 9, 0, 132, 80 << 30, "NVIDIA H100 80GB HBM3"

    platform = cpu_platform._cpu_torch(torch)
    platform.cuda.is_available = lambda: True
    platform.cuda.get_device_capability = lambda *given: (9, 0)
    platform.cuda.get_device_properties = lambda *given: Properties()
    for name, module in list(sys.modules.items()):
        if name.startswith("transformer_engine.") and vars(module).get("torch") is torch:
            module.torch = platform  # type: ignore[attr-defined]


def describe(folder: Path) -> dict[str, Any]:
    """Names, keys, marks, checkpoints and the outline of one model."""
    from megatron.core.dist_checkpointing.mapping import ShardedObject  # noqa: PLC0415

    from megatron_cpt.checkpoint.dcp import stored_places  # noqa: PLC0415
    from megatron_cpt.checkpoint.hf_export import export_hf  # noqa: PLC0415
    from megatron_cpt.checkpoint.hf_weights import load_hf_weights, weights_of  # noqa: PLC0415
    from megatron_cpt.checkpoint.load import load_weights, model_state  # noqa: PLC0415
    from megatron_cpt.families.shape import name_table, read_shape  # noqa: PLC0415
    from megatron_cpt.model.build import ModelOptions, build_model  # noqa: PLC0415
    from megatron_cpt.parallel.groups import seed_everything  # noqa: PLC0415
    from tests.checkpoint.weights import save_weights  # noqa: PLC0415

    shape = read_shape(folder)
    options = ModelOptions(sequence_length=32, transformer_engine=False)
    models = {}
    for name, by_engine in (("local", False), ("engine", True)):
        seed_everything(1)
        (models[name],) = build_model(shape, replace(options, transformer_engine=by_engine))
    table, engine = name_table(shape), models["engine"]
    keys: dict[str, list[str]] = {}
    for name, model in models.items():
        entries = [part for entry in model_state([model])["model"].values() for part in _parts(entry)]
        keys[name] = sorted({part.key for part in entries if not isinstance(part, ShardedObject)})
    loads = {}
    for before, after in (("local", "engine"), ("engine", "local"), ("engine", "engine")):
        checkpoint = folder / f"{before}-{after}"
        save_weights(checkpoint, [models[before]], folder)
        (fresh,) = build_model(shape, replace(options, transformer_engine=after == "engine"))
        load_weights(checkpoint, [fresh])
        loads[f"{before} to {after}"] = _equal(fresh, models[before], shape)
    export_hf([engine], shape, folder, folder / "hf")
    (fresh,) = build_model(shape, replace(options, transformer_engine=False))
    load_hf_weights([fresh], shape, folder / "hf")
    loads["engine to Hugging Face to local"] = _equal(fresh, engine, shape)
    layer = engine.decoder.layers[0]
    return {
        "modules": sorted({type(module).__name__ for module in layer.modules()}),
        "unnamed": [name for name, _ in engine.named_parameters() if name not in table],
        "keys": keys,
        "loads": loads,
        "outline": len(stored_places(shape)[0]),
        "parameters": len(list(weights_of([models["local"]], shape))),
        "undivided": sorted(
            name
            for name, parameter in layer.named_parameters()
            if parameter.dim() > 1 and not getattr(parameter, "tensor_model_parallel", False)
        ),
        "grouped": engine.config.moe_grouped_gemm,
        "rope_fusion": engine.config.apply_rope_fusion,
    }


def _equal(model: Any, other: Any, shape: Any) -> bool:
    """Whether two models have the same weights."""
    pairs = zip(_weights(model, shape), _weights(other, shape), strict=True)
    return all(bool((weight == expected).all()) for (_, weight), (_, expected) in pairs)


def _parts(entry: Any) -> list[Any]:
    built = entry.build() if hasattr(entry, "build") else entry
    parts = built.values() if isinstance(built, dict) else built if isinstance(built, list) else [built]
    return list(parts)


def _weights(model: Any, shape: Any) -> list[tuple[Any, Any]]:
    """Weights by rule and place, in that order: both specs have names of their own for some."""
    from megatron_cpt.families.shape import name_table  # noqa: PLC0415

    table = name_table(shape)
    found = [(table[name], parameter) for name, parameter in model.named_parameters()]
    return sorted(((str(key), parameter) for key, parameter in found), key=lambda one: one[0])


def main(folders: list[str]) -> None:
    """Prints what is seen of each model, by the name of its folder."""
    engine_stub.install()
    _as_on_a_gpu()
    from megatron_cpt.config.schema import ParallelSettings  # noqa: PLC0415
    from megatron_cpt.parallel import groups  # noqa: PLC0415

    groups.init_process_group()
    groups.init_model_parallel(ParallelSettings())
    found: dict[str, Any] = {}
    for folder in map(Path, folders):
        try:
            found[folder.name] = describe(folder)
        except Exception as error:  # one family's is the test's to show
            import traceback  # noqa: PLC0415

            found[folder.name] = {"error": "".join(traceback.format_exception(error))}
    groups.destroy()
    sys.stdout.buffer.write(orjson.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
