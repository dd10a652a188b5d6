import * as Flags from '@oclif/core/flags'

import { BackupError } from '../base/errors.js'

/** How far this process stands back behind others, for CPU and for disk I/O. */
export interface Priority {
  readonly nice: number
  /** As ioprio_set(2) counts: 2 best-effort, 3 idle. */
  readonly ioClass: 2 | 3
  readonly ioLevel: number
}

export interface PriorityWords {
  /** 0 to 19. */
  readonly nice?: number | undefined
  /** `idle`, `best-effort`, `best-effort:0` to `best-effort:7`. */
  readonly ionice?: string | undefined
}

/** Flags of commands that may run for long beside a guest. */
export const PRIORITY_FLAGS = {
  nice: Flags.integer({ summary: 'lower the CPU priority of this run', min: 0, max: 19, helpValue: '0-19' }),
  ionice: Flags.string({
    summary: 'lower the disk priority of this run',
    helpValue: 'idle|best-effort[:0-7]',
  }),
}

/** undefined where nothing is asked for. Throws E_USAGE. */
export function readPriority({ nice, ionice }: PriorityWords): Priority | undefined {
  if (nice === undefined && ionice === undefined) return undefined
  const cpu = nice ?? 0
  // What the kernel derives from the niceness where nobody sets it.
  const level = Math.floor((cpu + 20) / 5)
  if (ionice === undefined) return { nice: cpu, ioClass: 2, ioLevel: level }
  if (ionice === 'idle') return { nice: cpu, ioClass: 3, ioLevel: 0 }
  const [, digit] = /^best-effort(?::([0-7]))?$/.exec(ionice) ?? []
  if (ionice === 'best-effort' || digit !== undefined) {
    return { nice: cpu, ioClass: 2, ioLevel: digit === undefined ? level : Number(digit) }
  }
  throw new BackupError('E_USAGE', `"${ionice}" is no disk priority`, {
    hints: ['write idle, best-effort, or best-effort:7 (0 is the highest, 7 the lowest)'],
  })
}
