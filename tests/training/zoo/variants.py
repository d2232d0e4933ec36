"""Models with what the shared zoo's ones of the same family do not have, in the same dress, each small and quick."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from blindsum.bench.zoo import CLASSES, Draw, Example


def normal(*shape: int) -> Draw:
    return lambda size, generator: generator.normal(size=(size, *shape)).astype(np.float32)


def integers(high: int, *shape: int) -> Draw:
    return lambda size, generator: generator.integers(0, high, (size, *shape))


class Signal(nn.Module):
    """1-D: grouped and dilated convolutions, two kinds of pool, a maximum over time, and activations of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(3, 12, 5, padding=2),
            nn.GELU(),
            nn.MaxPool1d(2),
            nn.Conv1d(12, 16, 3, padding=2, dilation=2),
            nn.GroupNorm(4, 16),
            nn.SiLU(),
            nn.AvgPool1d(2),
            nn.Conv1d(16, 16, 3, padding=4, dilation=4, groups=4),
            nn.Tanh(),
        )
        self.dense = nn.Sequential(nn.Linear(16, 12), nn.Softplus(), nn.LayerNorm(12), nn.Linear(12, 12), nn.Mish())
        self.head = nn.Linear(12, CLASSES)

    def forward(self, signal: Tensor) -> Tensor:
        return self.head(self.dense(self.layers(signal).amax(2)))


class Recurrent(nn.Module):
    """Two recurrent layers, the first of both directions, read at the last step."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU | nn.RNN]) -> None:
        super().__init__()
        self.first = kind(6, 8, batch_first=True, bidirectional=True)
        self.second = kind(16, 12, batch_first=True)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, steps: Tensor) -> Tensor:
        steps, _ = self.first(steps)
        steps, _ = self.second(steps)
        return self.head(steps[:, -1])


class ClassToken(nn.Module):
    """A ViT with a class token and PyTorch's own encoder layers (batch, 3, 32, 32)."""

    def __init__(self, width: int = 32, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.1)
        self.positions = nn.Parameter(torch.randn(1, 17, width) * 0.1)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


class UNet(nn.Module):
    """Down by an overlapping pool, up by a transposed convolution and a bilinear resize, joined to what came down."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(1, 6, 3), nn.LeakyReLU(0.1))
        self.second = nn.Sequential(
            nn.MaxPool2d(3, 2, 1), nn.Conv2d(6, 8, 3, padding=1), nn.InstanceNorm2d(8, affine=True)
        )
        self.third = nn.Sequential(nn.ELU(), nn.Conv2d(8, 8, 3, 2, 1), nn.PReLU(8))
        self.up = nn.ConvTranspose2d(8, 8, 3, 2, 1, output_padding=1)
        self.last = nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(16, 6, 3, padding=1))
        self.head = nn.Conv2d(12, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        first = self.first(image)
        second = self.second(first)
        third = self.third(second)
        up = self.last(torch.cat([second, self.up(third)], dim=1))
        return torch.sigmoid(self.head(torch.cat([first, functional.relu(up)], dim=1)))


class Masked(nn.Module):
    """Attention as BERT's authors wrote it: products, a mask by Where, a bias of relative positions, a mean of real words."""

    def __init__(self, width: int = 24, heads: int = 3, words: int = 12, vocabulary: int = 50) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.bias = nn.Parameter(torch.randn(heads, words, words) * 0.1)
        self.projections = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)
        self.heads, self.length = heads, words

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.words(tokens)
        width = x.shape[-1] // self.heads
        query, key, value = (
            part.reshape(-1, self.length, self.heads, width).transpose(1, 2)
            for part in self.projections(x).chunk(3, dim=-1)
        )
        scores = query @ key.transpose(2, 3) / width**0.5 + self.bias
        weights = torch.softmax(scores.masked_fill(mask[:, None, None, :] == 0, -1e4), dim=-1)
        mixed = self.mix((weights @ value).transpose(1, 2).reshape(-1, self.length, self.heads * width))
        real = mask[:, :, None].to(x.dtype)
        return self.head((self.norm(x + mixed) * real).sum(1) / real.sum(1))


def _spotter() -> nn.Sequential:
    """Separable convolutions over narrow spectrograms, as for keyword spotting (Zhang and others, arXiv 1711.07128)."""
    separable = [
        layer
        for _ in range(2)
        for layer in (nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU())
    ]
    first = nn.Conv2d(1, 8, (10, 4), stride=2, padding=(5, 1))
    return nn.Sequential(first, nn.ReLU(), *separable, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))


def _voxels() -> nn.Sequential:
    """Three axes, with a pool, normalised groups and windows side by side."""
    return nn.Sequential(
        nn.Conv3d(1, 6, 3, padding=1),
        nn.GroupNorm(3, 6),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(6, 8, 2, stride=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(64, CLASSES),
    )


def _mask(size: int, generator: np.random.Generator) -> np.ndarray:
    return (np.arange(12) < generator.integers(4, 13, (size, 1))).astype(np.int64)


def _classifier(net: nn.Module, *shape: int) -> Example:
    return Example(net=net.eval(), inputs={"features": normal(*shape)}, targets=integers(CLASSES))


VARIANTS: dict[str, Callable[[], Example]] = {
    "signal": lambda: _classifier(Signal(), 3, 64),
    "two-way LSTM": lambda: _classifier(Recurrent(nn.LSTM), 10, 6),
    "two-way GRU": lambda: _classifier(Recurrent(nn.GRU), 10, 6),
    "two-way RNN": lambda: _classifier(Recurrent(nn.RNN), 10, 6),
    "class token": lambda: _classifier(ClassToken(), 3, 32, 32),
    "keyword spotting": lambda: _classifier(_spotter(), 1, 49, 10),
    "voxels": lambda: _classifier(_voxels(), 1, 8, 8, 8),
    "U-Net": lambda: Example(
        net=UNet().eval(),
        inputs={"features": normal(1, 16, 16)},
        targets=lambda size, generator: generator.uniform(size=(size, 1, 16, 16)).astype(np.float32),
        loss="mse",
    ),
    "masked attention": lambda: Example(
        net=Masked().eval(), inputs={"tokens": integers(50, 12), "mask": _mask}, targets=integers(CLASSES)
    ),
}
