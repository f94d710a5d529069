"""Layers keep to the device of their input, tried where there is no other device than the CPU.

Imports nothing of gatelib: the cases register a device with torch, so they run in a process of
their own.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_layer_runs_on_a_device_that_is_no_cpu():
    case = "tests/nn/other_device.py"
    command = [sys.executable, "-m", "pytest", case, "-q", "--tb=short", "-p", "no:cacheprovider"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", run.stdout)[1]) >= 70
