"""Sequence to sequence: encoder, decoder, teacher forcing, and a context without attention.

Imports torch and gatelib.nn: attention, check, decoding, guest, impl and recurrent.
Must not import gatelib.reference, gatelib.lab or gatelib.data.

Every module is batch first. The recurrent layer is an argument: torch's `nn.RNN`, `nn.GRU` and
`nn.LSTM`, their drop-ins here, or a `Recurrent` made from any cell.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from gatelib.nn.attention import Attention, live_positions
from gatelib.nn.check import check_lengths, check_sizes, known
from gatelib.nn.decoding import Search, State, each
from gatelib.nn.guest import given
from gatelib.nn.impl import traced
from gatelib.nn.recurrent import Recurrent

__all__ = ["Decoder", "Encoder", "FixedContext", "Seq2Seq"]

Attend = Literal["after", "before"]
TOKEN_TYPES = (torch.int64, torch.int32)


class FixedContext(Attention):
    """What a decoder without attention has: the key of the last live position, for every query.

    It takes attention's place, without a parameter, so that a model with it and one with
    `DotAttention` differ in nothing but where they may look.

    Args:
        key_size: features K of a key.

    Source: Cho et al. 2014, arXiv:1406.1078: the encoder's last state is given at every step.
    """

    def __init__(self, key_size: int) -> None:
        super().__init__(None, key_size)

    def attend(
        self, queries: Tensor, keys: Tensor, lengths: Tensor | None, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As attention, with the weight 1 on the last live position and 0 elsewhere."""
        live_positions(lengths, keys)
        last = torch.full((keys.size(0),), keys.size(1)) if lengths is None else lengths
        last = last.to(keys.device).long() - 1
        weights = F.one_hot(last, keys.size(1)).to(keys.dtype).unsqueeze(1)
        context = values[torch.arange(keys.size(0), device=keys.device), last].unsqueeze(1)
        steps = queries.size(1)
        return context.expand(-1, steps, -1), weights.expand(-1, steps, -1)


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
            lengths: (B,) integers from 1 to S; None where all sentences have S tokens. In one
                graph (torch.export, torch.compile with fullgraph) they need a `Recurrent`: for
                other layers torch packs the batch, and reads the numbers to do so.

        Returns:
            annotations: (B, S, features), one for each token; 0 past a sentence's length.
            state: the state at each end, tensors (layers, B, features), directions side by side.

        Raises:
            TypeError: tokens or lengths aren't integers.
            ValueError: a shape, a token or a length is out of range.
        """
        node = traced(self, source, lengths)
        if node is not None:
            return node  # type: ignore[return-value]
        _check_tokens("source", source, self.embedding.num_embeddings)
        x = self.embedding(source)
        if self.gate is not None:
            x = self.gate(given(self.gate, x)) * x
        if lengths is not None:
            check_lengths(lengths, source.size(1), source.size(0), least=1)
        output, state = self._read(x, lengths)
        return output, each(state, self._joined)

    def _read(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, State]:
        """Run the layer over embedded sentences, each to its own end."""
        if lengths is None or x.size(0) == 0:
            output, state = self.layer(x)
            return output, state
        if isinstance(self.layer, Recurrent):
            output, state = self.layer(x, lengths=lengths)
            return output, state
        if x.is_meta:
            output, state = self.layer(x)  # without numbers there are shapes alone, and these fit
            return output, state
        _check_readable(lengths)
        packed = pack_padded_sequence(x, lengths.cpu(), True, enforce_sorted=False)
        output, state = self.layer(packed)
        return pad_packed_sequence(output, True, total_length=x.size(1))[0], state

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
        combine: a module from [context, y], (B, T, K + H), to (B, T, H), in the place of a
            Linear of its own: a `ContextGate`, for instance.

    Raises:
        TypeError: `layer` is no recurrent layer, or `combine` no module.
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
        combine: nn.Module | None = None,
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
        if combine is not None and not isinstance(combine, nn.Module):
            raise TypeError(f"combine: expected a module, got {type(combine).__name__}")
        self.combine = nn.Linear(memory_size + size, size) if combine is None else combine
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
        node = traced(self, previous, state, memory, lengths)
        if node is not None:
            return node  # type: ignore[return-value]
        y, context, weights, state = self.look(previous, state, memory, lengths)
        return self.say(y, context), weights, state

    def look(
        self, previous: Tensor, state: State, memory: Tensor, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, State]:
        """The first half of `forward`: take T steps and read, but say nothing yet.

        Args:
            previous, state, memory, lengths: as for `forward`.

        Returns:
            y: (B, T, H), the layer's outputs.
            context: (B, T, K), what was read, or None without attention.
            attention: (B, T, S), or None without attention.
            state: the layer's state after the last step.
        """
        _check_tokens("previous", previous, self.embedding.num_embeddings)
        embedded = self.embedding(previous)
        if self.attend == "before":
            return self._stepwise(embedded, state, memory, lengths)
        y, state = self.layer(embedded, state)
        context = weights = None
        if self.attention is not None:
            context, weights = self.attention(y, memory, lengths)
        return y, context, weights, state

    def say(self, y: Tensor, context: Tensor | None) -> Tensor:
        """The second half of `forward`: logits (B, T, vocabulary) of what `look` gave."""
        combined = y if context is None else torch.cat([context, y], -1)
        logits: Tensor = self.readout(torch.tanh(self.combine(combined)))
        return logits

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


class Seq2Seq(Search):
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
        node = traced(self, source, lengths, target)
        if node is not None:
            return node  # type: ignore[return-value]
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


# ---- states of any layer, and checks --------------------------------------------------------


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


def _check_readable(lengths: Tensor) -> None:
    """torch packs by the numbers; where it can't, it says so in words of its own kernels."""
    compiled = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    if not compiled and known(lengths.min) is None:
        raise ValueError(
            "lengths: expected numbers that can be read, got a fake, exported or batched tensor; "
            "torch packs by them. Give the encoder a gatelib.nn.Recurrent, which only masks"
        )


def _check_tokens(name: str, tokens: object, vocabulary_size: int) -> None:
    if not isinstance(tokens, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tokens).__name__}")
    if tokens.dtype not in TOKEN_TYPES:
        raise TypeError(f"{name}: expected torch.int64 or torch.int32, got {tokens.dtype}")
    if tokens.dim() != 2 or tokens.size(1) == 0:
        raise ValueError(f"{name}: expected (B, T) with T at least 1, got {tuple(tokens.shape)}")
    if tokens.numel() == 0:
        return
    low, high = known(tokens.min), known(tokens.max)
    if low is not None and high is not None and (low < 0 or high >= vocabulary_size):
        raise ValueError(
            f"{name}: expected tokens from 0 to {vocabulary_size - 1}, got {low} to {high}"
        )
