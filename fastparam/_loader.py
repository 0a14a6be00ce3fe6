"""Loads the compiled extension, or says in one sentence why it cannot be loaded and how to cure that."""

from __future__ import annotations

import importlib

import torch

REBUILD = "pip install --no-build-isolation --no-deps --force-reinstall --no-cache-dir"


def _series(version: str) -> list[str]:
    """Major and minor: torch keeps its C++ interface within them."""
    return version.split(".")[:2]


def load() -> None:
    """Imports fastparam._C.

    Raises:
        ImportError: If it was never built, or was built for another torch.
    """
    try:
        built = importlib.import_module("fastparam._built")
    except ImportError:
        raise ImportError(
            "fastparam is not built here: run `pip install --no-build-isolation .` in its source tree, and "
            "import it from another folder, because the source tree hides the installed package"
        ) from None
    mismatch = (
        f"fastparam was built for torch {built.torch}, but torch {torch.__version__} is running: "
        f"rebuild it with `{REBUILD} fastparam` (or `.` in its source tree)"
    )
    if _series(built.torch) != _series(torch.__version__):
        raise ImportError(mismatch)
    try:
        importlib.import_module("fastparam._C")
    except ImportError as error:
        raise ImportError(mismatch) from error
