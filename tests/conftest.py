"""What every test may rely on: the shared data, one torch thread, no user cache touched."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

settings.register_profile("shared-cores", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("shared-cores")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_configure(config: pytest.Config) -> None:
    """Keep the tests' caches inside pytest's own folder, never in the user's home."""
    cache = config.rootpath / ".pytest_cache" / "fedtandem"
    os.environ.setdefault("FEDTANDEM_CACHE", str(cache))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data: FEDTANDEM_SHARED, else ../shared beside the checkout.

    Skips where it is absent; fails instead when FEDTANDEM_REQUIRE_SHARED=1.
    """
    folder = Path(os.environ.get("FEDTANDEM_SHARED") or ROOT.parent / "shared").resolve()
    if not (folder / "data").is_dir():
        message = f"no shared data in {folder}; set FEDTANDEM_SHARED to its folder"
        if os.environ.get("FEDTANDEM_REQUIRE_SHARED") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    """Fix the thread count where torch is loaded: sums must not depend on the machine's cores."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
