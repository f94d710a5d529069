"""The pointer-generator: write a word of the vocabulary, or copy one of the source.

Imports torch, gatelib.nn.check and gatelib.nn.impl.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatelib.nn.check import (
    LOW_PRECISION,
    check_dtype,
    check_flags,
    check_gate,
    check_lengths,
    check_like,
    check_sizes,
    check_tensor,
    known,
)
from gatelib.nn.impl import traced

__all__ = ["PointerGenerator", "copy_mixture", "extended_vocabulary"]

TOKEN_TYPES = (torch.int64, torch.int32)


def copy_mixture(
    logits: Tensor,
    attention: Tensor,
    source: Tensor,
    switch: Tensor,
    extra: int = 0,
    lengths: Tensor | None = None,
) -> Tensor:
    """Log-probabilities of p P_vocabulary(w) + (1 - p) Σ attention on the places where w stands.

    All of it is computed from logarithms: log p and log (1 - p) from the preactivation `switch`,
    so that a switch at ±200 still gives what it says. P sums to 1 where the attention does.

    Args:
        logits: (B, T, V), before the softmax over the vocabulary.
        attention: (B, T, S), weights that sum to 1.
        source: (B, S), the word at each place: below V one of the vocabulary, from V to
            V + extra - 1 one that only this source has. Places of the same word are summed.
        switch: (B, T), the preactivation of p, the probability to write.
        extra: words E that only a source has.
        lengths: (B,) integers from 0 to S. A place past them is never copied, whatever is there.

    Returns:
        (B, T, V + E), float32 where the logits are of lower precision. A word that is neither in
        the vocabulary nor in the source has -inf, and passes no gradient on, as a place without
        any attention, exactly 0, has none from a word that has no other place.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or device, or a word is out
            of range (inside torch.compile and torch.export, words can't be looked at).

    Source: See, Liu & Manning 2017, arXiv:1704.04368, section 2.2. Their program, and most that
    follow it, add probabilities and then take a logarithm, some with a constant inside so that
    log 0 can't come up; the loss is then bounded where it should not be.
    """
    _check(logits, attention, source, switch, extra)
    words = logits.size(2) + extra
    logits, attention, switch = (_wide(x) for x in (logits, attention, switch))
    if lengths is not None:
        check_lengths(lengths, source.size(1), source.size(0))
        places = torch.arange(source.size(1), device=source.device)
        outside = (places >= lengths.to(source.device)[:, None])[:, None]
        attention = attention.masked_fill(outside, 0)
    index = source.long()[:, None].expand(attention.shape)
    empty = attention.new_zeros(*attention.shape[:2], words)
    copied = empty.scatter_add(2, index, attention)
    found = copied > 0
    by_copy = F.logsigmoid(-switch)[..., None] + torch.where(found, copied, 1).log()
    by_word = F.logsigmoid(switch)[..., None] + torch.log_softmax(logits, -1)
    sizes = [logits.size(2), extra]
    here, beyond = torch.split(found, sizes, -1)
    copy_here, copy_beyond = torch.split(by_copy, sizes, -1)
    both = torch.where(here, torch.logaddexp(by_word, copy_here), by_word)
    return torch.cat([both, copy_beyond.masked_fill(~beyond, -math.inf)], -1)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in LOW_PRECISION else x


def extended_vocabulary(source: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Name the rare words of each source: the first that comes is V, the next V + 1, …

    Args:
        source: (B, S) words by a large numbering, of which 0 … size - 1 are the vocabulary.
        size: V.

    Returns:
        extended: (B, S), as `copy_mixture` reads it; a word has one number in its whole sentence.
        rare: (B, E), the large number of each rare word of a sentence, -1 where it has fewer.
        E is `extra`, the most that a sentence of the batch has.

    Raises:
        TypeError: `source` isn't of integers. ValueError: it isn't (B, S), or a size is below 1.
    """
    check_sizes(size=size)
    _check_words("source", source)
    rows = source.tolist()
    rare = [list(dict.fromkeys(word for word in row if word >= size)) for row in rows]
    extra = max(map(len, rare), default=0)
    numbered = [
        [word if word < size else size + own.index(word) for word in row]
        for row, own in zip(rows, rare, strict=True)
    ]
    table = [own + [-1] * (extra - len(own)) for own in rare]
    like: dict[str, Any] = {"dtype": source.dtype, "device": source.device}
    return (
        torch.tensor(numbered, **like).reshape(source.shape),
        torch.tensor(table, **like).reshape(len(rows), extra),
    )


class PointerGenerator(nn.Module):
    """A soft switch between the vocabulary's distribution and the attention, as a layer.

        p = sigmoid(w . [context, state, input] + b)
        P(word) = p * softmax(logits)[word] + (1 - p) * (attention where the word stands)

    It returns log P, for `nll_loss`, over the vocabulary and the words that only the source has.

    Parameters: `switch`, a Linear from C + D + X to 1.

    Args:
        context_size: features C of the context that attention read.
        state_size: features D of the decoder's state.
        input_size: features X of what the decoder was fed; 0 for a switch that doesn't see it.
        bias: whether the switch has a bias.
        device: where the parameters live.
        dtype: their floating-point type.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a size is out of range.

    Source: See, Liu & Manning 2017, arXiv:1704.04368, section 2.2. The sizes of the three differ
    between programs: an LSTM's state is [c, h] in the authors' own, h alone in others.
    """

    def __init__(
        self,
        context_size: int,
        state_size: int,
        input_size: int = 0,
        *,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(context_size=context_size, state_size=state_size)
        if input_size != 0:
            check_sizes(input_size=input_size)
        check_flags(bias=bias)
        check_dtype(dtype)
        self.context_size, self.state_size, self.input_size = context_size, state_size, input_size
        features = context_size + state_size + input_size
        self.switch = nn.Linear(features, 1, bias=bias, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw the switch as torch's Linear does."""
        self.switch.reset_parameters()

    def gate_biases(self, gate: str) -> list[tuple[Tensor, ...]]:
        """The bias of gate "p": see `gatelib.nn.init`."""
        check_gate(gate, ("p",), self)
        if self.switch.bias is None:
            raise ValueError("bias: expected a layer with biases, got bias=False")
        return [(self.switch.bias.detach(),)]

    def forward(
        self,
        logits: Tensor,
        attention: Tensor,
        source: Tensor,
        context: Tensor,
        state: Tensor,
        input: Tensor | None = None,
        extra: int = 0,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The distribution of each step.

        Args:
            logits, attention, source, extra, lengths: as for `copy_mixture`.
            context: (B, T, C).
            state: (B, T, D).
            input: (B, T, X); None where input_size is 0.

        Returns:
            log_probabilities: (B, T, V + extra).
            p: (B, T), the switch: 1 writes, 0 copies.

        Raises:
            TypeError, ValueError: an argument has the wrong type, shape or device.
        """
        node = traced(self, logits, attention, source, context, state, input, extra, lengths)
        if node is not None:
            return node  # type: ignore[return-value]
        a = self._preactivation(context, state, input)
        log_probabilities = copy_mixture(logits, attention, source, a, extra, lengths)
        return log_probabilities, torch.sigmoid(a)

    def _preactivation(self, context: Tensor, state: Tensor, input: Tensor | None) -> Tensor:
        """(B, T), what the switch sees before its sigmoid."""
        if (input is None) != (self.input_size == 0):
            expected = "None" if self.input_size == 0 else "a tensor"
            found = "None" if input is None else "a tensor"
            raise ValueError(f"input: expected {expected}, got {found}")
        sizes = {"context": self.context_size, "state": self.state_size, "input": self.input_size}
        parts = []
        for name, value in {"context": context, "state": state, "input": input}.items():
            if value is None:
                continue
            tensor = check_tensor(name, value)
            if tensor.dim() != 3 or tensor.size(-1) != sizes[name]:
                raise ValueError(f"{name}: expected (B, T, {sizes[name]}), got {(*tensor.shape,)}")
            check_like(name, tensor, self.switch.weight, "weights")
            parts.append(tensor)
        a: Tensor = self.switch(torch.cat(parts, -1))
        return a.squeeze(-1)

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.context_size}, {self.state_size}, {self.input_size}"


def _check_words(name: str, words: object) -> Tensor:
    tensor = check_tensor(name, words)
    if tensor.dtype not in TOKEN_TYPES:
        raise TypeError(f"{name}: expected torch.int64 or torch.int32, got {tensor.dtype}")
    if tensor.dim() != 2:
        raise ValueError(f"{name}: expected (B, S), got {tuple(tensor.shape)}")
    return tensor


def _check(logits: Tensor, attention: Tensor, source: Tensor, switch: Tensor, extra: int) -> None:
    check_tensor("logits", logits)
    if logits.dim() != 3:
        raise ValueError(f"logits: expected (B, T, V), got {tuple(logits.shape)}")
    batch, steps, size = logits.shape
    if isinstance(extra, bool) or not isinstance(extra, int):
        raise TypeError(f"extra: expected an integer, got {type(extra).__name__}")
    if extra < 0:
        raise ValueError(f"extra: expected at least 0, got {extra}")
    _check_words("source", source)
    for name, value, shape in (
        ("attention", attention, (batch, steps, source.size(1))),
        ("switch", switch, (batch, steps)),
    ):
        if check_tensor(name, value).shape != shape:
            raise ValueError(f"{name}: expected {shape}, got {tuple(value.shape)}")
        check_like(name, value, logits, "logits")
    if source.size(0) != batch:
        raise ValueError(f"source: expected batch {batch} as the logits, got {source.size(0)}")
    if source.numel() == 0:
        return
    low, high = known(source.min), known(source.max)
    if low is not None and high is not None and (low < 0 or high >= size + extra):
        raise ValueError(
            f"source: expected words from 0 to {size + extra - 1}, got {low} to {high}"
        )
