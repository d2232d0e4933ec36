"""`blindsum`: one command a job. Every command has --json, and every error a code, a cause, a remedy and an exit status."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from dataclasses import asdict
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from blindsum.backend.console import EXIT_ERROR, EXIT_INVALID, Json, fail, show
from blindsum.backend.modelcli import model_app
from blindsum.backend.querycli import query_app
from blindsum.backend.taskcli import task_app
from blindsum.protocol.errors import CATALOGUE, BlindsumError
from blindsum.runtime.topics import WORKERS_MAX

PAGE = "127.0.0.1:8480"
"""Where a coordinator shows its page unless its settings say otherwise."""
WATCH_PAUSE_S = 0.5

__all__ = ["app", "main"]

app = typer.Typer(
    name="blindsum",
    help="Train one AI model from data that never leaves its owner: devices mask, parties unmask only the sum.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(model_app, name="model")
app.add_typer(query_app, name="query")
app.add_typer(task_app, name="task")

Kit = Annotated[Path, typer.Argument(help="Folder of the role's kit.")]


@app.callback(invoke_without_command=True)
def _root(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if show_version:
        print(version("blindsum"))
        raise typer.Exit


@app.command(epilog="Example: blindsum init my-fleet --fleet hospitals --broker mqtt://broker.example:1883")
def init(
    folder: Annotated[Path, typer.Argument(help="New folder for the fleet.")],
    fleet: Annotated[str, typer.Option(help="Name of the fleet: a-z, 0-9, '-'.")] = "fleet",
    malicious_parties: Annotated[
        int, typer.Option("--malicious-parties", "-f", help="How many parties may be malicious; there will be 3f + 1.")
    ] = 1,
    broker: Annotated[
        str, typer.Option(help="URL of the MQTT broker. With mqtts:// each kit, and the broker's, gets its TLS files.")
    ] = "mqtt://127.0.0.1:1883",
    workers: Annotated[
        int, typer.Option(min=0, max=WORKERS_MAX, help="How many workers, for a coordinator on PostgreSQL, get kits.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Make keys, trust bundle and one kit per organisation."""
    from blindsum.backend.provision import create_fleet

    made = create_fleet(
        folder, fleet=fleet, malicious_parties=malicious_parties, broker=broker, page=PAGE, workers=workers
    )
    figures: dict[str, Any] = {
        "operator": str(made.operator),
        "coordinator": str(made.coordinator),
        "parties": [str(party) for party in made.parties],
    }
    if workers:
        figures["workers"] = [str(made.worker(number)) for number in range(1, workers + 1)]
    if made.broker.exists():
        figures["broker"] = str(made.broker)
    show(figures, as_json=as_json, title="Kits: give each folder to its organisation and to nobody else")


@app.command(epilog="Example: blindsum enrol my-fleet --count 100 --prefix phone")
def enrol(
    folder: Annotated[Path, typer.Argument(help="Folder that 'blindsum init' made.")],
    names: Annotated[list[str] | None, typer.Argument(help="Device ids.")] = None,
    count: Annotated[int, typer.Option(help="Instead of names: how many devices.")] = 0,
    prefix: Annotated[str, typer.Option(help="With --count: what the ids begin with.")] = "device",
    revoke: Annotated[bool, typer.Option("--revoke", help="Take the certificates of these devices back.")] = False,
    workers: Annotated[
        list[int] | None,
        typer.Option(
            "--worker", help=f"Instead of devices: number of a worker, 1 to {WORKERS_MAX}; may be given again."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a kit with a certificate for each new device, or for workers; with --revoke take certificates of devices back."""
    from blindsum.backend.provision import FleetFolder, enrol_workers
    from blindsum.backend.provision import enrol as enrol_devices
    from blindsum.backend.provision import revoke as revoke_devices

    made = FleetFolder(folder)
    wanted = list(names or []) + [f"{prefix}-{number:05d}" for number in range(1, count + 1)]
    if bool(wanted) == bool(workers) or (workers and revoke):
        raise typer.BadParameter("give names of devices, --count, or --worker")
    if workers:
        kits, rules = enrol_workers(made, workers)
        figures: dict[str, Any] = {"enrolled": len(kits), "kits": [str(kit) for kit in kits]}
        if rules:
            acl = made.broker / "mosquitto.acl"
            figures["broker"] = (
                f"let it read {acl} again" if acl.exists() else f"add to its access list:{rules.rstrip()}"
            )
        show(figures, as_json=as_json)
        return
    if revoke:
        written = revoke_devices(made, wanted)
        show({"revoked": len(wanted), "lists": [str(path) for path in written]}, as_json=as_json)
        return
    enrolled = enrol_devices(made, wanted)
    show({"enrolled": len(enrolled), "kits": str(folder / "devices")}, as_json=as_json)


@app.command(epilog="Example: blindsum up my-fleet")
def up(
    folder: Annotated[Path, typer.Argument(help="Folder that 'blindsum init' made.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print every role's events as JSON lines.")] = False,
) -> None:
    """Run a whole fleet on this machine: broker, parties, coordinator, web page. Until Ctrl-C."""
    from blindsum.backend.up import run_up

    raise typer.Exit(run_up(folder, as_json=as_json))


@app.command(epilog="Example: blindsum watch http://127.0.0.1:8480")
def watch(
    url: Annotated[str, typer.Argument(help="Address of a role's page.")] = f"http://{PAGE}",
    as_json: Annotated[bool, typer.Option("--json", help="Print the board once, as one JSON object.")] = False,
) -> None:
    """Watch a role live: rounds by phase, dropouts, refusals. Until Ctrl-C."""
    from rich.live import Live

    from blindsum.backend.watch import fetch_board, render

    if as_json:
        print(json.dumps(fetch_board(url)))
        return
    with Live(render(fetch_board(url)), refresh_per_second=4) as live, contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(WATCH_PAUSE_S)
            live.update(render(fetch_board(url)))


@app.command(epilog="Example: blindsum doctor my-fleet/party-1")
def doctor(kit: Kit, as_json: Json = False) -> None:
    """Examine a kit: keys, certificates, disk, database, broker, the other roles. Says what to do about each problem."""
    from blindsum.backend.doctor import patient
    from blindsum.runtime.checkup import examine

    findings = []
    console = Console(highlight=False)
    logging.getLogger("blindsum").addHandler(logging.NullHandler())  # the findings say it
    for finding in examine(patient(kit)):
        findings.append(finding)
        if not as_json:
            mark = "[bold green]pass   [/]" if finding.ok else "[bold red]problem[/]"
            console.print(f"{mark} {finding.name:18} {escape(finding.detail)}", soft_wrap=True)
            if not finding.ok:
                console.print(f"        {'':18} {escape(finding.remedy)}", soft_wrap=True, style="yellow")
    well = all(finding.ok for finding in findings)
    if as_json:
        print(json.dumps({"well": well, "findings": [asdict(finding) for finding in findings]}))
    if not well:
        raise typer.Exit(EXIT_INVALID)


@app.command(epilog="Example: blindsum coordinator my-fleet/coordinator")
def coordinator(kit: Kit) -> None:
    """Run the coordinator; one JSON line an event on stdout, until SIGTERM."""
    from blindsum.backend.coordinator import run_coordinator

    _serve(lambda: run_coordinator(kit))


@app.command(epilog="Example: blindsum worker my-fleet/worker-1")
def worker(kit: Kit) -> None:
    """Run a worker of a coordinator on PostgreSQL; one JSON line an event on stdout, until SIGTERM."""
    try:
        from blindsum.backend.worker import run_worker
    except ModuleNotFoundError as error:
        if error.name != "psycopg":
            raise
        raise BlindsumError("config-invalid", "a worker needs: pip install 'blindsum[postgres]'") from None

    _serve(lambda: run_worker(kit))


@app.command(epilog="Example: blindsum party my-fleet/party-1")
def party(
    kit: Kit,
    forgotten: Annotated[
        bool, typer.Option("--forgotten", help="Its database is lost or an old copy: sit out the rounds under way.")
    ] = False,
) -> None:
    """Run one MPC party; one JSON line an event on stdout, until SIGTERM."""
    from blindsum.backend.party import run_party

    _serve(lambda: run_party(kit, forgotten=forgotten))


@app.command(epilog="Example: blindsum rotate my-fleet/party-1")
def rotate(
    folder: Annotated[Path, typer.Argument(help="Kit of a party; with --party the folder that 'blindsum init' made.")],
    party: Annotated[
        int,
        typer.Option(help="By the operator's word: the number of the party whose key is lost or was seen by others."),
    ] = 0,
    as_json: Json = False,
) -> None:
    """Give a party a new signing key: its old one signs it, or, with --party, the operator does."""
    from blindsum.backend.keychange import change_key, give_key
    from blindsum.backend.provision import FleetFolder

    if party:
        written = give_key(FleetFolder(folder), party)
        show({"party": party, "files": [str(path) for path in written]}, as_json=as_json)
        return
    number, (epoch, step, key, _) = change_key(folder)
    show({"party": number, "epoch": epoch, "step": step, "key": key.hex()}, as_json=as_json)


@app.command(epilog="Example: blindsum broker --port 1883")
def broker(
    port: Annotated[int, typer.Option(help="Port on the loopback interface; 0 takes a free one.")] = 1883,
    as_json: Json = False,
) -> None:
    """Run the embedded broker on this machine (for trying things out), until SIGTERM."""
    import signal
    import threading

    from blindsum.backend.broker import EmbeddedBroker

    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    running = EmbeddedBroker()
    url = running.start(port or None)
    try:
        print(json.dumps({"url": url}) if as_json else url, flush=True)
        while not stopped.wait(0.5):
            if running.pid is None:
                raise BlindsumError("broker-failed", url)
    finally:
        running.stop()


@app.command(epilog="Example: blindsum verify blindsum-demo/transcript.blindsum --json")
def verify(
    transcript: Annotated[
        Path, typer.Argument(help="Transcript of a round, evidence that a role has kept, or its folder audit.")
    ],
    trust: Annotated[
        Path | None, typer.Option(help="trust.cbor of a kit to hold it to; else only its own consistency is checked.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Recompute a round from its transcript: votes, roster, survivor set, openings, sum, model. Says who lied. Of evidence, the
    two signed messages that contradict each other, it says who signed them; of an audit log, where it was cut or altered."""
    from blindsum.protocol.codec import DecodeError
    from blindsum.protocol.evidence import MAGIC, verify_evidence
    from blindsum.protocol.refusals import REFUSALS
    from blindsum.protocol.transcript import verify as verify_transcript
    from blindsum.protocol.trust import Trust
    from blindsum.runtime.audit import is_audit, verify_audit
    from blindsum.runtime.kit import read_file

    try:
        pinned = Trust.decode(read_file(trust)) if trust is not None else None
    except DecodeError as error:
        raise BlindsumError("kit-incomplete", f"{trust}: {error}") from None
    if is_audit(transcript):
        report = verify_audit(transcript)
    elif (data := read_file(transcript)).startswith(MAGIC):
        report = verify_evidence(data, trust=pinned)
    else:
        report = verify_transcript(data, trust=pinned)
    faults = [{"role": f.role, "id": f.id, "code": f.code, "detail": f.detail} for f in report.faults]
    if as_json:
        print(json.dumps({"valid": report.valid, "faults": faults, "trust_pinned": trust is not None, **report.facts}))
    else:
        console = Console(highlight=False)
        for name, value in report.facts.items():
            console.print(f"  {name.replace('_', ' '):16} {escape(str(value))}")
        known = CATALOGUE | REFUSALS
        for fault in report.faults:
            cause = known[fault.code].cause if fault.code in known else ""
            console.print(f"[bold red]fault[/] {escape(f'{fault.principal}: {fault.code} {fault.detail}')}")
            console.print(f"      {cause}")
        console.print("[bold green]valid[/]" if report.valid else "[bold red]NOT valid[/]")
        if report.valid and trust is None and not is_audit(transcript):
            console.print("consistent with the keys inside it; give --trust to hold it to a fleet's own")
    if not report.valid:
        raise typer.Exit(EXIT_INVALID)


def main() -> None:
    """The entry point: load commands of other packages, run, and turn errors into words and an exit status."""
    for point in sorted(entry_points(group="blindsum.commands"), key=lambda point: point.name):
        try:
            command = point.load()
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("blindsum"):
                raise
            continue  # its extra is not installed
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=point.name)
        else:
            app.command(point.name, epilog=getattr(command, "epilog", None))(command)
    as_json = "--json" in sys.argv[1:]
    try:
        app(standalone_mode=True)
    except BlindsumError as error:
        fail(error, as_json=as_json)
        sys.exit(EXIT_ERROR)


def _serve(run: Any) -> None:
    from blindsum.runtime.logs import configure_logs

    configure_logs(stream=sys.stderr)
    raise typer.Exit(run())


if __name__ == "__main__":
    main()
