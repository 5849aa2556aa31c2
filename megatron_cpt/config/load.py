"""From a YAML file and `section.key=value` arguments to a RunConfig, and back to YAML.

1. PyYAML's safe loader reads the file. A key given twice is refused.
2. Each argument sets one value. The value is YAML too, so lists, null and sections work.
3. pydantic checks every value by the types of schema.py. All faults are reported at once, each with the dotted key,
   the rule and the remedy.

What only several values together can get wrong is found by checks.py.
"""

import dataclasses
import difflib
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.config.units import Duration

# (section, key of version 0.1, its name since): sections as fnmatch patterns, `` for the top level.
_RENAMED = (
    ("", "start", "init_from"),
    ("schedule", "peak", "peak_lr"),
    ("schedule", "final", "final_lr"),
    ("schedule", "initial", "initial_lr"),
    ("schedule", "plateau", "plateau_lr"),
    ("schedule", "stairs", "pieces"),
    ("schedule.pieces.*", "rate", "lr"),
    ("optimizer", "clip_gradient", "clip_grad"),
    ("optimizer", "undecayed", "no_weight_decay"),
    ("optimizer", "rates", "lr_multipliers"),
    ("optimizer.lr_multipliers.layers.*", "rate", "multiplier"),
    ("optimizer", "fill_moments", "moment_warmup_steps"),
    ("training", "batch_ramp", "batch_size_rampup"),
    ("training", "on_bad_step", "on_nonfinite"),
    ("training", "spike_deviations", "spike_sigmas"),
    ("run", "log_every", "log_interval"),
    ("run", "wandb", "wandb_project"),
    ("checkpoint", "every", "save_interval"),
    ("checkpoint", "asynchronous", "async_save"),
    ("validation", "marks", "eval_interval"),
    ("validation.sets.*", "marks", "eval_interval"),
    ("validation", "stability_gradient", "gradient_conflict"),
    ("tasks", "marks", "eval_interval"),
    ("tasks.*", "marks", "eval_interval"),
    ("*.eval_interval", "log", "log_spaced"),
    ("data", "labels", "loss_mask"),
    ("data.loss_mask", "unscored_tokens", "ignored_token_ids"),
    ("data.sources.*", "unscored_lead", "loss_mask_column"),
    ("validation.sets.*", "unscored_lead", "loss_mask_column"),
    ("data.sources.*", "prompt_length_column", "loss_mask_column"),
    ("validation.sets.*", "prompt_length_column", "loss_mask_column"),
    ("data.sources.*", "draw", "sample_per_epoch"),
    ("init_from", "optimizer", "load_optimizer"),
    ("init_from", "schedule", "load_schedule"),
    ("init_from", "data", "load_data_position"),
    ("parallel", "overlap_gradient_reduce", "overlap_grad_reduce"),
    ("parallel", "overlap_parameter_gather", "overlap_param_gather"),
    ("model", "start_check", "initial_loss_check"),
    ("model.initial_loss_check", "recorded", "reference_file"),
    ("model.rope", "positions", "max_position_embeddings"),
    ("model.rope", "base", "rope_theta"),
    ("model.rope", "further", "extra"),
    ("tasks", "sets", "files"),
    ("tasks", "harness", "lm_eval"),
    ("tasks.*", "shots", "num_fewshot"),
    ("tasks.files.*", "examples", "fewshot_file"),
)

# (section, key, value of version 0.1, what says it since).
_RENAMED_VALUES = (
    ("validation.sets.*", "role", "replay", "general"),
    ("tasks.*", "role", "replay", "general"),
    ("schedule", "kind", "stairs", "piecewise"),
    ("training", "on_spike", "go_on", "ignore"),
    ("model.rope", "scaling", "kept", "keep"),
)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of a run. Words of the command line win over the file.

    Args:
        path: a YAML file.
        overrides: words such as `schedule.peak_lr=1e-4` or `data.sources.general.weight=2`.
    Raises:
        BadInput: with every fault of the file and the words.
    """
    settings = read_yaml(Path(path))
    faults = [fault for word in overrides for fault in _override(settings, word)]
    return _validate(settings, faults)


def config_from_dict(settings: Mapping[str, Any]) -> RunConfig:
    """The configuration that a mapping of sections describes. Raises BadInput with every fault."""
    return _validate(settings, [])


def dump_config(config: RunConfig) -> str:
    """YAML from which `load_config` reads an equal configuration, every default spelled out."""
    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True, width=110)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping of sections in a YAML file.

    Raises:
        BadInput: no such file, not text, not YAML, not a mapping, or a key given twice.
    """
    try:
        settings = parse_yaml(_text_of(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        fault = Fault(str(path), f"the configuration cannot be read: {reason}.", "Give the path of a YAML file.")
        raise BadInput(fault) from error
    except yaml.YAMLError as error:
        raise BadInput(Fault(str(path), f"{yaml_reason(error)}.", "Mend that line.")) from error
    if not isinstance(settings, dict):
        found = "empty" if settings is None else f"a {type(settings).__name__}"
        rule = f"a configuration is a YAML mapping of sections; this one is {found}."
        raise BadInput(Fault(str(path), rule, "Begin with sections such as `run:`, `model:` and `data:`."))
    return settings


_MOST_BYTES, _MOST_VALUES, _MOST_LEVELS = 16 << 20, 100_000, 50
"""Of a configuration: a thousand sources are a tenth of it."""


def _text_of(path: Path) -> str:
    """The content of a file that can be one. Raises OSError for a pipe or a device, for which a reader may wait."""
    state = path.stat()
    if not S_ISREG(state.st_mode):
        raise OSError(f"it is no file but a {'folder' if S_ISDIR(state.st_mode) else 'pipe or a device'}")
    if state.st_size > _MOST_BYTES:
        raise OSError(f"it has {state.st_size:,} bytes, more than the {_MOST_BYTES:,} that a configuration may have")
    return path.read_text(encoding="utf-8")


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML's safe loader with limits, and without what it does in silence.

    It alone would keep the last of two equal keys, and take half a character. A few hundred bytes may stand for
    billions of values (aliases of aliases), or nest deeper than Python can follow.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = 0
        self._values: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """A value and all in it. Raises yaml.YAMLError where it nests too deep, contains itself or holds too many."""
        mark = self.peek_event().start_mark
        if self._level == _MOST_LEVELS:
            problem = f"values are nested deeper than {_MOST_LEVELS} levels"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        self._level += 1
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        self._level -= 1
        if node is None:
            return None
        if not is_alias:
            self._values[id(node)] = 1 + sum(self._values[id(child)] for child in _children(node))
        elif id(node) not in self._values:
            raise yaml.MarkedYAMLError(problem="the alias stands inside of what it names", problem_mark=mark)
        if self._values[id(node)] > _MOST_VALUES:
            problem = f"it holds more than {_MOST_VALUES:,} values, where aliases are followed"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        return node

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> str:
        value: str = super().construct_scalar(node)
        try:
            value.encode()
        except UnicodeEncodeError as error:
            problem = f"the text holds half a character ({value[error.start]!a}), which no file can hold"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"the key `{key.value}` is given twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _children(node: yaml.Node) -> list[yaml.Node]:
    """The values, and keys, right inside a value."""
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def parse_yaml(text: str) -> Any:
    """The value of a YAML text. Raises yaml.YAMLError, also for a key given twice."""
    loader = _UniqueKeyLoader(text)
    try:
        return loader.get_single_data()
    except ValueError as error:
        # PyYAML takes `2024-13-01` for a date before it finds that it is none.
        raise yaml.YAMLError(str(error)) from error
    finally:
        loader.dispose()


def yaml_reason(error: yaml.YAMLError) -> str:
    """A YAML error in one line, with its place where it has one."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())


def _override(settings: dict[str, Any], word: str) -> list[Fault]:
    """Sets one `section.key=value` in `settings`; returns what is wrong with the word.

    Sections on the way are made where they are missing, and copied where they are there: YAML aliases
    (`*name`) make one section stand in two places.
    """
    name, equals, text = word.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        rule = "a setting on the command line is `section.key=value`."
        return [Fault(word, rule, "Write it as, for example, `schedule.peak_lr=1e-4`.")]
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        return [
            Fault(
                word,
                f"the value cannot be read: {yaml_reason(error)}.",
                "Put quotes around a text with special characters.",
            )
        ]
    section = settings
    for depth, key in enumerate(keys[:-1], start=1):
        inner = {} if section.get(key) is None else section[key]
        if not isinstance(inner, dict):
            whole = ".".join(keys[:depth])
            # The one section that a name stands for (base_history.py).
            named = f"{{name: {inner}, {'.'.join(keys[depth:])}: {text}}}" if whole == "base_history" else "..."
            return [Fault(word, f"`{whole}` is a value, not a section.", f"Set it as a whole: `{whole}={named}`.")]
        section[key] = dict(inner)
        section = section[key]
    section[keys[-1]] = value
    return []


def _validate(settings: Mapping[str, Any], faults: list[Fault]) -> RunConfig:
    try:
        config = _adapter().validate_python(settings)
    except ValidationError as error:
        raise BadInput(*faults, *faults_of(error)) from error
    refuse(faults)
    return config


@cache
def _adapter() -> TypeAdapter[RunConfig]:
    """Made at first use: building it takes longer than reading a configuration."""
    return TypeAdapter(RunConfig)


def plain(value: Any, tokens_per_step: int | None = None) -> Any:
    """Sections as mappings and durations as users type them, or all of them in tokens.

    Args:
        tokens_per_step: of the steps that durations are given in; None: these stay as they are.
    """
    match value:
        case Duration(unit="tokens"):
            return value.amount
        case Duration():
            return str(value) if tokens_per_step is None else value.tokens(tokens_per_step)
        case dict():
            return {name: plain(item, tokens_per_step) for name, item in value.items()}
        case list() | tuple():
            return [plain(item, tokens_per_step) for item in value]
        case _ if dataclasses.is_dataclass(value):
            names = [field.name for field in dataclasses.fields(value)]
            return {name: plain(getattr(value, name), tokens_per_step) for name in names}
        case _:
            return value


Place = tuple[int | str, ...]


def faults_of(error: ValidationError) -> list[Fault]:
    """One fault for each wrong value, in the order of the configuration."""
    return [_fault(details) for details in error.errors()]


def _fault(details: ErrorDetails) -> Fault:
    place, found = details["loc"], details["input"]
    context = details.get("ctx", {})
    name = ".".join(map(str, place))
    shown = f"{name} = {_short(found)}"
    match details["type"]:
        case "missing":
            section = section_at(place)
            remedy = f"Add the section. {_section_remedy(place)}" if section else f"Add `{name}` to the file."
            return Fault(name, "is required and was not given.", remedy)
        case "unexpected_keyword_argument":
            return Fault(name, "is not a setting.", _nearest(place))
        case _ if place[-1:] == ("[key]",):
            key = ".".join(map(str, place[:-2]))
            return Fault(f"{key}: {found!r}", "a name is a text.", f'Put quotes around it: "{found}".')
        case "dataclass_type" | "dict_type" | "mapping_type":
            return Fault(shown, "should be a section with keys of its own.", _section_remedy(place))
        case "list_type":
            return Fault(shown, "should be a list.", f"Write `{place[-1]}: [{_short(found)}]`.")
        case "string_type":
            one = not isinstance(found, dict | list | None)
            return Fault(shown, "should be a text.", "Put quotes around it." if one else "Write one text.")
        case "bool_type" | "bool_parsing":
            return Fault(shown, "should be true or false.", "Write one of the two.")
        case "literal_error" if new := _renamed_value(place, found):
            return Fault(shown, f"it is called `{new}` since version 0.2.", f"Write `{place[-1]}: {new}`.")
        case "literal_error":
            return Fault(shown, f"should be one of {context['expected'].replace(' or ', ', ')}.", "Write one of them.")
        case "greater_than" | "greater_than_equal" | "less_than_equal" if found != found:
            return Fault(shown, "should be a finite number.", "Write a number such as 0.1 or 1e-4.")
        case "greater_than":
            return Fault(shown, f"should be greater than {context['gt']:g}.", "Raise it.")
        case "greater_than_equal":
            return Fault(shown, f"should be at least {context['ge']:g}.", "Raise it.")
        case "less_than_equal":
            return Fault(shown, f"should be at most {context['le']:g}.", "Lower it.")
        case "finite_number":
            return Fault(shown, "should be a finite number.", "Write a number such as 0.1 or 1e-4.")
        case "value_error":
            # The validators of units.py say `rule; remedy`.
            rule, _, remedy = str(context["error"]).partition("; ")
            return Fault(shown, f"{rule}.", f"{remedy[:1].upper()}{remedy[1:]}.")
        case _:
            return Fault(shown, f"{details['msg'].removeprefix('Input ')}.", "Change it.")


def _short(value: Any) -> str:
    """A value as the user wrote it, near enough, and cut where it is long."""
    match value:
        case None:
            text = "(nothing)"
        case bool():
            text = str(value).lower()
        case str() | int() | float():
            text = str(value)
        case _:
            text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _section_remedy(place: Place) -> str:
    section = section_at(place)
    keys = [field.name for field in dataclasses.fields(section)] if section else []
    return f"Its keys: {', '.join(keys)}." if keys else "Write `name: value` lines under it, or take it out."


def _nearest(place: Place) -> str:
    """What a key that is not known was likely meant to be."""
    parent, key = place[:-1], str(place[-1])
    section = section_at(parent)
    if new := _renamed_key(parent, key):
        keys = f" {_section_remedy((*parent, new))}" if section_at((*parent, new)) else ""
        return f"It is called `{'.'.join(map(str, (*parent, new)))}` since version 0.2.{keys}"
    siblings = [field.name for field in dataclasses.fields(section)] if section else []
    if close := difflib.get_close_matches(key, siblings, n=1):
        return f"The nearest is `{'.'.join(map(str, (*parent, close[0])))}`."
    everywhere = dict(_keys(RunConfig, ()))
    if close := difflib.get_close_matches(key, everywhere, n=1, cutoff=0.8):
        return f"The nearest is `{everywhere[close[0]]}`."
    return f"Known here: {', '.join(siblings)}."


def _renamed_key(section: Place, key: str) -> str | None:
    """The present name of a key of version 0.1; None for any other key."""
    dotted = ".".join(map(str, section))
    return next((new for pattern, old, new in _RENAMED if old == key and fnmatchcase(dotted, pattern)), None)


def _renamed_value(place: Place, value: Any) -> str | None:
    """The present name of a value of version 0.1; None for any other value."""
    dotted, key = ".".join(map(str, place[:-1])), place[-1]
    renamed = (
        new
        for pattern, name, old, new in _RENAMED_VALUES
        if (name, old) == (key, value) and fnmatchcase(dotted, pattern)
    )
    return next(renamed, None)


def section_at(place: Place) -> Any:
    """The section of schema.py at a place; None where there is none."""
    kind: Any = RunConfig
    for key in place:
        if get_origin(kind) in (dict, list):
            kind = _bare(get_args(kind)[-1])
        elif dataclasses.is_dataclass(kind) and isinstance(key, str):
            kind = _bare(get_type_hints(kind).get(key))
        else:
            return None
    return kind if _is_section(kind) else None


def _keys(section: Any, path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Every key below a section with its dotted name; where a key occurs twice the outermost comes last."""
    hints = {name: _bare(hint) for name, hint in get_type_hints(section).items() if not name.startswith("__")}
    for name, hint in hints.items():
        if get_origin(hint) is dict and _is_section(get_args(hint)[1]):
            yield from _keys(get_args(hint)[1], (*path, name, "NAME"))
        elif _is_section(hint):
            yield from _keys(hint, (*path, name))
    yield from ((name, ".".join((*path, name))) for name in hints)


def _bare(hint: Any) -> Any:
    """A type without `Annotated` and without `| None`."""
    if get_origin(hint) is Annotated:
        return _bare(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        return _bare(kinds[0]) if len(kinds) == 1 else hint
    return hint


def _is_section(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind) and kind is not Duration
