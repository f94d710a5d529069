"""Gated attention as a plain formula in torch: all pairs at once, differentiated by autograd."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from gatelib.reference.gated_attention import slopes

LAYER = {
    "W": "in_proj_weight",
    "b": "in_proj_bias",
    "W_g": "gate_weight",
    "b_g": "gate_bias",
    "w_q": "q_norm.weight",
    "w_k": "k_norm.weight",
    "s": "sinks",
    "W_f": "forget_weight",
    "b_f": "forget_bias",
    "W_o": "out_proj.weight",
    "b_o": "out_proj.bias",
}
"""Where the weights of the reference are in nn.GatedAttention."""


def formula(kind, lengths, w):
    """The layer by einsum over all pairs; every head has its keys and values."""
    live = torch.ones(w["x"].shape[:2], dtype=torch.bool)
    if lengths is not None:
        live = torch.arange(live.shape[1]) < torch.tensor(lengths)[:, None]
    x = w["x"] * live[..., None]
    rows = F.linear(x, w["W"], w.get("b"))
    heads, shared, size = kind.heads, kind.shared, x.shape[2] // kind.heads
    q, k, v = rows.split([heads * size, shared * size, shared * size], -1)
    a = F.linear(x, w["W_g"], w.get("b_g")) if "W_g" in w else x.new_zeros(1)
    parts = {"query": (q, heads), "key": (k, shared), "value": (v, shared)}
    q, k, v = (each_head(kind, place, *part, a, w) for place, part in parts.items())
    e = torch.einsum("bthd,bshd->bhts", q, k) / size**0.5
    e = biased(kind, e, x, a, w)
    mask = live[:, None, None] & torch.ones(e.shape[-2:], dtype=torch.bool).tril()
    c = torch.einsum("bhts,bshd->bthd", weights_of(kind, e, mask, w), v)
    if kind.gate == "output":
        c = torch.sigmoid(a.unflatten(-1, (heads, -1))) * c
    y = F.linear(c.flatten(-2), w["W_o"], w.get("b_o"))
    return {"y": y.masked_fill(~live[..., None], 0)}


def each_head(kind, place, value, count, a, w):
    """(B, T, H, d): normalised, gated, turned, and repeated for the heads that share it."""
    value = value.unflatten(-1, (count, -1))
    size = value.shape[-1]
    if kind.qk_norm and place != "value":
        value = F.rms_norm(value, (size,), w["w_" + place[0]], 1e-6)
    if kind.gate == place:
        value = torch.sigmoid(a.unflatten(-1, (count, -1))) * value
    if kind.position == "rope" and place != "value":
        wave = torch.arange(size // 2, dtype=torch.float64) * (-2 / size)
        angle = torch.arange(value.shape[1])[:, None] * 1e4**wave
        both = torch.complex(*value.chunk(2, -1))
        both = both * torch.polar(torch.ones_like(angle), angle)[:, None]
        value = torch.cat([both.real, both.imag], -1)
    return value.repeat_interleave(kind.heads // count, 2)


def biased(kind, e, x, a, w):
    steps, heads = e.shape[-1], kind.heads
    if kind.gate == "score":
        a = a.transpose(1, 2)
        own, other = a[:, :heads, :, None], 0.0
        if kind.per == "element":
            other = a[:, heads:].repeat_interleave(heads // kind.shared, 1)[:, :, None]
        e = torch.sigmoid(own + other) * e
    if kind.forget:
        sums = F.logsigmoid(F.linear(x, w["W_f"], w["b_f"])).cumsum(1).transpose(1, 2)
        e = e + sums[..., None] - sums[:, :, None]
    if kind.position == "alibi":
        back = torch.arange(steps)[:, None] - torch.arange(steps)
        e = e - torch.tensor(slopes(heads))[:, None, None] * back
    return e


def weights_of(kind, e, mask, w):
    """The attention weights; the sink is a last column."""
    if kind.activation == "sigmoid":
        seen = mask.sum(-1, keepdim=True).clamp(min=1).double()
        return torch.sigmoid(e - seen.log()) * mask
    e = e.masked_fill(~mask, -1e30)
    if kind.sink is None:
        return torch.softmax(e, -1) * mask
    sink = w["s"] if kind.sink == "learned" else e.new_zeros(kind.heads)
    column = sink[:, None, None].expand(*e.shape[:3], 1)
    return torch.softmax(torch.cat([e, column], -1), -1)[..., :-1]
