import type { HookVerdict } from './hooks.js'
import type { RunOutcome } from './task.js'

type Outcome = Pick<RunOutcome, 'status' | 'error' | 'figures'>

interface OpenScope {
  readonly verdict: Promise<HookVerdict>
  readonly outcomes: Outcome[]
  inside: number
}

/**
 * Scopes that several runs share, a group or everything: opened by the first
 * run that comes in, closed by the last that leaves.
 */
export class ScopeGate {
  readonly #open = new Map<string, OpenScope>()

  /** `before` runs once for all; later ones get its verdict. */
  enter(key: string, before: () => Promise<HookVerdict>): Promise<HookVerdict> {
    const scope = this.#open.get(key) ?? { verdict: before(), outcomes: [], inside: 0 }
    this.#open.set(key, scope)
    scope.inside++
    return scope.verdict
  }

  /** All outcomes where this one closed the scope; `isMore` keeps it open for those that are still to come. */
  leave(key: string, outcome: Outcome, isMore: boolean): readonly Outcome[] | undefined {
    const scope = this.#open.get(key)
    if (scope === undefined) return undefined
    scope.outcomes.push(outcome)
    scope.inside--
    if (scope.inside > 0 || isMore) return undefined
    this.#open.delete(key)
    return scope.outcomes
  }
}
