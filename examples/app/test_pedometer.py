"""The app's own tests: every round here is a real one, with masks, votes and openings, in well under a second."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from pedometer import Pedometer

from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.queries import Mean
from blindsum.testing.backend import FakeBackend
from blindsum.testing.recording import Recording, record
from blindsum.training import SGD, build_artifact, models

Make = Callable[..., FakeBackend]
STEPS = Mean(low=0, high=100_000, values_max=31)


@pytest.fixture
def asked(blindsum_backend: Make) -> FakeBackend:
    """A backend that asks how much people walk."""
    return blindsum_backend(STEPS, task="steps-a-day", join_s=1.0)


@pytest.fixture
def app(asked: FakeBackend) -> Iterator[Pedometer]:
    pedometer = Pedometer(asked.kit())
    pedometer.steps = {"mon": 8000, "tue": 3000, "wed": 4500}
    pedometer.start()
    yield pedometer
    pedometer.stop()


def test_mean_is_over_all_days(asked: FakeBackend, app: Pedometer) -> None:
    done = asked.round()
    assert "phone" in done.devices
    assert done.answer is not None and done.answer.value == Fraction(8000 + 3000 + 4500, 3)


def test_nothing_leaves_while_not_charging(asked: FakeBackend, app: Pedometer) -> None:
    app.charging = False
    done = asked.round()
    assert "phone" not in done.devices
    assert done.answer is not None and done.answer.value is None
    assert not [use for use in app.device.uses() if use.what == "update"]


def test_round_goes_on_when_the_line_comes_back(asked: FakeBackend, app: Pedometer) -> None:
    asked.round()
    asked.bus.cut("phone")
    assert "phone" not in asked.round().devices
    asked.bus.mend("phone")
    assert "phone" in asked.round().devices


def test_one_party_may_be_away_and_two_may_not(asked: FakeBackend, app: Pedometer) -> None:
    asked.stop_party(4)
    assert "phone" in asked.round().devices
    asked.stop_party(3)
    with pytest.raises(BlindsumError):
        asked.round(timeout_s=2.0)


@pytest.fixture
def walker(blindsum_backend: Make) -> Iterator[tuple[FakeBackend, Pedometer]]:
    """A backend that trains, and a phone whose owner walks in some hours."""
    artifact = build_artifact(models.logistic(3), loss="binary-cross-entropy", optimizer=SGD(lr=0.5))
    backend = blindsum_backend(artifact, task="walking", rate=0.5)
    phone = Pedometer(backend.kit())
    phone.hours = np.float32([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1]])
    phone.walked = np.float32([[1], [0], [0], [1]])
    phone.start()
    yield backend, phone
    phone.stop()


def test_model_learns_from_this_phone(walker: tuple[FakeBackend, Pedometer]) -> None:
    done = walker[0].round()
    assert done.devices == ("other-1", "other-2", "other-3", "phone")
    assert done.weight == 4 + 3  # examples of this phone, and 1 of each other device
    assert done.statistics[0] == 4
    weights, bias = done.mean[:3], done.mean[3]
    assert weights[0] > 0 > weights[1]
    assert bias == pytest.approx(0, abs=0.1)


def test_phone_makes_of_a_recorded_round_what_it_made_then(walker: tuple[FakeBackend, Pedometer]) -> None:
    """`walking.recording` is a round of an earlier day; were the app to prepare its hours in another way, this would say so."""
    backend, phone = walker
    recorded = Recording.load(Path(__file__).with_name("walking.recording"))
    assert not recorded.replay(phone.device).differences
    phone.walked = 1 - phone.walked
    assert recorded.replay(phone.device).differences
    backend.round()
    record(phone.device, "walking").save(backend.kit("spare") / "new.recording")  # as that one was made
