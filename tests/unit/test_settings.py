"""TOML settings: every mistake is an error with file, line and what is right."""

from __future__ import annotations

from pathlib import Path

import pytest

from blindsum.backend.party import PartySettings
from blindsum.protocol.errors import BlindsumError
from blindsum.runtime.kit import BrokerSettings
from blindsum.runtime.settings import SETTINGS_SIZE_MAX, Settings, load_settings

GOOD = """\
fleet = "clinics"
party = 2
cohort_min = 5
tasks = ["fraud", "wear"]

[broker]
url = "mqtts://broker.example:8883"
ca = "ca.pem"
"""


def load(folder: Path, text: str | bytes) -> PartySettings:
    path = folder / "party.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_settings(path, PartySettings)


def refused(folder: Path, text: str | bytes) -> str:
    with pytest.raises(BlindsumError) as caught:
        load(folder, text)
    assert caught.value.code == "config-invalid"
    assert str(folder / "party.toml") in caught.value.detail
    return caught.value.detail


def test_settings_become_typed_values_with_defaults(tmp_path: Path) -> None:
    settings = load(tmp_path, GOOD)
    assert settings.fleet == "clinics" and settings.party == 2
    assert settings.tasks == ["fraud", "wear"]
    assert settings.broker == BrokerSettings(url="mqtts://broker.example:8883", ca="ca.pem")
    assert settings.broker.user == ""
    assert load(tmp_path, 'fleet = "a"\nparty = 1\n[broker]\nurl = "x"\n').cohort_min == 2


def test_order_comments_and_inline_tables_do_not_matter(tmp_path: Path) -> None:
    assert load(tmp_path, '# mine\nbroker = { url = "x" }\nparty = 3 # three\nfleet = "a"\n').broker.url == "x"


@pytest.mark.parametrize(
    ("wrong", "line", "right"),
    [
        (GOOD.replace("cohort_min", "cohort_mim"), 3, "did you mean 'cohort_min'?"),
        (GOOD.replace("tasks", "task"), 4, "did you mean 'tasks'?"),
        (GOOD.replace("url", "ulr"), 7, "'broker.ulr'; did you mean 'url'?"),
        (GOOD.replace("[broker]", "[brokers]"), 6, "did you mean 'broker'?"),
        (GOOD + "timeout = 5\n", 9, "known: ca, certificate, key, password_file, proxy, url, user"),
        (
            "zzz = 1\n" + GOOD,
            1,
            "known: anchor, broker, cohort_min, corrupt_permille, fleet, party, roster, tasks, web",
        ),
        (GOOD.replace("party = 2", '"parti" = 2'), 2, "did you mean 'party'?"),
    ],
)
def test_unknown_key_is_named_with_line_and_nearest_right_one(
    tmp_path: Path, wrong: str, line: int, right: str
) -> None:
    detail = refused(tmp_path, wrong)
    assert f"line {line}:" in detail and right in detail


@pytest.mark.parametrize(
    ("wrong", "line", "what"),
    [
        (GOOD.replace("party = 2", 'party = "2"'), 2, "Expected `int`, got `str`"),
        (GOOD.replace("cohort_min = 5", "cohort_min = 5.5"), 3, "Expected `int`"),
        (GOOD.replace('["fraud", "wear"]', '"fraud"'), 4, "Expected `array`"),
        (GOOD.replace('ca = "ca.pem"', "ca = true"), 8, "Expected `str`"),
        ('fleet = "a"\nparty = 1\nbroker = "mqtt://x"\n', 3, "Expected `object`"),
    ],
)
def test_value_of_the_wrong_type_is_named_with_its_line(tmp_path: Path, wrong: str, line: int, what: str) -> None:
    detail = refused(tmp_path, wrong)
    assert f"line {line}:" in detail and what in detail


@pytest.mark.parametrize("missing", ["fleet", "party", "broker", "url"])
def test_missing_key_is_named(tmp_path: Path, missing: str) -> None:
    left = GOOD.partition("\n[broker]")[0] if missing == "broker" else GOOD
    lines = [line for line in left.splitlines() if not line.startswith(f"{missing} =")]
    assert f"'{missing}' is missing" in refused(tmp_path, "\n".join(lines))


def test_broken_toml_is_named_with_its_line(tmp_path: Path) -> None:
    assert "line 2" in refused(tmp_path, 'fleet = "a"\nparty = \n')
    assert "line 3" in refused(tmp_path, 'fleet = "a"\nparty = 1\nparty = 2\n')


def test_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    assert "utf-8" in refused(tmp_path, b"\xff\xfe\x00")


def test_oversized_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    assert str(SETTINGS_SIZE_MAX) in refused(tmp_path, GOOD + "#" * SETTINGS_SIZE_MAX)


def test_missing_file_and_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(BlindsumError, match="config-missing"):
        load_settings(tmp_path / "party.toml", PartySettings)
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(BlindsumError, match="config-invalid"):
        load_settings(tmp_path / "folder.toml", PartySettings)


def test_settings_cannot_be_changed(tmp_path: Path) -> None:
    settings = load(tmp_path, GOOD)
    with pytest.raises(AttributeError):
        settings.party = 3  # type: ignore[misc]


def test_every_settings_type_refuses_unknown_keys() -> None:
    pending: list[type[Settings]] = [Settings]
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        assert kind.__struct_config__.forbid_unknown_fields and kind.__struct_config__.frozen
