"""`blindsum model`: from an ONNX model to a training artifact and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from blindsum.backend.console import Json, show
from blindsum.protocol.errors import BlindsumError

if TYPE_CHECKING:
    from blindsum.training.optimisers import Optimiser

model_app = typer.Typer(help="Training artifacts.", no_args_is_help=True)

ModelFile = Annotated[Path, typer.Argument(help="ONNX model.")]
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


@model_app.command("show", epilog="Example: blindsum model show net.onnx --json")
def model_show(
    file: Annotated[Path, typer.Argument(help="ONNX model or training artifact.")],
    output: Output = None,
    dimension: Dimension = None,
    fixed: Fixed = None,
    as_json: Json = False,
) -> None:
    """Say what a model or an artifact holds: inputs, outputs, weights and whether they can be trained, operators, memory."""
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


@model_app.command("export", epilog="Example: blindsum model export net.onnx net.bsa vector.npy trained.onnx")
def model_export(
    model: ModelFile,
    artifact: Annotated[Path, typer.Argument(help="Training artifact that was built from it.")],
    parameters: Annotated[Path, typer.Argument(help="NumPy file (.npy) of the flat parameter vector.")],
    trained: Annotated[Path, typer.Argument(help="ONNX model to write.")],
    as_json: Json = False,
) -> None:
    """Write trained parameters into the model that they were trained from. Everything else in it stays as it was."""
    from blindsum.runtime.kit import read_file
    from blindsum.training import export_model

    data = export_model(model, read_file(artifact), parameters)
    trained.write_bytes(data)
    show({"model": str(trained), "bytes": len(data)}, as_json=as_json)


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
