"""The LSTM and its variants as equations.

Imports gatelib.cell and gatelib.spec.
Must not import NumPy, torch or any other floor.

Inputs `a_k` are preactivations W_k x_t + U_k h_{t−1} + b_k; `c_prev` is the cell state one step
before; `w_k` are peephole weights; `s_k` and `b_k` are gains and shifts of layer normalisation.
Where a Spec has `u_k` too, `a_k` is W_k x_t + b_k and `u_k` is U_k h_{t−1} + b'_k.
"""

from __future__ import annotations

from dataclasses import replace

from gatelib.cell import named
from gatelib.spec import Spec, symbol

LSTM = Spec.parse(
    "lstm",
    "a_i a_f a_g a_o c_prev -> h c",
    """
    i = sigmoid(a_i)
    f = sigmoid(a_f)
    g = tanh(a_g)
    o = sigmoid(a_o)
    c = f*c_prev + i*g
    m = tanh(c)
    h = o*m
    """,
)
"""Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000."""

PEEPHOLE = Spec.parse(
    "peephole",
    "a_i a_f a_g a_o w_i w_f w_o c_prev -> h c",
    """
    i = sigmoid(a_i + w_i*c_prev)
    f = sigmoid(a_f + w_f*c_prev)
    g = tanh(a_g)
    c = f*c_prev + i*g
    o = sigmoid(a_o + w_o*c)
    m = tanh(c)
    h = o*m
    """,
)
"""Gers & Schmidhuber 2000: i and f see the old cell state, o the new one, through diagonals."""

LAYERNORM = Spec.parse(
    "layernorm",
    "a_i a_f a_g a_o s_i s_f s_g s_o s_c b_i b_f b_g b_o b_c c_prev -> h c",
    """
    i = sigmoid(s_i*normalize(a_i) + b_i)
    f = sigmoid(s_f*normalize(a_f) + b_f)
    g = tanh(s_g*normalize(a_g) + b_g)
    o = sigmoid(s_o*normalize(a_o) + b_o)
    c = f*c_prev + i*g
    m = tanh(s_c*normalize(c) + b_c)
    h = o*m
    """,
)
"""Layer normalisation of each gate's preactivation, W x and U h summed before it.

The shift b_f after the normalisation sets how open the forget gate starts: what a bias before it
adds to all units is centred away. Ba et al. normalise W x and U h apart: `LAYERNORM_APART`.
"""

LAYERNORM_APART = Spec.parse(
    "layernorm_apart",
    "a_i u_i a_f u_f a_g u_g a_o u_o"
    " s_ai s_ui s_af s_uf s_ag s_ug s_ao s_uo s_c b_i b_f b_g b_o b_c c_prev -> h c",
    """
    i = sigmoid(s_ai*normalize(a_i) + s_ui*normalize(u_i) + b_i)
    f = sigmoid(s_af*normalize(a_f) + s_uf*normalize(u_f) + b_f)
    g = tanh(s_ag*normalize(a_g) + s_ug*normalize(u_g) + b_g)
    o = sigmoid(s_ao*normalize(a_o) + s_uo*normalize(u_o) + b_o)
    c = f*c_prev + i*g
    m = tanh(s_c*normalize(c) + b_c)
    h = o*m
    """,
)
"""Layer normalisation of Ba et al. 2016, arXiv:1607.06450, eq. 20–22, once a gate.

Gains start at 1 and shifts at 0, as in the paper. It has no bias before the norms, and a shift for
each of the two norms besides b_k; of these three, which add up, one is kept. So a layer without
biases, `Recurrent(LAYERNORM_APART, …, bias=False)`, has the paper's parameters. One difference is
left: the paper and its code take mean and variance over the 4·H values of all four gates.
"""

CIFG = LSTM.replace("cifg", i="1 - f")
"""Coupled input and forget gate (Greff et al. 2015): what leaves makes room for what enters."""

NO_INPUT = replace(LSTM.subs(i=1), name="no_input")
"""NIG of Greff et al. 2015: the input gate is 1."""

NO_FORGET = replace(LSTM.subs(f=1), name="no_forget")
"""NFG of Greff et al. 2015: the forget gate is 1, which is the cell of 1997."""

NO_OUTPUT = replace(LSTM.subs(o=1), name="no_output")
"""NOG of Greff et al. 2015: the output gate is 1."""

NO_INPUT_ACTIVATION = replace(LSTM.subs(g="a_g"), name="no_input_activation")
"""NIAF of Greff et al. 2015: the candidate has no tanh."""

NO_OUTPUT_ACTIVATION = replace(LSTM.subs(m="c"), name="no_output_activation")
"""NOAF of Greff et al. 2015: the cell state has no tanh on its way out."""

ARTICLE = replace(LSTM, outputs=(symbol("h"), symbol("i"))).replace("article", h="o*f")
"""Article A's formulas to the letter (claim A10): no candidate, no cell, and i goes nowhere."""

ALL = named(
    LSTM,
    PEEPHOLE,
    CIFG,
    LAYERNORM,
    LAYERNORM_APART,
    NO_INPUT,
    NO_FORGET,
    NO_OUTPUT,
    NO_INPUT_ACTIVATION,
    NO_OUTPUT_ACTIVATION,
    ARTICLE,
)
