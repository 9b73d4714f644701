"""AdamW's memory as named tensors, so that it can be kept between phases and written as safetensors."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedtandem.errors import ModelError

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def export_state(
    optimizer: torch.optim.Optimizer, names: Mapping[torch.nn.Parameter, str]
) -> dict[str, Tensor]:
    """The moments of every parameter that was ever updated: "exp_avg/NAME", "exp_avg_sq/NAME", "step/NAME".

    Args:
        optimizer: AdamW.
        names: the name of each of its parameters.

    Returns:
        Copies on the CPU, contiguous, in their own dtype.
    """
    return {
        f"{moment}/{name}": optimizer.state[parameter][moment].detach().to("cpu", copy=True).contiguous()
        for parameter, name in names.items()
        if parameter in optimizer.state
        for moment in MOMENTS
    }


def import_state(
    optimizer: torch.optim.Optimizer, names: Mapping[torch.nn.Parameter, str], state: Mapping[str, Tensor]
) -> None:
    """Put exported moments back; a parameter without any starts afresh.

    Raises:
        ModelError: the state belongs to other weights, or is incomplete.
    """
    by_name = {name: parameter for parameter, name in names.items()}
    named = {key.partition("/")[2] for key in state}
    strangers = sorted(named - by_name.keys())
    if strangers:
        raise ModelError(
            f"the saved optimiser state holds {strangers[0]!r}, which is no trainable weight of this model: it was "
            "made for another model or adapter. Resume with the config the run was started with."
        )
    for name in sorted(named):
        parameter = by_name[name]
        missing = [moment for moment in MOMENTS if f"{moment}/{name}" not in state]
        shape = tuple(state[f"exp_avg/{name}"].shape) if not missing else ()
        if missing or shape != tuple(parameter.shape):
            fault = (
                f"lacks {missing[0]!r}"
                if missing
                else f"has shape {shape}, the weight {tuple(parameter.shape)}"
            )
            raise ModelError(
                f"the saved optimiser state of {name!r} {fault}; it belongs to another model or adapter."
            )
        optimizer.state[parameter] = {
            # AdamW counts its steps on the CPU.
            moment: state[f"{moment}/{name}"].clone().to("cpu" if moment == "step" else parameter.device)
            for moment in MOMENTS
        }
