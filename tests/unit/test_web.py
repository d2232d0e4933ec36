"""What a role shows over HTTP."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from blindsum.backend.board import Board
from blindsum.backend.service import WebSettings
from blindsum.backend.web import STREAMS_MAX, WebServer
from blindsum.protocol.errors import BlindsumError

FACTS = {"task": "wear", "round": 3}
ODD = 'task"} 1\n<script>'


@pytest.fixture
def board() -> Board:
    board = Board("coordinator", 1_000)
    board.tell(1_000, "phase", {**FACTS, "phase": "offer"})
    board.tell(1_000, "join", {**FACTS, "device": "d"})
    board.tell(2_000, "phase", {**FACTS, "phase": "done"})
    board.tell(2_000, "round-finished", {**FACTS, "count": 5, "weight": 9, "statistics": [10, 5_000_000]})
    board.tell(2_000, "refused", {"code": "signature-invalid", "culprit": ODD, "detail": ""})
    return board


@dataclass
class Answer:
    status: int
    headers: Message
    text: str

    def json(self) -> Any:
        return json.loads(self.text)


Get = Callable[..., Answer]


@pytest.fixture
def get(board: Board) -> Iterator[Get]:
    """Asks a running server."""

    def ask(path: str, method: str = "GET") -> Answer:
        request = urllib.request.Request(server.url + path, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return Answer(answer.status, answer.headers, answer.read().decode())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.headers, error.read().decode())

    with WebServer(board, "127.0.0.1", 0) as server:
        yield ask


def test_board_is_json_with_as_many_rounds_as_asked_for(get: Get, board: Board) -> None:
    assert get("/api/board").json() == board.snapshot()
    for rounds in ("0", "-1", "501", "many", ""):
        assert get(f"/api/board?rounds={rounds}").status == 400


def test_metrics_are_what_prometheus_reads(get: Get) -> None:
    answer = get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert samples["blindsum_rounds_total", ("outcome", "finished"), ("task", "wear")] == 1
    assert samples["blindsum_round_joined", ("task", "wear")] == 1
    assert samples["blindsum_round_survivors", ("task", "wear")] == 5
    assert samples["blindsum_round_loss", ("task", "wear")] == 0.5
    assert samples["blindsum_phase_seconds", ("phase", "offer"), ("task", "wear")] == 1.0
    assert samples["blindsum_refusals_total", ("code", "signature-invalid")] == 1
    assert samples["blindsum_connected",] == 0
    assert ("process_resident_memory_bytes",) in samples


def test_health_follows_the_link(get: Get, board: Board) -> None:
    assert get("/healthz").status == 503
    board.tell(3, "connected", {})
    assert get("/healthz").json() == {"role": "coordinator", "connected": True}


def test_page_comes_whole_from_this_package_and_may_load_nothing_else(get: Get) -> None:
    for path, kind in (
        ("/", "text/html"),
        ("/page.js", "text/javascript"),
        ("/page.css", "text/css"),
        ("/icon.svg", "image/svg"),
    ):
        answer = get(path)
        assert answer.status == 200 and answer.headers["content-type"].startswith(kind)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        text = answer.text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text and "https://" not in text and "//cdn" not in text


@pytest.mark.parametrize(
    "path", ["/nothing.js", "/..%2fboard.py", "/%2e%2e/board.py", "/page", "/page.js/x", "/board.py"]
)
def test_nothing_else_is_served(get: Get, path: str) -> None:
    assert get(path).status == 404
    assert get("/api/board", "POST").status == 405


def test_stream_tells_each_change_and_is_bounded_in_number(board: Board) -> None:
    with WebServer(board, "127.0.0.1", 0) as server:
        open_streams = [urllib.request.urlopen(f"{server.url}/api/stream", timeout=10) for _ in range(STREAMS_MAX)]
        firsts = [json.loads(stream.readline().removeprefix(b"data: ")) for stream in open_streams]
        assert all(first == board.snapshot(rounds=100) for first in firsts)
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"{server.url}/api/stream", timeout=10)
        board.tell(4, "connected", {})
        assert open_streams[0].readline() == b"\n"
        assert json.loads(open_streams[0].readline().removeprefix(b"data: "))["connected"] is True
        for stream in open_streams:
            stream.close()


def test_busy_port_and_wrong_address_are_named(board: Board) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(BlindsumError, match="port-busy"):
            WebServer(board, "127.0.0.1", taken.getsockname()[1])
    for listen in ("8480", "host:", "host:http", ":1", "host:70000"):
        with pytest.raises(BlindsumError, match="config-invalid"):
            WebSettings(listen=listen).address()
    assert WebSettings(listen="[::1]:80").address() == ("::1", 80)
