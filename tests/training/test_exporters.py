"""What PyTorch's two exporters do to a model that was never trained, and what is made of it."""

from __future__ import annotations

import io
import logging
import warnings

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from blindsum.protocol.errors import BlindsumError
from blindsum.training import TrainingSession, build_artifact

logging.getLogger("torch.onnx").setLevel(logging.ERROR)


class Fresh(nn.Module):
    """Its normalisations begin with the same ones and zeros, two of its biases too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.one, self.two = nn.LayerNorm(8), nn.LayerNorm(8)
        nn.init.zeros_(self.first.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.one(self.first(x)).chunk(2, 1)
        return self.last(self.two(torch.cat([torch.tanh(left) * right, left], 1)))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(2, 8, 3), nn.GroupNorm(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.nn.functional.gelu(self.norm(self.conv(x))).mean((2, 3)))


def by_torchscript(model: nn.Module, x: torch.Tensor) -> bytes:
    out = io.BytesIO()
    axes = {"x": {0: "batch"}}
    torch.onnx.export(model, (x,), out, dynamo=False, input_names=["x"], dynamic_axes=axes, opset_version=17)
    return out.getvalue()


def by_dynamo(model: nn.Module, x: torch.Tensor, *, optimize: bool) -> bytes:
    batch = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.onnx.export(model, (x,), dynamo=True, dynamic_shapes=batch, verbose=False, optimize=optimize)
    data: bytes = program.model_proto.SerializeToString()
    return data


def gradients(model: nn.Module, data: bytes, x: torch.Tensor) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Ours by name, and PyTorch's."""
    targets = torch.arange(len(x)) % 3
    session = TrainingSession(build_artifact(data, loss="cross-entropy", optimizer="gradient"))
    _, flat = session.step(x.numpy(), targets.numpy())
    ends = np.cumsum([int(np.prod(shape)) for _, shape in session.layout])
    parts = np.split(flat, ends[:-1])
    ours = {name: part.reshape(shape) for (name, shape), part in zip(session.layout, parts, strict=True)}
    model.zero_grad()
    nn.functional.cross_entropy(model(x), targets).backward()
    return ours, {name: weight.grad.numpy() for name, weight in model.named_parameters()}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(1)


def test_weights_that_begin_equal_are_trained_apart() -> None:
    """The older exporter stores equal weights once and reads the others through Identity."""
    model, x = Fresh().eval(), torch.randn(5, 6)
    data = by_torchscript(model, x)
    stored = {item.name for item in onnx.load_from_string(data).graph.initializer}
    assert "two.weight" not in stored, "the exporter has changed: this test shows nothing any more"
    ours, expected = gradients(model, data, x)
    assert set(ours) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_newer_exporter_without_its_optimiser_keeps_every_weight() -> None:
    """`chunk` then comes as SplitToSequence."""
    model, x = Fresh().eval(), torch.randn(5, 6)
    data = by_dynamo(model, x, optimize=False)
    assert "SplitToSequence" in {node.op_type for node in onnx.load_from_string(data).graph.node}
    ours, expected = gradients(model, data, x)
    assert set(ours) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_numbers_that_the_newer_exporter_adds_are_not_trained() -> None:
    model, x = Grouped().eval(), torch.randn(4, 2, 6, 6)
    ours, expected = gradients(model, by_dynamo(model, x, optimize=True), x)
    assert sum(value.size for value in ours.values()) == sum(value.size for value in expected.values())
    norms = [np.sqrt(sum(float((value**2).sum()) for value in each.values())) for each in (ours, expected)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


@pytest.mark.parametrize("dynamo", [True, False])
def test_group_norms_that_begin_alike_do_not_stay_so(dynamo: bool) -> None:
    """Both exporters store their ones and zeros once."""
    layers = [nn.Conv2d(2, 8, 3), nn.GroupNorm(4, 8), nn.Conv2d(8, 8, 3), nn.GroupNorm(2, 8), nn.AvgPool2d(2)]
    model, x = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 3)).eval(), torch.randn(4, 2, 6, 6)
    data = by_dynamo(model, x, optimize=True) if dynamo else by_torchscript(model, x)
    ours, expected = gradients(model, data, x)
    assert sum(value.size for value in ours.values()) == sum(value.size for value in expected.values())
    for name, value in expected.items():
        nearest = min(
            abs(each.reshape(-1) - value.reshape(-1)).max() for each in ours.values() if each.size == value.size
        )
        assert nearest < 1e-5, name


@pytest.mark.parametrize(
    ("split", "parts"), [("sizes", ((0, 2), (2, 5))), ("chunk", ((0, 2), (2, 4), (4, 5))), ("", ((0, 1), (4, 5)))]
)
def test_parts_of_a_split_sequence_are_slices(make_model, split: str, parts: tuple[tuple[int, int], ...]) -> None:
    keep = "" if split else ", keepdims=1"
    names = [f"p{start}" for start, _ in parts]
    taken = " ".join(f"{name} = SequenceAt (s, at{at if split else parts[at][0]})" for at, name in enumerate(names))
    total = " ".join(f"r{name} = ReduceSum <keepdims=1> ({name}, one)" for name in names)
    inputs = ", ".join(f"r{name}" for name in names)
    body = f"m = Mul (x, w) s = SplitToSequence <axis=1{keep}> (m{', ' + split if split else ''}) {taken} {total}"
    constants = {f"at{number}": np.array(number) for number in range(5) if f"at{number})" in taken}
    constants |= {"one": np.array([1]), "w": np.arange(1, 6, dtype=np.float32)}
    constants |= {"sizes": {"sizes": np.array([2, 3])}, "chunk": {"chunk": np.array(2)}, "": {}}[split]
    model = make_model(
        f"(float[N,5] x) => (float[N,{len(parts)}] y) {{ {body} y = Concat <axis=1> ({inputs}) }}", constants
    )
    x = np.float32([[1, 2, 3, 4, 5], [0, 1, 0, 1, 0]])
    scaled = x * constants["w"]
    expected = np.stack([scaled[:, start:end].sum(axis=1) for start, end in parts], axis=1)
    session = TrainingSession(build_artifact(model, loss="mse"))
    np.testing.assert_allclose(session.predict(x), expected, rtol=1e-6)


def test_sequence_that_is_not_taken_apart_by_constants_is_refused_by_name(make_model) -> None:
    place = "k = ArgMax <axis=1, keepdims=0> (x) a = ReduceMax <keepdims=0> (k)"
    body = f"m = Mul (x, w) s = SplitToSequence <axis=1> (m) {place} y = SequenceAt (s, a)"
    model = make_model(f"(float[N,5] x) => (float[N,1] y) {{ {body} }}", {"w": np.ones(5, np.float32)})
    with pytest.raises(BlindsumError, match=r"training-operator-forbidden.*SplitToSequence"):
        build_artifact(model, loss="mse")


class Token(nn.Module):
    """A transformer over patches and one more token, which is repeated for each row of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.patch, self.last = nn.Parameter(torch.randn(1, 1, 8)), nn.Linear(4, 8), nn.Linear(8, 3)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), self.patch(x)], 1)
        return self.last(self.layer(tokens)[:, 0])


class Recurrent(nn.Module):
    """Its layer begins with zeros for each row of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.last = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.cell(x)[0][:, -1])


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kind", [Token, Recurrent])
def test_model_made_for_a_fixed_batch_takes_any(kind: type[nn.Module], batch: int) -> None:
    model, x = kind().eval(), torch.randn(5, 3, 4)
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the very thing that is tested
        torch.onnx.export(model, (x[:batch],), out, dynamo=False, input_names=["x"], opset_version=17)
    session = TrainingSession(build_artifact(out.getvalue(), loss="cross-entropy", optimizer="gradient"))
    for rows in (1, 2, 5):
        np.testing.assert_allclose(session.predict(x[:rows].numpy()), model(x[:rows]).detach(), rtol=1e-4, atol=1e-5)
    targets = torch.arange(5) % 3
    _, flat = session.step(x.numpy(), targets.numpy())
    nn.functional.cross_entropy(model(x), targets).backward()
    norm = np.sqrt(sum(float((weight.grad**2).sum()) for weight in model.parameters()))
    assert np.linalg.norm(flat) == pytest.approx(norm, rel=1e-4)
