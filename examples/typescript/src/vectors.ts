/** Checks every vector of the protocol against this implementation: `node dist/vectors.js FOLDER` (SPEC.md section 15). */

import { readdirSync, readFileSync } from "node:fs";
import { join, relative } from "node:path";
import { isDeepStrictEqual } from "node:util";
import * as agreements from "./agreements.js";
import { judge, survivors } from "./audit.js";
import * as blobs from "./blobs.js";
import { decode, encode, equal, type Input, type Value } from "./cbor.js";
import * as crypto from "./crypto.js";
import { eligible, placeOf as shareOf, retryWindow } from "./eligibility.js";
import { openMessage, seal, trustOpen } from "./envelope.js";
import { Fault, require } from "./fault.js";
import * as masks from "./masks.js";
import * as numbers from "./numbers.js";
import { BLOB, bodyOf, type Body } from "./schema.js";
import { checkCertificate } from "./x509.js";

type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

const segmentsOf = (given: Body): masks.Segment[] => given.segments.map(({ name, length, width }: masks.Segment) => ({ name, length, width }));

function placeOf(given: Body): masks.Place {
  const [parties, threshold, quorum, liars] = given.committee;
  numbers.committee(parties, threshold, quorum, liars);
  return new masks.Place(
    given.manifest, given.roster, given.suite, segmentsOf(given), masks.subsets(parties, threshold - 1), masks.subsets(parties, quorum - 1),
  );
}

function roundOf(given: Body, manifest: Uint8Array): agreements.Round {
  return agreements.openManifest(agreements.openTask(trustOpen(given.trust), given.task), manifest);
}

function agreed(given: Body) {
  const round = roundOf(given, given.manifest);
  const proposal = agreements.openProposal(round, given.proposal, given.votes);
  const { identities, entries } = agreements.openJoins(round, given.joins);
  agreements.entriesFollow(round, entries, proposal.body.entries);
  return { round, identities, entries, roster: agreements.openRoster(round, entries, proposal.roster) };
}

const KINDS: Record<string, (given: Body) => Record<string, unknown>> = {
  cbor: (given) => {
    const value = decode(given.bytes);
    require(equal(encode(value), given.bytes), "encodes to something else");
    return { value };
  },
  chunk: (given) => {
    const chunk = blobs.chunkOpen(given.bytes);
    if (given.ref) blobs.chunkCheck(given.ref, chunk);
    return { blob: chunk.blob, index: chunk.index, size: chunk.data.length, sha256: crypto.sha256(chunk.data) };
  },
  broadcast: ({ key, blob, index, data, sealed }) =>
    data ? { sealed: crypto.chunkSeal(key, blob, index, data) } : { data: crypto.chunkUnseal(key, blob, index, sealed) },
  blob: (given) => {
    const ref = given.data ? blobs.blobRef(given.data, given.chunk_size) : given.ref;
    require(BLOB(new Map(Object.entries(ref)) as Value), "message-malformed");
    return { ref, id: blobs.blobId(ref), count: blobs.blobCount(ref), sound: blobs.blobSound(ref) };
  },
  bitmap: ({ held, count }) => {
    const have = blobs.bits(held, count);
    return { have, missing: blobs.missing(have, count) };
  },
  trust: ({ bytes }) => {
    const trust = trustOpen(bytes);
    return { fleet: trust.fleet, parties: trust.parties.length, digest: trust.digest };
  },
  envelope: (given) => {
    const { head, digest } = openMessage(trustOpen(given.trust), given.bytes);
    return { head, digest };
  },
  message: (given) => {
    const [bytes, digest] = seal(given.seed, given.head, given.body);
    const signed = openMessage(trustOpen(given.trust), bytes);
    bodyOf(given.head.type, signed.payload);
    require(equal(signed.digest, digest), "another digest");
    return { bytes, digest };
  },
  digest: ({ label, parts }) => ({ digest: crypto.digest(label, ...parts) }),
  derive: ({ secret, label, context, size }) => ({ key: crypto.derive(secret, label, context, size) }),
  agree: (given) => ({ own: crypto.publicOf("X25519", given.private), shared: crypto.agree(given.private, given.public) }),
  box: (given) => ({ public: crypto.boxPublic(given.private), plain: crypto.boxOpen(given.private, given.info, given.box) }),
  certificate: ({ certificate, ca, now }) => ({ ...checkCertificate(certificate, ca, now) }),
  keystream: ({ suite, key, page, start, size }) => ({ bytes: crypto.keystream(suite, key, page, start, size) }),
  mask: (given) => {
    const segments = segmentsOf(given);
    const stream = masks.mask(given.suite, given.key, segments);
    const masked = (sign: 1 | -1) => masks.pack(segments, masks.add(masks.unpack(segments, given.vector), stream, sign));
    return { added: masked(1), subtracted: masked(-1) };
  },
  pack: (given) => ({ packed: masks.pack(segmentsOf(given), masks.fromSigned(segmentsOf(given), given.values)) }),
  sum: (given) => {
    const segments = segmentsOf(given);
    const total = masks.zeros(segments);
    for (const [sign, packed] of given.terms) masks.add(total, masks.unpack(segments, packed), sign);
    return { packed: masks.pack(segments, total), values: total.map((lane, i) => masks.toSigned(segments[i].width, lane)) };
  },
  subsets: ({ parties, size }) => {
    const sets = masks.subsets(parties, size);
    return { subsets: sets, held: Array.from({ length: parties }, (_, i) => masks.held(i + 1, sets)) };
  },
  graph: ({ devices, degree, seed }) => ({ neighbours: masks.graph(devices, degree, seed) }),
  upload: (given) => {
    const [place, vector] = [placeOf(given), masks.unpack(segmentsOf(given), given.vector)];
    const neighbours = masks.graph(given.keys.length, given.degree, given.roster)[given.index];
    const { self_seeds: self, cap_seeds: cap } = given;
    const { body, commitments, edges } = masks.upload(place, given.index, vector, given.private, given.keys, neighbours, self, cap);
    return { body, commitments, edges, contents: given.members.map((party: number) => masks.boxContent(place, party, self, cap)) };
  },
  round: (given) => {
    const place = placeOf(given);
    let at = 0;
    const draw = (size: number) => given.random.slice(at, (at += size));
    const vectors = given.vectors.map((vector: Uint8Array) => masks.unpack(place.segments, vector));
    const done = masks.wholeRound(place, vectors, given.survivors, given.degree, draw);
    const sum = masks.zeros(place.segments);
    for (const u of given.survivors) masks.add(sum, masks.unpack(place.segments, given.vectors[u]));
    require(equal(masks.pack(place.segments, sum), done.total), "masks do not cancel");
    return done;
  },
  survivors: ({ bytes, devices }) => ({ survivors: [...survivors(bytes, devices)] }),
  transcript: (given) => {
    const records: [string, Uint8Array][] = given.records.map((record: [string, Uint8Array]) => [...record]);
    for (const [name, place, data] of given.replace ?? []) records.filter(([other]) => other === name)[place][1] = data;
    return { faults: judge(trustOpen(given.trust), [...records, ...(given.add ?? [])]) };
  },
  task: (given) => {
    const task = agreements.openTask(trustOpen(given.trust), given.bytes);
    const counts = { self_subsets: task.selfSets.length, cap_subsets: task.capSets.length };
    return { digest: task.digest, ...counts, packed_size: masks.packedSize(task.segments) };
  },
  manifest: (given) => {
    const round = roundOf(given, given.bytes);
    return { digest: round.digest, round: round.number, members: [...round.members.keys()] };
  },
  join: (given) => {
    const { device, identity, signed } = agreements.openJoin(roundOf(given, given.manifest), given.bytes);
    return { device, identity, key: signed.body.key, digest: signed.digest };
  },
  roster: (given) => {
    const { roster, entries } = agreed(given);
    return { roster: roster.digest, entries, neighbours: roster.neighbours, survivors_min: roster.survivorsMin };
  },
  header: (given) => {
    const { round, identities, roster } = agreed(given);
    const signed = openMessage(round.task.trust, given.bytes);
    const body = bodyOf("header", signed.payload);
    require(signed.head.from === `device/${roster.devices[body.index]}`, "header-foreign");
    require(crypto.verified(identities[body.index], signed.signature, signed.tbs), "signature-invalid");
    agreements.checkHeader(round, roster, body, signed.head.from);
    return { index: body.index, digest: signed.digest };
  },
  committee: (given) => {
    const [parties, threshold, quorum, liars] = given.committee;
    numbers.committee(parties, threshold, quorum, liars);
    return { self_subsets: masks.subsets(parties, threshold - 1).length, cap_subsets: masks.subsets(parties, quorum - 1).length };
  },
  degree: ({ devices, corrupt_permille: corrupt, dropped_permille: dropped, cohort_min: cohort }) => {
    require(corrupt + dropped < 1000 && cohort >= 2, "parameters-unsafe");
    const least = numbers.survivorsMin(devices, corrupt, dropped, cohort);
    return { degree: numbers.degree(devices, corrupt, dropped), survivors_min: least };
  },
  bits: ({ width, devices_max: devices, weight_max: weight }) => ({ bits: numbers.bits(width, devices, weight) }),
  quantise: (given) => {
    const update = numbers.singles(given.update);
    return { levels: numbers.quantise(update, given.weight, given as numbers.Codec, given.rotation, given.segment, given.key) };
  },
  rotate: ({ vector, seed }) => {
    const rotated = numbers.rotate(numbers.singles(vector), seed);
    return { rotated: numbers.packedSingles(rotated), restored: numbers.packedSingles(numbers.unrotate(rotated, seed)) };
  },
  advance: (given) => {
    const codecs = given.segments.map((segment: Body) => segment.codec);
    const algorithm = { ...given, name: given.algorithm };
    const made = [given.model, given.state, given.total, segmentsOf(given), codecs, given, algorithm, given.rotation] as const;
    return { ...numbers.advance(...(made as unknown as Parameters<typeof numbers.advance>)) };
  },
  eligibility: ({ criteria, task, device, round, issued_at: issuedAt, last, examples }) => ({
    eligible: eligible(criteria, task, device, round, issuedAt, last, examples), place: shareOf(task, device),
    retry_ms: retryWindow(criteria),
  }),
};

function fromJson(value: Json): unknown {
  if (Array.isArray(value)) return value.map(fromJson);
  if (value === null || typeof value !== "object") return value;
  if ("$hex" in value) return new Uint8Array(Buffer.concat([Buffer.from(value.$hex as string, "hex"), Buffer.alloc((value.$zeros as number) ?? 0)]));
  if ("$int" in value) return BigInt(value.$int as string);
  if ("$map" in value) return new Map((value.$map as [Json, Json][]).map(([key, item]) => [fromJson(key), fromJson(item)] as [Input, Input]));
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, fromJson(item)]));
}

/** Bytes, integers and maps in one form, whatever class holds them. */
function normal(value: unknown): unknown {
  if (value instanceof Uint8Array) return `$${Buffer.from(value).toString("hex")}`;
  if (Array.isArray(value)) return value.map(normal);
  if (value instanceof Map && ![...value.keys()].every((key) => typeof key === "string")) return { map: [...value].map(normal) };
  const entries = value instanceof Map ? [...value] : value !== null && typeof value === "object" ? Object.entries(value) : undefined;
  return entries ? Object.fromEntries(entries.map(([key, item]) => [key as string, normal(item)])) : value;
}

/** What is wrong with a case, or "". */
function wrong(document: { kind: string; shared?: Json }, one: { in: Json; out?: Json; error?: string }): string {
  const given = { ...(fromJson(document.shared ?? {}) as Body), ...(fromJson(one.in) as Body) };
  let out: Record<string, unknown>;
  try {
    out = KINDS[document.kind](given);
  } catch (error) {
    if (!(error instanceof Fault)) return String((error as Error).stack);
    return error.code === one.error ? "" : `${error.code} where the vector says ${one.error ?? "success"}`;
  }
  if (one.error !== undefined) return `accepted where the vector says ${one.error}`;
  const [mine, theirs] = [normal(out), normal(fromJson(one.out!))] as Body[];
  const names = [...new Set([...Object.keys(mine), ...Object.keys(theirs)])];
  const differ = names.filter((name) => !isDeepStrictEqual(mine[name], theirs[name]));
  return differ.length ? `other ${differ.join(", ")}` : "";
}

/** Rounds without a roster (SPEC.md section 5.8), which this device takes no part in, and records of failed ones (10.1), which it
 * does not judge. */
const OTHERS = ["no-roster", "failed"];

function* files(folder: string): Generator<string> {
  for (const entry of readdirSync(folder, { withFileTypes: true }).sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const path = join(folder, entry.name);
    if (entry.isDirectory() && OTHERS.includes(entry.name)) continue;
    if (entry.isDirectory()) yield* files(path);
    else if (entry.name.endsWith(".json")) yield path;
  }
}

const folder = process.argv[2];
if (folder === undefined) throw new Error("node dist/vectors.js FOLDER");
let [count, cases, bad] = [0, 0, 0];
for (const path of files(folder)) {
  const document = JSON.parse(readFileSync(path, "utf8"));
  const found = document.cases.map((one: Body) => [one.name, wrong(document, one as { in: Json })]).filter(([, problem]: string[]) => problem);
  count++;
  cases += document.cases.length;
  bad += found.length;
  for (const [name, problem] of found) console.log(`${relative(folder, path)} ${name}: ${problem}`);
}
console.log(`${count} files, ${cases} cases, ${bad} mismatches`);
process.exitCode = bad || !cases ? 1 : 0;
