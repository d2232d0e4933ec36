"""Every code a machine refuses, complains or fails a round with (docs/ERRORS.md is made from this table and `errors.CATALOGUE`).

A remedy says what the owner of the process that counted the refusal may do; for most there is nothing to do but to look when
the count is high.
"""

from __future__ import annotations

from typing import Final

from blindsum.protocol.errors import Entry

__all__ = ["REFUSALS"]

_NONE = "none; a high count means that somebody sends junk or an old version"
_STRAY = "none; late and repeated messages are normal"
_BLAME = "look at the evidence: the signature shows who did it"

REFUSALS: Final[dict[str, Entry]] = {
    # -- any message --------------------------------------------------------------------------------------------------
    "message-too-large": Entry("a message is larger than its type may be", _NONE),
    "message-malformed": Entry("the bytes are not one deterministic CBOR message of their type", _NONE),
    "message-version": Entry("the message speaks another protocol version", "upgrade the older side"),
    "upgrade-required": Entry(
        "the other side truly speaks another protocol version; nothing will come of it",
        "upgrade the side that speaks the lower version; the detail names both",
    ),
    "message-repeated": Entry("a message was said again before an answer to it could have been lost", _STRAY),
    "sender-over-share": Entry(
        "too many messages under this name come to nothing; for now the rest of them is not looked at",
        "`flood` in the role's output names the worst; on a broker with an access list revoke that device",
    ),
    "message-type-unknown": Entry("no message type has this name", "upgrade this side if the sender is newer"),
    "message-misplaced": Entry("the message is genuine but does not belong to this role, task or state", _STRAY),
    "message-early": Entry(
        "what the message builds on has not arrived here yet", "none; the coordinator sends both again"
    ),
    "fleet-foreign": Entry(
        "the message belongs to another fleet", "check that the topic prefix and the kit are one fleet's"
    ),
    "sender-wrong-role": Entry("a role sent what only another role may send", _NONE),
    "signature-invalid": Entry(
        "the signature is not the named sender's", "check that both sides have the same trust bundle"
    ),
    "key-retired": Entry(
        "a party's message is signed with a key that it has given up, or that the operator has taken from it",
        "start that party from its latest kit; if it runs from that, somebody else has its old key",
    ),
    "second-key": Entry(
        "a party's key was signed over to two others",
        "let the operator give the party a new key: blindsum rotate --party",
    ),
    "key-changed": Entry("the party changed its key in the middle of the round", "none; it takes part in the next one"),
    "clock-skew": Entry("this clock and the coordinator's differ by more than 5 minutes", "set the clock (NTP)"),
    "certificate-invalid": Entry("the certificate is not one of this fleet's CA", "enrol the device again"),
    "certificate-expired": Entry(
        "the certificate is not valid at this time", "enrol the device again, or set the clock"
    ),
    "certificate-revoked": Entry(
        "the fleet's operator has taken the device's certificate back", "none; if it is wrong, enrol the device anew"
    ),
    # -- tasks and manifests ------------------------------------------------------------------------------------------
    "task-unknown": Entry("the task is not known here", _STRAY),
    "task-differs": Entry("another record was adopted under this task's name", "give a changed task a new name"),
    "trust-differs": Entry(
        "the task was signed for another set of organisations", "distribute one trust bundle to all roles"
    ),
    "policy-floor": Entry(
        "the task asks for less protection than this owner insists on", "raise the task's cohort or lower the floor"
    ),
    "offers-too-few": Entry("fewer than a quorum of parties offered to take part", "see which parties are down"),
    "offer-malformed": Entry("a party's offer for the round is not sound", _BLAME),
    "second-offer": Entry("a party signed two different offers for one round", _BLAME),
    "offer-differs": Entry("the manifest has an offer of this party that it did not make for the round", _BLAME),
    "manifest-differs": Entry("a message is about another manifest than the one agreed on", _BLAME),
    "second-manifest": Entry("two manifests were proposed for one round", _BLAME),
    "chain-differs": Entry("the manifest's model does not follow from the last result this party recomputed", _BLAME),
    "rollback-malformed": Entry("a rollback is of another task or names no model of its size", _BLAME),
    "rollback-stale": Entry(
        "a rollback follows a link of the chain that this party has gone on from", "none; an old one does no harm"
    ),
    "rollback-differs": Entry("a transcript's rollback is not the one that its round started from", _BLAME),
    "chain-behind": Entry("this party has missed results and waits for them", "none; the coordinator sends them again"),
    "votes-too-few": Entry(
        "fewer than a quorum of parties voted alike", "see which parties are down or refuse, and why"
    ),
    "vote-differs": Entry("a party voted for something that was not proposed", _BLAME),
    "second-vote": Entry("a party signed two different votes on one question", _BLAME),
    "round-stale": Entry("the message belongs to a round that is over or not begun", _STRAY),
    "memory-lost": Entry(
        "this party has forgotten what it signed (its database is an old copy, or gone), and sits out what may be under way",
        "none; it takes part again when every round of the forgotten time has expired. Find out who restored the database",
    ),
    "tasks-too-many": Entry(
        "this party takes part in as many tasks as it may", "stop tasks, or begin a fleet of their own"
    ),
    "blobs-too-many": Entry("the coordinator names more blobs than a round has", _BLAME),
    "joins-too-many": Entry(
        "more joins arrive than the coordinator looks at",
        "a high count means a flood; let the broker know devices by certificate",
    ),
    "relays-too-many": Entry("a party or device asks for the same things again and again", _BLAME),
    # -- rosters ------------------------------------------------------------------------------------------------------
    "cohort-too-small": Entry("fewer devices joined than the task demands", "wait for more devices or lengthen join_s"),
    "cohort-full": Entry("the round has all the devices it may have", "none; the device takes part in a later round"),
    "not-staged": Entry(
        "the task is with a share of the devices so far, and this one is not among them",
        "none; it is asked again later",
    ),
    "joining-closed": Entry("the device joined after the roster was made", _STRAY),
    "join-malformed": Entry("a device joined with a key that agrees on nothing", _BLAME),
    "second-join": Entry("a device sent two different joins to one round", "none; the first one counts"),
    "not-selected": Entry("the roster does not name this device", _STRAY),
    "roster-malformed": Entry("the roster or one of its joins is not sound", _BLAME),
    "roster-differs": Entry("a message is about another roster than the one agreed on", _BLAME),
    "roster-key-differs": Entry("the roster names another key than this device sent", _BLAME),
    "second-roster": Entry("two rosters were proposed for one round", _BLAME),
    "beacon-differs": Entry("a party revealed another beacon than it committed to", _BLAME),
    # -- uploads ------------------------------------------------------------------------------------------------------
    "header-early": Entry("an upload arrived before its roster", _STRAY),
    "header-foreign": Entry("an upload is for another round, or not by the device it names", _NONE),
    "header-malformed": Entry("an upload's header has not the parts that the round demands", _NONE),
    "second-header": Entry("a device sent two different uploads in one round; neither counts", _BLAME),
    "box-unreadable": Entry("a box cannot be opened with the key this party offered", "none; the device is left out"),
    "commitment-differs": Entry("a box holds other seeds than the header commits to", "none; the device is left out"),
    "chunk-unexpected": Entry("a chunk of a blob nobody here waits for", _STRAY),
    "chunk-wrong": Entry("a chunk is not the one the blob's digest names", _NONE),
    "blob-unknown": Entry("somebody asks for a blob that is not served here (any more)", _STRAY),
    "receipt-foreign": Entry("a receipt for something this device did not send", _STRAY),
    "upload-late": Entry(
        "the upload arrived after the survivor set was closed", "lengthen upload_s if it happens often"
    ),
    # -- closing ------------------------------------------------------------------------------------------------------
    "round-closed": Entry("an upload arrived at a party after it had voted on the survivor set", _STRAY),
    "survivors-too-few": Entry(
        "fewer devices uploaded than keep the promised protection", "lengthen upload_s or lower the dropouts"
    ),
    "survivors-malformed": Entry("the survivor list is not sound", _BLAME),
    "survivors-differ": Entry("a check is about another candidate", _STRAY),
    "survivor-refused": Entry("the set has a device this party complained about", _BLAME),
    "checks-too-few": Entry("fewer than a quorum of parties checked the candidate", "see which parties are down"),
    "second-set": Entry("two survivor sets were proposed for one round", _BLAME),
    "subset-not-held": Entry("the coordinator wants a sum this party does not hold", _BLAME),
    "opening-foreign": Entry("an opening of another proposal, party or part", _STRAY),
    "opening-unreadable": Entry("an opening's box is not what its party signed", _BLAME),
    "opening-malformed": Entry("an opening has not the parts it must have", _BLAME),
    "opening-differs": Entry("a party opened another self-mask sum than the others", _BLAME),
    "second-opening": Entry("a party signed two openings of one set", _BLAME),
    "openings-disagree": Entry(
        "no self-mask sum is vouched for by enough parties", "more parties than promised are malicious or broken"
    ),
    "openings-too-few": Entry("too few parties opened in time", "see which parties are down"),
    "edge-share-differs": Entry("a party gave a wrong share of a dropped edge", _BLAME),
    "edge-false": Entry(
        "a device capped an edge falsely; the round cannot be opened", "revoke the device if it happens again"
    ),
    "model-differs": Entry("the published model does not follow from the published sum", _BLAME),
    "transcript-malformed": Entry("the file is not a whole transcript", "take another copy of it"),
    "upload-altered": Entry("a body in the transcript is not the one its device signed", _BLAME),
    "opening-altered": Entry("an opened content in the transcript is not the one its party signed", _BLAME),
    "blob-altered": Entry("a blob in the transcript is not the one a signed message names", _BLAME),
    "sum-differs": Entry("the published sum is not what uploads and openings give", _BLAME),
    "result-differs": Entry("the result names other messages than those of the round", _BLAME),
    "failure-differs": Entry(
        "the record of a failed round does not show what its failure says, or the round has a result", _BLAME
    ),
    "second-result": Entry("two results were published for one round", _BLAME),
    "superseded": Entry("a newer round of the task began", _STRAY),
    "deadline": Entry("the round did not get this far in time", "lengthen join_s, upload_s or decide_s"),
    "expired": Entry("the round reached its end without a result here", _STRAY),
    "finished": Entry("the round is over", "none"),
}
