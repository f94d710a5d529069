"""Losses, the updates of optimisers, and penalties, as equations.
Imports gatelib.cell and gatelib.spec.
Must not import NumPy, torch or any other floor.

An optimiser is a cell whose input is the gradient: its equations act on one weight, and what it
remembers are carries. Symbols: `w` a weight; `G` the loss's slope by it at this step; `k` the same
with the pull of an L2 penalty, `decay`; `eta` learning rate; `mu`, `alpha`, `beta1`, `beta2` how
much of a running mean is kept; `m`, `n` running means of gradients, `v`, `s` of their squares;
`p`, `q` powers of beta1 and beta2, 1 before the first step. All other carries start at 0.

In a loss: `a` logits (the features are the classes), `y` the target, `p` probabilities.
"""

from __future__ import annotations

from gatelib.cell import named
from gatelib.spec import Spec

SOFTMAX_LOSS = Spec.parse(
    "softmax_loss",
    "a y -> l",
    """
    z = log(total(exp(a)))
    l = total(y*(z - a))""",
)
"""Cross-entropy of a softmax: one class is right, and the classes compete."""

BINARY_LOSS = Spec.parse(
    "binary_loss",
    "a y -> l",
    """
    l = softplus(a) - y*a""",
)
"""Cross-entropy of one sigmoid, from its logit. Several labels at once: their sum."""

PROBABILITY_LOSS = Spec.parse(
    "probability_loss",
    "p y -> l",
    """
    l = -y*log(p) - (1 - y)*log(1 - p)""",
)
"""The binary cross-entropy of a probability: one term of article A's sum (claim A2)."""

BINARY_LOSS_FROM_PROBABILITY = Spec.parse(
    "binary_loss_from_probability",
    "a y -> l",
    """
    p = sigmoid(a)
    l = -y*log(p) - (1 - y)*log(1 - p)""",
)
"""BINARY_LOSS by way of the probability: a large logit takes the logarithm of 0."""

MULTI_LABEL_LOSS = Spec.parse("multi_label_loss", "a y -> l", "l = total(softplus(a) - y*a)")
"""One yes-or-no question per class: binary losses, added."""

BOTH_TERMS_SOFTMAX_LOSS = Spec.parse(
    "both_terms_softmax_loss",
    "a y -> l",
    """
    p = softmax(a)
    l = total(-y*log(p) - (1 - y)*log(1 - p))""",
)
"""Article A's sum (claim A2) over probabilities that come from a softmax."""

GATE_TO_LOSS = Spec.parse(
    "gate_to_loss",
    "x u v w y -> l",
    """
    a = u*x
    g = sigmoid(a)
    h = g*v
    z = w*h
    l = softplus(z) - y*z""",
)
"""From one weight `u` of a gate to the loss: gate g, gated value h, logit z."""

SGD = Spec.parse(
    "sgd",
    "G eta decay w_prev -> w",
    """
    k = G + decay*w_prev
    w = w_prev - eta*k""",
)
"""Gradient descent: G the gradient, eta the learning rate, decay a pull towards 0."""

MOMENTUM = Spec.parse(
    "momentum",
    "G eta mu decay w_prev m_prev -> w m",
    """
    k = G + decay*w_prev
    m = mu*m_prev + k
    w = w_prev - eta*m""",
)
"""Polyak's heavy ball, in torch's form: the learning rate stands outside the running sum."""

NESTEROV = MOMENTUM.replace("nesterov", w="w_prev - eta*(k + mu*m)")
"""Nesterov's, in the form of Sutskever et al. 2013 as torch writes it: it looks one step ahead."""

ADAGRAD = Spec.parse(
    "adagrad",
    "G eta epsilon decay w_prev s_prev -> w s",
    """
    k = G + decay*w_prev
    s = s_prev + k**2
    w = w_prev - eta*k/(sqrt(s) + epsilon)""",
)
"""Duchi et al. 2011 with a diagonal matrix; torch adds epsilon outside the root."""

ADAGRAD_PRINTED = ADAGRAD.replace("adagrad_printed", w="w_prev - eta*k/sqrt(s_prev + epsilon)")
"""As article A prints it (claim A4): the step divides by the sum from before this gradient."""

RMSPROP = Spec.parse(
    "rmsprop",
    "G eta alpha epsilon decay w_prev v_prev -> w v",
    """
    k = G + decay*w_prev
    v = alpha*v_prev + (1 - alpha)*k**2
    w = w_prev - eta*k/(sqrt(v) + epsilon)""",
)
"""The step is divided by the root of a running mean v of squared gradients."""

RMSPROP_CENTERED = Spec.parse(
    "rmsprop_centered",
    "G eta alpha mu epsilon decay w_prev v_prev n_prev m_prev -> w v n m",
    """
    k = G + decay*w_prev
    v = alpha*v_prev + (1 - alpha)*k**2
    n = alpha*n_prev + (1 - alpha)*k
    m = mu*m_prev + k/(sqrt(v - n**2) + epsilon)
    w = w_prev - eta*m""",
)
"""With the mean taken out and momentum on top, as Graves 2013 trained his LSTMs."""

ADAM = Spec.parse(
    "adam",
    "G eta beta1 beta2 epsilon decay w_prev m_prev v_prev p_prev q_prev -> w m v p q",
    """
    k = G + decay*w_prev
    m = beta1*m_prev + (1 - beta1)*k
    v = beta2*v_prev + (1 - beta2)*k**2
    p = beta1*p_prev
    q = beta2*q_prev
    mhat = m/(1 - p)
    vhat = v/(1 - q)
    w = w_prev - eta*mhat/(sqrt(vhat) + epsilon)""",
)
"""Kingma & Ba 2015, algorithm 1; `decay` here is an L2 penalty in the loss."""

ADAMW = ADAM.replace("adamw", w="w_prev - eta*decay*w_prev - eta*mhat/(sqrt(vhat) + epsilon)").subs(
    k="G"
)
"""Loshchilov & Hutter 2019: the decay goes straight to the weight, past both running means."""

SOFT_THRESHOLD = Spec.parse("soft_threshold", "w t -> q", "q = relu(w - t) - relu(-w - t)")
"""The proximal step of an L1 penalty: everything moves by t towards 0, and stops there."""

SHRINK = Spec.parse("shrink", "w t -> q", "q = w/(1 + t)")
"""The proximal step of an L2 penalty: everything shrinks by one factor."""

LOSSES = {
    spec.name: spec
    for spec in (
        SOFTMAX_LOSS,
        BINARY_LOSS,
        PROBABILITY_LOSS,
        BINARY_LOSS_FROM_PROBABILITY,
        MULTI_LABEL_LOSS,
        BOTH_TERMS_SOFTMAX_LOSS,
        GATE_TO_LOSS,
    )
}
OPTIMIZERS = {
    spec.name: spec
    for spec in (
        SGD,
        MOMENTUM,
        NESTEROV,
        ADAGRAD,
        ADAGRAD_PRINTED,
        RMSPROP,
        RMSPROP_CENTERED,
        ADAM,
        ADAMW,
    )
}
PROXIMAL = {spec.name: spec for spec in (SOFT_THRESHOLD, SHRINK)}
ALL = named(*LOSSES.values(), *OPTIMIZERS.values(), *PROXIMAL.values())

CONSTANTS = ("eta", "mu", "alpha", "beta1", "beta2", "epsilon", "decay")
"""The inputs of an optimiser that stay the same from step to step."""

NAMES = {
    "eta": r"\eta",
    "mu": r"\mu",
    "alpha": r"\alpha",
    "beta1": r"\beta_1",
    "beta2": r"\beta_2",
    "epsilon": r"\epsilon",
    "decay": r"\lambda",
    "mhat": r"\hat{m}_t",
    "vhat": r"\hat{v}_t",
}
"""LaTeX of the constants, which carry no step's index, and of Adam's corrected means."""
