"""Twenty phones learn to read digits, each with few of the ten; the server runs FedYogi, which minds that less.

Data: 1797 handwritten digits of 43 people (Alpaydin and Kaynak, UCI Machine Learning Repository 1998, doi 10.24432/C50P49,
CC BY 4.0), as inside scikit-learn; split over phones by Dirichlet(0.2).
"""

import argparse
from pathlib import Path

from blindsum.fleet.comparison import Metric, Owner, accuracy, compare, draw
from blindsum.fleet.data import digits
from blindsum.fleet.partition import dirichlet
from blindsum.training import SGD, build_artifact, models

PHONES = 20

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12, help="rounds of training (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("images.png"), help="the picture (default: %(default)s)")
    given = parser.parse_args()
    print("digits on twenty phones", flush=True)
    train, test = digits()
    parts = dirichlet(train.targets, PHONES, 0.2, seed=7)
    phones = [Owner(f"phone {number:02d}", train.take(part), test) for number, part in enumerate(parts, 1)]
    artifact = build_artifact(models.mlp((64, 64, 10), seed=1), loss="cross-entropy", optimizer=SGD(lr=0.1))
    metric = Metric("accuracy", accuracy, True, ".1%")
    how = {"rounds": given.rounds, "epochs": 2, "batch_size": 16, "rate": 0.1, "judge": "all"}
    server = {"algorithm": "fedyogi", "server_rate": 0.03}
    found = compare("Digits, twenty phones", phones, artifact, metric, plan=server, **how)
    print(*found.lines(), sep="\n")
    draw(found, given.out, source="1797 digits of 43 people (Alpaydin and Kaynak, CC BY 4.0), Dirichlet(0.2)")
    print(f"picture: {given.out}")
    print(found.result())
