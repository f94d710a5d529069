"""The machinery of `gatelib.lab.study`: which runs, one run, many runs, their file, their replay.

Imports nothing.
Must not be imported by any floor: only `gatelib.lab.study` and what reads its runs use it.
"""
