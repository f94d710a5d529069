"""What the tests of sequence to sequence share: small models, and sentences for them.

Imports torch, gatelib.nn and gatelib.equations.lstm.
Must not import a reference.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from gatelib.equations.lstm import PEEPHOLE
from gatelib.nn import (
    GRU,
    LSTM,
    AdditiveAttention,
    Decoder,
    DotAttention,
    Encoder,
    FixedContext,
    Recurrent,
    Seq2Seq,
)

START, END, PADDING = 2, 3, 0
LAYERS = {
    "RNN": partial(nn.RNN, batch_first=True),
    "torch.GRU": partial(nn.GRU, batch_first=True),
    "GRU": partial(GRU, batch_first=True),
    "torch.LSTM": partial(nn.LSTM, batch_first=True),
    "LSTM": partial(LSTM, batch_first=True),
    "peephole": partial(Recurrent, PEEPHOLE),
}
DESIGNS = {
    "dot": {"attention": DotAttention(6, 6)},
    "additive": {"attention": AdditiveAttention(6, 6, 5)},
    "before": {"attention": AdditiveAttention(6, 6, 5), "attend": "before"},
    "fixed": {"attention": FixedContext(6)},
    "none": {},
}


def model_of(layer="GRU", design="dot", vocabulary=7, seed=0, layers=1, bidirectional=False):
    """A small double-precision model with weights far from zero, so that answers differ."""
    torch.manual_seed(seed)
    make, options = LAYERS[layer], DESIGNS[design]
    reads = make(4, 3 if bidirectional else 6, layers, bidirectional=bidirectional)
    writes = make(4 + 6 * (options.get("attend") == "before"), 6, layers)
    model = Seq2Seq(Encoder(9, 4, reads), Decoder(vocabulary, 4, writes, **options), START, END)
    model = model.double()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def sentences(seed=0, batch=4, steps=5, vocabulary=9):
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(1, vocabulary, (batch, steps), generator=generator)
    lengths = torch.tensor([5, 2, 1, 4])[:batch]
    return source.masked_fill(torch.arange(steps) >= lengths[:, None], 0), lengths
