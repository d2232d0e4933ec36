/** Blobs and the chunks they travel in (SPEC.md section 6). */

import { concat, decode, encode, equal, type Bytes } from "./cbor.js";
import { digest, sha256 } from "./crypto.js";
import { require } from "./fault.js";

const CHUNK_MESSAGE_SIZE_MAX = 262_144 + 80;
export const BLOB_CHUNKS_MAX = 1024;

export interface BlobRef {
  size: number;
  chunk_size: number;
  digests: Bytes;
}

export interface Chunk {
  blob: Bytes;
  index: number;
  data: Bytes;
}

export function cut(data: Bytes, size: number): Bytes[] {
  return Array.from({ length: Math.ceil(data.length / size) }, (_, i) => data.slice(i * size, (i + 1) * size));
}

export function blobRef(data: Bytes, chunkSize: number): BlobRef {
  return { size: data.length, chunk_size: chunkSize, digests: concat(...cut(data, chunkSize).map(sha256)) };
}

export const blobCount = (ref: BlobRef) => Math.ceil(ref.size / ref.chunk_size);
export const blobSound = (ref: BlobRef) => ref.digests.length === 32 * blobCount(ref);
export const blobId = (ref: BlobRef) => digest("blob", ref.size, ref.chunk_size, ref.digests);
export const sameBlob = (a: BlobRef, b: BlobRef) =>
  a.size === b.size && a.chunk_size === b.chunk_size && equal(a.digests, b.digests);

export function chunkOpen(raw: Bytes): Chunk {
  require(raw.length <= CHUNK_MESSAGE_SIZE_MAX, "message-too-large");
  const value = decode(raw);
  require(Array.isArray(value) && value.length === 4, "message-malformed");
  const [version, blob, index, data] = value;
  require(version === 1 && blob instanceof Uint8Array && blob.length === 32 && data instanceof Uint8Array, "message-malformed");
  require(typeof index === "number" && index >= 0 && index < 1 << 20, "message-malformed");
  return { blob, index, data };
}

export function chunkMake(blob: Bytes, index: number, data: Bytes): Bytes {
  return encode([1, blob, index, data]);
}

export function chunkCheck(ref: BlobRef, { blob, index, data }: Chunk): void {
  require(equal(blob, blobId(ref)), "chunk-unexpected");
  require(index < blobCount(ref), "chunk-wrong");
  const size = Math.min(ref.chunk_size, ref.size - index * ref.chunk_size);
  require(data.length === size && equal(sha256(data), ref.digests.slice(32 * index, 32 * index + 32)), "chunk-wrong");
}

export function bits(held: Iterable<number>, count: number): Bytes {
  const out = new Uint8Array(Math.ceil(count / 8));
  for (const index of held) out[index >> 3] |= 1 << (index & 7);
  return out;
}

/** The indices below `count` whose bit is not set; missing bits are 0. */
export function missing(have: Bytes, count: number): number[] {
  return Array.from({ length: count }, (_, i) => i).filter((i) => !(((have[i >> 3] ?? 0) >> (i & 7)) & 1));
}
