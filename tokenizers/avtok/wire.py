"""Values between a process and an untrusted one beside it: JSON with bounds, raw arrays, never pickle."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from math import isfinite, prod
from struct import Struct
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

import avtok.media
from avtok.media import ClipError

HEADER = Struct("<4sI")  # magic, bytes of JSON that follow
MAGIC = b"avtk"
MAX_MESSAGE_BYTES = 4 << 20
ALIGN_BYTES = 64
_ARRAY_KINDS = frozenset("uif")
# Only these come back as objects: an untrusted process cannot name a class.
RECORDS: Mapping[str, type] = {
    name: kind for name, kind in vars(avtok.media).items() if isinstance(kind, type) and is_dataclass(kind)
}


class WireError(ValueError):
    """Bytes or values that an honest peer would not send."""


class Arena:
    """Arrays laid one behind the other in memory that both processes see. ClipError where it is full."""

    def __init__(self, memory: np.ndarray) -> None:
        self.bytes = memory
        self.used = 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        num_bytes = prod(shape) * dtype.itemsize
        if self.used + num_bytes > len(self.bytes):
            raise ClipError(f"the result takes more than the {len(self.bytes) / 2**20:.0f} MB it may take")
        place = self.bytes[self.used : self.used + num_bytes]
        self.used += -(-num_bytes // ALIGN_BYTES) * ALIGN_BYTES
        return place.view(dtype).reshape(shape)

    def offset_of(self, array: np.ndarray) -> int:
        """Where an array lies; it is copied in first unless it was made here."""
        if array.flags.c_contiguous and np.may_share_memory(array, self.bytes):
            return array.ctypes.data - self.bytes.ctypes.data
        place = self.empty(array.shape, array.dtype)
        place[...] = array
        return place.ctypes.data - self.bytes.ctypes.data if array.size else 0


def pack(value: Any, arena: Arena) -> Any:
    """What JSON can say of a value; arrays go into the arena."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in _ARRAY_KINDS:
            raise TypeError(f"arrays of {value.dtype} do not travel; make it numbers")
        return {"array": [value.dtype.str, list(value.shape), arena.offset_of(value)]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [pack(item, arena) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[pack(key, arena), pack(item, arena)] for key, item in value.items()]}
    if type(value).__name__ in RECORDS and is_dataclass(value) and not isinstance(value, type):
        items = {field.name: pack(getattr(value, field.name), arena) for field in fields(value)}
        return {"record": [type(value).__name__, items]}
    raise TypeError(
        f"{type(value).__name__} does not travel; use plain values, arrays or avtok.media's classes"
    )


def unpack(packed: Any, memory: np.ndarray) -> Any:
    """The value again, every claim of it checked. memory: the bytes of the arena. WireError for nonsense."""
    try:
        return _unpack(packed, memory)
    except WireError:
        raise
    except (TypeError, ValueError, KeyError, OverflowError, RecursionError) as error:
        raise WireError(f"{type(error).__name__}: {error}") from error


def dump(message: dict[str, Any]) -> bytes:
    body = json.dumps(message).encode()
    if len(body) > MAX_MESSAGE_BYTES:
        raise ClipError(f"the result takes {len(body)} bytes as JSON, at most {MAX_MESSAGE_BYTES} may")
    return HEADER.pack(MAGIC, len(body)) + body


def body_length(header: bytes) -> int:
    magic, length = HEADER.unpack(header)
    if magic != MAGIC or length > MAX_MESSAGE_BYTES:
        raise WireError(f"{header!r} is no header")
    return length


def load(body: bytes) -> dict[str, Any]:
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise WireError(f"no JSON: {error}") from error
    if not isinstance(message, dict):
        raise WireError(f"a message is an object, got {type(message).__name__}")
    return message


def clean(text: str) -> str:
    """Without lone surrogates, which no file and no log takes."""
    return text.encode("utf-8", "replace").decode()


def _unpack(packed: Any, memory: np.ndarray) -> Any:
    if isinstance(packed, str):
        return clean(packed)
    if packed is None or isinstance(packed, bool | int | float):
        return packed
    if not isinstance(packed, dict) or len(packed) != 1:
        raise WireError(f"a value is plain or one tagged object, got {type(packed).__name__}")
    (kind, content), *_ = packed.items()
    if kind == "array":
        dtype, shape, offset = content
        return _array(dtype, shape, offset, memory)
    if kind == "record":
        name, items = content
        return _record(name, items, memory)
    if kind == "dict":
        return {_unpack(key, memory): _unpack(item, memory) for key, item in content}
    if kind in ("list", "tuple"):
        items = [_unpack(item, memory) for item in content]
        return items if kind == "list" else tuple(items)
    raise WireError(f"unknown kind of value {kind!r}")


def _array(dtype: Any, shape: Any, offset: Any, memory: np.ndarray) -> np.ndarray:
    if not isinstance(dtype, str) or np.dtype(dtype).kind not in _ARRAY_KINDS:
        raise WireError(f"no array has dtype {dtype!r}")
    if not all(type(side) is int and side >= 0 for side in [offset, *shape]) or len(shape) > 8:
        raise WireError(f"no array has shape {shape!r} at {offset!r}")
    num_bytes = prod(shape) * np.dtype(dtype).itemsize
    if offset + num_bytes > len(memory):
        raise WireError(f"an array of {num_bytes} bytes at {offset} in memory of {len(memory)}")
    return memory[offset : offset + num_bytes].view(dtype).reshape(shape)


def _record(name: Any, items: Any, memory: np.ndarray) -> Any:
    kind, hints = RECORDS[name], _hints(name)
    values = {key: _unpack(item, memory) for key, item in items.items()}
    if values.keys() != hints.keys():
        raise WireError(f"{name} has {', '.join(hints)}, got {', '.join(values)}")
    for key, value in values.items():
        if not _fits(value, hints[key]):
            raise WireError(f"{name}.{key} cannot be {str(value)[:80]!r}")
    return kind(**values)


@cache
def _hints(name: str) -> dict[str, Any]:
    return get_type_hints(RECORDS[name])


def _fits(value: Any, hint: Any) -> bool:
    origin, options = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, Union):
        return any(_fits(value, option) for option in options)
    if hint is float:
        return type(value) in (int, float) and isfinite(value)
    if hint in (bool, int, str, type(None), np.ndarray):
        return type(value) is hint
    if origin is tuple:
        kinds = options[:1] * len(value) if options[1:] == (...,) else options
        return type(value) is tuple and len(kinds) == len(value) and all(map(_fits, value, kinds))
    return isinstance(value, origin or hint)
