"""TOML files as typed settings: a wrong key is an error with file, line and the nearest right name."""

from __future__ import annotations

import difflib
import re
import threading
import tomllib
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import msgspec

from blindsum.protocol.errors import BlindsumError

__all__ = ["Settings", "load_settings"]

SETTINGS_SIZE_MAX = 1 << 20
_LOCK = threading.Lock()
"""msgspec describes a type when it first meets it; a second thread that comes by meanwhile crashes."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The base of every settings file and table."""


T = TypeVar("T", bound=Settings)


def load_settings(path: Path, kind: type[T]) -> T:
    """The settings in `path`. Raises BlindsumError "config-missing" or "config-invalid" (file, line, what is right)."""
    try:
        if path.stat().st_size > SETTINGS_SIZE_MAX:
            raise BlindsumError("config-invalid", f"{path}: larger than {SETTINGS_SIZE_MAX} bytes")
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise BlindsumError("config-missing", str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BlindsumError("config-invalid", f"{path}: {error}") from None
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BlindsumError("config-invalid", f"{path}: {error}") from None
    _check_keys(path, text, value, kind, "")
    try:
        with _LOCK:
            return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        message = str(error)
        key = re.search(r"\$\.?([\w.-]*)", message)
        name = key.group(1).rsplit(".", 1)[-1] if key else ""
        missing = re.search(r"missing required field `([\w-]+)`", message)
        place = f"line {_line(text, name)}: " if name and _line(text, name) else ""
        detail = f"{missing.group(1)!r} is missing" if missing else message
        raise BlindsumError("config-invalid", f"{path}: {place}{detail}") from None


def _check_keys(path: Path, text: str, value: dict[str, Any], kind: type[Settings], prefix: str) -> None:
    hints = get_type_hints(kind)
    names = {field.encode_name: hints[field.name] for field in msgspec.structs.fields(kind)}
    for key, inner in value.items():
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(names))}"
            raise BlindsumError(
                "config-invalid", f"{path}: line {_line(text, key)}: unknown key {prefix + key!r}{hint}"
            )
        hint_type = names[key]
        if isinstance(inner, dict) and isinstance(hint_type, type) and issubclass(hint_type, Settings):
            _check_keys(path, text, inner, hint_type, f"{prefix}{key}.")


def _line(text: str, key: str) -> int:
    """The first line that sets `key` or opens the table of that name; 0 where there is none."""
    pattern = re.compile(rf"\s*(\[+[^\]]*\b{re.escape(key)}\b[^\]]*\]|\"?{re.escape(key)}\"?\s*=)")
    return next((number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)), 0)
