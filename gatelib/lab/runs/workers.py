"""Many runs of a study, on the cores of this machine or on those of a Dask cluster.

Imports cloudpickle, joblib (its loky) and gatelib.lab; dask where an address is given.
Must not import what it runs: a worker gets it as bytes, once.

A process that dies takes other runs with it that were under way. They are run again one at a
time, so that the one which died alone is known; that it died is what is recorded of it.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from typing import NamedTuple, Protocol

import cloudpickle

from gatelib.lab.runs.member import Outcome, Refused, attempt, made_on
from gatelib.lab.verdict import Member

__all__ = ["Task", "by_value", "cores", "made_by", "outcomes"]

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
PATIENCE, GRACE = 5, 60
"""A run is ended from outside after 5 × its seconds and a minute by the clock: it hangs."""


class Task(NamedTuple):
    """A run to make, and whether its weights are to be kept."""

    member: Member
    keep: bool = False


class Workers(Protocol):
    """Processes of one thread each that hold the function."""

    count: int

    def submit(self, task: Task, seconds: float) -> Future[Outcome]:
        """Run a task in one of them."""
        ...

    def close(self, kill: bool = False) -> None:
        """End them, and what they are doing."""
        ...


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def outcomes(
    payload: bytes,
    wanted: Callable[[], Sequence[Task]],
    *,
    seconds: float,
    workers: int,
    dask: str | None = None,
) -> Generator[tuple[Task, Outcome], None, None]:
    """Run what `wanted` says, as often as it says more; yield each run the moment it ends.

    Args:
        payload: what `member.packed` gave.
        wanted: all tasks that have not been yielded yet; asked again after each that has.
        seconds: processor time after which a run is recorded as failed.
        workers: how many processes on this machine.
        dask: the address of a Dask scheduler, whose workers are used instead.
    """

    def start() -> Workers:
        return Cluster(payload, dask) if dask else Local(payload, workers)

    suspects: list[Task] = []
    while wanted():
        crew, idle = start(), False
        under_way: dict[Future[Outcome], Task] = {}
        try:
            if suspects:
                yield suspects[-1], _alone(crew, suspects.pop(), seconds)
            else:
                yield from _while_all_live(crew, wanted, seconds, under_way)
            idle = True
        except BrokenExecutor:
            suspects = list(under_way.values())
        finally:
            crew.close(kill=not idle)


def _alone(crew: Workers, task: Task, seconds: float) -> Outcome:
    """One suspect with a crew of its own: if the process dies again, it was this run."""
    try:
        return crew.submit(task, seconds).result()
    except BrokenExecutor:
        return Outcome({"failed": "its process died, or it hung"}, 0.0)


def _while_all_live(
    crew: Workers,
    wanted: Callable[[], Sequence[Task]],
    seconds: float,
    under_way: dict[Future[Outcome], Task],
) -> Iterator[tuple[Task, Outcome]]:
    """Keep two runs a worker under way: one it does, one it finds ready when that has ended."""
    while True:
        busy = set(under_way.values())
        for task in wanted():
            if len(under_way) >= 2 * crew.count:
                break
            if task not in busy:
                under_way[crew.submit(task, seconds)] = task
        if not under_way:
            return
        for future in wait(under_way, return_when=FIRST_COMPLETED).done:
            outcome = future.result()
            yield under_way.pop(future), outcome


# --- on this machine --------------------------------------------------------------------------

_HELD: dict[str, bytes] = {}


def _ready(payload: bytes) -> None:
    """What a process does first: hold the function, and leave Ctrl-C to the one that asked."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TQDM_DISABLE"] = "1"
    _HELD["payload"] = payload


def _work(task: Task, seconds: float, payload: bytes | None = None) -> Outcome:
    """One run; if it hangs outside of its training, its process is ended."""
    os.environ["TQDM_DISABLE"] = "1"
    faulthandler.dump_traceback_later(PATIENCE * seconds + GRACE, exit=True)
    try:
        return attempt(payload or _HELD["payload"], task.member, seconds, task.keep)
    finally:
        faulthandler.cancel_dump_traceback_later()


class Local:
    """joblib's loky: processes that start clean, so that torch's threads are no trouble."""

    def __init__(self, payload: bytes, count: int) -> None:
        from joblib.externals.loky import ProcessPoolExecutor

        self.count = count
        self.pool = ProcessPoolExecutor(
            count, timeout=60, env=THREADS, initializer=_ready, initargs=(payload,)
        )

    def submit(self, task: Task, seconds: float) -> Future[Outcome]:
        """Run a task in one of the processes."""
        future: Future[Outcome] = self.pool.submit(_work, task, seconds)
        return future

    def close(self, kill: bool = False) -> None:
        """End the processes."""
        self.pool.shutdown(wait=True, kill_workers=kill)


# --- on a cluster -----------------------------------------------------------------------------


class Cluster:
    """The workers of a Dask scheduler, each with one thread, all on processors of one kind."""

    def __init__(self, payload: bytes, address: str) -> None:
        from dask.distributed import Client

        self.client = Client(address, set_as_default=False)
        threads = self.client.nthreads()
        if set(threads.values()) != {1}:  # threads would share one torch.manual_seed
            self.client.close()
            raise Refused(
                "DASK: expected workers of one thread, as `dask worker --nthreads 1` starts them, "
                f"got {sorted(threads.values())}"
            )
        self.count = len(threads)
        self.kinds: list[dict[str, str]] = list(self.client.run(made_on).values())
        self.payload = self.client.scatter(payload, broadcast=True)
        self.pool = self.client.get_executor(pure=False, retries=0)

    def submit(self, task: Task, seconds: float) -> Future[Outcome]:
        """Run a task on one of the workers."""
        future: Future[Outcome] = self.pool.submit(_work, task, seconds, self.payload)
        return future

    def close(self, kill: bool = False) -> None:
        """Forget what they are doing; the workers themselves belong to whoever started them."""
        self.pool.shutdown(wait=False)
        self.client.close()


def made_by(dask: str | None) -> dict[str, str]:
    """`made_on` of the processors that are to run, which must be of one kind.

    Raises:
        Refused: a cluster of different processors, whose numbers would differ in the last digits.
    """
    if not dask:
        return made_on()
    crew = Cluster(b"", dask)
    crew.close()
    if any(kind != crew.kinds[0] for kind in crew.kinds):
        raise Refused(f"DASK: expected workers that are all alike, got {crew.kinds}")
    return crew.kinds[0]


def by_value(names: Iterable[str]) -> None:
    """Send these modules along as text: machines of a cluster don't have a chapter's own code."""
    for name in names:
        cloudpickle.register_pickle_by_value(sys.modules[name])
