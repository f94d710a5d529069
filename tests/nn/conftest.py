"""What every test of layers starts from: the same random numbers, and a compiler that is clean.

Imports pytest, torch.
Must not import gatelib: a fixture knows no layer.
"""

import warnings
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Each test draws as if it ran alone."""
    torch.manual_seed(0)


@pytest.fixture
def compiler() -> Iterator[None]:
    """What was compiled before is forgotten, and so is what the test compiles."""
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch._dynamo.reset()
