"""Every layer on a device that is no CPU, without one; `test_other_device.py` runs this file.

Imports torch and tests.nn.every_layer.
Must not share a process with other tests: it registers a device with torch, for good.

Tensors are fake, so shapes, types and devices alone are computed. A tensor that is made on the
CPU by mistake meets one of the device, and raises.
"""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from tests.nn.every_layer import CASES, LENGTHS, recurrent
from tests.nn.running import floats, forward_and_backward

DEVICE = "gpu"
_setup_privateuseone_for_python_backend(DEVICE)
TORCHS_OWN = {"GRU auto", "GRUCell"}
"""torch.nn.GRU itself has no fake form on a device unknown to torch."""


def moved(module):
    """The module's parameters and buffers, on the device."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = nn.Parameter(value.detach().to(DEVICE))
        for name, value in part._buffers.items():
            part._buffers[name] = None if value is None else value.detach().to(DEVICE)
    return module


def there(value):
    on = value.detach().to(DEVICE)
    return on.requires_grad_() if value.requires_grad else on


def run(case, dtype=torch.float32):
    module, inputs = case.module(dtype), case.inputs(dtype)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        options = {name: mode.from_tensor(value) for name, value in case.options.items()}
        return forward_and_backward(moved(module), [there(x) for x in inputs], options)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_layer_keeps_to_the_device_of_its_input(case, dtype):
    if case.name in TORCHS_OWN:
        with pytest.raises(NotImplementedError, match="empty_strided"):
            run(case, dtype)
        return
    found = run(case, dtype)
    assert found and {value.device.type for value in found} == {DEVICE}


def test_lengths_may_lie_on_either_device():
    from gatelib.equations.lstm import PEEPHOLE

    for impl in ("fused", "reference"):
        module = recurrent(PEEPHOLE, impl=impl)()
        with FakeTensorMode(allow_non_fake_inputs=True):
            module = moved(module)
            x = torch.randn(3, 5, 4, device=DEVICE)
            for device in ("cpu", DEVICE):
                found = module(x, lengths=torch.tensor(LENGTHS, device="cpu").to(device))
                assert {value.device.type for value in floats(found)} == {DEVICE}


def test_a_tensor_of_the_wrong_device_would_be_seen():
    class Wrong(nn.Module):
        def forward(self, x):
            return x * torch.ones(4)

    with FakeTensorMode(), pytest.raises(Exception, match="devices"):
        Wrong()(torch.randn(3, 4, device=DEVICE))
