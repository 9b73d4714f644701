import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fuzz_frames.py")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="limits memory as Linux does")
def test_ten_thousand_mutated_messages_are_refused_or_valid() -> None:
    # A process of its own: its memory is limited by the system, and a crash would be seen as one.
    ran = subprocess.run(
        [sys.executable, SCRIPT, "10000", "0"], capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout)
    assert found["mutants"] >= 10_000
    assert {outcome.split(" ", 1)[1] for outcome in found["outcomes"]} == {"refused", "accepted"}
    assert found["grown_bytes"] < 256 << 20
    refused = sum(count for outcome, count in found["outcomes"].items() if outcome.endswith("refused"))
    # Both ends are tried: nearly all mutants are refused, some are other valid messages.
    assert 0.5 * found["mutants"] < refused < found["mutants"]
