import { BackupError } from '../base/errors.js'

/** A disk's target and a path, as people write them: `vda=/dev/vg/scratch`. */
const FORM = /^([A-Za-z][A-Za-z0-9]*)=(\/.+)$/

/**
 * Block devices for scratch, by disk target. Throws E_USAGE where one is not
 * `DISK=/dev/…`, a disk has two, or two disks have the same.
 */
export function parseScratchDevices(texts: readonly string[]): ReadonlyMap<string, string> {
  const devices = new Map<string, string>()
  for (const text of texts) {
    const [, disk, path] = FORM.exec(text) ?? []
    if (disk === undefined || path === undefined) {
      throw new BackupError('E_USAGE', `"${text}" names no disk and device for its scratch`, {
        hints: ['write vda=/dev/vg/scratch'],
      })
    }
    const taken = [...devices].find(([other, device]) => other === disk || device === path)
    if (taken !== undefined) {
      throw new BackupError('E_USAGE', `"${text}": ${taken[0]} has ${taken[1]} for its scratch already`, {
        hints: ['each disk needs a device of its own'],
      })
    }
    devices.set(disk, path)
  }
  return devices
}
