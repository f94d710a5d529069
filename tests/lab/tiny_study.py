"""A study that trains in milliseconds, as the cells of a chapter would hold it, and edits of it.

Imports cloudpickle, gatelib.lab.
Must not make a record when it is imported: it also runs as a program of its own.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import pytest

from gatelib.lab import StaleRecord
from gatelib.lab.runs.store import checksum

NAME = "06_lstm-tiny"

LIBRARY = '''
"""A module that poses as one of gatelib's."""


def labelled(x, shift=0.0):
    """Whether the first two features have one sign."""
    return (x[:, 0] * x[:, 1] > shift).astype("int64")
'''

CHAPTER = '''
import os
import time

import numpy as np
import torch
from torch import nn

from gatelib import posing
from gatelib.lab import accuracy, rates, study, train

x = np.random.default_rng(0).normal(size=(160, 4)).astype("float32")
DATA = x[:80], posing.labelled(x[:80])
VALID = x[80:], posing.labelled(x[80:])
STEPS = 12


def net(width, kind):
    """A small net."""
    hidden = nn.Linear(4, width)  # its weights come from torch's seed
    return nn.Sequential(hidden, kind(), nn.Linear(width, 2))


def run(kind, lr, seed):
    """One run."""
    torch.manual_seed(seed)
    model = net(6, kind)
    history = train(model, DATA, steps=STEPS, lr=lr, seed=seed, batch_size=16)
    measured = accuracy((x, posing.labelled(x)))(model)
    return {"loss": history, "valid": accuracy(VALID)(model), "test": measured}


def tiny(**options):
    """The study of this chapter."""
    kinds = {"tanh": nn.Tanh, "relu": nn.ReLU}
    given = {"kind": kinds, "lr": rates(1e-2, 1.0, 3, further=1), "choose": 2, "report": 2}
    return study("06_lstm-tiny", run, **given | options)
'''


def library(text: str = LIBRARY) -> None:
    """Load a text as the module gatelib.posing, which goes to workers by its value."""
    path = _written(text)
    spec = importlib.util.spec_from_file_location("gatelib.posing", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["gatelib.posing"] = module
    sys.modules["gatelib"].posing = module  # type: ignore[attr-defined]
    cloudpickle.register_pickle_by_value(module)


def chapter(text: str = CHAPTER) -> dict[str, Any]:
    """Run a text as the cells of a notebook are run, as `__main__`; return what it defined."""
    path = _written(text)
    sys.modules["__main__"] = ModuleType("__main__")
    cells: dict[str, Any] = vars(sys.modules["__main__"])
    exec(compile(text, path, "exec"), cells)
    return cells


def _written(text: str) -> str:
    """A text as a file in the folder of today, another file for another text."""
    path = Path(f"source_{hashlib.sha256(text.encode()).hexdigest()[:8]}.py").resolve()
    path.write_text(text)
    return str(path)


def files(name: str = NAME) -> dict[str, bytes]:
    """What must be the same bytes in every making."""
    return {end: Path(f"studies/{name}.{end}").read_bytes() for end in ("jsonl", "npz")}


def failing(text: str = CHAPTER, **options: Any) -> str:
    """What the check of a study says that doesn't hold."""
    with pytest.raises(StaleRecord) as caught:
        chapter(text)["tiny"](**options)
    message = str(caught.value)
    assert message.startswith(f"study {NAME}:\n- ") and "`make study CHAPTER=06`" in message
    return message


def read() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The first line of the record, and its runs."""
    head, *lines = Path(f"studies/{NAME}.jsonl").read_text().splitlines()
    return json.loads(head), [json.loads(line) for line in lines]


def write(head: dict[str, Any], lines: list[dict[str, Any]], remade: bool) -> None:
    """Put a record in its place, with a checksum that is right if `remade`."""
    body = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    if remade:
        head = head | {"sum": checksum(head, body)}
    Path(f"studies/{NAME}.jsonl").write_text(json.dumps(head, ensure_ascii=False) + "\n" + body)


if __name__ == "__main__":
    library()
    chapter(CHAPTER.replace("STEPS = 12", sys.argv[1]))["tiny"]()
