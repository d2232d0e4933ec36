"""`python -m blindsum.sdk uses|doctor KIT`: what left a device, and whether it can do its work. The device may run meanwhile."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

from blindsum.protocol.errors import BlindsumError
from blindsum.sdk.device import Device
from blindsum.sdk.ledger import LEDGER_FILE, Ledger

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m blindsum.sdk", description=__doc__)
    parser.add_argument("what", choices=["uses", "doctor"])
    parser.add_argument("kit", type=Path, help="folder of the device's kit")
    parser.add_argument(
        "--secret", metavar="FILE", help='file with the secret of a sealed kit, "-" for standard input, or "keyring"'
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    given = parser.parse_args(arguments)
    try:
        if given.what == "uses":
            status = _uses(given.kit, as_json=given.json)
        else:
            status = _doctor(given.kit, given.secret, as_json=given.json)
        sys.stdout.flush()
        return status
    except BlindsumError as error:
        print(error, file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader has seen enough; and Python must not write to it once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _uses(kit: Path, *, as_json: bool) -> int:
    if not (kit / LEDGER_FILE).exists():
        print("nothing has left this device", file=sys.stderr)
        return 0
    ledger = Ledger(kit / LEDGER_FILE)
    try:
        for use in reversed(ledger.uses()):
            print(json.dumps(dataclasses.asdict(use)) if as_json else use)
    finally:
        ledger.close()
    return 0


def _doctor(kit: Path, secret: str | None, *, as_json: bool) -> int:
    try:
        device = Device.open(kit)  # first, because a secret would seal a kit that is not
    except BlindsumError as error:
        if error.code != "secret-missing" or secret is None:
            raise
        device = Device.open(kit, secret="keyring" if secret == "keyring" else _read_secret(secret))
    findings = device.doctor()
    for finding in findings:
        if as_json:
            print(json.dumps(dataclasses.asdict(finding)))
        else:
            print(f"{'ok     ' if finding.ok else 'PROBLEM'}  {finding.name}: {finding.detail}")
            if finding.remedy:
                print(f"         {finding.remedy}")
    return 0 if all(finding.ok for finding in findings) else 1


def _read_secret(file: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise BlindsumError("secret-unusable", f"{file}: {error.strerror}") from None


if __name__ == "__main__":
    sys.exit(main())
