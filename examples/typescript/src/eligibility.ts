/** Whom an operator wants in a round (SPEC.md section 5.7). */

import { digest } from "./crypto.js";

export interface Criterion {
  kind: string;
  version: number;
  values: number[];
}

/** The last round of a task in which this device uploaded; round 0 where there is none. */
export interface Last {
  round: number;
  issued_at: number;
}

const VALUES: Record<string, number> = { "examples-min": 1, "once-per": 1, "rounds-apart": 1, share: 2, retry: 2 };

/** Where a device stands in the staged roll-outs of a task, 0 to 999. */
export function placeOf(task: string, device: string): number {
  return Number(Buffer.from(digest("share", task, device)).readBigUInt64BE() % 1000n);
}

/** Whether every criterion holds; one that is not known does not. `examples`: null where nobody has counted them. */
export function eligible(
  criteria: Criterion[], task: string, device: string, round: number, issuedAt: number, last: Last, examples: number | null,
): boolean {
  return criteria.every(({ kind, version, values }) => {
    if (version !== 1 || VALUES[kind] !== values.length) return false;
    const [first, second] = values;
    switch (kind) {
      case "examples-min":
        return examples !== null && examples >= first;
      case "once-per":
        return last.round === 0 || Math.floor(issuedAt / (1000 * first)) > Math.floor(last.issued_at / (1000 * first));
      case "rounds-apart":
        return last.round === 0 || round - last.round > first;
      case "share":
        return placeOf(task, device) < first + second * (round - 1);
      default:
        return true;
    }
  });
}

/** From and to how many ms a device rests after leaving a round without an upload. */
export function retryWindow(criteria: Criterion[]): [number, number] {
  const retry = criteria.findLast(({ kind, version, values }) => kind === "retry" && version === 1 && values.length === 2);
  return retry ? [1000 * retry.values[0], 1000 * retry.values[1]] : [0, 0];
}
