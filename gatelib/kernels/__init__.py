"""The fast paths behind `gatelib.nn`.

Imports nothing until a module is named.
Must not import gatelib.nn, gatelib.reference, gatelib.lab or gatelib.data.
"""
