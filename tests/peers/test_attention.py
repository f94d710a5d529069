"""Gated attention against its peers: torch's layer with a float mask, and x-transformers' gate.

Imports torch and gatelib.nn; the peer where it is installed:

    pip install x-transformers==2.31.10
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from gatelib.nn import GatedAttention, GTrXLGate
from gatelib.nn.convert import sink_column
from gatelib.nn.reading import Positions, alibi

B, T, D, H = 2, 9, 16, 4


def x_transformers(name):
    """A class from x-transformers' source file, whose package needs more than the class does."""
    found = importlib.util.find_spec("x_transformers")
    if found is None:
        pytest.skip("x-transformers is not installed: pip install x-transformers==2.31.10")
    source = Path(found.submodule_search_locations[0], "x_transformers.py").read_text()
    nodes = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    (node,) = (node for node in nodes if node.name == name)
    space = {"torch": torch, "nn": nn, "Module": nn.Module, "__name__": name}
    space |= {"exists": lambda value: value is not None}
    space["rearrange"] = lambda values, _: values.flatten(0, 1)
    exec(compile(ast.Module([node], []), name, "exec"), space)
    return space[name]


def taught(layer):
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.4)
    return layer.double()


def tokens():
    return torch.randn(B, T, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def both(ours, mask):
    """Outputs and the gradients of what both have, of ours and of torch's layer with the mask."""
    theirs = nn.MultiheadAttention(D, H, batch_first=True, dtype=torch.float64)
    own = ours.state_dict()
    theirs.load_state_dict({name: own[name] for name in theirs.state_dict()})
    x, found = tokens().requires_grad_(), []
    for layer, call in (
        (ours, lambda: ours(x)[0]),
        (theirs, lambda: theirs(x, x, x, attn_mask=mask, need_weights=False)[0]),
    ):
        y, named = call(), dict(layer.named_parameters())
        wanted = [x, *(named[name] for name in theirs.state_dict())]
        found.append([y, *torch.autograd.grad(y.square().sum(), wanted, retain_graph=True)])
    return zip(*found, strict=True)


@pytest.mark.parametrize("options", [{"position": "alibi"}, {"forget": True}], ids=str)
def test_biases_are_torchs_layer_with_a_float_mask(options):
    ours, x = taught(GatedAttention(D, H, **options)), tokens()
    causal = nn.Transformer.generate_square_subsequent_mask(T, dtype=x.dtype)
    if "forget" in options:
        sums = torch.log(ours.values(x)["forget"]).cumsum(-1)
        bias = sums[..., None] - sums[..., None, :]
    else:
        places = torch.arange(T)
        bias = alibi(Positions(places, places, None), H, x.dtype).expand(B, -1, -1, -1)
    mask = (bias + causal).flatten(0, 1).detach()
    for index, (mine, theirs) in enumerate(both(ours, mask)):
        if options.get("forget") and index == 1:
            continue  # our input opens the forget gates too, and the mask is a constant for them
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-11)


def test_a_dropped_sink_is_an_output_gate_and_first_or_last_alike():
    """sigmoid(lse - s) times the read without a sink; the logit may stand at either end."""
    ours, x = taught(GatedAttention(D, H, sink="learned")), tokens()
    seen = ours.values(x)
    bare = torch.softmax(seen["e"], -1) @ seen["v"]
    gate = torch.sigmoid(torch.logsumexp(seen["e"], -1) - ours.sinks[:, None])
    torch.testing.assert_close(seen["y"], gate[..., None] * bare, rtol=0, atol=1e-14)
    last = torch.cat([seen["e"], ours.sinks[:, None, None].expand(B, H, T, 1)], -1)
    first = torch.softmax(sink_column(last, "last", "first"), -1)[..., 1:]
    torch.testing.assert_close(first, seen["w"], rtol=0, atol=1e-14)


def test_x_transformers_gate_is_grus_and_not_gtrxls():
    """Its reset stands after the product: the same weights agree where x is 0, and there alone."""
    theirs, ours = taught(x_transformers("GRUGating")(D)), taught(GTrXLGate(D))
    with torch.no_grad():
        r, z, n = (slice(k * D, (k + 1) * D) for k in range(3))
        for own, gru in (
            (ours.weight_y, theirs.gru.weight_ih),
            (ours.weight_x, theirs.gru.weight_hh),
        ):
            gru[r], gru[z], gru[n] = own[r], -own[z], own[n]  # its z is the share that is kept
        theirs.gru.bias_ih.zero_()
        theirs.gru.bias_hh.zero_()
        theirs.gru.bias_ih[z] = ours.bias
    y, x = tokens(), tokens().flip(1)
    assert (theirs(y, x) - ours(x, y)).abs().max() > 0.01
    nothing = torch.zeros_like(x)
    torch.testing.assert_close(theirs(y, nothing), ours(nothing, y), rtol=0, atol=1e-12)
