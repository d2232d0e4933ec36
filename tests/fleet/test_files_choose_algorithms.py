"""Every algorithm, with its numbers, can be chosen in a file; what an algorithm has no place for is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from blindsum.fleet import Fleet
from blindsum.fleet.simfile import load_fleet
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.messages import Algorithm

SGD = {"rate_micros": 1_000_000, "beta1_micros": 0, "beta2_micros": 0, "tau_micros": 0, "population": 0}


def loaded(folder: Path, task: str, data: str = "") -> Fleet:
    file = folder / "fleet.toml"
    file.write_text(
        f"devices = 6\n[task]\nepochs = 2\nbatch_size = 8\nweight_max = 256\n{task}\n[data]\nhidden = 8\n{data}\n"
    )
    return load_fleet(file, workers=0)[0]


@pytest.mark.parametrize(
    ("task", "numbers"),
    [
        ("", SGD),
        ("server_rate = 0.5", SGD | {"rate_micros": 500_000}),
        ('algorithm = "fedavgm"', SGD | {"beta1_micros": 900_000}),
        ('algorithm = "fedavgm"\nmomentum = 0.5', SGD | {"beta1_micros": 500_000}),
        (
            'algorithm = "fedadam"',
            SGD | {"rate_micros": 10_000, "beta1_micros": 900_000, "beta2_micros": 990_000, "tau_micros": 1_000},
        ),
        (
            'algorithm = "fedyogi"\nserver_rate = 0.1\nmomentum = 0.8\nbeta2 = 0.95\ntau = 0.01',
            {"rate_micros": 100_000, "beta1_micros": 800_000, "beta2_micros": 950_000, "tau_micros": 10_000},
        ),
        ('algorithm = "scaffold"', SGD | {"population": 1049}),  # of 1347 examples no device counts more than 256
        ('algorithm = "evaluate"', SGD | {"rate_micros": 0}),
    ],
)
def test_file_chooses_what_the_signed_task_says(tmp_path: Path, task: str, numbers: dict[str, int]) -> None:
    algorithm: Algorithm = loaded(tmp_path, task)._base.task.algorithm
    assert {name: getattr(algorithm, name) for name in numbers} == numbers


@pytest.mark.parametrize("task", ['algorithm = "scaffold"\nproximal = 0.1', 'personal = ["layer2.*"]\nproximal = 0.1'])
def test_corrections_and_personal_layers_of_a_file_are_played(tmp_path: Path, task: str) -> None:
    fleet = loaded(tmp_path, task)
    report = fleet.run(1)
    assert report.exact and not report.rounds[0].code
    assert len(report.personal) == (6 if "personal" in task else 0)
    assert fleet._base.task.training.proximal_micros == 100_000


def test_file_starts_from_the_model_of_an_earlier_run(tmp_path: Path) -> None:
    first = loaded(tmp_path, "").run(1)
    first.save(tmp_path / "run")
    again = loaded(tmp_path, 'algorithm = "evaluate"\nstart = "run/model.npy"').run(1)
    assert again.digest == first.digest
    (tmp_path / "run" / "model.npy").write_bytes(b"no array")
    with pytest.raises(BlindsumError, match="simulation-unreadable"):
        loaded(tmp_path, 'start = "run/model.npy"')


@pytest.mark.parametrize(
    ("task", "data", "code", "said"),
    [
        ('algorithm = "fedprox"', "", "task-invalid", "FedProx is proximal beside one of them"),
        ("momentum = 0.5", "", "simulation-impossible", "momentum belongs to fedavgm, fedadam, fedyogi"),
        ('algorithm = "evaluate"\nserver_rate = 1.0', "", "simulation-impossible", "the algorithm is evaluate"),
        ('algorithm = "fedavgm"\nmomentum = 1.5', "", "parameters-unsafe", "momentum is 1.5, not a number"),
        ('algorithm = "fedavgm"\nserver_rate = -1.0', "", "parameters-unsafe", "server_rate is -1.0"),
        ('algorithm = "scaffold"', 'set = "none"', "simulation-impossible", "give an artifact and data"),
        ('personal = ["a"]', 'set = "none"', "simulation-impossible", "personal layers are those of a model"),
        ('start = "none.npy"', "", "simulation-unreadable", "none.npy"),
        ('personal = ["nothing"]', "", "training-request-invalid", "layer1.weight"),
        (
            'algorithm = "scaffold"\nprofile = "no-roster"\nstaleness = 3\nbuffer = 3',
            "",
            "parameters-unsafe",
            "no staleness",
        ),
    ],
)
def test_what_an_algorithm_has_no_place_for_is_refused(
    tmp_path: Path, task: str, data: str, code: str, said: str
) -> None:
    with pytest.raises(BlindsumError) as caught:
        loaded(tmp_path, task, data)
    assert caught.value.code == code
    assert said in caught.value.detail
