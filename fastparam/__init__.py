"""Compiled kernels for parametrizations of weights (``torch.nn.utils.parametrize``)."""

from . import _loader

_loader.load()

from . import _prune_vmap as _prune_vmap  # noqa: E402
from . import functional as functional  # noqa: E402
from . import parametrizations as parametrizations  # noqa: E402
from ._built import version as __version__  # noqa: E402
from ._cayley_module import CayleyMap, SkewCayley  # noqa: E402
from ._exponential_module import MatrixExponential, PositiveDefinite, SkewExponential  # noqa: E402
from ._fold import fold  # noqa: E402
from ._logarithm import NotPositiveDefiniteError  # noqa: E402
from ._ops import decompositions  # noqa: E402
from ._orthogonality import NotOrthogonalError  # noqa: E402
from ._prune_module import Pruning, PruningParametrization  # noqa: E402
from ._triangular import Skew, Symmetric  # noqa: E402

__all__ = [
    "CayleyMap",
    "MatrixExponential",
    "NotOrthogonalError",
    "NotPositiveDefiniteError",
    "PositiveDefinite",
    "Pruning",
    "PruningParametrization",
    "Skew",
    "SkewCayley",
    "SkewExponential",
    "Symmetric",
    "__version__",
    "decompositions",
    "fold",
    "functional",
    "parametrizations",
]
