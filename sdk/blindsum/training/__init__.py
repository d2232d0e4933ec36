"""Train ONNX models with stock onnxruntime.

An author turns a model into a training artifact with `build_artifact` (needs the `onnx` package); devices verify and
run it with `TrainingSession` (needs onnxruntime). Neither package is imported before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from blindsum.protocol.errors import BlindsumError

from . import schedules
from .losses import (
    BinaryCrossEntropy,
    Contrastive,
    Cosine,
    CrossEntropy,
    CustomLoss,
    Huber,
    MeanAbsoluteError,
    MeanSquaredError,
    NegativeLogLikelihood,
)
from .optimisers import SGD, Adagrad, Adam, AdamW, RMSprop
from .trainable import Adapters, Head

if TYPE_CHECKING:
    from . import models
    from .artifact import Artifact, decode
    from .autodiff import Backward, Gradients, rule, stop
    from .builder import build_artifact
    from .description import describe
    from .export import export_model
    from .fit import Epoch, Report, Step
    from .session import TrainingSession

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adapters",
    "Artifact",
    "Backward",
    "BinaryCrossEntropy",
    "Contrastive",
    "Cosine",
    "CrossEntropy",
    "CustomLoss",
    "Epoch",
    "Gradients",
    "Head",
    "Huber",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "NegativeLogLikelihood",
    "RMSprop",
    "Report",
    "Step",
    "TrainingSession",
    "build_artifact",
    "decode",
    "describe",
    "export_model",
    "models",
    "rule",
    "schedules",
    "stop",
]

_HOMES = {
    "Artifact": ".artifact",
    "decode": ".artifact",
    "Backward": ".autodiff",
    "Gradients": ".autodiff",
    "rule": ".autodiff",
    "stop": ".autodiff",
    "build_artifact": ".builder",
    "describe": ".description",
    "export_model": ".export",
    "Epoch": ".fit",
    "Report": ".fit",
    "Step": ".fit",
    "models": ".models",
    "TrainingSession": ".session",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(_HOMES[name], __name__)
    except ModuleNotFoundError as error:
        if error.name not in ("onnx", "onnxruntime"):
            raise
        raise BlindsumError("training-package-missing", error.name) from error
    return module if name == "models" else getattr(module, name)
