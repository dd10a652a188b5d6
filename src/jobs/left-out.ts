import { BackupError } from '../base/errors.js'
import type { PointDisk, RecoveryPoint } from '../model/recovery-point.js'
import { pointName } from './restore-damage.js'

/**
 * Refuses what needs all of a disk of which the point has only a part. `what`
 * completes "so it cannot be". Throws E_UNSUPPORTED.
 */
export function refuseLeftOut(point: RecoveryPoint, disks: readonly PointDisk[], what: string): void {
  const disk = disks.find(({ below }) => below !== undefined)
  const [top] = disk?.below?.images ?? []
  if (disk === undefined || top === undefined) return
  throw new BackupError(
    'E_UNSUPPORTED',
    `${pointName(point)} leaves out images below disk ${disk.target}, so it cannot be ${what}`,
    {
      why: `what the disk has in common with ${top.path} is not in the store`,
      hints: [
        `restore it onto that image:   virtvault restore ${pointName(point)} --to DIR --backing ${disk.target}=${top.path}`,
      ],
    },
  )
}
