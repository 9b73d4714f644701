"""What carries the messages changes no number."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fedtandem.config import RunConfig
from fedtandem.federation.runs import run_methods

Tiny = Callable[..., RunConfig]


def local_adapters(folder: Path, config: RunConfig) -> dict[str, bytes]:
    names = ["server", *(client.name for client in config.clients)]
    return {
        name: next((folder / "adapters" / "fedmkt" / name).glob("*.safetensors")).read_bytes()
        for name in names
    }


@pytest.mark.parametrize("overrides", [(), ("public.labelled=false", "public.max_new_tokens=16")])
def test_the_apps_give_the_bits_of_the_loop(
    tiny: Tiny, tmp_path: Path, federation: Callable[..., object], overrides: tuple[str, ...]
) -> None:
    config = tiny(*overrides)
    plain = run_methods(config, ["fedmkt"], tmp_path / "local")
    flower = federation(config)
    summary = flower.run()
    assert summary["rows"] == plain["rows"]
    assert summary["bytes"] == plain["bytes"]
    assert flower.adapters() == local_adapters(tmp_path / "local", config)
