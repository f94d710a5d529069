"""Search for an answer, token by token: greedy, and with a beam.

Imports torch and gatelib.nn.check.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gatelib.nn.check import LOW_PRECISION, check_sizes, known

__all__ = ["Search"]

State = Any
"""A layer's state as the layer gives it: a tensor, a pair, or a dict; each (layers, B, H)."""


class Search(nn.Module):
    """The searches of a model that reads with `encoder` and writes with `decoder`.

    `Seq2Seq` is one. The encoder gives (memory, state) of (source, lengths); the decoder gives
    (logits, attention, state) of (previous tokens, state, memory, lengths).
    """

    encoder: Any
    decoder: Any
    start: int
    end: int
    padding: int

    def _next(self, logits: Tensor) -> Tensor:
        """Log-probabilities of the next token in float32 at least; never padding or start."""
        wide = logits.float() if logits.dtype in LOW_PRECISION else logits.clone()
        wide[..., [self.padding, self.start]] = -math.inf
        return torch.log_softmax(wide, -1)

    @torch.no_grad()
    def greedy(self, source: Tensor, lengths: Tensor | None, max_length: int) -> Tensor:
        """Answer with the likeliest token at each step.

        Args:
            source: (B, S) tokens.
            lengths: (B,) lengths of the source, from 1 to S; None for all S.
            max_length: tokens after which an answer is cut.

        Returns:
            Tokens (B, max_length), with `end` where the answer ended and padding behind it.
        """
        check_sizes(max_length=max_length)
        memory, state = self.encoder(source, lengths)
        answer = source.new_full((len(source), max_length), self.padding)
        token = source.new_full((len(source), 1), self.start)
        done = torch.zeros_like(token, dtype=torch.bool)
        for t in range(max_length):
            logits, _, state = self.decoder(token, state, memory, lengths)
            token = self._next(logits[:, -1]).argmax(-1, keepdim=True).to(source.dtype)
            answer[:, t : t + 1] = token.masked_fill(done, self.padding)
            done = done | (token == self.end)
            if known(done.all):
                break
        return answer

    @torch.no_grad()
    def beam(
        self,
        source: Tensor,
        lengths: Tensor | None,
        width: int,
        max_length: int,
        length_power: float = 0.0,
        length_offset: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Search with the `width` best hypotheses at each step; each sentence on its own.

        A hypothesis of n tokens (`end` counts) with log-probability p has the score
        p / ((offset + n) / (offset + 1))^power. Power 0 compares log-probabilities, offset 0 and
        power 1 their means by token, offset 5 is Wu et al.'s. Finished hypotheses keep their place
        among the `width` until better ones push them out; what isn't finished after
        `max_length` tokens is cut there and scored alike. Width 1 is `greedy`. A search that
        drops no hypothesis finds the best there is; a narrower one need not, nor need it do
        better than one narrower still.

        Args:
            source: (B, S) tokens.
            lengths: (B,) lengths of the source, from 1 to S; None for all S.
            width: how many hypotheses survive a step.
            max_length: tokens after which an answer is cut.
            length_power: how much long answers are helped; 0 for not at all.
            length_offset: as above.

        Returns:
            tokens: (B, width, max_length), the best first, with padding behind `end`.
            scores: (B, width); -inf where there are fewer hypotheses than the width.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: an argument is out of range.

        Source: Sutskever et al. 2014, arXiv:1409.3215; Wu et al. 2016, arXiv:1609.08144, eq. 14.
        """
        check_sizes(width=width, max_length=max_length)
        _check_number("length_power", length_power)
        _check_number("length_offset", length_offset)
        memory, state = self.encoder(source, lengths)
        tokens = source.new_full((len(source), width, max_length), self.padding)
        beams = Beams(self, tokens, memory, (length_power, length_offset))
        memory = memory.repeat_interleave(width, 0)
        lengths = None if lengths is None else lengths.repeat_interleave(width, 0)
        rows = torch.arange(len(source), device=source.device).repeat_interleave(width)
        for t in range(max_length):
            if beams.finished:
                break
            state = each(state, partial(torch.index_select, dim=1, index=rows))
            logits, _, state = self.decoder(beams.last, state, memory, lengths)
            rows = beams.extend(t, self._next(logits[:, -1]))
        return beams.tokens, beams.scores


class Beams:
    """The hypotheses of a beam search over a batch: B sentences, N hypotheses each."""

    def __init__(
        self, model: Search, tokens: Tensor, like: Tensor, penalty: tuple[float, float]
    ) -> None:
        wide = torch.float32 if like.dtype in LOW_PRECISION else like.dtype
        shape = tokens.shape[:2]
        self.tokens, self.end, self.padding = tokens, model.end, model.padding
        self.totals = torch.full(shape, -math.inf, dtype=wide, device=tokens.device)
        self.totals[:, 0] = 0  # one empty hypothesis each; the other places are still free
        self.scores = self.totals
        self.done = torch.zeros(shape, dtype=torch.bool, device=tokens.device)
        self.sizes = torch.zeros(shape, dtype=torch.int64, device=tokens.device)
        self.last = tokens.new_full((tokens[..., 0].numel(), 1), model.start)
        self.power, self.offset = penalty

    @property
    def finished(self) -> bool:
        """Whether no hypothesis can grow; never where numbers can't be read."""
        return bool(known((self.done | self.totals.isneginf()).all))

    def extend(self, t: int, steps: Tensor) -> Tensor:
        """Try every next token, keep the best; return the rows (B N,) that they grew from."""
        batch, width = self.totals.shape
        steps = steps.view(batch, width, -1)
        frozen = torch.full_like(steps, -math.inf)
        frozen[..., self.padding] = 0  # a finished hypothesis goes on as it is, and only so
        steps = torch.where(self.done[..., None], frozen, steps)
        totals = (self.totals[..., None] + steps).flatten(1)
        sizes = (self.sizes + ~self.done)[..., None].expand_as(steps).flatten(1)
        penalty = ((self.offset + sizes.to(totals.dtype)) / (self.offset + 1)).pow(self.power)
        self.scores, best = (totals / penalty).topk(width, 1)
        origin = best.div(steps.size(-1), rounding_mode="floor")
        token = (best % steps.size(-1)).to(self.tokens.dtype)
        self.tokens = self.tokens.gather(1, origin[..., None].expand_as(self.tokens))
        self.tokens[..., t] = token
        self.totals, self.sizes = totals.gather(1, best), sizes.gather(1, best)
        self.done = self.done.gather(1, origin) | (token == self.end)
        self.last = token.view(-1, 1)
        rows = torch.arange(batch, device=origin.device)[:, None] * width + origin
        return rows.flatten()


def each(state: State, function: Callable[[Tensor], Tensor]) -> State:
    """`function` of every tensor of a layer's state, in the same container."""
    if isinstance(state, Tensor):
        return function(state)
    if isinstance(state, dict):
        return {name: function(part) for name, part in state.items()}
    return tuple(function(part) for part in state)


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not (0 <= value < math.inf):
        raise ValueError(f"{name}: expected a finite number of at least 0, got {value}")
