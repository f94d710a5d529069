"""The references: each family forward and backward by hand, written to be read.
Imports nothing. Its modules import NumPy alone, and work where SymPy and torch are missing.
Must not import `gatelib.spec`, the equations or torch: a witness that copies is no witness.
"""
