"""Rules of convolutions."""

from __future__ import annotations

import pytest

from blindsum.training import build_artifact, decode
from tests.training.cases import Case, case, check, model_of

REFERENCE = False  # onnx.reference cannot run ConvTranspose with groups or output_shape


def _conv(attributes: str, x: tuple[int, ...], w: tuple[int, ...], operator: str = "Conv", **options: object) -> Case:
    """With a bias, and a scale that makes the image need a gradient."""
    filters = w[0] if operator == "Conv" else w[1] * int(attributes.partition("group=")[2][:1] or 1)
    body = f"h = Mul (x, s) y = {operator} <{attributes}> (h, w, b)"
    body = body.replace(" <>", "")
    return case(body, x, s=(x[0], *[1] * (len(x) - 1)), w=w, b=(filters,), **options)


def _transposed(attributes: str, x: tuple[int, ...], w: tuple[int, ...], **options: object) -> Case:
    return _conv(attributes, x, w, "ConvTranspose", **options)


CASES = {
    "plain": _conv("", (2, 5, 6), (3, 2, 3, 2)),
    "no_bias": case("h = Mul (x, s) y = Conv (h, w)", (2, 5, 5), s=(2, 1, 1), w=(3, 2, 3, 3)),
    "of_colours": _conv("pads=[1, 0, 1, 1], strides=[2, 1], dilations=[1, 2]", (3, 6, 7), (5, 3, 3, 2)),
    "of_four_channels": _conv("pads=[1, 0, 1, 1], strides=[2, 1]", (4, 6, 7), (5, 4, 3, 2)),
    "padded": _conv("pads=[1, 1, 1, 1]", (2, 5, 6), (3, 2, 3, 3)),
    "padded_unevenly": _conv("pads=[0, 2, 1, 0]", (2, 5, 6), (3, 2, 3, 3)),
    "strided": _conv("strides=[2, 3]", (2, 7, 9), (3, 2, 3, 2)),
    "strided_with_remainder": _conv("strides=[2, 3], pads=[1, 0, 0, 1]", (2, 8, 9), (3, 2, 3, 3)),
    "dilated": _conv("dilations=[2, 1], pads=[2, 1, 2, 1]", (2, 6, 5), (3, 2, 3, 3)),
    "dilated_and_strided": _conv("dilations=[2, 3], strides=[2, 2], pads=[1, 2, 3, 0]", (2, 8, 9), (3, 2, 3, 2)),
    "pointwise": _conv("", (4, 3, 5), (3, 4, 1, 1)),
    "pointwise_strided": _conv("strides=[2, 2]", (4, 5, 6), (3, 4, 1, 1)),
    "pointwise_in_groups": _conv("group=2", (4, 3, 5), (6, 2, 1, 1)),
    "pointwise_in_groups_of_many_positions": _conv("group=2", (4, 5, 7), (6, 2, 1, 1)),
    "tiles": _conv("strides=[2, 3]", (3, 5, 6), (4, 3, 2, 3)),
    "tiles_of_few_positions": _conv("strides=[2, 1]", (3, 4, 3), (4, 3, 2, 1)),
    "tiles_of_many_positions": _conv("strides=[2, 3]", (2, 15, 16), (3, 2, 2, 3)),
    "tiles_3d": _conv("strides=[2, 1, 3]", (2, 4, 3, 6), (3, 2, 2, 1, 3)),
    "tiles_of_one_position": _conv("strides=[4, 3]", (2, 5, 3), (3, 2, 4, 3)),
    "tiles_1d": _conv("strides=[3]", (2, 9), (4, 2, 3)),
    "many_taps": _conv("pads=[4, 4]", (2, 80), (2, 2, 65)),
    "many_taps_in_groups": _conv("strides=[2], group=2", (4, 140), (2, 2, 65)),
    "kernel_of_the_image": _conv("", (3, 4, 4), (2, 3, 4, 4)),
    "groups": _conv("group=2, pads=[1, 1, 1, 1]", (4, 5, 6), (6, 2, 3, 3)),
    "groups_strided": _conv("group=2, strides=[2, 2], pads=[1, 0, 1, 1]", (4, 6, 7), (2, 2, 3, 3)),
    "depthwise": _conv("group=3, pads=[1, 1, 1, 1]", (3, 9, 10), (3, 1, 3, 3)),
    "depthwise_wide": _conv("group=2, pads=[2, 2, 2, 2]", (2, 9, 9), (2, 1, 5, 5)),
    "depthwise_strided": _conv("group=3, strides=[2, 2], pads=[1, 1, 1, 1]", (3, 12, 14), (3, 1, 3, 3)),
    "depthwise_strided_with_remainder": _conv("group=3, strides=[2, 3]", (3, 12, 16), (3, 1, 3, 3)),
    "depthwise_dilated": _conv("group=3, dilations=[2, 2], pads=[2, 2, 1, 2]", (3, 9, 10), (3, 1, 3, 3)),
    "depthwise_high": _conv("group=2, pads=[1, 1, 1, 1]", (2, 35, 4), (2, 1, 3, 3)),
    "depthwise_high_strided": _conv("group=2, strides=[2, 3], pads=[0, 1, 1, 1]", (2, 36, 5), (2, 1, 3, 3)),
    "depthwise_small_kernel": _conv("group=3", (3, 5, 6), (3, 1, 2, 2)),
    "depthwise_multiplied": _conv("group=3, pads=[1, 1, 1, 1]", (3, 4, 5), (6, 1, 3, 3)),
    "depthwise_as_product": _conv("group=3, pads=[1, 1, 1, 1]", (3, 5, 6), (3, 1, 3, 3)),
    "depthwise_as_product_strided": _conv("group=3, strides=[2, 3], pads=[1, 0, 2, 1]", (3, 6, 8), (3, 1, 3, 3)),
    "depthwise_as_product_dilated": _conv("group=3, dilations=[2, 1], pads=[2, 2, 1, 2]", (3, 6, 7), (3, 1, 3, 4)),
    "depthwise_as_product_same": _conv('group=3, auto_pad="SAME_UPPER", strides=[2, 2]', (3, 5, 6), (3, 1, 3, 4)),
    "depthwise_as_product_1d": _conv("group=3, pads=[4, 4]", (3, 12), (3, 1, 9)),
    "depthwise_as_product_no_bias": case(
        "h = Mul (x, s) y = Conv <group=2> (h, w)", (2, 5, 5), s=(2, 1, 1), w=(2, 1, 3, 3)
    ),
    "same_upper": _conv('auto_pad="SAME_UPPER", strides=[2, 2]', (2, 5, 6), (3, 2, 3, 2)),
    "same_lower": _conv('auto_pad="SAME_LOWER", strides=[2, 1]', (2, 6, 6), (3, 2, 3, 2)),
    "valid": _conv('auto_pad="VALID", strides=[2, 1]', (2, 6, 6), (3, 2, 3, 2)),
    "conv_1d": _conv("pads=[2, 2], dilations=[2]", (3, 9), (4, 3, 3)),
    "conv_1d_depthwise": _conv("group=3, pads=[2, 2]", (3, 9), (3, 1, 5)),
    "conv_1d_pointwise": _conv("", (3, 5), (4, 3, 1)),
    "conv_3d": _conv("pads=[1, 0, 1, 1, 1, 0], strides=[1, 2, 1]", (2, 4, 5, 3), (3, 2, 2, 3, 2)),
    "conv_3d_depthwise": _conv("group=2, pads=[1, 1, 1, 1, 1, 1]", (2, 4, 4, 3), (2, 1, 3, 3, 3)),
    "weight_twice": case(
        "h = Conv <pads=[1, 1, 1, 1]> (x, w) y = Conv <pads=[1, 1, 1, 1]> (h, w)", (2, 4, 4), w=(2, 2, 3, 3)
    ),
    "transposed": _transposed("", (2, 4, 5), (2, 3, 3, 2)),
    "transposed_strided": _transposed("strides=[2, 3], pads=[1, 0, 0, 1]", (2, 4, 5), (2, 3, 3, 2)),
    "transposed_doubling": _transposed("strides=[2, 2], pads=[1, 1, 1, 1]", (2, 4, 5), (2, 3, 4, 4)),
    "transposed_tiles": _transposed("strides=[2, 2]", (2, 4, 5), (2, 3, 2, 2)),
    "transposed_output_padding": _transposed(
        "strides=[3, 2], output_padding=[2, 1], pads=[1, 1, 1, 1]", (2, 3, 4), (2, 3, 3, 3)
    ),
    "transposed_output_shape": _transposed(
        "strides=[2, 2], output_shape=[9, 8]", (2, 4, 4), (2, 3, 4, 3), differences=REFERENCE
    ),
    "transposed_output_shape_beyond": _transposed(
        "strides=[2, 2], output_shape=[8, 8]", (2, 4, 4), (2, 3, 1, 1), differences=REFERENCE
    ),
    "transposed_same_upper": _transposed('auto_pad="SAME_UPPER", strides=[2, 2]', (2, 3, 4), (2, 3, 3, 4)),
    "transposed_same_lower": _transposed('auto_pad="SAME_LOWER", strides=[2, 2]', (2, 3, 4), (2, 3, 3, 3)),
    "transposed_dilated": _transposed("dilations=[2, 2], strides=[2, 1]", (2, 3, 4), (2, 3, 3, 2)),
    "transposed_groups": _transposed(
        "group=2, strides=[2, 2], pads=[1, 1, 1, 1]", (4, 3, 4), (4, 3, 3, 3), differences=REFERENCE
    ),
    "transposed_depthwise": _transposed("group=3, strides=[2, 2]", (3, 3, 4), (3, 1, 2, 2), differences=REFERENCE),
    "transposed_1d": _transposed("strides=[2], pads=[1, 1]", (2, 5), (2, 3, 4)),
    "transposed_3d": _transposed("strides=[2, 1, 2]", (2, 2, 3, 2), (2, 2, 2, 2, 3)),
}


@pytest.mark.parametrize("name", CASES)
def test_rule_gives_the_gradient(name: str) -> None:
    check(CASES[name])


def test_only_small_depthwise_convolutions_become_products() -> None:
    def operators(name: str) -> set[str]:
        proto = model_of(CASES[name])
        return set(decode(build_artifact(proto, loss="mse", trainable=["w"])).manifest.operators)

    assert "Conv" in operators("depthwise") and "Conv" in operators("depthwise_small_kernel")
    assert "Conv" not in operators("depthwise_as_product")
    assert "Conv" in set(
        decode(build_artifact(model_of(CASES["depthwise_as_product"]), loss="mse", trainable=["s"])).manifest.operators
    )
