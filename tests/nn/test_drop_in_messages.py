"""What the drop-ins say about bad arguments: the argument, what was expected, what came."""

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence

from tests.nn.drop_in import (
    FAMILIES,
    B,
    D,
    H,
    T,
    every_family,
    every_impl,
    make,
    pair_or_one,
    sequences,
)

BAD_OPTIONS = {
    "no features": ((0, H), {}, ValueError, "input_size: expected at least 1, got 0"),
    "half a feature": ((2.5, H), {}, TypeError, "input_size: expected an integer, got float"),
    "true features": ((D, True), {}, TypeError, "hidden_size: expected an integer, got bool"),
    "no layers": ((D, H, 0), {}, ValueError, "num_layers: expected at least 1, got 0"),
    "bias as a number": ((D, H), {"bias": 1}, TypeError, "bias: expected True or False, got int"),
    "batch_first as text": ((D, H), {"batch_first": "no"}, TypeError, "batch_first: .*str"),
    "bidirectional as None": ((D, H), {"bidirectional": None}, TypeError, "bidirectional: "),
    "dropout above 1": ((D, H, 2), {"dropout": 1.5}, ValueError, r"dropout: .*\[0, 1\], got 1.5"),
    "dropout as a flag": ((D, H, 2), {"dropout": True}, TypeError, "dropout: .*bool"),
    "integers": ((D, H), {"dtype": torch.int64}, TypeError, "dtype: .*torch.int64"),
    "unknown impl": ((D, H), {"impl": "fast"}, ValueError, "impl: .*'reference'.*'fast'"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
@every_family
def test_bad_options_say_what_is_wrong(family, case):
    arguments, options, kind, message = case
    with pytest.raises(kind, match=message):
        family.layer(*arguments, **options, **family.options)


X = torch.zeros(T, B, D)
BAD_INPUT = {
    "an array": (X.numpy(), TypeError, "input: expected a tensor, got ndarray"),
    "rank 4": (X[None], ValueError, r"input: expected 2 or 3 dimensions, got 4 \(1, 7"),
    "rank 1": (X[0, 0], ValueError, "input: expected 2 or 3 dimensions, got 1"),
    "features": (X[..., :4], ValueError, r"input: expected 5 features.*got 4 .*\(7, 3, 4"),
    "dtype": (X.double(), TypeError, "input: expected torch.float32.*got torch.float64"),
    "device": (X.to("meta"), ValueError, "input: expected device cpu.*got meta"),
}


@every_impl
@pytest.mark.parametrize("case", BAD_INPUT.values(), ids=BAD_INPUT.keys())
@every_family
def test_bad_input_says_what_is_wrong(family, case, impl):
    x, kind, message = case
    with pytest.raises(kind, match=message):
        make(family, impl=impl)(x)


def zeros(*shape, **options):
    return torch.zeros(shape, **options)


BAD_STATE = {
    "a pair": (X, (zeros(1, B, H), zeros(1, B, H)), TypeError, "hx: expected a tensor, got tuple"),
    "size": (X, zeros(1, B, 4), ValueError, r"hx: expected shape \(1, 3, 6\), got \(1, 3, 4\)"),
    "rank": (X[:, 0], zeros(1, B, H), ValueError, r"hx: expected shape \(1, 6\), got \(1, 3, 6"),
    "dtype": (X, zeros(1, B, H, dtype=torch.float64), TypeError, "hx: .*torch.float64"),
    "device": (X, zeros(1, B, H, device="meta"), ValueError, "hx: expected device cpu"),
}


@pytest.mark.parametrize("case", BAD_STATE.values(), ids=BAD_STATE.keys())
@pytest.mark.parametrize("name", ["GRU", "RNN"])
def test_a_bad_single_state_says_what_is_wrong(name, case):
    x, hx, kind, message = case
    with pytest.raises(kind, match=message):
        make(FAMILIES[name])(x, hx)


@pytest.mark.parametrize("sizes", [[3, 3], [1, 2, 3], [4, 3], [6, 0]], ids=str)
@every_family
def test_lengths_that_contradict_the_packed_data_are_refused(family, sizes):
    broken = PackedSequence(torch.zeros(6 if sizes != [3, 3] else 7, D), torch.tensor(sizes))
    with pytest.raises(ValueError, match=r"input.batch_sizes: .*rows of input.data"):
        make(family)(broken)


@every_family
def test_packed_input_is_checked_like_any_other(family):
    ours, packed = make(family), sequences([3, 2])
    with pytest.raises(ValueError, match=r"input.data: expected 5 features .*got 4"):
        ours(PackedSequence(packed.data[:, :4], *packed[1:]))
    with pytest.raises(TypeError, match=r"input.data: expected torch.float32"):
        ours(packed.double())
    with pytest.raises(ValueError, match=r"hx.*: expected shape \(1, 2, 6\), got \(1, 3, 6\)"):
        ours(packed, pair_or_one(ours, [zeros(1, 3, H), zeros(1, 3, H)]))


BAD_CELL_INPUT = {
    "rank": (X, ValueError, "input: expected 1 or 2 dimensions, got 3"),
    "features": (X[0, :, :4], ValueError, "input: expected 5 features"),
    "dtype": (X[0].double(), TypeError, "input: expected torch.float32"),
}


@pytest.mark.parametrize("case", BAD_CELL_INPUT.values(), ids=BAD_CELL_INPUT.keys())
@every_family
def test_bad_cell_input_says_what_is_wrong(family, case):
    x, kind, message = case
    with pytest.raises(kind, match=message):
        family.cell(D, H, **family.options)(x)


@pytest.mark.parametrize("name", ["GRU", "RNN"])
def test_a_bad_single_state_of_a_cell_says_what_is_wrong(name):
    cell = FAMILIES[name].cell(D, H)
    with pytest.raises(ValueError, match=r"hx: expected shape \(3, 6\), got \(3, 4\)"):
        cell(X[0], zeros(B, 4))
    with pytest.raises(TypeError, match="hx: expected a tensor, got tuple"):
        cell(X[0], (zeros(B, H),))


@pytest.mark.parametrize(
    ("options", "kind"), [({"impl": "gpu"}, ValueError), ({"bias": 1}, TypeError)], ids=str
)
@every_family
def test_bad_cell_options_are_refused(family, options, kind):
    with pytest.raises(kind, match=next(iter(options))):
        family.cell(D, H, **options)
