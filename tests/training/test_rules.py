"""The registry of gradient rules; the rules themselves are tested by family in rules/."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import numpy as np
import onnx
import pytest

from blindsum.protocol.errors import BlindsumError
from blindsum.training import Backward, Gradients, build_artifact, rule
from blindsum.training.autodiff import differentiable, registry
from blindsum.training.operators import OPSET_MAX
from tests.training import oracle
from tests.training.cases import case, check, model_of

BATCH = 5


def test_every_rule_has_a_case_and_every_operator_an_oracle():
    folder = Path(__file__).parent / "rules"
    families = [importlib.import_module(f"tests.training.rules.{path.stem}") for path in folder.glob("test_*.py")]
    assert all("test_rule_gives_the_gradient" in vars(family) for family in families)
    cases = [item for family in families for item in family.CASES.values()]
    assert set(differentiable()) <= {node.op_type for item in cases for node in model_of(item).graph.node}
    assert set(differentiable()) <= set(oracle.FUNCTIONS)


def test_every_operator_has_its_gradient_in_the_newest_operator_set_too():
    folder = Path(__file__).parent / "rules"
    families = [importlib.import_module(f"tests.training.rules.{path.stem}") for path in folder.glob("test_*.py")]
    chosen = {}
    for item in (item for family in families for item in family.CASES.values()):
        chosen |= {node.op_type: item for node in model_of(item).graph.node if node.op_type not in chosen}
    assert len(chosen) > 100
    for operator, item in chosen.items():
        if not onnx.defs.get_schema(operator, OPSET_MAX, "").deprecated:
            check(dataclasses.replace(item, opset=OPSET_MAX, differences=False))


@pytest.mark.parametrize("loss", ["cross-entropy", "binary-cross-entropy", "mse"])
def test_loss_gives_the_gradient(loss, make_model, check_gradient):
    generator = np.random.default_rng(3)
    weights = {"w": generator.normal(size=(3, 4)).astype(np.float32), "b": generator.normal(size=4).astype(np.float32)}
    proto = make_model("(float[N,3] x) => (float[N,4] y) { y = Gemm (x, w, b) }", weights)
    x = generator.normal(size=(BATCH, 3)).astype(np.float32)
    targets = {
        "cross-entropy": generator.integers(0, 4, BATCH),
        "binary-cross-entropy": generator.integers(0, 2, (BATCH, 4)).astype(np.float32),
        "mse": generator.normal(size=(BATCH, 4)).astype(np.float32),
    }
    check_gradient(proto, loss, x, targets[loss])


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 18, 21])
def test_gradient_is_right_at_every_operator_set(opset):
    body = "h = Mul (x, s) y = Gemm <alpha=0.5, beta=3.0> (h, w, b)"
    check(case(body, (3,), s=(3,), w=(3, 4), b=(4,), opset=opset))


def test_user_gives_an_operator_its_rule(make_model, check_gradient, monkeypatch):
    monkeypatch.setattr(
        registry, "_RULES", {name: dict(found) for name, found in registry._RULES.items() if name != "Sin"}
    )
    proto = make_model("(float[N,3] x) => (float[N,3] y) { h = Mul (x, w) y = Sin (h) }", {"w": np.float32([1, 2, 3])})
    with pytest.raises(BlindsumError, match=r"\(Sin\) has no gradient rule in operator set 18, which blocks w"):
        build_artifact(proto, loss="mse")

    @rule("Sin", since=7)
    def sin(b: Backward) -> Gradients:
        return [b.op("Mul", b.dy, b.op("Cos", b.x[0]))]

    generator = np.random.default_rng(0)
    x, t = generator.normal(size=(2, BATCH, 3)).astype(np.float32)
    check_gradient(proto, "mse", x, t)


def test_second_rule_for_one_version_is_refused():
    with pytest.raises(BlindsumError, match="training-request-invalid: Relu already has a rule"):
        rule("Relu", since=6)(lambda b: [b.dy])


def test_rule_of_the_newest_version_not_above_the_operator_set_is_taken(monkeypatch):
    monkeypatch.setattr(registry, "_RULES", {})
    old, new = (lambda b: [b.dy]), (lambda b: [None])
    rule("Relu", since=6)(old)
    rule("Relu", since=20)(new)
    assert [registry.find("Relu", opset).rule for opset in (18, 19, 20, 23)] == [old, old, new, new]
    assert registry.find("Relu", 5) is None
