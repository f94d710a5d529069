"""Every layer on a GPU gives what float64 on the CPU gives, in each type and by each path of torch.

Imports torch and two modules of tests.nn alone, so that a machine without Hypothesis collects it.
"""

import copy

import pytest
import torch
from torch import nn

import gatelib.nn as gates
from gatelib.equations.lstm import LSTM, PEEPHOLE
from tests.nn.every_layer import CASES, LENGTHS, recurrent
from tests.nn.running import assert_near, floats, forward_and_backward

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
RECURRENT = [case for case in CASES if "fused" in case.name]


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    """Neither cuDNN nor cuBLAS may round float32 products to TF32 here."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def there(case, dtype=torch.float32):
    """(module, inputs) on the GPU."""
    inputs = [x.detach().cuda() for x in case.inputs(dtype)]
    return case.module(dtype).cuda(), [x.requires_grad_(x.is_floating_point()) for x in inputs]


def truth(case):
    return forward_and_backward(case.module(), case.inputs(), case.options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@every_case
def test_a_layer_gives_what_the_cpu_gives(case, dtype):
    module, inputs = there(case, dtype)
    found = forward_and_backward(module, inputs, case.options)
    assert {value.device.type for value in found} == {"cuda"}
    assert_near(found, truth(case), dtype)


@every_case
def test_a_layer_compiles_into_one_graph(case):
    torch._dynamo.reset()
    module, inputs = there(case)
    if case.kind == "tokens":
        pytest.skip("its lengths are read on the host")
    found = forward_and_backward(torch.compile(module, fullgraph=True), inputs, case.options)
    assert_near(found, truth(case), torch.float32)


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_layer_trains_under_autocast(case, dtype):
    module, inputs = there(case)
    with torch.autocast("cuda", dtype):
        found = forward_and_backward(module, inputs, case.options)
    assert all(value.isfinite().all() for value in found)
    assert_near(found, truth(case), torch.bfloat16)


def test_a_scaled_step_moves_every_parameter():
    module = recurrent(PEEPHOLE, impl="fused")().cuda()
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    scaler, x = torch.amp.GradScaler("cuda"), torch.randn(3, 5, 4, device="cuda")
    before = [p.detach().clone() for p in module.parameters()]
    for _ in range(5):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16):
            loss = module(x)[0].float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    for old, new in zip(before, module.parameters(), strict=True):
        assert new.isfinite().all() and not torch.equal(old, new)


@pytest.mark.parametrize("case", RECURRENT, ids=lambda case: case.name)
def test_second_derivatives_are_those_of_the_cpu(case):
    def penalty(module, x):
        (slope,) = torch.autograd.grad(floats(module(x))[0].square().sum(), x, create_graph=True)
        wanted = [x, *module.parameters()]
        options = {"allow_unused": True, "materialize_grads": True}
        return torch.autograd.grad(slope.square().sum(), wanted, **options)

    module, (x,) = there(case, torch.float64)
    assert_near(penalty(module, x), penalty(case.module(), *case.inputs()), torch.float64)


@pytest.mark.parametrize("layer", [gates.LSTM, gates.GRU, gates.RNN])
def test_cudnn_has_no_second_derivative_and_the_reference_has(layer):
    """As with torch's own layers: cuDNN's backward can't be differentiated."""
    x = torch.randn(2, 3, 4, device="cuda", requires_grad=True)
    for impl, fails in (("fused", True), ("reference", False)):
        output, _ = layer(4, 6, batch_first=True, impl=impl, device="cuda")(x)
        (slope,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
        if fails and slope.requires_grad:
            with pytest.raises((RuntimeError, NotImplementedError)):
                slope.square().sum().backward()
        elif not fails:
            slope.square().sum().backward()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("impl", ["fused", "reference"])
def test_lengths_may_lie_on_either_device(impl, device):
    module = recurrent(PEEPHOLE, impl=impl)().cuda()
    x = torch.randn(3, 5, 4, device="cuda")
    output, _ = module(x, lengths=torch.tensor(LENGTHS, device=device))
    alone, _ = module(x[1:2, :3])
    assert torch.allclose(output[1:2, :3], alone, atol=1e-6)
    assert not output[1, 3:].any()


def test_a_packed_sequence_equals_its_sentences():
    for layer in (gates.LSTM, gates.GRU, gates.RNN):
        module = layer(4, 6, batch_first=True, device="cuda")
        x = torch.randn(3, 5, 4, device="cuda")
        lengths = torch.tensor(LENGTHS)
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        output, _ = nn.utils.rnn.pad_packed_sequence(module(packed)[0], batch_first=True)
        assert torch.allclose(output[1:2, :3], module(x[1:2, :3])[0], atol=1e-5)


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_a_drop_in_gives_the_bits_of_torch(name):
    theirs = getattr(nn, name)(4, 6, 2, batch_first=True, device="cuda")
    ours = getattr(gates, name)(4, 6, 2, batch_first=True, device="cuda")
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 5, 4, device="cuda")
    for a, b in zip(floats(ours(x)), floats(theirs(x)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("case", RECURRENT, ids=lambda case: case.name)
def test_a_graph_replays_a_layer(case):
    module, (x,) = there(case)
    stream = torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(3):
            module(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        captured = floats(module(x))
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
        graph.replay()
        torch.cuda.synchronize()
        for mine, now in zip(captured, floats(module(x)), strict=True):
            assert torch.allclose(mine, now, atol=1e-6)


@pytest.mark.parametrize("case", RECURRENT, ids=lambda case: case.name)
def test_a_layer_waits_for_the_stream_it_runs_in(case):
    module, (x,) = there(case)
    expected = floats(module(x))
    stream = torch.cuda.Stream()
    late = torch.empty_like(x)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(x)
        found = floats(module(late))
    stream.synchronize()
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_a_layer_can_be_moved_and_copied():
    module = recurrent(LSTM, impl="fused")()
    x = torch.randn(3, 5, 4)
    expected = module(x)[0]
    moved = copy.deepcopy(module).cuda()
    assert torch.allclose(moved(x.cuda())[0].cpu(), expected, atol=1e-5)
    assert torch.allclose(moved.cpu()(x)[0], expected, atol=1e-6)


def test_a_training_step_allocates_the_same_memory_each_time():
    module = recurrent(PEEPHOLE, impl="fused")().cuda()
    x, peaks = torch.randn(64, 128, 4, device="cuda"), []
    for _ in range(4):
        module.zero_grad(set_to_none=True)
        torch.cuda.reset_peak_memory_stats()
        module(x)[0].square().mean().backward()
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[-1] == peaks[-2]
