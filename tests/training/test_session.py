"""Training on a device."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from sklearn.datasets import load_breast_cancer, load_digits

from blindsum.protocol.errors import BlindsumError
from blindsum.training import SGD, Adam, TrainingSession, build_artifact, engine, models

X = np.linspace(-1.0, 1.0, 24, dtype=np.float32).reshape(6, 4)
Y = np.array([0, 1, 2, 0, 1, 2])


def _session(**arguments):
    return TrainingSession(build_artifact(models.mlp([4, 8, 3], seed=1), **{"loss": "cross-entropy", **arguments}))


def _shuffled(loader, test):
    features, targets = loader(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(features))
    features = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)
    features, targets = features[order].astype(np.float32), targets[order]
    return features[:-test], targets[:-test], features[-test:], targets[-test:]


@pytest.mark.parametrize("optimiser", [SGD(lr=0.1), SGD(lr=0.02, momentum=0.9), Adam(lr=0.003)])
def test_perceptron_learns_digits(optimiser):
    x, y, held_x, held_y = _shuffled(load_digits, 400)
    artifact = build_artifact(models.mlp([64, 64, 10], seed=3), loss="cross-entropy", optimizer=optimiser)
    trainer = TrainingSession(artifact)
    assert trainer.evaluate(held_x, held_y)["accuracy"] < 0.3
    for _ in range(12):
        for at in range(0, len(x), 32):
            trainer.step(x[at : at + 32], y[at : at + 32])
    assert trainer.evaluate(held_x, held_y)["accuracy"] > 0.95


def test_logistic_regression_learns_to_tell_tumours():
    x, y, held_x, held_y = _shuffled(load_breast_cancer, 150)
    artifact = build_artifact(models.logistic(30), loss="binary-cross-entropy", optimizer=SGD(lr=0.5))
    trainer = TrainingSession(artifact)
    for _ in range(60):
        trainer.step(x, y)
    metrics = trainer.evaluate(held_x, held_y)
    assert metrics["accuracy"] > 0.95
    assert metrics["loss"] < 0.15


def test_perceptron_fits_a_line_by_least_squares():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(200, 3)).astype(np.float32)
    y = x @ np.float32([1.0, -2.0, 0.5]) + 3.0
    trainer = TrainingSession(build_artifact(models.logistic(3), loss="mse", optimizer=SGD(lr=0.2)))
    for _ in range(80):
        trainer.step(x, y)
    np.testing.assert_allclose(trainer.parameters, [1.0, -2.0, 0.5, 3.0], atol=1e-4)
    assert trainer.evaluate(x, y) == pytest.approx({"loss": 0.0, "mae": 0.0}, abs=1e-4)


def test_batch_may_be_of_another_size_and_kind_from_step_to_step():
    many = np.tile(X, (500, 1)), np.tile(Y, 500)  # too large to be copied
    buffer = X.copy()
    batches = [
        *((X[:rows], Y[:rows]) for rows in (6, 6, 1, 3, 2, 6)),
        *(many, many, (many[0][::-1], many[1]), (X, Y)),
        *((X[::-1], Y), (X[:, ::-1], Y), (np.asfortranarray(X), Y), (X, Y[::-1]), (X, Y)),
        *((X.astype(np.float64), Y), (X.astype(">f4"), Y), (X, Y.astype(np.int32)), (X.tolist(), Y.tolist()), (X, Y)),
        *(({"features": X}, Y), (buffer, Y), (buffer, Y)),
    ]
    trainer = _session()
    for number, (features, targets) in enumerate(batches):
        fresh = _session()
        fresh.parameters = trainer.parameters
        clean = features["features"] if isinstance(features, dict) else features
        expected = fresh.step(np.array(clean, np.float32, order="C"), np.array(targets, np.int64))
        assert trainer.step(features, targets) == expected, number
        assert np.array_equal(trainer.parameters, fresh.parameters), number
        buffer += 0.1  # what was passed may change afterwards


def test_arrays_of_several_inputs_come_as_a_tuple_or_by_name(make_model):
    text = "(float[N,2] a, float[N,2] b) => (float[N,1] y) { c = Concat <axis=1> (a, b) y = MatMul (c, w) }"
    artifact = build_artifact(make_model(text, {"w": np.float32([[1], [2], [3], [4]])}), loss="mse")
    one, other = TrainingSession(artifact), TrainingSession(artifact)
    a, b, y = np.float32([[1, 2], [3, 4]]), np.float32([[5, 6], [7, 8]]), np.zeros((2, 1), np.float32)
    for first, second in ((a, b), (a, b), (b, a), (a[:, ::-1], b), (a[:1], b[:1]), (a, b)):
        rows = len(first)
        assert one.step((first, second), y[:rows]) == other.step({"b": second.copy(), "a": first.copy()}, y[:rows])
    assert np.array_equal(one.parameters, other.parameters)
    for wrong in ((a,), (a, b, a), a, (a, b[:1]), (a, b.astype(str)), {"a": a}):
        with pytest.raises(BlindsumError, match="training-batch-invalid"):
            one.step(wrong, y)


def test_step_returns_the_loss_before_the_update():
    trainer = _session()
    before = trainer.evaluate(X, Y)["loss"]
    assert trainer.step(X, Y) == pytest.approx(before, rel=1e-6)
    assert trainer.evaluate(X, Y)["loss"] < before


def test_step_of_sgd_is_the_gradient_times_the_rate():
    trainer, oracle = _session(optimizer=SGD(lr=0.25)), _session(optimizer="gradient")
    for _ in range(5):
        oracle.parameters = start = trainer.parameters
        gradient = oracle.step(X, Y)[1]
        trainer.step(X, Y)
        np.testing.assert_allclose(trainer.parameters, start - 0.25 * gradient, rtol=1e-5, atol=1e-6)


def test_gradient_step_updates_nothing():
    oracle = _session(optimizer="gradient")
    start = oracle.parameters
    first, second = oracle.step(X, Y), oracle.step(X, Y)
    assert first[0] == second[0]
    assert first[1] is not second[1]
    assert np.array_equal(first[1], second[1])
    assert first[1].shape == start.shape
    assert first[1].dtype == np.float32
    assert np.array_equal(oracle.parameters, start)


def test_gradients_of_micro_batches_add_up_to_that_of_the_batch():
    oracle = _session(optimizer="gradient")
    parts = [oracle.step(X[rows], Y[rows])[1] * (rows.stop - rows.start) / 6 for rows in (slice(0, 4), slice(4, 6))]
    np.testing.assert_allclose(sum(parts), oracle.step(X, Y)[1], rtol=1e-4, atol=1e-6)


def test_predict_and_evaluate_follow_the_current_parameters():
    trainer = _session()
    first = trainer.predict(X), trainer.evaluate(X, Y)
    trainer.step(X, Y)
    second = trainer.predict(X), trainer.evaluate(X, Y)
    assert not np.array_equal(first[0], second[0])
    assert first[1] != second[1]
    trainer.parameters = 0 * trainer.parameters
    assert np.array_equal(trainer.predict(X), np.zeros((6, 3)))
    assert trainer.evaluate(X, Y)["loss"] == pytest.approx(np.log(3))


def test_trained_weight_behind_a_transpose_reaches_predict(make_model):
    # onnxruntime folds such a constant at load time; a value replaced by other means than the model's bytes is ignored
    model = make_model(
        "(float[N,2] x) => (float[N,2] y) { t = Transpose (w) y = MatMul (x, t) }", {"w": np.eye(2, dtype=np.float32)}
    )
    trainer = TrainingSession(build_artifact(model, loss="mse"))
    trainer.parameters = np.float32([1, 2, 3, 4])
    assert trainer.predict(np.float32([[1, 0], [0, 1]])).tolist() == [[1, 3], [2, 4]]


def test_predict_agrees_with_the_reference_evaluator():
    model = models.mlp([4, 8, 3], seed=1)
    trainer = TrainingSession(build_artifact(model, loss="cross-entropy"))
    expected = ReferenceEvaluator(model).run(None, {"features": X})[0]
    np.testing.assert_allclose(trainer.predict(X), expected, rtol=1e-5, atol=1e-6)


def test_metrics_do_not_depend_on_the_pieces_they_are_computed_in(monkeypatch):
    trainer = _session()
    trainer.step(X, Y)
    whole, rows = trainer.evaluate(X, Y), trainer.predict(X)
    monkeypatch.setattr(engine, "EVALUATE_ROWS_MAX", 4)
    assert trainer.evaluate(X, Y) == pytest.approx(whole, rel=1e-6)
    np.testing.assert_allclose(trainer.predict(X), rows, rtol=1e-6)


def test_metrics_are_those_of_their_definitions():
    trainer = _session()
    logits = trainer.predict(X).astype(np.float64)
    assert trainer.evaluate(X, Y)["accuracy"] == pytest.approx(np.mean(logits.argmax(axis=1) == Y))
    binary = TrainingSession(build_artifact(models.mlp([4, 8, 1], seed=1), loss="binary-cross-entropy"))
    assert binary.evaluate(X, Y > 0)["accuracy"] == pytest.approx(np.mean((binary.predict(X)[:, 0] > 0) == (Y > 0)))


def test_threads_give_the_same_training():
    artifact = build_artifact(models.mlp([4, 8, 3], seed=1), loss="cross-entropy")
    sessions = TrainingSession(artifact), TrainingSession(artifact, threads=2)
    for _ in range(3):
        np.testing.assert_allclose(*[trainer.step(X, Y) for trainer in sessions], rtol=1e-5)


def test_parameters_are_copies():
    trainer = _session()
    vector = trainer.parameters
    vector[:] = 0
    assert np.any(trainer.parameters)
    trainer.parameters = vector
    vector[:] = 1
    assert not np.any(trainer.parameters)
    trainer.step(X, Y)
    assert np.any(trainer.parameters)


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(3, np.float32),
        np.zeros((67, 1), np.float32),
        np.zeros(67, np.int64),
        np.full(67, np.nan, np.float32),
        np.full(67, np.inf, np.float32),
        np.full(67, 1e39),
    ],
)
def test_bad_parameter_vector_is_refused_and_changes_nothing(vector):
    trainer = _session()
    start = trainer.parameters
    assert start.shape == (67,)
    with pytest.raises(BlindsumError) as caught:
        trainer.parameters = vector
    assert caught.value.code == "training-parameters-invalid"
    assert np.array_equal(trainer.parameters, start)


@pytest.mark.parametrize(
    ("features", "targets"),
    [
        (X[:, :3], Y),
        (X[0], Y[:1]),
        (X[:0], Y[:0]),
        (X, Y[:5]),
        (X, Y + 1),
        (X, Y - 1),
        (np.tile(X, (22, 1)), np.tile(Y, 22) + 1),
        (np.tile(X, (22, 1)), np.tile(Y, 22) - 1),
        (X, Y.astype(np.float32)),
        (X, np.eye(3)[Y]),
        (X.astype(str), Y),
        (X + 1j, Y),
        (1.0, 1),
        (X[:1], np.array(1)),
    ],
)
@pytest.mark.parametrize("good", [(), (X, Y), (np.tile(X, (22, 1)), np.tile(Y, 22))], ids=["first", "few", "many"])
def test_bad_batch_is_refused_and_changes_nothing(features, targets, good):
    trainer = _session()
    if good:
        trainer.step(*good)
    start = trainer.parameters
    for use in (trainer.step, trainer.evaluate):
        with pytest.raises(BlindsumError) as caught:
            use(features, targets)
        assert caught.value.code == "training-batch-invalid"
    assert np.array_equal(trainer.parameters, start)


@pytest.mark.parametrize("targets", [[1.5], [-0.5], [np.nan]])
def test_probability_out_of_range_is_refused(targets):
    trainer = TrainingSession(build_artifact(models.logistic(2), loss="binary-cross-entropy"))
    with pytest.raises(BlindsumError, match="training-batch-invalid"):
        trainer.step(np.float32([[1, 2]]), targets)


@pytest.mark.parametrize("optimizer", [SGD(lr=0.1), SGD(lr=0.1, momentum=0.9), Adam(), "gradient"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e39])
def test_loss_that_is_not_finite_is_an_error_and_changes_nothing(optimizer, bad):
    trainer = _session(optimizer=optimizer)
    trainer.step(X, Y)
    start = trainer.parameters
    with pytest.raises(BlindsumError) as caught:
        trainer.step(np.full((1, 4), bad), Y[:1])
    assert caught.value.code == "training-diverged"
    assert np.array_equal(trainer.parameters, start)
    trainer.step(X, Y)
    assert np.isfinite(trainer.parameters).all()


def test_evaluation_that_is_not_finite_is_an_error():
    trainer = _session()
    with pytest.raises(BlindsumError, match="training-diverged"):
        trainer.evaluate(np.full((1, 4), np.nan), Y[:1])


def test_number_of_rows_that_the_model_cannot_take_is_an_error_and_changes_nothing(make_model):
    text = "(float[N,3] x) => (float[M,3] y) { h = Reshape (x, halves) r = Reshape (h, rows) y = Mul (r, w) }"
    weights = {"halves": np.array([2, -1]), "rows": np.array([-1, 3]), "w": np.float32([1, 2, 3])}
    trainer = TrainingSession(build_artifact(make_model(text, weights), loss="mse"))
    start = trainer.parameters
    with pytest.raises(BlindsumError) as caught:
        trainer.step(np.ones((1, 3)), np.ones((1, 3)))  # one row has no halves
    assert caught.value.code == "training-runtime-failed"
    assert np.array_equal(trainer.parameters, start)
    assert trainer.step(np.ones((2, 3)), np.ones((2, 3))) > 0


def test_failure_inside_onnxruntime_is_an_error_and_changes_nothing(make_model):
    model = make_model("(int64[N] x) => (float[N,3] y) { y = Gather (w, x) }", {"w": np.ones((2, 3), np.float32)})
    trainer = TrainingSession(build_artifact(model, loss="mse"))
    start = trainer.parameters
    for use in (trainer.step, trainer.evaluate, lambda x, _: trainer.predict(x)):
        with pytest.raises(BlindsumError) as caught:
            use(np.array([0, 7]), np.ones((2, 3)))
        assert caught.value.code == "training-runtime-failed"
    assert np.array_equal(trainer.parameters, start)
    assert trainer.step(np.array([0, 1]), np.zeros((2, 3))) > 0


@pytest.mark.parametrize("values", [{"momentum": 0.5}, {"lr": float("nan")}, {"lr": 0.1, "beta1": 0.5}])
def test_bad_hyperparameter_is_refused_and_changes_nothing(values):
    trainer = _session(optimizer=SGD(lr=0.5))
    with pytest.raises(BlindsumError, match="training-request-invalid"):
        trainer.hyperparameters = values
    assert trainer.hyperparameters == {"lr": 0.5}


@pytest.mark.parametrize("threads", [0, 65])
def test_number_of_threads_is_bounded(threads):
    with pytest.raises(BlindsumError, match="training-request-invalid: threads="):
        TrainingSession(b"", threads=threads)


def _python(code, tmp_path):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path).stdout


def test_import_is_light(tmp_path):
    code = "import sys, blindsum.training; print({'onnx', 'onnxruntime', 'numpy'} & set(sys.modules))"
    assert _python(code, tmp_path) == "set()\n"


def test_device_trains_without_the_onnx_package(tmp_path):
    (tmp_path / "artifact").write_bytes(build_artifact(models.mlp([4, 8, 3], seed=1), loss="cross-entropy"))
    code = """
import sys
sys.modules["onnx"] = None  # an import of it now fails
from blindsum.training import TrainingSession
import numpy as np
trainer = TrainingSession(open("artifact", "rb").read())
for _ in range(3):
    loss = trainer.step(np.ones((2, 4)), np.array([0, 1]))
print(trainer.predict(np.ones((2, 4))).shape, trainer.evaluate(np.ones((2, 4)), [0, 1]).keys())
"""
    assert _python(code, tmp_path) == "(2, 3) dict_keys(['loss', 'accuracy'])\n"


@pytest.mark.parametrize(
    ("name", "package"), [("TrainingSession", "onnxruntime"), ("build_artifact", "onnx"), ("models", "onnx")]
)
def test_missing_package_is_named(name, package, tmp_path):
    code = f"""
import sys
sys.modules[{package!r}] = None
from blindsum.protocol.errors import BlindsumError
try:
    from blindsum.training import {name}
except BlindsumError as error:
    print(error.code, error.detail)
"""
    assert _python(code, tmp_path) == f"training-package-missing {package}\n"


def test_models_are_seeded_and_valid():
    onnx.checker.check_model(models.mlp([4, 8, 3], seed=1), full_check=True)
    onnx.checker.check_model(models.logistic(4, 3), full_check=True)
    first, second = (onnx.numpy_helper.to_array(models.mlp([400, 80], seed=7).graph.initializer[0]) for _ in range(2))
    assert np.array_equal(first, second)
    assert first.std() == pytest.approx(np.sqrt(2 / 400), rel=0.02)
    with pytest.raises(BlindsumError, match="training-request-invalid"):
        models.mlp([4], seed=1)
    with pytest.raises(BlindsumError, match="training-request-invalid"):
        models.mlp([4, 0], seed=1)
