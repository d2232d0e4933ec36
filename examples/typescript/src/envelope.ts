/** COSE_Sign1, trust bundles, and the checks of what arrives in their order (SPEC.md sections 3.2, 3.3 and 4.1). */

import { compare, concat, decode, encode, type Bytes, type Input, type Value } from "./cbor.js";
import { digest, sha256, signed, verified } from "./crypto.js";
import { require } from "./fault.js";
import { BODIES, KEYS, bodyOf, isName, octets, type Body } from "./schema.js";

export const VERSION = 1;
const MESSAGE_SIZE_MAX = 524_288;
const EDDSA = -8;

export interface Head {
  type: string;
  fleet: string;
  task: string;
  round: number;
  from: string;
  to: string;
}

export interface Signed {
  raw: Bytes;
  head: Head;
  payload: Value;
  digest: Bytes;
  tbs: Bytes;
  signature: Bytes;
}

export interface Trust {
  fleet: string;
  ca: Bytes;
  operator: Bytes;
  coordinator: Bytes;
  coordinatorBox: Bytes;
  parties: Bytes[];
  digest: Bytes;
}

export function trustOpen(data: Bytes): Trust {
  const value = decode(data);
  require(Array.isArray(value) && value.length === 6, "message-malformed");
  const [fleet, ca, operator, coordinator, coordinatorBox, parties] = value;
  const key = octets(32, 32);
  require(Array.isArray(parties) && parties.length >= 1 && parties.length <= 10, "message-malformed");
  const keys = [operator, coordinator, ...parties];
  require(isName(fleet) && keys.every(key) && octets(0, 1024)(ca) && octets(1216, 1216)(coordinatorBox), "message-malformed");
  require(new Set(keys.map((one) => Buffer.from(one as Bytes).toString("hex"))).size === keys.length, "message-malformed");
  return {
    fleet, ca: ca as Bytes, operator: operator as Bytes, coordinator: coordinator as Bytes,
    coordinatorBox: coordinatorBox as Bytes, parties: parties as Bytes[], digest: digest("trust", ...(value as Input[])),
  };
}

function keyOf(trust: Trust, principal: string): Bytes | undefined {
  if (principal === "operator") return trust.operator;
  if (principal === "coordinator") return trust.coordinator;
  const party = /^party\/([1-9][0-9]?)$/.exec(principal);
  return party ? trust.parties[Number(party[1]) - 1] : undefined;
}

/** The key that `steps` lead to from the pinned one of a party (section 4.4). */
export function partyKey(trust: Trust, party: number, steps: unknown): Bytes {
  require(party >= 1 && party <= trust.parties.length, "signature-invalid");
  const chain = KEYS(steps as Value) ? (steps as [number, number, Bytes, Bytes][]) : [];
  const hex = (key: Bytes) => Buffer.from(key).toString("hex");
  const taken = new Set([trust.operator, trust.coordinator, ...trust.parties].map(hex));
  const begun = chain.length > 0 && chain[0][1] === 0;
  const first = begun ? chain[0][0] : 0;
  require(!begun || first >= 1, "signature-invalid");
  let key = trust.parties[party - 1];
  chain.forEach(([epoch, step, next, signature], place) => {
    require(epoch === first && step === place + (begun ? 0 : 1) && !taken.has(hex(next)), "signature-invalid");
    const before = step === 0 ? new Uint8Array() : key;
    const said = encode(["blindsum/1 party-key", trust.digest, party, epoch, step, before, next]);
    require(verified(step === 0 ? trust.operator : key, signature, said), "signature-invalid");
    taken.add(hex(next));
    key = next;
  });
  return key;
}

export function partyOf(message: Signed): number {
  return Number(message.head.from.split("/")[1]);
}

/** (message, digest) */
export function seal(key: Bytes, head: Head, body: Input, version = VERSION): [Bytes, Bytes] {
  const fields: [string | number, Value][] = [[1, EDDSA], ["v", version], ...Object.entries(head)];
  const [protectedHeader, payload] = [encode(new Map(fields)), encode(body)];
  const tbs = encode(["Signature1", protectedHeader, new Uint8Array(), payload]);
  return [concat(Uint8Array.of(0xd2), encode([protectedHeader, {}, payload, signed(key, tbs)])), sha256(tbs)];
}

/** The version of a message that `principal` signed, 0 where it is no such message: what no version changes (section 3.4). */
export function versionOf(trust: Trust, raw: Bytes, principal: string): number {
  try {
    const parts = decode(raw.subarray(1));
    require(Array.isArray(parts), "message-malformed");
    const [protectedHeader, , payload, signature] = parts as Bytes[];
    const header = decode(protectedHeader);
    require(header instanceof Map && header.get("from") === principal && header.get("fleet") === trust.fleet, "message-malformed");
    const version = header.get("v");
    const tbs = encode(["Signature1", protectedHeader, new Uint8Array(), payload]);
    return typeof version === "number" && verified(keyOf(trust, principal)!, signature, tbs) ? version : 0;
  } catch {
    return 0;
  }
}

/** Checks 1 to 11 of section 3.3. */
export function openMessage(trust: Trust, raw: Bytes): Signed {
  require(raw.length <= MESSAGE_SIZE_MAX, "message-too-large");
  require(raw[0] === 0xd2, "message-malformed");
  const parts = decode(raw.subarray(1));
  require(Array.isArray(parts) && parts.length === 4, "message-malformed");
  const [protectedHeader, unprotected, payload, signature] = parts;
  require(protectedHeader instanceof Uint8Array && payload instanceof Uint8Array, "message-malformed");
  require(unprotected instanceof Map && unprotected.size === 0 && octets(64, 64)(signature), "message-malformed");
  const header = decode(protectedHeader);
  require(header instanceof Map && header.get("v") === VERSION, "message-version");
  require(header.size === 8 && header.get(1) === EDDSA, "message-malformed");
  const texts = ["type", "fleet", "task", "from", "to"].map((name) => header.get(name));
  require(texts.every((one) => typeof one === "string" && [...one].length <= 72), "message-malformed");
  const [type, fleet, task, from, to] = texts as string[];
  const round = header.get("round");
  require(typeof round === "number" && round >= 0 && round < 2 ** 31, "message-malformed");
  require(isName(fleet) && isName(task), "message-malformed");
  const body = decode(payload);
  require(Object.hasOwn(BODIES, type), "message-type-unknown");
  const [, role, sizeMax] = BODIES[type];
  require(raw.length <= sizeMax, "message-too-large");
  require(fleet === trust.fleet, "fleet-foreign");
  require(role === "any" || role === from.split("/")[0], "sender-wrong-role");
  const tbs = encode(["Signature1", protectedHeader, new Uint8Array(), payload]);
  const message = { raw, head: { type, fleet, task, round, from, to }, payload: body, digest: sha256(tbs), tbs, signature: signature as Bytes };
  if (from.startsWith("device/")) {
    require(isName(from.slice(7)), "message-malformed");
    return message;
  }
  const shown = body instanceof Map ? body.get("keys") : undefined;
  const key = type === "offer" ? partyKey(trust, Number(/^party\/([1-9][0-9]?)$/.exec(from)?.[1] ?? 0), shown) : keyOf(trust, from);
  require(key && verified(key, message.signature, tbs), "signature-invalid");
  return message;
}

export interface Place {
  type: string;
  task: string;
  round: number;
}

export function isAt(message: Signed, place: Place): boolean {
  const { type, task, round } = message.head;
  return type === place.type && task === place.task && round === place.round;
}

/** A message inside another, at its place, with a body of its type. */
export function openInner(trust: Trust, raw: Bytes, place: Place): Signed & { body: Body } {
  const message = openMessage(trust, raw);
  require(isAt(message, place), "message-misplaced", message.head.from);
  return { ...message, body: bodyOf(place.type, message.payload) };
}

export const sameMessage = (a: Signed, b: Signed) => compare(a.digest, b.digest) === 0;
