"""How the tests draw at random: the profiles of Hypothesis, and a seed for torch in each example.

Imports Hypothesis, where it is installed: the tests of a GPU run on a machine without it.
Must not import gatelib or torch: folders whose tests need no torch stay quick.

    ci     the default: the same examples on each run, so that a failure says that something is new;
           sixty of each test that doesn't say how many
    dev    new examples on each run
    wide   new examples on each run; `make random` repeats it with other seeds

No profile has a deadline, since a busy machine is slow, nor a database, since an example that
failed by chance would come back in each later run. `--hypothesis-profile=wide` chooses another.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any


class TorchRandom:
    """torch's generator as Hypothesis sees Python's own: seeded anew before each example."""

    def seed(self, seed: int) -> None:
        """The same draws from here on; nothing while no test has loaded torch."""
        if "torch" in sys.modules:
            sys.modules["torch"].manual_seed(seed)

    def getstate(self) -> Any:
        """What `setstate` takes back after the example."""
        return sys.modules["torch"].get_rng_state() if "torch" in sys.modules else None

    def setstate(self, state: Any) -> None:
        """Draws outside of random tests go on where they were."""
        if state is not None:
            sys.modules["torch"].set_rng_state(state)


TORCH = TorchRandom()
SHARED = {"deadline": None, "database": None}

if find_spec("hypothesis"):
    from hypothesis import register_random, settings

    register_random(TORCH)
    settings.register_profile("ci", derandomize=True, max_examples=60, **SHARED)
    settings.register_profile("dev", derandomize=False, **SHARED)
    settings.register_profile("wide", derandomize=False, max_examples=500, **SHARED)
    settings.load_profile("ci")
