/** A device's kit as `blindsum enrol` makes it: keys, certificate, trust bundle, and where the broker is. */

import { createPrivateKey } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Bytes } from "./cbor.js";
import { trustOpen, type Trust } from "./envelope.js";

export interface Kit {
  folder: string;
  name: string;
  trust: Trust;
  /** Ed25519, 32 bytes. */
  key: Bytes;
  certificate: Bytes;
  broadcastKey: Bytes;
  broker: Record<string, string>;
}

export function openKit(folder: string): Kit {
  const file = (name: string) => new Uint8Array(readFileSync(join(folder, name)));
  const der = createPrivateKey(readFileSync(join(folder, "key.pem"))).export({ format: "der", type: "pkcs8" });
  const settings = Object.fromEntries(
    [...readFileSync(join(folder, "device.toml"), "utf8").matchAll(/^(\w+) = (".*")$/gm)].map(([, name, value]) => [name, JSON.parse(value)]),
  ) as Record<string, string>;
  return {
    folder, name: settings.device, trust: trustOpen(file("trust.cbor")), key: new Uint8Array(der.subarray(-32)),
    certificate: file("certificate.der"), broadcastKey: file("broadcast.key"), broker: settings,
  };
}
