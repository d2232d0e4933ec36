"""Fine-tune an ONNX model with stock onnxruntime: no federation, no training framework.

Needs `pip install -e ".[all]"`; takes a few seconds: `python examples/train_without_federation.py`
"""

from blindsum.fleet.data import digits
from blindsum.training import SGD, TrainingSession, build_artifact, models

train, held_out = digits()  # 8x8 images of digits, from inside scikit-learn

# The author's side: any ONNX model of supported operators and a loss become one file, the training artifact. Give
# `trainable=["layer2.*"]` to train the last layer only: the rest is frozen then and costs no backward pass.
model = models.mlp([64, 32, 10], seed=1)  # or the path of a .onnx file
artifact = build_artifact(model, loss="cross-entropy", optimizer=SGD(lr=0.1))

# The device's side: the artifact and numpy arrays.
session = TrainingSession(artifact)
print(f"{session.parameters.size} parameters, artifact of {len(artifact) / 1000:.0f} kB")
print(f"before   accuracy {session.evaluate(held_out.features, held_out.targets)['accuracy']:.1%}")
for epoch in range(1, 11):
    shuffled = train.shuffled(1, epoch)
    for at in range(0, len(train), 32):
        loss = session.step(shuffled.features[at : at + 32], shuffled.targets[at : at + 32])
    metrics = session.evaluate(held_out.features, held_out.targets)
    print(f"epoch {epoch:2} accuracy {metrics['accuracy']:.1%}, loss {metrics['loss']:.3f}")

guess = session.predict(held_out.features[:8]).argmax(axis=1)
print(f"eight held-out digits are {held_out.targets[:8].tolist()}, the model reads {guess.tolist()}")
print(f"result: {metrics['accuracy']:.1%} of {len(held_out)} held-out digits")
