"""The drop-ins compiled, exported and under autocast."""

import pytest
import torch

from tests.nn.drop_in import (
    DTYPES,
    FAMILIES,
    SHAPES,
    B,
    D,
    T,
    assert_close,
    assert_same,
    draw,
    every_family,
    every_impl,
    every_state,
    everything,
    listed,
    make,
    peer,
    sequences,
)

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [("without bias in two directions", torch.float32), ("batch first", torch.bfloat16)],
    ids=str,
)
@every_family
def test_compile_takes_the_whole_graph_and_keeps_every_value(compiler, family, shape, dtype):
    ours = make(family, **SHAPES[shape], dtype=dtype)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for steps in (T, T + 3, T + 6):
        x, hx = draw(ours, steps=steps)
        found = everything(compiled, x, hx)
        assert_close(found, everything(ours, x, hx), 8 * torch.finfo(dtype).eps)


@every_family
def test_compile_does_not_unroll_time(compiler, family):
    sizes = []

    def count(graph, example):
        sizes.append(len(graph.graph.nodes))
        return graph.forward

    ours = make(family)
    for steps in (2, 50):
        torch._dynamo.reset()
        torch.compile(ours, fullgraph=True, backend=count)(torch.zeros(steps, B, D))
    assert sizes[0] == sizes[1] < 40


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo's, at a break
@every_impl
@every_state
def test_compile_trains_with_dropout_and_packing(compiler, family, impl):
    projection = {"proj_size": 2} if family is FAMILIES["LSTM"] else {}
    ours = make(family, 2, dropout=1.0, bias=False, impl=impl, **projection)
    compiled = torch.compile(ours, backend="aot_eager")
    for x in (draw(ours, steps=2)[0], sequences([1, 2])):
        assert_close(everything(compiled, x), everything(ours, x), 1e-6)


@every_state
def test_the_compiled_reference_is_the_reference(compiler, family):
    ours = make(family, 2, bidirectional=True, impl="reference")
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    x, hx = draw(ours, steps=2)
    assert_close(everything(compiled, x, hx), everything(ours, x, hx), 1e-6)


@every_family
def test_the_compiled_kernel_refuses_a_second_derivative(compiler, family):
    compiled = torch.compile(make(family), fullgraph=True, backend="eager")
    x = torch.randn(T, B, D, requires_grad=True)
    with pytest.raises(NotImplementedError, match="impl='reference'"):
        torch.autograd.grad(compiled(x)[0].sum(), x, create_graph=True)


@pytest.mark.parametrize("packed", [False, True])
@every_family
def test_the_operator_declares_what_it_does(family, packed):
    ours = make(family, bidirectional=True)
    x, hx = draw(ours)
    data = sequences([4, 2, 1], sort=True)
    first = (data.data, data.batch_sizes) if packed else (x, None)
    weights = [w.detach().requires_grad_() for layer in ours.all_weights for w in layer]
    arguments = (first[0].requires_grad_(), first[1], *listed(hx), weights, True, None)
    operator = getattr(torch.ops.gatelib, ours.mode.lower()).default
    torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("strict", [False, True])
@every_impl
@every_state
def test_export_keeps_parameters_and_needs_no_gatelib(family, impl, strict):
    ours = make(family, 2, bidirectional=True, impl=impl).eval()
    x, hx = draw(ours, steps=3)
    program = torch.export.export(ours, (x, hx), strict=strict)
    assert set(program.state_dict) == set(ours.state_dict())
    assert not [n for n in program.graph.nodes if "gatelib" in str(n.target)]
    found, _ = program.module()(x, hx)
    torch.testing.assert_close(found, ours(x, hx)[0], atol=1e-6, rtol=0)


@every_family
def test_export_takes_a_batch_of_any_size(family):
    ours = make(family, batch_first=True).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(ours, (torch.randn(B, T, D),), dynamic_shapes=({0: batch},))
    x = torch.randn(B + 4, T, D)
    assert torch.equal(program.module()(x)[0], ours(x)[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", ["plain", "three layers in two directions"])
@every_family
def test_autocast_is_torchs(family, shape, dtype):
    ours = make(family, **SHAPES[shape], dtype=dtype)
    x, hx = draw(ours)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(everything(ours, x, hx), everything(peer(ours), x, hx))


@every_family
def test_autocast_takes_an_input_already_cast(family):
    ours = make(family)
    x = torch.randn(T, B, D, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(x)[0], peer(ours)(x)[0])


@every_impl
@every_state
def test_autocast_compiled_is_autocast_eager(compiler, family, impl):
    ours = make(family, impl=impl)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    x, hx = draw(ours, steps=3)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = everything(compiled, x, hx), everything(ours, x, hx)
    for name, value in found.items():
        assert value.dtype == expected[name].dtype, name
    assert_close(found, expected, 2e-2)


@every_family
def test_the_reference_under_autocast_is_near_torch(family):
    ours = make(family, 2, impl="reference")
    x, hx = draw(ours)
    with torch.autocast("cpu", torch.bfloat16):
        found, theirs = everything(ours, x, hx), everything(peer(ours), x, hx)
    for name, value in found.items():
        assert value.dtype == theirs[name].dtype, name
    assert_close(found, theirs, 3e-2)
