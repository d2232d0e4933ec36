"""Ten people's watches learn to tell seven physiotherapy exercises apart, and nobody's movements leave the watch.

Data: 140 recordings of shoulder exercises at 50 Hz by accelerometer and gyroscope, 10 people (Burns et al., "Shoulder
physiotherapy exercise recognition", Physiological Measurement 39, 2018), as inside the PyPI package seglearn (BSD 3-clause).
"""

import argparse
import io
from pathlib import Path

import numpy as np

from blindsum.fleet.comparison import Metric, Owner, accuracy, compare, draw
from blindsum.fleet.data import Dataset
from blindsum.fleet.wheels import wheel_file
from blindsum.training import SGD, build_artifact, models

FILE = "seglearn/data/watch_dataset.npy", "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"
WINDOW, STEP = 200, 100  # samples: 4 s, every 2 s
GRAVITY, SPIN = 9.81, 2.0  # about what a sensor measures: public scales
SHARE = 0.5  # of each person's recordings that train; later ones judge


def features(window: np.ndarray) -> np.ndarray:
    """Mean, spread, range and speed of change of each of six signals."""
    signals = window / np.repeat([GRAVITY, SPIN], 3)
    change = np.abs(np.diff(signals, axis=0)).mean(axis=0) * 10
    return np.concatenate([signals.mean(axis=0), signals.std(axis=0) * 2, np.ptp(signals, axis=0) / 2, change])


def owners() -> list[Owner]:
    raw = wheel_file("seglearn", "1.2.5", *FILE, tell=print)
    data = np.load(io.BytesIO(raw), allow_pickle=True).item()  # a pickle, but one whose hash is known
    found = []
    for person in sorted(set(data["subject"])):
        parts = []
        for held in (False, True):
            rows, labels = [], []
            for label in sorted(set(data["y"])):
                mine = np.flatnonzero((data["subject"] == person) & (data["y"] == label))
                for series in (np.asarray(data["X"][place], float) for place in mine):
                    cut = int(len(series) * SHARE)
                    piece = series[cut:] if held else series[:cut]
                    for start in range(0, len(piece) - WINDOW + 1, STEP):
                        rows.append(features(piece[start : start + WINDOW]))
                        labels.append(label)
            parts.append(Dataset("exercises", np.array(rows, np.float32), np.array(labels, np.int64), 7))
        found.append(Owner(f"person {person}", *parts))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="rounds of training (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("phones_activity.png"), help="the picture (default: %(default)s)"
    )
    given = parser.parse_args()
    print("exercises on ten watches", flush=True)
    people = owners()
    net = models.mlp((people[0].train.features.shape[1], 48, 7), seed=1)
    artifact = build_artifact(net, loss="cross-entropy", optimizer=SGD(lr=0.2))
    metric = Metric("accuracy", accuracy, True, ".1%")
    # judged by all ten: a model must also know how others move. Ten people move in ten ways: short trainings and a server that
    # weighs each parameter by itself keep them together
    how = {"rounds": given.rounds, "epochs": 2, "batch_size": 16, "rate": 0.2, "judge": "all"}
    server = {"algorithm": "fedyogi", "server_rate": 0.03}
    found = compare("Exercises on ten watches", people, artifact, metric, plan=server, **how)
    print(*found.lines(), sep="\n")
    draw(found, given.out, source="140 recordings of 10 people (Burns et al. 2018, seglearn)")
    print(f"picture: {given.out}")
    print(found.result())
