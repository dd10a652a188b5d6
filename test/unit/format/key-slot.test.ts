import { hkdfSync, scryptSync } from 'node:crypto'

import t from 'tap'

import { fromHex, toHex } from '../../../src/base/hex.js'
import { decodeExportedKey, encodeExportedKey, isExportedKey } from '../../../src/format/exported-key.js'
import { type ScryptCost, decodeKeySlot, encodeKeySlot, isSaneCost, openKeySlot } from '../../../src/format/key-slot.js'
import { native } from '../../../src/native/binding.js'

const MASTER = fromHex('9e50adce835b1acd1043601fb0eadbc1b39a771a5f5a3349170492b291baf067')
const SECRET = new Uint8Array(64).map((_, at) => at * 3 + 1)
const HEADER = {
  storeId: new Uint8Array(16).fill(1),
  slotId: new Uint8Array(16).fill(2),
  scrypt: { cost: 2 ** 17, blockSize: 8, parallelism: 1 },
  salt: new Uint8Array(32).fill(3),
  created: Date.UTC(2026, 10, 20),
  label: 'Tresor im Keller, für alle',
}
const CRC_AT = 248

/** `bytes` with one bit changed and the checksum made right again, as an attacker would. */
function forged(bytes: Uint8Array, bit: number): Uint8Array {
  const copy = Uint8Array.from(bytes)
  copy[bit >> 3] = copy[bit >> 3]! ^ (1 << (bit & 7))
  new DataView(copy.buffer).setUint32(CRC_AT, native().crc32c(copy.subarray(0, CRC_AT)), true)
  return copy
}

t.test('a slot gives the master key back for its secret, and tells what it says of itself', t => {
  const slot = decodeKeySlot(encodeKeySlot(HEADER, SECRET, MASTER))

  t.match(slot, HEADER)
  t.equal(toHex(openKeySlot(slot, SECRET)!), toHex(MASTER))
  t.end()
})

t.test('every bit of a slot is authenticated: no forged one opens', t => {
  const bytes = encodeKeySlot(HEADER, SECRET, MASTER)
  let refused = 0

  for (let bit = 0; bit < CRC_AT * 8; bit++) {
    try {
      if (openKeySlot(decodeKeySlot(forged(bytes, bit)), SECRET) === undefined) refused++
    } catch {
      refused++
    }
  }

  t.equal(refused, CRC_AT * 8)
  t.end()
})

t.test('a slot opens for no other secret, whichever half of it differs', t => {
  const slot = decodeKeySlot(encodeKeySlot(HEADER, SECRET, MASTER))

  for (let at = 0; at < SECRET.length; at++) {
    const other = Uint8Array.from(SECRET)
    other[at] = other[at]! ^ 0x80
    t.equal(openKeySlot(slot, other), undefined, `byte ${at}`)
  }
  t.end()
})

t.test('a slot that is cut, spoilt or longer is damaged', t => {
  const bytes = encodeKeySlot(HEADER, SECRET, MASTER)

  for (let length = 0; length < bytes.length; length++) {
    t.throws(() => decodeKeySlot(bytes.subarray(0, length)), { code: 'E_DAMAGED' })
  }
  t.throws(() => decodeKeySlot(Buffer.concat([bytes, Buffer.alloc(1)])), { code: 'E_DAMAGED' })
  for (let at = 0; at < bytes.length; at++) {
    const spoilt = Uint8Array.from(bytes)
    spoilt[at] = spoilt[at]! ^ 1
    t.throws(() => decodeKeySlot(spoilt), { code: 'E_DAMAGED' }, `byte ${at}`)
  }
  t.end()
})

t.test('scrypt runs with neither too little nor too much', t => {
  const sane: readonly ScryptCost[] = [
    { cost: 2 ** 14, blockSize: 8, parallelism: 1 },
    { cost: 2 ** 17, blockSize: 8, parallelism: 1 },
    { cost: 2 ** 19, blockSize: 8, parallelism: 4 },
    { cost: 2 ** 17, blockSize: 32, parallelism: 16 },
  ]
  const insane: readonly ScryptCost[] = [
    { cost: 2 ** 13, blockSize: 8, parallelism: 1 },
    { cost: 2 ** 21, blockSize: 8, parallelism: 1 },
    { cost: 2 ** 17 + 1, blockSize: 8, parallelism: 1 },
    { cost: 0, blockSize: 8, parallelism: 1 },
    { cost: 2 ** 17, blockSize: 1, parallelism: 1 },
    { cost: 2 ** 17, blockSize: 64, parallelism: 1 },
    { cost: 2 ** 17, blockSize: 8, parallelism: 0 },
    { cost: 2 ** 17, blockSize: 8, parallelism: 17 },
    { cost: 2 ** 20, blockSize: 32, parallelism: 1 },
  ]

  for (const cost of sane) t.ok(isSaneCost(cost), JSON.stringify(cost))
  for (const scrypt of insane) {
    t.notOk(isSaneCost(scrypt), JSON.stringify(scrypt))
    t.throws(() => decodeKeySlot(encodeKeySlot({ ...HEADER, scrypt }, SECRET, MASTER)), { code: 'E_DAMAGED' })
  }
  t.end()
})

t.test('an exported key comes back however it is typed', t => {
  const storeId = fromHex('5e1cdfd4d25422720171dc8975f38ab9')
  // As docs/format.md has it, and the independent reader reads it.
  const text = 'VVKEY1-BRED-ZN4Y-A2PW-X0TV-3B6H-0GV0-3YRE-NPY1-PED7-E6JZ-B8SM-J5R4-JAS9-3EQG-CX16-ZC5P'

  t.equal(encodeExportedKey(storeId, MASTER), text)
  for (const typed of [
    text,
    text.toLowerCase(),
    text.replaceAll('-', '\n '),
    text.replaceAll('0', 'o'),
    ` ${text}\n`,
  ]) {
    t.ok(isExportedKey(typed))
    t.equal(toHex(decodeExportedKey(typed).master), toHex(MASTER))
    t.equal(toHex(decodeExportedKey(typed).store), '5e1cdfd4')
  }
  t.notOk(isExportedKey('correct horse battery staple'))
  t.end()
})

t.test('an exported key with any letter wrong, missing or added is mistyped', t => {
  const text = encodeExportedKey(HEADER.storeId, MASTER)
  const letters = Array.from('0123456789ABCDEFGHJKMNPQRSTVWXYZ')
  let refused = 0
  let tried = 0

  for (let at = 'VVKEY1-'.length; at < text.length; at++) {
    if (text[at] === '-') continue
    const others = ['', '00', ...letters.filter(letter => letter !== text[at])]
    for (const letter of others) {
      tried++
      const typed = text.slice(0, at) + letter + text.slice(at + 1)
      try {
        decodeExportedKey(typed)
      } catch (error) {
        if (error instanceof Error && error.message === 'the exported key is mistyped') refused++
      }
    }
  }

  t.equal(tried, 64 * 33)
  t.equal(refused, tried)
  t.end()
})

t.test('the machine derives keys as RFC 5869 and RFC 7914 say', t => {
  // RFC 5869, A.1 and A.3
  const info = fromHex('f0f1f2f3f4f5f6f7f8f9')
  const first = hkdfSync('sha256', new Uint8Array(22).fill(0x0b), fromHex('000102030405060708090a0b0c'), info, 42)
  t.equal(
    toHex(new Uint8Array(first)),
    '3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865',
  )
  const third = hkdfSync('sha256', new Uint8Array(22).fill(0x0b), new Uint8Array(0), new Uint8Array(0), 42)
  t.equal(
    toHex(new Uint8Array(third)),
    '8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8',
  )
  // RFC 7914, 12
  t.equal(
    scryptSync('pleaseletmein', 'SodiumChloride', 64, { N: 16384, r: 8, p: 1, maxmem: 2 ** 26 }).toString('hex'),
    '7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2d5432955613f0fcf62d49705242a9af9e61e85dc0d651e40dfcf017b45575887',
  )
  t.end()
})
