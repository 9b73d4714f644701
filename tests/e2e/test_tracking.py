"""A run with `report.report_to`: what is missing is said before it begins, and the figures are the summary's."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from fedtandem.config import RunConfig
from fedtandem.errors import ConfigError
from fedtandem.federation.runs import run_methods
from fedtandem.federation.trackers import PACKAGES, trackers_of


@pytest.mark.parametrize("name", PACKAGES)
def test_a_tracker_that_is_not_installed_is_refused_before_the_run(
    name: str, tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda asked, *more: None if asked == PACKAGES[name] else find(asked, *more),
    )
    config = tiny(f'report.report_to=["{name}"]')
    with pytest.raises(ConfigError, match=r"pip install 'fedtandem\[track\]'"):
        run_methods(config, ["fedmkt"], tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()
    assert name not in trackers_of("all")
    assert config.hash == tiny().hash


def tensorboard_values(folder: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {tag: {one.step: one.value for one in found.Scalars(tag)} for tag in found.Tags()["scalars"]}


def test_a_run_is_tracked_and_a_resumed_one_goes_on(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="extra `track`")
    config = tiny("report.report_to=tensorboard", "federation.num_rounds=1")
    summary = run_methods(config, ["fedmkt"], tmp_path / "run")
    plain = run_methods(tiny("federation.num_rounds=1"), ["fedmkt"], tmp_path / "plain")
    assert summary["rows"] == plain["rows"]
    found = tensorboard_values(tmp_path / "run" / "tensorboard" / "fedmkt")
    for row in summary["rows"]:
        step = 0 if row["method"] == "zero_shot" else 1
        told = found[f"eval/{row['split']}_{row['metric']}/{row['party']}"][step]
        assert told == pytest.approx(row["value"], rel=1e-6)  # TensorBoard keeps 32 bits
    run_methods(config, ["fedmkt"], tmp_path / "run", resume=True)
    assert tensorboard_values(tmp_path / "run" / "tensorboard" / "fedmkt") == found
