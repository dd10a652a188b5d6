import type { RawConfig } from '../config/schema.js'
import { parseDuration } from '../model/duration.js'
import type { SchedulerLimits } from './scheduler.js'

/** What the configuration says of how the daemon runs, apart from its jobs. */

const DEFAULT_ATTEMPTS = 2
const DEFAULT_RETRY_DELAY = '5m'
const MOST_BY_DEFAULT = 4

/** How much may run at once, and what is tried again. `threads: 0` is all cores, none half of them and at most four. */
export function limitsOf(
  { threads, targets, retry }: Pick<RawConfig, 'retry' | 'targets' | 'threads'>,
  { cores, lookEveryMs }: { readonly cores: number; readonly lookEveryMs?: number | undefined },
): SchedulerLimits {
  const byDefault = Math.max(1, Math.min(MOST_BY_DEFAULT, Math.floor(cores / 2)))
  const host = threads === undefined ? byDefault : threads === 0 ? cores : threads
  return {
    host,
    ofTarget: target => targets?.[target]?.parallel ?? host,
    retry: {
      attempts: retry?.attempts ?? DEFAULT_ATTEMPTS,
      delay: parseDuration(retry?.delay ?? DEFAULT_RETRY_DELAY),
    },
    lookEveryMs,
  }
}

/** Which libvirt is followed, and as whom; another text is another connection. */
export function accessOf(config: RawConfig): string {
  const { uri, username, passphrase, passphrase_file, passphrase_command, passphrase_credential } = config
  return JSON.stringify([uri, username, passphrase, passphrase_file, passphrase_command, passphrase_credential])
}
