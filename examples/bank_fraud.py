"""Eight banks, large and small, learn to spot card fraud together, and none shows a payment to another.

Data: simulated card payments of 600 customers at 1000 terminals in Brazil over 60 days, with stolen cards, stolen numbers and
compromised terminals, made by the PyPI package synccfd 0.1.0 (MIT); the bank of a customer is drawn here. Real payments are in no
package. Making them takes a minute, once; they are kept in the folder of --cache.
"""

import argparse
import contextlib
import io
import os
from collections import defaultdict, deque
from pathlib import Path

import numpy as np

from blindsum.fleet.comparison import Metric, Owner, area_under_curve, compare, draw
from blindsum.fleet.data import Dataset
from blindsum.training import SGD, build_artifact, models

CUSTOMERS, TERMINALS, DAYS = 600, 1000, 60
SHARES = (0.35, 0.25, 0.15, 0.1, 0.06, 0.04, 0.03, 0.02)  # of the customers, bank by bank
TRAIN_DAYS = 40
KNOWN_AFTER, TERMINAL_DAYS = 7, 28  # a fraud comes out after a week; how far back a terminal is looked at
DEGREE_KM = 111.2
KEPT = "synccfd-0.1.0-600-1000-60.npz"
COLUMNS = {
    "customer": "CUSTOMER_ID",
    "terminal": "TERMINAL_ID",
    "seconds": "TX_TIME_SECONDS",
    "day": "TX_TIME_DAYS",
    "amount": "TX_AMOUNT",
    "fraud": "TX_FRAUD",
}
PLACES = ("TX_SHIPP", "TX_BILL", "TX_TERM")
Payments = dict[str, np.ndarray]


def payments(cache: Path) -> Payments:
    """All payments in the order of time, as columns."""
    file = cache / KEPT
    if not file.exists():
        try:
            from synccfd import DatasetGenerator
        except ModuleNotFoundError as error:
            raise SystemExit(
                f"{error}; run: pip install synccfd==0.1.0 (with geopandas and pyarrow about 100 MB)"
            ) from None
        print(f"simulating card payments (a minute, once; kept as {file})", flush=True)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            table = DatasetGenerator(n_customers=CUSTOMERS, n_terminals=TERMINALS, nb_days=DAYS).generate()[2]
        table = table.sort_values(["TX_TIME_SECONDS", "TRANSACTION_ID"])
        columns = {name: table[column].to_numpy() for name, column in COLUMNS.items()}
        columns["online"] = (table["TX_TYPE"] == "CNP").to_numpy()
        for place in PLACES:
            columns[place] = table[[f"{place}_LAT", f"{place}_LONG"]].to_numpy(float)
        cache.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(file, **columns)
    return dict(np.load(file))


def distance_km(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Over the ground, near enough; 0 where a place is not known."""
    north = one[:, 0] - other[:, 0]
    east = (one[:, 1] - other[:, 1]) * np.cos(np.radians(one[:, 0]))
    return np.nan_to_num(DEGREE_KM * np.hypot(north, east))


def features(mine: Payments) -> np.ndarray:
    """What a bank knows when a payment comes in: the payment, its customer's earlier ones, and what its own customers' payments at
    the same terminal turned out to be."""
    usual: dict[int, tuple[float, int]] = defaultdict(lambda: (50.0, 1))
    today: dict[tuple[int, int], int] = defaultdict(int)
    seen: dict[int, deque[tuple[int, int]]] = defaultdict(deque)
    far = [np.log1p(distance_km(mine[PLACES[1]], mine[place])) / 5 for place in (PLACES[0], PLACES[2])]
    rows = []
    for place in range(len(mine["day"])):
        customer, terminal, day = int(mine["customer"][place]), int(mine["terminal"][place]), int(mine["day"][place])
        amount, angle = float(mine["amount"][place]), 2 * np.pi * (mine["seconds"][place] % 86_400) / 86_400
        total, count = usual[customer]
        past = seen[terminal]
        while past and past[0][0] < day - TERMINAL_DAYS:
            past.popleft()
        known = [fraud for at, fraud in past if at <= day - KNOWN_AFTER]
        rows.append(
            [
                amount / 100,
                np.log(max(amount, 0.1) / (total / count)),
                float(mine["online"][place]),
                np.sin(angle),
                np.cos(angle),
                today[customer, day] / 4,
                (sum(known) + 0.1) / (len(known) + 1),
                far[0][place],
                far[1][place],
            ]
        )
        usual[customer] = total + min(amount, 200.0), count + 1
        today[customer, day] += 1
        past.append((day, int(mine["fraud"][place])))
    return np.array(rows, np.float32)


def owners(cache: Path) -> list[Owner]:
    whole = payments(cache)
    banks = np.random.default_rng(5).choice(len(SHARES), size=CUSTOMERS, p=SHARES)[whole["customer"].astype(int)]
    found = []
    for bank in range(len(SHARES)):
        mine = {name: column[banks == bank] for name, column in whole.items()}
        table, fraud, later = features(mine), mine["fraud"].astype(np.int64), mine["day"] >= TRAIN_DAYS
        parts = [Dataset("payments", table[pick], fraud[pick], 2) for pick in (~later, later)]
        found.append(Owner(f"bank {bank + 1} ({len(fraud)})", *parts))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="rounds of training (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("bank_fraud.png"), help="the picture (default: %(default)s)")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "blindsum"
    parser.add_argument("--cache", type=Path, default=home, help="where the payments are kept (default: %(default)s)")
    given = parser.parse_args()
    print("card fraud in eight banks", flush=True)
    banks = owners(given.cache)
    net = models.mlp((banks[0].train.features.shape[1], 24, 2), seed=1)
    artifact = build_artifact(net, loss="cross-entropy", optimizer=SGD(lr=0.1))
    metric = Metric("AUC", area_under_curve, True, ".3f")
    how = {"rounds": given.rounds, "epochs": 1, "batch_size": 64, "rate": 0.1, "judge": "all"}
    found = compare("Card fraud, eight banks", banks, artifact, metric, **how)
    print(*found.lines(), sep="\n")
    draw(found, given.out, source=f"{CUSTOMERS} customers' simulated card payments of {DAYS} days (synccfd, MIT)")
    print(f"picture: {given.out}")
    print(found.result())
