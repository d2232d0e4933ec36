"""Queries as an operator asks them: a task that trains nothing, and the answers in its transcripts (SPEC.md section 9.5)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from blindsum.backend.tasks import Plan, TaskFiles, read_task, sign_task, task_place, transcripts
from blindsum.protocol.envelope import is_name
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.params import Derived
from blindsum.protocol.queries import Answer, Query, read_query, write_query
from blindsum.protocol.ring import unpack
from blindsum.protocol.transcript import read_records
from blindsum.protocol.update import exact_sums
from blindsum.runtime.kit import load_key, load_trust, read_file

__all__ = ["answer_of", "answers", "create_query", "question"]


def create_query(operator: Path, query: Query, plan: Plan) -> tuple[TaskFiles, Derived]:
    """Sign a task that asks `query` in each of its rounds, with the operator's kit. Of `plan` what concerns training is passed
    over. Raises BlindsumError "query-invalid", "parameters-unsafe" (with the numbers) or "name-unusable"."""
    if not is_name(plan.name):
        raise BlindsumError("name-unusable", repr(plan.name))
    trust, key = load_trust(operator), load_key(operator / "operator.pem")
    asked = write_query(query, plan.devices_max)
    plan = replace(plan, algorithm="evaluate", weight_max=1, width=24)
    return sign_task(trust, key, asked, b"", plan, statistics=1 + query.size)


def question(kit: Path, name: str) -> Query:
    """The query of a task in a coordinator's kit. Raises BlindsumError "task-not-here", "task-invalid", or "query-invalid" for a
    task that is no query."""
    read_task(kit, name)
    return read_query(read_file(task_place(kit, name) / "plan.bin"))


def answers(kit: Path, name: str) -> dict[int, Answer]:
    """What each finished round of a query answered, by round, from a coordinator's kit. Raises as `question`."""
    view, query, found = read_task(kit, name).view, question(kit, name), {}
    for number, path in transcripts(kit, name).items():
        sums = exact_sums(view, unpack(view.segments, read_records(read_file(path))["sum"][0])).tolist()
        found[number] = answer_of(query, sums)
    return found


def answer_of(query: Query, sums: list[int]) -> Answer:
    """The answer in the exact sums of a round: how many devices added, then what they added."""
    return Answer(devices=sums[0], value=query.decode(sums[1:]))
