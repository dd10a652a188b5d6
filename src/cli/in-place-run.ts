import { BackupError } from '../base/errors.js'
import { formatLocalTime } from './output.js'
import { Paces } from './paces.js'
import { findPoint } from './points.js'
import { connectForFiles, openRemote } from './restore-connect.js'
import { makeRollbackJob } from './restore-wire.js'
import type { InPlaceWishes } from './restore-wishes.js'
import type { RollbackRun } from './rollback-view.js'
import type { Session } from './session.js'
import { findTarget, openStore } from './wire.js'

/** Rolls a domain's disks back, or says what that would write. Asks first. Rejects as RollbackJob. */
export async function runInPlace(session: Session, wishes: InPlaceWishes): Promise<RollbackRun> {
  const { signal } = session
  await using store = await openStore(session)
  const { noted, ref } = await findPoint(store, wishes.point)
  if (ref.path !== undefined) throw new BackupError('E_USAGE', '--in-place gives back whole disks')
  const { point } = noted
  await using machine = await connectForFiles(session, 'its disks')
  await using remote = await openRemote(session, machine)
  const pace = new Paces(session.clock).ofRestore(wishes.bwlimit, await findTarget(session))
  const job = await makeRollbackJob(session, { store, machine, remote, pace })
  const disks = [...wishes.disks, ...(ref.disk === undefined ? [] : [ref.disk])]
  const request = { point, disks: disks.length === 0 ? undefined : disks }
  if (wishes.dryRun) return { point, result: await job.measure(request, signal), dryRun: true }
  await session.confirm(
    `${disks.length === 0 ? 'All disks' : disks.join(', ')} of ${point.domain.name} will be as they were at ` +
      `${formatLocalTime(point.time)}; what was written since is lost.`,
  )
  return { point, result: await job.run(request, signal), dryRun: false }
}
