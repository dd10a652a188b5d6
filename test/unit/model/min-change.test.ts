import t from 'tap'

import { tooLittleChanged } from '../../../src/model/min-change.js'
import type { PullPlan } from '../../../src/model/pull-plan.js'
import type { RecoveryPoint } from '../../../src/model/recovery-point.js'

const planned = (target: string, more: object = {}) => ({ target, base: 'c', isAudit: false, tracked: true, ...more })
const plan = (...disks: object[]) => ({ disks, skipped: [], warnings: [] }) as unknown as PullPlan
const latest = (...targets: string[]) => ({ disks: targets.map(target => ({ target })) }) as unknown as RecoveryPoint
const known = (bytes: Readonly<Record<string, number>>, minBytes = 100) => ({
  dirtyBytes: new Map(Object.entries(bytes)),
  minBytes,
})

t.test('the changes of all disks together decide', async t => {
  const two = plan(planned('vda'), planned('vdb'))

  t.equal(tooLittleChanged(two, latest('vda', 'vdb'), known({ vda: 40, vdb: 59 })), 99)
  t.equal(tooLittleChanged(two, latest('vda', 'vdb'), known({ vda: 40, vdb: 60 })), undefined)
  t.equal(tooLittleChanged(two, latest('vda', 'vdb'), known({ vda: 0, vdb: 0 }, 0)), undefined)
})

t.test('where anything is not known, a pull is due', async t => {
  const none = known({ vda: 0, vdb: 0 })

  t.equal(tooLittleChanged(plan(planned('vda')), undefined, none), undefined)
  t.equal(tooLittleChanged(plan(planned('vda')), latest('vda', 'vdb'), none), undefined, 'a disk was removed')
  t.equal(tooLittleChanged(plan(planned('vda'), planned('vdb')), latest('vda'), none), undefined, 'one is new')
  t.equal(tooLittleChanged(plan(planned('vda', { base: undefined })), latest('vda'), none), undefined, 'a full read')
  t.equal(tooLittleChanged(plan(planned('vda', { isAudit: true })), latest('vda'), none), undefined, 'an audit')
  t.equal(tooLittleChanged(plan(planned('vdc')), latest('vdc'), none), undefined, 'nobody counted it')
})
