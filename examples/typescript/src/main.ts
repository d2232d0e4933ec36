/** A device as a program: `node dist/main.js KIT --task NAME --data FILE.csv`. Writes a line of JSON an event.
 *
 * Ends with status 0 after `--rounds` finished rounds (default 1), with 3 where the service speaks another protocol version.
 * `--inspect FOLDER` keeps each plain vector that was masked, as its owner may. `--speak VERSION` is for trying out version 2.
 */

import { closeSync, existsSync, fsyncSync, mkdirSync, openSync, readFileSync, renameSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { Device, type Memory, type World } from "./device.js";
import { openKit } from "./kit.js";
import { Link } from "./link.js";
import { readExamples, train } from "./softmax.js";

const TICK_MS = 250;
const UPGRADE_REQUIRED = 3;

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: {
    task: { type: "string" }, data: { type: "string" }, rounds: { type: "string", default: "1" }, inspect: { type: "string" },
    "cohort-min": { type: "string", default: "2" }, speak: { type: "string", default: "1" },
  },
});
const [folder] = positionals;
const { task, data, inspect } = values;
if (!folder || !task || !data) throw new Error("node dist/main.js KIT --task NAME --data FILE.csv");

const kit = openKit(folder);
const examples = readExamples(readFileSync(data, "utf8"));
const memoryFile = join(folder, `memory-${task}.json`);
const nothing: Memory = { spent: 0, last: { round: 0, issued_at: 0 }, rest_until: 0 };
let memory = existsSync(memoryFile) ? (JSON.parse(readFileSync(memoryFile, "utf8")) as Memory) : nothing;
let finished = 0;

const world: World = {
  send: (kind, body) => link.send(kind, body),
  listen: (blob, on) => link.listen(blob, on),
  get memory() {
    return memory;
  },
  remember: (next) => {
    durable(memoryFile, JSON.stringify(next));
    memory = next;
  },
  examples: () => examples.length,
  train: (_round, model, _plan, training) => train(examples, model, training),
  tell: (event, about) => {
    console.log(JSON.stringify({ event, ...about }));
    if (event === "round-finished" && ++finished === Number(values.rounds)) void end(0);
    if (event === "upgrade-required") void end(UPGRADE_REQUIRED);
  },
  inspect: (round, _learnt, packed) => {
    if (!inspect) return;
    mkdirSync(inspect, { recursive: true });
    writeFileSync(join(inspect, `${kit.name}-${round}.bin`), packed);
  },
};
const device = new Device(kit, task, Number(values["cohort-min"]), world, Number(values.speak));
const link = new Link(kit, task, (body) => device.receive(body, Date.now()), () => world.tell("connected", {}));
const timer = setInterval(() => device.tick(Date.now()), TICK_MS);

async function end(status: number): Promise<void> {
  clearInterval(timer);
  await link.close();
  process.exit(status);
}

/** Whole or not at all, and on the disk. */
function durable(path: string, text: string): void {
  const file = openSync(`${path}.partial`, "w");
  writeSync(file, text);
  fsyncSync(file);
  closeSync(file);
  renameSync(`${path}.partial`, path);
}
