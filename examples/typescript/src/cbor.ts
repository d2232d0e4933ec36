/** Deterministic CBOR (SPEC.md section 3.1): one value has one encoding, and nothing else is accepted. */

import { require } from "./fault.js";

export type Bytes = Uint8Array;
export type Value = null | boolean | number | bigint | string | Bytes | Value[] | CborMap;
export type CborMap = Map<string | number | bigint, Value>;
/** What this program writes: maps with text keys may be plain objects. */
export type Input = null | boolean | number | bigint | string | Bytes | readonly Input[] | CborMap | { readonly [key: string]: Input };

const DEPTH_MAX = 8;
const MALFORMED = "message-malformed";
const SAFE = 2n ** 53n;
const text = new TextEncoder();
const reader = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

export function concat(...parts: Bytes[]): Bytes {
  return new Uint8Array(Buffer.concat(parts));
}

/** Bytewise order, as memcmp. */
export function compare(a: Bytes, b: Bytes): number {
  return Buffer.compare(a, b);
}

export function equal(a: Bytes, b: Bytes): boolean {
  return compare(a, b) === 0;
}

export function encode(value: Input): Bytes {
  if (value === null) return Uint8Array.of(0xf6);
  if (typeof value === "boolean") return Uint8Array.of(value ? 0xf5 : 0xf4);
  if (typeof value === "number" || typeof value === "bigint") {
    const number = BigInt(value);
    return number >= 0n ? head(0, number) : head(1, -1n - number);
  }
  if (typeof value === "string") {
    const bytes = text.encode(value);
    return concat(head(3, BigInt(bytes.length)), bytes);
  }
  if (value instanceof Uint8Array) return concat(head(2, BigInt(value.length)), value);
  if (Array.isArray(value)) return concat(head(4, BigInt(value.length)), ...value.map(encode));
  const entries: [Input, Input][] = value instanceof Map ? [...value] : Object.entries(value);
  const pairs = entries.map(([key, item]) => [encode(key), encode(item)] as const);
  pairs.sort(([a], [b]) => compare(a, b));
  return concat(head(5, BigInt(pairs.length)), ...pairs.flat());
}

/** The value whose only encoding is `data`. */
export function decode(data: Bytes): Value {
  const [value, end] = item(data, 0, 0);
  require(end === data.length, MALFORMED);
  return value;
}

function head(major: number, number: bigint): Bytes {
  if (number < 24n) return Uint8Array.of((major << 5) | Number(number));
  const log = [8n, 16n, 32n, 64n].findIndex((bits) => number < 1n << bits);
  const out = new Uint8Array(1 + (1 << log));
  out[0] = (major << 5) | (24 + log);
  for (let at = out.length - 1; at > 0; at--, number >>= 8n) out[at] = Number(number & 255n);
  return out;
}

function item(data: Bytes, at: number, depth: number): [Value, number] {
  require(at < data.length && depth <= DEPTH_MAX, MALFORMED);
  const major = data[at] >> 5;
  const info = data[at++] & 31;
  if (major === 7) {
    require(info >= 20 && info <= 22, MALFORMED);
    return [info === 22 ? null : info === 21, at];
  }
  require(major !== 6 && info < 28, MALFORMED);
  let number = BigInt(info);
  if (info >= 24) {
    const size = 1 << (info - 24);
    require(at + size <= data.length, MALFORMED);
    number = BigInt("0x" + Buffer.from(data.subarray(at, at + size)).toString("hex"));
    at += size;
    require(number >= (size === 1 ? 24n : 1n << BigInt(4 * size)), MALFORMED);
  }
  if (major < 2) {
    const whole = major === 0 ? number : -1n - number;
    return [whole <= SAFE && whole >= -SAFE ? Number(whole) : whole, at];
  }
  require(number <= BigInt(data.length), MALFORMED);
  const length = Number(number);
  if (major < 4) {
    require(at + length <= data.length, MALFORMED);
    const bytes = data.slice(at, at + length);
    at += length;
    if (major === 2) return [bytes, at];
    try {
      return [reader.decode(bytes), at];
    } catch {
      require(false, MALFORMED);
    }
  }
  if (major === 4) {
    const items: Value[] = [];
    for (let i = 0; i < length; i++) {
      const [one, next] = item(data, at, depth + 1);
      items.push(one);
      at = next;
    }
    return [items, at];
  }
  const map: CborMap = new Map();
  let last: Bytes = new Uint8Array();
  for (let i = 0; i < length; i++) {
    const [key, middle] = item(data, at, depth + 1);
    const raw = data.subarray(at, middle);
    const fine = typeof key === "string" || typeof key === "number" || typeof key === "bigint";
    require(fine && compare(last, raw) < 0, MALFORMED);
    last = raw;
    const [one, next] = item(data, middle, depth + 1);
    map.set(key, one);
    at = next;
  }
  return [map, at];
}
