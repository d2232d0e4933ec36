"""Artifacts that somebody made to do harm: right hash, right format, wrong content.

Run as a program, it forges some number of artifacts at random and uses each; a process that ends by itself has crashed.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from blindsum.protocol.errors import BlindsumError
from blindsum.training import SGD, TrainingSession, artifact, build_artifact, decode, models
from blindsum.training.operators import OPERATORS
from tests.training.conftest import make_model

Array = NDArray[Any]
NUMBERS = [-(1 << 63), -(1 << 31), -7, -2, -1, 0, 1, 2, 3, 5, 8, 64, 255, 1 << 20, 1 << 31, 1 << 40, (1 << 63) - 1]
REALS = [float("nan"), float("inf"), -1.0, 0.0, 1e-30, 0.5, 3.0, 1e30]
LIMITS = {"memory_max": 1 << 26, "work_max": 1 << 28}

CONVOLUTION = """(float[N,2,6,6] x) => (float[N,3] y) {
    c = Conv <pads=[1,1,1,1], strides=[2,2]> (x, w) r = Relu (c) p = MaxPool <kernel_shape=[2,2]> (r)
    f = Reshape (p, rows) y = Gemm (f, v)
}"""
RECURRENT = """(float[N,4,2] x) => (float[N,3] y) {
    t = Transpose <perm=[1,0,2]> (x) h, last = LSTM <hidden_size=3> (t, w, r) s = Squeeze (last, zero) y = Gelu (s)
}"""


def goods() -> list[bytes]:
    """Small artifacts with many kinds of operators."""
    generator = np.random.default_rng(1)

    def weight(*shape: int) -> Array:
        return generator.normal(size=shape).astype(np.float32)

    sizes = {"rows": np.array([0, -1]), "zero": np.array([0])}
    convolution = make_model(CONVOLUTION, {"w": weight(4, 2, 3, 3), "v": weight(16, 3), "rows": sizes["rows"]}, 20)
    recurrent = make_model(RECURRENT, {"w": weight(1, 12, 2), "r": weight(1, 12, 3), "zero": sizes["zero"]}, 20)
    return [
        build_artifact(models.mlp([4, 6, 3], seed=1), loss="cross-entropy", optimizer=SGD(momentum=0.9)),
        build_artifact(convolution, loss="contrastive", optimizer="adam"),
        build_artifact(recurrent, loss="mse", optimizer=SGD(clip_norm=1.0)),
    ]


def forged(
    good: bytes,
    change: Callable[[onnx.GraphProto], object],
    graph: str = "predict",
    constants: Mapping[str, Array] | None = None,
    **manifest: object,
) -> bytes:
    """`good` with another graph, further constants and another manifest, and everything that follows from them."""
    decoded = decode(good)
    proto = onnx.load_model_from_string(getattr(decoded, graph))
    change(proto.graph)
    stated = msgspec.structs.replace(decoded.manifest, **manifest)
    if graph == "train":
        stated = msgspec.structs.replace(stated, operators=dict(Counter(node.op_type for node in every(proto.graph))))
    return artifact.encode(
        dataclasses.replace(
            decoded,
            manifest=stated,
            constants={**decoded.constants, **(constants or {})},
            **{graph: proto.SerializeToString(deterministic=True)},
        )
    )


def every(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes, those of bodies included."""
    bodies = [item.g for node in graph.node for item in node.attribute if item.HasField("g")]
    return [*graph.node, *(node for body in bodies for node in body.node)]


def at_random(good: bytes, generator: np.random.Generator) -> bytes:
    """One or two changes to nodes, attributes or constants."""
    decoded = decode(good)
    graph = str(generator.choice([name for name, data in decoded.graphs().items() if data]))
    constants = dict(decoded.constants)

    def pick(items: list[Any]) -> Any:
        return items[int(generator.integers(len(items)))]

    def change(proto: onnx.GraphProto) -> None:
        nodes = every(proto)
        names = [*constants, *(item.name for item in proto.input), *(name for node in nodes for name in node.output)]
        for _ in range(int(generator.integers(1, 3))):
            node = pick(nodes)
            kind = generator.integers(8)
            if kind == 0 and node.attribute:
                item = pick(list(node.attribute))
                if item.ints:
                    item.ints[int(generator.integers(len(item.ints)))] = pick(NUMBERS)
                elif item.type == onnx.AttributeProto.INT:
                    item.i = pick(NUMBERS)
                elif item.type == onnx.AttributeProto.FLOAT:
                    item.f = pick(REALS)
            elif kind == 1 and node.attribute:
                del node.attribute[int(generator.integers(len(node.attribute)))]
            elif kind == 2:
                node.op_type = pick(sorted(OPERATORS))
            elif kind == 3 and node.input:
                node.input[int(generator.integers(len(node.input)))] = pick([*names, ""])
            elif kind == 4:
                node.input.append(pick(names))
            elif kind == 5 and constants:
                name = pick(list(constants))
                array = constants[name].copy()
                if array.size:
                    number = pick(REALS if array.dtype.kind == "f" else NUMBERS)
                    array.flat[int(generator.integers(array.size))] = (
                        number if array.dtype.kind == "f" else number % 128
                    )
                constants[name] = array.astype(pick(["float32", "int64", "int32", "bool", "uint8"]))
            elif kind == 6 and constants:
                name = pick(list(constants))
                constants[name] = constants[name].reshape(pick([(-1,), (1, -1), (-1, 1)]))
            else:
                kept = pick([1, 2, 3])
                extra = onnx.helper.make_node(pick(sorted(OPERATORS)), [pick(names) for _ in range(kept)], ["@extra"])
                proto.node.append(extra)

    with np.errstate(all="ignore"):
        proto = onnx.load_model_from_string(getattr(decoded, graph))
        change(proto.graph)
    stated = decoded.manifest
    if graph == "train":
        stated = msgspec.structs.replace(stated, operators=dict(Counter(node.op_type for node in every(proto.graph))))
    changes = {graph: proto.SerializeToString(deterministic=True)}
    return artifact.encode(dataclasses.replace(decoded, manifest=stated, constants=constants, **changes))


def use(data: bytes) -> str:
    """Do all that a device does with an artifact; returns the code of the first refusal, '' where there is none."""
    code = ""

    def attempt(action: Callable[[], object]) -> object:
        nonlocal code
        try:
            return action()
        except BlindsumError as error:
            code = code or error.code
        return None

    session = attempt(lambda: TrainingSession(data, **LIMITS))
    if not isinstance(session, TrainingSession):
        return code
    manifest, rows = session.manifest, 3
    x = {item.name: np.ones((rows, *item.shape), item.dtype) for item in manifest.features}
    t = np.ones((rows, *manifest.targets.shape), manifest.targets.dtype)
    attempt(lambda: session.step(x, t))
    attempt(lambda: session.evaluate(x, t))
    attempt(lambda: session.predict(x))
    attempt(lambda: session.fit([(x, t)], accumulate=2))
    return code


def main(first: int, count: int) -> None:
    """Prints how often each code came."""
    kinds, codes = goods(), Counter[str]()
    for seed in range(first, first + count):
        generator = np.random.default_rng(seed)
        sys.stderr.write(f"{seed}\n")
        codes[use(at_random(kinds[seed % len(kinds)], generator))] += 1
    print(dict(codes))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
