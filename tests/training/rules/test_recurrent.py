"""Rules of LSTM, GRU and RNN."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from blindsum.protocol.errors import BlindsumError
from blindsum.training import TrainingSession, build_artifact, decode
from tests.training.cases import Case, case, check, model_of

STEPS, FEATURES, HIDDEN = 4, 3, 2
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
LAST = "l = Transpose <perm=[1, 0, 2]> (Yh) u = Unsqueeze (l, one)"
LENGTHS = "k = ReduceSum <keepdims=0> (x, two) a = ArgMax <axis=1, keepdims=0> (k) o = Add (a, one) n = Cast <to=6> (o)"


def recurrent(
    operator: str,
    attributes: str = "",
    *,
    outputs: str = "Y, Yh, Yc",
    inputs: str = "b, , h, c",
    directions: int = 1,
    differences: bool = True,
) -> Case:
    """(batch, steps, features) through the operator; `y` joins all outputs that are asked for.

    `n` among the inputs: sequences of 1 to `STEPS` steps. onnx.reference ignores the lengths.
    """
    rng = np.random.default_rng(len(attributes) + directions)
    drawn = {
        "w": (directions, GATES[operator] * HIDDEN, FEATURES),
        "r": (directions, GATES[operator] * HIDDEN, HIDDEN),
        "b": (directions, 2 * GATES[operator] * HIDDEN),
        "h": (directions, 1, HIDDEN),
        "c": (directions, 1, HIDDEN),
    }
    if operator != "LSTM":
        outputs, inputs = outputs.replace(", Yc", ""), inputs.replace(", c", "")
    used = {
        name: rng.normal(size=drawn[name]) for name in ("w", "r", *inputs.replace(",", " ").split()) if name in drawn
    }
    body = ["s = Mul (x, m) t = Transpose <perm=[1, 0, 2]> (s) d = Shape <start=1, end=2> (t)"]
    constants = {"two": np.array([2])} if "n" in inputs else {}
    body.append(LENGTHS if constants else "")
    body.append("e = Concat <axis=0> (one, d, one)" if {"h", "c"} & used.keys() else "")
    body += [f"{name}0 = Expand ({name}, e)" for name in ("h", "c") if name in used]
    given = inputs.replace("h", "h0").replace("c", "c0")
    names = [name.strip() for name in outputs.split(",")]
    body.append(f"{outputs} = {operator} <hidden_size={HIDDEN}{attributes}> (t, w, r, {given})".replace(", )", ")"))
    parts = []
    if "Y" in names:
        body.append("p = Transpose <perm=[2, 0, 1, 3]> (Y)")
        parts.append("p")
    for name in ("Yh", "Yc"):
        if name in names:
            body.append(f"{name}1 = Transpose <perm=[1, 0, 2]> ({name}) {name}2 = Unsqueeze ({name}1, one)")
            parts.append(f"{name}2")
    body.append(f"j = Concat <axis=1> ({', '.join(parts)}) y = Mul (j, j)")
    return case(
        " ".join(body),
        (STEPS, FEATURES),
        m=(FEATURES,),
        one=[1],
        differences=differences and not constants,
        constants=constants,
        **used,
    )


CASES = {
    **{name.lower(): recurrent(name) for name in GATES},
    **{f"{name.lower()}_last_state_alone": recurrent(name, outputs=", Yh", inputs="b") for name in GATES},
    **{f"{name.lower()}_without_bias_or_states": recurrent(name, outputs="Y", inputs="") for name in GATES},
    "lstm_last_cell_alone": recurrent("LSTM", outputs=", , Yc", inputs="b, , h, c"),
    "gru_reset_after": recurrent("GRU", ", linear_before_reset=1"),
    "gru_reset_after_without_bias": recurrent("GRU", ", linear_before_reset=1", inputs="", outputs="Y"),
    # onnx.reference knows no direction but forward and no activation but the default
    **{f"{name.lower()}_reverse": recurrent(name, ', direction="reverse"', differences=False) for name in GATES},
    **{
        f"{name.lower()}_bidirectional": recurrent(name, ', direction="bidirectional"', directions=2, differences=False)
        for name in GATES
    },
    "gru_reset_after_bidirectional": recurrent(
        "GRU", ', direction="bidirectional", linear_before_reset=1', directions=2, differences=False
    ),
    **{
        f"rnn_{activation.split(chr(34))[0].lower()}": recurrent(
            "RNN", f', activations=["{activation}"{rest}', differences=False
        )
        for activation, rest in {
            "Relu": "]",
            "Sigmoid": "]",
            "Softsign": "]",
            "Softplus": "]",
            "LeakyRelu": "], activation_alpha=[0.3]",
            "ThresholdedRelu": "], activation_alpha=[0.1]",
            "Elu": "], activation_alpha=[1.5]",
            "Affine": "], activation_alpha=[0.7], activation_beta=[0.2]",
            "ScaledTanh": "], activation_alpha=[1.7], activation_beta=[0.6]",
            "HardSigmoid": "], activation_alpha=[0.3], activation_beta=[0.4]",
        }.items()
    },
    "lstm_activations_of_both_directions": recurrent(
        "LSTM",
        ', direction="bidirectional", activations=["HardSigmoid", "Softsign", "Tanh", "Sigmoid", "Tanh", "Relu"]',
        directions=2,
        differences=False,
    ),
    **{
        f"{name.lower()}_batch_first": case(
            "n = Shape <end=1> (x) e = Concat <axis=0> (n, one, one) h0 = Expand (h, e)"
            f" Y, l = {name} <hidden_size=2, layout=1> (x, w, r, , , h0)"
            " u = Unsqueeze (l, one) j = Concat <axis=1> (Y, u) y = Mul (j, j)",
            (4, 3),
            one=[1],
            differences=False,
            h=(1, 1, 2),
            w=(1, 2 * gates, 3),
            r=(1, 2 * gates, 2),
        )
        for name, gates in GATES.items()
    },
    **{
        f"lstm_lengths_that_are_full_{at}": case(
            f"t = Transpose <perm=[1, 0, 2]> (x) n = Shape <end=1> (x) {lengths}"
            " Y, l = LSTM <hidden_size=2> (t, w, r, , full) y = Transpose <perm=[2, 0, 1, 3]> (Y)",
            (4, 3),
            differences=False,  # onnx.reference ignores the lengths
            w=(1, 8, 3),
            r=(1, 8, 2),
            constants={"four": np.array([4], np.int64)},
        )
        for at, lengths in enumerate(
            (
                "full = ConstantOfShape <value=int32[1] {4}> (n)",
                "long = Expand (four, n) full = Cast <to=6> (long)",
            )
        )
    },
    **{
        f"{name.lower()}_{direction}_step_{last}_gathered": case(
            f't = Transpose <perm=[1, 0, 2]> (x) Y = {name} <hidden_size={HIDDEN}, direction="{direction}"> (t, w, r)'
            " s = Squeeze (Y, one) u = Transpose <perm=[1, 0, 2]> (s) y = Gather <axis=1> (u, last)",
            (STEPS, FEATURES),
            one=[1],
            differences=direction == "forward",
            w=(1, gates * HIDDEN, FEATURES),
            r=(1, gates * HIDDEN, HIDDEN),
            constants={"last": np.array(last)},
        )
        for name, gates in GATES.items()
        for direction, last in (("forward", -1), ("reverse", 0), ("forward", 1))
    },
    **{f"{name.lower()}_lengths": recurrent(name, inputs="b, n, h, c") for name in GATES},
    **{
        f"{name.lower()}_lengths_{direction}": recurrent(
            name,
            f', direction="{direction}"',
            directions=1 + (direction == "bidirectional"),
            outputs="Y, Yh",
            inputs="b, n, h, c",
        )
        for name in GATES
        for direction in ("reverse", "bidirectional")
    },
    "lstm_lengths_last_cell_alone": recurrent(
        "LSTM", ', direction="bidirectional"', directions=2, outputs=", , Yc", inputs="b, n"
    ),
    "gru_lengths_last_state_alone": recurrent("GRU", outputs=", Yh", inputs=", n"),
    "lstm_lengths_activations_of_both_directions": recurrent(
        "LSTM",
        ', direction="bidirectional", activations=["HardSigmoid", "Softsign", "Tanh", "Sigmoid", "Tanh", "Relu"]',
        directions=2,
        inputs="b, n, h, c",
    ),
    "gru_activations": recurrent("GRU", ', activations=["HardSigmoid", "Relu"]', differences=False),
}


@pytest.mark.parametrize("name", CASES)
def test_rule_gives_the_gradient(name: str) -> None:
    check(CASES[name])


@pytest.mark.parametrize(
    ("attributes", "inputs", "reason"),
    [
        ("", "b, , h, c, peep", r"peephole weights \(input P\)"),
        (", input_forget=1", "b", "input_forget=1"),
        (", clip=3.0", "b", "a clip threshold"),
        (
            ', activations=["Relu", "Tanh", "Tanh"]',
            "b, lengths",
            r"sequences of unequal lengths \(input sequence_lens\) here",
        ),
    ],
)
def test_what_has_no_gradient_is_named(attributes: str, inputs: str, reason: str) -> None:
    extra = {"peep": np.zeros((1, 3 * HIDDEN), np.float32), "lengths": np.array([4, 4, 3, 4, 4], np.int32)}
    item = recurrent("LSTM", attributes, inputs=", ".join(n for n in inputs.split(", ") if n not in extra))
    body = item.body.replace(", h0, c0)", ", h0, c0, peep)") if "peep" in inputs.split(", ") else item.body
    body = body.replace("(t, w, r, b)", "(t, w, r, b, lengths)") if "lengths" in inputs else body
    item = dataclasses.replace(item, body=body, constants={**item.constants, **extra})
    with pytest.raises(BlindsumError, match=rf"training-operator-unsupported: .*\(LSTM\): no gradient for {reason}"):
        build_artifact(model_of(item), loss="mse")


@pytest.mark.parametrize(("last", "padded"), [(STEPS - 1, False), (0, True)])
def test_the_last_step_alone_needs_no_gradient_for_the_others(last: int, padded: bool) -> None:
    wanted = CASES["lstm_forward_step_-1_gathered"]
    wanted = dataclasses.replace(wanted, constants={**wanted.constants, "last": np.array(last)})
    artifact = build_artifact(model_of(wanted), loss="mse", trainable=["w", "r"])
    assert ("Pad" in decode(artifact).manifest.operators) == padded


def test_lengths_that_are_an_input_keep_rows_apart_in_nodes_with_a_name(make_model) -> None:
    """As PyTorch's exporter writes what `pack_padded_sequence` goes through."""
    generator = np.random.default_rng(1)
    weights = {"w": generator.normal(size=(2, 6, 3)), "r": generator.normal(size=(2, 6, 2)), "zero": np.zeros(1)}
    model = make_model(
        "(float[N,4,3] x, int64[N] n) => (float[N,2] y) { t = Transpose <perm=[1, 0, 2]> (x) i = Cast <to=6> (n)"
        ' Y, l = GRU <hidden_size=2, direction="bidirectional"> (t, w, r, , i) y = ReduceSum <keepdims=0> (l, zero) }',
        {name: array.astype(np.int64 if name == "zero" else np.float32) for name, array in weights.items()},
    )
    model.graph.node[2].name = "cells"
    session = TrainingSession(build_artifact(model, loss="mse", optimizer="gradient"))
    assert session.manifest.separable
    x, n, targets = generator.normal(size=(3, 4, 3)), np.array([4, 1, 2]), np.zeros((3, 2), np.float32)
    whole, gradient = session.step((x, n), targets)
    parts = [session.step((x[at : at + 1], n[at : at + 1]), targets[at : at + 1]) for at in range(3)]
    assert whole == pytest.approx(np.mean([loss for loss, _ in parts]), rel=1e-5)
    np.testing.assert_allclose(gradient, np.mean([each for _, each in parts], axis=0), rtol=1e-4, atol=1e-6)
    assert session.step((np.where(np.arange(4)[:, None] < n[:, None, None], x, 9.0), n), targets)[0] == whole
