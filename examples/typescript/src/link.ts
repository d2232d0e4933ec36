/** MQTT as SPEC.md section 12 has it. A lost connection comes back by itself; whatever got lost with it is sent again by the device. */

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import mqtt, { type IClientOptions, type MqttClient } from "mqtt";
import type { Bytes } from "./cbor.js";
import type { Kit } from "./kit.js";

const SHARDS = 16;

export class Link {
  private readonly root: string;
  private readonly client: MqttClient;

  constructor(private readonly kit: Kit, private readonly task: string, onMessage: (body: Bytes) => void, onConnect: () => void) {
    this.root = `blindsum/1/${kit.trust.fleet}`;
    const { url, ca, certificate, key, user, password_file: password } = kit.broker;
    const file = (name: string) => readFileSync(join(kit.folder, name));
    const presence = `${this.root}/st/device/${kit.name}`;
    const options: IClientOptions = {
      protocolVersion: 5, clientId: kit.name, clean: true,
      will: { topic: presence, payload: Buffer.from("offline"), qos: 1, retain: true },
      ...(ca && { ca: file(ca), minVersion: "TLSv1.3" }),
      ...(certificate && { cert: file(certificate), key: file(key) }),
      ...(user && { username: user, password: password ? file(password).toString("utf8").trim() : "" }),
    };
    this.client = mqtt.connect(url, options);
    this.client.on("connect", () => {
      this.client.publish(presence, "online", { qos: 1, retain: true });
      onConnect();
    });
    this.client.on("message", (_topic, body) => {
      if (body.length) onMessage(new Uint8Array(body));
    });
    this.client.on("error", () => undefined); // it tries again; nothing else to do
    this.client.subscribe([`${this.root}/dn/${kit.name}/+`, `${this.root}/bc/${task}/+`], { qos: 1 });
  }

  send(kind: string, body: Bytes): void {
    const shard = createHash("sha256").update(this.kit.name).digest()[0] % SHARDS;
    const topic = `${this.root}/up/${shard.toString(16).padStart(2, "0")}/${this.kit.name}/${kind}`;
    if (this.client.connected) this.client.publish(topic, Buffer.from(body), { qos: 1 });
  }

  listen(blob: Bytes, on: boolean): void {
    const filter = `${this.root}/bc/${this.task}/chunk/${Buffer.from(blob.subarray(0, 8)).toString("hex")}/+`;
    if (on) this.client.subscribe(filter, { qos: 1 });
    else this.client.unsubscribe(filter);
  }

  async close(): Promise<void> {
    await this.client.publishAsync(`${this.root}/st/device/${this.kit.name}`, "offline", { qos: 1, retain: true });
    await this.client.endAsync();
  }
}
