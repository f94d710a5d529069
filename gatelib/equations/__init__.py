"""The equations: each family of gates as short ordered lists of scalar equations (`Spec`).
Imports SymPy, through `gatelib.spec`, and nothing else.
Must not import NumPy, torch, or another floor: what is written here is checked by the others.
"""
