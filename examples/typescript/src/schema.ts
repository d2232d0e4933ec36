/** The bodies of all messages (SPEC.md section 5) as data, and the check of a value against them. */

import type { CborMap, Value } from "./cbor.js";
import { require } from "./fault.js";

export type Check = (value: Value) => boolean;
/** A map with text keys, as messages have them. */
export type Body = Record<string, any>;

export const isName = (value: unknown): value is string => typeof value === "string" && /^[a-z0-9-]{1,64}$/.test(value);
export const whole = (low: number, high: number): Check => (value) => typeof value === "number" && low <= value && value <= high;
export const octets = (low: number, high: number): Check => (value) =>
  value instanceof Uint8Array && low <= value.length && value.length <= high;
const text = (most: number): Check => (value) => typeof value === "string" && [...value].length <= most;
const oneOf = (...values: (string | number)[]): Check => (value) => values.includes(value as string);
export const many = (item: Check, low: number, high: number): Check => (value) =>
  Array.isArray(value) && low <= value.length && value.length <= high && value.every(item);
export const row = (...items: Check[]): Check => (value) =>
  Array.isArray(value) && value.length === items.length && items.every((check, i) => check(value[i]));
const fields = (wanted: Record<string, Check>): Check => (value) =>
  value instanceof Map && value.size === Object.keys(wanted).length &&
  Object.entries(wanted).every(([name, check]) => value.has(name) && check(value.get(name)!));
const flag: Check = (value) => typeof value === "boolean";
const name: Check = isName;

export const HASH = octets(32, 32);
export const KEYS = many(row(whole(0, 2 ** 31 - 1), whole(0, 8), HASH, octets(64, 64)), 0, 9);
const RAWS = many(octets(1, 65_536), 0, 10);
const MICROS = whole(0, 2 ** 53);
const DURATION = whole(100, 7 * 86_400_000);
const INDEX = whole(0, 99_999);
const SUBSET = whole(0, 511);
const DEVICES = whole(2, 100_000);
const TENTH = whole(1, 10);
const PERMILLE = whole(0, 1000);
const CODE = text(64);
const MANY_DEVICES = 100_000;
export const BLOB = fields({ size: whole(0, 2 ** 28), chunk_size: whole(1024, 2 ** 18), digests: octets(0, 32_768) });
export const OPENING_CONTENT = fields({
  hashes: many(row(SUBSET, HASH), 0, 512), shares: octets(0, 2 ** 40), vectors: many(row(SUBSET, octets(0, 2 ** 40)), 0, 512),
});

/** type: (body, role that signs, largest size) */
export const BODIES: Record<string, [Check, string, number]> = {
  task: [fields({
    trust: HASH, plan: BLOB, model: BLOB,
    segments: many(fields({ name, length: whole(1, 2 ** 27), width: oneOf(16, 24, 32, 64), codec: oneOf("quantised", "exact") }), 1, 16),
    codec: fields({ clip_micros: whole(1, 2 ** 53), range_micros: whole(1, 2 ** 53), bits: whole(2, 32), weight_max: whole(1, 2 ** 24), rotate: flag }),
    threat: fields({
      parties: TENTH, threshold: TENTH, quorum: TENTH, malicious_parties: TENTH, corrupt_permille: PERMILLE,
      dropped_permille: PERMILLE, cohort_min: DEVICES,
    }),
    devices_min: DEVICES, devices_max: DEVICES, suite: oneOf("aes128-ctr", "chacha20"),
    training: fields({ epochs: whole(1, 1000), batch_size: whole(1, 65_536), rate_micros: MICROS, proximal_micros: MICROS, control_micros: MICROS }),
    algorithm: fields({
      name: oneOf("fedavg", "fedavgm", "fedadam", "fedyogi", "scaffold", "evaluate"), rate_micros: MICROS,
      beta1_micros: whole(0, 999_999), beta2_micros: whole(0, 999_999), tau_micros: MICROS, population: whole(0, 2 ** 53),
    }),
    join_ms: DURATION, upload_ms: DURATION, decide_ms: DURATION, rounds_max: whole(0, 2 ** 31 - 1),
    eligibility: many(fields({ kind: name, version: whole(1, 255), values: many(MICROS, 0, 4) }), 0, 8),
  }), "operator", 65_536],
  rollback: [fields({ task: HASH, previous: HASH, origin: HASH, model: BLOB }), "operator", 65_536],
  "offer-request": [fields({ task: octets(1, 65_536) }), "coordinator", 131_072],
  offer: [fields({ box_key: octets(1216, 1216), beacon_commitment: HASH, chain: HASH, keys: KEYS }), "party", 4_096],
  manifest: [fields({
    task: HASH, previous: HASH, model: BLOB, state: HASH, offers: RAWS, rotation: octets(0, 16), issued_at: MICROS, join_until: MICROS,
    upload_until: MICROS, expires_at: MICROS,
  }), "coordinator", 65_536],
  vote: [fields({ decides: oneOf("manifest", "roster", "set"), digest: HASH, beacon: octets(0, 32) }), "party", 1_024],
  announcement: [fields({ task: octets(1, 65_536), manifest: octets(1, 65_536), votes: RAWS }), "coordinator", 196_608],
  join: [fields({ manifest: HASH, certificate: octets(1, 1024), key: HASH }), "device", 2_048],
  "roster-proposal": [fields({ manifest: HASH, joins: BLOB, entries: BLOB }), "coordinator", 65_536],
  roster: [fields({ proposal: octets(1, 65_536), votes: RAWS }), "coordinator", 131_072],
  header: [fields({
    manifest: HASH, roster: HASH, index: INDEX, body: BLOB, commitments: octets(0, 16_384), boxes: many(octets(0, 32_768), 0, 10),
    edges: octets(0, 24_576),
  }), "device", 147_456],
  ask: [fields({ blob: HASH, have: octets(0, 128), window: whole(1, 64) }), "any", 1_024],
  receipt: [fields({ subject: HASH, status: oneOf("held", "complete", "refused"), code: CODE }), "coordinator", 1_024],
  candidate: [fields({ roster: HASH, survivors: BLOB }), "coordinator", 40_960],
  check: [fields({ survivors: HASH, missing: many(INDEX, 0, MANY_DEVICES), bad: many(row(INDEX, CODE), 0, MANY_DEVICES) }), "party", 393_216],
  proposal: [fields({ roster: HASH, survivors: BLOB }), "coordinator", 40_960],
  certificate: [fields({ proposal: octets(1, 65_536), votes: RAWS }), "coordinator", 65_536],
  opening: [fields({ proposal: HASH, part: whole(0, 63), content: BLOB, plain: HASH }), "party", 40_960],
  want: [fields({ proposal: HASH, part: whole(1, 63), subsets: many(SUBSET, 1, 512) }), "coordinator", 8_192],
  result: [fields({
    previous: HASH, rotation: octets(0, 16), manifest: HASH, roster: HASH, proposal: HASH, count: whole(1, 100_000), sum: BLOB,
    model: BLOB, state: HASH, openings: many(row(TENTH, HASH), 0, 640),
  }), "coordinator", 131_072],
  failure: [fields({ manifest: HASH, code: CODE }), "coordinator", 1_024],
};

/** The body as an object, where it has exactly the fields of its type. */
export function bodyOf(kind: string, value: Value): Body {
  require(BODIES[kind][0](value), "message-malformed");
  return plain(value) as Body;
}

/** Maps with text keys as objects. */
export function plain(value: Value): unknown {
  if (Array.isArray(value)) return value.map(plain);
  if (!(value instanceof Map)) return value;
  return Object.fromEntries([...(value as CborMap)].map(([key, item]) => [String(key), plain(item)]));
}
