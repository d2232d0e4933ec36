/** Tasks, manifests, joins, rosters and headers: what a receiver checks beyond the schema (SPEC.md sections 5.1 to 5.4). */

import { BLOB_CHUNKS_MAX, blobId, blobRef, blobSound, sameBlob, type BlobRef } from "./blobs.js";
import { compare, decode, encode, equal, type Bytes, type Value } from "./cbor.js";
import { agreesOnSomething, boxUsable, digest, verified } from "./crypto.js";
import { openInner, openMessage, partyKey, partyOf, type Signed, type Trust } from "./envelope.js";
import { Fault, require } from "./fault.js";
import { graph, held, packedSize, Place, subsets, type Segment } from "./masks.js";
import * as numbers from "./numbers.js";
import { bodyOf, HASH, isName, row, type Body } from "./schema.js";
import { checkCertificate } from "./x509.js";

const KEEPER = "coordinator";
const UNSAFE = "parameters-unsafe";
const NOTHING = new Uint8Array(32);

/** Runs `fn`; whatever it finds wrong is `code`. */
export function as<T>(code: string, fn: () => T): T {
  try {
    return fn();
  } catch (error) {
    if (error instanceof Fault) throw new Fault(code, KEEPER);
    throw error;
  }
}

/** A task that the operator signed and that is safe. */
export class Task {
  readonly segments: Segment[];
  readonly selfSets: number[][];
  readonly capSets: number[][];

  constructor(readonly trust: Trust, readonly name: string, readonly body: Body, readonly digest: Bytes) {
    this.segments = body.segments.map(({ name, length, width }: Segment) => ({ name, length, width }));
    const { parties, threshold, quorum, malicious_parties } = body.threat;
    numbers.committee(parties, threshold, quorum, malicious_parties);
    this.selfSets = subsets(parties, threshold - 1);
    this.capSets = subsets(parties, quorum - 1);
  }

  /** The id of the state before the first round. */
  get firstState(): Bytes {
    return blobId(blobRef(new Uint8Array(0), this.body.plan.chunk_size));
  }

  get quorum(): number {
    return this.body.threat.quorum;
  }

  degree(n: number): number {
    return numbers.degree(n, this.body.threat.corrupt_permille, this.body.threat.dropped_permille);
  }

  survivorsMin(n: number): number {
    const { corrupt_permille, dropped_permille, cohort_min } = this.body.threat;
    return numbers.survivorsMin(n, corrupt_permille, dropped_permille, cohort_min);
  }
}

/** A manifest whose offers are genuine. `members`: offers by party, ascending. */
export interface Round {
  task: Task;
  number: number;
  body: Body;
  digest: Bytes;
  members: Map<number, { boxKey: Bytes; commitment: Bytes }>;
}

export interface Roster {
  digest: Bytes;
  devices: string[];
  keys: Bytes[];
  neighbours: number[][];
  survivorsMin: number;
}

const at = (round: Round, type: string) => ({ type, task: round.task.name, round: round.number });

export function openTask(trust: Trust, raw: Bytes): Task {
  const signed = openMessage(trust, raw);
  require(signed.head.type === "task", "message-misplaced", signed.head.from);
  const body = bodyOf("task", signed.payload);
  require(equal(body.trust, trust.digest), "trust-differs", "operator");
  const task = new Task(trust, signed.head.task, body, signed.digest);
  checkParameters(task);
  return task;
}

function checkParameters(task: Task): void {
  const { body, segments } = task;
  const { codec, threat, devices_max: most } = body;
  const of = (kind: string) => body.segments.filter((segment: Body) => segment.codec === kind);
  const [exact, quantised] = [of("exact"), of("quantised")];
  for (const { width } of quantised) require(codec.bits <= numbers.bits(width, most, codec.weight_max), UNSAFE);
  require(numbers.levelMax(codec) * codec.weight_max < 2 ** numbers.PRODUCT_BITS_MAX, UNSAFE);
  require(new Set(segments.map(({ name }) => name)).size === segments.length, UNSAFE);
  require(exact.length === 1 && exact[0].width === 64, UNSAFE);
  require(threat.parties === task.trust.parties.length && threat.corrupt_permille + threat.dropped_permille <= 900, UNSAFE);
  require(threat.cohort_min <= body.devices_min && body.devices_min <= most, UNSAFE);
  require(blobSound(body.plan) && blobSound(body.model), UNSAFE);
  checkAlgorithm(body, quantised.map(({ length }: Body) => length));
  const edges = Math.floor((numbers.dropped(most, threat.dropped_permille) * task.degree(most) * 5) / 4);
  const [sums, pads] = [held(1, task.selfSets).length, held(1, task.capSets).length];
  const opening = sums * (packedSize(segments) + 64) + pads * edges * 32 + 4096;
  const state = numbers.ALGORITHMS[body.algorithm.name].vectors * body.model.size;
  require(Math.max(opening, state) <= BLOB_CHUNKS_MAX * body.plan.chunk_size, UNSAFE);
}

/** Numbers without a place are 0, and the quantised segments (of these lengths) are what the algorithm sums. */
function checkAlgorithm({ algorithm, training, model }: Body, lengths: number[]): void {
  const { name, ...given } = algorithm;
  const { places } = numbers.ALGORITHMS[name];
  require(Object.entries(given).every(([key, number]) => number === 0 || places.includes(key)), UNSAFE);
  require(!places.includes("tau_micros") || given.tau_micros > 0, UNSAFE);
  require((name === "scaffold") === training.control_micros > 0, UNSAFE);
  if (name === "scaffold") require(lengths.length === 2 && lengths[0] === lengths[1] && given.population > 0, UNSAFE);
  else require(lengths.length <= (name === "evaluate" ? 0 : 1), UNSAFE);
  const values = lengths.reduce((total, length) => total + length, 0);
  require(name === "evaluate" ? model.size % 4 === 0 : model.size === 4 * values, UNSAFE);
}

export function openManifest(task: Task, raw: Bytes): Round {
  const signed = openMessage(task.trust, raw);
  const { type, task: name, round: number, from } = signed.head;
  require(type === "manifest" && name === task.name && number >= 1, "message-misplaced", from);
  const body = bodyOf("manifest", signed.payload);
  const members: Round["members"] = new Map();
  const current = [...task.trust.parties];
  for (const rawOffer of body.offers) {
    const offer = as("offer-malformed", () => openInner(task.trust, rawOffer, { type: "offer", task: name, round: number }));
    require(boxUsable(offer.body.box_key), "offer-malformed", KEEPER);
    const party = partyOf(offer);
    require(party > Math.max(0, ...members.keys()), "offers-too-few", KEEPER);
    current[party - 1] = partyKey(task.trust, party, offer.body.keys);
    members.set(party, { boxKey: offer.body.box_key, commitment: offer.body.beacon_commitment });
  }
  require(members.size >= task.quorum, "offers-too-few", KEEPER);
  const spans = [body.join_until - body.issued_at, body.upload_until - body.join_until, body.expires_at - body.upload_until];
  const longest = [task.body.join_ms, task.body.upload_ms, 8 * task.body.decide_ms];
  require(
    equal(body.task, task.digest) && blobSound(body.model) && body.model.size === task.body.model.size &&
      spans.every((span, i) => span > 0 && span <= longest[i]) && body.rotation.length === (task.body.codec.rotate ? 16 : 0) &&
      (!equal(body.previous, NOTHING) || (sameBlob(body.model, task.body.model) && equal(body.state, task.firstState))),
    "manifest-differs", KEEPER,
  );
  const held = new Task({ ...task.trust, parties: current }, task.name, task.body, task.digest);
  return { task: held, number, body, digest: signed.digest, members };
}

/** The beacon by member of every genuine vote for `wanted`. */
export function countVotes(round: Round, raws: Bytes[], decides: string, wanted: Bytes): Map<number, Bytes> {
  const votes = new Map<number, Bytes>();
  for (const raw of raws) {
    try {
      const vote = openInner(round.task.trust, raw, at(round, "vote"));
      const here = vote.body.decides === decides && equal(vote.body.digest, wanted) && round.members.has(partyOf(vote));
      if (here) votes.set(partyOf(vote), vote.body.beacon);
    } catch (error) {
      if (!(error instanceof Fault)) throw error;
    }
  }
  return votes;
}

/** `countVotes`, where at least q parties voted and nothing else is among the votes. */
export function quorumOfVotes(round: Round, raws: Bytes[], decides: string, wanted: Bytes): Map<number, Bytes> {
  const votes = countVotes(round, raws, decides, wanted);
  require(votes.size === raws.length && votes.size >= round.task.quorum, "votes-too-few", KEEPER);
  return votes;
}

/** The round that an announcement shows, where a quorum voted for its manifest. */
export function openAnnouncement(trust: Trust, signed: Signed): Round {
  const body = bodyOf("announcement", signed.payload);
  const task = openTask(trust, body.task);
  require(task.name === signed.head.task, "message-misplaced", KEEPER);
  const round = openManifest(task, body.manifest);
  require(round.number === signed.head.round, "message-misplaced", KEEPER);
  require(countVotes(round, body.votes, "manifest", round.digest).size >= task.quorum, "votes-too-few", KEEPER);
  return round;
}

export function openJoin(round: Round, raw: Bytes) {
  const signed = openInner(round.task.trust, raw, at(round, "join"));
  const { name, key } = checkCertificate(signed.body.certificate, round.task.trust.ca, round.body.issued_at);
  require(signed.head.from === `device/${name}` && verified(key, signed.signature, signed.tbs), "signature-invalid");
  require(equal(signed.body.manifest, round.digest), "manifest-differs", signed.head.from);
  require(agreesOnSomething(signed.body.key), "join-malformed", signed.head.from);
  return { device: name, identity: key, signed };
}

/** Identity keys, and the entries that follow. */
export function openJoins(round: Round, data: Bytes): { identities: Bytes[]; entries: Bytes } {
  return as("roster-malformed", () => {
    const raws = decode(data);
    require(Array.isArray(raws) && inLimits(round, raws.length), "roster-malformed");
    const joins = raws.map((raw) => {
      require(raw instanceof Uint8Array, "roster-malformed");
      return openJoin(round, raw);
    });
    require(ascending(joins.map(({ device }) => device)), "roster-malformed");
    return {
      identities: joins.map(({ identity }) => identity), entries: encode(joins.map(({ device, signed }) => [device, signed.body.key])),
    };
  });
}

function inLimits(round: Round, count: number): boolean {
  return round.task.body.devices_min <= count && count <= round.task.body.devices_max;
}

function ascending(names: string[]): boolean {
  return names.every((name, i) => i === 0 || compare(Buffer.from(names[i - 1]), Buffer.from(name)) < 0);
}

/** Body of the roster proposal, and roster hash. */
export function openProposal(round: Round, raw: Bytes, votes: Bytes[]): { body: Body; roster: Bytes } {
  const proposal = openInner(round.task.trust, raw, at(round, "roster-proposal"));
  const { joins, entries, manifest } = proposal.body;
  require(equal(manifest, round.digest) && blobSound(joins) && blobSound(entries), "manifest-differs", KEEPER);
  const beacons = countVotes(round, votes, "roster", proposal.digest);
  for (const [party, beacon] of beacons) {
    const member = round.members.get(party);
    require(member, "votes-too-few", KEEPER);
    const made = digest("beacon", round.task.name, round.number, party, beacon);
    require(equal(made, member.commitment), "beacon-differs", `party/${party}`);
  }
  quorumOfVotes(round, votes, "roster", proposal.digest);
  const rows = [...beacons].sort(([a], [b]) => a - b);
  return { body: proposal.body, roster: digest("roster", proposal.digest, rows) };
}

export function openRoster(round: Round, entries: Bytes, roster: Bytes): Roster {
  const rows = as("roster-malformed", () => {
    const value = decode(entries);
    require(Array.isArray(value) && inLimits(round, value.length) && value.every(row(isName as (v: Value) => boolean, HASH)), "roster-malformed");
    const pairs = value as [string, Bytes][];
    require(ascending(pairs.map(([name]) => name)), "roster-malformed");
    return pairs;
  });
  const n = rows.length;
  return {
    digest: roster, devices: rows.map(([name]) => name), keys: rows.map(([, key]) => key),
    neighbours: graph(n, round.task.degree(n), roster), survivorsMin: round.task.survivorsMin(n),
  };
}

/** What everybody sees of a header. */
export function checkHeader(round: Round, roster: Roster, header: Body, device: string): void {
  require(equal(header.manifest, round.digest) && equal(header.roster, roster.digest), "header-foreign", device);
  const { task } = round;
  require(
    header.index < roster.devices.length && header.commitments.length === 32 * (task.selfSets.length + task.capSets.length) &&
      header.boxes.length === round.members.size && header.edges.length === 48 * roster.neighbours[header.index].length &&
      header.body.size === packedSize(task.segments) && header.body.chunk_size === task.body.plan.chunk_size && blobSound(header.body),
    "header-malformed", device,
  );
}

export function placeOf(round: Round, roster: Roster): Place {
  const { task } = round;
  return new Place(round.digest, roster.digest, task.body.suite, task.segments, task.selfSets, task.capSets);
}

export function entriesFollow(round: Round, entries: Bytes, ref: BlobRef): void {
  require(sameBlob(blobRef(entries, round.task.body.plan.chunk_size), ref), "roster-malformed", KEEPER);
}
