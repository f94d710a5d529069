"""Runs one function in several processes of this machine at once: the ranks of a process group.

Imports torch.
Must not import any other module of gatelib: what the ranks do is the caller's.

The processes are forked, in a tenth of a second each, where starting Python anew takes many. So a
function of a notebook can be run, and every rank begins with the parent's random numbers. A GPU
can't be used in a process that was forked: there start the ranks with `torchrun`.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from torch import distributed as dist

__all__ = ["RankError", "outcomes", "run"]


class RankError(RuntimeError):
    """What went wrong on one rank; the message begins with its number.

    rank: its number.
    error: what it raised; None where it died, or was stopped since it did not end.
    when: at which second it raised, by `time.monotonic`; 0 where it raised nothing.
    """

    def __init__(
        self, rank: int, says: str, error: BaseException | None = None, when: float = 0.0
    ) -> None:
        super().__init__(f"rank {rank} {says}")
        self.rank, self.says, self.error, self.when = rank, says, error, when

    def __reduce__(self) -> tuple[Any, ...]:
        return RankError, (self.rank, self.says, self.error, self.when)


def run(
    function: Callable[..., Any],
    *arguments: Any,
    ranks: int = 4,
    timeout: float = 30.0,
    patience: float | None = None,
) -> list[Any]:
    """Call a function in each of several processes, and return what each of them returned.

        def total(x):
            torch.distributed.all_reduce(x)     # a process group with gloo is there
            return x

        run(total, torch.ones(1), ranks=2)      # [tensor([2.]), tensor([2.])]

    What the ranks print is printed here, one rank after the other, when all have ended.

    Args:
        function: what each rank calls; its number is `torch.distributed.get_rank()`. It may be a
            function of a notebook, and what it returns has to be picklable: tensors are.
        arguments: what it is called with, the same on each rank.
        ranks: how many processes.
        timeout: seconds after which the ranks that haven't ended are stopped.
        patience: seconds that a collective waits for the other ranks; None for a third of timeout.

    Raises:
        RankError: a rank raised an error, which is its `error`; or died; or didn't end in time. Of
            several, the one that died comes first, then who was stopped, then who raised first.
        TypeError, ValueError: an argument has the wrong type, or is out of range.
    """
    found = outcomes(function, *arguments, ranks=ranks, timeout=timeout, patience=patience)
    failed = [value for value in found if isinstance(value, RankError)]
    if failed:
        first = min(failed, key=_blame)
        raise first from first.error
    return found


def outcomes(
    function: Callable[..., Any],
    *arguments: Any,
    ranks: int = 4,
    timeout: float = 30.0,
    patience: float | None = None,
) -> list[Any]:
    """The same, but a rank that failed has its `RankError` in the list, and nothing is raised."""
    _check(function, ranks, timeout, patience)
    waits = timeout / 3 if patience is None else patience
    with tempfile.TemporaryDirectory(prefix="gates-ranks-") as folder:
        task = function, arguments, os.path.join(folder, "store"), waits
        started = [_started(rank, ranks, task) for rank in range(ranks)]
        try:
            found = _heard([pipe for _, pipe in started], time.monotonic() + timeout)
        finally:
            for process, pipe in started:
                process.kill()
                process.join()
                pipe.close()
    said = [text for text, _ in found.values()]
    print("".join(said), end="")
    codes = [process.exitcode for process, _ in started]
    return [_outcome(rank, found.get(rank), codes[rank], timeout) for rank in range(ranks)]


# --- in a rank ----------------------------------------------------------------------------------


def _rank(rank: int, ranks: int, task: tuple[Any, ...], pipe: Connection) -> None:
    """Call the function and send what came of it; then leave, with nothing of the parent's run."""
    try:
        _silence()
        with contextlib.redirect_stdout(io.StringIO()) as said:
            answer = _answer(rank, ranks, *task)
        pipe.send_bytes(pickle.dumps(said.getvalue()))
        pipe.send_bytes(answer)
    finally:
        os._exit(0)


def _answer(
    rank: int, ranks: int, function: Any, arguments: Any, path: str, patience: float
) -> bytes:
    """(time, result, error), pickled."""
    try:
        torch.set_num_threads(1)
        store = dist.FileStore(path, ranks)  # type: ignore[attr-defined]
        options: dict[str, Any] = {"store": store, "timeout": timedelta(seconds=patience)}
        dist.init_process_group("gloo", rank=rank, world_size=ranks, **options)
        value = function(*arguments)
        return pickle.dumps((time.monotonic(), value, None))
    except BaseException as error:
        return pickle.dumps((time.monotonic(), None, _portable(error)))


def _portable(error: BaseException) -> BaseException:
    """The error as it can be sent, with where it was raised as a note."""
    text = "".join(traceback.format_exception(error))
    try:
        sent: BaseException = pickle.loads(pickle.dumps(error))
    except Exception:
        sent = RuntimeError(f"{type(error).__name__}: {error}")
    sent.add_note(text)
    return sent


def _silence() -> None:
    """Nothing that libraries write reaches the parent's terminal, or its notebook."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    sys.stderr = io.StringIO()
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


# --- in the parent ------------------------------------------------------------------------------


def _started(rank: int, ranks: int, task: tuple[Any, ...]) -> tuple[Any, Connection]:
    """A process, and the end of a pipe from which its answer can be read.

    The other end is closed here before the next process is forked, which would hold it open.
    """
    fork = multiprocessing.get_context("fork")
    mine, its = fork.Pipe(duplex=False)
    process = fork.Process(target=_rank, args=(rank, ranks, task, its), daemon=True)
    with warnings.catch_warnings():  # that threads of the parent aren't there after a fork
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    its.close()
    return process, mine


def _heard(pipes: Sequence[Connection], deadline: float) -> dict[int, tuple[str, Any]]:
    """By rank what it printed, and its answer, or None where it died; who is missing was late."""
    found: dict[int, tuple[str, Any]] = {}
    while len(found) < len(pipes):
        open_ones = [pipe for rank, pipe in enumerate(pipes) if rank not in found]
        ready = wait(open_ones, max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        found |= {rank: _read(pipe) for rank, pipe in enumerate(pipes) if pipe in ready}
    return dict(sorted(found.items()))


def _read(pipe: Connection) -> tuple[str, Any]:
    try:
        return pickle.loads(pipe.recv_bytes()), pickle.loads(pipe.recv_bytes())
    except EOFError:
        return "", None


def _outcome(rank: int, heard: tuple[str, Any] | None, code: int, timeout: float) -> Any:
    if heard is None:
        return RankError(rank, f"did not end within {timeout:g} s, and was stopped")
    if heard[1] is None:
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return RankError(rank, f"died: {how}")
    when, value, error = heard[1]
    if error is None:
        return value
    return RankError(rank, f"raised {type(error).__name__}: {error}", error, when)


def _blame(error: RankError) -> tuple[int, float]:
    """Who died comes before who was stopped, and both before who raised an error; then by time."""
    if error.error is not None:
        return 2, error.when
    return int(not error.says.startswith("died")), 0.0


def _check(function: object, ranks: object, timeout: float, patience: float | None) -> None:
    if not callable(function):
        raise TypeError(f"function: expected a function, got {type(function).__name__}")
    if isinstance(ranks, bool) or not isinstance(ranks, int):
        raise TypeError(f"ranks: expected an integer, got {type(ranks).__name__}")
    if ranks < 1:
        raise ValueError(f"ranks: expected at least 1, got {ranks}")
    for name, value in {"timeout": timeout, "patience": patience}.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name}: expected more than 0 seconds, got {value}")
    on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if on_gpu or "fork" not in multiprocessing.get_all_start_methods():
        raise RuntimeError("run: expected a process that can be forked; start ranks by torchrun")
