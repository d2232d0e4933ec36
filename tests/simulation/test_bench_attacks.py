"""The attacks that bench/attacks runs against a peer all fail here, with the codes that its table shows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench" / "attacks"


def test_every_attack_of_the_comparison_fails_with_the_codes_it_is_said_to() -> None:
    done = subprocess.run([sys.executable, BENCH / "ours.py"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found.pop("peer").startswith("blindsum")
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)\|$", (BENCH / "README.md").read_text("utf-8"), re.MULTILINE))
    assert rows.keys() == found.keys()
    for name, outcome in found.items():
        assert outcome["succeeds"] is False, name
        told = rows[name].rsplit("|", 1)[1]
        assert all(f"`{code}`" in told for code in outcome.get("codes", [])), name
    assert found["both_secrets"]["computed"] == found["two_dropout_sets"]["computed"] == ["a sum of 6 updates"]
