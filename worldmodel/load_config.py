"""YAML + --set -> RunConfig. Every error at once, each with file:line, what was given and what to do."""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from worldmodel.config import RunConfig

# What pydantic's error types mean to somebody who edits a YAML file.
BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}
KINDS = (
    ("int_", "must be a whole number"),
    ("float_", "must be a number"),
    ("finite_", "must be a finite number"),
    ("bool_", "must be true or false"),
    ("string_", "must be text"),
    ("model_", "must be a mapping of keys"),
)


class ConfigError(ValueError):
    """Holds one line per problem."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


Config = TypeVar("Config", bound=BaseModel)


def load_config(path: str | Path | None, overrides: list[str] | None = None) -> RunConfig:
    """Reads a YAML file (None: all defaults), applies `a.b=value` overrides in order. ConfigError lists every
    problem."""
    return load_as(RunConfig, path, overrides)


def load_as(kind: type[Config], path: str | Path | None, overrides: list[str] | None = None) -> Config:
    """The same for another frozen model."""
    lines: dict[str, str] = {}
    values: dict[str, Any] = {}
    problems: list[str] = []
    if path is not None:
        values = _read_yaml(Path(path), lines, problems)
    for override in overrides or []:
        key, found, text = override.partition("=")
        if not found:
            problems.append(f"--set {override}: needs the form key=value")
            continue
        try:
            value = yaml.safe_load(text) if text else ""
        except yaml.YAMLError as error:
            problems.append(f"--set {key}: {text!r} is not YAML: {_first_line(error)}")
            continue
        _put(values, key.strip().split("."), value)
        lines[key.strip()] = f"--set {key.strip()}"
    problems += _take_unknown_keys(values, kind, "", lines)
    try:
        cfg = kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError([*problems, *_describe_all(kind, error, lines, path)]) from None
    if problems:
        raise ConfigError(problems)
    return cfg


def dump_config(cfg: RunConfig) -> str:
    """The resolved config as YAML, loadable again."""
    return yaml.safe_dump(json.loads(cfg.model_dump_json()), sort_keys=False)


def config_difference(old: RunConfig, new: RunConfig) -> list[str]:
    """`key: old -> new` of every setting that differs."""
    before, after = _flatten(json.loads(old.model_dump_json())), _flatten(json.loads(new.model_dump_json()))
    return [
        f"{k}: {before.get(k)} -> {after.get(k)}"
        for k in sorted(before.keys() | after.keys())
        if before.get(k) != after.get(k)
    ]


def _read_yaml(path: Path, lines: dict[str, str], problems: list[str]) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            [f"{path}: no text in UTF-8 (byte {error.start}); give the YAML of a run"]
        ) from None
    try:
        node = yaml.compose(text)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(
            [f"{where}: not YAML: {getattr(error, 'problem', None) or _first_line(error)}"]
        ) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError([f"{path}:1: a config is a mapping of keys, got {type(values).__name__}"])
    _collect_lines(node, "", path, lines, problems)
    return values


def _collect_lines(
    node: yaml.Node | None, prefix: str, path: Path, lines: dict[str, str], problems: list[str]
) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name, where = f"{prefix}{key.value}", f"{path}:{key.start_mark.line + 1}"
            if name in lines:  # YAML would quietly keep the last one
                problems.append(f"{where}: {name} is written twice, first at {lines[name]}; keep one")
            lines[name] = where
            _collect_lines(value, f"{name}.", path, lines, problems)


def _put(values: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        if not isinstance(values.get(key), dict):
            values[key] = {}
        values = values[key]
    values[keys[-1]] = value


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """Of a field that holds one, may hold one, or holds a list of them."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _take_unknown_keys(
    values: dict[str, Any], model: type[BaseModel], prefix: str, lines: dict[str, str]
) -> list[str]:
    """Describes keys that no model has and takes them out, so that the rest can still be checked."""
    problems = []
    for key, value in list(values.items()):
        name = f"{prefix}{key}"
        if key not in model.model_fields:
            near = difflib.get_close_matches(str(key), model.model_fields, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(model.model_fields)}"
            where = next((lines[k] for k in _and_parents(name) if k in lines), "config")
            problems.append(f"{where}: unknown key {name}; {hint}")
            del values[key]
        elif inner := _model_of(model.model_fields[key].annotation):
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, dict):
                    problems += _take_unknown_keys(one, inner, f"{name}.", lines)
    return problems


def _describe_all(
    kind: type[BaseModel], error: ValidationError, lines: dict[str, str], path: str | Path | None
) -> list[str]:
    """One line per setting: a list of the wrong length is one problem, not one for each element."""
    found: dict[str, str] = {}
    for one in error.errors():
        where, key, problem = _describe(kind, one, lines, path)
        found.setdefault(key or problem, f"{where}: {problem}")
    return list(found.values())


def _describe(
    kind: type[BaseModel], error: Any, lines: dict[str, str], path: str | Path | None
) -> tuple[str, str, str]:
    """(file:line or --set, key, what was given and what it must be)."""
    names = [part for part in error["loc"] if not isinstance(part, int)]
    key = ".".join(names)
    inside = (k for k in lines if k.startswith(f"{key}."))
    where = next((lines[k] for k in (key, *inside, *_and_parents(key)) if k in lines), None)
    if error["type"] != "value_error":
        index = "".join(f"[{part}]" for part in error["loc"] if isinstance(part, int))
        shown = key if error["type"] == "missing" else key + index
        value = list(error["input"]) if isinstance(error["input"], tuple) else error["input"]
        given = "nothing" if value is None else repr(value)
        if error["type"] == "string_type" and isinstance(value, bool | int | float):
            given += "; YAML reads it so without quotes"
        return where or _source(path), key, f"{shown} {_must_be(kind, error, names)}, got {given}"
    # Cross-field checks name their settings as `key=value`; the first that was written gives the line.
    message = error["msg"].removeprefix("Value error, ")
    if key:
        message = re.sub(r"\b([a-z_][a-z0-9_]*)=", rf"{key}.\1=", message)
    mentioned = (lines[k] for k in re.findall(r"([a-z_][a-z0-9_.]*)=", message) if k in lines)
    return next(mentioned, where) or _source(path), key, message


def _source(path: str | Path | None) -> str:
    return str(path) if path else "config"


def _must_be(kind: type[BaseModel], error: Any, names: list[str]) -> str:
    problem, limits = error["type"], error.get("ctx", {})
    annotation = _annotation_of(kind, names)
    parts = get_args(annotation)
    is_open = parts[1:] == (...,)  # a list of any length
    if problem == "literal_error":
        return f"must be one of {', '.join(map(repr, get_args(parts[0]) if is_open else parts))}"
    if problem == "too_short" and is_open:
        return "must be a list of at least one"
    if problem == "tuple_type" and is_open:
        return "must be a list, such as [a, b]"
    if problem == "missing" and isinstance(error["loc"][-1], str):  # else an element of a list
        return "must be given" + (f", a list of {len(parts)}" if get_origin(annotation) is tuple else "")
    if problem in ("missing", "too_short", "too_long", "tuple_type"):
        return f"must be a list of {len(parts)}"
    if problem in BOUNDS:
        bound = BOUNDS[problem]
        return f"must be {bound[0]} {limits[bound[1]]}"
    if problem == "string_pattern_mismatch":
        return f"must match {limits['pattern']}"
    return next((text for start, text in KINDS if problem.startswith(start)), f"is not valid: {error['msg']}")


def _annotation_of(kind: type[BaseModel], names: list[str]) -> Any:
    model: Any = kind
    annotation: Any = None
    for name in names:
        annotation = model.model_fields[name].annotation
        model = _model_of(annotation)
    return annotation


def _and_parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
