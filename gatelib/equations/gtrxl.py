"""The block of GTrXL: what stands between its norms, its submodules and the two gates.

Imports gatelib.cell, gatelib.spec and gatelib.equations: gmlp, highway.
Must not import NumPy, torch or any other floor.

A submodule, attention or the two layers behind it, reads the normalised stream. The norm is
`feature_norm` of gatelib.equations.gmlp, the gate `gtrxl` of gatelib.equations.highway.
"""

from gatelib.cell import named
from gatelib.equations.gmlp import NORM
from gatelib.equations.highway import GTRXL
from gatelib.spec import Spec

RELU = Spec.parse("gtrxl_relu", "a -> y", "y = relu(a)")
"""What either submodule hands to its gate (Parisotto et al. 2019, arXiv:1910.06764, section 3.2),
and the hidden layer of the second."""

ALL = named(RELU)

__all__ = ["ALL", "GTRXL", "NORM", "RELU"]
