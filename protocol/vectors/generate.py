"""Write the vectors: `python protocol/vectors/generate.py`, or say with `--check` whether they are what the product computes.

Everything follows from fixed names but the HPKE boxes, which are random when they are made and are kept from then on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from scenarios import (  # noqa: E402
    agreements,
    alone,
    arithmetic,
    encoding,
    failures,
    masking,
    messages,
    secrets,
    selection,
    transcripts,
)
from scenarios.boxes import Boxes  # noqa: E402
from scenarios.case import File  # noqa: E402
from scenarios.product import Refusal, compute  # noqa: E402
from scenarios.scene import AloneScene, Scene  # noqa: E402

__all__ = ["main", "render", "scenarios"]

ZEROS_MIN = 256


def scenarios(folder: Path = HERE) -> Iterator[File]:
    """All files, in order, without outcomes."""
    path = folder / "box.json"
    scene = Scene(Boxes(json.loads(path.read_text())["cases"] if path.exists() else []))
    files = [*transcripts.files(scene), *messages.files(scene)]  # first: they make boxes
    single = AloneScene(scene.boxes)
    files += [*alone.files(single), *failures.files(scene, single)]
    for module in (encoding, secrets, masking, arithmetic, agreements, selection):
        files += module.files(scene)
    yield from files


def render(file: File) -> str:
    """The text of a vector file. Raises AssertionError where the product does something else than the scenario says."""
    cases = []
    for case in file.cases:
        entry: dict[str, Any] = {"name": case.name, "in": to_json(case.given)}
        try:
            entry["out"] = to_json(compute(file.kind, {**file.shared, **case.given}))
            assert not case.error, f"{file.path}: {case.name}: accepted, but {case.error} is meant"
        except Refusal as refusal:
            entry["error"] = str(refusal)
            assert case.error == entry["error"], (
                f"{file.path}: {case.name}: {refusal}, but {case.error or 'success'} is meant"
            )
        cases.append(entry)
    assert len({case.name for case in file.cases}) == len(file.cases), f"{file.path}: two cases share a name"
    document = {"about": file.about, "section": file.section, "kind": file.kind}
    if file.shared:
        document["shared"] = to_json(file.shared)
    return json.dumps({**document, "cases": cases}, indent=1, ensure_ascii=False) + "\n"


def to_json(value: Any) -> Any:
    """Bytes as {"$hex"} (many zeros at their end as {"$zeros"}), integers beyond 2^53 as {"$int"}, maps with other than text
    keys as {"$map"}."""
    if isinstance(value, bytes):
        head = value.rstrip(b"\0")
        many = len(value) - len(head) >= ZEROS_MIN
        return {"$hex": head.hex(), "$zeros": len(value) - len(head)} if many else {"$hex": value.hex()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: to_json(item) for key, item in value.items()}
        return {"$map": [[to_json(key), to_json(item)] for key, item in value.items()]}
    if type(value) is int and abs(value) > 1 << 53:
        return {"$int": str(value)}
    return value


def main(arguments: list[str]) -> int:
    """Exit status: 1 where `--check` finds a file missing, stale or superfluous."""
    check = arguments == ["--check"]
    if arguments and not check:
        print("usage: generate.py [--check]", file=sys.stderr)
        return 2
    texts = {HERE / file.path: render(file) for file in scenarios()}
    if not check:
        for path, text in texts.items():
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    found = {path: path.read_text(encoding="utf-8") for path in HERE.rglob("*.json")}
    stale = sorted(str(p.relative_to(HERE)) for p in texts.keys() | found.keys() if texts.get(p) != found.get(p))
    for name in stale:
        print(f"{name} is not up to date")
    print(f"{len(texts)} files, {len(stale)} not up to date")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
