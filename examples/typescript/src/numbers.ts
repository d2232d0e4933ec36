/** Parameters, and the arithmetic of the codec and the optimiser (SPEC.md sections 9 and 11). */

import { type Bytes } from "./cbor.js";
import { derive, keystream } from "./crypto.js";
import { require } from "./fault.js";
import { toSigned, unpack, type Segment } from "./masks.js";

export const PRODUCT_BITS_MAX = 36;
const PARTIES_MAX = 10;
const UNSAFE = "parameters-unsafe";
const ROUNDING_PAGE = 65_536;

export function committee(parties: number, threshold: number, quorum: number, liars: number): void {
  require(1 <= threshold && threshold <= quorum && quorum <= parties && parties <= PARTIES_MAX && liars >= 1, UNSAFE);
  require(2 * quorum > parties + liars && threshold > liars && quorum >= 2 * threshold - 1, UNSAFE);
}

const share = (n: number, permille: number) => Math.floor((n * permille) / 1000);
export const dropped = share;

/** The smallest even k with n (n - k - 1) / 2 * C(B, k) / C(n, k) < 2^-40, without fractions. */
export function degree(n: number, corruptPermille: number, droppedPermille: number): number {
  const lost = share(n, corruptPermille) + share(n, droppedPermille);
  let [some, all] = [1n, 1n]; // C(lost, k) k!, C(n, k) k!
  for (let k = 1; k < n - 1; k++) {
    some *= BigInt(Math.max(lost - k + 1, 0));
    all *= BigInt(n - k + 1);
    if (k % 2 === 0 && (BigInt(n) * BigInt(n - k - 1) * some) << 40n < 2n * all) return k;
  }
  return Math.max(n - 1, 0);
}

export function survivorsMin(n: number, corruptPermille: number, droppedPermille: number, cohortMin: number): number {
  return Math.max(cohortMin + share(n, corruptPermille), n - share(n, droppedPermille));
}

export function bits(width: number, devicesMax: number, weightMax: number): number {
  let best = 0;
  for (let b = 1; b <= 64; b++) {
    const level = (2n ** BigInt(b - 1) - 1n) * BigInt(weightMax);
    if (BigInt(devicesMax) * level < 2n ** BigInt(width - 1) && level < 2n ** BigInt(PRODUCT_BITS_MAX)) best = b;
  }
  require(best >= 4, UNSAFE);
  return best;
}

// -- codec ------------------------------------------------------------------------------------------------------------

export interface Codec {
  clip_micros: number;
  range_micros: number;
  bits: number;
  weight_max: number;
}

export const levelMax = (codec: Codec) => 2 ** (codec.bits - 1) - 1;

export function singles(data: Bytes): Float32Array {
  require(data.length % 4 === 0, "update-wrong-shape");
  return new Float32Array(data.slice().buffer);
}

export function packedSingles(values: Float32Array): Bytes {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength).slice();
}

/** The signed levels of section 9.1. */
export function quantise(update: Float32Array, weight: number, codec: Codec, rotation: Bytes, segment: Segment, key: Bytes): number[] {
  require(update.length === segment.length, "update-wrong-shape");
  require(1 <= weight && weight <= codec.weight_max, "weight-out-of-range");
  require(update.every(Number.isFinite), "update-not-finite");
  const norm = Math.sqrt(update.reduce((total, x) => total + x * x, 0));
  let factor = norm ? Math.min(1, codec.clip_micros / 1e6 / norm) : 1;
  if (rotation.length) {
    update = rotate(update.map((x) => x * factor), rotation);
    factor = 1;
  }
  const limit = levelMax(codec) * weight;
  const scale = (factor / (codec.range_micros / 1e6)) * limit;
  const streamKey = derive(key, "rounding", [segment.name], 24);
  const out: number[] = [];
  for (let start = 0, page = 0; start < update.length; start += ROUNDING_PAGE, page++) {
    const count = Math.min(ROUNDING_PAGE, update.length - start);
    const dice = new Uint16Array(keystream("aes128-ctr", streamKey, page, 0, 2 * count).slice().buffer);
    for (let i = 0; i < count; i++) {
      const level = Math.floor(update[start + i] * scale + (dice[i] + 0.5) / 65_536);
      out.push(Math.max(-limit, Math.min(limit, level)));
    }
  }
  return out;
}

/** Section 9.2. Float32Array rounds each stored value to float32. */
export function rotate(vector: Float32Array, seed: Bytes): Float32Array {
  const out = vector.slice();
  blocks(out).forEach((block, number) => hadamard(flip(block, seed, number)));
  return out;
}

export function unrotate(vector: Float32Array, seed: Bytes): Float32Array {
  const out = vector.slice();
  blocks(out).map((block, number) => [block, number] as const).reverse().forEach(([block, number]) => flip(hadamard(block), seed, number));
  return out;
}

/** Views of the first and, where the length is no power of two, the last N values. */
function blocks(vector: Float32Array): Float32Array[] {
  const size = 2 ** Math.floor(Math.log2(vector.length));
  return size === vector.length ? [vector] : [vector.subarray(0, size), vector.subarray(vector.length - size)];
}

function flip(values: Float32Array, seed: Bytes, number: number): Float32Array {
  const key = derive(seed, "rotation", [number], 24);
  for (let start = 0, page = 0; start < values.length; start += ROUNDING_PAGE, page++) {
    const count = Math.min(ROUNDING_PAGE, values.length - start);
    const stream = keystream("aes128-ctr", key, page, 0, 4 * count);
    for (let i = 0; i < count; i++) if (stream[4 * i + 3] & 0x80) values[start + i] = -values[start + i];
  }
  return values;
}

function hadamard(values: Float32Array): Float32Array {
  for (let h = 1; h < values.length; h *= 2) {
    for (let i = 0; i < values.length; i++) {
      if (i & h) continue;
      const [a, b] = [values[i], values[i + h]];
      values[i] = a + b;
      values[i + h] = a - b;
    }
  }
  const scale = Math.fround(1 / Math.sqrt(values.length));
  for (let i = 0; i < values.length; i++) values[i] *= scale;
  return values;
}

// -- the next model ---------------------------------------------------------------------------------------------------

export interface Algorithm {
  name: string;
  rate_micros: number;
  beta1_micros: number;
  beta2_micros: number;
  tau_micros: number;
  population: number;
}

const ADAPTIVE = ["rate_micros", "beta1_micros", "beta2_micros", "tau_micros"];

/** Vectors of state, and the numbers that the formula has a place for. */
export const ALGORITHMS: Record<string, { vectors: number; places: string[] }> = {
  fedavg: { vectors: 0, places: ["rate_micros"] },
  fedavgm: { vectors: 1, places: ["rate_micros", "beta1_micros"] },
  fedadam: { vectors: 2, places: ADAPTIVE },
  fedyogi: { vectors: 2, places: ADAPTIVE },
  scaffold: { vectors: 0, places: ["rate_micros", "population"] },
  evaluate: { vectors: 0, places: [] },
};

/** The next model and state of section 9.3. */
export function advance(
  model: Bytes, state: Bytes, total: Bytes, segments: Segment[], codecs: string[], codec: Codec, algorithm: Algorithm, rotation: Bytes,
): { model: Bytes; state: Bytes } {
  const lanes = unpack(segments, total);
  const weight = Number(toSigned(64, lanes[codecs.indexOf("exact")])[0]);
  require(weight >= 1, "sum-malformed");
  require([0, ALGORITHMS[algorithm.name].vectors * model.length].includes(state.length), "sum-malformed");
  if (algorithm.name === "evaluate") return { model, state };
  const scale = codec.range_micros / 1e6 / (levelMax(codec) * weight);
  const means = lanes.flatMap((lane, number) => {
    if (codecs[number] !== "quantised") return [];
    const mean = Float32Array.from(toSigned(segments[number].width, lane), (value) => Number(value) * scale);
    return [...(rotation.length ? unrotate(mean, rotation) : mean)];
  });
  const [old, kept] = [singles(model), singles(state)];
  require(old.length === means.length, "sum-malformed");
  const { steps, after } = step(algorithm, means, weight, state.length ? kept : undefined);
  const [next, left] = [old.map((x, i) => x + steps[i]), Float32Array.from(after)];
  require(next.every(Number.isFinite) && left.every(Number.isFinite), "sum-malformed");
  return { model: packedSingles(next), state: packedSingles(left) };
}

/** What is added to the model, in float64, and the vectors that are kept. */
function step(algorithm: Algorithm, d: number[], weight: number, kept: Float32Array | undefined): { steps: number[]; after: number[] } {
  const { name, beta1_micros, beta2_micros } = algorithm;
  const [rate, beta1, beta2, tau] = [algorithm.rate_micros / 1e6, beta1_micros / 1e6, beta2_micros / 1e6, algorithm.tau_micros / 1e6];
  if (name === "fedavg") return { steps: d.map((x) => rate * x), after: [] };
  if (name === "scaffold") {
    const share = Math.min(weight, algorithm.population) / algorithm.population;
    return { steps: d.map((x, i) => (i < d.length / 2 ? rate : share) * x), after: [] };
  }
  const last = d.map((_, i) => kept?.[i] ?? 0);
  if (name === "fedavgm") {
    const m = d.map((x, i) => beta1 * last[i] + x);
    return { steps: m.map((x) => rate * x), after: m };
  }
  const [fresh1, fresh2] = [(1_000_000 - beta1_micros) / 1e6, (1_000_000 - beta2_micros) / 1e6];
  const m = d.map((x, i) => beta1 * last[i] + fresh1 * x);
  const v = d.map((x, i) => {
    const before = kept?.[d.length + i] ?? tau * tau;
    return name === "fedadam" ? beta2 * before + fresh2 * (x * x) : before - fresh2 * (x * x) * Math.sign(before - x * x);
  });
  return { steps: m.map((x, i) => rate * (x / (Math.sqrt(v[i]) + tau))), after: [...m, ...v] };
}
