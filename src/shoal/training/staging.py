"""Parameters as one flat array on the host, wherever they live: CPU, GPU, or a shard of FSDP's.

Peers reduce host memory. What is on a GPU crosses through pinned memory, all tensors in one go
and waited for once; of a sharded parameter (a ``DTensor``) this rank's part is taken, so that rank
i of every node can average with its likes. The paths over GPUs are written for CUDA and checked on
CPU tensors only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float32]


def trainable(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters that ask for gradients, by name: all of a model's, or an adapter's alone.

    Raises ``ValueError`` where everything is frozen.
    """
    found: dict[str, torch.Tensor] = {
        name: p for name, p in module.named_parameters() if p.requires_grad
    }
    if not found:
        raise ValueError(f"{type(module).__name__} has no parameter that asks for gradients.")
    return found


class Staging:
    """Copies between parameters and flat f32 memory on the host."""

    def __init__(self, parameters: Mapping[str, torch.Tensor] | Sequence[torch.Tensor]) -> None:
        given = parameters.values() if isinstance(parameters, Mapping) else parameters
        self.parts = [_local(parameter) for parameter in given]
        self.size = sum(part.numel() for part in self.parts)
        self.devices = {part.device for part in self.parts if part.device.type != "cpu"}

    def empty(self) -> Floats:
        """Memory for all parameters, pinned where one of them is on a GPU."""
        import torch

        pinned = bool(self.devices)
        memory: Floats = torch.empty(self.size, dtype=torch.float32, pin_memory=pinned).numpy()
        return memory

    def gather(self, flat: Floats) -> None:
        """Parameters into ``flat``, in their order."""
        for part, target in self._pieces(flat):
            target.copy_(part.detach(), non_blocking=True)
        self._wait()

    def scatter(self, flat: Floats) -> None:
        """``flat`` into the parameters; half-width ones are rounded."""
        for part, source in self._pieces(flat):
            part.data.copy_(source, non_blocking=True)
        self._wait()

    def _pieces(self, flat: Floats) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        import torch

        memory, at = torch.from_numpy(flat), 0
        for part in self.parts:
            end = at + part.numel()
            yield part, memory[at:end].view(part.shape)
            at = end

    def _wait(self) -> None:
        """Until copies over the bus are done: peers read and write this memory next."""
        import torch

        for device in self.devices:
            torch.accelerator.synchronize(device)


def _local(parameter: torch.Tensor) -> torch.Tensor:
    """This rank's part of a sharded parameter, which shares its memory; any other as it is."""
    from torch.distributed.tensor import DTensor

    if isinstance(parameter, DTensor):
        part: torch.Tensor = DTensor.to_local(parameter.detach())  # type: ignore[arg-type]
        return part
    return parameter
