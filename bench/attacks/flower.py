"""Attacks on Flower's SecAgg+ by a malicious server, run against the client code that Flower ships, unmodified.

Runs in an environment of its own (README.md says how). Prints one JSON object: for each attack what came out, with the figures
seen. Nothing here is assumed: the server below sends well-formed messages to `secaggplus_mod` and computes with the answers.
"""

from __future__ import annotations

import json
import logging
import os
import time
from importlib.metadata import version

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app.message_type import MessageType
from flwr.client.mod import secaggplus_mod
from flwr.common import Code, FitRes, Status, bytes_to_ndarray, ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import factor_extract
from flwr.common.secure_aggregation.quantization import dequantize, quantize
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.compat.common import recorddict_compat as compat
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key, generate_key_pairs
from flwr.supercore.task_identity import TaskIdentity

LENGTH = 64
CLIENTS = 6
CLIP, TARGET_RANGE, MODULUS = 8.0, 1 << 22, 1 << 32
"""Flower's defaults (SecAggPlusWorkflow)."""
GUESSED_BITS = 16
KEYS_LOOKED_AT = 400


class Client:
    """One node that runs the shipped mod. `update(model)` is its training."""

    def __init__(self, number: int, update: object) -> None:
        self.number = number
        self._update = update
        self._context = Context(
            run_id=1, node_id=number, node_config={}, state=RecordDict(), run_config={}, series_id=None
        )

    def ask(self, model: np.ndarray | None = None, **configs: object) -> Message:
        """What the node answers the server."""
        content = RecordDict({RECORD_KEY_CONFIGS: ConfigRecord(configs)})
        message = Message(content=content, dst_node_id=self.number, message_type=MessageType.TRAIN)
        message.metadata.__dict__.update(_run_id=1, _src_node_id=1, _message_id="1")

        def train(asked: Message, context: Context) -> Message:
            result = FitRes(Status(Code.OK, ""), ndarrays_to_parameters([self._update(model)]), 1000, {"loss": 0.5})
            return Message(compat.fitres_to_recorddict(result, keep_input=False), reply_to=asked)

        return secaggplus_mod(message, self._context, train)


class Server:
    """A server that follows the messages of the protocol and nothing of its spirit."""

    def __init__(self, clients: list[Client]) -> None:
        self.clients = {client.number: client for client in clients}
        self.masked: dict[int, list[np.ndarray]] = {}
        self.replies: dict[int, Message] = {}

    def collect(self, *, threshold: int, models: dict[int, np.ndarray] | None = None) -> None:
        """Setup, key shares, masked vectors."""
        count = len(self.clients)
        setup = {
            Key.SAMPLE_NUMBER: count,
            Key.SHARE_NUMBER: count,
            Key.THRESHOLD: threshold,
            Key.CLIPPING_RANGE: CLIP,
            Key.TARGET_RANGE: TARGET_RANGE,
            Key.MOD_RANGE: MODULUS,
            Key.MAX_WEIGHT: 1000.0,
        }
        self.keys = {}
        for number, client in self.clients.items():
            answer = _configs(client.ask(**{Key.STAGE: Stage.SETUP, **setup}))
            self.keys[number] = (answer[Key.PUBLIC_KEY_1], answer[Key.PUBLIC_KEY_2])
        named = {str(number): list(pair) for number, pair in self.keys.items()}
        boxes: dict[int, list[tuple[int, bytes]]] = {number: [] for number in self.clients}
        for number, client in self.clients.items():
            answer = _configs(client.ask(**{Key.STAGE: Stage.SHARE_KEYS, **named}))
            for target, text in zip(answer[Key.DESTINATION_LIST], answer[Key.CIPHERTEXT_LIST], strict=True):
                boxes[target].append((number, text))
        for number, client in self.clients.items():
            sources, texts = zip(*boxes[number], strict=True)
            stage = {
                Key.STAGE: Stage.COLLECT_MASKED_VECTORS,
                Key.SOURCE_LIST: list(sources),
                Key.CIPHERTEXT_LIST: list(texts),
            }
            reply = client.ask((models or {}).get(number), **stage)
            self.replies[number] = reply
            self.masked[number] = _arrays(_configs(reply)[Key.MASKED_PARAMETERS])

    def unmask(self, lists: dict[int, tuple[list[int], list[int]]]) -> dict[int, list[tuple[str, bytes]]]:
        """Tell each client its own lists of the active and the dead. Returns the shares by owner, with what they are shares of."""
        shares: dict[int, list[tuple[str, bytes]]] = {number: [] for number in self.clients}
        for number, (active, dead) in lists.items():
            stage = {Key.STAGE: Stage.UNMASK, Key.ACTIVE_NODE_ID_LIST: active, Key.DEAD_NODE_ID_LIST: dead}
            answer = _configs(self.clients[number].ask(**stage))
            kinds = ["seed"] * len(active) + ["key"] * len(dead)
            for owner, share, kind in zip(answer[Key.NODE_ID_LIST], answer[Key.SHARE_LIST], kinds, strict=True):
                shares[owner].append((kind, share))
        return shares

    def bare(self, victim: int, seed: bytes, private: bytes, keys: dict[int, bytes]) -> np.ndarray:
        """The victim's update, its masks taken off."""
        arrays = _minus(self.masked[victim], pseudo_rand_gen(seed, MODULUS, _shapes(self.masked[victim])))
        for other, public in keys.items():
            shared = generate_shared_key(bytes_to_private_key(private), bytes_to_public_key(public))
            mask = pseudo_rand_gen(shared, MODULUS, _shapes(arrays))
            arrays = _minus(arrays, mask) if victim > other else _plus(arrays, mask)
        return decoded(arrays)


def both_secrets() -> dict[str, object]:
    """Every client is asked for the mask seed and the key of everybody at once."""
    updates, server = fleet()
    server.collect(threshold=3)
    everybody = list(server.clients)
    shares = server.unmask(dict.fromkeys(everybody, (everybody, everybody)))
    return {**recover_all(updates, server, shares), "asked": "every client names everybody both active and dead"}


def two_dropout_sets() -> dict[str, object]:
    """One half is told that the victim is active, the other half that it dropped: no client sees anything odd."""
    updates, server = fleet()
    server.collect(threshold=3)
    everybody = list(server.clients)
    victim, half = everybody[0], CLIENTS // 2
    without = [number for number in everybody if number != victim]
    lists = {number: (everybody, []) for number in everybody[:half]}
    lists |= {number: (without, [victim]) for number in everybody[half:]}
    shares = server.unmask(lists)
    return {**recover(updates, server, shares, [victim]), "asked": "each client a consistent list, two lists in all"}


def substituted_keys() -> dict[str, object]:
    """The victim is alone: the server makes all its neighbours, since nobody vouches for a key."""
    updates, server = fleet()
    victim = next(iter(server.clients))
    fakes = {number: Client(number, lambda model: np.zeros(LENGTH, np.float32)) for number in range(100, 104)}
    alone = Server([server.clients[victim], *fakes.values()])
    alone.collect(threshold=2)
    listed = list(alone.clients)
    shares = alone.unmask(dict.fromkeys(fakes, (listed, listed)))  # the victim itself is not even asked
    return {**recover(updates, alone, shares, [victim]), "asked": "one real client among four of the server's own"}


def two_models() -> dict[str, object]:
    """Everybody but the victim gets a model under which nothing can be learnt: the sum is the victim's update."""
    rng = np.random.default_rng(2)
    secrets = {number: rng.uniform(-1, 1, LENGTH).astype(np.float32) for number in range(1, CLIENTS + 1)}

    def trained(number: int) -> object:
        # one layer behind a ReLU: a model of large negative biases gives every example a gradient of zero
        return lambda model: secrets[number] * np.float32(float(model[0]) > 0)

    server = Server([Client(number, trained(number)) for number in secrets])
    dead, live = np.full(1, -1e6, np.float32), np.ones(1, np.float32)
    victim = 1
    server.collect(threshold=3, models={number: live if number == victim else dead for number in secrets})
    everybody = list(secrets)
    shares = server.unmask({number: (everybody, []) for number in everybody})
    total = [np.sum([server.masked[number][place] for number in everybody], axis=0) for place in range(2)]
    for number in everybody:
        seed = combine_shares([share for _, share in shares[number]])
        total = _minus(total, pseudo_rand_gen(seed, MODULUS, _shapes(total)))
    weight, arrays = factor_extract(_mod(total))
    (mean,) = dequantize(arrays, CLIP, TARGET_RANGE)
    mean = (mean - (CLIENTS - 1) * CLIP) * TARGET_RANGE / weight
    found = mean * CLIENTS
    error = float(np.abs(found - secrets[victim]).max())
    return {"succeeds": error < 1e-3, "error_max": error, "asked": "an honest unmasking of all"}


def small_seeds() -> dict[str, object]:
    """How many bits of a pairwise seed there are, and a search of as many of them as is quick here."""
    folded = []
    for _ in range(KEYS_LOOKED_AT):
        seed = generate_shared_key(generate_key_pairs()[0], generate_key_pairs()[1])
        folded.append(int(np.bitwise_xor.reduce(np.frombuffer(seed, "<u4"))))
    ever, always = int(np.bitwise_or.reduce(folded)), int(np.bitwise_and.reduce(folded))
    bits = bin(ever & ~always).count("1")
    free = [bit for bit in range(32) if (ever & ~always) >> bit & 1]
    secret, known = folded[0], 4
    mask = np.random.RandomState(secret).randint(0, MODULUS - 1, known, dtype=np.int64)
    base = secret & ~sum(1 << bit for bit in free[:GUESSED_BITS])
    began, found = time.perf_counter(), None
    for guess in range(1 << GUESSED_BITS):
        candidate = base | sum((guess >> place & 1) << bit for place, bit in enumerate(free[:GUESSED_BITS]))
        if (np.random.RandomState(candidate).randint(0, MODULUS - 1, known, dtype=np.int64) == mask).all():
            found = candidate
            break
    rate = (guess + 1) / (time.perf_counter() - began)
    return {
        "succeeds": found == secret,
        "seed_bits": bits,
        "searched_bits": GUESSED_BITS,
        "seeds_per_second": round(rate),
        "whole_search_core_hours": round(2**bits / rate / 3600, 1),
        "asked": f"{known} known coordinates of one mask; {bits - GUESSED_BITS} bits of the seed were given",
    }


def wrap() -> dict[str, object]:
    """Everybody at the clip, summed in Flower's own arithmetic with its own defaults."""
    count = 1024
    one = quantize([np.full(1, CLIP)], CLIP, TARGET_RANGE)[0].astype(np.int64)
    total = (one * count) % MODULUS
    value = float(dequantize([total], CLIP, TARGET_RANGE)[0][0] - (count - 1) * CLIP) / count
    return {"succeeds": value < 0, "true_mean": CLIP, "decoded_mean": value, "asked": f"{count} clients, each {CLIP}"}


def weights_in_clear() -> dict[str, object]:
    _, server = fleet()
    server.collect(threshold=3)
    records = server.replies[1].content
    told = {name: dict(record) for name, record in (*records.metric_records.items(), *records.config_records.items())}
    told.pop(RECORD_KEY_CONFIGS)
    return {"succeeds": any(1000 in each.values() for each in told.values()), "told": told, "asked": "nothing"}


# -- helpers ----------------------------------------------------------------------------------------------------------


def fleet() -> tuple[dict[int, np.ndarray], Server]:
    rng = np.random.default_rng(1)
    updates = {number: rng.uniform(-1, 1, LENGTH).astype(np.float32) for number in range(1, CLIENTS + 1)}
    return updates, Server([Client(number, lambda model, u=update: u) for number, update in updates.items()])


def recover_all(
    updates: dict[int, np.ndarray], server: Server, shares: dict[int, list[tuple[str, bytes]]]
) -> dict[str, object]:
    return recover(updates, server, shares, list(updates))


def recover(
    updates: dict[int, np.ndarray], server: Server, shares: dict[int, list[tuple[str, bytes]]], victims: list[int]
) -> dict[str, object]:
    """Whether the victims' updates come out, and how far off (quantisation alone is 4e-6)."""
    errors = []
    for victim in victims:
        seed = combine_shares([share for kind, share in shares[victim] if kind == "seed"])
        private = combine_shares([share for kind, share in shares[victim] if kind == "key"])
        others = {number: pair[0] for number, pair in server.keys.items() if number != victim}
        errors.append(float(np.abs(server.bare(victim, seed, private, others) - updates[victim]).max()))
    return {"succeeds": max(errors) < 1e-3, "updates_read": len(victims), "error_max": max(errors)}


def decoded(arrays: list[np.ndarray]) -> np.ndarray:
    weight, rest = factor_extract(_mod(arrays))
    (values,) = dequantize(rest, CLIP, TARGET_RANGE)
    return values * (TARGET_RANGE / weight)


def _configs(reply: Message) -> ConfigRecord:
    return reply.content.config_records[RECORD_KEY_CONFIGS]


def _arrays(blobs: list[bytes]) -> list[np.ndarray]:
    return [bytes_to_ndarray(blob) for blob in blobs]


def _shapes(arrays: list[np.ndarray]) -> list[tuple[int, ...]]:
    return [array.shape for array in arrays]


def _plus(left: list[np.ndarray], right: list[np.ndarray]) -> list[np.ndarray]:
    return [one + other for one, other in zip(left, right, strict=True)]


def _minus(left: list[np.ndarray], right: list[np.ndarray]) -> list[np.ndarray]:
    return [one - other for one, other in zip(left, right, strict=True)]


def _mod(arrays: list[np.ndarray]) -> list[np.ndarray]:
    return [array % MODULUS for array in arrays]


def main() -> None:
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    attacks = (both_secrets, two_dropout_sets, substituted_keys, two_models, small_seeds, wrap, weights_in_clear)
    print(json.dumps({"peer": f"flwr {version('flwr')}", **{attack.__name__: attack() for attack in attacks}}))


if __name__ == "__main__":
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    main()
