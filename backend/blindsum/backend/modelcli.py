"""`blindsum model`: from an ONNX model to a training artifact and back, and the versions that tasks have made."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from blindsum.backend.console import Json, coordinator_of, show
from blindsum.protocol.errors import BlindsumError

if TYPE_CHECKING:
    from blindsum.backend.registry import Version
    from blindsum.training.optimisers import Optimiser

model_app = typer.Typer(help="Training artifacts, and what tasks have made of them.", no_args_is_help=True)

ModelFile = Annotated[Path, typer.Argument(help="ONNX model.")]
Fleet = Annotated[Path, typer.Argument(help="Folder that 'blindsum init' made, or the coordinator's kit alone.")]
Round = Annotated[int | None, typer.Option("--round", help="With a task: which version; the newest unless said.")]
Output = Annotated[str | None, typer.Option(help="The output to train, where there are several.")]
Dimension = Annotated[list[str] | None, typer.Option(help="NAME=SIZE of a symbolic dimension; may be repeated.")]
Fixed = Annotated[list[str] | None, typer.Option(help="NAME=NUMBER of an input that is a constant; may be repeated.")]


@model_app.command(
    "build", epilog="Example: blindsum model build net.onnx net.bsa --loss cross-entropy --trainable head"
)
def model_build(
    model: ModelFile,
    artifact: Annotated[Path, typer.Argument(help="Training artifact to write.")],
    loss: Annotated[
        str, typer.Option(help="cross-entropy, binary-cross-entropy, mse, mae, huber, cosine, ...")
    ] = "cross-entropy",
    optimizer: Annotated[str, typer.Option(help="sgd, adam, adamw, adagrad or rmsprop.")] = "sgd",
    proximal: Annotated[
        float | None, typer.Option(help="FedProx: give the optimiser a proximal term, with this mu at first.")
    ] = None,
    control: Annotated[bool, typer.Option("--control", help="SCAFFOLD: let steps take a control variate.")] = False,
    trainable: Annotated[
        list[str] | None, typer.Option(help="head, names or patterns of weights; default: all.")
    ] = None,
    adapters: Annotated[
        int | None, typer.Option(help="Rank of adapters on all matrices, instead of the weights.")
    ] = None,
    batch_norm: Annotated[str, typer.Option(help="frozen or train.")] = "frozen",
    recompute: Annotated[
        int | None, typer.Option(help="The most bytes of forward results a step holds per example; default: no bound.")
    ] = None,
    output: Output = None,
    dimension: Dimension = None,
    fixed: Fixed = None,
    as_json: Json = False,
) -> None:
    """Turn an ONNX model into a training artifact for stock onnxruntime."""
    from blindsum.training import Adapters, TrainingSession, build_artifact, describe

    data = build_artifact(
        model,
        loss=loss,
        trainable=[*(trainable or []), *([Adapters(rank=adapters)] if adapters is not None else [])] or None,
        optimizer=_optimiser(optimizer, proximal, control),
        output=output,
        dimensions={name: int(size) for name, size in _pairs("--dimension", dimension)},
        fixed=dict(_pairs("--fixed", fixed)),
        batch_norm=batch_norm,
        recompute=recompute,
    )
    TrainingSession(data)  # what onnxruntime would refuse is refused here
    artifact.write_bytes(data)
    held = describe(data)
    tensors = [weight["name"] for weight in held["weights"]]
    figures = {
        "artifact": str(artifact),
        "bytes": len(data),
        "parameters": held["memory"]["trained"] // 4,
        "tensors": tensors,
    }
    show(figures, as_json=as_json)


@model_app.command("list", epilog="Example: blindsum model list my-fleet fraud")
def model_list(
    folder: Fleet,
    task: Annotated[str | None, typer.Argument(help="Name of a task; all, where none is given.")] = None,
    as_json: Json = False,
) -> None:
    """The versions of the models that a coordinator's tasks have made: from which version, with whose votes, how good."""
    from blindsum.backend.registry import versions
    from blindsum.backend.tasks import task_names

    kit = coordinator_of(folder)
    found = {name: versions(kit, name) for name in ([task] if task else task_names(kit))}
    if as_json:
        show({"tasks": {name: [asdict(made) for made in listed] for name, listed in found.items()}}, as_json=True)
        return
    table = Table("task", "round", "made", "from", "devices", "examples", "loss", "model")
    for name, listed in found.items():
        for made in listed:
            when = datetime.fromtimestamp(made.at / 1e3).isoformat(" ", "minutes")
            loss = "" if made.loss is None else f"{made.loss:.4f}"
            figures = str(made.contributors), str(made.examples), loss, made.model[:16]
            table.add_row(escape(name), str(made.round), when, _parent(made), *figures)
    Console().print(table)


@model_app.command(
    "show", epilog="Example: blindsum model show net.onnx --json; blindsum model show my-fleet fraud --round 7"
)
def model_show(
    file: Annotated[Path, typer.Argument(help="ONNX model, training artifact, or folder of a fleet.")],
    task: Annotated[str | None, typer.Argument(help="With a fleet's folder: name of the task.")] = None,
    number: Round = None,
    output: Output = None,
    dimension: Dimension = None,
    fixed: Fixed = None,
    as_json: Json = False,
) -> None:
    """Say what a model or an artifact holds: inputs, outputs, weights and whether they can be trained, operators, memory. Of a
    task's model, recompute the round that made it, and say which one it came from and whose votes made it."""
    if task is not None:
        made, _ = _version(file, task, number)
        show({**asdict(made), "verified": True}, as_json=as_json, title=f"{task}, round {made.round}")
        return
    from blindsum.training import describe

    sizes = {name: int(size) for name, size in _pairs("--dimension", dimension)}
    figures = describe(file, output=output, dimensions=sizes, fixed=dict(_pairs("--fixed", fixed)))
    if as_json:
        show(figures, as_json=True)
        return
    weights = figures.pop("weights")
    show(figures, as_json=False, title=str(file))
    table = Table("weight", "shape", "trainable", "read by")
    for item in weights:
        cells = item["name"], item["shape"], "yes" if item["trainable"] else "no", ", ".join(item.get("read_by", []))
        table.add_row(*(escape(str(cell)) for cell in cells))
    Console().print(table)


@model_app.command("export", epilog="Example: blindsum model export net.onnx my-fleet fraud trained.onnx --round 7")
def model_export(
    model: ModelFile,
    artifact: Annotated[Path, typer.Argument(help="Training artifact that was built from it, or folder of a fleet.")],
    parameters: Annotated[
        str, typer.Argument(help="NumPy file (.npy) of the flat parameter vector, or name of a task.")
    ],
    trained: Annotated[Path, typer.Argument(help="ONNX model to write.")],
    number: Round = None,
    as_json: Json = False,
) -> None:
    """Write trained parameters into the model that they were trained from. Everything else in it stays as it was. Those of a task
    are taken only when the round that made them, recomputed, is true."""
    from blindsum.backend.registry import shared_parameters
    from blindsum.backend.tasks import read_task, task_place
    from blindsum.runtime.kit import read_file
    from blindsum.training import export_model

    figures: dict[str, Any] = {"model": str(trained)}
    if artifact.is_dir():
        kit = coordinator_of(artifact)
        made, flat = _version(artifact, parameters, number)
        values = shared_parameters(read_task(kit, parameters).view, flat)
        data = export_model(model, read_file(task_place(kit, parameters) / "plan.bin"), values)
        figures |= {"task": parameters, "round": made.round, "sha256": made.model}
    else:
        data = export_model(model, read_file(artifact), Path(parameters))
    trained.write_bytes(data)
    show({**figures, "bytes": len(data)}, as_json=as_json)


def _version(folder: Path, task: str, number: int | None) -> tuple[Version, bytes]:
    """A verified version, the newest unless said, and its model."""
    from blindsum.backend.registry import version
    from blindsum.backend.tasks import transcripts

    kit = coordinator_of(folder)
    return version(kit, task, max(transcripts(kit, task), default=0) if number is None else number)


def _parent(made: Version) -> str:
    if made.parent is None:
        return "gone"
    return ("back to " if made.rolled_back else "") + (str(made.parent) if made.parent else "the first")


def _optimiser(name: str, proximal: float | None, control: bool) -> str | Optimiser:
    """The optimiser of that name with the terms asked for."""
    from blindsum.training.optimisers import Optimiser, as_optimiser

    if proximal is None and not control:
        return name
    plain = as_optimiser(name)
    if not isinstance(plain, Optimiser):
        raise BlindsumError("training-request-invalid", f"{name} has no proximal term and no control")
    return replace(plain, proximal=proximal or 0.0, control=control)


def _pairs(option: str, given: list[str] | None) -> list[tuple[str, float]]:
    """NAME=NUMBER, each; a name may hold = itself."""
    pairs = []
    for text in given or []:
        name, _, number = text.rpartition("=")
        try:
            pairs.append((name, float(number)))
        except ValueError:
            raise BlindsumError("training-request-invalid", f"{option} {text}: write NAME=NUMBER") from None
    return pairs
