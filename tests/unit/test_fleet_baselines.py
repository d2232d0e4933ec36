"""What the secure fleet is compared with, and the demo's recipe against it."""

from __future__ import annotations

import numpy as np
import pytest

from blindsum.fleet.baselines import alone, centralised, evaluate, plain_fedavg_step, plain_ring_sum
from blindsum.fleet.data import Dataset, digits
from blindsum.fleet.partition import dirichlet
from blindsum.fleet.recipe import RECIPE
from blindsum.protocol.quantize import Codec, bits_for, dequantise, quantise
from blindsum.protocol.ring import Segment, from_signed, unpack
from blindsum.training import SGD, TrainingSession, build_artifact, models

TRAIN, HELD = digits()


@pytest.fixture(scope="module")
def artifact() -> bytes:
    model = models.mlp(RECIPE.sizes, seed=1)
    return build_artifact(model, loss="cross-entropy", optimizer=SGD(lr=RECIPE.rate))


def start_of(artifact: bytes) -> np.ndarray:
    return TrainingSession(artifact).parameters


def test_plain_fedavg_is_the_weighted_mean_in_float64() -> None:
    generator = np.random.default_rng(3)
    parameters = generator.normal(size=50).astype(np.float32)
    updates = [(generator.normal(size=50).astype(np.float32), weight) for weight in (1, 30, 7)]
    expected = parameters + np.average([u for u, _ in updates], axis=0, weights=[w for _, w in updates])
    result = plain_fedavg_step(parameters, updates)
    assert result.dtype == np.float32 and np.allclose(result, expected, rtol=1e-6, atol=1e-6)
    # In float32 the small updates would be lost beside the large one that another cancels.
    large = np.full(1, 1e8, np.float32)
    small = np.full(1, 3.0, np.float32)
    assert plain_fedavg_step(np.zeros(1, np.float32), [(large, 1), (small, 1), (-large, 1)]).tolist() == [1.0]


def test_plain_ring_sum_wraps_as_the_ring_does() -> None:
    segments = [Segment("a", 3, 24), Segment("b", 2, 64)]
    vectors = [([1, -5, 2**23 - 1], [2**62, -1]), ([4, -7, 1], [2**62, -2])]
    uploads = [
        [from_signed(segment, np.array(values, np.int64)) for segment, values in zip(segments, vector, strict=True)]
        for vector in vectors
    ]
    before = uploads[0][0].copy()
    total = unpack(segments, plain_ring_sum(segments, uploads))
    assert total[0].tolist() == [5, 2**24 - 12, 2**23] and total[1].tolist() == [2**63, 2**64 - 3]
    assert (uploads[0][0] == before).all(), "an upload was changed"


def test_evaluate_reports_accuracy_and_loss_of_the_given_parameters(artifact: bytes) -> None:
    trained = centralised(artifact, TRAIN, epochs=2, batch_size=32, rate=0.2, seed=1)
    session = TrainingSession(artifact)
    session.parameters = trained
    right = session.predict(HELD.features).argmax(axis=1) == HELD.targets
    figures = evaluate(artifact, trained, HELD)
    assert figures["accuracy"] == pytest.approx(right.mean(), abs=1e-6)
    assert figures["loss"] < evaluate(artifact, start_of(artifact), HELD)["loss"]


def test_centralised_training_follows_its_seed_and_its_rate(artifact: bytes) -> None:
    def trained(seed: int, rate: float) -> np.ndarray:
        return centralised(artifact, TRAIN, epochs=1, batch_size=64, rate=rate, seed=seed)

    assert (trained(1, 0.1) == trained(1, 0.1)).all()
    assert (trained(1, 0.1) != trained(2, 0.1)).any()
    assert (trained(1, 0.0) == start_of(artifact)).all()


def test_an_owner_alone_knows_only_its_own_classes(artifact: bytes) -> None:
    owned = TRAIN.take(np.flatnonzero(TRAIN.targets < 3)[:40])
    parameters = alone(artifact, owned, epochs=20, batch_size=8, rate=0.2, seed=1)
    known = HELD.targets < 3

    def accuracy(rows: np.ndarray) -> float:
        return evaluate(artifact, parameters, HELD.take(np.flatnonzero(rows)))["accuracy"]

    assert accuracy(known) > 0.9 and accuracy(~known) < 0.1


def local_update(session: TrainingSession, parameters: np.ndarray, data: Dataset, *seed: int) -> np.ndarray:
    """As a device trains."""
    session.parameters = parameters
    for epoch in range(RECIPE.epochs):
        batch = data.shuffled(*seed, epoch)
        for at in range(0, len(data), RECIPE.batch_size):
            session.step(batch.features[at : at + RECIPE.batch_size], batch.targets[at : at + RECIPE.batch_size])
    return session.parameters - parameters


def test_recipe_learns_from_quantised_sums_what_plain_fedavg_learns(artifact: bytes) -> None:
    """The demo's training without its network: 24 owners, every seventh missing, sums of ring elements only."""
    parts = dirichlet(TRAIN.targets, RECIPE.devices, RECIPE.alpha, 1)
    owners = [TRAIN.take(part) for part in parts]
    assert max(map(len, owners)) <= RECIPE.weight_max
    bits = bits_for(24, RECIPE.devices, RECIPE.weight_max)
    assert bits == 11
    secure = plain = start_of(artifact)
    segment = Segment("parameters", secure.size, 24)
    codec = Codec(RECIPE.clip_norm, RECIPE.clip_norm, bits, RECIPE.weight_max)
    session, norms = TrainingSession(artifact), []
    for number in range(RECIPE.rounds):
        updates, lanes = [], []
        for owner, data in enumerate(owners):
            if (owner + number) % 7 == 0:
                continue
            update = local_update(session, secure, data, number, owner)
            norms.append(float(np.linalg.norm(update)))
            updates.append((update, len(data)))
            key = (100 * number + owner).to_bytes(32, "big")
            lanes.append([quantise(update, len(data), codec, segment, key)])
        (total,) = unpack([segment], plain_ring_sum([segment], lanes))
        mean = dequantise(total, sum(weight for _, weight in updates), codec, segment)
        secure = (secure.astype(np.float64) + mean).astype(np.float32)
        plain = plain_fedavg_step(plain, updates)
    assert max(norms) < RECIPE.clip_norm, "an update was clipped"
    assert np.abs(secure - plain).max() < 5e-4

    kind = {"epochs": RECIPE.rounds * RECIPE.epochs, "batch_size": RECIPE.batch_size, "rate": RECIPE.rate, "seed": 1}
    lonely = [evaluate(artifact, alone(artifact, data, **kind), HELD)["accuracy"] for data in owners[::4]]
    pooled = evaluate(artifact, centralised(artifact, TRAIN, **kind), HELD)["accuracy"]
    reached, unprotected = (evaluate(artifact, model, HELD)["accuracy"] for model in (secure, plain))
    assert abs(reached - unprotected) < 0.005
    assert reached > np.mean(lonely) + 0.25
    assert pooled - 0.06 < reached
