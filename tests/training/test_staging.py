"""Parameters as flat host memory: shapes, number formats, shards, and what asks for gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.training.staging import Staging, trainable

KINDS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 4), max_size=3), st.sampled_from(KINDS)), min_size=1)
)
def test_parameters_go_there_and_back_in_their_order_whatever_their_shapes(parts):
    count = 0
    tensors = []
    for shape, kind in parts:
        size = int(np.prod(shape, dtype=int))
        tensors.append(torch.arange(count, count + size).remainder(256).to(kind).reshape(shape))
        count += size
    staging = Staging(tensors)
    assert staging.size == count
    flat = staging.empty()
    staging.gather(flat)
    np.testing.assert_array_equal(flat, np.arange(count) % 256)
    before = [tensor.clone() for tensor in tensors]
    staging.scatter(flat + 1)
    for tensor, was in zip(tensors, before, strict=True):
        assert torch.equal(tensor, (was.float() + 1).to(tensor.dtype))


def test_a_parameter_that_is_not_contiguous_is_written_where_it_is():
    whole = torch.zeros(3, 4)
    staging = Staging([whole.T])
    staging.scatter(np.arange(12, dtype=np.float32))
    assert torch.equal(whole.T.reshape(-1), torch.arange(12.0))


def test_only_what_asks_for_gradients_is_trained():
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    model[0].requires_grad_(False)
    assert list(trainable(model)) == ["1.weight", "1.bias"]
    assert Staging(trainable(model)).size == 8
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that asks for gradients"):
        trainable(model)


def test_of_a_sharded_parameter_this_ranks_part_is_taken(tmp_path):
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        whole = distribute_tensor(torch.arange(6.0).reshape(2, 3), mesh, [Shard(0)])
        parameter = torch.nn.Parameter(whole)
        staging = Staging({"w": parameter})
        staging.scatter(np.full(6, 7, np.float32))
        assert torch.equal(parameter.full_tensor().detach(), torch.full((2, 3), 7.0))
    finally:
        dist.destroy_process_group()


def test_memory_is_pinned_only_for_what_is_on_an_accelerator(monkeypatch):
    asked = []
    real = torch.empty

    def empty(*size, pin_memory=False, **options):
        asked.append(pin_memory)
        return real(*size, **options)

    monkeypatch.setattr(torch, "empty", empty)
    staging = Staging([torch.zeros(2)])
    staging.empty()
    staging.devices = {torch.device("cuda", 0)}  # as if one parameter were there
    staging.empty()
    assert asked == [False, True]
