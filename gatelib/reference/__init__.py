"""The references: each family forward and backward by hand, written to be read.
Imports NumPy alone, so that this floor works where neither SymPy nor torch is installed.
Must not import `gatelib.spec`, the equations or torch: a witness that copies is no witness.
"""
