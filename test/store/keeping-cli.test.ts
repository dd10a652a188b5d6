import { createHash } from 'node:crypto'
import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import t, { type Test } from 'tap'

import type { PointDisk, RecoveryPoint } from '../../src/model/recovery-point.js'
import { Store } from '../../src/store/store.js'
import { pointContents } from '../harness/points.js'
import { runCli } from '../harness/run-cli.js'
import { CHUNK, type Disk, diskBytes, putDisk } from './harness.js'

// The real program over a real store, on a machine that others use as well.
t.setTimeout(240_000)

const WEB = { uuid: '6f0c2a1e-8d53-4a97-b1c4-0d6f3e5a7b92', name: 'web01' }
const DB = { uuid: '6f0c2a1e-8d53-4a97-b1c4-0d6f3e5a7b93', name: 'db01' }
const DAY_MS = 86_400_000

interface NewPoint {
  readonly domain?: typeof WEB
  readonly time?: number
  /** Size and content of each disk. */
  readonly disks?: Readonly<Record<string, { readonly size: number; readonly content: Disk }>>
  readonly xml?: string
}

interface Decision {
  readonly id: string
  readonly time: string
  readonly action: 'keep' | 'expire'
  readonly reason: string
  readonly kept_by: readonly string[]
}

interface PruneDocument {
  readonly exit: number
  readonly deleted: readonly string[]
  readonly domains: readonly { readonly refused?: string; readonly points: readonly Decision[] }[]
}

/** A store with nothing compressed, and the program that works on it. */
class Scene {
  readonly store: string
  readonly #folder: string
  readonly #env: NodeJS.ProcessEnv

  private constructor(folder: string) {
    this.#folder = folder
    this.store = join(folder, 'store')
    this.#env = {
      ...process.env,
      HOME: join(folder, 'home'),
      XDG_CONFIG_HOME: join(folder, 'home'),
      VIRTVAULT_CONFIG: join(folder, 'config.yaml'),
      VIRTVAULT_TARGET: this.store,
      VIRTVAULT_STATE_DIR: join(folder, 'state'),
      VIRTVAULT_RUNTIME_DIR: join(folder, 'state'),
    }
  }

  static async make(t: Test, config = 'version: 1\ntimezone: UTC\n'): Promise<Scene> {
    const scene = new Scene(t.testdir({ home: {}, state: {}, 'config.yaml': config }))
    await Store.init(scene.store, { chunkSize: CHUNK, level: 0 })
    return scene
  }

  async commit(wanted: NewPoint): Promise<RecoveryPoint> {
    const { domain = WEB, time = Date.UTC(2025, 6, 1), xml } = wanted
    await using store = await Store.open(this.store)
    await using run = await store.runs.begin('pull')
    await using draft = await store.draft(run)
    const disks: PointDisk[] = []
    for (const [target, { size, content }] of Object.entries(wanted.disks ?? {})) {
      disks.push({
        target,
        size,
        root: (await putDisk(draft, { size, chunkSize: CHUNK }, content)).root,
        mode: 'full',
        source: { path: `/images/${target}.raw`, sourceType: 'file', format: 'raw' },
        statistics: { dirtyBytes: 0, readBytes: 0, newBytes: 0, storedBytes: 0, newChunks: 0, newNodes: 0 },
      })
    }
    const blobs = xml === undefined ? [] : [await draft.storeBlob('domain-inactive.xml', Buffer.from(xml))]
    const point = await draft.commit(pointContents({ domain, time, disks, blobs }))
    await run.finish()
    return point
  }

  run(...words: string[]) {
    return runCli(words, this.#env)
  }

  /** What it says with --json; throws where the exit code is another than `code`. */
  async json<T = PruneDocument>(words: readonly string[], options: { code?: number; clock?: number } = {}): Promise<T> {
    const { code = 0, clock } = options
    const ended = await runCli([...words, '--json'], { ...this.#env, ...this.#clockAt(clock) })
    if (ended.code !== code) throw new Error(`${words.join(' ')}: exit ${ended.code}\n${ended.stdout}${ended.stderr}`)
    return JSON.parse(ended.stdout) as T
  }

  /** Every file that matters, with what is in it. */
  fingerprint(): readonly string[] {
    return readdirSync(this.store, { recursive: true, encoding: 'utf8' })
      .filter(name => !/^(index|locks)(\/|$)/.test(name) && statSync(join(this.store, name)).isFile())
      .map(
        name =>
          `${name} ${createHash('sha256')
            .update(readFileSync(join(this.store, name)))
            .digest('hex')}`,
      )
      .sort()
  }

  packBytes(): number {
    const names = readdirSync(this.store, { recursive: true, encoding: 'utf8' })
    return names
      .filter(name => name.startsWith('packs/'))
      .map(name => statSync(join(this.store, name)))
      .reduce((sum, stat) => sum + (stat.isFile() ? stat.size : 0), 0)
  }

  async ids(): Promise<readonly string[]> {
    await using store = await Store.open(this.store)
    return (await store.points.list()).map(({ id }) => id)
  }

  /** A host whose clock stands at `now`. */
  #clockAt(now: number | undefined): NodeJS.ProcessEnv {
    if (now === undefined) return {}
    const file = join(this.#folder, `clock-${now}.cjs`)
    writeFileSync(file, `Date.now = () => ${now}\n`)
    return { NODE_OPTIONS: `--require=${file}` }
  }
}

const utc = (text: string) => Date.parse(`${text}Z`)
const idsOf = (points: readonly { readonly id: string }[]) => points.map(({ id }) => id)
const decisionsOf = (document: PruneDocument) => document.domains.flatMap(({ points }) => points)
const expiredOf = (document: PruneDocument) => idsOf(decisionsOf(document).filter(({ action }) => action === 'expire'))

t.test('prune', async t => {
  // 1 July in Greenwich; in Auckland the 2nd begins between the first two.
  const times = ['2025-07-01T11:00', '2025-07-01T13:00', '2025-07-01T20:00', '2025-07-02T01:00', '2025-07-02T13:00']
  const fill = async (scene: Scene) => {
    const points: RecoveryPoint[] = []
    for (const time of times) points.push(await scene.commit({ time: utc(time) }))
    return points
  }
  const auckland = await Scene.make(t, 'version: 1\ntimezone: Pacific/Auckland\ndefault: { daily: 2 }\n')
  const points = await fill(auckland)
  const [first, second, third, fourth, fifth] = points.map(({ id }) => id)
  const before = auckland.fingerprint()

  await t.test('says of each point why it stays or goes, by the calendar of the configured time zone', async t => {
    const document = await auckland.json(['prune', '--dry-run'])

    const has = `no rule left (daily has @${second!.slice(0, 7)})`
    t.strictSame(
      decisionsOf(document).map(({ id, action, reason }) => [id, action, reason]),
      [
        [fifth, 'keep', 'daily 1/2'],
        [fourth, 'expire', has],
        [third, 'expire', has],
        [second, 'keep', 'daily 2/2'],
        [first, 'expire', 'no rule left (daily full)'],
      ],
    )
    t.match(document, { dry_run: true, deleted: [] })
    const { stdout } = await auckland.run('prune', '-n')
    t.match(stdout, /web01 {2}keep 2 of 5/)
    t.match(stdout, /expire +@[0-9a-f]{7} .*no rule left \(daily full\)/)
    t.match(stdout, /would expire 3 points.*Nothing was changed/)
  })

  await t.test('keeps other points where the configured zone is another', async t => {
    const scene = await Scene.make(t, 'version: 1\ntimezone: UTC\ndefault: { daily: 2 }\n')
    const [a, b, c, d, e] = (await fill(scene)).map(({ id }) => id)

    t.strictSame(
      decisionsOf(await scene.json(['prune', '-n'])).map(({ id, kept_by }) => [id, kept_by]),
      [
        [e, ['newest']],
        [d, ['daily']],
        [c, []],
        [b, []],
        [a, ['daily']],
      ],
    )
  })

  await t.test('leaves out of 400 days what an own calendar says', async t => {
    const clock = utc('2026-01-15T12:00')
    const rules = ['--keep-daily', '7', '--keep-monthly', '*']
    const scene = await Scene.make(t)
    await fill(scene)
    interface Simulated {
      readonly domains: readonly { readonly backups: number; readonly kept: readonly Decision[] }[]
    }
    const { domains } = await scene.json<Simulated>(['prune', '--simulate', '400d', ...rules], { clock })

    const simulated = Array.from({ length: 400 }, (_, day) => new Date(clock + day * DAY_MS).toISOString())
    const all = [...times.map(time => new Date(utc(time)).toISOString()), ...simulated]
    const monthly = all.filter((time, at) => time.slice(0, 7) !== all[at - 1]?.slice(0, 7))
    const daily = all.slice(-7)
    const [{ backups, kept }] = domains as [Simulated['domains'][0]]
    t.equal(backups, 400)
    t.strictSame(kept.map(({ time }) => time).sort(), [...new Set([...monthly, ...daily])].sort())
    t.equal((await scene.ids()).length, 5)
  })

  await t.test('expires nothing where the clock of the host went back', async t => {
    const document = await auckland.json(['prune', '--yes'], { clock: utc('1999-01-01T00:00'), code: 15 })

    t.strictSame(document.deleted, [])
    t.match(document.domains[0]?.refused, /in the future/)
    t.strictSame(expiredOf(document), [])
  })

  await t.test('expires no more where the clock of the host went ahead by decades', async t => {
    const ahead = { clock: utc('2061-01-01T00:00') }

    t.strictSame(expiredOf(await auckland.json(['prune', '-n'], ahead)), [fourth, third, first])
    t.strictSame(expiredOf(await auckland.json(['prune', '-n', '--keep-within', '30d'], ahead)), [])
  })

  await t.test('is refused without --yes', async t => {
    t.match(await auckland.json<object>(['prune'], { code: 15 }), { error: { code: 'E_REFUSED', hints: [/--yes/] } })
    t.match(await auckland.run('prune'), { code: 15, stderr: /3 recovery points will be deleted/ })
  })

  t.strictSame(auckland.fingerprint(), before, 'none of all that changed a byte of the store')

  await t.test('keeps what is held until it is released', async t => {
    t.equal((await auckland.run('hold', `@${first!.slice(0, 7)}`, '--reason', 'audit')).code, 0)

    const held = await auckland.json(['prune', '--yes'])
    t.strictSame(held.deleted, [third, fourth])
    t.match(decisionsOf(held).at(-1), { id: first, action: 'keep', reason: 'hold', kept_by: ['hold'] })
    t.match(await auckland.run('forget', `@${first!.slice(0, 7)}`, '--yes'), { code: 15, stderr: /audit/ })
    t.strictSame(await auckland.ids(), [first, second, fifth])

    t.equal((await auckland.run('release', `@${first!.slice(0, 7)}`)).code, 0)
    t.strictSame((await auckland.json(['prune', '--yes'])).deleted, [first])
    t.strictSame(await auckland.ids(), [second, fifth])
    t.strictSame((await auckland.json(['prune', '--yes'])).deleted, [], 'and a second one finds nothing')
  })

  await t.test('a point dated in the future stops it, and where that is overruled stays without a slot', async t => {
    const scene = await Scene.make(t)
    const [old, young] = [await scene.commit({ time: utc(times[0]!) }), await scene.commit({ time: utc(times[1]!) })]
    const future = await scene.commit({ time: utc('2061-01-01T00:00') })
    const rules = ['prune', '--yes', '--keep-last', '1']

    const document = await scene.json(rules, { code: 15 })
    t.strictSame([document.deleted, expiredOf(document)], [[], []])
    t.match(document.domains[0]?.refused, /in the future/)
    // A host that believes the date as well: decades lie between two points.
    const jumped = await scene.json(['prune', '--yes', '--keep-within', '30d'], {
      clock: utc('2061-01-02T00:00'),
      code: 15,
    })
    t.match(jumped.domains[0]?.refused, /a clock may have jumped/)
    t.strictSame(await scene.ids(), [old.id, young.id, future.id])

    t.strictSame((await scene.json([...rules, '--ignore-clock'])).deleted, [old.id])
    t.strictSame(await scene.ids(), [young.id, future.id])
  })

  await t.test('run after every backup, keeps the first of the day and not the newest', async t => {
    const scene = await Scene.make(t)
    const prune = ['prune', '--yes', '--keep-daily', '2']
    const made: string[] = []
    const left: number[][] = []
    for (const time of ['2025-07-01T08:00', '2025-07-01T12:00', '2025-07-01T20:00', '2025-07-02T08:00']) {
      made.push((await scene.commit({ time: utc(time) })).id)
      await scene.json(prune)
      left.push((await scene.ids()).map(id => made.indexOf(id)))
    }

    t.strictSame(left, [[0], [0, 1], [0, 2], [0, 3]])
  })
})

interface Stats {
  readonly rows: readonly {
    readonly name: string
    readonly points: number
    readonly freed_if_deleted_bytes: number
    readonly alone_plain_bytes: number
  }[]
  readonly totals: { readonly stored_bytes: number; readonly pack_bytes: number }
}

/** `count` chunks from `first` on with seeds from `seed` on. */
const run = (first: number, count: number, seed: number): [number, number][] =>
  Array.from({ length: count }, (_, at) => [first + at, seed + at])

t.test('what stats says is freed if a point is deleted is what forget and gc then free', async t => {
  const scene = await Scene.make(t)
  const disks = (...parts: [number, number][][]) => ({
    vda: { size: 300 * CHUNK, content: new Map(parts.flat()) },
  })
  const contents = [
    { domain: WEB, disks: disks(run(0, 40, 1), run(200, 20, 101)) },
    // Shares 30 of 40, and has chunks twice.
    { domain: WEB, disks: disks(run(0, 30, 1), run(30, 10, 201), run(150, 10, 201), run(200, 20, 101)) },
    // Shares 20 with the first one alone, and some with both.
    { domain: DB, disks: disks(run(10, 20, 101), run(100, 7, 301), run(250, 12, 29)) },
  ]
  const points: RecoveryPoint[] = []
  for (const content of contents) points.push(await scene.commit(content))
  const chunksAlone = (mine: (at: number) => boolean) => {
    const seeds = (meant: boolean) =>
      new Set(contents.filter((_, at) => mine(at) === meant).flatMap(one => [...one.disks.vda.content.values()]))
    const others = seeds(false)
    return [...seeds(true)].filter(seed => !others.has(seed)).length
  }
  const chunksOf = (rows: Stats['rows']) => rows.map(row => Math.floor(row.alone_plain_bytes / CHUNK))

  const byDomain = await scene.json<Stats>(['stats', '--by', 'domain'])
  const byPoint = await scene.json<Stats>(['stats', '--by', 'point'])

  t.strictSame(
    byDomain.rows.map(({ name, points }) => [name, points]),
    [
      ['db01', 1],
      ['web01', 2],
    ],
  )
  t.strictSame(chunksOf(byDomain.rows), [chunksAlone(at => at === 2), chunksAlone(at => at < 2)])
  const rowOf = (at: number) => byPoint.rows.find(({ name }) => name.endsWith(points[at]!.id.slice(0, 7)))!
  t.strictSame(
    chunksOf([0, 1, 2].map(rowOf)),
    [0, 1, 2].map(own => chunksAlone(at => at === own)),
  )
  t.equal(byPoint.totals.pack_bytes, scene.packBytes())

  for (const [at, which] of [1, 0].entries()) {
    const before = await scene.json<Stats>(['stats', '--by', 'point'])
    const name = points[which]!.id.slice(0, 7)
    const { freed_if_deleted_bytes: promised } = before.rows.find(row => row.name.endsWith(name))!
    t.ok(promised > 8 * CHUNK, `it is much in round ${at + 1}`)

    t.equal((await scene.run('forget', `@${name}`, '--yes')).code, 0)
    t.equal((await scene.run('gc', '--min-live', '100', '--yes')).code, 0)

    const after = await scene.json<Stats>(['stats', '--by', 'point'])
    t.equal(before.totals.stored_bytes - after.totals.stored_bytes, promised)
    // Beside records, packs have headers and footers.
    t.equal(after.totals.pack_bytes, scene.packBytes())
    const freed = before.totals.pack_bytes - after.totals.pack_bytes
    t.ok(Math.abs(freed - promised) < 8192, `${freed} bytes of files went where ${promised} were promised`)
  }
})

t.test('diff says bytes and extents of each disk, and changes of the XML', async t => {
  const scene = await Scene.make(t)
  const size = 299 * CHUNK + 512
  const xml = (memory: number) => `<domain>\n  <name>web01</name>\n  <memory>${memory}</memory>\n</domain>\n`
  const old = new Map([...run(0, 50, 1), ...run(120, 20, 101), ...run(290, 10, 201)])
  const young = new Map(old)
  // Written anew, across the edge of a tree node, zeroed, trimmed, grown, moved; and the short end.
  const changes = [...run(3, 2, 501), ...run(125, 6, 511), [10, 0], [20, -1], [77, 601], [30, 32], [299, 602]] as const
  for (const [index, seed] of changes) young.set(index, seed)
  const same = new Map(run(0, 5, 1))
  const a = await scene.commit({
    disks: {
      vda: { size, content: old },
      vdb: { size: 5 * CHUNK, content: same },
      vdc: { size: CHUNK, content: new Map([[0, 7]]) },
    },
    xml: xml(1024),
  })
  const b = await scene.commit({
    disks: {
      vda: { size, content: young },
      vdb: { size: 5 * CHUNK, content: same },
      vdd: { size: 4 * CHUNK, content: new Map([[1, 8]]) },
    },
    xml: xml(2048),
  })

  const document = await scene.json<{ disks: { extents: object[] }[] }>(['diff', `@${a.id}`, `@${b.id}`, '--xml'])

  const geometry = { size, chunkSize: CHUNK }
  const extents = differences(diskBytes(geometry, old), diskBytes(geometry, young))
  t.equal(extents.length, 7)
  t.match(document, {
    a: { id: a.id },
    b: { id: b.id },
    disks: [
      {
        target: 'vda',
        kind: 'compared',
        different_bytes: extents.reduce((sum, { length }) => sum + length, 0),
        extent_count: extents.length,
      },
      { target: 'vdb', kind: 'compared', different_bytes: 0, extent_count: 0 },
      { target: 'vdc', kind: 'removed', size_a: CHUNK, different_bytes: CHUNK },
      { target: 'vdd', kind: 'added', size_b: 4 * CHUNK, different_bytes: CHUNK },
    ],
    xml: ['-  <memory>1024</memory>', '+  <memory>2048</memory>'],
  })
  t.strictSame(
    document.disks.map(disk => disk.extents),
    [extents, [], [{ offset: 0, length: CHUNK }], [{ offset: CHUNK, length: CHUNK }]],
  )
  const one = await scene.json<{ disks: object[] }>(['diff', 'web01@~1', 'web01@latest', '--disk', 'vdb'])
  t.match(one.disks, [{ target: 'vdb', different_bytes: 0 }])
  t.equal(one.disks.length, 1)
  t.match((await scene.run('diff', 'web01@~1', 'web01@latest', '--xml')).stdout, /\+ {3}<memory>2048/)
})

/** Runs of chunks whose bytes are not the same. */
function differences(a: Buffer, b: Buffer): { offset: number; length: number }[] {
  const extents: { offset: number; length: number }[] = []
  for (let offset = 0; offset < a.length; offset += CHUNK) {
    const end = Math.min(a.length, offset + CHUNK)
    if (a.compare(b, offset, end, offset, end) === 0) continue
    const last = extents.at(-1)
    if (last !== undefined && last.offset + last.length === offset) last.length += end - offset
    else extents.push({ offset, length: end - offset })
  }
  return extents
}
