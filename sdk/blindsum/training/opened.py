"""Graphs opened in onnxruntime, and bindings of our buffers to their inputs and outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from blindsum.protocol.errors import BlindsumError

from .bank import Floats
from .protobuf import with_initialisers

Arrays = Mapping[str, NDArray[np.generic]]

LINGER_US = 500  # that idle threads of a graph stay awake: longer than the Python between two steps
_LINGERS = tuple(map(int, ort.__version__.split(".")[:2])) >= (1, 26)  # older runtimes stay awake for none or for long


def open_graph(graph: bytes, constants: Arrays, threads: int, *, small: bool = False) -> ort.InferenceSession:
    """Weights go in as constants, so that onnxruntime folds and prepacks them. `small`: a run takes little memory."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors come back as exceptions
    # planning memory ahead leaves the first step's unused beside it, twice the peak, and takes 3 % off the smallest steps
    options.enable_mem_pattern = small
    # threads wait for each other awake while a graph runs, and after it until the next step is due; then they sleep: battery
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    if _LINGERS:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(LINGER_US))
        options.add_session_config_entry("session.intra_op.spin_backoff_max", "8")
    else:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    # int8 weights meet float32 activations, as the graph says; onnxruntime would round those to int8 as well
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    with failures():
        return ort.InferenceSession(with_initialisers(graph, constants), options, providers=["CPUExecutionProvider"])


def bound(session: ort.InferenceSession, given: Mapping[str, Floats], results: Mapping[str, Floats]) -> ort.IOBinding:
    """A binding of those arrays that the graph has."""
    binding = session.io_binding()
    wanted = {item.name for item in session.get_inputs()}
    for name, array in given.items():
        if name in wanted:
            binding.bind_cpu_input(name, array)
    for name, array in results.items():
        binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
    return binding


@contextlib.contextmanager
def failures() -> Iterator[None]:
    """onnxruntime has a dozen exception types of its own; ours names the cause and the remedy."""
    try:
        yield
    except Exception as error:
        raise failure(error) from error


def failure(error: Exception) -> BlindsumError:
    """What `failures` raises, for the one call that is too frequent for a context of its own."""
    return BlindsumError("training-runtime-failed", str(error))
