"""Check the vectors against a second implementation: `python protocol/vectors/verify.py [FOLDER]`.

Needs Python 3.11 and nothing else; shares no code with the product (see `oracle`). Prints a line a file and a count; exit status 1
where a file disagrees with the specification as this implementation reads it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from oracle.cbor import from_json, to_json  # noqa: E402
from oracle.fault import Fault  # noqa: E402
from oracle.kinds import KINDS  # noqa: E402

__all__ = ["main", "wrong"]


def wrong(document: dict[str, Any], case: dict[str, Any]) -> str:
    """What is wrong with a case, or ""."""
    if ("error" in case) == ("out" in case):
        return "has not either an outcome or an error"
    given = {**from_json(document.get("shared", {})), **from_json(case["in"])}
    try:
        out = to_json(KINDS[document["kind"]](given))
    except Fault as fault:
        expected = case.get("error", "success")
        return "" if fault.code == expected else f"{fault.code} where the vector says {expected}"
    if "error" in case:
        return f"accepted where the vector says {case['error']}"
    differ = sorted(name for name in out.keys() | case["out"].keys() if out.get(name) != case["out"].get(name))
    return f"other {', '.join(differ)}" if differ else ""


def main(arguments: list[str]) -> int:
    """Exit status: 0 where everything agrees."""
    folder = Path(arguments[0]) if arguments else HERE
    checked = mismatches = 0
    paths = sorted(folder.rglob("*.json"))
    for path in paths:
        found = []
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            cases = document["cases"]
        except (ValueError, KeyError, TypeError):
            document, cases, found = {}, [], ["not a vector file"]
        for case in cases:
            checked += 1
            try:
                problem = wrong(document, case)
            except Exception as error:  # a vector that this implementation cannot even read
                problem = f"{type(error).__name__}: {error}"
            if problem:
                found.append(f"{case.get('name')}: {problem}")
        mismatches += len(found)
        print(f"{'FAIL' if found else 'ok  '} {path.relative_to(folder)}: {len(cases)} cases")
        for problem in found:
            print(f"     {problem}")
    print(f"{len(paths)} files, {checked} cases, {mismatches} mismatches")
    return 1 if mismatches or not checked else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
