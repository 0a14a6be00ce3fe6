"""Times the contenders of one op side by side.

An ``Op`` lists its contenders, and a ``Case`` is one op on one shape, dtype, device and pass. ``race`` runs a
case: the outputs are first judged against float64, then peak memory is measured, and then all contenders are
timed in turns, so that disturbances of the machine affect them equally. This module knows nothing about
particular ops: a new family lists its ops and cases in ``bench_<family>.py``.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

Map = Callable[[Tensor], Tensor]
Draw = Callable[[tuple[int, ...], torch.Generator], Tensor]

SMALL = 16 * 16  # elements; up to here the call itself is measured, beyond it the bytes that are moved
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
GPUS = tuple(device for device in DEVICES if device == "cuda")  # for shapes that would take too long on a CPU
DTYPE_NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


@dataclass(frozen=True)
class Work:
    """The minimal work of a pass, for forward and for forward + backward: words and bits moved per entry, and
    operations per entry and row length.
    """

    words: tuple[float, float]
    bits: tuple[float, float] = (0, 0)
    flops: tuple[float, float] = (0, 0)


@dataclass(frozen=True)
class Op:
    """A comparison: ``build(X)`` returns the contenders by name, with the state (a mask, a layer) that inputs
    like X need.

    "eager" and "fastparam" are required, and "floor" is a lower bound for every implementation. "compile" is
    made from "eager". A contender that is None is not installed. ``draw`` makes the input for a result of the
    given shape. ``means`` contains the map of a contender that deliberately computes another one than
    "eager". ``defect`` returns how far a result is from its property, whatever the input was.
    """

    name: str
    build: Callable[[Tensor], Mapping[str, Map | None]]
    contenders: tuple[str, ...] = ("eager", "compile", "fastparam", "floor")
    draw: Draw = lambda shape, generator: torch.randn(shape, generator=generator, device=generator.device)
    means: Mapping[str, Map] = field(default_factory=dict)
    defect: Callable[[Tensor], float] | None = None
    work: Work | None = None


@dataclass(frozen=True)
class Case:
    """One group of the report. The backward pass gets a dense gradient that was prepared beforehand, and
    accumulates nothing.

    ``shape`` is that of the result.
    """

    op: Op
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    backward: bool = False
    quick: bool = False
    rounds: int = 7  # at least

    @property
    def moved(self) -> float:
        """Bytes that must be moved; NaN if they are not counted."""
        work, entries = self.op.work, math.prod(self.shape)
        return (
            entries * (work.words[self.backward] * self.dtype.itemsize + work.bits[self.backward] / 8)
            if work
            else math.nan
        )

    @property
    def flops(self) -> float:
        return (
            math.prod(self.shape) * self.shape[-1] * self.op.work.flops[self.backward]
            if self.op.work
            else math.nan
        )

    @property
    def labels(self) -> dict[str, str]:
        return {
            "op": self.op.name,
            "shape": "x".join(map(str, self.shape)),
            "dtype": DTYPE_NAMES[self.dtype],
            "device": self.device,
            "pass": "forward+backward" if self.backward else "forward",
        }

    def __str__(self) -> str:
        return "-".join(self.labels.values())


def grid(
    op: Op,
    shapes: Iterable[tuple[int, ...]],
    dtypes: Iterable[torch.dtype] = (torch.float32,),
    quick: Iterable[tuple[int, ...]] = (),
    passes: Iterable[bool] = (False, True),
    devices: Iterable[str] = DEVICES,
    rounds: int = Case.rounds,
) -> Iterator[Case]:
    """Yields the cases of an op on every available device. The cases of the ``quick`` shapes form the short
    table.
    """
    for device, dtype, shape, backward in product(devices, dtypes, shapes, passes):
        yield Case(op, shape, dtype, device, backward, shape in quick, rounds)


@dataclass(frozen=True)
class Settings:
    """The duration of a race and the amount of data. ``sets`` weights take turns, like the layers of a model,
    so that caches do not make the results look better.
    """

    budget: float = 0.6
    sets: int | None = None
    compile: bool = True


@dataclass
class Result:
    """The measurements of one contender: seconds per call in every round, calls per round, peak bytes
    allocated, relative error, defect.

    ``share`` is the part of the time of the race in which its thread was running; it is 1 on an idle machine.
    """

    calls: int = 1
    seconds: list[float] = field(default_factory=list)
    peak: int = 0
    share: float = 1.0
    error: float = math.nan
    defect: float = math.nan
    failure: str = ""


def weight_of(X: Tensor, module: nn.Module) -> Map:
    """Returns ``layer.weight`` as a function of the raw weight X, where the module parametrizes the layer."""
    layer = nn.Linear(X.shape[-1], X.shape[-1], bias=False, device=X.device, dtype=X.dtype)
    layer.weight = nn.Parameter(X)
    parametrize.register_parametrization(layer, "weight", module)
    return lambda _: layer.weight


def samples(case: Case, sets: int | None) -> list[tuple[Tensor, ...]]:
    """Returns several sets of arguments of a step: (X,) for forward, (X, G) for forward + backward."""
    size = math.prod(case.shape) * case.dtype.itemsize
    if sets is None:  # on CUDA more than fits in the L2 cache; otherwise 8 small weights, or 4 large ones
        cache = 4 * torch.cuda.get_device_properties(0).L2_cache_size if case.device == "cuda" else 0
        sets = max(4 if size > 2**23 else 8, min(64, cache // size))
    generator = torch.Generator(case.device).manual_seed(0)

    def sample() -> tuple[Tensor, ...]:
        X = case.op.draw(case.shape, generator).to(case.dtype)
        G = torch.randn(case.shape, generator=generator, device=case.device).to(case.dtype)
        return (X.requires_grad_(), G) if case.backward else (X,)

    return [sample() for _ in range(sets)]


def forward_backward(contender: Map, probe: tuple[Tensor, ...]) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns the step that computes the gradient.

    If a contender returns the incoming gradient itself (as ``clone`` does), the time of a copy is added where
    bytes count, because every op here has to write a gradient.
    """

    def step(X: Tensor, G: Tensor) -> Tensor:
        return torch.autograd.grad(contender(X), X, G)[0]

    def step_and_copy(X: Tensor, G: Tensor) -> Tensor:
        return torch.autograd.grad(contender(X), X, G)[0].clone()

    X, G = probe
    return step_and_copy if X.numel() > SMALL and step(X, G).data_ptr() == G.data_ptr() else step


def peak_bytes(step: Callable[..., Tensor], args: tuple[Tensor, ...]) -> int:
    """Returns the maximum memory that the step used at any time, including its result but not its arguments,
    as seen by torch's allocators.
    """
    if args[0].is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(*args)
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step(*args)
    events = [
        e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"
    ]  # signed sizes of all allocations
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def relative_error(actual: Tensor, expected: Tensor) -> float:
    expected = expected.double()
    return ((actual.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-300)).item()


def clock(step: Callable[..., Tensor], batch: list[tuple[Tensor, ...]]) -> float:
    """Returns the seconds that the step takes for the whole batch, by the clock of the host, or by events of
    the device.
    """
    if batch[0][0].is_cuda:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        first.record()
        for args in batch:
            step(*args)
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3
    start = time.perf_counter()
    for args in batch:
        step(*args)
    return time.perf_counter() - start


def calls_per_round(step: Callable[..., Tensor], args: tuple[Tensor, ...]) -> int:
    """Returns the number of calls that make a round long enough for the clock (and, on CUDA, for the
    synchronisation to be negligible).
    """
    enough = 1e-3 if args[0].is_cuda else 2e-4
    if clock(step, [args]) > 0.1:
        return 1
    clock(step, [args])
    once = min(clock(step, [args]) for _ in range(3))
    if once < enough / 10:
        once = clock(step, [args] * 10) / 10
    return max(1, min(1000, math.ceil(enough / once)))


def truth(case: Case, probe: tuple[Tensor, ...]) -> Callable[[str], Tensor]:
    """Returns the function that gives, from float64, the expected result of a contender."""
    wide = tuple(t.detach().double().requires_grad_(t.requires_grad) for t in probe)
    means = dict(case.op.means)
    if "eager" not in means:
        means["eager"] = case.op.build(wide[0].detach())["eager"]

    @cache
    def value(meant: Map) -> Tensor:
        Q = meant(wide[0])
        return (torch.autograd.grad(Q, *wide)[0] if case.backward else Q).detach()

    return lambda name: value(means.get(name, means["eager"]))


def prepare(
    case: Case, settings: Settings, probe: tuple[Tensor, ...]
) -> tuple[dict[str, Callable[..., Tensor]], dict[str, Result]]:
    """Builds the step of every contender and compares its output with float64."""
    built, expected = dict(case.op.build(probe[0].detach())), truth(case, probe)
    steps: dict[str, Callable[..., Tensor]] = {}
    results = {name: Result() for name in case.op.contenders}
    for name, result in results.items():
        if name == "compile":
            if not settings.compile:
                result.failure = "left out"
                continue
            torch._dynamo.reset()
            built[name] = torch.compile(built["eager"], dynamic=False)
        contender = built[name]
        if contender is None:
            result.failure = "absent"
            continue
        try:
            step = forward_backward(contender, probe) if case.backward else contender
            actual = step(*probe)
        except Exception as error:
            if name != "compile":
                raise
            result.failure = f"torch.compile: {error}".splitlines()[
                0
            ]  # no compiler here: leave a gap in the table, this is not our error
            continue
        steps[name] = step
        if name != "floor":
            result.error = relative_error(actual.detach(), expected(name))
            if case.op.defect:
                result.defect = case.op.defect((contender(probe[0]) if case.backward else actual).detach())
    eps = torch.finfo(case.dtype).eps
    limit = 2 * results["eager"].error + 8 * math.sqrt(case.shape[-1]) * eps
    assert results["fastparam"].error <= limit, (
        f"{case}: error {results['fastparam'].error:.1e} is beyond {limit:.1e}"
    )
    return steps, results


def race(case: Case, settings: Settings, timed: bool = True) -> dict[str, Result]:
    """Runs all contenders of a case in turns, and returns their measurements. Round i of each contender is
    next to round i of the others.
    """
    inputs = samples(case, settings.sets if timed else 1)
    steps, results = prepare(case, settings, inputs[0])
    if not timed:
        return results

    for name, step in steps.items():
        results[name].peak = peak_bytes(step, inputs[0])
        results[name].calls = calls_per_round(step, inputs[0])

    collecting = gc.isenabled()
    gc.disable()
    try:
        take_turns(steps, results, inputs, settings.budget, case.rounds)
    finally:
        if collecting:
            gc.enable()
    return results


def take_turns(
    steps: dict[str, Callable[..., Tensor]],
    results: dict[str, Result],
    inputs: list[tuple[Tensor, ...]],
    budget: float,
    least: int,
) -> None:
    """Runs rounds until the budget is used up, each one in a new random order, because the previous contender
    leaves its data in the caches.

    The input changes from round to round.
    """
    order, spent, rounds, draw = list(steps), 0.0, 0, random.Random(0)
    running, start = time.thread_time(), time.perf_counter()
    while rounds < least or (spent < budget and rounds < 201):
        draw.shuffle(order)
        for name in order:
            calls = results[name].calls
            batch = [inputs[(rounds * calls + i) % len(inputs)] for i in range(calls)]
            seconds = clock(steps[name], batch)
            results[name].seconds.append(seconds / calls)
            spent += seconds
        rounds += 1
    if not inputs[0][0].is_cuda:  # a thread that waits for the GPU may sleep
        share = (time.thread_time() - running) / (time.perf_counter() - start)
        for result in results.values():
            result.share = share
