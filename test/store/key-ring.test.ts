import t from 'tap'

import { BackupError } from '../../src/base/errors.js'
import { KeyRing } from '../../src/store/key-ring.js'
import { Store } from '../../src/store/store.js'
import { MemoryProvider } from '../fakes/memory-provider.js'
import { PowerCut, SimulatedFs } from '../fakes/simulated-fs.js'
import { CHEAP_SCRYPT, CHUNK, given, pull } from './harness.js'

t.setTimeout(120_000)

const ROOT = '/store'
const geometry = { size: 4 * CHUNK, chunkSize: CHUNK }

async function made(passphrase = 'first'): Promise<SimulatedFs> {
  const fs = new SimulatedFs()
  await Store.init(ROOT, { fs, encryption: { passphrase, cost: CHEAP_SCRYPT } })
  return fs
}

async function ringOf(fs: SimulatedFs, passphrase: string): Promise<KeyRing> {
  const ring = await KeyRing.of(ROOT, { fs, cost: CHEAP_SCRYPT })
  await ring.unlock(passphrase)
  return ring
}

const opens = async (fs: SimulatedFs, passphrase: string) => {
  try {
    await using _store = await Store.open(ROOT, { fs, index: new MemoryProvider(), passphrase: given(passphrase) })
    return true
  } catch (error) {
    if (error instanceof BackupError && error.code === 'E_KEY') return false
    throw error
  }
}

const filesBut = (fs: SimulatedFs, folder: string) =>
  [...fs.files()].filter(([name]) => !name.includes(folder)).map(([name, bytes]) => `${name} ${bytes.toString('hex')}`)

t.test('a store has several passphrases, and each can go but the last', async t => {
  const fs = await made()
  await using ring = await ringOf(fs, 'first')

  const second = await ring.add('second', 'ops')
  t.ok(await opens(fs, 'first'))
  t.ok(await opens(fs, 'second'))
  const { slots } = await ring.list()
  t.strictSame(slots.map(({ label }) => label).sort(), ['', 'ops'])

  const first = slots.find(({ id }) => id !== second)!
  await ring.remove(first.id.slice(0, 8))
  t.notOk(await opens(fs, 'first'))
  t.ok(await opens(fs, 'second'))
  await t.rejects(ring.remove(second), { code: 'E_REFUSED', message: /last key slot/ })
  t.ok(await opens(fs, 'second'))
})

t.test('a changed passphrase opens the store, the old one does not, and no other file was touched', async t => {
  const fs = await made()
  {
    await using store = await Store.open(ROOT, { fs, index: new MemoryProvider(), passphrase: given('first') })
    await pull(store, geometry, [[0, 1]])
  }
  const before = filesBut(fs, '/keys')
  {
    await using ring = await ringOf(fs, 'first')
    await ring.replace('new one')
  }

  t.strictSame(
    filesBut(fs, '/keys').filter(line => !line.includes('.lock')),
    before.filter(line => !line.includes('.lock')),
  )
  t.notOk(await opens(fs, 'first'))
  t.ok(await opens(fs, 'new one'))
})

t.test('a power cut at any step of a change leaves a passphrase that opens the store', async t => {
  for (let cut = 0; ; cut++) {
    const fs = await made()
    const ring = await ringOf(fs, 'first')
    const start = fs.operations
    fs.onOperation = ({ count }) => {
      if (count - start < cut) return undefined
      fs.powerOff()
      return new PowerCut()
    }
    const done = await ring.replace('second').then(
      () => true,
      () => false,
    )
    for (const loss of ['everything', 'nothing'] as const) {
      const after = fs.afterPowerCut(loss)
      const [old, fresh] = [await opens(after, 'first'), await opens(after, 'second')]
      t.ok(old || fresh, `cut ${cut}, losing ${loss}: one of the two opens`)
      if (done) t.strictSame([old, fresh], [false, true])
    }
    if (done) break
  }
})

t.test('a power cut at any step of init leaves no store or a whole one, and init can be tried again', async t => {
  for (let cut = 0; ; cut++) {
    const fs = new SimulatedFs()
    fs.onOperation = ({ count }) => {
      if (count < cut) return undefined
      fs.powerOff()
      return new PowerCut()
    }
    const encryption = { passphrase: 'first', cost: CHEAP_SCRYPT }
    const done = await Store.init(ROOT, { fs, encryption }).then(
      () => true,
      () => false,
    )
    for (const loss of ['everything', 'nothing'] as const) {
      const after = fs.afterPowerCut(loss)
      try {
        t.ok(await opens(after, 'first'), `cut ${cut}, losing ${loss}`)
      } catch (error) {
        t.match(error, { code: 'E_NO_STORE' }, `cut ${cut}, losing ${loss}`)
        await Store.init(ROOT, { fs: after, encryption })
        t.ok(await opens(after, 'first'))
      }
    }
    if (done) break
  }
})

t.test('keys of a store whose store.json is gone are not thrown away', async t => {
  const fs = await made()
  {
    await using store = await Store.open(ROOT, { fs, index: new MemoryProvider(), passphrase: given('first') })
    await pull(store, geometry, [[0, 1]])
  }
  await fs.remove(`${ROOT}/store.json`)

  await t.rejects(Store.init(ROOT, { fs }), { code: 'E_REFUSED', message: /store.json is missing/ })
})

t.test('an exported key opens the store without any slot, and gives it a new one', async t => {
  const fs = await made()
  let key = ''
  {
    await using ring = await ringOf(fs, 'first')
    key = ring.exportKey()
  }
  for (const name of fs.files().keys()) if (name.includes('/keys/')) await fs.remove(name)

  await t.rejects(Store.open(ROOT, { fs, passphrase: given('first') }), { code: 'E_KEY', message: /no key slot/ })
  t.ok(await opens(fs, key))
  await using ring = await KeyRing.of(ROOT, { fs, cost: CHEAP_SCRYPT })
  ring.importKey(key.toLowerCase())
  await ring.add('second', 'import')
  t.ok(await opens(fs, 'second'))

  const other = await made()
  await using otherRing = await KeyRing.of(ROOT, { fs: other })
  t.throws(() => otherRing.importKey(key), { code: 'E_KEY', message: /not the key of this store/ })
  t.notOk(await opens(other, key))
})

t.test('only who opened the store may change its keys, one at a time, and a passphrase is not empty', async t => {
  const fs = await made()
  await using locked = await KeyRing.of(ROOT, { fs, cost: CHEAP_SCRYPT })
  t.throws(() => locked.exportKey(), { code: 'E_KEY' })
  await t.rejects(locked.add('x', ''), { code: 'E_KEY' })
  await t.rejects(locked.remove('00'), { code: 'E_KEY' })
  await t.rejects(locked.unlock('wrong'), { code: 'E_KEY' })

  await using ring = await ringOf(fs, 'first')
  await t.rejects(ring.add('', ''), { code: 'E_USAGE' })
  await t.rejects(ring.add('x', 'ä'.repeat(33)), { code: 'E_USAGE' })
  await t.rejects(ring.add('VVKEY1-what-looks-like-one', ''), { code: 'E_USAGE' })
  await t.rejects(ring.find('zz'), { code: 'E_NOT_FOUND' })
  await t.rejects(ring.find(''), { code: 'E_NOT_FOUND' })
  await using lock = await fs.lock(`${ROOT}/locks/keys.lock`, 'exclusive')
  t.ok(lock)
  await t.rejects(ring.add('x', ''), { code: 'E_LOCKED' })
})

t.test('a slot that cannot be read is named, and hides no other', async t => {
  const fs = await made()
  await using ring = await ringOf(fs, 'first')
  const spoilt = await ring.add('second', '')
  fs.tamper(`${ROOT}/keys/${spoilt}.slot`, bytes => bytes.subarray(0, 100))

  t.match((await ring.list()).unreadable, [{ file: `keys/${spoilt}.slot` }])
  t.ok(await opens(fs, 'first'))
  t.notOk(await opens(fs, 'second'))
})

t.test('a passphrase counts as people read it, not as a keyboard spells it', async t => {
  const fs = await made('Grüße'.normalize('NFD'))

  t.ok(await opens(fs, 'Grüße'.normalize('NFC')))
})

t.test('a store without encryption has no keys', async t => {
  const fs = new SimulatedFs()
  await Store.init(ROOT, { fs })

  await t.rejects(KeyRing.of(ROOT, { fs }), { code: 'E_UNSUPPORTED' })
  await t.rejects(KeyRing.of('/nowhere', { fs }), { code: 'E_NO_STORE' })
})
