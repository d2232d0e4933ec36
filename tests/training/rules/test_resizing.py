"""Rules of operators that change the resolution."""

from __future__ import annotations

import numpy as np
import pytest

from blindsum.protocol.errors import BlindsumError
from blindsum.training import build_artifact
from tests.training.cases import Case, case, check, model_of


def _resize(attributes: str, x: tuple[int, ...], scales: list[float], **options: object) -> Case:
    body = f"h = Mul (x, w) y = Resize <{attributes}> (h, , scales)"
    return case(body, x, w=x, constants={"scales": np.float32([1, *scales])}, **options)


def _mode(mode: str, coordinates: str, nearest: str = "") -> str:
    chosen = f', nearest_mode="{nearest}"' if nearest else ""
    return f'mode="{mode}", coordinate_transformation_mode="{coordinates}"{chosen}'


CASES = {
    "nearest_doubling": _resize(_mode("nearest", "asymmetric", "floor"), (2, 3, 4), [1, 2, 2]),
    "nearest_half_pixel": _resize(_mode("nearest", "half_pixel", "round_prefer_floor"), (2, 3, 4), [1, 3, 2]),
    "nearest_by_a_fraction": _resize(_mode("nearest", "asymmetric", "floor"), (2, 4, 5), [1, 1.5, 2.5]),
    "nearest_shrinking": _resize(_mode("nearest", "half_pixel", "round_prefer_ceil"), (2, 6, 5), [1, 0.5, 0.6]),
    "nearest_aligned": _resize(_mode("nearest", "align_corners", "ceil"), (2, 4, 5), [1, 2, 2]),
    "nearest_1d": _resize(_mode("nearest", "asymmetric", "floor"), (2, 5), [1, 2]),
    "nearest_3d": _resize(_mode("nearest", "asymmetric", "floor"), (2, 2, 3, 2), [1, 2, 2, 2]),
    "nearest_channels": _resize(_mode("nearest", "asymmetric", "floor"), (2, 3, 4), [2, 2, 1]),
    "linear_half_pixel": _resize(_mode("linear", "half_pixel"), (2, 3, 4), [1, 2, 2]),
    "linear_pytorch": _resize(_mode("linear", "pytorch_half_pixel"), (2, 3, 4), [1, 1.7, 3]),
    "linear_aligned": _resize(_mode("linear", "align_corners"), (2, 3, 4), [1, 2, 3]),
    "linear_asymmetric": _resize(_mode("linear", "asymmetric"), (2, 3, 4), [1, 2, 2]),
    "linear_shrinking": _resize(_mode("linear", "half_pixel"), (2, 6, 7), [1, 0.5, 0.5]),
    "linear_1d": _resize(_mode("linear", "half_pixel"), (2, 5), [1, 2]),
    "linear_3d": _resize(_mode("linear", "half_pixel"), (2, 2, 3, 2), [1, 2, 2, 2]),
    "cubic": _resize(_mode("cubic", "half_pixel"), (2, 4, 5), [1, 2, 2]),
    "cubic_aligned": _resize(_mode("cubic", "align_corners"), (2, 4, 6), [1, 2, 1.5]),
    "cubic_coefficient": _resize(
        _mode("cubic", "half_pixel") + ", cubic_coeff_a=-0.5, exclude_outside=1", (2, 4, 5), [1, 2, 2]
    ),
    "crop": case(
        'h = Mul (x, w) y = Resize <mode="linear", coordinate_transformation_mode="tf_crop_and_resize"> (h, roi, scales)',
        (2, 4, 5),
        w=(2, 4, 5),
        constants={"roi": np.float32([0, 0, 0.2, 0.1, 1, 1, 0.7, 1]), "scales": np.float32([1, 1, 2, 1.6])},
    ),
    "axes": case(
        'h = Mul (x, w) y = Resize <mode="linear", axes=[2, 3]> (h, , scales)',
        (2, 4, 5),
        w=(2, 4, 5),
        constants={"scales": np.float32([2, 1.6])},
    ),
    "sizes": case(
        'h = Mul (x, w) y = Resize <mode="linear", axes=[3, 2]> (h, , , sizes)', (2, 4, 5), w=(2, 4, 5), sizes=[7, 9]
    ),
    "upsample": case(
        'h = Mul (x, w) y = Upsample <mode="nearest"> (h, scales)',
        (2, 3, 4),
        w=(2, 3, 4),
        opset=9,
        constants={"scales": np.float32([1, 1, 2, 3])},
        differences=False,
    ),
    "upsample_linear": case(
        'h = Mul (x, w) y = Upsample <mode="linear"> (h, scales)',
        (2, 3, 4),
        w=(2, 3, 4),
        opset=9,
        constants={"scales": np.float32([1, 1, 2, 2])},
        differences=False,
    ),
    "depth_to_space": case("h = Mul (x, w) y = DepthToSpace <blocksize=2> (h)", (8, 2, 3), w=(8, 2, 3)),
    "depth_to_space_crd": case('h = Mul (x, w) y = DepthToSpace <blocksize=2, mode="CRD"> (h)', (8, 2, 3), w=(8, 2, 3)),
    "space_to_depth": case("h = Mul (x, w) y = SpaceToDepth <blocksize=2> (h)", (2, 4, 6), w=(2, 4, 6)),
}


@pytest.mark.parametrize("name", CASES)
def test_rule_gives_the_gradient(name: str) -> None:
    check(CASES[name])


def test_sizes_computed_in_the_graph_are_refused() -> None:
    body = 'h = Mul (x, w) m = ReduceMin <keepdims=0> (x) s = Max (v, m) r = Resize <mode="linear"> (h, , s) y = Reshape (r, flat)'
    item = case(body, (2, 4, 5), w=(2, 4, 5), flat=[-1, 160], constants={"v": np.float32([1, 1, 2, 2])})
    with pytest.raises(BlindsumError, match=r"\(Resize\): axis 0 is resized"):
        build_artifact(model_of(item), loss="mse", trainable=["w"])
