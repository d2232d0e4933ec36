"""A demo's figures: JSON, table, charts and the report."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from blindsum.fleet.charts import CHARTS, DARK, LIGHT, draw_svg
from blindsum.fleet.figures import DemoFigures, RoundFigures
from blindsum.fleet.report import write_report
from blindsum.protocol.errors import BlindsumError


def make_round(number: int, **changes: Any) -> RoundFigures:
    fields: dict[str, Any] = {
        "round": number,
        "enrolled": 24,
        "joined": 23,
        "uploaded": 21,
        "survivors": 20,
        "dropped": {"before join": 1, "after roster": 2, "mid upload": 0},
        "weight": 1100 + number,
        "seconds": 3.25,
        "exact": True,
        "accuracy_secure": 0.9,
        "accuracy_plain": 0.9,
    }
    return RoundFigures(**{**fields, **changes})


def make_figures(**changes: Any) -> DemoFigures:
    fields: dict[str, Any] = {
        "data": "digits",
        "parameters": 19_210,
        "parties": 4,
        "rounds": (make_round(1, accuracy_secure=0.5), make_round(2), make_round(3, accuracy_secure=0.9511)),
        "accuracy_central": 0.9756,
        "accuracy_alone": (0.25, 0.5, 0.75),
        "upload_bytes_per_parameter": 3.001,
        "upload_bytes": 60_400,
        "device_mask_ms": 1.8,
        "party_restarted": True,
        "transcripts_valid": True,
        "transcript": Path("run/transcript.blindsum"),
        "report": Path("run/report.html"),
        "picture": Path("run/report.png"),
        "seconds": 38.42,
    }
    return DemoFigures(**{**fields, **changes})


def test_json_holds_the_contract_and_every_round() -> None:
    figures = json.loads(json.dumps(make_figures().as_json()))
    per_round = figures.pop("per_round")
    assert figures == {
        "rounds": 3,
        "parties": 4,
        "devices": {"enrolled": 72, "joined": 69, "uploaded": 63, "dropped": 12},
        "sum_exact": True,
        "accuracy": {"secure": 0.9511, "plain": 0.9, "central": 0.9756, "alone": 0.5},
        "upload_bytes_per_parameter": 3.001,
        "device_mask_ms": 1.8,
        "party_restarted": True,
        "transcript": str(Path("run/transcript.blindsum")),
        "report": str(Path("run/report.html")),
        "seconds": 38.4,
    }
    assert [each["round"] for each in per_round] == [1, 2, 3]
    assert per_round[0]["dropped"] == {"before join": 1, "after roster": 2, "not in time": 1}
    assert per_round[0]["accuracy"] == {"secure": 0.5, "plain": 0.9}


@pytest.mark.parametrize("survivors", range(18, 25))
def test_survivors_and_missing_devices_are_all_devices(survivors: int) -> None:
    each = make_round(1, survivors=survivors, dropped={"before join": 1, "after roster": 2})
    assert survivors + sum(each.missing.values()) == 24
    assert ("not in time" in each.missing) == (survivors < 21)


def test_one_wrong_sum_is_said_everywhere(tmp_path: Path) -> None:
    rounds = (make_round(1), make_round(2, exact=False))
    figures = make_figures(rounds=rounds, failed={3: "too-few-survivors"})
    assert figures.as_json()["sum_exact"] is False
    assert dict(figures.as_table())["secure sum == plain sum"] == "NOT EQUAL in round 2"
    assert "round 3 failed: too-few-survivors" in dict(figures.as_table())["rounds"]
    write_report(tmp_path / "r.html", tmp_path / "r.png", figures)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.count('class="tile bad"') == 2 and "true one to the last bit" not in page
    right = make_figures()
    write_report(tmp_path / "r.html", tmp_path / "r.png", right)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert 'class="tile bad"' not in page and "NOT EQUAL" not in page and "true one to the last bit" in page


def test_report_is_one_well_formed_file_that_fetches_nothing(tmp_path: Path) -> None:
    figures = make_figures(data="<b>&digits")
    write_report(tmp_path / "r.html", tmp_path / "r.png", figures)
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.html", "r.png"]
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<b>&digits" not in page and "&lt;b&gt;&amp;digits" in page
    sources = re.findall(r'(?:src|srcset|href)="([^"]*)"', page)
    assert len(sources) == 2 * len(CHARTS) and all(s.startswith("data:image/svg+xml;base64,") for s in sources)
    assert "<script" not in page and "url(" not in page and "@import" not in page
    for name, value in figures.as_table()[1:]:
        assert f">{name}</th>" in page and f">{value}</td>" in page


def test_report_names_every_role_and_the_parties_needed(tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", tmp_path / "r.png", make_figures(parties=7))
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    for role in ("a device", "the broker", "the coordinator", "up to 2 parties together"):
        assert f">{role}</th>" in page
    assert "2 of the 7 parties acting together" in page and "votes of 5 parties" in page
    assert "Anything against 3 or more of the 7 parties" in page


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.title)
def test_charts_are_svg_the_same_each_time_and_other_on_dark_pages(chart: Any) -> None:
    for rounds in (make_figures().rounds, (make_round(1),), tuple(make_round(n) for n in range(1, 41))):
        figures = make_figures(rounds=rounds)
        light = draw_svg(chart, figures, LIGHT)
        assert ElementTree.fromstring(light).tag == "{http://www.w3.org/2000/svg}svg"
        assert draw_svg(chart, figures, LIGHT) == light != draw_svg(chart, figures, DARK)
        assert DARK.page.encode() not in light


def test_legend_states_the_last_accuracies() -> None:
    svg = draw_svg(CHARTS[0], make_figures(), LIGHT).decode()
    for text in ("secure sum", "95.1 %", "plain FedAvg", "90.0 %", "97.6 %", "50.0 %"):
        assert text in svg


def test_a_run_without_dropouts_has_nothing_missing_to_draw() -> None:
    rounds = (make_round(1, joined=24, uploaded=24, survivors=24, dropped={}),)
    figures = make_figures(rounds=rounds)
    assert figures.devices["dropped"] == 0 and rounds[0].missing == {}
    assert "not in time" not in draw_svg(CHARTS[1], figures, LIGHT).decode()
    assert "not in time" in draw_svg(CHARTS[1], make_figures(), LIGHT).decode()


def test_without_matplotlib_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BlindsumError, match="pip install") as caught:
        write_report(tmp_path / "r.html", tmp_path / "r.png", make_figures())
    assert caught.value.code == "fleet-package-missing"
