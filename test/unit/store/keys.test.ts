import { scryptSync } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'

import t from 'tap'

import { fromHex, toHex } from '../../../src/base/hex.js'
import { decodeKeySlot, openKeySlot } from '../../../src/format/key-slot.js'
import { decodeStoreFile } from '../../../src/format/store-file.js'
import { deriveKeys, isKeyOf, keyCheck, plainKeys } from '../../../src/store/keys.js'
import { FIXTURES, GOLDEN_PASSPHRASES } from '../../golden/golden.js'

const STORE_ID = fromHex('5e1cdfd4d25422720171dc8975f38ab9')
const MASTER = fromHex('9e50adce835b1acd1043601fb0eadbc1b39a771a5f5a3349170492b291baf067')
const GOLDEN = join(FIXTURES, 'store-v1-encrypted')
const goldenFile = () => decodeStoreFile(readFileSync(join(GOLDEN, 'store.json')))

// The values are docs/format.md's, computed by test/golden/read_store.py.
t.test('keys come out as docs/format.md works them out', t => {
  const slot = decodeKeySlot(readFileSync(join(GOLDEN, 'keys/23bade4ff07f4f1acbbf2682961d567d.slot')))
  const { cost: N, blockSize: r, parallelism: p } = slot.scrypt
  const secret = scryptSync(GOLDEN_PASSPHRASES[0], slot.salt, 64, { N, r, p, maxmem: 2 ** 26 })
  t.equal(
    secret.toString('hex'),
    'cfd4e00e223d5fcba83f72031d66da30f77e7cf9b2e67dac37015064111a107c21e320e4d4c3bf58451f252b9f6b3b42ffaff34d207831c2a8b972c3d92e3fcb',
  )
  t.equal(toHex(openKeySlot(slot, secret)!), toHex(MASTER))

  const keys = deriveKeys(MASTER, STORE_ID)
  t.equal(toHex(keys.idKey!), 'ccb3118907f0d65cd3bf0d92460a969eb8a79db27d9ad41d6d0ae0b4de350cb5')
  const pack = readFileSync(join(GOLDEN, 'packs/76/762118b9282d7bb783b2747cca4c3772.pack'))
  t.equal(
    toHex(keys.packKey(pack.subarray(48, 80), pack.subarray(32, 48))!),
    'e1909227a542f22c4b112e0f935123eed21e18d5a7e23747ea80aaa2abad6042',
  )
  t.equal(toHex(keyCheck(MASTER, goldenFile())), '29d69a1616259b050ef83d4e36c55cfe1f98359cbe28195b9292fae0b4cd607c')
  t.end()
})

t.test('every purpose, store, pack and salt has a key of its own', t => {
  const other = fromHex('00000000000000000000000000000001')
  const salts = [new Uint8Array(32), new Uint8Array(32).fill(1)]
  const packs = [new Uint8Array(16), new Uint8Array(16).fill(1)]

  const found: string[] = []
  for (const storeId of [STORE_ID, other]) {
    const keys = deriveKeys(MASTER, storeId)
    found.push(toHex(keys.idKey!))
    for (const salt of salts) {
      found.push(toHex(keys.pointKey(salt)!), ...packs.map(pack => toHex(keys.packKey(salt, pack)!)))
    }
  }

  t.equal(found.length, 14)
  t.equal(new Set(found).size, found.length)
  t.end()
})

t.test('the key check fits one key and one store.json', t => {
  const file = goldenFile()
  t.ok(isKeyOf(MASTER, file))

  const wrong = Uint8Array.from(MASTER)
  wrong[31] = wrong[31]! ^ 1
  t.notOk(isKeyOf(wrong, file))
  const changes: readonly Partial<typeof file>[] = [
    { id: '5e1cdfd4d25422720171dc8975f38ab8' },
    { chunkSize: 131_072 },
    { hash: 'sha256' },
    { level: 0 },
    { created: file.created + 1 },
    { features: { ...file.features, compat: ['a'] } },
    { features: { ...file.features, readonlyCompat: ['a'] } },
    { features: { ...file.features, incompat: [] } },
  ]
  for (const change of changes) t.notOk(isKeyOf(MASTER, { ...file, ...change }), Object.keys(change).join())
  t.notOk(isKeyOf(MASTER, { ...file, encryption: undefined }))
  t.end()
})

t.test('wiped keys are gone, and a plain store has none', t => {
  const keys = deriveKeys(MASTER, STORE_ID)
  const { idKey } = keys
  keys.wipe()

  t.ok(idKey!.every(byte => byte === 0))
  t.throws(() => keys.idKey, /after their store was closed/)
  t.throws(() => keys.packKey(new Uint8Array(32), new Uint8Array(16)), /after their store was closed/)
  t.throws(() => keys.pointKey(new Uint8Array(32)), /after their store was closed/)
  t.strictSame(
    [plainKeys.idKey, plainKeys.packKey(MASTER, MASTER), plainKeys.pointKey(MASTER)],
    [undefined, undefined, undefined],
  )
  plainKeys.wipe()
  t.end()
})
