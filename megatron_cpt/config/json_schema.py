"""The JSON schema of a run.yaml, for completion and checks in editors: made from schema.py, its only source.

It knows keys, types, choices and meanings. What values need of each other, and of files, only `plan` knows.
"""

import ast
import dataclasses
import inspect
import re
from functools import cache
from itertools import pairwise
from typing import Any

from pydantic import TypeAdapter

from megatron_cpt.config import schema
from megatron_cpt.config.base_history import public_bases
from megatron_cpt.config.load import section_at
from megatron_cpt.config.schema import RunConfig

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_FIRST_SENTENCE = re.compile(r".*?\.(?= |$)|.+")


def run_schema() -> dict[str, Any]:
    """The JSON schema of a run.yaml: unknown keys are refused, and each key carries its meaning."""
    made = TypeAdapter(RunConfig).json_schema(mode="validation")
    sections = {made["title"]: made} | made.get("$defs", {})
    for name, meanings in _meanings().items():
        for key, meaning in meanings.items():
            if name in sections:
                sections[name]["properties"][key]["description"] = meaning
    # A name stands for a whole section (base_history.py); pydantic's schema knows the section alone.
    made["properties"]["base_history"]["anyOf"].insert(0, {"enum": [*public_bases()]})
    return {"$schema": _DIALECT} | made


def meaning_of(key: str) -> str:
    """The first sentence of what a dotted key means; empty where no section has such a key."""
    *place, name = key.split(".")
    section = section_at(tuple(place))
    meaning = _meanings().get(section.__name__, {}).get(name, "") if section else ""
    first = _FIRST_SENTENCE.match(meaning)
    return first[0].removesuffix(".") if first else ""


@cache
def _meanings() -> dict[str, dict[str, str]]:
    """The text under each field of each section of schema.py, by names of section and field."""
    return {
        node.name: {
            item.target.id: " ".join(ast.literal_eval(text.value).split())
            for item, text in pairwise(node.body)
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and isinstance(text, ast.Expr)
        }
        for node in ast.parse(inspect.getsource(schema)).body
        if isinstance(node, ast.ClassDef) and dataclasses.is_dataclass(getattr(schema, node.name))
    }
