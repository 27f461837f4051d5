"""What the process that reads a file sends to ours: numbers, texts and arrays, and nothing else.

A message is a JSON text with the raw bytes of its arrays behind it. Reading one can build the few
classes that are named here and call nothing, whatever a damaged or hostile file made of the sender.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from massrecon.events.importers.chunk import Chunk, ReadOptions
from massrecon.events.objects import Objects
from massrecon.events.particles import Particles

_CLASSES = {kind.__name__: kind for kind in (Chunk, Objects, Particles, ReadOptions)}
_ARRAY_KINDS = "biuf"
LENGTH = 8
"""How many bytes say how long what follows is."""


def send(out: BinaryIO, message: Any) -> None:
    """Writes a message with its length in front."""
    content = pack(message)
    out.write(len(content).to_bytes(LENGTH, "little") + content)
    out.flush()


def pack(message: Any) -> bytes:
    """Turns a message into bytes.

    Raises:
        TypeError: If it holds something other than numbers, texts, arrays of numbers, lists,
            tuples, mappings with texts as names, and the classes known here.
    """
    arrays: list[np.ndarray] = []
    text = json.dumps(_plain(message, arrays)).encode()
    body = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    return len(text).to_bytes(LENGTH, "little") + text + body


def unpack(content: bytes) -> Any:
    """Turns bytes back into a message.

    Raises:
        ValueError: If they are none.
    """
    end = LENGTH + int.from_bytes(content[:LENGTH], "little")
    try:
        message = _built(json.loads(content[LENGTH:end]), _Body(memoryview(content)[end:]))
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"not a message: {error}") from error
    return message


def _plain(value: Any, arrays: list[np.ndarray]) -> Any:
    """Writes a value with JSON's own types; arrays are put aside in their order."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str, float)):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in _ARRAY_KINDS:
        arrays.append(value)
        return {"array": value.dtype.str, "shape": list(value.shape)}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_plain(item, arrays) for item in value]}
    if dataclasses.is_dataclass(value) and type(value).__name__ in _CLASSES:
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {"class": type(value).__name__, "fields": _plain(fields, arrays)}
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {"dict": [[name, _plain(item, arrays)] for name, item in value.items()]}
    raise TypeError(f"A message cannot hold {type(value).__name__}.")


class _Body:
    """The bytes of the arrays of a message, taken off in their order."""

    def __init__(self, content: memoryview) -> None:
        self._content, self._at = content, 0

    def take(self, kind: str, shape: list[int]) -> np.ndarray:
        dtype = np.dtype(kind)
        if dtype.kind not in _ARRAY_KINDS or any(n < 0 for n in shape):
            raise ValueError(f"not a message: an array of {kind}, {shape}")
        count = math.prod(shape)
        array = (
            np.frombuffer(self._content, dtype, count, self._at) if count else np.empty(0, dtype)
        )
        self._at += count * dtype.itemsize
        return array.reshape(shape).copy()


def _built(value: Any, body: _Body) -> Any:
    if isinstance(value, list):
        raise ValueError("not a message: a list without a name")
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return body.take(value["array"], value["shape"])
    if "class" in value:
        return _CLASSES[value["class"]](**_built(value["fields"], body))
    if "dict" in value:
        return {str(name): _built(item, body) for name, item in value["dict"]}
    if "tuple" in value:
        return tuple(_built(item, body) for item in value["tuple"])
    return [_built(item, body) for item in value["list"]]
