/** How this implementation says that something is wrong: the codes of SPEC.md section 13. */

export class Fault extends Error {
  /** `culprit`: the principal at whom it is laid, where that is certain. */
  constructor(readonly code: string, readonly culprit = "") {
    super(code);
  }
}

export function require(condition: unknown, code: string, culprit = ""): asserts condition {
  if (!condition) throw new Fault(code, culprit);
}
