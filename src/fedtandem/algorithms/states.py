"""A party's state as bytes: named groups of tensors in one safetensors buffer, exact to the bit."""

from collections.abc import Mapping

from safetensors.torch import load, save
from torch import Tensor

_BREAK = "\x1f"


def pack_state(state: Mapping[str, Mapping[str, Tensor]]) -> bytes:
    """Group name -> tensor name -> tensor, as bytes."""
    return save(
        {
            f"{group}{_BREAK}{name}": tensor.detach().cpu().contiguous()
            for group, tensors in state.items()
            for name, tensor in tensors.items()
        }
    )


def unpack_state(data: bytes) -> dict[str, dict[str, Tensor]]:
    """The inverse of `pack_state`."""
    state: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load(data).items():
        group, name = key.split(_BREAK, 1)
        state.setdefault(group, {})[name] = tensor
    return state
