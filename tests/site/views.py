"""What the scripts of the explorers compute, asked of node.

Imports the standard library, and `drawing` and `vendor` of the book. Must not import gatelib.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.site.built import ROOT

sys.path[:0] = [str(ROOT / "book" / "_ext"), str(ROOT / "tools")]
import drawing  # noqa: E402
import vendor  # noqa: E402

PROGRAM = """
const fs = require("node:fs"), vm = require("node:vm");
const { files, expression, given } = JSON.parse(fs.readFileSync(0, "utf8"));
for (const file of files) vm.runInThisContext(fs.readFileSync(file, "utf8"), { filename: file });
const found = vm.runInThisContext(`(given) => ${expression}`)(given);
process.stdout.write(JSON.stringify(found));
"""


def evaluated(expression: str, given: Any = None) -> Any:
    """An expression of JavaScript with all views loaded; it may read what is `given`."""
    files = [str(drawing.STATIC / file) for file in drawing.files(drawing.views())]
    question = json.dumps({"files": files, "expression": expression, "given": given})
    command = [str(vendor.node()), "-e", PROGRAM]
    done = subprocess.run(command, input=question, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
