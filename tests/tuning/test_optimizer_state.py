"""AdamW's memory between phases."""

import pytest
import torch

from fedtandem.errors import ModelError
from fedtandem.tuning.optimizer_state import export_state, import_state


def after_one_step() -> tuple[torch.optim.AdamW, dict[torch.nn.Parameter, str]]:
    names = {torch.nn.Parameter(torch.ones(2, 3)): "a.weight", torch.nn.Parameter(torch.ones(3)): "a.bias"}
    optimizer = torch.optim.AdamW(list(names))
    for parameter in names:
        parameter.grad = torch.full_like(parameter, 2.0)
    optimizer.step()
    return optimizer, names


def test_export_then_import_is_the_identity() -> None:
    optimizer, names = after_one_step()
    state = export_state(optimizer, names)
    fresh = torch.optim.AdamW(list(names))
    import_state(fresh, names, state)
    again = export_state(fresh, names)
    assert (
        state.keys()
        == again.keys()
        == {f"{m}/a.{p}" for m in ("exp_avg", "exp_avg_sq", "step") for p in ("weight", "bias")}
    )
    assert all(torch.equal(state[key], again[key]) for key in state)


def test_exported_moments_are_copies() -> None:
    optimizer, names = after_one_step()
    state = export_state(optimizer, names)
    optimizer.step()
    assert state["step/a.weight"].item() == 1
    assert not torch.equal(state["exp_avg/a.weight"], export_state(optimizer, names)["exp_avg/a.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exp_avg/b.weight": torch.ones(2)}, "'b.weight', which is no trainable weight"),
        ({"exp_avg/a.bias": torch.ones(4)}, r"shape \(4,\), the weight \(3,\)"),
        ({"step/a.bias": None}, "lacks 'step'"),
    ],
)
def test_the_state_of_another_model_is_refused(change: dict[str, torch.Tensor | None], message: str) -> None:
    optimizer, names = after_one_step()
    state = {
        key: value for key, value in (export_state(optimizer, names) | change).items() if value is not None
    }
    with pytest.raises(ModelError, match=message):
        import_state(torch.optim.AdamW(list(names)), names, state)
