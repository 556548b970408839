"""YAML + --set -> RunConfig. Every error at once, each with file:line, what was given and what to do."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from worldmodel.config import RunConfig


class ConfigError(ValueError):
    """Holds one line per problem."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load_config(path: str | Path | None, overrides: list[str] | None = None) -> RunConfig:
    """Reads a YAML file (None: all defaults), applies `a.b=value` overrides in order. ConfigError lists every problem."""
    lines: dict[str, str] = {}
    values: dict[str, Any] = {}
    if path is not None:
        values = _read_yaml(Path(path), lines)
    problems = []
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
    problems += _unknown_keys(values, RunConfig, "", lines)
    if problems:
        raise ConfigError(problems)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError([_describe(e, lines, path) for e in error.errors()]) from None


def dump_config(cfg: RunConfig) -> str:
    """The resolved config as YAML, loadable again."""
    return yaml.safe_dump(json.loads(cfg.model_dump_json()), sort_keys=False)


def config_difference(old: RunConfig, new: RunConfig) -> list[str]:
    """`key: old -> new` of every setting that differs."""
    before, after = _flatten(json.loads(old.model_dump_json())), _flatten(json.loads(new.model_dump_json()))
    return [f"{k}: {before.get(k)} -> {after.get(k)}" for k in sorted(before.keys() | after.keys()) if before.get(k) != after.get(k)]


def _read_yaml(path: Path, lines: dict[str, str]) -> dict[str, Any]:
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    try:
        node = yaml.compose(text)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError([f"{where}: not YAML: {getattr(error, 'problem', None) or _first_line(error)}"]) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError([f"{path}:1: a config is a mapping of keys, got {type(values).__name__}"])
    _collect_lines(node, "", path, lines)
    return values


def _collect_lines(node: yaml.Node | None, prefix: str, path: Path, lines: dict[str, str]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            lines[name] = f"{path}:{key.start_mark.line + 1}"
            _collect_lines(value, f"{name}.", path, lines)


def _put(values: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = values.get(key)
        values = values.setdefault(key, {}) if isinstance(inner, dict) or inner is None else values
    values[keys[-1]] = value


def _model_of(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _unknown_keys(values: dict[str, Any], model: type[BaseModel], prefix: str, lines: dict[str, str]) -> list[str]:
    problems = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in model.model_fields:
            near = difflib.get_close_matches(str(key), model.model_fields, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(model.model_fields)}"
            problems.append(f"{lines.get(name, 'config')}: unknown key {name}; {hint}")
        elif (inner := _model_of(model.model_fields[key].annotation)) and isinstance(value, dict):
            problems += _unknown_keys(value, inner, f"{name}.", lines)
    return problems


def _describe(error: Any, lines: dict[str, str], path: str | Path | None) -> str:
    name = ".".join(str(part) for part in error["loc"] if not isinstance(part, int))
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:] if not name or error["type"] != "value_error" else message
    where = next((lines[k] for k in _and_parents(name) if k in lines), None) or (str(path) if path else "config")
    if error["type"] == "value_error":
        # Cross-field checks already name their keys; the nearest key that was written gives the line.
        mentioned = [k for k in lines if k.rsplit(".", 1)[-1] + "=" in message]
        where = next((lines[k] for k in mentioned if k.startswith(name)), where)
        return f"{where}: {name + '.' if name else ''}{message}"
    given = error.get("input")
    return f"{where}: {name}: {message}, got {given!r}"


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
