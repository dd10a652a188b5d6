/**
 * Names of checkpoints: `virtvault-<8 of store id>-<15 hex digits><step>`.
 *
 * Checkpoints of one run share all but the last digit of their token, however
 * many stores it wrote to. Those of one step were made for the same read, none
 * of them after its instant; those of a lower step before. So what a bitmap of
 * a lower or equal step calls clean is as in every point of the family from
 * that step on. No clock says so, and nothing that libvirt could lose.
 */

const FAMILY_DIGITS = 15
const TOKEN = /-([0-9a-f]{15})([0-9a-f])$/

/** Reads that one family has room for. */
export const MAX_STEPS = 16

/** Starts the names of a store's checkpoints, so that several stores and tools can share a domain. */
export function checkpointPrefix(storeId: string): string {
  return `virtvault-${storeId.slice(0, 8)}-`
}

/** The token of step `step`, below MAX_STEPS, in the family of `token` (16 random hex digits). */
export function tokenOfStep(token: string, step: number): string {
  return `${token.slice(0, FAMILY_DIGITS)}${step.toString(16)}`
}

/** undefined for a name that is not of this kind: it has no relatives. */
export function familyOf(checkpoint: string): string | undefined {
  return TOKEN.exec(checkpoint)?.[1]
}

/** Which read of its family a checkpoint is of. */
export function stepOf(checkpoint: string): number {
  return Number.parseInt(TOKEN.exec(checkpoint)?.[2] ?? '0', 16)
}
