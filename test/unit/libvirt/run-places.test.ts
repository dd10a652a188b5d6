import t from 'tap'

import { buildBackupXml, parseBackupXml } from '../../../src/libvirt/backup-xml.js'
import { filesOf, isMarked, nameRunPlaces, runMarkOf } from '../../../src/libvirt/run-places.js'

const NAMES = { prefix: 'p-', token: '0123456789abcdef' }
const TCP = { bind: '192.0.2.1', host: 'hv', tls: undefined, firstPort: 100, lastPort: 109 }
const dirs = { runtimeDir: '/run/v', scratchDir: '/s' }

function jobOf(places: ReturnType<typeof nameRunPlaces>) {
  const place =
    places.tcp === undefined ? { socket: places.socket } : { bind: places.tcp.bind, port: 100, hasTls: true }
  const disks = [...places.scratch].map(([target, scratch]) => ({ target, scratch, base: undefined, tracked: true }))
  return parseBackupXml(buildBackupXml(place, disks))
}

t.test('a job is known as ours by its socket, or on TCP by its scratch files', async t => {
  for (const policy of [dirs, { ...dirs, tcp: TCP }, { ...dirs, tcp: TCP, isFlat: true }]) {
    const places = nameRunPlaces(policy, NAMES, ['vda', 'vdb'])
    const other = nameRunPlaces(policy, { ...NAMES, token: '0123456789abcdee' }, ['vda'])
    const job = jobOf(places)

    t.equal(runMarkOf(job), places.socket)
    t.equal(isMarked(job, places.socket), true)
    t.equal(isMarked(job, other.socket), false)
  }
})

t.test('a job of another program is nobody of ours', async t => {
  const disk = { target: 'vda', base: undefined, tracked: true, scratch: { kind: 'file' as const, path: '/s/x.qcow2' } }

  const onSocket = parseBackupXml(buildBackupXml({ socket: '/run/other.sock' }, [disk]))
  const onTcp = parseBackupXml(buildBackupXml({ bind: '::1', port: 1, hasTls: false }, [disk]))

  t.equal(runMarkOf(onSocket), undefined)
  t.equal(runMarkOf(onTcp), undefined)
})

t.test('without a shell there the scratch files need no directory of their own', async t => {
  const flat = nameRunPlaces({ ...dirs, tcp: TCP, isFlat: true }, NAMES, ['vda'])

  t.strictSame(filesOf(flat), ['/s/run-0123456789abcdef-disk-0.qcow2'])
})

t.test('every port of the range is tried once, from one that differs between runs', async t => {
  const ports = (token: string) => nameRunPlaces({ ...dirs, tcp: TCP }, { ...NAMES, token }, []).tcp?.ports ?? []

  t.strictSame(
    [...ports('0123456789abcdef')].sort(),
    [...Array(10).keys()].map(i => 100 + i),
  )
  t.not(ports('0000000000000000')[0], ports('0000000100000000')[0])
})
