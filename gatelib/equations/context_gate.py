"""Context gates: how much of the next word comes from the source, how much from what was written.

Imports gatelib.cell and gatelib.spec.
Must not import NumPy, torch or any other floor.

`source` is W_s c, the context that attention read, after a matrix; `target` is W_t [y; s], the
word before and the decoder's state, after a matrix. `a` is the gate's own preactivation, which sees
all three. `m` is what the two give together, and `y` its tanh.
"""

from __future__ import annotations

from gatelib.cell import named
from gatelib.spec import Spec

CONTEXT_BOTH = Spec.parse(
    "context_both",
    "a source target -> y",
    """
    z = sigmoid(a)
    m = (1 - z)*target + z*source
    y = tanh(m)""",
)
"""Tu et al. 2017, arXiv:1608.06043: one gate shares a word out between both contexts."""

CONTEXT_SOURCE = CONTEXT_BOTH.replace("context_source", m="target + z*source")
"""The same paper's gate on the source context alone."""

CONTEXT_TARGET = CONTEXT_BOTH.replace("context_target", m="z*target + source")
"""The same paper's gate on the target context alone."""

CONTEXT_NONE = Spec.parse(
    "context_none",
    "source target -> y",
    """
    m = target + source
    y = tanh(m)""",
)
"""No gate: what a decoder does that adds both."""

KINDS = {
    "both": CONTEXT_BOTH,
    "source": CONTEXT_SOURCE,
    "target": CONTEXT_TARGET,
    "none": CONTEXT_NONE,
}
"""The four by the context that is gated."""

ALL = named(*KINDS.values())
