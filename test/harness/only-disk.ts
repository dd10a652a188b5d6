import type { PulledDisk, SinkResult } from '../../src/jobs/pull-disk.js'

/** Of a pull into one store. Throws what that failed with. */
export function onlyDisk(results: readonly SinkResult[]): PulledDisk {
  const [result] = results
  if (result === undefined || results.length > 1) throw new Error('not the result of one store')
  if (result.kind === 'failed') throw result.error
  return result.disk
}
