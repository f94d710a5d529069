"""Modules made from text, which a fingerprint reads as it reads a notebook."""

import itertools
import linecache
import sys
import textwrap
import types

from gatelib.lab.fingerprint import fingerprint

COUNT = itertools.count()


def module(text, **names):
    """A module of this source; all that are made so have one name, as a notebook has."""
    made = types.ModuleType("attacked")
    made.__dict__.update(names)
    sys.modules["attacked"] = made
    text, file = textwrap.dedent(text), f"<attacked {next(COUNT)}>"
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)
    exec(compile(text, file, "exec", dont_inherit=True), made.__dict__)
    return made


def of(text, **names):
    """The fingerprint of a module's `run`."""
    return fingerprint(run=module(text, **names).run)
