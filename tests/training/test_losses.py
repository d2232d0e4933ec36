"""Losses, their gradients and their metrics are those of PyTorch, computed there in float64."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional

from blindsum.protocol.errors import BlindsumError
from blindsum.training import (
    BinaryCrossEntropy,
    Contrastive,
    Cosine,
    CrossEntropy,
    CustomLoss,
    Huber,
    NegativeLogLikelihood,
    TrainingSession,
    build_artifact,
    models,
)

ROWS = 7
WEIGHTS = (0.5, 2.0, 0.0, 1.5)
GENERATOR = np.random.default_rng(5)


def _bias_only(make_model, sizes):
    """A model whose prediction is its input plus a weight of zero, so that the weight's gradient is the loss's, summed."""
    dims = ",".join(map(str, ("N", *sizes)))
    text = f"(float[{dims}] x) => (float[{dims}] y) {{ y = Add (x, w) }}"
    return make_model(text, {"w": np.zeros(sizes, np.float32)})


def _classes(shape, ignored=None):
    targets = GENERATOR.integers(0, 4, shape)
    if ignored is not None:
        targets.flat[::3] = ignored
    return targets


def _cross_entropy(axis=1, **arguments):
    def loss(z, t):
        weight = arguments.get("weight")
        weight = None if weight is None else torch.tensor(weight, dtype=torch.float64)
        return functional.cross_entropy(z.movedim(axis, 1), t, **{**arguments, "weight": weight})

    return loss


def _contrastive(temperature):
    """Equation 2 of arXiv 2004.11362, written as its double sum."""

    def loss(z, t):
        z = functional.normalize(z, dim=1)
        terms = []
        for i in range(len(z)):
            others = [a for a in range(len(z)) if a != i]
            partners = [p for p in others if t[p] == t[i]]
            scores = torch.stack([z[i] @ z[a] / temperature for a in others])
            chosen = [z[i] @ z[p] / temperature - torch.logsumexp(scores, 0) for p in partners]
            if chosen:
                terms.append(-torch.stack(chosen).mean())
        return torch.stack(terms).mean()

    return loss


FOUR, GRID, SEQUENCE = (4,), (4, 3, 2), (3, 4)
NUMBERS = GENERATOR.normal(size=(ROWS, *SEQUENCE))
CASES = {
    "cross-entropy": ("cross-entropy", _cross_entropy(), FOUR, _classes(ROWS)),
    "weighted": (CrossEntropy(class_weights=WEIGHTS), _cross_entropy(weight=WEIGHTS), FOUR, _classes(ROWS)),
    "ignoring": (CrossEntropy(ignore_index=-100), _cross_entropy(), FOUR, _classes(ROWS, -100)),
    "ignoring-a-class": (CrossEntropy(ignore_index=2), _cross_entropy(ignore_index=2), FOUR, _classes(ROWS, 2)),
    "smoothed": (CrossEntropy(label_smoothing=0.2), _cross_entropy(label_smoothing=0.2), FOUR, _classes(ROWS)),
    "all-at-once": (
        CrossEntropy(class_weights=WEIGHTS, ignore_index=-1, label_smoothing=0.1),
        _cross_entropy(weight=WEIGHTS, ignore_index=-1, label_smoothing=0.1),
        FOUR,
        _classes(ROWS, -1),
    ),
    "segmentation": (
        CrossEntropy(class_weights=WEIGHTS, ignore_index=255, label_smoothing=0.3),
        _cross_entropy(weight=WEIGHTS, ignore_index=255, label_smoothing=0.3),
        GRID,
        _classes((ROWS, 3, 2), 255),
    ),
    "sequence": (
        CrossEntropy(axis=-1, class_weights=WEIGHTS, label_smoothing=0.1),
        _cross_entropy(axis=-1, weight=WEIGHTS, label_smoothing=0.1),
        SEQUENCE,
        _classes((ROWS, 3)),
    ),
    "sequence-ignoring": (
        CrossEntropy(axis=2, ignore_index=-7),
        _cross_entropy(axis=-1, ignore_index=-7),
        SEQUENCE,
        _classes((ROWS, 3), -7),
    ),
    "nll": (
        NegativeLogLikelihood(class_weights=WEIGHTS, ignore_index=-1),
        lambda z, t: functional.nll_loss(z, t, torch.tensor(WEIGHTS, dtype=torch.float64), ignore_index=-1),
        FOUR,
        _classes(ROWS, -1),
    ),
    "nll-plain": ("negative-log-likelihood", functional.nll_loss, GRID, _classes((ROWS, 3, 2))),
    "binary": (
        "binary-cross-entropy",
        functional.binary_cross_entropy_with_logits,
        FOUR,
        GENERATOR.random((ROWS, 4)),
    ),
    "binary-weighted": (
        BinaryCrossEntropy(pos_weight=WEIGHTS),
        lambda z, t: functional.binary_cross_entropy_with_logits(z, t, pos_weight=torch.tensor(WEIGHTS)),
        FOUR,
        GENERATOR.integers(0, 2, (ROWS, 4)).astype(float),
    ),
    "mse": ("mse", functional.mse_loss, SEQUENCE, NUMBERS),
    "mae": ("mae", functional.l1_loss, SEQUENCE, NUMBERS),
    "huber": ("huber", functional.huber_loss, SEQUENCE, NUMBERS),
    "huber-narrow": (Huber(delta=0.25), lambda z, t: functional.huber_loss(z, t, delta=0.25), SEQUENCE, NUMBERS),
    "cosine": (
        "cosine",
        lambda z, t: functional.cosine_embedding_loss(z, t, torch.ones(len(z))),
        FOUR,
        GENERATOR.normal(size=(ROWS, 4)),
    ),
    "contrastive": ("contrastive", _contrastive(0.1), FOUR, np.array([0, 1, 0, 2, 1, 0, 3])),
    "contrastive-warm": (Contrastive(temperature=0.7), _contrastive(0.7), FOUR, np.array([0, 1, 0, 1, 1, 1, 1])),
}


@pytest.mark.parametrize("scale", [1.0, 300.0], ids=["usual", "extreme"])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_those_of_pytorch(make_model, case, scale):
    loss, expected, sizes, targets = CASES[case]
    z = (np.random.default_rng(2).normal(size=(ROWS, *sizes)) * scale).astype(np.float32)
    targets = targets if targets.dtype.kind == "i" else targets.astype(np.float32)
    session = TrainingSession(build_artifact(_bias_only(make_model, sizes), loss=loss, optimizer="gradient"))
    for rows in (ROWS, 5):
        value, gradient = session.step(z[:rows], targets[:rows])
        prediction = torch.tensor(z[:rows], dtype=torch.float64, requires_grad=True)
        t = torch.tensor(targets[:rows], dtype=torch.int64 if targets.dtype.kind == "i" else torch.float64)
        wanted = expected(prediction, t)
        wanted.backward()
        slope = prediction.grad.numpy().sum(axis=0).ravel()
        assert value == pytest.approx(wanted.item(), rel=2e-5, abs=1e-6)
        np.testing.assert_allclose(gradient, slope, rtol=2e-4, atol=2e-6)
        assert session.evaluate(z[:rows], targets[:rows])["loss"] == pytest.approx(wanted.item(), rel=2e-5, abs=1e-6)


@pytest.mark.parametrize("optimizer", ["gradient", "sgd"])
@pytest.mark.parametrize(
    "loss",
    [CrossEntropy(ignore_index=-1), CrossEntropy(ignore_index=-1, label_smoothing=0.1, class_weights=WEIGHTS)],
)
def test_batch_whose_targets_are_all_ignored_moves_nothing(make_model, loss, optimizer):
    """PyTorch gives such a batch a loss of NaN (0 / 0), and the same gradient of zero."""
    session = TrainingSession(build_artifact(_bias_only(make_model, FOUR), loss=loss, optimizer=optimizer))
    session.hyperparameters = {"lr": 1e30} if optimizer == "sgd" else {}
    x, t = np.ones((3, 4), np.float32), np.full(3, -1)
    result = session.step(x, t)
    assert result == 0.0 if optimizer == "sgd" else (result[0] == 0.0 and not result[1].any())
    assert not session.parameters.any()
    assert session.evaluate(x, t) == {"loss": 0.0, "accuracy": 0.0}


def test_ignored_targets_count_for_nothing_in_any_piece(make_model, monkeypatch):
    loss = CrossEntropy(ignore_index=9, class_weights=WEIGHTS)
    trainer = TrainingSession(build_artifact(_bias_only(make_model, FOUR), loss=loss))
    x, t = np.random.default_rng(1).normal(size=(20, 4)), _classes(20, 9)
    t[:6] = 9
    whole = trainer.evaluate(x, t)
    monkeypatch.setattr("blindsum.training.engine.EVALUATE_ROWS_MAX", 3)
    assert trainer.evaluate(x, t) == pytest.approx(whole, rel=1e-6)
    kept = t != 9
    assert trainer.evaluate(x[kept], t[kept]) == pytest.approx(whole, rel=1e-6)
    assert whole["accuracy"] == pytest.approx(np.mean(x[kept].argmax(axis=1) == t[kept]))


def test_top_five_accuracy_is_that_of_its_definition(make_model):
    trainer = TrainingSession(build_artifact(_bias_only(make_model, (12,)), loss="cross-entropy"))
    x, t = np.random.default_rng(1).normal(size=(50, 12)), np.random.default_rng(2).integers(0, 12, 50)
    first = np.argsort(-x, axis=1)[:, :5]
    expected = np.mean([label in row for label, row in zip(t, first, strict=True)])
    assert trainer.evaluate(x, t)["top5-accuracy"] == pytest.approx(expected)


def test_other_metrics_are_those_of_their_definitions(make_model):
    x = np.random.default_rng(1).normal(size=(9, 4)).astype(np.float32)
    t = np.random.default_rng(2).normal(size=(9, 4)).astype(np.float32)
    error = np.abs(x - t).astype(np.float64)
    by_loss = {"mae": {"mse": np.mean(error**2)}, "huber": {"mae": error.mean()}, "cosine": {}}
    for loss, wanted in by_loss.items():
        metrics = TrainingSession(build_artifact(_bias_only(make_model, FOUR), loss=loss)).evaluate(x, t)
        metrics.pop("loss")
        assert metrics == pytest.approx(wanted)
    labels = np.random.default_rng(3).integers(0, 3, 9)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    nearest = (unit @ unit.T - 2 * np.eye(9)).argmax(axis=1)
    metrics = TrainingSession(build_artifact(_bias_only(make_model, FOUR), loss="contrastive")).evaluate(x, labels)
    assert metrics["neighbour-accuracy"] == pytest.approx(np.mean(labels[nearest] == labels))


@pytest.mark.parametrize("loss", [Cosine(), Contrastive()])
def test_vector_of_zeros_has_a_finite_gradient(make_model, loss):
    session = TrainingSession(build_artifact(_bias_only(make_model, FOUR), loss=loss, optimizer="gradient"))
    targets = np.array([1, 1, 2]) if isinstance(loss, Contrastive) else np.ones((3, 4))
    value, gradient = session.step(np.zeros((3, 4)), targets)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: CrossEntropy(label_smoothing=1.0),
        lambda: CrossEntropy(class_weights=[1.0, -1.0]),
        lambda: NegativeLogLikelihood(class_weights=[]),
        lambda: BinaryCrossEntropy(pos_weight=float("nan")),
        lambda: Huber(delta=0.0),
        lambda: Contrastive(temperature=float("inf")),
        lambda: build_artifact(models.mlp([4, 3], seed=1), loss=CrossEntropy(class_weights=[1.0] * 4)),
        lambda: build_artifact(models.mlp([4, 3], seed=1), loss=BinaryCrossEntropy(pos_weight=[1.0] * 4)),
    ],
)
def test_number_out_of_range_is_refused(make):
    with pytest.raises(BlindsumError, match="training-request-invalid"):
        make()


@pytest.mark.parametrize("loss", [CrossEntropy(axis=0), CrossEntropy(axis=2), "contrastive"])
def test_prediction_that_does_not_fit_the_loss_is_refused(make_model, loss):
    sizes = FOUR if isinstance(loss, CrossEntropy) else SEQUENCE
    with pytest.raises(BlindsumError, match="needs an output of shape"):
        build_artifact(_bias_only(make_model, sizes), loss=loss)


def test_activation_is_cut_only_where_the_loss_holds_it(make_model):
    """A Softmax over another axis than that of the classes is part of the model."""
    weights = {"w": np.zeros((3, 4), np.float32)}
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    for axis, cut in ((-1, True), (2, True), (1, False)):
        text = f"(float[N,3,4] x) => (float[N,3,4] y) {{ h = Add (x, w) y = Softmax <axis={axis}> (h) }}"
        session = TrainingSession(build_artifact(make_model(text, weights), loss=CrossEntropy(axis=-1)))
        t = np.array([[0, 1, 2], [3, 0, 1]])
        logits = torch.tensor(x) if cut else torch.softmax(torch.tensor(x), axis)
        expected = functional.cross_entropy(logits.movedim(-1, 1), torch.tensor(t)).item()
        assert session.evaluate(x, t)["loss"] == pytest.approx(expected, rel=1e-5)


LOG_COSH = """(float[N,4] prediction, float[N,4] targets) => (float loss) {
    error = Sub (prediction, targets) half = Div (error, two) e = Exp (half) f = Neg (half) g = Exp (f)
    s = Add (e, g) c = Div (s, two) l = Log (c) loss = ReduceMean <keepdims=0> (l)
}"""
TWO = {"two": np.array(2.0, np.float32)}


def _log_cosh(z, t):
    return torch.log(torch.cosh((z - t) / 2)).mean()


@pytest.mark.parametrize("opset", [13, 18, 21])
def test_custom_loss_and_gradient_are_those_of_pytorch(make_model, tmp_path, opset):
    model = make_model(LOG_COSH, TWO, opset)
    onnx.save_model(model, tmp_path / "loss.onnx")
    generator = np.random.default_rng(2)
    z, t = generator.normal(size=(2, 9, 4)).astype(np.float32)
    for given in (model, model.SerializeToString(), tmp_path / "loss.onnx"):
        loss = CustomLoss(given)
        session = TrainingSession(build_artifact(_bias_only(make_model, FOUR), loss=loss, optimizer="gradient"))
        value, gradient = session.step(z, t)
        prediction = torch.tensor(z, dtype=torch.float64, requires_grad=True)
        wanted = _log_cosh(prediction, torch.tensor(t))
        wanted.backward()
        assert value == pytest.approx(wanted.item(), rel=1e-5)
        np.testing.assert_allclose(gradient, prediction.grad.numpy().sum(axis=0), rtol=1e-4, atol=1e-7)
        assert session.evaluate(z, t) == pytest.approx({"loss": wanted.item()}, rel=1e-5)


def test_custom_loss_trains_with_targets_of_its_own_shape(make_model, monkeypatch):
    """A loss on the distance to a class's corner, with int64 targets; sizes weigh the pieces of an evaluation."""
    text = """(float[N,4] p, int64[N] t) => (float[1] loss) {
        corner = Gather (table, t) e = Sub (p, corner) s = Mul (e, e) m = ReduceMean <keepdims=0> (s)
        loss = Reshape (m, one)
    }"""
    weights = {"table": np.eye(4, dtype=np.float32), "one": np.array([1])}
    loss = CustomLoss(make_model(text, weights))
    session = TrainingSession(build_artifact(models.mlp([3, 8, 4], seed=1), loss=loss, optimizer="adam"))
    session.hyperparameters = {"lr": 0.05}
    x = np.random.default_rng(1).normal(size=(10, 3)).astype(np.float32)
    t = np.arange(10) % 4
    first = session.evaluate(x, t)["loss"]
    assert first == pytest.approx(np.mean((session.predict(x) - np.eye(4)[t]) ** 2), rel=1e-5)
    for _ in range(200):
        session.step(x, t)
    last = session.evaluate(x, t)["loss"]
    assert last < first / 4
    monkeypatch.setattr("blindsum.training.engine.EVALUATE_ROWS_MAX", 3)
    assert session.evaluate(x, t)["loss"] == pytest.approx(last, rel=1e-5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("(float[N,4] p, float[N,4] t) => (float[N,4] l) { l = Sub (p, t) }", "not one float32 number"),
        ("(float[N,4] p) => (float l) { l = ReduceMean <keepdims=0> (p) }", "it must read two inputs"),
        ("(float[N,5] p, float[N] t) => (float l) { a = ReduceMean <keepdims=0> (p) l = Add (a, a) }", "two inputs"),
        ("(float[N,5] p, float[N,5] t) => (float l) { a = Sub (p, t) l = ReduceMean <keepdims=0> (a) }", "prediction"),
        ("(float[N,4] p, float[N,K] t) => (float l) { a = Sub (p, t) l = ReduceMean <keepdims=0> (a) }", "targets"),
        ("(float[N,4] p, float[N,4] t) => (float l) { a = Sub (p, t) d = Det (a) l = ReduceMean (d) }", "Det"),
    ],
)
def test_custom_loss_that_does_not_fit_is_refused(make_model, text, said):
    with pytest.raises(BlindsumError, match=said) as caught:
        build_artifact(models.mlp([3, 4], seed=1), loss=CustomLoss(make_model(text, {})))
    assert caught.value.code in ("training-model-invalid", "training-operator-forbidden")
