"""What the whole suite shares: Mosquitto, Chromium and Node as processes. On a machine without one its tests are left out, and said
to be; CI always runs them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from blindsum.backend.broker import local_mosquitto_config

START_S = 30.0
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin"])
MOSQUITTO = shutil.which("mosquitto", path=SEARCH_PATH)


CHROMEDRIVER = shutil.which("chromedriver", path=SEARCH_PATH)
PROMTOOL = shutil.which("promtool", path=SEARCH_PATH)
INITDB = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)), None) or shutil.which(
    "initdb"
)
RABBITMQ = shutil.which("rabbitmq-server", path=f"/usr/lib/rabbitmq/bin:{SEARCH_PATH}")
IP = shutil.which("ip", path=SEARCH_PATH)
MOUNT = shutil.which("mount", path=SEARCH_PATH)
SYSTEMD_ANALYZE = shutil.which("systemd-analyze", path=SEARCH_PATH)
CLIENT = Path(__file__).resolve().parents[1] / "examples" / "typescript"
COMPILER = CLIENT / "node_modules" / "typescript" / "bin" / "tsc"
NODE = shutil.which("node") if COMPILER.exists() else None
NEEDS = {
    "local_mosquitto": (MOSQUITTO, "apt-get install mosquitto"),
    "module_mosquitto": (MOSQUITTO, "apt-get install mosquitto"),
    "production_mosquitto": (MOSQUITTO, "apt-get install mosquitto"),
    "hosts": (IP if os.geteuid() == 0 else None, "apt-get install iproute2 (as root)"),
    "small_disk": (MOUNT if os.geteuid() == 0 else None, "apt-get install mount (as root)"),
    "browser": (CHROMEDRIVER, "apt-get install chromium-driver"),
    "postgres": (INITDB, "apt-get install postgresql"),
    "promtool": (PROMTOOL, "apt-get install prometheus"),
    "systemd_analyze": (SYSTEMD_ANALYZE, "apt-get install systemd"),
    "rabbitmq": (RABBITMQ, "apt-get install rabbitmq-server"),
    "typescript": (NODE, "npm ci --prefix examples/typescript"),
}
"""Fixture -> the program that it needs, and what brings that program."""


def pytest_report_header() -> list[str]:
    missing = sorted({command for program, command in NEEDS.values() if program is None})
    return [f"some tests are left out; `{command}` brings them back" for command in missing]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a program that is not here. In CI that is a failure of CI, so nothing is left out."""
    if os.environ.get("CI"):
        return
    absent = {fixture for fixture, (program, _) in NEEDS.items() if program is None}
    needy = [item for item in items if absent.intersection(_wanted(item))]
    config.hook.pytest_deselected(items=needy)
    items[:] = [item for item in items if item not in needy]


def _wanted(item: pytest.Item) -> set[str]:
    """The fixtures of a test, and what its parameters name: a fixture may ask for another only then."""
    parameters = getattr(item, "callspec", None)
    values = parameters.params.values() if parameters else ()
    return {*getattr(item, "fixturenames", ()), *(value for value in values if isinstance(value, str))}


class Mosquitto:
    """A Mosquitto process with the configuration at `config`."""

    def __init__(self, config: Path, port: int, scheme: str = "mqtt", host: str = "127.0.0.1") -> None:
        self.config, self.port = config, port
        self.url = f"{scheme}://{host}:{port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert MOSQUITTO is not None, (
            "these tests need Mosquitto: apt-get install mosquitto (or brew install mosquitto)"
        )
        log = self.config.with_suffix(".log").open("ab")
        self.process = subprocess.Popen(
            [MOSQUITTO, "-c", self.config.name], cwd=self.config.parent, stdout=log, stderr=log
        )
        log.close()
        end = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            assert self.process.poll() is None, self.config.with_suffix(".log").read_text()
            assert time.monotonic() < end
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def restart(self) -> None:
        """SIGKILL, and start it again where it was: it kept nothing."""
        self.kill()
        self.start()


Make = Callable[..., Mosquitto]


@pytest.fixture
def local_mosquitto(tmp_path: Path) -> Iterator[Make]:
    """Makes running Mosquittos from the local test configuration and whatever lines are added."""
    yield from _mosquittos(tmp_path)


@pytest.fixture(scope="module")
def module_mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """The same for all tests of a module."""
    yield from _mosquittos(tmp_path_factory.mktemp("mosquitto"))


@pytest.fixture
def production_mosquitto() -> Iterator[Callable[[Path], Mosquitto]]:
    """Runs the `mosquitto.conf` that a fleet's broker kit holds; its URL is at localhost."""
    made: list[Mosquitto] = []

    def run(config: Path) -> Mosquitto:
        if os.geteuid() == 0:  # else it would become a user who may not read the test's folder
            config.write_text(config.read_text() + "user root\n")
        port = int(re.search(r"^listener (\d+)", config.read_text(), re.MULTILINE)[1])  # type: ignore[index]
        made.append(Mosquitto(config, port, "mqtts", "localhost"))
        made[-1].start()
        return made[-1]

    yield run
    for broker in made:
        broker.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    """A real Chromium without a screen."""
    options = webdriver.ChromeOptions()
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"):
        options.add_argument(f"--{argument}")
    options.add_argument("--disable-background-networking")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def typescript() -> list[str]:
    """The device in TypeScript, type-checked and compiled; the command that runs its programs."""
    assert NODE is not None, "these tests need Node 18 or later, and: npm ci --prefix examples/typescript"
    built = subprocess.run([NODE, str(COMPILER)], cwd=CLIENT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return [NODE]


@pytest.fixture
def free_port() -> int:
    """A TCP port that nobody listens on."""
    return _free_port()


def _mosquittos(folder: Path) -> Iterator[Make]:
    made: list[Mosquitto] = []

    def make(more: str = "") -> Mosquitto:
        port = _free_port()
        config = local_mosquitto_config(folder, port=port)
        config.write_text(config.read_text() + more)
        made.append(Mosquitto(config, port))
        made[-1].start()
        return made[-1]

    yield make
    for broker in made:
        broker.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def promtool() -> str:
    """Prometheus's own checker of rules."""
    assert PROMTOOL is not None
    return PROMTOOL


@pytest.fixture
def systemd_analyze() -> str:
    """systemd's own checker of units."""
    assert SYSTEMD_ANALYZE is not None
    return SYSTEMD_ANALYZE


class Postgres:
    """A PostgreSQL server of its own on a socket in `folder`, owned by a user who is not root: it would not start otherwise."""

    def __init__(self, folder: Path) -> None:
        assert INITDB is not None
        self._folder, self.programs = folder, Path(INITDB).parent
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(folder, self._user)
        self._run("initdb", "-D", folder / "data", "-A", "trust", "-U", "blindsum", "-E", "UTF8", "--locale=C.UTF-8")
        with (folder / "data" / "postgresql.conf").open("a") as config:
            config.write(f"listen_addresses = ''\nunix_socket_directories = '{folder}'\nshared_buffers = 16MB\n")
        self.start()
        self._databases = 0

    def start(self) -> None:
        self._run("pg_ctl", "-D", self._folder / "data", "-w", "-l", self._folder / "log", "start")

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "-D", self._folder / "data", "-w", "-m", mode, "stop")

    def database(self) -> str:
        """The URL of a new database."""
        self._databases += 1
        self._run("createdb", "-h", self._folder, "-U", "blindsum", f"test{self._databases}")
        return f"postgresql://blindsum@/test{self._databases}?host={self._folder}"

    def _run(self, program: str, *words: str | Path) -> None:
        ran = subprocess.run(
            [str(self.programs / program), *map(str, words)],
            user=self._user,
            cwd="/",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real server; its own short folder, as the path of a socket is at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        server = Postgres(Path(folder))
        yield server
        with contextlib.suppress(AssertionError):
            server.stop("immediate")


class SmallDisk:
    """A file system of its own at `path`, of a few megabytes, that can be full and be read-only."""

    SIZE = 8 << 20

    def __init__(self, path: Path) -> None:
        self.path, self._ballast = path, path / "ballast"
        self._mount("-t", "tmpfs", "-o", f"size={self.SIZE}", "small-disk", str(path))

    def fill(self) -> None:
        """Until not one byte more fits."""
        with contextlib.suppress(OSError), self._ballast.open("ab", buffering=0) as ballast:
            while True:
                ballast.write(bytes(4096))
        assert shutil.disk_usage(self.path).free == 0

    def empty(self) -> None:
        """Take away what `fill` has put there."""
        self._ballast.unlink()

    def freeze(self, *, frozen: bool) -> None:
        """Make it read-only, or writable again. What this process has open on it for writing stays open, for reading alone: a file
        system that fails leaves its files so, and Linux does not remount one that is written to."""
        for opened in Path("/proc/self/fd").iterdir() if frozen else ():
            with contextlib.suppress(OSError):  # closed meanwhile
                if opened.readlink().is_relative_to(self.path) and opened.readlink().exists():
                    deaf = os.open(opened, os.O_RDONLY | os.O_CLOEXEC)
                    os.dup2(deaf, int(opened.name), inheritable=False)
                    os.close(deaf)
        self._mount("-o", f"remount,{'ro' if frozen else 'rw'}", str(self.path))

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.path)], check=True)

    def _mount(self, *words: str) -> None:
        ran = subprocess.run([str(MOUNT), *words], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A real file system, for what only one can do."""
    (tmp_path / "disk").mkdir()
    disk = SmallDisk(tmp_path / "disk")
    yield disk
    disk.close()
