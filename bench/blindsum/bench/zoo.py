"""Small PyTorch models of every family that devices train, seeded, with data of the right shapes (needs torch).

One list for the benchmarks and for the tests that compare gradients. Sizes are those of phones' and sensors' models,
small enough that a step on one core takes well under a second.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

OPSET = 18
CLASSES = 10

Arrays = tuple[NDArray[np.generic], ...]
Draw = Callable[[int, np.random.Generator], NDArray[np.generic]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A model to train: `inputs` maps each input's name to what draws a batch of it.

    `head` and `last_block` are patterns of parameter names: what personalisation of a convolutional model trains.
    """

    net: nn.Module
    inputs: dict[str, Draw]
    targets: Draw
    loss: str = "cross-entropy"
    head: tuple[str, ...] = ()
    last_block: tuple[str, ...] = ()

    def batch(self, size: int, seed: int = 0) -> tuple[Arrays, NDArray[np.generic]]:
        """Features in the order of `inputs`, and targets."""
        generator = np.random.default_rng(seed)
        features = tuple(draw(size, generator) for draw in self.inputs.values())
        return features, self.targets(size, generator)

    def torch_loss(self, prediction: Tensor, targets: Tensor) -> Tensor:
        if self.loss == "cross-entropy":
            return functional.cross_entropy(prediction, targets)
        if self.loss == "binary-cross-entropy":
            return functional.binary_cross_entropy_with_logits(prediction, targets)
        return functional.mse_loss(prediction, targets)


def example(name: str, *, norm: bool = False, seed: int = 0) -> Example:
    """The model `name` of `ZOO`, in evaluation mode. `norm`: convolutions are followed by BatchNorm.

    Without it they carry a bias, as exporters leave them after they have folded BatchNorm in.
    """
    torch.manual_seed(seed)
    made = ZOO[name](norm)
    for module in made.net.modules():  # as after some training: exporters merge weights that are equal
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.6, 1.6)  # type: ignore[arg-type]
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.uniform_(module.bias, -0.1, 0.1)
    made.net.eval()
    return made


def export(made: Example, *, dynamo: bool = False, names_kept: bool = False, opset: int = OPSET) -> bytes:
    """The model as ONNX with a dynamic batch, by either exporter of PyTorch.

    `names_kept`: the exporter folds no constants, so that every weight keeps the name and shape it has in PyTorch.
    """
    features, _ = made.batch(2)
    tensors = tuple(torch.from_numpy(array) for array in features)
    names, buffer = list(made.inputs), io.BytesIO()
    if dynamo:
        dynamic = tuple({0: torch.export.Dim("batch")} for _ in names)
        program = torch.onnx.export(
            made.net,
            tensors,
            input_names=names,
            output_names=["prediction"],
            dynamic_shapes=dynamic,
            opset_version=opset,
            optimize=not names_kept,
            verbose=False,
        )
        assert program is not None
        return program.model_proto.SerializeToString(deterministic=True)  # type: ignore[no-any-return]
    torch.onnx.export(
        made.net,
        tensors,
        buffer,  # type: ignore[arg-type]  # this exporter writes into anything that takes bytes
        input_names=names,
        output_names=["prediction"],
        dynamic_axes={name: {0: "batch"} for name in (*names, "prediction")},
        opset_version=opset,
        do_constant_folding=not names_kept,
        dynamo=False,
    )
    return buffer.getvalue()


def _normal(*shape: int) -> Draw:
    return lambda size, generator: generator.normal(size=(size, *shape)).astype(np.float32)


def _integers(high: int, *shape: int) -> Draw:
    return lambda size, generator: generator.integers(0, high, (size, *shape))


def _conv(
    ins: int, outs: int, kernel: int, act: nn.Module, norm: bool, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(ins, outs, kernel, stride, kernel // 2, groups=groups, bias=not norm)
    return nn.Sequential(conv, *([nn.BatchNorm2d(outs)] if norm else []), act)


class _Residual(nn.Module):
    """y = act(body(x) + shortcut(x))"""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None, act: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.shortcut, self.act = body, shortcut or nn.Identity(), act or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.body(x) + self.shortcut(x))  # type: ignore[no-any-return]


class _Classifier(nn.Module):
    """Blocks, mean over the positions, one dense layer."""

    def __init__(self, blocks: nn.Sequential, width: int) -> None:
        super().__init__()
        self.blocks, self.head = blocks, nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).flatten(2).mean(2))  # type: ignore[no-any-return]


def _mlp(norm: bool) -> Example:
    layers: list[nn.Module] = []
    for ins, outs in pairwise((784, 256, 128)):
        layers += [nn.Linear(ins, outs), *([nn.BatchNorm1d(outs)] if norm else []), nn.ReLU()]
    net = nn.Sequential()
    net.add_module("body", nn.Sequential(*layers))
    net.add_module("head", nn.Linear(128, CLASSES))
    return Example(net=net, inputs={"features": _normal(784)}, targets=_integers(CLASSES))


def _lenet(norm: bool) -> Example:
    del norm
    net = nn.Sequential()
    convs = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)]
    dense = [nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()]
    net.add_module("body", nn.Sequential(*convs, *dense))
    net.add_module("head", nn.Linear(84, CLASSES))
    return Example(
        net=net,
        inputs={"features": _normal(1, 28, 28)},
        targets=_integers(CLASSES),
        head=("head.*",),
        last_block=("body.9.*", "head.*"),
    )


def _resnet18(norm: bool, width: int = 16) -> Example:
    """He et al., arXiv 1512.03385, with the 3 x 3 stem for 32 x 32 images and a quarter of the channels."""
    blocks: list[nn.Module] = [_conv(3, width, 3, nn.ReLU(), norm)]
    ins = width
    for outs, stride in ((width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)):
        for step in (stride, 1):
            first = _conv(ins, outs, 3, nn.ReLU(), norm, stride=step)
            second = _conv(outs, outs, 3, nn.Identity(), norm)
            shortcut = _conv(ins, outs, 1, nn.Identity(), norm, stride=step) if (step, ins) != (1, outs) else None
            blocks.append(_Residual(nn.Sequential(first, second), shortcut, nn.ReLU()))
            ins = outs
    return _images(blocks, ins)


def _mobilenet_v2(norm: bool) -> Example:
    """Inverted residuals of Sandler et al., arXiv 1801.04381."""
    blocks: list[nn.Module] = [_conv(3, 16, 3, nn.ReLU6(), norm)]
    ins = 16
    for outs, kernel, stride, expand in ((24, 3, 1, 6), (24, 3, 1, 4), (32, 3, 2, 6), (32, 3, 1, 6), (64, 3, 2, 6)):
        blocks.append(_inverted(ins, outs, kernel, stride, expand, nn.ReLU6(), norm))
        ins = outs
    blocks.append(_conv(ins, 128, 1, nn.ReLU6(), norm))
    return _images(blocks, 128)


def _mobilenet_v3(norm: bool) -> Example:
    """Inverted residuals with HardSwish and squeeze-and-excitation (Howard et al., arXiv 1905.02244)."""
    blocks: list[nn.Module] = [_conv(3, 16, 3, nn.Hardswish(), norm)]
    ins = 16
    for outs, kernel, stride, squeeze in ((16, 3, 1, True), (24, 3, 2, False), (40, 5, 2, True), (40, 5, 1, True)):
        blocks.append(_inverted(ins, outs, kernel, stride, 4, nn.Hardswish(), norm, squeeze=squeeze))
        ins = outs
    blocks.append(_conv(ins, 96, 1, nn.Hardswish(), norm))
    return _images(blocks, 96)


def _efficientnet_lite(norm: bool) -> Example:
    """MBConv blocks with ReLU6, kernels of 3 and 5 and no squeeze-and-excitation, as EfficientNet-lite has them."""
    blocks: list[nn.Module] = [_conv(3, 16, 3, nn.ReLU6(), norm)]
    ins = 16
    for outs, kernel, stride, expand in ((16, 3, 1, 1), (24, 3, 2, 6), (24, 3, 1, 6), (40, 5, 2, 6), (40, 5, 1, 6)):
        blocks.append(_inverted(ins, outs, kernel, stride, expand, nn.ReLU6(), norm))
        ins = outs
    blocks.append(_conv(ins, 128, 1, nn.ReLU6(), norm))
    return _images(blocks, 128)


def _images(blocks: list[nn.Module], width: int) -> Example:
    return Example(
        net=_Classifier(nn.Sequential(*blocks), width),
        inputs={"features": _normal(3, 32, 32)},
        targets=_integers(CLASSES),
        head=("head.*",),
        last_block=("head.*", f"blocks.{len(blocks) - 1}.*"),
    )


class _SqueezeExcite(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(width, width // 4, 1),
            nn.ReLU(),
            nn.Conv2d(width // 4, width, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)  # type: ignore[no-any-return]


def _inverted(
    ins: int, outs: int, kernel: int, stride: int, expand: int, act: nn.Module, norm: bool, *, squeeze: bool = False
) -> nn.Module:
    wide = ins * expand
    body = nn.Sequential(
        *([_conv(ins, wide, 1, act, norm)] if expand > 1 else []),
        _conv(wide, wide, kernel, act, norm, stride=stride, groups=wide),
        *([_SqueezeExcite(wide)] if squeeze else []),
        _conv(wide, outs, 1, nn.Identity(), norm),
    )
    return _Residual(body) if (stride, ins) == (1, outs) else body


def _conv1d(norm: bool) -> Example:
    """Dilated convolutions over 128 samples of nine sensors."""
    blocks: list[nn.Module] = []
    ins = 9
    for outs, dilation in ((32, 1), (32, 2), (64, 4), (64, 8)):
        conv = nn.Conv1d(ins, outs, 5, padding=2 * dilation, dilation=dilation, bias=not norm)
        blocks.append(nn.Sequential(conv, *([nn.BatchNorm1d(outs)] if norm else []), nn.ReLU()))
        ins = outs
    blocks.insert(2, nn.MaxPool1d(2))
    return Example(
        net=_Classifier(nn.Sequential(*blocks), ins),
        inputs={"features": _normal(9, 128)},
        targets=_integers(CLASSES),
        head=("head.*",),
        last_block=("head.*", "blocks.4.*"),
    )


class _Recurrent(nn.Module):
    """One recurrent layer, a dense layer on its last output."""

    def __init__(self, cell: nn.LSTM | nn.GRU) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(cell.hidden_size, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])  # type: ignore[no-any-return]


def _lstm(norm: bool) -> Example:
    del norm
    net = _Recurrent(nn.LSTM(16, 64, batch_first=True))
    return Example(net=net, inputs={"features": _normal(32, 16)}, targets=_integers(CLASSES))


def _gru(norm: bool) -> Example:
    del norm
    net = _Recurrent(nn.GRU(16, 64, batch_first=True))
    return Example(net=net, inputs={"features": _normal(32, 16)}, targets=_integers(CLASSES))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        length, width = x.shape[1], x.shape[2]
        q, k, v = (
            part.reshape(-1, length, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(x).split(width, 2)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).reshape(-1, length, width))  # type: ignore[no-any-return]


class _Encoder(nn.Module):
    """A transformer layer; `first` normalises before each part (ViT), else after it (BERT)."""

    def __init__(self, width: int, heads: int, *, first: bool) -> None:
        super().__init__()
        self.first, self.attention = first, _Attention(width, heads)
        self.dense = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.first:
            x = x + self.attention(self.norm1(x), mask)
            return x + self.dense(self.norm2(x))  # type: ignore[no-any-return]
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.dense(x))  # type: ignore[no-any-return]


class _Vit(nn.Module):
    """Dosovitskiy et al., arXiv 2010.11929, with the mean of the tokens for the class token."""

    def __init__(self, width: int = 64, depth: int = 4, patch: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, (32 // patch) ** 2, width))
        self.layers = nn.ModuleList(_Encoder(width, 4, first=True) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))  # type: ignore[no-any-return]


def _vit(norm: bool) -> Example:
    del norm
    return Example(
        net=_Vit(),
        inputs={"features": _normal(3, 32, 32)},
        targets=_integers(CLASSES),
    )


class _Bert(nn.Module):
    """Devlin et al., arXiv 1810.04805: token, position and segment embeddings, masked attention."""

    def __init__(self, words: int = 1000, length: int = 32, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        self.words, self.segments = nn.Embedding(words, width), nn.Embedding(2, width)
        self.position = nn.Parameter(0.02 * torch.randn(1, length, width))
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(_Encoder(width, 2, first=False) for _ in range(depth))
        self.pool, self.head = nn.Linear(width, width), nn.Linear(width, CLASSES)

    def forward(self, ids: Tensor, mask: Tensor, segments: Tensor) -> Tensor:
        x = self.norm(self.words(ids) + self.segments(segments) + self.position)
        bias = (1.0 - mask[:, None, None, :].to(x.dtype)) * -10000.0
        for layer in self.layers:
            x = layer(x, bias)
        return self.head(torch.tanh(self.pool(x[:, 0])))  # type: ignore[no-any-return]


def _bert(norm: bool) -> Example:
    del norm

    def mask(size: int, generator: np.random.Generator) -> NDArray[np.generic]:
        return (np.arange(32) < generator.integers(8, 33, (size, 1))).astype(np.int64)

    return Example(
        net=_Bert(),
        inputs={"ids": _integers(1000, 32), "mask": mask, "segments": _integers(2, 32)},
        targets=_integers(CLASSES),
    )


def _autoencoder(norm: bool) -> Example:
    net = nn.Sequential()
    encoder = [_conv(1, 16, 3, nn.ReLU(), norm, stride=2), _conv(16, 32, 3, nn.ReLU(), norm, stride=2)]
    decoder = [
        nn.ConvTranspose2d(32, 16, 4, 2, 1),
        nn.ReLU(),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(16, 8, 3, padding=1),
    ]
    net.add_module("body", nn.Sequential(*encoder, *decoder, nn.LeakyReLU(0.1)))
    net.add_module("head", nn.Conv2d(8, 1, 3, padding=1))
    return Example(net=net, inputs={"features": _normal(1, 28, 28)}, targets=_normal(1, 28, 28), loss="mse")


class _Dlrm(nn.Module):
    """Naumov et al., arXiv 1906.00091: embeddings and a dense part, their inner products, a perceptron."""

    def __init__(self, tables: int = 8, rows: int = 10_000, width: int = 16, dense: int = 13) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows, width) for _ in range(tables))
        self.bottom = nn.Sequential(nn.Linear(dense, 64), nn.ReLU(), nn.Linear(64, width), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(width + (tables + 1) ** 2, 64), nn.ReLU())
        self.head = nn.Linear(64, 1)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        bottom = self.bottom(dense)
        rows = torch.stack([bottom, *(table(ids[:, at]) for at, table in enumerate(self.tables))], 1)
        products = torch.bmm(rows, rows.transpose(1, 2)).flatten(1)
        return self.head(self.top(torch.cat([bottom, products], 1)))  # type: ignore[no-any-return]


def _dlrm(norm: bool) -> Example:
    del norm
    return Example(
        net=_Dlrm(),
        inputs={"dense": _normal(13), "ids": _integers(10_000, 8)},
        targets=lambda size, generator: generator.integers(0, 2, (size, 1)).astype(np.float32),
        loss="binary-cross-entropy",
    )


ZOO: dict[str, Callable[[bool], Example]] = {
    "MLP": _mlp,
    "LeNet": _lenet,
    "ResNet-18-small": _resnet18,
    "MobileNetV2-like": _mobilenet_v2,
    "MobileNetV3-like": _mobilenet_v3,
    "EfficientNet-lite-like": _efficientnet_lite,
    "1-D CNN": _conv1d,
    "LSTM": _lstm,
    "GRU": _gru,
    "ViT-tiny": _vit,
    "BERT-tiny": _bert,
    "autoencoder": _autoencoder,
    "DLRM-like": _dlrm,
}
