"""Encoder, decoder, teacher forcing: a batch is its sentences, and no step looks ahead."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gatelib.nn import ContextGate, Decoder, DotAttention, Encoder, FixedContext, Gate, Seq2Seq
from tests.families.sentences import DESIGNS, END, LAYERS, START, model_of, sentences

CASES = [*((layer, "dot") for layer in LAYERS), *(("GRU", design) for design in DESIGNS)]
CASES += [("torch.LSTM", "before"), ("peephole", "before")]


@pytest.mark.parametrize(("layer", "design"), CASES)
def test_one_call_with_a_teacher_is_the_same_step_by_step(layer, design):
    model = model_of(layer, design, layers=2)
    (source, lengths), target = sentences(), torch.tensor([[4, 5, 3]] * 4)
    whole = model(source, lengths, target)
    memory, state = model.encoder(source, lengths)
    for t, token in enumerate([START, 4, 5]):
        previous = torch.full((4, 1), token)
        logits, _, state = model.decoder(previous, state, memory, lengths)
        torch.testing.assert_close(logits[:, 0], whole[:, t])


BOTH_WAYS = [("GRU", "dot"), ("torch.LSTM", "before"), ("peephole", "fixed")]


@pytest.mark.parametrize(
    ("layer", "design", "bidirectional"),
    [*((*case, False) for case in CASES), *((*case, True) for case in BOTH_WAYS)],
)
def test_a_sentence_in_a_batch_is_the_sentence_alone(layer, design, bidirectional):
    model = model_of(layer, design, bidirectional=bidirectional)
    (source, lengths), target = sentences(), torch.tensor([[4, 5, 3]] * 4)
    together = model(source, lengths, target)
    greedy = model.greedy(source, lengths, 6)
    tokens, scores = model.beam(source, lengths, 3, 4, 0.5)
    for row, length in enumerate(lengths.tolist()[1:3], 1):
        one = source[row : row + 1, :length], None
        torch.testing.assert_close(together[row : row + 1], model(*one, target[:1]))
        assert torch.equal(greedy[row : row + 1], model.greedy(*one, 6))
        alone = model.beam(*one, 3, 4, 0.5)
        assert torch.equal(tokens[row : row + 1], alone[0])
        torch.testing.assert_close(scores[row : row + 1], alone[1])


@pytest.mark.parametrize("design", DESIGNS)
def test_no_logit_sees_its_own_target_or_a_later_one(design):
    model, (source, lengths) = model_of(design=design), sentences()
    target = torch.tensor([[4, 5, 6, 3]] * 4)
    before = model(source, lengths, target)
    for t in range(4):
        changed = target.clone()
        changed[:, t] = 1
        after = model(source, lengths, changed)
        torch.testing.assert_close(after[:, : t + 1], before[:, : t + 1])
        assert t == 3 or not torch.allclose(after[:, t + 1], before[:, t + 1])


def test_the_state_is_the_one_at_each_sentence_end():
    for layer in ("torch.GRU", "LSTM", "peephole"):
        for both in (False, True):
            model, (source, lengths) = model_of(layer, layers=2, bidirectional=both), sentences()
            _, state = model.encoder(source, lengths)
            for row, length in enumerate(lengths.tolist()):
                _, alone = model.encoder(source[row : row + 1, :length])
                parts = (state, alone) if torch.is_tensor(state) else (list(state), list(alone))
                if isinstance(state, dict):
                    parts = list(state.values()), list(alone.values())
                pairs = [parts] if torch.is_tensor(state) else zip(*parts, strict=True)
                for together, one in pairs:
                    assert together.shape == (2, 4, 6)
                    torch.testing.assert_close(together[:, row], one[:, 0])


def test_bidirectional_states_stand_side_by_side():
    model, (source, _) = model_of(bidirectional=True), sentences()
    annotations, state = model.encoder(source[:1])
    torch.testing.assert_close(state[0, 0, :3], annotations[0, -1, :3])
    torch.testing.assert_close(state[0, 0, 3:], annotations[0, 0, 3:])


def test_a_gate_multiplies_the_embedded_tokens():
    torch.manual_seed(0)
    layer, (source, lengths) = nn.GRU(4, 6, batch_first=True), sentences()
    plain = Encoder(9, 4, layer)
    shut = Encoder(9, 4, layer, gate=Gate(4, 1, openness=1e-9))
    gate = Gate(4, 1)
    gated = Encoder(9, 4, layer, gate=gate)
    gated.embedding = shut.embedding = plain.embedding
    nothing, _ = layer(torch.zeros(1, 5, 4))
    torch.testing.assert_close(shut(source[:1])[0], nothing, atol=1e-6, rtol=0)
    embedded = plain.embedding(source)
    expected = layer((gate(embedded) * embedded)[:1])[0]
    torch.testing.assert_close(gated(source, lengths)[0][:1], expected)
    assert gated(source, lengths)[0][2, 1:].abs().max() == 0


def test_attention_and_fixed_context_have_equally_many_parameters():
    sizes = [sum(p.numel() for p in model_of(design=d).parameters()) for d in ("dot", "fixed")]
    assert sizes[0] == sizes[1]


def test_alignments_are_distributions_over_live_positions():
    model, (source, lengths) = model_of(), sentences()
    g = model.align(source, lengths, torch.tensor([[4, 5, 3]] * 4))
    torch.testing.assert_close(g.sum(-1), torch.ones(4, 3, dtype=torch.float64))
    assert not g.transpose(1, 2)[torch.arange(5) >= lengths[:, None]].any()
    with pytest.raises(ValueError, match="decoder: expected a decoder with attention"):
        model_of(design="none").align(source, lengths, torch.tensor([[4]] * 4))


def test_fixed_context_reads_the_last_position_only():
    keys = torch.randn(3, 5, 4)
    context, g = FixedContext(4)(torch.randn(3, 2, 7), keys, torch.tensor([5, 1, 3]))
    expected = torch.stack([keys[0, 4], keys[1, 0], keys[2, 2]])
    torch.testing.assert_close(context, expected[:, None].expand(-1, 2, -1))
    torch.testing.assert_close(torch.bmm(g, keys), context)
    torch.testing.assert_close(FixedContext(4)(keys, keys)[0][:, 0], keys[:, -1])


# ---- where a tensor's numbers can't be read --------------------------------------------------

TARGET = torch.tensor([[4, 5, 3]] * 4)


def everything(model, source, lengths, target):
    """Logits, answers and hypotheses, as shapes and dtypes."""
    answers = model.greedy(source, lengths, 3), *model.beam(source, lengths, 2, 3)
    found = (model(source, lengths, target), *answers)
    return [(tensor.shape, tensor.dtype) for tensor in found]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("design", DESIGNS)
def test_a_model_on_meta_has_the_shapes_of_the_real_one(layer, design):
    model, (source, lengths) = model_of(layer, design), sentences()
    expected = everything(model, source, lengths, TARGET)
    model = copy.deepcopy(model).to("meta")
    on_meta = [tensor.to("meta") for tensor in (source, lengths, TARGET)]
    assert everything(model, *on_meta) == expected
    assert everything(model, on_meta[0], None, on_meta[2]) == expected


@pytest.mark.parametrize("layer", LAYERS)
def test_a_model_runs_on_fake_tensors(layer):
    model, (source, lengths) = model_of(layer), sentences()
    expected = model(source, None, TARGET).shape
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        faked = [mode.from_tensor(tensor) for tensor in (source, lengths, TARGET)]
        assert model(faked[0], None, faked[2]).shape == expected
        if layer == "peephole":
            assert model(*faked).shape == expected
        else:
            with pytest.raises(ValueError, match="lengths: expected numbers that can be read"):
                model(*faked)


@pytest.mark.parametrize("design", DESIGNS)
def test_a_recurrent_model_with_lengths_is_one_graph(design):
    model, (source, lengths) = model_of("peephole", design).eval(), sentences()
    expected = model(source, lengths, TARGET)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(source, lengths, TARGET), expected)
    exported = torch.export.export(model, (source, lengths, TARGET)).module()
    other = torch.tensor([1, 5, 2, 3])
    assert not torch.equal(expected, model(source, other, TARGET))
    torch.testing.assert_close(exported(source, other, TARGET), model(source, other, TARGET))


@pytest.mark.parametrize("layer", ["GRU", "LSTM"])
def test_a_packed_model_is_one_graph_without_lengths_and_says_so_with_them(layer):
    model, (source, lengths) = model_of(layer).eval(), sentences()
    exported = torch.export.export(model, (source, None, TARGET)).module()
    torch.testing.assert_close(exported(source, None, TARGET), model(source, None, TARGET))
    with pytest.raises(ValueError, match=r"Give the encoder a gatelib\.nn\.Recurrent"):
        torch.export.export(model, (source, lengths, TARGET))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("design", DESIGNS)
def test_an_empty_batch_has_empty_answers(layer, design):
    model, (source, lengths) = model_of(layer, design), sentences()
    source, lengths, target = source[:0], lengths[:0], TARGET[:0]
    for given in (lengths, None):
        assert model(source, given, target).shape == (0, 3, 7)
        assert model.greedy(source, given, 4).shape == (0, 4)
        tokens, scores = model.beam(source, given, 2, 4)
        assert tokens.shape == (0, 2, 4) and tokens.dtype == source.dtype
        assert scores.shape == (0, 2) and scores.dtype == torch.float64


# ---- errors ----------------------------------------------------------------------------------


def layer_of(*sizes, **options):
    return nn.GRU(*sizes, **{"batch_first": True} | options)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Encoder(9, 4, nn.Linear(4, 4)), TypeError, "layer: expected a recurrent layer"),
        (lambda: Encoder(9, 4, nn.GRU(4, 6)), ValueError, "layer: expected batch_first=True"),
        (lambda: Encoder(9, 4, layer_of(5, 6)), ValueError, "layer: expected input_size = 4"),
        (lambda: Encoder(9, 4, layer_of(4, 6), 9), ValueError, "padding: expected a token from 0"),
        (
            lambda: Encoder(9, 4, nn.LSTM(4, 6, batch_first=True, proj_size=2)),
            ValueError,
            "layer: expected no projection",
        ),
        (
            lambda: Decoder(9, 4, layer_of(4, 6, bidirectional=True)),
            ValueError,
            "layer: expected one direction",
        ),
        (
            lambda: Decoder(9, 4, layer_of(4, 6), DotAttention(5, 5)),
            ValueError,
            "attention: expected query_size = 6",
        ),
        (
            lambda: Decoder(9, 4, layer_of(4, 6), DotAttention(6, 6), "before"),
            ValueError,
            "layer: expected input_size = 10",
        ),
        (
            lambda: Decoder(9, 4, layer_of(4, 6), attend="before"),
            ValueError,
            "attend: expected 'after', got 'before'",
        ),
        (
            lambda: Decoder(9, 4, layer_of(4, 6), DotAttention(6, 6), "during"),
            ValueError,
            "attend: expected 'after' or 'before'",
        ),
    ],
)
def test_a_module_names_bad_arguments(make, error, says):
    with pytest.raises(error, match=says):
        make()


@pytest.mark.parametrize(
    ("encoder", "decoder", "tokens", "error", "says"),
    [
        (layer_of(4, 6), nn.LSTM(4, 6, batch_first=True), (2, 3), ValueError, "expected states"),
        (layer_of(4, 6, 2), layer_of(4, 6), (2, 3), ValueError, "decoder: expected layers 2"),
        (layer_of(4, 5), layer_of(4, 6), (2, 3), ValueError, "decoder: expected features 5"),
        (layer_of(4, 6), layer_of(4, 6), (2, 2), ValueError, "start: expected start, end and"),
        (layer_of(4, 6), layer_of(4, 6), (2, 9), ValueError, "end: expected a token from 0 to 8"),
        (layer_of(4, 6), layer_of(4, 6), (2.0, 3), TypeError, "start: expected a token"),
    ],
)
def test_parts_that_do_not_fit_are_named(encoder, decoder, tokens, error, says):
    with pytest.raises(error, match=says):
        Seq2Seq(Encoder(9, 4, encoder), Decoder(9, 4, decoder), *tokens)


def test_the_attention_of_a_decoder_must_read_the_encoder_s_features():
    attention = DotAttention(6, 5, "general")
    with pytest.raises(ValueError, match="decoder: expected key_size 6 as the encoder, got 5"):
        encoder = Encoder(9, 4, layer_of(4, 6))
        Seq2Seq(encoder, Decoder(9, 4, layer_of(4, 6), attention), START, END)
    with pytest.raises(TypeError, match="encoder: expected Encoder, got GRU"):
        Seq2Seq(layer_of(4, 6), Decoder(9, 4, layer_of(4, 6)), START, END)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda m, s, n: m(s.float(), n, s % 7), TypeError, "source: expected torch.int64"),
        (lambda m, s, n: m.greedy(s[0], n, 3), ValueError, r"source: expected \(B, T\)"),
        (lambda m, s, n: m(s + 9, n, s % 7), ValueError, "source: expected tokens from 0 to 8"),
        (lambda m, s, n: m(s, n * 0, s % 7), ValueError, "lengths: expected 1 to T = 5"),
        (lambda m, s, n: m(s, n, s[:1] % 7), ValueError, "target: expected batch 4 as source"),
        (lambda m, s, n: m(s, n, s * 0 - 1), ValueError, "target: expected tokens from 0 to 6"),
    ],
)
def test_a_model_names_bad_input(call, error, says):
    model, (source, lengths) = model_of(), sentences()
    with pytest.raises(error, match=says):
        call(model, source, lengths)


class Combined(nn.Module):
    """A context gate where the decoder puts its context and its output side by side."""

    def __init__(self, kind):
        super().__init__()
        self.gate = ContextGate(6, 6, 6, kind)

    def forward(self, both):
        context, output = both.split(6, -1)
        return self.gate.mix(output, context)


def test_a_decoder_takes_another_module_to_combine_what_it_read_and_what_it_has():
    gated = Decoder(
        9, 4, nn.GRU(4, 6, batch_first=True), DotAttention(6, 6), combine=Combined("none")
    )
    plain = Decoder(9, 4, nn.GRU(4, 6, batch_first=True), DotAttention(6, 6))
    gate = gated.combine.gate
    with torch.no_grad():
        plain.combine.weight.copy_(torch.cat([gate.source_proj.weight, gate.target_proj.weight], 1))
        plain.combine.bias.copy_(gate.source_proj.bias + gate.target_proj.bias)
    same = {k: v for k, v in gated.state_dict().items() if not k.startswith("combine")}
    plain.load_state_dict(same, strict=False)
    given = torch.tensor([[2, 4, 5]]), torch.zeros(1, 1, 6), torch.randn(1, 3, 6)
    torch.testing.assert_close(gated(*given)[0], plain(*given)[0])
    with pytest.raises(TypeError, match="combine: expected a module, got str"):
        Decoder(9, 4, nn.GRU(4, 6, batch_first=True), DotAttention(6, 6), combine="both")


@pytest.mark.parametrize("design", DESIGNS)
def test_to_look_and_then_to_say_is_the_whole_step(design):
    model, (source, lengths) = model_of(design=design), sentences()
    memory, state = model.encoder(source, lengths)
    previous = torch.tensor([[2, 4, 5]] * 4)
    logits, weights, after = model.decoder(previous, state, memory, lengths)
    y, context, seen, left = model.decoder.look(previous, state, memory, lengths)
    assert torch.equal(model.decoder.say(y, context), logits)
    assert (weights is None and seen is None) or torch.equal(weights, seen)
    assert torch.equal(after, left) and y.shape == (4, 3, 6)
