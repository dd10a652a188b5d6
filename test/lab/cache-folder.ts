import { homedir } from 'node:os'
import { join } from 'node:path'

/** Kept between labs and outside the repository: QEMU's capabilities, the Linux guest. */
export function cacheFolder(): string {
  return join(process.env['XDG_CACHE_HOME'] ?? join(homedir(), '.cache'), 'virtvault-lab')
}
