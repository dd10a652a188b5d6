import type { PullResult } from '../../src/jobs/pull-job.js'
import type { LabDomain } from '../lab/lab-domain.js'
import { type Matrix, readings } from './matrix.js'

/** What a pull read, warned of, and got wrong: undefined where it is right. */
export interface ShadowPull {
  readonly difference: string | undefined
  readonly read: readonly string[]
  readonly warned: readonly string[]
  readonly consistency: PullResult['point']['consistency']
}

/**
 * Pulls, and compares with the shadows alone: also where the domain's image is
 * another than the lab made, as after a snapshot. It must not write meanwhile.
 */
export async function pullByShadow(matrix: Matrix, domain: LabDomain): Promise<ShadowPull> {
  const { point, warnings } = await matrix.puller.pull(domain)
  const differences: string[] = []
  for (const { target } of point.disks) {
    const difference = await matrix.difference(point, target, domain.disk(target).shadow)
    if (difference !== undefined) differences.push(`${target}: ${difference}`)
  }
  return {
    difference: differences.length === 0 ? undefined : differences.join('; '),
    read: readings(point),
    warned: warnings.map(({ code }) => code),
    consistency: point.consistency,
  }
}
