"""A CPU that emulates a CUDA device, so that the tests of tests/test_cuda*.py are themselves tested on
machines without a GPU.

Streams and events do nothing, a graph records the ops of its capture and runs them again in the same memory,
and memory is not counted. This detects a wrong name, shape, expectation or order of calls in such a test, but
nothing that only a device can show.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def storages(values: Any) -> set[int]:
    return {t.untyped_storage().data_ptr() for t in tree_leaves(values) if isinstance(t, Tensor)}


class Graph(TorchDispatchMode):
    """Emulates ``torch.cuda.CUDAGraph``, and records while it is the current mode."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and not storages(old) & storages(
                    (args, kwargs)
                ):  # neither a view nor written in place
                    old.copy_(new)


class Stream:
    """Emulates ``torch.cuda.Stream``."""

    def __init__(self, *_: Any) -> None:
        pass

    def wait_stream(self, other: Stream) -> None:
        assert isinstance(other, Stream)

    def synchronize(self) -> None:
        pass


class Modes:
    """Emulates the synchronisation debug mode."""

    def __init__(self) -> None:
        self.mode = 0

    def get(self) -> int:
        return self.mode

    def set(self, mode: int | str) -> None:
        self.mode = ["default", "warn", "error"].index(mode) if isinstance(mode, str) else mode


def play(monkeypatch: Any) -> None:
    """Replaces the parts of torch.cuda that the tests use."""
    modes = Modes()
    nothing = lambda *_, **__: None
    fakes = {
        "CUDAGraph": Graph,
        "graph": lambda graph: graph,
        "Stream": Stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "current_stream": Stream,
        "synchronize": nothing,
        "_sleep": nothing,
        "empty_cache": nothing,
        "device_count": lambda: 1,
        "get_sync_debug_mode": modes.get,
        "set_sync_debug_mode": modes.set,
        "reset_peak_memory_stats": nothing,
        "memory_allocated": lambda: 0,
        "memory_reserved": lambda: 0,
        "memory_stats": lambda: {"requested_bytes.all.peak": 0, "requested_bytes.all.current": 0},
        "mem_get_info": lambda: (1 << 60, 1 << 60),
    }
    for name, fake in fakes.items():
        assert hasattr(torch.cuda, name)
        monkeypatch.setattr(torch.cuda, name, fake)
    library = ["cublas"]
    monkeypatch.setattr(
        torch.backends.cuda,
        "preferred_blas_library",
        lambda choice=None: (library.__setitem__(0, choice) if choice else None) or library[0],
    )
