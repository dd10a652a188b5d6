import type { Clock } from '../base/clock.js'
import { Pace } from '../base/pace.js'
import type { ResolvedJob } from '../config/resolve.js'
import type { TargetPlace } from './targets.js'

/**
 * The paces of one process. Who is limited by the same words (one flag, one
 * group, one target of the configuration) shares one pace, so that ten domains
 * of a group together keep to the group's `bwlimit`.
 */
export class Paces {
  readonly #clock: Clock
  readonly #paces = new Map<string, Pace>()

  constructor(clock: Clock) {
    this.#clock = clock
  }

  /** Of reading a domain; undefined where nobody limits it, or 0 says so. */
  ofJob({ domain, settings, originOf }: Pick<ResolvedJob, 'domain' | 'settings' | 'originOf'>): Pace | undefined {
    const { source = 'built-in', where = '' } = originOf('bwlimit') ?? {}
    // A domain's own metadata speaks of that domain alone.
    const whose = source === 'metadata' ? domain.uuid : ''
    return this.#pace(`job ${source} ${where} ${whose}`, settings.bwlimit)
  }

  /** Of what is written to a store, or read back from it. */
  ofTarget({ name, bwlimit }: Pick<TargetPlace, 'name' | 'bwlimit'>): Pace | undefined {
    return this.#pace(`target ${name}`, bwlimit)
  }

  /** Of a restore: what its flag says, else the target it reads from. */
  ofRestore(rate: number | undefined, place: TargetPlace): Pace | undefined {
    return rate === undefined ? this.ofTarget(place) : this.#pace('restore', rate)
  }

  #pace(name: string, rate: number | undefined): Pace | undefined {
    if (rate === undefined || rate === 0) return undefined
    const key = `${rate} ${name}`
    const pace = this.#paces.get(key) ?? new Pace(rate, this.#clock)
    this.#paces.set(key, pace)
    return pace
  }
}
