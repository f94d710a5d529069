"""Sequence to sequence: attention, encoder, decoder, greedy and beam search.

Imports torch, gatelib.nn.check and gatelib.nn.recurrent.
Must not import gatelib.reference, gatelib.lab or gatelib.data.

Every module is batch first. The recurrent layer is an argument: torch's `nn.RNN`, `nn.GRU` and
`nn.LSTM`, their drop-ins here, or a `Recurrent` made from any cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from gatelib.nn.check import check_dtype, check_input, check_lengths, check_like, check_sizes
from gatelib.nn.recurrent import Recurrent

__all__ = ["AdditiveAttention", "Decoder", "DotAttention", "Encoder", "FixedContext", "Seq2Seq"]

Score = Literal["dot", "scaled", "general"]
Attend = Literal["after", "before"]
State = Any
"""A layer's state as the layer gives it: a tensor, a pair, or a dict; each (layers, B, H)."""
LOW_PRECISION = (torch.bfloat16, torch.float16)
TOKEN_TYPES = (torch.int64, torch.int32)


def live_positions(lengths: Tensor | None, keys: Tensor) -> Tensor | None:
    """(B, 1, S), true where there is a position; None where all are."""
    if lengths is None:
        return None
    check_lengths(lengths, keys.size(1), keys.size(0), least=1)
    positions = torch.arange(keys.size(1), device=keys.device)
    return (positions < lengths.to(keys.device)[:, None]).unsqueeze(1)


def read(scores: Tensor, values: Tensor, live: Tensor | None) -> tuple[Tensor, Tensor]:
    """Contexts (B, T, V) and attention weights (B, T, S): a softmax over the live positions."""
    wide = scores.float() if scores.dtype in LOW_PRECISION else scores
    if live is not None:
        wide = wide.masked_fill(~live, -math.inf)
    weights = torch.softmax(wide, dim=-1).to(values.dtype)
    return torch.bmm(weights, values), weights


class _Attention(nn.Module):
    """What all attention shares: sizes, checks, the mask and the read."""

    def __init__(self, query_size: int | None, key_size: int) -> None:
        super().__init__()
        check_sizes(key_size=key_size, **({} if query_size is None else {"query_size": query_size}))
        self.query_size, self.key_size = query_size, key_size

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Scores (B, T, S) of queries (B, T, Q) and keys (B, S, K), before the softmax."""
        raise NotImplementedError

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        lengths: Tensor | None = None,
        values: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Read the values where their keys fit the queries.

        Args:
            queries: (B, T, Q).
            keys: (B, S, K).
            lengths: (B,) integers from 1 to S. Positions past them get the weight 0, exactly,
                and whatever stands there, NaN included, has no effect. None: all S are live.
            values: (B, S, V); the keys, if None.

        Returns:
            context: (B, T, V), the weighted mean of the values for each query.
            attention: (B, T, S), the weights; each row sums to 1.

        Raises:
            TypeError: an argument has the wrong type or dtype.
            ValueError: a shape, a device or a length doesn't fit.
        """
        self._check(queries, keys, values)
        live = live_positions(lengths, keys)
        read_from = keys if values is None else values
        if live is not None:
            outside = ~live.transpose(1, 2)
            keys = keys.masked_fill(outside, 0)
            read_from = read_from.masked_fill(outside, 0)
        return read(self.scores(queries, keys), read_from, live)

    def _check(self, queries: Tensor, keys: Tensor, values: Tensor | None) -> None:
        weight = next(self.parameters(), keys)
        check_input("keys", keys, (3,), self.key_size, weight)
        check_input("queries", queries, (3,), self.query_size or queries.size(-1), weight)
        if len(keys) != len(queries):
            raise ValueError(f"keys: expected batch {len(queries)} as queries, got {len(keys)}")
        if keys.size(1) == 0:
            raise ValueError(f"keys: expected at least one position, got {tuple(keys.shape)}")
        if values is not None:
            check_like("values", values, keys, "keys")
            if values.dim() != 3 or values.shape[:2] != keys.shape[:2]:
                expected = (*keys.shape[:2], "V")
                raise ValueError(f"values: expected {expected}, got {tuple(values.shape)}")

    def extra_repr(self) -> str:
        """The sizes."""
        sizes = [] if self.query_size is None else [str(self.query_size)]
        return ", ".join([*sizes, str(self.key_size)])


class AdditiveAttention(_Attention):
    """Attention by a small network: e_j = w . tanh(W q + U k_j), a softmax over j, a mean.

    Parameters: `weight_query` W (A, Q), `weight_key` U (A, K), `weight_score` w (A,).

    Args:
        query_size: features Q of a query.
        key_size: features K of a key.
        hidden_size: features A of the tanh.
        device: where the parameters live.
        dtype: their floating-point type.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a size is below 1.

    Source: Bahdanau, Cho & Bengio 2014, arXiv:1409.0473, appendix A.1.2.
    """

    def __init__(
        self,
        query_size: int,
        key_size: int,
        hidden_size: int,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(query_size, key_size)
        check_sizes(hidden_size=hidden_size)
        check_dtype(dtype)
        own: dict[str, Any] = {"device": device, "dtype": dtype}
        self.hidden_size = hidden_size
        self.weight_query = nn.Parameter(torch.empty(hidden_size, query_size, **own))
        self.weight_key = nn.Parameter(torch.empty(hidden_size, key_size, **own))
        self.weight_score = nn.Parameter(torch.empty(hidden_size, **own))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw each weight from U(-1/sqrt(n), 1/sqrt(n)), n its inputs, as torch's Linear does."""
        for weight in self.parameters():
            bound = 1 / math.sqrt(weight.size(-1))
            nn.init.uniform_(weight, -bound, bound)

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Scores (B, T, S); the tanh between them is (B, T, S, A)."""
        query = F.linear(queries, self.weight_query).unsqueeze(2)
        key = F.linear(keys, self.weight_key).unsqueeze(1)
        return torch.tanh(query + key) @ self.weight_score.to(query.dtype)

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{super().extra_repr()}, {self.hidden_size}"


class DotAttention(_Attention):
    """Attention by a product: e_j = q . k_j ("dot"), over sqrt(K) ("scaled"), or W q . k_j
    ("general").

    Only "general" has a parameter, `weight` W (K, Q).

    Args:
        query_size: features Q of a query; K, unless the score is "general".
        key_size: features K of a key.
        score: which of the three.
        device: where the parameter lives.
        dtype: its floating-point type.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a size is below 1, the sizes differ without a matrix between them, or the
            score is unknown.

    Source: Luong, Pham & Manning 2015, arXiv:1508.04025, section 3.1; scaled, arXiv:1706.03762.
    """

    weight: nn.Parameter | None

    def __init__(
        self,
        query_size: int,
        key_size: int,
        score: Score = "dot",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(query_size, key_size)
        check_dtype(dtype)
        if score not in ("dot", "scaled", "general"):
            raise ValueError(f"score: expected 'dot', 'scaled' or 'general', got {score!r}")
        if score != "general" and query_size != key_size:
            raise ValueError(f"query_size: expected key_size = {key_size}, got {query_size}")
        self.score = score
        matrix = torch.empty(key_size, query_size, device=device, dtype=dtype)
        self.register_parameter("weight", nn.Parameter(matrix) if score == "general" else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight from U(-1/sqrt(Q), 1/sqrt(Q)), as torch's Linear does."""
        if self.weight is not None:
            bound = 1 / math.sqrt(self.weight.size(1))
            nn.init.uniform_(self.weight, -bound, bound)

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Scores (B, T, S)."""
        if self.weight is not None:
            queries = F.linear(queries, self.weight)
        if self.score == "scaled":
            queries = queries / math.sqrt(self.key_size)
        return torch.bmm(queries, keys.transpose(1, 2))

    def extra_repr(self) -> str:
        """The sizes and the score."""
        return f"{super().extra_repr()}, score={self.score!r}"


class FixedContext(_Attention):
    """What a decoder without attention has: the key of the last live position, for every query.

    It takes attention's place, without a parameter, so that a model with it and one with
    `DotAttention` differ in nothing but where they may look.

    Args:
        key_size: features K of a key.

    Source: Cho et al. 2014, arXiv:1406.1078: the encoder's last state is given at every step.
    """

    def __init__(self, key_size: int) -> None:
        super().__init__(None, key_size)

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        lengths: Tensor | None = None,
        values: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As attention, with the weight 1 on the last live position and 0 elsewhere."""
        self._check(queries, keys, values)
        live_positions(lengths, keys)
        last = torch.full((len(keys),), keys.size(1)) if lengths is None else lengths
        one = F.one_hot(last.to(keys.device).long() - 1, keys.size(1)).to(keys.dtype)
        weights = one.unsqueeze(1).expand(-1, queries.size(1), -1)
        source, rows = keys if values is None else values, torch.arange(len(keys))
        context = source[rows, last.cpu().long() - 1].unsqueeze(1)
        return context.expand(-1, queries.size(1), -1), weights


# ---- encoder and decoder --------------------------------------------------------------------


class Encoder(nn.Module):
    """Reads a sentence: embeds its tokens and runs a recurrent layer over them.

    Args:
        vocabulary_size: how many tokens there are.
        embedding_size: features E of an embedded token.
        layer: a recurrent layer, batch first, with E inputs; any depth, either direction.
        padding: the token that fills short sentences; it is embedded as 0.
        gate: a module from embedded tokens (B, S, E) to gates (B, S, E) or (B, S, 1) that
            multiply them before the layer; None for no gate.

    Raises:
        TypeError: `layer` is no recurrent layer.
        ValueError: `layer` isn't batch first or its inputs aren't E.
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_size: int,
        layer: nn.Module,
        padding: int = 0,
        gate: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_sizes(vocabulary_size=vocabulary_size, embedding_size=embedding_size)
        _check_layer(layer, embedding_size)
        _check_token("padding", padding, vocabulary_size)
        self.embedding = nn.Embedding(vocabulary_size, embedding_size, padding)
        self.gate = gate
        self.layer: Any = layer

    @property
    def features(self) -> int:
        """Features of an annotation: H, or 2 H where the layer reads both ways."""
        return int(self.layer.hidden_size) * (2 if self.layer.bidirectional else 1)

    def forward(self, source: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        """Read a batch of sentences.

        Args:
            source: (B, S) tokens.
            lengths: (B,) integers from 1 to S; None where all sentences have S tokens.

        Returns:
            annotations: (B, S, features), one for each token; 0 past a sentence's length.
            state: the layer's state at each sentence's end, each tensor (layers, B, features): the
                two directions of a layer stand side by side.

        Raises:
            TypeError: tokens or lengths aren't integers.
            ValueError: a shape, a token or a length is out of range.
        """
        _check_tokens("source", source, self.embedding.num_embeddings)
        x = self.embedding(source)
        if self.gate is not None:
            x = self.gate(x) * x
        if lengths is None:
            output, state = self.layer(x)
            return output, _each(state, self._joined)
        check_lengths(lengths, source.size(1), len(source), least=1)
        if isinstance(self.layer, Recurrent):
            output, state = self.layer(x, lengths=lengths)
        else:
            packed = pack_padded_sequence(x, lengths.cpu(), True, enforce_sorted=False)
            output, state = self.layer(packed)
            output = pad_packed_sequence(output, True, total_length=source.size(1))[0]
        return output, _each(state, self._joined)

    def _joined(self, state: Tensor) -> Tensor:
        """(layers * directions, B, H) -> (layers, B, directions * H)."""
        if not self.layer.bidirectional:
            return state
        return torch.cat([state[0::2], state[1::2]], -1)


class Decoder(nn.Module):
    """Writes a sentence: from the tokens so far to the logits of the next.

        y = the layer's output after the token before
        o = tanh(combine [context, y])
        logits = readout o

    Args:
        vocabulary_size: how many tokens there are.
        embedding_size: features E of an embedded token.
        layer: a recurrent layer, batch first, one direction. It has E inputs, or E + K where
            it attends before.
        attention: a module as `DotAttention`; None for a decoder that has the state alone.
        attend: "after" asks with the layer's new output y, so that the layer can run over a whole
            given sentence in one call (Luong et al. 2015). "before" asks with the last state and
            feeds the context to the layer too, step by step (Bahdanau et al. 2014).
        padding: the token that fills short sentences; it is embedded as 0.

    Raises:
        TypeError: `layer` is no recurrent layer.
        ValueError: sizes don't fit, or `attend` is unknown.

    Source: arXiv:1508.04025, equations 5 and 6; arXiv:1409.0473, appendix A.2.2.
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_size: int,
        layer: nn.Module,
        attention: nn.Module | None = None,
        attend: Attend = "after",
        padding: int = 0,
    ) -> None:
        super().__init__()
        check_sizes(vocabulary_size=vocabulary_size, embedding_size=embedding_size)
        if attend not in ("after", "before") or (attend == "before" and attention is None):
            expected = "'after'" if attention is None else "'after' or 'before'"
            raise ValueError(f"attend: expected {expected}, got {attend!r}")
        memory_size = 0 if attention is None else int(attention.key_size)  # type: ignore[arg-type]
        _check_layer(layer, embedding_size + (memory_size if attend == "before" else 0))
        _check_token("padding", padding, vocabulary_size)
        if layer.bidirectional:
            raise ValueError("layer: expected one direction, got bidirectional=True")
        size: Any = layer.hidden_size
        asked = getattr(attention, "query_size", None)
        if asked is not None and asked != size:
            raise ValueError(f"attention: expected query_size = {size} as the layer, got {asked}")
        self.embedding = nn.Embedding(vocabulary_size, embedding_size, padding)
        self.layer: Any = layer
        self.attention, self.attend = attention, attend
        self.combine = nn.Linear(memory_size + size, size)
        self.readout = nn.Linear(size, vocabulary_size)

    def forward(
        self, previous: Tensor, state: State, memory: Tensor, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, State]:
        """Take T steps from a state.

        Args:
            previous: (B, T), the token before each step. It is never the token to be answered.
            state: the layer's state before the first step.
            memory: (B, S, K), the encoder's annotations.
            lengths: (B,) integers from 1 to S, how many of them are live; None for all.

        Returns:
            logits: (B, T, vocabulary).
            attention: (B, T, S), or None without attention.
            state: the layer's state after the last step.
        """
        _check_tokens("previous", previous, self.embedding.num_embeddings)
        embedded = self.embedding(previous)
        context = weights = None
        if self.attend == "before":
            y, context, weights, state = self._stepwise(embedded, state, memory, lengths)
        else:
            y, state = self.layer(embedded, state)
            if self.attention is not None:
                context, weights = self.attention(y, memory, lengths)
        combined = y if context is None else torch.cat([context, y], -1)
        return self.readout(torch.tanh(self.combine(combined))), weights, state

    def _stepwise(
        self, embedded: Tensor, state: State, memory: Tensor, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, State]:
        """Attend with the state before each step, and give the layer what was read."""
        assert self.attention is not None
        steps = []
        for token in torch.split(embedded, 1, 1):
            context, weights = self.attention(_top(state)[:, None], memory, lengths)
            y, state = self.layer(torch.cat([token, context], -1), state)
            steps.append((y, context, weights))
        y, context, weights = (torch.cat(parts, 1) for parts in zip(*steps, strict=True))
        return y, context, weights, state


class Seq2Seq(nn.Module):
    """From one sentence to another: an encoder, a decoder, and the searches for an answer.

    The encoder's last state is the decoder's first, so both have the same kind of layer, as many
    layers, and as many features (a bidirectional encoder counts both directions).

    Args:
        encoder: reads the source.
        decoder: writes the answer.
        start: the token that stands before an answer and never in it.
        end: the last token of every answer.
        padding: the token that fills short answers; never answered.

    Raises:
        ValueError: the parts don't fit, or two of the three tokens are the same.
    """

    def __init__(
        self, encoder: Encoder, decoder: Decoder, start: int, end: int, padding: int = 0
    ) -> None:
        super().__init__()
        _check_parts(encoder, decoder)
        for name, token in {"start": start, "end": end, "padding": padding}.items():
            _check_token(name, token, decoder.embedding.num_embeddings)
        if len({start, end, padding}) < 3:
            raise ValueError(
                f"start: expected start, end and padding to differ, got {start}, "
                f"{end} and {padding}"
            )
        self.encoder, self.decoder = encoder, decoder
        self.start, self.end, self.padding = start, end, padding

    def forward(self, source: Tensor, lengths: Tensor | None, target: Tensor) -> Tensor:
        """Teacher forcing: the logits of each target token, given the ones before it.

        The shift by one is done here: step t reads target[:, t - 1], and step 0 reads `start`.

        Args:
            source: (B, S) tokens.
            lengths: (B,) lengths of the source, from 1 to S; None for all S.
            target: (B, T) tokens with `end`, without `start`, then padding.

        Returns:
            Logits (B, T, vocabulary). A loss leaves out the padding:
            `cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=padding)`.
        """
        return self._forced(source, lengths, target)[0]

    def align(self, source: Tensor, lengths: Tensor | None, target: Tensor) -> Tensor:
        """The attention (B, T, S) with which each token of a given target would be written.

        Raises:
            ValueError: the decoder has no attention.
        """
        weights = self._forced(source, lengths, target)[1]
        if weights is None:
            raise ValueError("decoder: expected a decoder with attention, got none")
        return weights

    def _forced(
        self, source: Tensor, lengths: Tensor | None, target: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        _check_tokens("target", target, self.decoder.embedding.num_embeddings)
        if len(target) != len(source):
            raise ValueError(f"target: expected batch {len(source)} as source, got {len(target)}")
        memory, state = self.encoder(source, lengths)
        first = target.new_full((len(target), 1), self.start)
        previous = torch.cat([first, target[:, :-1]], 1)
        logits, weights, _ = self.decoder(previous, state, memory, lengths)
        return logits, weights

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
            if bool(done.all()):
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
        beams = _Beams(tokens, self.start, self.end, memory, (length_power, length_offset))
        memory = memory.repeat_interleave(width, 0)
        lengths = None if lengths is None else lengths.repeat_interleave(width, 0)
        rows = torch.arange(len(source), device=source.device).repeat_interleave(width)
        for t in range(max_length):
            state = _each(state, partial(torch.index_select, dim=1, index=rows))
            logits, _, state = self.decoder(beams.last, state, memory, lengths)
            rows = beams.extend(t, self._next(logits[:, -1]))
            if beams.finished:
                break
        return beams.tokens, beams.scores


class _Beams:
    """The hypotheses of a beam search over a batch: B sentences, N hypotheses each."""

    def __init__(
        self, tokens: Tensor, start: int, end: int, like: Tensor, penalty: tuple[float, float]
    ) -> None:
        wide = torch.float32 if like.dtype in LOW_PRECISION else like.dtype
        shape = tokens.shape[:2]
        self.tokens, self.end, self.padding = tokens, end, tokens.flatten()[0]
        self.totals = torch.full(shape, -math.inf, dtype=wide, device=tokens.device)
        self.totals[:, 0] = 0  # one empty hypothesis each; the other places are still free
        self.scores = self.totals
        self.done = torch.zeros(shape, dtype=torch.bool, device=tokens.device)
        self.sizes = torch.zeros(shape, dtype=torch.int64, device=tokens.device)
        self.last = tokens.new_full((tokens[..., 0].numel(), 1), start)
        self.power, self.offset = penalty

    @property
    def finished(self) -> bool:
        """Whether no hypothesis can grow."""
        return bool((self.done | self.totals.isneginf()).all())

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


# ---- states of any layer, and checks --------------------------------------------------------


def _each(state: State, function: Callable[[Tensor], Tensor]) -> State:
    """`function` of every tensor of a layer's state, in the same container."""
    if isinstance(state, Tensor):
        return function(state)
    if isinstance(state, dict):
        return {name: function(part) for name, part in state.items()}
    return tuple(function(part) for part in state)


def _top(state: State) -> Tensor:
    """h (B, H) of the last layer."""
    if isinstance(state, dict):
        state = state["h"]
    h: Tensor = state if isinstance(state, Tensor) else state[0]
    return h[-1]


def _kind(layer: nn.Module) -> tuple[str, ...]:
    """The names of a layer's states."""
    if isinstance(layer, Recurrent):
        return layer.cell.states
    return ("(h, c)",) if layer.mode == "LSTM" else ("h",)


def _check_layer(layer: object, inputs: int) -> None:
    if not isinstance(layer, nn.RNNBase | Recurrent):
        raise TypeError(f"layer: expected a recurrent layer, got {type(layer).__name__}")
    if not layer.batch_first:
        raise ValueError("layer: expected batch_first=True")
    if layer.input_size != inputs:
        raise ValueError(f"layer: expected input_size = {inputs}, got {layer.input_size}")
    if getattr(layer, "proj_size", 0):
        raise ValueError(f"layer: expected no projection, got proj_size = {layer.proj_size}")


def _check_parts(encoder: Encoder, decoder: Decoder) -> None:
    for name, part, kind in (("encoder", encoder, Encoder), ("decoder", decoder, Decoder)):
        if not isinstance(part, kind):
            raise TypeError(f"{name}: expected {kind.__name__}, got {type(part).__name__}")
    reads, writes = encoder.layer, decoder.layer
    both: dict[str, tuple[Any, Any]] = {"states": (_kind(reads), _kind(writes))}
    both["layers"] = reads.num_layers, writes.num_layers
    both["features"] = encoder.features, writes.hidden_size
    if decoder.attention is not None:
        both["key_size"] = encoder.features, decoder.attention.key_size
    for what, (wanted, found) in both.items():
        if wanted != found:
            raise ValueError(f"decoder: expected {what} {wanted} as the encoder, got {found}")


def _check_token(name: str, token: object, vocabulary_size: int) -> None:
    if isinstance(token, bool) or not isinstance(token, int):
        raise TypeError(f"{name}: expected a token, an integer, got {type(token).__name__}")
    if not 0 <= token < vocabulary_size:
        raise ValueError(f"{name}: expected a token from 0 to {vocabulary_size - 1}, got {token}")


def _check_tokens(name: str, tokens: object, vocabulary_size: int) -> None:
    if not isinstance(tokens, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tokens).__name__}")
    if tokens.dtype not in TOKEN_TYPES:
        raise TypeError(f"{name}: expected torch.int64 or torch.int32, got {tokens.dtype}")
    if tokens.dim() != 2 or tokens.size(1) == 0:
        raise ValueError(f"{name}: expected (B, T) with T at least 1, got {tuple(tokens.shape)}")
    if torch.compiler.is_compiling() or tokens.numel() == 0:
        return
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocabulary_size:
        raise ValueError(
            f"{name}: expected tokens from 0 to {vocabulary_size - 1}, got {low} to {high}"
        )


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not (0 <= value < math.inf):
        raise ValueError(f"{name}: expected a finite number of at least 0, got {value}")
