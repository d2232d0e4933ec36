"""How much memory and work a run takes, held against what the device grants."""

from __future__ import annotations

from dataclasses import dataclass

from blindsum.protocol.errors import BlindsumError

from .artifact import Artifact
from .extent import extent_of
from .manifest import AGAIN
from .protobuf import Model, read_model
from .verify import constants_of

MEMORY_MAX = 4 << 30  # bytes
WORK_MAX = 1 << 42  # about a quarter of an hour of one core
COSTS_MAX = 256  # that are remembered


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one run: bytes that are alive at once, weights included, and multiplications and elements touched.

    What a process takes for it is up to a third more, as onnxruntime's arena has gaps.
    """

    memory: int
    work: int


class Budget:
    """Extents of an artifact's graphs by number of rows, and the limits that they must keep."""

    def __init__(self, artifact: Artifact, memory_max: int, work_max: int) -> None:
        self._artifact = artifact
        self.memory_max, self.work_max = memory_max, work_max
        self._costs: dict[tuple[str, int], Cost] = {}
        self._granted: dict[str, int] = {}  # graph -> rows that are known to keep the limits
        self._read: tuple[str, Model] | None = None  # the graph that was asked about last

    def cost(self, graph: str, rows: int) -> Cost:
        if (graph, rows) not in self._costs:
            if len(self._costs) == COSTS_MAX:
                self._costs.clear()
            self._costs[graph, rows] = self._worked_out(graph, rows)
        return self._costs[graph, rows]

    def require(self, graph: str, rows: int) -> None:
        """Raises "training-limit-exceeded" where a run over `rows` rows takes more than the device grants."""
        if rows <= self._granted.get(graph, 0):
            return
        cost = self.cost(graph, rows)
        if cost.memory > self.memory_max or cost.work > self.work_max:
            detail = (
                f"{graph} of {rows} rows: {cost.memory} bytes and {cost.work} multiplications, "
                f"at most {self.memory_max} and {self.work_max}"
            )
            raise BlindsumError("training-limit-exceeded", detail)
        self._granted[graph] = rows

    def rows(self, graph: str, rows: int, memory: int) -> int:
        """The largest number up to `rows` for which a run takes no more than `memory` bytes; 0 where one row does not."""
        if self.fits(graph, rows, memory):
            return rows
        low, high = 0, rows
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.fits(graph, middle, memory) else (low, middle)
        return low

    def fits(self, graph: str, rows: int, memory: int) -> bool:
        """True where a run over `rows` rows takes no more than `memory` bytes."""
        try:
            return self.cost(graph, rows).memory <= memory
        except BlindsumError:  # a value above every limit, or a number of rows that the graph does not take
            return False

    def recomputes(self) -> bool:
        """True where a step computes forward results again instead of keeping them."""
        return any(name.startswith(f"@{AGAIN}/") for node in self._model("train").nodes for name in node.outputs)

    def _model(self, graph: str) -> Model:
        if self._read is None or self._read[0] != graph:
            self._read = graph, read_model(self._artifact.graphs()[graph])
        return self._read[1]

    def _worked_out(self, graph: str, rows: int) -> Cost:
        constants = constants_of(self._artifact.manifest, graph, self._artifact.constants)
        try:
            extent = extent_of(self._model(graph), constants, rows, graph)
        except BlindsumError as error:
            code = (
                "training-limit-exceeded" if error.code == "training-artifact-too-large" else "training-batch-invalid"
            )
            raise BlindsumError(code, f"a batch of {rows} rows: {error.detail}") from None
        return Cost(memory=extent.peak, work=extent.work)
