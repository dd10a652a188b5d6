import type { Test } from 'tap'

import type { ObjectStore } from '../../src/store/object-store.js'

/** What every object store promises. `make` gives a new one, with the folders of a store. */
export function checkObjectStore(t: Test, make: () => Promise<ObjectStore>): void {
  const bytes = (text: string) => new Uint8Array(Buffer.from(text))
  const textOf = (found: Uint8Array | undefined) => (found === undefined ? undefined : Buffer.from(found).toString())

  t.test('an object is what was appended, in order, once sealed', async t => {
    await using objects = await make()
    const writer = await objects.create('packs/ab/x.pack')
    await writer.append(bytes('one'))
    await writer.append(bytes('two'))
    t.equal(writer.size, 6)
    await writer.seal()

    t.equal(textOf(await objects.get('packs/ab/x.pack')), 'onetwo')
    t.equal(await objects.size('packs/ab/x.pack'), 6)
  })

  t.test('a key is created once', async t => {
    await using objects = await make()
    const writer = await objects.create('packs/ab/x.pack')
    await writer.seal()

    await t.rejects(objects.create('packs/ab/x.pack'), { code: 'E_EXISTS' })
  })

  t.test('an abandoned object is gone', async t => {
    await using objects = await make()
    const writer = await objects.create('packs/ab/x.pack')
    await writer.append(bytes('one'))
    await writer.abandon()

    t.equal(await objects.size('packs/ab/x.pack'), undefined)
    t.strictSame(await objects.list('packs'), [])
  })

  t.test('of many that put a new key at once, one wins', async t => {
    await using objects = await make()
    const won = await Promise.all(
      Array.from({ length: 8 }, (_, at) => objects.putNew('points/u/a.point', bytes(`writer ${at}`))),
    )

    t.equal(won.filter(Boolean).length, 1)
    t.equal(textOf(await objects.get('points/u/a.point')), `writer ${won.indexOf(true)}`)
  })

  t.test('replace makes the key hold the new bytes, also for ranged reads', async t => {
    await using objects = await make()
    const into = new Uint8Array(5)
    await objects.replace('points/u/a.notes', bytes('first'))
    await objects.read('points/u/a.notes', into, 0)
    await objects.replace('points/u/a.notes', bytes('later'))
    await objects.read('points/u/a.notes', into, 0)

    t.equal(textOf(into), 'later')
    t.equal(textOf(await objects.get('points/u/a.notes')), 'later')
  })

  t.test('a range is filled, and short only at the end', async t => {
    await using objects = await make()
    await objects.putNew('points/u/a.point', bytes('0123456789'))
    const into = new Uint8Array(4)

    t.equal(await objects.read('points/u/a.point', into, 3), 4)
    t.equal(textOf(into), '3456')
    t.equal(await objects.read('points/u/a.point', into, 8), 2)
    t.equal(await objects.read('points/u/a.point', into, 100), 0)
  })

  t.test('what is absent is undefined, and removing it says so', async t => {
    await using objects = await make()

    t.equal(await objects.get('points/u/a.point'), undefined)
    t.equal(await objects.size('points/u/a.point'), undefined)
    t.equal(await objects.read('points/u/a.point', new Uint8Array(1), 0), undefined)
    t.equal(await objects.remove('points/u/a.point'), false)
  })

  t.test('a removed object is gone for every kind of read', async t => {
    await using objects = await make()
    await objects.putNew('points/u/a.point', bytes('x'))
    await objects.read('points/u/a.point', new Uint8Array(1), 0)

    t.equal(await objects.remove('points/u/a.point'), true)
    t.equal(await objects.read('points/u/a.point', new Uint8Array(1), 0), undefined)
    t.strictSame(await objects.list('points'), [])
  })

  t.test('a listing has every key below the folder, sorted, and nothing else', async t => {
    await using objects = await make()
    for (const key of ['points/v/b.point', 'points/u/a.point', 'points/u/a.notes']) {
      await objects.putNew(key, bytes('x'))
    }

    t.strictSame(await objects.list('points'), ['points/u/a.notes', 'points/u/a.point', 'points/v/b.point'])
    t.strictSame(await objects.list('points/u'), ['points/u/a.notes', 'points/u/a.point'])
    t.strictSame(await objects.list('points/w'), [])
    t.strictSame(await objects.list('packs'), [])
  })

  t.test('many readers of many objects at once each get theirs', async t => {
    await using objects = await make()
    const keys = Array.from({ length: 150 }, (_, at) => `packs/0${at % 7}/${at}.pack`)
    for (const [at, key] of keys.entries()) await objects.putNew(key, bytes(`object ${at}`.padEnd(12)))
    const reads = await Promise.all(
      [...keys, ...keys].map(async key => {
        const into = new Uint8Array(12)
        await objects.read(key, into, 0)
        return textOf(into)?.trim()
      }),
    )

    t.strictSame(
      reads,
      [...keys, ...keys].map((_, at) => `object ${at % 150}`),
    )
  })
}
