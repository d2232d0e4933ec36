/** Keys, signatures, ciphers and boxes (SPEC.md sections 2.2 and 4): Node's own cryptography, and ML-KEM of @noble/post-quantum. */

import {
  createCipheriv, createDecipheriv, createHash, createHmac, createPrivateKey, createPublicKey, diffieHellman, hkdfSync,
  randomBytes, sign, verify,
} from "node:crypto";
import { ml_kem768 } from "@noble/post-quantum/ml-kem";
import { concat, encode, type Bytes, type Input } from "./cbor.js";
import { Fault, require } from "./fault.js";

export type Suite = "aes128-ctr" | "chacha20";
export const STREAM_KEY_SIZE = { "aes128-ctr": 24, chacha20: 40 } as const;
export const PAGE_SIZE = 262_144;
export const BOX_OVERHEAD = 1136;

const KEM_PUBLIC_SIZE = 1184;
const KEM_SEED_SIZE = 64;
const ENC_SIZE = 1120;
const TAG_SIZE = 16;
const MODULUS = 3329;
const PROBE = Uint8Array.from({ length: 32 }, (_, i) => (i === 31 ? 0x40 : 0));
const XWING_LABEL = Buffer.from("5c2e2f2f5e5c", "hex");
const EMPTY = new Uint8Array();

export function random(size: number): Bytes {
  return new Uint8Array(randomBytes(size));
}

export function sha256(data: Bytes): Bytes {
  return new Uint8Array(createHash("sha256").update(data).digest());
}

/** `digest(label, parts…)` of section 4. */
export function digest(label: string, ...parts: Input[]): Bytes {
  return sha256(encode(["blindsum/1 " + label, ...parts]));
}

/** `HKDF(secret, label, context…; size)` of section 4. */
export function derive(secret: Bytes, label: string, context: Input[], size = 32): Bytes {
  return new Uint8Array(hkdfSync("sha256", secret, EMPTY, encode(["blindsum/1 " + label, ...context]), size));
}

// -- curves -----------------------------------------------------------------------------------------------------------

type Curve = "X25519" | "Ed25519";
const OID = { X25519: "6e", Ed25519: "70" };

function publicKey(curve: Curve, raw: Bytes) {
  const der = concat(Buffer.from(`302a300506032b65${OID[curve]}032100`, "hex"), raw);
  return createPublicKey({ key: Buffer.from(der), format: "der", type: "spki" });
}

function privateKey(curve: Curve, raw: Bytes) {
  const der = concat(Buffer.from(`302e020100300506032b65${OID[curve]}04220420`, "hex"), raw);
  return createPrivateKey({ key: Buffer.from(der), format: "der", type: "pkcs8" });
}

/** The public key of 32 private bytes. */
export function publicOf(curve: Curve, raw: Bytes): Bytes {
  return new Uint8Array(createPublicKey(privateKey(curve, raw)).export({ format: "der", type: "spki" }).subarray(-32));
}

/** The shared secret; an all-zero one is the fault "join-malformed". */
export function agree(secret: Bytes, other: Bytes): Bytes {
  try {
    const shared = diffieHellman({ privateKey: privateKey("X25519", secret), publicKey: publicKey("X25519", other) });
    require(shared.some((byte) => byte !== 0), "join-malformed");
    return new Uint8Array(shared);
  } catch {
    throw new Fault("join-malformed"); // OpenSSL refuses an all-zero result by itself
  }
}

export function agreesOnSomething(other: Bytes): boolean {
  try {
    return agree(PROBE, other).length === 32;
  } catch {
    return false;
  }
}

export function signed(key: Bytes, data: Bytes): Bytes {
  return new Uint8Array(sign(null, data, privateKey("Ed25519", key)));
}

export function verified(key: Bytes, signature: Bytes, data: Bytes): boolean {
  return verify(null, data, publicKey("Ed25519", key), signature);
}

// -- ciphers ----------------------------------------------------------------------------------------------------------

/** `size` bytes from byte `start` on of page `page` of a stream key. */
export function keystream(suite: Suite, streamKey: Bytes, page: number, start: number, size: number): Bytes {
  require(streamKey.length === STREAM_KEY_SIZE[suite] && start + size <= PAGE_SIZE, "parameters-unsafe");
  const nonce = Buffer.alloc(12);
  nonce.set(streamKey.subarray(-8));
  nonce.writeUInt32BE(page, 8);
  const counter = Buffer.alloc(4);
  let cipher;
  if (suite === "aes128-ctr") {
    counter.writeUInt32BE(2);
    cipher = createCipheriv("aes-128-ctr", streamKey.subarray(0, 16), Buffer.concat([nonce, counter]));
  } else {
    cipher = createCipheriv("chacha20", streamKey.subarray(0, 32), Buffer.concat([counter, nonce]));
  }
  return new Uint8Array(cipher.update(Buffer.alloc(start + size)).subarray(start));
}

export function gcmSeal(key: Bytes, nonce: Bytes, data: Bytes): Bytes {
  const cipher = createCipheriv("aes-128-gcm", key, nonce);
  return concat(cipher.update(data), cipher.final(), cipher.getAuthTag());
}

/** Raises whatever Node raises where the tag is wrong. */
export function gcmOpen(key: Bytes, nonce: Bytes, sealed: Bytes): Bytes {
  const cut = sealed.length - TAG_SIZE;
  const cipher = createDecipheriv("aes-128-gcm", key, nonce).setAuthTag(sealed.subarray(cut));
  return concat(cipher.update(sealed.subarray(0, cut)), cipher.final());
}

/** A chunk that the coordinator closed to the broker (section 6). */
export function chunkSeal(broadcastKey: Bytes, blob: Bytes, index: number, data: Bytes): Bytes {
  return gcmSeal(derive(broadcastKey, "broadcast", [blob], 16), chunkNonce(index), data);
}

export function chunkUnseal(broadcastKey: Bytes, blob: Bytes, index: number, sealed: Bytes): Bytes {
  try {
    return gcmOpen(derive(broadcastKey, "broadcast", [blob], 16), chunkNonce(index), sealed);
  } catch {
    throw new Fault("chunk-wrong");
  }
}

function chunkNonce(index: number): Bytes {
  const nonce = Buffer.alloc(12);
  nonce.writeUInt32BE(index, 8);
  return nonce;
}

// -- boxes (section 4.3): X-Wing in HPKE ------------------------------------------------------------------------------

export function boxPublic(secret: Bytes): Bytes {
  const { publicKey: kem } = ml_kem768.keygen(secret.slice(0, KEM_SEED_SIZE));
  return concat(kem, publicOf("X25519", secret.slice(KEM_SEED_SIZE)));
}

/** The modulus check of FIPS 203 section 7.2, and an X25519 key that agrees on something. */
export function boxUsable(key: Bytes): boolean {
  for (let at = 0; at < KEM_PUBLIC_SIZE - 32; at += 3) {
    if ((key[at] | ((key[at + 1] & 15) << 8)) >= MODULUS || ((key[at + 1] >> 4) | (key[at + 2] << 4)) >= MODULUS) return false;
  }
  return agreesOnSomething(key.subarray(KEM_PUBLIC_SIZE));
}

export function boxSeal(key: Bytes, info: Bytes, plain: Bytes): Bytes {
  const ephemeral = random(32);
  const other = key.slice(KEM_PUBLIC_SIZE);
  const { cipherText, sharedSecret } = ml_kem768.encapsulate(key.slice(0, KEM_PUBLIC_SIZE));
  const mine = publicOf("X25519", ephemeral);
  const [sealKey, nonce] = schedule(xwing(sharedSecret, agree(ephemeral, other), mine, other), info);
  return concat(cipherText, mine, gcmSeal(sealKey, nonce, plain));
}

/** The plaintext; raises "box-unreadable" where the box was not made for this key and info. */
export function boxOpen(secret: Bytes, info: Bytes, box: Bytes): Bytes {
  require(box.length >= BOX_OVERHEAD, "box-unreadable");
  try {
    const { secretKey } = ml_kem768.keygen(secret.slice(0, KEM_SEED_SIZE));
    const [cipherText, other] = [box.slice(0, ENC_SIZE - 32), box.slice(ENC_SIZE - 32, ENC_SIZE)];
    const curve = secret.slice(KEM_SEED_SIZE);
    const shared = ml_kem768.decapsulate(cipherText, secretKey);
    const [key, nonce] = schedule(xwing(shared, agree(curve, other), other, publicOf("X25519", curve)), info);
    return gcmOpen(key, nonce, box.slice(ENC_SIZE));
  } catch {
    throw new Fault("box-unreadable");
  }
}

function xwing(kem: Bytes, curve: Bytes, ephemeral: Bytes, key: Bytes): Bytes {
  return new Uint8Array(createHash("sha3-256").update(concat(kem, curve, ephemeral, key, XWING_LABEL)).digest());
}

/** Key and nonce of HPKE's base mode, single shot (RFC 9180 section 5.1). */
function schedule(shared: Bytes, info: Bytes): [Bytes, Bytes] {
  const suite = Buffer.concat([Buffer.from("HPKE"), Buffer.from("647a00010001", "hex")]);
  const version = Buffer.from("HPKE-v1");
  const extract = (salt: Bytes, label: string, material: Bytes) =>
    createHmac("sha256", salt.length ? salt : Buffer.alloc(32)).update(Buffer.concat([version, suite, Buffer.from(label), material])).digest();
  const context = Buffer.concat([Buffer.alloc(1), extract(EMPTY, "psk_id_hash", EMPTY), extract(EMPTY, "info_hash", info)]);
  const secret = extract(shared, "secret", EMPTY);
  const expand = (label: string, size: number) => {
    const full = Buffer.concat([Uint8Array.of(0, size), version, suite, Buffer.from(label), context, Uint8Array.of(1)]);
    return new Uint8Array(createHmac("sha256", secret).update(full).digest().subarray(0, size));
  };
  return [expand("key", 16), expand("base_nonce", 12)];
}
