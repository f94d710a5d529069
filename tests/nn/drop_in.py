"""What the tests of the drop-ins for torch's recurrent layers share.

Imports gatelib.nn, torch and pytest.
Must not import gatelib.reference: the peer here is torch.
"""

from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from gatelib.nn import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell

D, H, B, T = 5, 6, 3, 7
SHAPES = {
    "plain": {},
    "without bias": {"bias": False},
    "batch first": {"batch_first": True},
    "two layers": {"num_layers": 2},
    "three layers": {"num_layers": 3, "batch_first": True},
    "bidirectional": {"bidirectional": True},
    "three layers in two directions": {"num_layers": 3, "bidirectional": True},
    "without bias in two directions": {"bias": False, "bidirectional": True, "num_layers": 2},
}
PROJECTED = {
    "projected": {"proj_size": 2},
    "projected without bias": {"proj_size": 3, "bias": False, "num_layers": 2},
    "projected in two directions": {"proj_size": 2, "bidirectional": True, "num_layers": 2},
}
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
        ],
    ),
]


class Family(NamedTuple):
    """A layer, its cell, and the options that they always get."""

    layer: Any
    cell: Any
    options: dict[str, Any]


FAMILIES = {
    "LSTM": Family(LSTM, LSTMCell, {}),
    "GRU": Family(GRU, GRUCell, {}),
    "RNN": Family(RNN, RNNCell, {}),
    "ReLU": Family(RNN, RNNCell, {"nonlinearity": "relu"}),
}

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64", "bfloat16"])
every_impl = pytest.mark.parametrize("impl", ["fused", "reference"])
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
every_state = pytest.mark.parametrize(  # for what takes long: ReLU differs in its kernel alone
    "family", [FAMILIES[name] for name in ("LSTM", "GRU", "RNN")], ids=["LSTM", "GRU", "RNN"]
)
every_shape = pytest.mark.parametrize(
    ("family", "options"),
    [
        pytest.param(family, options, id=f"{name} {shape}")
        for name, family in FAMILIES.items()
        for shape, options in (SHAPES | PROJECTED if name == "LSTM" else SHAPES).items()
    ],
)


def make(family, *arguments, **options):
    """A layer of the family with D features and H units."""
    return family.layer(D, H, *arguments, **family.options, **options)


def peer(ours):
    """Torch's module with the arguments, weights, mode and place of `ours`."""
    cell = isinstance(ours, nn.RNNCellBase)
    names = ["input_size", "hidden_size", "bias"]
    names += [] if cell else ["num_layers", "batch_first", "dropout", "bidirectional"]
    names += ["nonlinearity"] if hasattr(ours, "nonlinearity") else []
    names += ["proj_size"] if getattr(ours, "proj_size", 0) else []
    theirs = getattr(nn, type(ours).__name__)(**{name: getattr(ours, name) for name in names})
    weight = next(ours.parameters())
    theirs.to(weight.device, weight.dtype)
    theirs.load_state_dict(ours.state_dict())
    return theirs.train(ours.training)


def pair_or_one(ours, states):
    """States as a layer or cell takes them."""
    return tuple(states) if "LSTM" in type(ours).__name__ else states[0]


def draw(ours, batch=B, steps=T, unbatched=False):
    """An input and initial states for a layer."""
    shape = (batch, steps) if ours.batch_first else (steps, batch)
    count = ours.num_layers * (2 if ours.bidirectional else 1)
    like = ours.weight_ih_l0.detach()
    middle = () if unbatched else (batch,)
    x = like.new_empty((*((steps,) if unbatched else shape), ours.input_size)).normal_()
    sizes = (ours.proj_size or ours.hidden_size, ours.hidden_size)
    states = [like.new_empty((count, *middle, size)).normal_() for size in sizes]
    return x, pair_or_one(ours, states)


def sequences(lengths, dtype=torch.float32, sort=False):
    """A packed batch of random sequences."""
    rows = [torch.randn(length, D, dtype=dtype) for length in lengths]
    return pack_sequence(rows, enforce_sorted=sort)


def listed(states):
    """One state or two as a list."""
    return [] if states is None else list(states) if isinstance(states, tuple) else [states]


def given(states, like):
    """A list of states as `like` was."""
    return None if like is None else tuple(states) if isinstance(like, tuple) else states[0]


def everything(module, x, hx=None):
    """Output, states and all gradients of a fixed random function of them, by name.

    A compiled module has the names of the module that it was made from.
    """
    packed = x if isinstance(x, PackedSequence) else None
    leaf = (x if packed is None else x.data).detach().clone().requires_grad_()
    states = [s.detach().clone().requires_grad_() for s in listed(hx)]
    y, final = module(
        leaf if packed is None else PackedSequence(leaf, *packed[1:]), given(states, hx)
    )
    found = {"y": y if packed is None else y.data}
    found |= dict(zip("hc", listed(final), strict=False))
    maker = torch.Generator().manual_seed(1)
    seeds = [torch.randn(v.shape, generator=maker).to(v) for v in found.values()]
    names, parameters = zip(*module.named_parameters(), strict=True)
    grads = torch.autograd.grad(list(found.values()), [leaf, *states, *parameters], seeds)
    found = {name: value.detach() for name, value in found.items()}
    all_names = ["x", *["h_0", "c_0"][: len(states)], *(n.split("_orig_mod.")[-1] for n in names)]
    return found | {f"d_{n}": g for n, g in zip(all_names, grads, strict=True)}


def step(cell, x, hx):
    """The states and all gradients of one step of a cell."""
    leaf, *states = [t.detach().clone().requires_grad_() for t in (x, *listed(hx))]
    final = listed(cell(leaf, given(states, hx)))
    names, parameters = zip(*cell.named_parameters(), strict=True)
    value = sum(((k + 2) * s + s.sin()).sum() for k, s in enumerate(final))
    grads = torch.autograd.grad(value, [leaf, *states, *parameters])
    all_names = ["x", *["h", "c"][: len(states)], *(n.split("_orig_mod.")[-1] for n in names)]
    found = {f"d_{n}": g for n, g in zip(all_names, grads, strict=True)}
    return found | dict(zip("hc", final, strict=False))


def second(module, x):
    """Second derivatives."""
    x = x.detach().requires_grad_()
    wanted = [x, *module.parameters()]
    first = torch.autograd.grad(module(x)[0].pow(2).sum(), wanted, create_graph=True)
    return torch.autograd.grad(sum(g.pow(2).sum() for g in first), wanted)


def assert_same(ours, theirs):
    """Every value has the same bits."""
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype, name
        assert torch.equal(value, theirs[name]), name


def error(value, truth):
    """The largest absolute error, relative to the largest value where that is above 1."""
    if truth.numel() == 0:
        return 0.0
    value, truth = value.detach().double(), truth.detach()
    return float((value - truth).abs().max() / max(1.0, float(truth.abs().max())))


def assert_close(ours, truth, tolerance):
    """Every value is within the tolerance, as `error` measures it."""
    assert ours.keys() == truth.keys()
    for name, value in ours.items():
        assert value.shape == truth[name].shape, name
        assert error(value, truth[name].double()) <= tolerance, name


def assert_torchs(ours, x, hx, tolerance):
    """Outputs and gradients are torch's: to the bit from the fused path, or within a tolerance."""
    found, theirs = everything(ours, x, hx), everything(peer(ours), x, hx)
    if ours.impl == "fused":
        assert_same(found, theirs)
    else:
        assert_close(found, theirs, tolerance)


def assert_no_further_than_torch(ours, x, hx, theirs=None):
    """Against float64, `ours` errs at most twice as much as torch, and a rounding."""
    theirs = theirs or peer(ours)
    exact = peer(ours).double()
    wide = given([state.double() for state in listed(hx)], hx)
    truth = everything(exact, x.double(), wide)
    found, torchs = everything(ours, x, hx), everything(theirs, x, hx)
    for name, value in found.items():
        budget = 2 * error(torchs[name], truth[name]) + 2 * torch.finfo(x.dtype).eps
        assert error(value, truth[name]) <= budget, name
