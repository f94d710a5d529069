"""One run of a study: the function called on its own copies, and the line that is kept of it.

Imports cloudpickle, NumPy, torch, gatelib.lab.training, gatelib.lab.verdict, gatelib.lab.watch.
Must not import joblib or Dask: it runs here, whoever asked.
"""

from __future__ import annotations

import hashlib
import math
import numbers
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import torch
from numpy.typing import NDArray

from gatelib.lab.training import History
from gatelib.lab.verdict import FRESH, Line, Member, Runs
from gatelib.lab.watch import Enough, Watch, watching

__all__ = ["Outcome", "Refused", "attempt", "made_on", "packed", "run_member", "scored", "short"]

Weights = dict[str, NDArray[Any]]

CURVE, BRIEF = 12, 6
"""Of how many equal parts the means are kept of a curve: of a fresh run, of one that chooses."""


class Refused(Exception):
    """The function can't be studied at all, whatever its arguments; no other run is tried."""


def short(data: str | bytes) -> str:
    """Sixteen hex digits that stand for a text or bytes."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()[:16]


def packed(run: Callable[..., Any], runs: Runs) -> bytes:
    """The function with all that it reaches, and the values behind the labels, to send to workers.

    Raises:
        Refused: something cannot be sent.
    """
    try:
        data: bytes = cloudpickle.dumps((run, runs.labels, runs.axes))
        return data
    except Exception as error:
        raise Refused(
            f"run: something that it reaches can't be sent to a worker: {error}"
        ) from error


def run_member(payload: bytes, member: Member, seen: Watch) -> Line:
    """Run one member on its own copy of function and data; return the line of its record.

    Raises:
        Refused: the function trains out of sight, or returns what no line can hold.
    """
    run, names, values = cloudpickle.loads(payload)
    line: Line = dict(zip(names, member, strict=True))
    given = {name: values[name][label] if name in values else label for name, label in line.items()}
    found: Mapping[str, Any] = {}
    with _seeded(member), watching(seen), suppress(Enough):
        found = run(**given)
        if not seen.first and not seen.trained:
            raise Refused(
                "run: saw no loss; expected it to train with gatelib.lab.train or "
                "gatelib.lab.fleet.train_together, since a loop of its own can't be replayed"
            )
    points = CURVE if line["seed"] >= FRESH else BRIEF
    return line | dict(_numbers(found, names, points)) | {"first": seen.first}


@contextmanager
def _seeded(member: Member) -> Iterator[None]:
    """One thread, and the random state that a run finds, whoever ran before it in this process."""
    seed = int(short(repr(member))[:8], 16)
    threads, state = torch.get_num_threads(), np.random.get_state()  # noqa: NPY002
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            yield
    finally:
        torch.set_num_threads(threads)
        np.random.set_state(state)  # noqa: NPY002


def _numbers(found: Any, names: tuple[str, ...], points: int) -> Iterator[tuple[str, Any]]:
    """What a run returned, as its line keeps it."""
    if not isinstance(found, Mapping):
        raise Refused(f"run: expected {{name: number, curve or History}}, got {type(found)}")
    for name, value in found.items():
        if name in (*names, "first", "steps", "failed"):
            raise Refused(
                f"run: expected numbers of other names than the record's own, got {name!r}"
            )
        if isinstance(value, History):
            yield name, _curve(value.losses, points)
            yield "steps", int(np.isfinite(value.losses).sum())
        elif np.ndim(value) == 0:
            yield name, _number(name, value)
        else:
            yield name, _curve(value, points)


def _number(name: str, value: Any) -> Any:
    """As JSON keeps it: six digits, None for nan and infinity."""
    value = value.item() if isinstance(value, torch.Tensor | np.ndarray | np.generic) else value
    if isinstance(value, bool | int | str):
        return value
    if not isinstance(value, numbers.Real):
        raise Refused(
            f"run: expected a number, a curve, a History or a text as {name!r}, got {value!r}"
        )
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _curve(values: Any, points: int) -> list[float | None]:
    """The means of at most so many equal parts, three digits each."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise Refused(f"run: expected curves of one dimension, got an array {array.shape}")
    parts = np.array_split(array, min(points, len(array)) or 1)
    means = [float(part.mean()) if len(part) else math.nan for part in parts]
    return [float(f"{mean:.3g}") if math.isfinite(mean) else None for mean in means]


# --- what a worker does -----------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What a worker gives back.

    seconds: processor time. weights: what of `Watch.state` gives the line again, where asked for.
    """

    line: Line
    seconds: float
    weights: Weights = field(default_factory=dict)


def attempt(payload: bytes, member: Member, seconds: float, keep: bool) -> Outcome:
    """Run a member; one that fails leaves a line that says why.

    Raises:
        Refused: as `run_member`; the others would fail as well.
    """
    seen, start = Watch(seconds=seconds), time.process_time()
    try:
        line = run_member(payload, member, seen)
    except Refused:
        raise
    except Exception as error:
        return Outcome({"failed": told(error)}, time.process_time() - start)
    spent = time.process_time() - start
    return Outcome(line, spent, _smallest(payload, member, line, seen.state()) if keep else {})


def _smallest(payload: bytes, member: Member, line: Line, state: Weights) -> Weights:
    """The least that must be kept so that the run, without training, gives its numbers again."""
    with np.errstate(over="ignore"):  # what float16 can't hold comes out differently below
        halved = {k: v.astype(np.float16) if _is_weight(k, v) else v for k, v in state.items()}
    for left_out in ((".losses", ".norms"), (".norms",), ()):
        for each in (halved, state):
            kept = {k: v for k, v in each.items() if not k.endswith(left_out)}
            again = scored(payload, member, kept)
            wrong = [name for name, value in again.items() if value != line.get(name)]
            if not wrong:
                return kept
    raise Refused(
        f"run: from the trained weights and losses, {', '.join(wrong)} comes out differently; "
        "measure it on the trained model, or give the study keep=False, which keeps no weights"
    )


def scored(payload: bytes, member: Member, kept: Weights) -> Line:
    """What a run gives with kept weights for its training; no curve where no losses are kept."""
    line = run_member(payload, member, Watch(weights=kept))
    line.pop("first")
    if not any(name.endswith(".losses") for name in kept):
        line.pop("steps", None)
        line = {name: value for name, value in line.items() if not isinstance(value, list)}
    return line


def _is_weight(name: str, value: NDArray[Any]) -> bool:
    return name.count(".") > 1 and value.dtype == np.float32


def told(error: BaseException) -> str:
    """One line that says what went wrong, without an address of this machine's memory."""
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    return re.sub(r"0x[0-9a-f]+", "0x…", text)[:200]


def made_on() -> dict[str, str]:
    """What decides the last digits; Python is there to be read, it decides none."""
    cpu = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": str(torch.__version__),
        "cpu": f"{cpu}, {torch.backends.cpu.get_cpu_capability()}",
    }
