"""Imports point one way, and the protocol touches nothing but its arguments."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from typing import Any

LAYERS = {
    "protocol": {"protocol"},
    "testing": {"protocol", "runtime", "sdk", "backend", "testing"},  # its fake backend is made of all of them
    "runtime": {"protocol", "runtime"},
    "training": {"training"},  # and what FROM_PROTOCOL names
    "sdk": {"protocol", "runtime", "training", "sdk"},
    "backend": {"protocol", "runtime", "training", "backend"},
    "fleet": {"protocol", "testing", "runtime", "training", "sdk", "backend", "fleet"},
    "bench": {"protocol", "runtime", "training", "sdk", "backend", "fleet", "testing", "bench"},
}
"""Which packages a package may import. `sdk` and `backend` never see each other; only what simulates fleets sees `testing`."""

FROM_PROTOCOL = ("blindsum.protocol.errors", "blindsum.protocol.codec")
"""All that training takes from the protocol: error codes, and the refusal of CBOR tags."""

LIBRARIES = {
    "protocol": {"numpy", "cryptography", "cbor2", "msgspec"},
    "testing": {"numpy", "cryptography", "pytest", "hypothesis"},
    "runtime": {"cryptography", "msgspec", "paho", "socks"},
    "training": {"numpy", "cbor2", "msgspec", "onnx", "onnxruntime"},
    "sdk": {"numpy", "msgspec", "keyring"},
    "backend": {
        "cryptography",
        "msgspec",
        "iotcore",
        "typer",
        "rich",
        "prometheus_client",
        "starlette",
        "uvicorn",
        "psycopg",
        "tensorboardX",
        "mlflow",
    },
    "fleet": {"numpy", "cryptography", "msgspec", "sklearn", "pandas", "matplotlib", "typer", "rich", "ray"},
}
"""Which packages from outside a package may import (`bench` measures whatever it likes)."""

PURE_STDLIB = {
    "__future__", "abc", "bisect", "collections", "concurrent", "dataclasses", "datetime", "enum", "fractions", "functools",
    "hashlib", "heapq", "hmac", "io", "itertools", "math", "types", "typing",
}  # fmt: skip
"""All of the standard library that `blindsum.protocol` may name."""

EXCEPTIONS = {
    "concurrent": {"blindsum.protocol.prg"},
    "datetime": {"blindsum.protocol.keys", "blindsum.protocol.revocation"},
}
"""Where a name of `PURE_STDLIB` is allowed only: a bounded pool inside one call, and certificate dates."""

IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "compile", "__import__", "breakpoint"}
IMPURE_ATTRIBUTES = {"now", "utcnow", "today", "generate", "urandom", "token_bytes", "getenv", "environ"}
"""A clock, or a generator of its own: time and randomness are arguments."""


def test_imports_point_one_way(modules: list[Any]) -> None:
    wrong = []
    for module in modules:
        for name, line in module.imports():
            if not name.startswith("blindsum."):
                continue
            target = name.split(".")[1]
            granted = module.package == "training" and name.startswith(FROM_PROTOCOL)
            if target not in LAYERS[module.package] and not granted:
                wrong.append(f"{module.path}:{line} imports {name}")
    assert not wrong


def test_each_package_uses_only_its_libraries(modules: list[Any]) -> None:
    wrong = []
    for module in modules:
        allowed = LIBRARIES.get(module.package)
        for name, line in module.imports():
            top = name.split(".")[0]
            if allowed is not None and top not in allowed and top != "blindsum" and top not in sys.stdlib_module_names:
                wrong.append(f"{module.path}:{line} imports {name}")
    assert not wrong


def test_protocol_is_pure(modules: list[Any]) -> None:
    wrong = [
        f"{module.path}:{line}: {what}"
        for module in modules
        if module.package == "protocol"
        for what, line in _impurities(module)
    ]
    assert not wrong


def test_purity_check_finds_what_it_looks_for() -> None:
    """A check that finds nothing anywhere would pass for ever."""
    source = "import socket\nfrom datetime import datetime\nopen('x')\nx = datetime.now()\nnp.random.rand()\nglobal y\n"

    class Sample:
        name, path, package, tree = "blindsum.protocol.sample", "sample.py", "protocol", ast.parse(source)

        def imports(self) -> Iterator[tuple[str, int]]:
            yield from (("socket", 1), ("datetime.datetime", 2))

    assert sorted(line for _, line in _impurities(Sample())) == [1, 2, 3, 4, 5, 6]


def test_only_the_port_seals(modules: list[Any]) -> None:
    """HPKE draws its own randomness, so machines are handed `box_seal` and never call it."""
    users = {
        module.name
        for module in modules
        if module.package == "protocol"
        for node in ast.walk(module.tree)
        if (isinstance(node, ast.Name) and node.id == "box_seal")
        or (isinstance(node, ast.alias) and node.name == "box_seal")
    }
    assert not users


def test_randomness_outside_the_protocol_is_seeded_or_the_systems(modules: list[Any]) -> None:
    """`random.Random(seed)` and `default_rng(seed)` repeat, `SystemRandom` is the system's; the hidden global ones are neither."""
    wrong = []
    for module in modules:
        if module.package == "protocol":
            continue
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ImportFrom) and node.module in ("random", "numpy.random"):
                wrong.append(f"{module.path}:{node.lineno}: import the module, not its functions")
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            name = ast.unparse(node.func)
            owner, _, function = name.rpartition(".")
            if owner in ("np.random", "numpy.random") and not (function == "default_rng" and node.args):
                wrong.append(f"{module.path}:{node.lineno}: {name}")
            if owner == "random" and not (function == "SystemRandom" or (function == "Random" and node.args)):
                wrong.append(f"{module.path}:{node.lineno}: {name}")
    assert not wrong


def _impurities(module: Any) -> Iterator[tuple[str, int]]:
    for name, line in module.imports():
        top = name.split(".")[0]
        if top in LIBRARIES["protocol"] or top == "blindsum":
            continue
        if top not in PURE_STDLIB or module.name not in EXCEPTIONS.get(top, {module.name}):
            yield f"imports {name}", line
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS:
            yield f"calls {node.func.id}", node.lineno
        if isinstance(node, ast.Attribute) and node.attr in IMPURE_ATTRIBUTES:
            yield f"uses .{node.attr}", node.lineno
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("np.random", "numpy.random"):
            yield "uses a numpy generator", node.lineno
        if isinstance(node, ast.Global):
            yield "has a global", node.lineno
