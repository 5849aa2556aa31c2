"""config.json files for tests of families."""

from pathlib import Path
from typing import Any

import orjson

# Odd sizes: queries are grouped, heads are wider than hidden / heads, the vocabulary is odd.
SMALL: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


def write_config(folder: Path, **changes: Any) -> Path:
    """A folder whose config.json is the small Llama's with changes; None removes a field."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {name: value for name, value in (SMALL | changes).items() if value is not None}
    (folder / "config.json").write_bytes(orjson.dumps(fields))
    return folder
