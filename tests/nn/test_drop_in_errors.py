"""What a drop-in raises is what torch raises too, and says what is wrong."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import gatelib.nn as ours
from tests.nn.drop_in import B, D, H, T

LAYERS, CELLS = ("LSTM", "GRU", "RNN"), ("LSTMCell", "GRUCell", "RNNCell")
pytestmark = pytest.mark.filterwarnings("ignore:dropout option adds dropout")
zeros = torch.zeros
X, C = zeros(T, B, D), zeros(B, D)
DOUBLE, LONG, META = {"dtype": torch.float64}, {"dtype": torch.int64}, {"device": "meta"}


def both(*shape, **options):
    """States of that shape: one, or an LSTM's two."""
    return lambda kind: (
        (zeros(shape, **options),) * 2 if "LSTM" in kind else zeros(shape, **options)
    )


def packed(features=D, dtype=torch.float32):
    rows = [zeros(length, features, dtype=dtype) for length in (4, 2, 1)]
    return pack_sequence(rows, enforce_sorted=False)


def by_hand(rows, *sizes):
    return PackedSequence(rows, torch.tensor(sizes, dtype=torch.int64))


BAD_ARGUMENTS = {
    "input of 0": ((0, H), {}),
    "input below 0": ((-1, H), {}),
    "input of floats": ((5.0, H), {}),
    "hidden of 0": ((D, 0), {}),
    "hidden below 0": ((D, -1), {}),
    "hidden of text": ((D, "6"), {}),
    "hidden of nothing": ((D, None), {}),
    "no hidden": ((D,), {}),
    "another argument": ((D, H), {"foo": 1}),
    "integers": ((D, H), {"dtype": torch.int64}),
    "dtype as text": ((D, H), {"dtype": "float"}),
    "no such device": ((D, H), {"device": "nowhere"}),
}
BAD_OPTIONS = {
    "no layer": {"num_layers": 0},
    "half a layer": {"num_layers": 1.5},
    "bias as text": {"bias": "yes"},
    "batch_first as a number": {"batch_first": 1},
    "dropout as text": {"dropout": "a"},
    "dropout of 2": {"dropout": 2.0},
    "dropout below 0": {"dropout": -0.1},
    "dropout of nan": {"dropout": float("nan")},
    "dropout as a bool": {"dropout": True},
    "projection below 0": {"proj_size": -1},
    "projection of H": {"proj_size": H},
    "projection as text": {"proj_size": "2"},
    "projection of floats": {"proj_size": 2.0},
    "projection": {"proj_size": 2},
}
BAD_CALLS = {  # the arguments of a layer's call, by its kind; states are made for the kind
    "nothing": (),
    "no tensor": (None,),
    "list": ([1.0],),
    "array": (X.numpy(),),
    "rank 0": (zeros(()),),
    "rank 1": (zeros(D),),
    "rank 4": (zeros(1, T, B, D),),
    "features": (zeros(T, B, 4),),
    "features of one sequence": (zeros(T, 4),),
    "double": (X.double(),),
    "integers": (X.long(),),
    "bools": (X.bool(),),
    "half": (X.half(),),
    "complex": (X.to(torch.complex64),),
    "meta": (X.to("meta"),),
    "no step": (zeros(0, B, D),),
    "no step of one sequence": (zeros(0, D),),
    "state's features": (X, both(1, B, 4)),
    "state's batch": (X, both(1, 2, H)),
    "state's layers": (X, both(2, B, H)),
    "state of rank 2": (X, both(B, H)),
    "state of rank 4": (X, both(1, 1, B, H)),
    "state of one sequence": (X, both(1, H)),
    "state of a batch": (X[:, 0], both(1, 1, H)),
    "state's type": (X, both(1, B, H, **DOUBLE)),
    "state of integers": (X, both(1, B, H, **LONG)),
    "state's device": (X, both(1, B, H, **META)),
    "state of lists": (X, [[0.0]]),
    "state as text": (X, "ab"),
    "state as a number": (X, 0.0),
    "a tuple of one": (X, (zeros(1, B, H),)),
    "three states": (X, (zeros(1, B, H),) * 3),
    "half a state": (X, (zeros(1, B, H), None)),
    "packed features": (packed(4),),
    "packed doubles": (packed(dtype=torch.float64),),
    "packed integers": (packed(dtype=torch.int64),),
    "packed and state's batch": (packed(), both(1, 2, H)),
    "packed and state of rank 2": (packed(), both(3, H)),
    "packed and state's type": (packed(), both(1, 3, H, **DOUBLE)),
    "packed nothing": (by_hand(zeros(0, D)),),
    "packed sizes that grow": (by_hand(zeros(3, D), 1, 2),),
    "packed sizes of another sum": (by_hand(zeros(3, D), 2, 2),),
    "packed rank 3": (by_hand(zeros(3, 2, D), 2, 1),),
    "packed rank 1": (by_hand(zeros(3), 2, 1),),
    "too many": (X, None, None),
}
BAD_STEPS = {
    "no tensor": (None,),
    "list": ([1.0],),
    "packed": (packed(),),
    "rank 0": (zeros(()),),
    "rank 3": (X,),
    "features": (zeros(B, 4),),
    "features of one": (zeros(4),),
    "double": (C.double(),),
    "integers": (C.long(),),
    "meta": (C.to("meta"),),
    "state's features": (C, both(B, 4)),
    "state's batch": (C, both(2, H)),
    "state of rank 1": (C, both(H)),
    "state of rank 3": (C, both(1, B, H)),
    "state of a batch": (C[0], both(1, H)),
    "state's type": (C, both(B, H, **DOUBLE)),
    "state's device": (C, both(B, H, **META)),
    "state as text": (C, "ab"),
    "a tuple of one": (C, (zeros(B, H),)),
    "three states": (C, (zeros(B, H),) * 3),
    "half a state": (C, (zeros(B, H), None)),
}


def raised(call):
    """What a call raises."""
    try:
        call()
    except Exception as error:
        return error
    return None


def assert_of_torchs_kind(error, theirs, told=True):
    """Ours is raised wherever torch's is, is of its kind, and names an argument."""
    if theirs is None:
        return
    assert error is not None, f"torch raises {theirs!r}"
    assert isinstance(error, type(theirs)), f"{error!r}, and torch raises {theirs!r}"
    assert not told or ": expected " in str(error) or "argument" in str(error), error


@pytest.mark.parametrize("kind", LAYERS + CELLS)
@pytest.mark.parametrize("case", BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_bad_arguments_raise_what_torch_raises(kind, case):
    sizes, options = case
    theirs = raised(lambda: getattr(nn, kind)(*sizes, **options))
    error = raised(lambda: getattr(ours, kind)(*sizes, **options))
    assert error is not None
    assert_of_torchs_kind(error, theirs, told="device" not in options)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("options", BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_options_raise_what_torch_raises(kind, options):
    theirs = raised(lambda: getattr(nn, kind)(D, H, **options))
    error = raised(lambda: getattr(ours, kind)(D, H, **options))
    assert_of_torchs_kind(error, theirs)


@pytest.mark.parametrize("kind", LAYERS + CELLS)
@pytest.mark.parametrize("name", ["hidden_size", "input_size", "bias"])
def test_what_torch_takes_for_a_size_or_a_flag_by_chance_is_refused(kind, name):
    """A bool is an integer to torch, and a number a bool."""
    options = {"input_size": D, "hidden_size": H} | {name: 1 if name == "bias" else True}
    with pytest.raises(TypeError, match=f"{name}: expected"):
        getattr(ours, kind)(**options)


def outcome(layer, kind, given):
    given = [value(kind) if callable(value) else value for value in given]
    return raised(lambda: layer(*given))


CALLS = [(kind, name) for kind in LAYERS for name in BAD_CALLS]
CALLS += [(kind, name) for kind in CELLS for name in BAD_STEPS]


@pytest.mark.parametrize(("kind", "name"), CALLS)
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_bad_calls_raise_what_torch_raises(kind, name, impl):
    given = (BAD_CALLS if kind in LAYERS else BAD_STEPS)[name]
    theirs = outcome(getattr(nn, kind)(D, H), kind, given)
    assert_of_torchs_kind(outcome(getattr(ours, kind)(D, H, impl=impl), kind, given), theirs)


def test_an_empty_packed_batch_is_refused_with_what_was_expected():
    with pytest.raises(ValueError, match=r"input.batch_sizes: expected one size a step.*\(0,\)"):
        ours.GRU(D, H)(by_hand(zeros(0, D)))


@pytest.mark.parametrize("impl", ["auto", "fused", "reference"])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_batch_of_no_sequence_gives_torchs_empty_results(kind, impl):
    layer, theirs = (getattr(where, kind)(D, H, 2) for where in (ours, nn))
    layer.impl = impl
    x = zeros(T, 0, D)
    for found, expected in zip(layer(x), theirs(x), strict=True):
        for one, other in zip(listed(found), listed(expected), strict=True):
            assert one.shape == other.shape


def listed(values):
    return values if isinstance(values, tuple) else (values,)


# --- quantisation -----------------------------------------------------------------------------


def quantised(model, *options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        return torch.ao.quantization.quantize_dynamic(model, *options)


@pytest.mark.parametrize("kind", LAYERS + CELLS)
def test_dynamic_quantisation_says_that_it_leaves_a_drop_in_in_floats(kind):
    model = nn.Sequential(getattr(ours, kind)(D, H))
    with pytest.warns(UserWarning, match=rf"{kind} stays in floats: .*to_torch"):
        assert type(quantised(model)[0]) is getattr(ours, kind)
    with pytest.raises(NotImplementedError, match=rf"{kind} can't be .*to_torch"):
        quantised(model, {getattr(ours, kind)})


def test_a_layer_that_nobody_quantises_has_no_plan():
    assert not hasattr(ours.LSTM(D, H), "qconfig")
