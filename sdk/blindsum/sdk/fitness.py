"""Whether a device can do its work: its kit, its clock, what its policy requires, and its user."""

from __future__ import annotations

from blindsum.protocol.keys import certificate_validity
from blindsum.runtime.checkup import Finding, Patient, examine
from blindsum.runtime.clock import SET_CLOCK, clock_says, out_of_time
from blindsum.sdk.policy import Policy

__all__ = ["agreed", "certificate_doubt", "examine_device"]

ANSWERS = {None: "not asked yet", False: "the user has refused", True: "the user agrees"}


def agreed(consent: bool | None, policy: Policy) -> bool:
    """Whether the user lets the device take part, as far as the policy has the user asked."""
    return not policy.ask_consent if consent is None else consent


def certificate_doubt(certificate: bytes, ca: bytes, now: int) -> str:
    """ "" where a device's certificate holds by its clock, else what is wrong and what to do, for people."""
    since, until = certificate_validity(certificate, ca=ca)
    return "; ".join(filter(None, out_of_time("the device's certificate", since=since, until=until, now=now)))


def examine_device(patient: Patient, policy: Policy, consent: bool | None, clock_doubt: str) -> list[Finding]:
    """One finding a question. `clock_doubt`: what the device has heard against its clock while it runs."""
    found = list(examine(patient))
    if clock_doubt or not any(finding.name == "clock" for finding in found):
        found = [finding for finding in found if finding.name != "clock"]
        says = clock_doubt or f"it says {clock_says(patient.clock())}, and nothing speaks against it"
        found.append(Finding("clock", not clock_doubt, says, SET_CLOCK if clock_doubt else ""))
    obstacle = policy.obstacle()
    asked = obstacle and "wait until it holds, or change what the policy requires"
    found.append(Finding("conditions", not obstacle, obstacle or "all that the policy requires hold now", asked))
    may = agreed(consent, policy)
    found.append(Finding("consent", may, ANSWERS[consent], "" if may else "ask, and set Device.consent"))
    return found
