/** Rings, masks, subsets, the graph, and what a device uploads (SPEC.md sections 2, 7.1 and 7.2). Little-endian machines only. */

import { concat, type Bytes } from "./cbor.js";
import { agree, derive, digest, keystream, PAGE_SIZE, publicOf, STREAM_KEY_SIZE, type Suite } from "./crypto.js";
import { require } from "./fault.js";

export interface Segment {
  name: string;
  length: number;
  width: 16 | 24 | 32 | 64;
}
/** Values modulo 2^w; 24-bit values are computed modulo 2^32. */
export type Lane = Uint16Array | Uint32Array | BigUint64Array;
export type Vector = Lane[];

const VALUE_SIZE = { 16: 2, 24: 4, 32: 4, 64: 8 } as const;
const EXTRA_CYCLES_MAX = 1023;

// -- ring -------------------------------------------------------------------------------------------------------------

export function packedSize(segments: Segment[]): number {
  return segments.reduce((total, { length, width }) => total + (length * width) / 8, 0);
}

/** The lane of raw little-endian bytes. */
function lane(width: Segment["width"], bytes: Bytes): Lane {
  const own = bytes.slice(); // a copy of its own begins at an aligned address
  if (width === 16) return new Uint16Array(own.buffer);
  return width === 64 ? new BigUint64Array(own.buffer) : new Uint32Array(own.buffer);
}

function bytesOf(one: Lane): Bytes {
  return new Uint8Array(one.buffer, one.byteOffset, one.byteLength).slice();
}

export function zeros(segments: Segment[]): Vector {
  return segments.map(({ length, width }) => lane(width, new Uint8Array(length * VALUE_SIZE[width])));
}

/** Signed integers as ring elements. */
export function fromSigned(segments: Segment[], rows: (number | bigint)[][]): Vector {
  const out = zeros(segments);
  rows.forEach((values, i) => values.forEach((value, j) => {
    const reduced = BigInt.asUintN(segments[i].width, BigInt(value));
    out[i][j] = segments[i].width === 64 ? reduced : Number(reduced);
  }));
  return out;
}

/** The signed values of one lane. */
export function toSigned(width: Segment["width"], one: Lane): (number | bigint)[] {
  return Array.from(one as Uint32Array, (value: number | bigint) => {
    const signed = BigInt.asIntN(width, BigInt(value));
    return Number.isSafeInteger(Number(signed)) ? Number(signed) : signed;
  });
}

export function pack(segments: Segment[], vector: Vector): Bytes {
  return concat(...vector.map((one, i) => {
    if (segments[i].width !== 24) return bytesOf(one);
    const low = Uint16Array.from(one as Uint32Array, (value) => value & 0xffff);
    const high = Uint8Array.from(one as Uint32Array, (value) => (value >>> 16) & 0xff);
    return concat(bytesOf(low), high);
  }));
}

export function unpack(segments: Segment[], data: Bytes): Vector {
  require(data.length === packedSize(segments), "update-wrong-shape");
  let at = 0;
  return segments.map(({ length, width }) => {
    const part = data.slice(at, (at += (length * width) / 8));
    if (width !== 24) return lane(width, part);
    const low = new Uint16Array(part.slice(0, 2 * length).buffer);
    return Uint32Array.from(low, (value, i) => value | (part[2 * length + i] << 16));
  });
}

/** Adds `other` to `vector` in place, or takes it away; typed arrays wrap by themselves. */
export function add(vector: Vector, other: Vector, sign: 1 | -1 = 1): Vector {
  vector.forEach((one, i) => {
    if (one instanceof BigUint64Array) {
      const two = other[i] as BigUint64Array;
      for (let j = 0; j < one.length; j++) one[j] += sign === 1 ? two[j] : -two[j];
    } else {
      const two = other[i] as Uint32Array;
      for (let j = 0; j < one.length; j++) one[j] += sign === 1 ? two[j] : -two[j];
    }
  });
  return vector;
}

/** `PRG(stream key)` of section 2.2. */
export function mask(suite: Suite, streamKey: Bytes, segments: Segment[]): Vector {
  let page = 0;
  return segments.map(({ length, width }) => {
    const size = length * VALUE_SIZE[width];
    const parts: Bytes[] = [];
    for (let at = 0; at < size; at += PAGE_SIZE) parts.push(keystream(suite, streamKey, page++, 0, Math.min(PAGE_SIZE, size - at)));
    return lane(width, concat(...parts));
  });
}

export function xor(first: Bytes, ...others: Bytes[]): Bytes {
  return others.reduce((total, other) => total.map((byte, i) => byte ^ other[i]), first);
}

// -- subsets and graph ------------------------------------------------------------------------------------------------

export function subsets(parties: number, size: number, from = 1): number[][] {
  if (size === 0) return [[]];
  const out: number[][] = [];
  for (let first = from; first <= parties; first++) {
    for (const rest of subsets(parties, size - 1, first + 1)) out.push([first, ...rest]);
  }
  return out;
}

/** The numbers of the subsets whose secrets a party holds. */
export function held(party: number, sets: number[][]): number[] {
  return sets.flatMap((outside, number) => (outside.includes(party) ? [] : [number]));
}

/** The neighbours of every device, ascending (section 2.4). */
export function graph(n: number, degree: number, seed: Bytes): number[][] {
  const everyone = Array.from({ length: n }, (_, u) => u);
  const complete = () => everyone.map((u) => everyone.filter((v) => v !== u));
  if (n <= degree + 1) return complete();
  const found = everyone.map(() => new Set<number>());
  const least = Math.ceil(degree / 2);
  for (let cycle = 0; cycle < least + EXTRA_CYCLES_MAX; cycle++) {
    const key = derive(seed, "graph cycle", [cycle], 24);
    const keys = mask("aes128-ctr", key, [{ name: "", length: n, width: 64 }])[0] as BigUint64Array;
    const order = [...everyone].sort((a, b) => (keys[a] < keys[b] ? -1 : keys[a] > keys[b] ? 1 : a - b));
    order.forEach((a, i) => {
      const b = order[(i + 1) % n];
      found[a].add(b);
      found[b].add(a);
    });
    if (cycle + 1 >= least && found.every((some) => some.size >= degree)) {
      return found.map((some) => [...some].sort((a, b) => a - b));
    }
  }
  return complete();
}

// -- one round --------------------------------------------------------------------------------------------------------

/** What every key of a round depends on. */
export class Place {
  constructor(
    readonly manifest: Bytes, readonly roster: Bytes, readonly suite: Suite, readonly segments: Segment[],
    readonly selfSets: number[][], readonly capSets: number[][],
  ) {}

  selfMask(index: number, subset: number, seed: Bytes): Vector {
    const key = derive(seed, "self", [this.manifest, this.roster, index, subset], STREAM_KEY_SIZE[this.suite]);
    return mask(this.suite, key, this.segments);
  }

  edgeSecret(secret: Bytes, key: Bytes, u: number, v: number): Bytes {
    return derive(agree(secret, key), "edge", [this.manifest, this.roster, Math.min(u, v), Math.max(u, v)]);
  }

  edgeMask(secret: Bytes): Vector {
    return mask(this.suite, derive(secret, "edge-mask", [this.manifest], STREAM_KEY_SIZE[this.suite]), this.segments);
  }

  edgeCheck(secret: Bytes): Bytes {
    return digest("edge-check", this.manifest, secret).slice(0, 16);
  }

  pad(u: number, v: number, subset: number, seed: Bytes): Bytes {
    return derive(seed, "cap", [this.manifest, this.roster, u, v, subset]);
  }

  commitment(index: number, layer: "self" | "cap", subset: number, seed: Bytes): Bytes {
    return digest("commit", this.manifest, this.roster, index, layer, subset, seed);
  }
}

export interface Upload {
  body: Bytes;
  commitments: Bytes;
  /** Cap and check of every neighbour, ascending. */
  edges: Bytes;
  caps: Map<number, Bytes>;
}

/** Sections 7.1 and 7.2. `vector` is masked in place. */
export function upload(
  place: Place, index: number, vector: Vector, secret: Bytes, keys: Bytes[], neighbours: number[], selfSeeds: Bytes[],
  capSeeds: Bytes[],
): Upload {
  selfSeeds.forEach((seed, subset) => add(vector, place.selfMask(index, subset, seed)));
  const caps = new Map<number, Bytes>();
  const edges: Bytes[] = [];
  for (const other of neighbours) {
    const shared = place.edgeSecret(secret, keys[other], index, other);
    add(vector, place.edgeMask(shared), index < other ? 1 : -1);
    const cap = xor(shared, ...capSeeds.map((seed, subset) => place.pad(index, other, subset, seed)));
    caps.set(other, cap);
    edges.push(cap, place.edgeCheck(shared));
  }
  const commitments = [
    ...selfSeeds.map((seed, subset) => place.commitment(index, "self", subset, seed)),
    ...capSeeds.map((seed, subset) => place.commitment(index, "cap", subset, seed)),
  ];
  return { body: pack(place.segments, vector), commitments: concat(...commitments), edges: concat(...edges), caps };
}

/** What the box for a party holds. */
export function boxContent(place: Place, party: number, selfSeeds: Bytes[], capSeeds: Bytes[]): Bytes {
  return concat(
    ...held(party, place.selfSets).map((subset) => selfSeeds[subset]), ...held(party, place.capSets).map((subset) => capSeeds[subset]),
  );
}

/** A whole round, for its vectors: those outside `survivors` upload and are left out. `draw` gives all X25519 keys, then all self
 * seeds, then all cap seeds, each by device. */
export function wholeRound(place: Place, vectors: Vector[], survivors: number[], degree: number, draw: (size: number) => Bytes) {
  const neighbours = graph(vectors.length, degree, place.roster);
  const secrets = vectors.map(() => draw(32));
  const keys = secrets.map((secret) => publicOf("X25519", secret));
  const selfSeeds = vectors.map(() => place.selfSets.map(() => draw(32)));
  const capSeeds = vectors.map(() => place.capSets.map(() => draw(32)));
  const uploads = vectors.map((vector, u) => upload(place, u, vector, secrets[u], keys, neighbours[u], selfSeeds[u], capSeeds[u]));
  const total = zeros(place.segments);
  for (const u of survivors) add(total, unpack(place.segments, uploads[u].body));
  const openings = place.selfSets.map((_, subset) => {
    const opened = zeros(place.segments);
    for (const u of survivors) add(opened, place.selfMask(u, subset, selfSeeds[u][subset]));
    add(total, opened, -1);
    return pack(place.segments, opened);
  });
  const edges: [number, number, Bytes][] = [];
  for (const u of survivors) {
    for (const v of neighbours[u].filter((other) => !survivors.includes(other))) {
      const secret = xor(uploads[u].caps.get(v)!, ...capSeeds[u].map((seed, subset) => place.pad(u, v, subset, seed)));
      add(total, place.edgeMask(secret), u < v ? -1 : 1);
      edges.push([u, v, secret]);
    }
  }
  return { bodies: uploads.map(({ body }) => body), openings, edges, total: pack(place.segments, total) };
}
