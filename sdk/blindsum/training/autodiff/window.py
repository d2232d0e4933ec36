"""Sliding windows: where the windows of a convolution or pooling lie, with all that padding is resolved to numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from blindsum.protocol.errors import BlindsumError

from .registry import Backward


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One number for each spatial axis. Window number o covers input begin-shifted positions o stride + tap dilation.

    `end` makes the windows fit exactly: positive is padding, negative counts the last rows that no window reaches. It
    resolves `auto_pad`, and for pooling `ceil_mode`.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]

    @property
    def rank(self) -> int:
        return len(self.kernel)

    @property
    def span(self) -> tuple[int, ...]:
        """The extent that all windows cover together."""
        spans = zip(self.outputs, self.strides, self.kernel, self.dilations, strict=True)
        return tuple((count - 1) * step + (taps - 1) * gap + 1 for count, step, taps, gap in spans)

    @property
    def end(self) -> tuple[int, ...]:
        return tuple(span - size - begin for span, size, begin in zip(self.span, self.inputs, self.begin, strict=True))

    @property
    def padded(self) -> bool:
        """False where the windows cover the input exactly."""
        return any(self.begin) or any(self.end)

    @property
    def pointwise(self) -> bool:
        """Each window is one input, each input one window."""
        return set(self.kernel) == {1} and set(self.strides) == {1} and not self.padded

    @property
    def tiles(self) -> bool:
        """Windows lie side by side: none overlap, none are padded."""
        return (
            self.kernel == self.strides
            and all(gap == 1 or taps == 1 for gap, taps in zip(self.dilations, self.kernel, strict=True))
            and not any(self.begin)
            and max(self.end) <= 0
        )

    def table(self, axis: int) -> NDArray[np.float32]:
        """(taps, inputs, outputs): 1 where a tap of an output's window covers an input, else 0."""
        starts = np.arange(self.outputs[axis]) * self.strides[axis] - self.begin[axis]
        covered = starts + np.arange(self.kernel[axis])[:, None] * self.dilations[axis]
        result: NDArray[np.float32] = (covered[:, None] == np.arange(self.inputs[axis])[:, None]).astype(np.float32)
        return result


def of_conv(b: Backward) -> Window:
    """The window of a Conv node."""
    return _window(b, b.x[0], b.y[0], _sizes(b, b.x[1]))


def of_conv_transpose(b: Backward) -> Window:
    """The window of the Conv whose adjoint a ConvTranspose node is: it slides over the node's output."""
    return _window(b, b.y[0], b.x[0], _sizes(b, b.x[1]), extra=b.ints("output_padding", ()))


def of_pool(b: Backward) -> Window:
    """The window of a pooling node."""
    return _window(b, b.x[0], b.y[0], tuple(b.ints("kernel_shape", ())))


def fitted(b: Backward, image: str, window: Window) -> str:
    """The image padded with zeros and cropped to the window's span."""
    if not window.padded:
        return image
    return b.op("Pad", image, b.integers([0, 0, *window.begin, 0, 0, *window.end]))


def _window(b: Backward, image: str, result: str, kernel: tuple[int, ...], extra: Sequence[int] = ()) -> Window:
    ones = (1,) * len(kernel)
    plain = Window(
        inputs=_sizes(b, image),
        outputs=_sizes(b, result),
        kernel=kernel,
        strides=tuple(b.ints("strides", ones)),
        dilations=tuple(b.ints("dilations", ones)),
        begin=(0,) * len(kernel),
    )
    mode = b.text("auto_pad", "NOTSET")
    if mode.startswith("SAME") or b.ints("output_shape", ()):
        # share out what the outputs need; the odd one goes to the end for SAME_UPPER, else to the beginning
        needs = zip(plain.end, extra or (0,) * len(kernel), strict=True)
        totals = [max(0, need + more) for need, more in needs]
        begin = tuple(total // 2 if mode == "SAME_UPPER" else total - total // 2 for total in totals)
    else:
        begin = () if mode == "VALID" else tuple(b.ints("pads", ())[: len(kernel)])
    return replace(plain, begin=begin or plain.begin)


def _sizes(b: Backward, name: str) -> tuple[int, ...]:
    """The spatial sizes of a value."""
    shape = b.shape(name)[2:]
    sizes = tuple(size for size in shape if isinstance(size, int))
    if len(sizes) != len(shape):
        detail = f"node {b.node.name!r} ({b.node.op_type}) slides over {name!r} of shape {b.shape(name)}; fix its sizes"
        raise BlindsumError("training-model-invalid", detail)
    return sizes
