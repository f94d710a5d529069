"""The equations run over time, depth and heads, with their derived gradients.

Imports its own modules.
Must not import gatelib.reference, gatelib.nn or torch: all are compared with it.

    run = partial(derived.rnn.over_time, equations.LSTM)
    derived.gradients(run, {"x": x, "W": W, …}, {"y": dy})  # y, final_h, …, d_x, d_W, …
"""

from gatelib.derived import (
    attention,
    balance,
    context_gate,
    conv_rnn,
    depth,
    gated_attention,
    gated_conv,
    gated_stack,
    gau,
    glu,
    gmlp,
    gtrxl,
    highway,
    moe,
    pointer,
    pooling,
    rnn,
    routers,
    searched,
    stacks,
    training,
    vision,
)
from gatelib.derived.tape import Tape, Value, gate, gradients, join, linear, split, stack, swap

__all__ = [
    "Tape",
    "Value",
    "attention",
    "balance",
    "context_gate",
    "conv_rnn",
    "depth",
    "gate",
    "gated_attention",
    "gated_conv",
    "gated_stack",
    "gau",
    "glu",
    "gmlp",
    "gradients",
    "gtrxl",
    "highway",
    "join",
    "linear",
    "moe",
    "pointer",
    "pooling",
    "rnn",
    "routers",
    "searched",
    "split",
    "stack",
    "stacks",
    "swap",
    "training",
    "vision",
]
