"""The campaigns, for some seconds each; by hand they run for minutes, with other seeds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGNS = Path(__file__).parent / "campaigns"
SHORT = {
    "inputs": ("--commands", "25", "--requests", "40", "--settings", "12"),
    "folders": ("--damages", "12", "--every", "120", "--seconds", "0.5"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")
@pytest.mark.parametrize("name", SHORT)
def test_a_short_campaign_finds_nothing(name: str) -> None:
    command = [sys.executable, str(CAMPAIGNS / f"{name}.py"), *SHORT[name]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert re.search(rf"^{name} tried=\d+ failed=0 ", done.stdout), done.stdout + done.stderr
    assert done.returncode == 0
