/** A device's side of a round (SPEC.md section 8.1), for one task.
 *
 * It keeps a few numbers on disk, first of all the last round it has spent. It writes that before it joins, so a restart never goes on
 * with a round, and no key masks two vectors.
 */

import { checkHeader, openAnnouncement, openProposal, openRoster, placeOf, type Roster, type Round } from "./agreements.js";
import { bits, blobCount, blobId, blobRef, chunkCheck, chunkMake, chunkOpen, cut, missing, type BlobRef } from "./blobs.js";
import { concat, encode, equal, type Bytes, type Input } from "./cbor.js";
import { boxSeal, chunkUnseal, publicOf, random } from "./crypto.js";
import { eligible, retryWindow, type Last } from "./eligibility.js";
import { openMessage, seal, versionOf, VERSION, type Signed } from "./envelope.js";
import { Fault, require } from "./fault.js";
import type { Kit } from "./kit.js";
import { boxContent, fromSigned, pack, upload } from "./masks.js";
import { quantise } from "./numbers.js";
import { bodyOf, type Body } from "./schema.js";

const WINDOW = 4;
const RESEND_MS = 1_500;
const RESEND_MAX_MS = 12_000;
const CLOCK_SKEW_MAX_MS = 300_000;
const PUSH_DEVICES_MAX = 64;

/** What a device has learnt in a round: `statistics` follow the weight in the exact segment. */
export interface Update {
  update: Float32Array;
  weight: number;
  statistics: number[];
}

/** What survives a restart. `last`: the last round with an upload. `rest_until`: when to join again, in ms. */
export interface Memory {
  readonly spent: number;
  readonly last: Last;
  readonly rest_until: number;
}

export interface World {
  send(kind: string, body: Bytes): void;
  /** Begin or stop to read the broadcast chunks of a blob. */
  listen(blob: Bytes, on: boolean): void;
  readonly memory: Memory;
  /** Makes `memory` durable before it returns. */
  remember(memory: Memory): void;
  /** How many examples there are, for tasks that ask. */
  examples(): number;
  train(round: number, model: Bytes, plan: Bytes, training: Body): Update;
  tell(event: string, data: Record<string, unknown>): void;
  /** The plain vector that is about to be masked, shown to the owner. */
  inspect(round: number, update: Update, packed: Bytes): void;
}

interface Fetch {
  ref: BlobRef;
  id: Bytes;
  chunks: Map<number, Bytes>;
  outstanding: number;
  askedAt: number;
  waitMs: number;
}

interface Current {
  round: Round;
  phase: "joined" | "uploading" | "uploaded";
  secret: Bytes;
  raw: Bytes; // join or header, sent again until its receipt
  subject: Bytes;
  settled: boolean;
  sentAt: number;
  waitMs: number;
  entries?: BlobRef;
  rosterHash?: Bytes;
  body?: { ref: BlobRef; chunks: Bytes[] };
}

export class Device {
  private current: Current | undefined;
  private readonly fetches = new Map<string, Fetch>();

  /** `version`: the protocol version it speaks; anything but 1 can only find out that it is not understood. */
  constructor(
    private readonly kit: Kit, private readonly task: string, private readonly cohortMin: number, private readonly world: World,
    private readonly version = VERSION,
  ) {}

  /** Whatever arrives, from anybody. What is wrong with it is told and changes nothing. */
  receive(raw: Bytes, now: number): void {
    try {
      if (raw[0] === 0xd2) this.message(raw, now);
      else this.chunk(raw, now);
    } catch (error) {
      if (!(error instanceof Fault)) throw error;
      this.world.tell("refused", { code: error.code });
    }
  }

  tick(now: number): void {
    const { current } = this;
    if (!current) return;
    const manifest = current.round.body;
    if (now >= manifest.expires_at || (current.phase === "joined" && now >= manifest.upload_until)) {
      this.leave("round-abandoned", { code: "deadline" }, now);
      return;
    }
    const joining = current.phase === "joined" && now < manifest.join_until;
    if (!current.settled && (joining || current.phase === "uploading") && now >= current.sentAt + current.waitMs) this.resend(now);
    for (const fetch of this.fetches.values()) {
      const due = fetch.outstanding === 0 || now - fetch.askedAt >= fetch.waitMs;
      if (fetch.chunks.size < blobCount(fetch.ref) && due) this.ask(fetch, now);
    }
  }

  // -- messages -------------------------------------------------------------------------------------------------------

  private message(raw: Bytes, now: number): void {
    const theirs = versionOf(this.kit.trust, raw, "coordinator");
    if (theirs && theirs !== this.version) {
      this.world.tell("upgrade-required", { service: theirs, device: this.version });
      return;
    }
    const signed = openMessage(this.kit.trust, raw);
    const { from, to, task, round, type } = signed.head;
    require(from === "coordinator" && (to === "all" || to === `device/${this.kit.name}`), "message-misplaced");
    require(task === this.task, "task-unknown");
    if (type === "announcement") {
      this.announced(signed, now);
      return;
    }
    require(this.current?.round.number === round, "round-stale");
    if (type === "receipt") this.receipt(this.current, bodyOf(type, signed.payload), now);
    else if (type === "roster") this.roster(this.current, bodyOf(type, signed.payload), now);
    else if (type === "ask") this.asked(this.current, bodyOf(type, signed.payload), now);
    else if (type === "result" || type === "failure") this.over(this.current, type, bodyOf(type, signed.payload), now);
    else throw new Fault("message-misplaced");
  }

  private announced(signed: Signed, now: number): void {
    const number = signed.head.round;
    if (this.current?.round.number === number) return;
    require(number > Math.max(this.world.memory.spent, this.current?.round.number ?? 0), "round-stale");
    const round = openAnnouncement(this.kit.trust, signed);
    require(round.body.issued_at <= now + CLOCK_SKEW_MAX_MS, "clock-skew");
    require(now < round.body.join_until, "round-stale");
    require(round.task.body.threat.cohort_min >= this.cohortMin, "policy-floor");
    const { last, rest_until: rest } = this.world.memory;
    const wanted = eligible(round.task.body.eligibility, this.task, this.kit.name, number, round.body.issued_at, last, this.world.examples());
    const able = !["scaffold", "evaluate"].includes(round.task.body.algorithm.name); // this one only trains one vector
    if (!able || !wanted || now < rest) {
      this.world.tell("declined", { round: number, reason: !able ? "algorithm unknown here" : wanted ? "resting" : "not eligible" });
      return;
    }
    if (this.current) this.leave("round-abandoned", { code: "superseded" }, now);
    this.world.remember({ ...this.world.memory, spent: number });
    const secret = random(32);
    const join = { manifest: round.digest, certificate: this.kit.certificate, key: publicOf("X25519", secret) };
    const [raw, subject] = this.sign(round, "join", "coordinator", join);
    this.current = { round, phase: "joined", secret, raw, subject, settled: false, sentAt: 0, waitMs: 0 };
    this.resend(now);
    for (const ref of [round.body.model, round.task.body.plan]) this.fetch(ref, now);
    this.world.tell("joined", { round: number });
  }

  private receipt(current: Current, receipt: Body, now: number): void {
    require(equal(receipt.subject, current.subject), "receipt-foreign");
    if (receipt.status === "refused") {
      this.leave("round-abandoned", { code: receipt.code }, now);
    } else {
      current.settled ||= receipt.status === (current.phase === "joined" ? "held" : "complete");
      if (current.phase === "uploading" && current.settled) {
        current.phase = "uploaded";
        delete current.body;
        this.world.tell("uploaded", { round: current.round.number });
      }
    }
  }

  private roster(current: Current, roster: Body, now: number): void {
    if (current.phase !== "joined" || current.rosterHash) return;
    const proposal = openProposal(current.round, roster.proposal, roster.votes);
    current.rosterHash = proposal.roster;
    current.entries = proposal.body.entries as BlobRef;
    this.fetch(current.entries, now);
    this.advance(now);
  }

  private asked(current: Current, ask: Body, now: number): void {
    require(current.body && equal(ask.blob, blobId(current.body.ref)), "blob-unknown");
    this.push(current.body, missing(ask.have, current.body.chunks.length).slice(0, ask.window));
    current.sentAt = now;
  }

  private over(current: Current, type: string, body: Body, now: number): void {
    require(equal(body.manifest, current.round.digest), "manifest-differs");
    if (type === "result") this.leave("round-finished", { count: body.count }, now);
    else this.leave("round-abandoned", { code: body.code }, now);
  }

  private chunk(raw: Bytes, now: number): void {
    const { blob, index, data: sealed } = chunkOpen(raw);
    const fetch = this.fetches.get(Buffer.from(blob).toString("hex"));
    require(fetch, "chunk-unexpected");
    if (fetch.chunks.has(index)) return;
    const data = chunkUnseal(this.kit.broadcastKey, blob, index, sealed);
    chunkCheck(fetch.ref, { blob, index, data });
    fetch.chunks.set(index, data);
    fetch.outstanding = Math.max(0, fetch.outstanding - 1);
    fetch.waitMs = RESEND_MS;
    if (fetch.chunks.size < blobCount(fetch.ref)) return;
    this.world.listen(fetch.id, false);
    this.advance(now);
  }

  // -- the upload -----------------------------------------------------------------------------------------------------

  /** From joined to uploading, as soon as roster, entries, model and plan are here. */
  private advance(now: number): void {
    const { current } = this;
    if (!current?.entries || !current.rosterHash || current.phase !== "joined") return;
    const { round } = current;
    const [entries, model, plan] = [current.entries, round.body.model, round.task.body.plan].map((ref) => this.whole(ref));
    if (!entries || !model || !plan) return;
    let roster: Roster;
    try {
      roster = openRoster(round, entries, current.rosterHash);
      const index = roster.devices.indexOf(this.kit.name);
      require(index >= 0, "not-selected");
      require(equal(roster.keys[index], publicOf("X25519", current.secret)), "roster-key-differs");
      require(roster.survivorsMin >= this.cohortMin, "policy-floor");
    } catch (error) {
      if (!(error instanceof Fault)) throw error;
      this.leave("round-abandoned", { code: error.code }, now);
      return;
    }
    this.upload(current, roster, this.world.train(round.number, model, plan, round.task.body.training), now);
  }

  private upload(current: Current, roster: Roster, learnt: Update, now: number): void {
    const { round } = current;
    const { task } = round;
    const place = placeOf(round, roster);
    const index = roster.devices.indexOf(this.kit.name);
    const rows = task.segments.map((segment, i): (number | bigint)[] =>
      task.body.segments[i].codec === "exact" ? [learnt.weight, ...learnt.statistics]
        : quantise(learnt.update, learnt.weight, task.body.codec, round.body.rotation, segment, random(32)));
    rows.forEach((values, i) => require(values.length === task.segments[i].length, "update-wrong-shape"));
    const vector = fromSigned(task.segments, rows);
    this.world.inspect(round.number, learnt, pack(task.segments, vector));
    const [self, cap] = [task.selfSets.map(() => random(32)), task.capSets.map(() => random(32))];
    const made = upload(place, index, vector, current.secret, roster.keys, roster.neighbours[index], self, cap);
    const boxes = [...round.members].map(([party, { boxKey }]) => {
      const info = encode(["blindsum/1 box", round.digest, roster.digest, index, party]);
      return boxSeal(boxKey, info, boxContent(place, party, self, cap));
    });
    const size = task.body.plan.chunk_size;
    const body = { ref: blobRef(made.body, size), chunks: cut(made.body, size) };
    const header = {
      manifest: round.digest, roster: roster.digest, index, body: { ...body.ref }, commitments: made.commitments, boxes, edges: made.edges,
    };
    checkHeader(round, roster, header, this.kit.name);
    const [raw, subject] = this.sign(round, "header", "all", header);
    Object.assign(current, { phase: "uploading", secret: new Uint8Array(32), raw, subject, settled: false, sentAt: 0, waitMs: 0, body });
    this.fetches.clear();
    this.world.remember({ ...this.world.memory, last: { round: round.number, issued_at: round.body.issued_at } });
    this.resend(now);
    if (roster.devices.length <= PUSH_DEVICES_MAX) this.push(body, body.chunks.map((_, i) => i).slice(0, WINDOW));
    this.world.tell("uploading", { round: round.number, bytes: made.body.length + raw.length });
  }

  // -- helpers --------------------------------------------------------------------------------------------------------

  private sign(round: Round, type: string, to: string, body: Input): [Bytes, Bytes] {
    const head = { type, fleet: this.kit.trust.fleet, task: this.task, round: round.number, from: `device/${this.kit.name}`, to };
    return seal(this.kit.key, head, body, this.version);
  }

  private resend(now: number): void {
    const current = this.current!;
    current.waitMs = current.sentAt === 0 ? RESEND_MS : Math.min(2 * current.waitMs, RESEND_MAX_MS);
    current.sentAt = now;
    this.world.send(current.phase === "joined" ? "join" : "header", current.raw);
  }

  private push(body: { ref: BlobRef; chunks: Bytes[] }, indices: number[]): void {
    for (const index of indices) this.world.send("chunk", chunkMake(blobId(body.ref), index, body.chunks[index]));
  }

  private fetch(ref: BlobRef, now: number): void {
    const id = blobId(ref);
    const name = Buffer.from(id).toString("hex");
    if (this.fetches.has(name)) return;
    // the coordinator's chunks stand retained: all of them are on their way as soon as this device listens
    this.fetches.set(name, { ref, id, chunks: new Map(), outstanding: blobCount(ref), askedAt: now, waitMs: RESEND_MS });
    if (blobCount(ref)) this.world.listen(id, true);
  }

  private ask(fetch: Fetch, now: number): void {
    fetch.outstanding = Math.min(WINDOW, blobCount(fetch.ref) - fetch.chunks.size);
    fetch.askedAt = now;
    fetch.waitMs = Math.min(2 * fetch.waitMs, RESEND_MAX_MS);
    const ask = { blob: fetch.id, have: bits(fetch.chunks.keys(), blobCount(fetch.ref)), window: WINDOW };
    this.world.send("ask", this.sign(this.current!.round, "ask", "coordinator", ask)[0]);
  }

  private whole(ref: BlobRef): Bytes | undefined {
    const chunks = this.fetches.get(Buffer.from(blobId(ref)).toString("hex"))?.chunks;
    if (!chunks || chunks.size < blobCount(ref)) return undefined;
    return concat(...Array.from({ length: blobCount(ref) }, (_, i) => chunks.get(i)!));
  }

  private leave(event: string, data: Record<string, unknown>, now: number): void {
    const { number, task } = this.current!.round;
    if (this.world.memory.last.round < number) {
      const [least, most] = retryWindow(task.body.eligibility);
      this.world.remember({ ...this.world.memory, rest_until: now + least + Math.random() * (most - least) });
    }
    for (const fetch of this.fetches.values()) this.world.listen(fetch.id, false);
    this.fetches.clear();
    this.current = undefined;
    this.world.tell(event, { round: number, ...data });
  }
}
