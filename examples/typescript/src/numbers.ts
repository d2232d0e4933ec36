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

/** The next model of section 9.3. */
export function advance(
  model: Bytes, total: Bytes, segments: Segment[], codecs: string[], codec: Codec, rateMicros: number, rotation: Bytes,
): Bytes {
  const lanes = unpack(segments, total);
  const [exact, quantised] = [codecs.indexOf("exact"), codecs.indexOf("quantised")];
  const weight = Number(toSigned(64, lanes[exact])[0]);
  require(weight >= 1, "sum-malformed");
  const scale = codec.range_micros / 1e6 / (levelMax(codec) * weight);
  let mean: Float32Array = Float32Array.from(toSigned(segments[quantised].width, lanes[quantised]), (value) => Number(value) * scale);
  if (rotation.length) mean = unrotate(mean, rotation);
  const rate = rateMicros / 1e6;
  return packedSingles(singles(model).map((x, i) => x + rate * mean[i]));
}
