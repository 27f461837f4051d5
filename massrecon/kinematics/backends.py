"""How kinematic functions run: broadcasting, chunks of bounded memory, Numba or torch.

A function of N events runs in chunks of `CHUNK` events, so that its working memory does not grow
with N. On processors the compiled kernels of the extra `fast` (Numba) are used where it is
installed; everywhere else, and on GPUs, the same mathematics runs batched in torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from massrecon.errors import InputError, require_extra, unknown_name

Backend = Literal["auto", "numba", "torch"]
Function = TypeVar("Function", bound=Callable[..., Any])

CHUNK = 1 << 16


def compiled(function: Function) -> Function:
    """Compiles a function with Numba when it is first called, and keeps it on disk.

    Where no folder can be written, it is compiled anew in each process; without Numba it stays
    what it is.
    """
    if not importlib.util.find_spec("numba"):
        return function
    njit = importlib.import_module("numba").njit
    try:
        found = njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # no folder for the cache
        return njit(nogil=True, error_model="numpy")(function)
    # Numba looks at the file of a function only, not at those of the functions that it calls
    file: Any = getattr(getattr(found, "_cache", None), "_cache_file", None)
    if hasattr(file, "_source_stamp"):
        file._source_stamp = (file._source_stamp, _stamp_of_kernels())
    return found


@lru_cache(maxsize=1)
def _stamp_of_kernels() -> tuple[float, int]:
    """Returns what changes with any file of kernels: the last time of a change and their size."""
    files = [path.stat() for path in Path(__file__).parent.glob("*.py")]
    return max(file.st_mtime for file in files), sum(file.st_size for file in files)


def inlined(function: Function) -> Function:
    """Compiles a function into those that call it, for the innermost steps of a kernel.

    It does not count references to arrays, which costs more than small steps themselves, so that it
    can use the arrays that it is given, but not make any.
    """
    if not importlib.util.find_spec("numba"):
        return function
    njit = importlib.import_module("numba").njit
    return njit(_nrt=False, forceinline=True, nogil=True, error_model="numpy")(function)


def fused(function: Function) -> Function:
    """Compiles like `inlined` and adds products in one step, for loops over many numbers.

    The last bit of a result may depend on the processor.
    """
    return _inlined_with(function, {"contract"})


def summed(function: Function) -> Function:
    """Compiles like `fused`, and adds up long sums in any order: in several parts at once."""
    return _inlined_with(function, {"contract", "reassoc", "nsz"})


def _inlined_with(function: Function, freedoms: set[str]) -> Function:
    if not importlib.util.find_spec("numba"):
        return function
    njit = importlib.import_module("numba").njit
    options = {"nogil": True, "error_model": "numpy", "fastmath": freedoms}
    return njit(_nrt=False, forceinline=True, **options)(function)


def shared(function: Function) -> Function:
    """Lets compiled functions call a function that also works on tensors, as plain Python."""
    if not importlib.util.find_spec("numba"):
        return function
    return importlib.import_module("numba.extending").register_jitable(function)


def root(x: Any) -> Any:
    """Takes the square root of a tensor, or, in compiled functions, of a number."""
    return x.sqrt()


if importlib.util.find_spec("numba"):

    @importlib.import_module("numba.extending").overload(root)
    def _root_of_number(x: Any) -> Any:
        def compiled_root(x: Any) -> Any:
            return math.sqrt(x)

        return compiled_root


@contextmanager
def threads_of_torch() -> Iterator[int]:
    """Lends the number of threads that torch may use, which meanwhile computes on one alone.

    Otherwise each of them would ask for as many again.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def choose_backend(backend: Backend, device: torch.device) -> Literal["numba", "torch"]:
    """Decides what computes: Numba on processors where it is installed, else torch.

    Raises:
        InputError: If `backend` is unknown, or Numba is asked for tensors that are on a GPU.
        MissingExtraError: If Numba is asked for and not installed.
    """
    if backend not in ("auto", "numba", "torch"):
        raise unknown_name("backend", backend, ("auto", "numba", "torch"))
    if backend == "torch" or (backend == "auto" and device.type != "cpu"):
        return "torch"
    if backend == "numba" and device.type != "cpu":
        raise InputError(
            f"'backend' is \"numba\", which runs on processors, but the tensors are on {device}: "
            'choose "torch" or move them with .cpu().'
        )
    if backend == "numba":
        require_extra("numba", extra="fast")
    return "numba" if importlib.util.find_spec("numba") else "torch"


def common_type(*tensors: Tensor) -> torch.dtype:
    """Returns the floating-point type of a result: that of the widest floating-point input."""
    kinds = [t.dtype for t in tensors if t.is_floating_point()]
    result = torch.float32 if kinds else torch.get_default_dtype()
    for kind in kinds:
        result = torch.promote_types(result, kind)
    return result


def blocks(shape: tuple[int, ...], limit: int | None = None) -> Iterator[tuple[slice, ...]]:
    """Cuts a batch shape into blocks of at most `limit` events (`CHUNK` unless given).

    >>> list(blocks((5,), limit=2))
    [(slice(0, 2, None),), (slice(2, 4, None),), (slice(4, 6, None),)]
    """
    limit = CHUNK if limit is None else limit
    if not shape:
        yield ()
        return
    rest = math.prod(shape[1:])
    if rest > limit:
        for row in range(shape[0]):
            for tail in blocks(shape[1:], limit):
                yield (slice(row, row + 1), *tail)
        return
    rows = max(1, limit // max(rest, 1))
    for start in range(0, shape[0], rows):
        yield (slice(start, start + rows),)


def batch_shape(vectors: dict[str, Tensor], scalars: dict[str, Tensor]) -> tuple[int, ...]:
    """Returns the common leading shape of vectors ``(..., D)`` and scalars ``(...)``.

    Raises:
        InputError: If the shapes cannot be broadcast.
    """
    shapes = {name: tuple(t.shape[:-1]) for name, t in vectors.items()}
    shapes |= {name: tuple(t.shape) for name, t in scalars.items()}
    try:
        return tuple(torch.broadcast_shapes(*shapes.values()))
    except RuntimeError as error:
        found = ", ".join(f"'{name}' {shape}" for name, shape in shapes.items())
        raise InputError(
            f"Leading dimensions do not fit together: {found}: make each equal or 1."
        ) from error


def warn_failed(name: str, converged: Tensor, reason: str, stacklevel: int = 3) -> None:
    """Warns once a call, with the fraction of events that have no solution.

    `stacklevel` is that of the user's line, counted from here.
    """
    if converged.numel() == 0:
        return
    failed = int((~converged).sum())
    if failed:
        share = failed / converged.numel()
        warnings.warn(
            f"{name} is NaN for {failed} of {converged.numel()} events ({share:.2%}): {reason}",
            RuntimeWarning,
            stacklevel=stacklevel,
        )
