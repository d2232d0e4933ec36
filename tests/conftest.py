"""What the whole suite shares: on a machine without Mosquitto its tests are left out, and said to be; CI always runs them."""

from __future__ import annotations

import os
import shutil

import pytest

SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
MOSQUITTO_MISSING = shutil.which("mosquitto", path=SEARCH_PATH) is None


def pytest_report_header() -> list[str]:
    if MOSQUITTO_MISSING:
        return ["mosquitto is not installed: the tests on it are left out (apt-get install mosquitto brings them back)"]
    return []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs Mosquitto where there is none. In CI a missing Mosquitto is a failure of CI, so nothing is left out."""
    if not MOSQUITTO_MISSING or os.environ.get("CI"):
        return
    needy = [item for item in items if "mosquitto" in item.nodeid or "local_mosquitto" in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=needy)
    items[:] = [item for item in items if item not in needy]
