"""Stable codes for everything that can go wrong, each with a cause and a remedy (docs/ERRORS.md is made from this table).

Three kinds of wrong: the caller's raise `BlindsumError`; a peer's is returned as `Refused`; our own is an assertion.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CATALOGUE", "BlindsumError", "Entry", "Refused"]


@dataclass(frozen=True, slots=True)
class Entry:
    """What an error code means and what the reader can do about it."""

    cause: str
    remedy: str


CATALOGUE: dict[str, Entry] = {
    # -- what the owner of a process did wrong (raised) --------------------------------------------------------------
    "party-keys-full": Entry(
        "the party has signed its key over as often as it may, for every offer shows all of it",
        "let the operator begin anew: blindsum rotate FLEET --party N",
    ),
    "party-keys-invalid": Entry(
        "the file does not hold steps that lead from a pinned key of a party, or from the operator, to its key",
        "take parties.cbor from the organisation whose key changed, or from the operator, again",
    ),
    "parameters-unsafe": Entry(
        "the stated numbers of parties, devices or bits cannot keep the promise they are meant for",
        "use the numbers the message names; a threat model (f, gamma, delta, cohort) derives safe ones by itself",
    ),
    "training-artifact-damaged": Entry(
        "the bytes are not a whole training artifact: truncated, altered, or something else",
        "fetch the artifact again; if it stays so, build it again with build_artifact",
    ),
    "training-artifact-malformed": Entry(
        "the artifact's hash is right but its content breaks the format",
        "do not run it; ask its author to build it with build_artifact",
    ),
    "training-artifact-too-large": Entry(
        "the artifact or one of its parts is above a stated limit", "train a smaller model, or freeze more of it"
    ),
    "training-batch-invalid": Entry(
        "features or targets do not have the shape, type or range that the artifact states",
        "pass features of shape (batch, ...) and one target per example, as the message says",
    ),
    "training-checkpoint-damaged": Entry(
        "the bytes are not a whole checkpoint of a training session: truncated, altered, or something else",
        "restore an older checkpoint, or train from the artifact again",
    ),
    "training-checkpoint-foreign": Entry(
        "the checkpoint was taken from another artifact", "restore it in a session of the artifact that it names"
    ),
    "training-diverged": Entry(
        "the loss is NaN or infinite; a step that ends so changes no parameter",
        "lower the learning rate and look for extreme values in the features",
    ),
    "training-external-data": Entry(
        "a tensor points to data outside its file", "do not run it; save the model with its data inside and build again"
    ),
    "training-limit-exceeded": Entry(
        "a run over this many examples takes more memory or work than the device grants",
        "pass fewer examples at once, fit with memory_cap, or raise the session's memory_max or work_max",
    ),
    "training-model-invalid": Entry(
        "the ONNX model cannot be trained as it stands", "export the model again as the message says"
    ),
    "training-operator-forbidden": Entry(
        "the graph holds an operator outside the standard domain or outside the list that devices run",
        "express the model in the standard ai.onnx operators named in the documentation",
    ),
    "training-operator-unsupported": Entry(
        "an operator on the way from a parameter to the loss has no gradient rule",
        "freeze the parameters it blocks (trainable=...) or give the operator a rule with @rule (docs/TRAINING.md)",
    ),
    "training-package-missing": Entry(
        "a package needed for training is not installed",
        'run pip install "blindsum[device]" to train, pip install "blindsum[author]" to build artifacts',
    ),
    "training-parameters-invalid": Entry(
        "the parameter vector has the wrong length or holds NaN or infinity",
        "pass one flat float32 vector in the order of TrainingSession.layout",
    ),
    "training-request-invalid": Entry(
        "an argument names something that does not exist or is out of range", "use one of the values the message lists"
    ),
    "training-runtime-failed": Entry(
        "onnxruntime cannot load the graph, or failed while it ran",
        "update onnxruntime, or export the model with an older operator set; the message is onnxruntime's own",
    ),
    "config-missing": Entry(
        "the settings file is not there", "give the right path; 'blindsum init' makes the settings of a new fleet"
    ),
    "config-invalid": Entry("the settings file is not what this version expects", "mend the line that is named"),
    "kit-incomplete": Entry("a file of the kit is missing or damaged", "copy the kit again from where it was made"),
    "kit-certificate": Entry("the device's certificate does not hold", "enrol the device again, or set the clock"),
    "task-invalid": Entry("the task record, its plan or its model do not fit together", "create the task again"),
    "task-finished": Entry("the task has had all its rounds", "create a new task that starts from the last model"),
    "round-active": Entry("the task's current round is not over", "wait for it; rounds end by themselves"),
    "rollback-refused": Entry(
        "the rollback is not of this task, or does not follow its last round",
        "pause the task, let the round that is running end, and roll back again",
    ),
    "tracking-unusable": Entry(
        "the package of an experiment tracker is not installed", "install it, or take the line out of [tracking]"
    ),
    "version-unknown": Entry(
        "no transcript here holds that version of the model",
        "see 'blindsum model list'; transcripts of the last 1000 rounds stay",
    ),
    "round-over": Entry("the round no longer waits for this update", "none; nothing was sent, the next round comes"),
    "sum-malformed": Entry(
        "the opened sum is not one that honest devices give", "see the transcript; the round is void"
    ),
    "folder-not-empty": Entry("the folder has files already", "choose a new folder; nothing was changed"),
    "process-died": Entry("a process of the stack ended by itself", "see its file in the logs folder"),
    "demo-stuck": Entry(
        "the demo's processes do not get on", "see the logs folder; try fewer devices on a slow machine"
    ),
    "demo-no-round": Entry("not one round of the demo finished", "see the codes; on a slow machine try fewer devices"),
    "policy-invalid": Entry("the device's policy contradicts itself", "mend the Policy that the app passes"),
    "device-running": Entry("the device has been started already", "register tasks before start(); call stop() first"),
    "task-not-registered": Entry("the app has no examples function for this task", "register one with Device.task"),
    "condition-unmet": Entry("a condition that the policy requires does not hold now", "try again when it does"),
    "no-examples": Entry(
        "the app's examples function gave no examples", "yield at least one batch, or do not register the task"
    ),
    "fleet-package-missing": Entry(
        "a package needed to simulate fleets or draw reports is not installed", 'run pip install "blindsum[fleet]"'
    ),
    "simulation-impossible": Entry(
        "the settings of a simulation cannot give a round that finishes, or that keeps its promise",
        "use numbers that fit together, as the message says: fewer dropouts, more devices, a wider threat model",
    ),
    "simulation-unreadable": Entry(
        "a file of a simulation is not whole, or not of the run that it is used for",
        "use a folder that a run of the same settings wrote; else start the run anew in another folder",
    ),
    "simulation-update-failed": Entry(
        "a script's update function raised, or gave what is no update",
        "mend the function, as the message says: it returns one number for each parameter; devices that fail are for `Dropout`",
    ),
    "simulation-worker-died": Entry(
        "a process that played devices ended in the middle of a round",
        "look at the memory that is left and at what the update function does; fewer workers take less memory",
    ),
    "partition-impossible": Entry(
        "the examples cannot be split over owners as asked",
        "ask for fewer owners or a smaller minimum, or take more examples; alpha must be positive",
    ),
    "not-eligible": Entry(
        "there were fewer examples than the task asks for; nothing was sent",
        "see the count that the app gives to Device.task",
    ),
    "artifact-not-allowed": Entry(
        "the task's training artifact is not one that the device's policy allows; it was not run",
        "add its SHA-256 to the policy's artifacts, if it is one of yours",
    ),
    "examples-failed": Entry("the app's examples function raised", "see the log for its traceback"),
    "update-not-finite": Entry(
        "the update holds NaN or infinity", "check the training data and lower the learning rate; nothing was sent"
    ),
    "weight-out-of-range": Entry(
        "an example weight is below 1 or above the largest that the task's codec leaves room for",
        "cap the weight at the task's weight_max (for example the number of examples, at most that)",
    ),
    "update-wrong-shape": Entry(
        "the update does not have the length that the task's segments state",
        "return one float vector per segment, in the order of the task",
    ),
    # -- the link to the broker (raised, or told as the link's state) -------------------------------------------------
    "broker-unreachable": Entry(
        "no broker answers at this address, or it ended the connection",
        "check that the broker runs, the URL's host and port, and firewalls",
    ),
    "broker-refused": Entry(
        "the broker answered and does not let this client in",
        "check user name and password, or that the certificate is enrolled and not revoked; the detail is the broker's reason",
    ),
    "broker-url-invalid": Entry(
        "the broker's address cannot be used",
        "write mqtt://host:1883, mqtts://host:8883, ws://host:port/path or wss://…, those ending in s with a CA file",
    ),
    "tls-failed": Entry(
        "the broker and this client do not trust each other's certificate, or do not both speak TLS 1.3",
        "check the CA file, the host name in the URL, validity dates and clocks on both sides, and the client certificate",
    ),
    "tls-time": Entry(
        "a certificate of the connection to the broker does not hold at this time",
        "set the clock (NTP) if it is wrong, of this machine or of the broker's; else renew the certificate",
    ),
    "tls-files-unusable": Entry(
        "a certificate, key or CA file cannot be read or do not belong together",
        "check paths, permissions and PEM contents",
    ),
    "session-taken-over": Entry(
        "another process connected to the broker under the same client id",
        "run each device, party and coordinator once; give copies an identity of their own",
    ),
    "task-mismatch": Entry(
        "the app's function for a task is not of the kind that the task asks for",
        "register examples for training, @answer for a query, @update for training of your own",
    ),
    "query-invalid": Entry("the query is none, or its bounds do not fit together", "correct what the detail names"),
    "recording-invalid": Entry(
        "the file is no recording of a round, or one of another version", "record the round again, with `record`"
    ),
    "query-values-invalid": Entry(
        "the app's function for a query yielded what is no value of it",
        "yield numbers, or names where the query has a domain",
    ),
    "proxy-url-invalid": Entry(
        "the proxy's address is not http:// or socks5:// with a host", "correct 'proxy' in the settings"
    ),
    "proxy-package-missing": Entry("a proxy needs a package that is not installed", "pip install 'blindsum[proxy]'"),
    "packet-too-large": Entry(
        "the message is larger than the broker accepts; it was not sent",
        "raise the broker's maximum packet size to 525312 bytes, or give the task a smaller chunk size",
    ),
    "publish-refused": Entry(
        "the broker does not let this client publish on this topic, or has no room for it",
        "compare the broker's access list with section 12 of protocol/SPEC.md, and look at the broker's quotas",
    ),
    "name-unusable": Entry(
        "an id cannot be one level of a topic, or belongs to another role",
        'use 1 to 64 of a-z, 0-9 and "-"; a device is not called "coordinator" nor "party-…"',
    ),
    "port-busy": Entry("another program listens on the port", "stop it, or choose another port"),
    "task-not-here": Entry("the coordinator's kit has no task of that name", "see 'blindsum task list'"),
    "task-stopped": Entry("the task was stopped, which is for good", "create a new task from its model"),
    "board-unreachable": Entry(
        "no role shows its board there",
        "start 'blindsum up' or the role, and see that its settings have [web] listen = \"host:port\" with this address",
    ),
    "broker-failed": Entry(
        "the embedded broker's process did not start", "see the detail; reinstall the package iotcore if it names it"
    ),
    # -- a role's database and driver (raised) ------------------------------------------------------------------------
    "database-corrupted": Entry(
        "the database file is damaged, was altered, or another program made it",
        "move it away and start anew, a party with --forgotten; never bring back an old copy, it knows not what it answered",
    ),
    "database-foreign": Entry(
        "the database is that of another role or fleet",
        "give each role back its own file; a role whose own is lost starts anew, a party with --forgotten",
    ),
    "database-newer": Entry(
        "the database was written by another version of blindsum", "install the version that wrote it, or a newer one"
    ),
    "database-older": Entry(
        "the database holds what an older version wrote and this one cannot read",
        "go back to the version that wrote it, let its rounds end, and see docs/UPGRADING.md",
    ),
    "database-rolled-back": Entry(
        "the database is older than what this role has already sent: it was brought back from a copy, or it is gone",
        "start the party once with --forgotten: it erases its rounds and sits out all that may be under way",
    ),
    "audit-unwritable": Entry(
        "the role's audit log cannot be written or read",
        "check the folder audit in its kit: owner, permissions, room on the disk",
    ),
    "audit-altered": Entry("a record of an audit log is not the one that was written", "ask whoever keeps the log"),
    "audit-cut": Entry(
        "records of an audit log are missing",
        "ask whoever keeps the log; the oldest files of a long one go by themselves",
    ),
    "revocations-invalid": Entry(
        "the file is not a revocation list of this fleet's CA", "copy revoked.crl again from the operator's kit"
    ),
    "revocations-stale": Entry(
        "the revocation list is older than the one this role goes by, or gives a certificate back",
        "take the newest from the operator; where the operator's own is lost, a certificate stays revoked",
    ),
    "device-unknown": Entry(
        "the operator has enrolled no device of that name", "see enrolled.jsonl in the operator's kit"
    ),
    "enrolment-full": Entry(
        "as many certificates are valid as the operator allows", "raise devices_max in operator.toml, or revoke some"
    ),
    "evidence-unproven": Entry(
        "the file does not show two genuine messages of one principal that contradict each other",
        "take another copy of it",
    ),
    "model-unknown": Entry(
        "the device has no such version of the task's model",
        "see Device.model(task).versions; versions come with rounds",
    ),
    "secret-missing": Entry(
        "the device's keys are sealed under a secret of the app, which was not given",
        "open the device with its secret; `python -m blindsum.sdk doctor` takes it with --secret",
    ),
    "secret-wrong": Entry(
        "what is sealed does not open with the secret that was given, or was altered",
        "give the secret that sealed it; if it is lost, erase the device and enrol it again",
    ),
    "secret-unusable": Entry(
        "the secret is too short, or the operating system's keyring did not give one",
        "pass at least 16 random bytes, or a function that returns them; for the keyring install the package keyring",
    ),
    "database-in-use": Entry(
        "another process has the database open",
        "stop the other process of this role; two must never share one identity",
    ),
    "lease-lost": Entry(
        "this process was paused or cut off from the database for so long that another one took over its part",
        "none: nothing that it had not stored counts. Start it again; it waits until it is needed",
    ),
    "database-unwritable": Entry(
        "the database cannot be written, or its server does not flush to disk",
        "check owner and permissions, that the disk is not read-only, and that PostgreSQL has fsync on",
    ),
    "database-unreachable": Entry(
        "the database's server is not there, ended, or does not let this role in",
        "start it or mend the URL in the settings, then start the role again: it goes on where it was",
    ),
    "disk-full": Entry(
        "the disk is full; nothing was lost that was confirmed",
        "free space; a device then goes on by itself, another role is started again",
    ),
    "disk-failed": Entry(
        "the operating system could not read or write the database", "check the disk and the system log"
    ),
    "driver-stopped": Entry("the role's driver does not run (any more)", "start it; the log says why it ended"),
    "driver-busy": Entry("too many commands wait for the role's machine", "wait for earlier ones to finish"),
    # -- counted by a driver ------------------------------------------------------------------------------------------
    "message-oversized": Entry("a peer's message is larger than any of the protocol's", "none; it was not looked at"),
    "outbox-overflow": Entry(
        "messages waited so long for the broker that the oldest were given up",
        "restore the connection; peers ask again",
    ),
    "internal-error": Entry(
        "a fault of this program; the step was undone and the role went back to its stored state",
        "report it with the log's traceback, which holds no secrets",
    ),
}


class BlindsumError(Exception):
    """An error made by the owner of this process. `code` is stable; `cause` and `remedy` are for people."""

    def __init__(self, code: str, detail: str = "") -> None:
        entry = CATALOGUE[code]
        self.code = code
        self.detail = detail
        self.cause = entry.cause
        self.remedy = entry.remedy
        super().__init__(f"{code}: {detail or entry.cause}; {entry.remedy}")

    def __reduce__(self) -> tuple[type[BlindsumError], tuple[str, str]]:
        """Errors go from process to process."""
        return type(self), (self.code, self.detail)


@dataclass(frozen=True, slots=True)
class Refused:
    """What a machine returns for a peer's wrong message: never raised, always counted.

    `code` is a key of `CATALOGUE`; `culprit` is the principal whose signature proves the fault, or "" where nothing does.
    """

    code: str
    culprit: str = ""
    detail: str = ""
