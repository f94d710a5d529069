"""Experts of a process group on a GPU: one rank, whose rows take the way over NCCL to itself.

Imports torch, gatelib.nn and layers of experts alone, so that no Hypothesis is needed.
"""

import pytest
import torch
from torch import distributed as dist

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

from gatelib import nn
from gatelib.nn.expert_parallel import average_gradients, gradient_norm

pytestmark = pytest.mark.gpu
D, E, TOKENS = 64, 8, 500


@pytest.fixture
def group(tmp_path):
    if not dist.is_nccl_available():
        pytest.skip("needs NCCL")
    torch.cuda.set_device(0)
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("nccl", store=store, rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_rank_gives_what_a_layer_without_a_group_gives(group, dtype):
    options = {"hidden": 128, "shared": 1, "balance": "switch", "device": "cuda", "dtype": dtype}
    torch.manual_seed(0)
    alone = nn.MoE(D, E, 2, **options)
    layer = nn.MoE(D, E, 2, **options, group=group)
    layer.load_state_dict(alone.state_dict())
    x = torch.randn(TOKENS, D, device="cuda", dtype=dtype)
    outputs = []
    for module in (alone, layer):
        y = module(x)
        (y.float().square().sum() + module.loss()).backward()
        outputs.append(y)
    average_gradients(layer)
    assert torch.equal(*outputs)
    for mine, theirs in zip(layer.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    assert gradient_norm(layer) > 0
    size = x.element_size() * D * TOKENS
    assert layer.parallel.traffic["dispatch"].tolist() == [size]
