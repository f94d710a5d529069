"""The plain command `pytest --nbval chapters/` checks the chapters as `make chapters` does.

Imports tools.notebooks.
Must not import gatelib: a chapter meets the library in its own kernel only.

What a kernel inherits, what comparison may not see and how long a cell may take are said once, in
`tools/notebooks.py`; this file hands them to nbval. An option on the command line goes first.
"""

from __future__ import annotations

import os

import pytest

from tools import notebooks

NBVAL_HAS_NO_LIMIT = 2000  # nbval's own default, in seconds


def pytest_configure(config: pytest.Config) -> None:
    """Give nbval the environment, the sanitisers and the limit of a cell, where it is asked for."""
    option = config.option
    if not (getattr(option, "nbval", False) or getattr(option, "nbval_lax", False)):
        return
    os.environ.update(notebooks.prepare_environment())
    if option.nbval_sanitize_with is None:
        option.nbval_sanitize_with = str(notebooks.SANITISERS)
    if option.nbval_kernel_name is None:
        option.nbval_current_env = True
    if option.nbval_cell_timeout == NBVAL_HAS_NO_LIMIT:
        option.nbval_cell_timeout = notebooks.CELL_SECONDS


def pytest_itemcollected(item: pytest.Item) -> None:
    """A cell may take longer than a test, and a warning of the notebook stack is no fault of it."""
    if item.config.getoption("timeout", None) is None:
        item.add_marker(pytest.mark.timeout(2 * notebooks.CELL_SECONDS))
    item.add_marker(pytest.mark.filterwarnings("default"))
