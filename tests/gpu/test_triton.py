"""The generated Triton kernels, compiled: the cases of the interpreter, and what it can't show.

Imports torch, gatelib.kernels and the cases alone, so that no Hypothesis is needed.
"""

import pytest
import torch

from gatelib.kernels.elementwise import elementwise
from gatelib.kernels.scan import scan
from gatelib.spec import Spec

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

from tests.kernels.elementwise_cases import *  # noqa: F403
from tests.kernels.scan_cases import *  # noqa: F403
from tests.kernels.triton_cells import LSTM, MINGRU, PEEPHOLE

pytestmark = pytest.mark.gpu


def step_by_step(spec, streams):
    """The first output of the torch source, one step after the other, from zeros."""
    run, outputs = spec.compile("torch"), []
    state = [streams[0].new_zeros(streams[0][:, 0].shape) for _ in spec.carries]
    places = [spec.outputs.index(v) for v in spec.carries.values()]
    for t in range(streams[0].shape[1]):
        values = run(*(x[:, t] for x in streams), *state)
        values = values if isinstance(values, tuple) else (values,)
        state = [values[place] for place in places]
        outputs.append(values[0])
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(4, 200, 1024), (64, 50, 2048), (3, 77, 130)], ids=str)
@pytest.mark.parametrize("spec", [MINGRU, LSTM], ids=lambda spec: spec.name)
def test_a_scan_of_a_full_size_agrees(spec, shape, dtype):
    streams = [torch.randn(shape, device="cuda", dtype=dtype) for _ in scan(spec).names]
    outputs, _ = scan(spec)(*streams)
    found = outputs[0] if isinstance(outputs, tuple) else outputs
    truth = step_by_step(spec, [x.double() for x in streams])
    plain = step_by_step(spec, streams)
    own = (plain.double() - truth).abs().max()
    allowed = 2 * own + 4 * torch.finfo(dtype).eps * truth.abs().max()
    assert (found.double() - truth).abs().max() <= allowed


def test_elements_past_two_to_the_31_are_reached():
    x = torch.zeros(2**31 + 5, dtype=torch.float16, device="cuda")
    x[-1] = 3.0
    y = elementwise(Spec.parse("only_relu", "x -> z", "z = relu(x)"))(x)
    assert y[-1] == 3.0 and y[-2] == 0.0


def test_rows_past_two_to_the_31_are_reached():
    """The last row of a batch lies behind 2**31 elements, and its last step behind them too."""
    rows, steps, width = 5, 2**19 + 3, 1024
    a_z = torch.zeros(rows, steps, width, dtype=torch.float16, device="cuda")
    n = torch.zeros_like(a_z)
    a_z[-1, -1], n[-1, -1] = 2.0, 1.0
    output, final = scan(MINGRU)(a_z, n)
    assert torch.allclose(final[-1], torch.sigmoid(torch.tensor(2.0, device="cuda")), atol=1e-3)
    assert torch.equal(output[-1, -1].float(), final[-1].half().float())
    assert not output[:-1, -1].any() and not output[-1, -2].any()


def test_a_kernel_waits_for_the_stream_it_runs_in():
    a_z, n = (torch.randn(8, 100, 256, device="cuda") for _ in range(2))
    expected, _ = scan(MINGRU)(a_z, n)
    late, stream = torch.empty_like(a_z), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(a_z)
        found, _ = scan(MINGRU)(late, n)
    stream.synchronize()
    assert torch.equal(found, expected)


def test_a_kernel_runs_on_the_device_of_its_input():
    """With two devices, a launch in the context of the other would fault."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    a_z, n = (torch.randn(2, 9, 64, device="cuda:1") for _ in range(2))
    output, _ = scan(MINGRU)(a_z, n)
    assert output.device == a_z.device and output.isfinite().all()


def test_a_graph_replays_a_scan():
    streams = [torch.randn(8, 100, 256, device="cuda") for _ in range(2)]
    scan(MINGRU)(*streams)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output, _ = scan(MINGRU)(*streams)
    streams[0].copy_(torch.randn_like(streams[0]))
    graph.replay()
    assert torch.equal(output, scan(MINGRU)(*streams)[0])


def test_a_second_run_gives_the_same_bits():
    names = scan(PEEPHOLE, ("w_i", "w_f", "w_o")).names
    shapes = {"w_i": (1024,), "w_f": (1024,), "w_o": (1024,)}
    inputs = [torch.randn(shapes.get(n, (16, 300, 1024)), device="cuda") for n in names]
    results = []
    for _ in range(2):
        given = [x.detach().requires_grad_() for x in inputs]
        (h, c), _ = scan(PEEPHOLE, ("w_i", "w_f", "w_o"))(*given)
        results.append([h, c, *torch.autograd.grad((h + c).sum(), given)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
