/** Who lied in a round, from its transcript (SPEC.md section 10). */

import { checkHeader, entriesFollow, openJoins, openManifest, openProposal, openRoster, openTask, placeOf, quorumOfVotes, as, type Roster, type Round } from "./agreements.js";
import { blobId, blobRef, sameBlob, type BlobRef } from "./blobs.js";
import { decode, equal, type Bytes } from "./cbor.js";
import { digest, sha256, verified } from "./crypto.js";
import { isAt, openInner, openMessage, partyOf, sameMessage, trustOpen, type Signed, type Trust } from "./envelope.js";
import { Fault, require } from "./fault.js";
import { add, held, pack, packedSize, unpack, xor, zeros, type Place, type Vector } from "./masks.js";
import { advance, dropped } from "./numbers.js";
import { bodyOf, OPENING_CONTENT, plain, type Body } from "./schema.js";

const KEEPER = "coordinator";
const MALFORMED = "transcript-malformed";
const ONCE = ["trust", "announcement", "roster", "joins", "certificate", "survivors", "result", "sum", "model", "state", "next"];
const MANY = ["rollback", "header", "body", "opening", "content", "check", "evidence"];
const TWICE: Record<string, [string, string[]]> = {
  offer: ["second-offer", []], vote: ["second-vote", ["decides"]], manifest: ["second-manifest", []],
  "roster-proposal": ["second-roster", []], header: ["second-header", []], proposal: ["second-set", []],
  opening: ["second-opening", ["part"]], join: ["second-join", []], roster: ["second-roster", []], result: ["second-result", []],
  failure: ["failure-differs", []],
};

type Story = { secret: Bytes; liars: Set<number> };
const hexOf = (bytes: Bytes) => Buffer.from(bytes).toString("hex");

/** All faults of a transcript as [principal, code], in the order found. */
export function judge(trust: Trust, records: [string, Bytes][]): [string, string][] {
  const audit = new Audit(trust);
  try {
    audit.take(records);
    audit.run();
  } catch (error) {
    if (!(error instanceof Fault)) throw error;
    audit.blame(error.culprit || KEEPER, error.code);
  }
  return audit.faults;
}

class Audit {
  readonly faults: [string, string][] = [];
  private readonly records = new Map<string, Bytes[]>([...ONCE, ...MANY].map((name) => [name, []]));
  private round!: Round;
  private identities!: Bytes[];
  private roster!: Roster;
  private place!: Place;
  private proposal!: Bytes;
  private survivors!: Map<number, Bytes>;
  private headers = new Map<number, Body>();
  private contents = new Map<number, Body[]>();
  private opened: [number, Bytes][] = [];
  private sum!: Vector;

  constructor(private trust: Trust) {}

  take(records: [string, Bytes][]): void {
    for (const [name, data] of records) {
      require(this.records.has(name), MALFORMED);
      this.records.get(name)!.push(data);
    }
    require(ONCE.every((name) => this.records.get(name)!.length === 1), MALFORMED);
    require(this.records.get("rollback")!.length <= 1, MALFORMED);
  }

  /** Raises where what follows cannot be judged. */
  run(): void {
    const found = as(MALFORMED, () => trustOpen(this.one("trust")));
    require(equal(found.digest, this.trust.digest), "trust-differs", KEEPER);
    this.agreements();
    this.checks();
    this.evidence();
    this.certificate();
    this.uploads();
    this.openings();
    this.total();
    this.result();
  }

  blame(principal: string, code: string): void {
    if (!this.faults.some(([who, what]) => who === principal && what === code)) this.faults.push([principal, code]);
  }

  private agreements(): void {
    const announced = this.own("announcement", false).body;
    const task = openTask(this.trust, announced.task);
    this.round = openManifest(task, announced.manifest);
    this.trust = this.round.task.trust; // with the keys that the offers show
    quorumOfVotes(this.round, announced.votes, "manifest", this.round.digest);
    for (const raw of this.records.get("rollback")!) this.rollback(raw);
    const { proposal: raw, votes } = this.own("roster").body;
    const { body, roster } = openProposal(this.round, raw, votes);
    const { identities, entries } = openJoins(this.round, this.blob("joins", body.joins));
    this.identities = identities;
    entriesFollow(this.round, entries, body.entries);
    this.roster = openRoster(this.round, entries, roster);
    this.place = placeOf(this.round, this.roster);
    this.sum = zeros(task.segments);
  }

  /** What the operator went back to is what the round started from. */
  private rollback(raw: Bytes): void {
    const { head, payload, digest } = openMessage(this.trust, raw), { task, body: manifest } = this.round;
    require(head.type === "rollback" && head.task === task.name, "message-misplaced", KEEPER);
    const body = bodyOf("rollback", payload), first = task.body.model;
    const same = equal(digest, manifest.previous) && equal(body.task, task.digest) && sameBlob(body.model, manifest.model) &&
      equal(manifest.state, task.firstState) && body.model.size === first.size && body.model.chunk_size === first.chunk_size;
    if (!same) this.blame(KEEPER, "rollback-differs");
  }

  private checks(): void {
    const told = new Map<number, Map<number, string>>();
    for (const raw of this.records.get("check")!) {
      const signed = openInner(this.trust, raw, this.at("check"));
      require(!told.has(partyOf(signed)) && this.round.members.has(partyOf(signed)), MALFORMED, KEEPER);
      told.set(partyOf(signed), new Map(signed.body.bad));
    }
    const parties = [...told.keys()].sort((a, b) => a - b);
    this.roster.devices.forEach((device, index) => {
      const codes = parties.flatMap((party) => told.get(party)!.get(index) ?? []);
      if (codes.length >= this.round.task.body.threat.threshold) this.blame(`device/${device}`, codes[0]);
    });
  }

  private evidence(): void {
    for (const data of this.records.get("evidence")!) {
      const { culprit, code } = as(MALFORMED, () => {
        const pair = decode(data);
        require(Array.isArray(pair) && pair.length === 2 && pair.every((raw) => raw instanceof Uint8Array), MALFORMED);
        const [first, second] = (pair as Bytes[]).map((raw) => openMessage(this.trust, raw));
        const from = first.head.from;
        if (from.startsWith("device/")) {
          const key = this.identities[this.roster.devices.indexOf(from.slice(7))];
          require(key && [first, second].every((one) => verified(key, one.signature, one.tbs)), MALFORMED);
        }
        const here = first.head.task === this.round.task.name && first.head.round === this.round.number;
        return { culprit: from, code: here ? contradiction(first, second) : "" };
      });
      require(code, MALFORMED, KEEPER);
      this.blame(culprit, code);
    }
  }

  private certificate(): void {
    const { proposal: raw, votes } = this.own("certificate").body;
    const proposal = openInner(this.trust, raw, this.at("proposal"));
    quorumOfVotes(this.round, votes, "set", proposal.digest);
    if (!equal(proposal.body.roster, this.roster.digest)) this.blame(KEEPER, "roster-differs");
    this.proposal = proposal.digest;
    this.survivors = survivors(this.blob("survivors", proposal.body.survivors), this.roster.devices.length);
    if (this.survivors.size < this.roster.survivorsMin) this.blame(KEEPER, "survivors-too-few");
  }

  private uploads(): void {
    const [raws, bodies] = [this.records.get("header")!, this.records.get("body")!];
    require(raws.length === bodies.length && raws.length === this.survivors.size, MALFORMED, KEEPER);
    [...this.survivors].forEach(([index, wanted], i) => {
      const device = `device/${this.roster.devices[index]}`;
      let signed: Signed & { body: Body };
      try {
        signed = openInner(this.trust, raws[i], this.at("header"));
      } catch (error) {
        throw error instanceof Fault ? new Fault(error.code, KEEPER) : error;
      }
      const mine = signed.head.from === device && equal(signed.digest, wanted);
      require(mine && verified(this.identities[index], signed.signature, signed.tbs), "signature-invalid", KEEPER);
      checkHeader(this.round, this.roster, signed.body, device);
      require(signed.body.index === index, "header-foreign", device);
      require(sameBlob(blobRef(bodies[i], signed.body.body.chunk_size), signed.body.body), "upload-altered", KEEPER);
      this.headers.set(index, signed.body);
      add(this.sum, unpack(this.place.segments, bodies[i]));
    });
  }

  private openings(): void {
    const [raws, plains] = [this.records.get("opening")!, this.records.get("content")!];
    require(raws.length === plains.length, MALFORMED, KEEPER);
    raws.forEach((raw, i) => {
      const signed = openInner(this.trust, raw, this.at("opening"));
      const party = partyOf(signed);
      const parts = this.contents.get(party) ?? [];
      this.contents.set(party, parts);
      const here = equal(signed.body.proposal, this.proposal) && signed.body.part === parts.length;
      require(here && this.round.members.has(party), "opening-foreign", signed.head.from);
      require(equal(sha256(plains[i]), signed.body.plain), "opening-altered", KEEPER);
      try {
        const content = decode(plains[i]);
        require(OPENING_CONTENT(content), "opening-malformed");
        parts.push(plain(content) as Body);
      } catch (error) {
        throw error instanceof Fault ? new Fault("opening-malformed", signed.head.from) : error;
      }
      this.opened.push([party, signed.body.plain]);
    });
  }

  /** Section 7.5. */
  private total(): void {
    const edges = [...this.survivors.keys()].flatMap((u) =>
      this.roster.neighbours[u].filter((v) => !this.survivors.has(v)).map((v) => [u, v] as const));
    const sound = new Map([...this.contents].filter(([party, parts]) => this.sound(party, parts, edges.length)));
    const hopeless = { code: "" };
    const vectors = this.selfSums(sound, hopeless);
    const secrets = this.edgeSecrets(sound, edges, hopeless);
    require(vectors && secrets, hopeless.code || "openings-too-few", KEEPER);
    for (const vector of vectors) add(this.sum, unpack(this.place.segments, vector), -1);
    edges.forEach(([u, v], i) => add(this.sum, this.place.edgeMask(secrets[i]), u < v ? -1 : 1));
    if (!equal(pack(this.place.segments, this.sum), this.one("sum"))) this.blame(KEEPER, "sum-differs");
  }

  private sound(party: number, parts: Body[], edges: number): boolean {
    const [first] = parts;
    const hashes = new Map<number, Bytes>(first.hashes);
    const due = held(party, this.place.selfSets);
    const fine =
      first.hashes.length === due.length && due.every((subset, i) => first.hashes[i][0] === subset) &&
      first.shares.length === 32 * held(party, this.place.capSets).length * edges &&
      parts.flatMap((part) => part.vectors).every(([subset, vector]: [number, Bytes]) =>
        vector.length === packedSize(this.place.segments) && hashes.has(subset) && equal(sha256(vector), hashes.get(subset)!));
    if (!fine) this.blame(`party/${party}`, "opening-malformed");
    return fine;
  }

  private selfSums(contents: Map<number, Body[]>, hopeless: { code: string }): Bytes[] | undefined {
    const found = this.place.selfSets.flatMap((outside, subset) => {
      const able = [...this.round.members.keys()].filter((party) => !outside.includes(party));
      const hashes = [...contents].filter(([party]) => able.includes(party))
        .map(([party, parts]) => [party, hexOf(new Map<number, Bytes>(parts[0].hashes).get(subset)!)] as const);
      const counts = new Map<string, number>();
      for (const [, hash] of hashes) counts.set(hash, (counts.get(hash) ?? 0) + 1);
      const [best, count] = [...counts].reduce((a, b) => (b[1] > a[1] ? b : a), ["", 0]);
      if (count < this.round.task.body.threat.threshold) {
        if (able.every((party) => contents.has(party))) hopeless.code = "openings-disagree";
        return [];
      }
      for (const [party, hash] of hashes) if (hash !== best) this.blame(`party/${party}`, "opening-differs");
      const vouching = hashes.filter(([, hash]) => hash === best).map(([party]) => party);
      const gave = (part: Body) => part.vectors.filter(([number]: [number]) => number === subset);
      const designated = able[(this.round.number + subset) % able.length];
      if (vouching.includes(designated) && !gave(contents.get(designated)![0]).length) {
        this.blame(`party/${designated}`, "opening-malformed");
      }
      const sent: [number, Bytes][] = vouching.flatMap((party) => contents.get(party)!.flatMap((part) => gave(part)));
      return sent.slice(0, 1).map(([, vector]) => vector);
    });
    return found.length === this.place.selfSets.length ? found : undefined;
  }

  private edgeSecrets(contents: Map<number, Body[]>, edges: (readonly [number, number])[], hopeless: { code: string }): Bytes[] | undefined {
    const rows = this.place.capSets.map(() => new Map<number, Bytes>());
    for (const [party, parts] of contents) {
      held(party, this.place.capSets).forEach((subset, i) => {
        rows[subset].set(party, parts[0].shares.slice(32 * edges.length * i, 32 * edges.length * (i + 1)));
      });
    }
    if (edges.length && rows.some((row) => row.size === 0)) return undefined;
    const { parties, quorum, malicious_parties: liarsMax, corrupt_permille } = this.round.task.body.threat;
    const secrets: Bytes[] = [];
    const heard = new Set<number>();
    const witnesses = new Map<number, number>();
    let liars = new Set<number>();
    for (const [number, [u, v]] of edges.entries()) {
      const at = 48 * this.roster.neighbours[u].indexOf(v);
      const entry: Bytes = this.headers.get(u)!.edges.slice(at, at + 48);
      const given = rows.map((row) => new Map([...row].map(([party, shares]) => [party, shares.slice(32 * number, 32 * number + 32)])));
      const stories = this.stories(entry.slice(0, 32), entry.slice(32), given, liars, liarsMax);
      if (!stories.length) {
        if (contents.size === this.round.members.size) {
          hopeless.code = "edge-false";
          if (contents.size === parties && parties >= quorum + liarsMax) this.blame(`device/${this.roster.devices[u]}`, "edge-false");
        }
        return undefined;
      }
      ({ liars } = stories[0]);
      secrets.push(stories[0].secret);
      if (liars.size && !heard.has(u)) {
        heard.add(u);
        const always = [...liars].filter((party) => stories.every((story) => story.liars.has(party)));
        for (const party of always) witnesses.set(party, (witnesses.get(party) ?? 0) + 1);
      }
    }
    const corrupt = dropped(this.roster.devices.length, corrupt_permille);
    for (const [party, count] of [...witnesses].sort(([a], [b]) => a - b)) {
      if (count > corrupt) this.blame(`party/${party}`, "edge-share-differs");
    }
    return secrets;
  }

  /** Every explanation of what was given, `before` first, then from few liars to many. */
  private stories(cap: Bytes, check: Bytes, given: Map<number, Bytes>[], before: Set<number>, most: number): Story[] {
    const parties = [...new Set(given.flatMap((row) => [...row.keys()]))].sort((a, b) => a - b);
    const sets = Array.from({ length: most + 1 }, (_, size) => choose(parties, size)).flat().map((some) => new Set(some));
    return [before, ...sets].flatMap((liars) => {
      const rows = given.map((row) => {
        const rest = [...row].filter(([party]) => !liars.has(party)).map(([, share]) => share);
        return rest.length ? rest : [...row.values()];
      });
      if (!rows.every((shares) => shares.every((share) => equal(share, shares[0])))) return [];
      const secret = xor(cap, ...rows.map(([share]) => share));
      return equal(this.place.edgeCheck(secret), check) ? [{ secret, liars }] : [];
    });
  }

  private result(): void {
    const { body } = this.own("result");
    const manifest = this.round.body;
    const same =
      equal(body.manifest, this.round.digest) && equal(body.roster, this.roster.digest) && equal(body.proposal, this.proposal) &&
      body.count === this.survivors.size && equal(body.previous, manifest.previous) && equal(body.rotation, manifest.rotation);
    const names = (rows: [number, Bytes][]) => rows.map(([party, hash]) => `${String(party).padStart(2, "0")} ${hexOf(hash)}`).sort().join();
    if (!same || names(body.openings) !== names(this.opened)) this.blame(KEEPER, "result-differs");
    const total = this.blob("sum", body.sum);
    const [model, next] = [this.blob("model", manifest.model), this.blob("next", body.model)];
    const { task } = this.round;
    const codecs = task.body.segments.map((segment: Body) => segment.codec);
    const idOf = (data: Bytes) => blobId(blobRef(data, task.body.plan.chunk_size));
    const state = this.one("state");
    require(equal(idOf(state), manifest.state), "blob-altered", KEEPER);
    const made = advance(model, state, total, task.segments, codecs, task.body.codec, task.body.algorithm, manifest.rotation);
    if (!equal(made.model, next) || !equal(idOf(made.state), body.state)) this.blame(KEEPER, "model-differs");
  }

  private at(type: string) {
    return { type, task: this.round.task.name, round: this.round.number };
  }

  private one(name: string): Bytes {
    return this.records.get(name)![0];
  }

  /** The coordinator's message in record `type`; `here`: of this round. */
  private own(type: string, here = true): Signed & { body: Body } {
    let signed: Signed;
    try {
      signed = openMessage(this.trust, this.one(type));
    } catch (error) {
      throw error instanceof Fault ? new Fault(error.code, KEEPER) : error;
    }
    require(signed.head.type === type && (!here || isAt(signed, this.at(type))), "message-misplaced", KEEPER);
    return { ...signed, body: bodyOf(type, signed.payload) };
  }

  private blob(name: string, ref: BlobRef): Bytes {
    require(sameBlob(blobRef(this.one(name), ref.chunk_size), ref), "blob-altered", KEEPER);
    return this.one(name);
  }
}

function choose(items: number[], size: number): number[][] {
  if (size === 0) return [[]];
  return items.flatMap((item, i) => choose(items.slice(i + 1), size - 1).map((rest) => [item, ...rest]));
}

/** The code of what is wrong with signing both, or "" (section 10.2). */
function contradiction(first: Signed, second: Signed): string {
  const [a, b] = [first, second].map((one) => bodyOf(one.head.type, one.payload));
  const [one, other] = [first.head.type, second.head.type];
  if (first.head.from !== second.head.from || first.head.task !== second.head.task || sameMessage(first, second)) return "";
  if (one === "result" && other === "result" && equal(a.previous, b.previous)) return "second-result";
  if (first.head.round !== second.head.round) return "";
  if (one === other) {
    const [code, question] = TWICE[one] ?? ["", []];
    const same = (name: string) => (a[name] instanceof Uint8Array ? equal(a[name], b[name]) : a[name] === b[name]);
    return question.every(same) ? code : "";
  }
  if (one === "offer" && other === "vote" && b.decides === "roster") {
    const made = digest("beacon", first.head.task, first.head.round, partyOf(first), b.beacon);
    return equal(made, a.beacon_commitment) ? "" : "beacon-differs";
  }
  if (one === "vote" && other === "opening" && a.decides === "set") return equal(b.proposal, a.digest) ? "" : "opening-foreign";
  if (one === "join" && other === "header") return equal(b.manifest, a.manifest) ? "" : "header-foreign";
  if (one === "failure" && other === "result") return "failure-differs";
  const named = other === "result" && (one === "manifest" || one === "proposal");
  return named && !equal(b[one], first.digest) ? "result-differs" : "";
}

/** The header digest by index of a packed survivor set. */
export function survivors(data: Bytes, devices: number): Map<number, Bytes> {
  return as("survivors-malformed", () => {
    const value = decode(data);
    require(Array.isArray(value) && value.length <= devices, "survivors-malformed");
    let last = -1;
    return new Map(value.map((row): [number, Bytes] => {
      require(Array.isArray(row) && row.length === 2, "survivors-malformed");
      const [index, wanted] = row;
      require(typeof index === "number" && last < index && index < devices, "survivors-malformed");
      require(wanted instanceof Uint8Array && wanted.length === 32, "survivors-malformed");
      last = index;
      return [index, wanted];
    }));
  });
}

