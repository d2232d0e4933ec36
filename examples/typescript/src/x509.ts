/** As much of X.509 as SPEC.md section 4.2 looks at. */

import { equal, type Bytes } from "./cbor.js";
import { verified } from "./crypto.js";
import { Fault, require } from "./fault.js";

const INVALID = "certificate-invalid";
const ED25519 = "2b6570";
const COMMON_NAME = "550403";
const BASIC_CONSTRAINTS = "551d13";
const UTC_TIME = 23;

/** One DER element: its tag, content, and all its bytes. */
interface Node {
  tag: number;
  content: Bytes;
  whole: Bytes;
}

function read(data: Bytes, at: number): [Node, number] {
  const start = at;
  require(at + 2 <= data.length, INVALID);
  const tag = data[at];
  let size = data[at + 1];
  at += 2;
  if (size & 0x80) {
    const width = size & 0x7f;
    require(width <= 4 && at + width <= data.length, INVALID);
    size = data.subarray(at, at + width).reduce((total, byte) => total * 256 + byte, 0);
    at += width;
  }
  require(at + size <= data.length, INVALID);
  return [{ tag, content: data.slice(at, at + size), whole: data.slice(start, at + size) }, at + size];
}

function children(node: Node): Node[] {
  const nodes: Node[] = [];
  for (let at = 0; at < node.content.length; ) {
    const [child, next] = read(node.content, at);
    nodes.push(child);
    at = next;
  }
  return nodes;
}

const hex = (node: Node | undefined) => (node ? Buffer.from(node.content).toString("hex") : "");

function time(node: Node): number {
  let text = Buffer.from(node.content).toString("latin1");
  if (node.tag === UTC_TIME) text = (text >= "50" ? "19" : "20") + text;
  const parts = /^(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)Z$/.exec(text);
  require(parts, INVALID);
  const [year, month, day, hour, minute, second] = parts.slice(1).map(Number);
  return Date.UTC(year, month - 1, day, hour, minute, second);
}

function parse(der: Bytes) {
  const [top, end] = read(der, 0);
  require(end === der.length, INVALID);
  const [body, stated, signature] = children(top);
  require(body && stated && signature, INVALID);
  const fields = children(body).filter((node) => node.tag !== 0xa0); // without the version
  const [, signedWith, issuer, validity, subject, key] = fields;
  require(key && equal(signedWith.whole, stated.whole) && hex(children(stated)[0]) === ED25519, INVALID);
  const [algorithm, bits] = children(key);
  require(bits && hex(children(algorithm)[0]) === ED25519 && bits.content.length === 33, INVALID);
  const pairs = children(subject).flatMap(children).map(children);
  const names = pairs.filter(([oid]) => hex(oid) === COMMON_NAME).map(([, value]) => Buffer.from(value.content).toString("utf8"));
  const extensions = fields.slice(6).find((node) => node.tag === 0xa3);
  require(extensions, INVALID);
  const constraints = children(children(extensions)[0]).find((one) => hex(children(one)[0]) === BASIC_CONSTRAINTS);
  require(constraints, INVALID);
  const [inner] = read(children(constraints).at(-1)!.content, 0);
  const ca = children(inner).some((node) => node.tag === 1 && hex(node) !== "00");
  const [begin, until] = children(validity).map(time);
  return {
    body: body.whole, issuer: issuer.whole, subject: subject.whole, names, begin, until, ca, key: bits.content.slice(1),
    signature: signature.content.slice(1),
  };
}

/** The device's id and Ed25519 key of a certificate that is good at `now` (ms). */
export function checkCertificate(der: Bytes, ca: Bytes, now: number): { name: string; key: Bytes } {
  const [certificate, root] = [parse(der), parse(ca)];
  require(equal(certificate.issuer, root.subject) && !certificate.ca && certificate.names.length === 1, INVALID);
  try {
    require(verified(root.key, certificate.signature, certificate.body), INVALID);
  } catch {
    throw new Fault(INVALID);
  }
  require(certificate.begin <= now && now <= certificate.until, "certificate-expired");
  return { name: certificate.names[0], key: certificate.key };
}
