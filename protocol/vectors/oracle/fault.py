"""How the second implementation says that something is wrong."""

from __future__ import annotations


class Fault(Exception):
    """What a receiver refuses, by its code (SPEC.md section 13). `culprit`: the principal at whom it is laid, if any."""

    def __init__(self, code: str, culprit: str = "") -> None:
        super().__init__(code)
        self.code = code
        self.culprit = culprit


def require(condition: object, code: str, culprit: str = "") -> None:
    if not condition:
        raise Fault(code, culprit)
