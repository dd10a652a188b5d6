import { existsSync, readdirSync, statSync } from 'node:fs'
import { mkdir, open, rename, utimes, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

import t from 'tap'

import { requires } from '../harness/requires.js'
import { KIB, MIB } from '../lab/fill.js'
import { imageDamage, imageDifference, imageInfo } from '../lab/images.js'
import type { LabDomain } from '../lab/lab-domain.js'
import { Lab } from '../lab/lab.js'
import { run } from '../lab/run-program.js'

t.setTimeout(300_000)
const MAIN = fileURLToPath(new URL('../../src/cli/main.cjs', import.meta.url))
const SIZE = 16 * MIB
/** Bytes without pattern, so that whoever stores them cannot hide it. */
const SHARED = 8 * MIB

interface Answer {
  readonly stderr: string
  readonly code: number
  readonly json: {
    readonly error?: { readonly code: string; readonly message: string; readonly why: string; readonly hints: string[] }
    readonly results?: {
      readonly point: string
      readonly mode: string
      readonly warnings: { readonly code: string; readonly message: string }[]
      readonly disks: {
        readonly mode: string
        readonly read_bytes: number
        readonly new_bytes: number
        readonly left_out?: { readonly images: { readonly path: string }[] }
      }[]
    }[]
  }
}

/** A lab with a store, and the program as users run it. */
class DepthLab implements AsyncDisposable {
  readonly lab: Lab
  readonly env: NodeJS.ProcessEnv
  #count = 0

  private constructor(lab: Lab) {
    this.lab = lab
    this.env = {
      ...process.env,
      VIRTVAULT_RUNTIME_DIR: `${lab.scratchFolder}/r`,
      VIRTVAULT_SCRATCH_DIR: `${lab.scratchFolder}/s`,
      VIRTVAULT_STATE_DIR: lab.path('state'),
      VIRTVAULT_TARGET: lab.path('store'),
      VIRTVAULT_CONNECT: lab.uri,
    }
  }

  static async start(): Promise<DepthLab> {
    const one = new DepthLab(await Lab.start())
    await one.run('init')
    return one
  }

  async run(...words: readonly string[]): Promise<Answer> {
    const { code, stdout, stderr } = await run(process.execPath, [MAIN, ...words, '--json'], {
      env: this.env,
      check: false,
    })
    if (stdout === '') throw new Error(`${words.join(' ')}: ${stderr}`)
    return { code, stderr, json: JSON.parse(stdout) as Answer['json'] }
  }

  /** One domain's pull: its mode, the codes of its warnings, and what it read. */
  async pull(name: string, ...words: readonly string[]) {
    const { code, json } = await this.run('backup', 'pull', name, '--no-quiesce', ...words)
    const [result] = json.results ?? []
    const [disk] = result?.disks ?? []
    if (result === undefined || disk === undefined) throw new Error(JSON.stringify(json))
    return { code, ...result, codes: result.warnings.map(warning => warning.code), disk }
  }

  /** A domain whose disk lies on an image with SHARED bytes; its own has some more, zeros over data among it. */
  async chained(name: string): Promise<LabDomain> {
    const domain = await this.lab.domain({
      name,
      disks: [
        {
          target: 'vda',
          size: SIZE,
          backed: true,
          content: [{ kind: 'write', offset: 0, length: SHARED, fill: { seed: 7 } }],
        },
      ],
    })
    return domain
  }

  /** What the disk holds, as the lab itself has noted it; whatever images there are. */
  async truth(domain: LabDomain, name: string): Promise<string> {
    const path = this.lab.path(`truth-${name}.raw`)
    await run('cp', ['--sparse=always', domain.disk('vda').shadow, path])
    return path
  }

  base(domain: LabDomain): string {
    return `${domain.disk('vda').shadow}.base`
  }

  /** Restores the newest point to a folder of its own, and says how it differs from the truth. */
  async difference(name: string, truth: string, ...words: readonly string[]): Promise<string | undefined> {
    const image = await this.restore(name, ...words)
    const format = image.endsWith('.raw') ? 'raw' : 'qcow2'
    if (format === 'qcow2') {
      const damage = await imageDamage(image)
      if (damage !== undefined) return damage
    }
    return await imageDifference({ path: image, format }, { path: truth, format: 'raw' })
  }

  async restore(name: string, ...words: readonly string[]): Promise<string> {
    const to = this.lab.path(`to-${++this.#count}`)
    const { code, json } = await this.run('restore', `${name}@latest`, '--to', to, ...words)
    if (code !== 0) throw new Error(JSON.stringify(json))
    return join(to, words.includes('raw') ? 'vda.raw' : 'vda.qcow2')
  }

  /** The code and the hints of a restore that is refused. */
  async refused(...words: readonly string[]): Promise<{ readonly code: string; readonly text: string }> {
    const { json } = await this.run(...words)
    return {
      code: json.error?.code ?? 'none',
      text: [json.error?.message, json.error?.why, ...(json.error?.hints ?? [])].join('\n'),
    }
  }

  /** Of all packs: what the store has of payload. */
  storedBytes(): number {
    const packs = this.lab.path('store/packs')
    return readdirSync(packs, { recursive: true, encoding: 'utf8' })
      .filter(path => path.endsWith('.pack'))
      .reduce((sum, path) => sum + statSync(join(packs, path)).size, 0)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.lab[Symbol.asyncDispose]()
  }
}

/** Own data, zeros over shared data, shared data written again as it was, and data past the shared. */
async function change(domain: LabDomain, seed: number): Promise<void> {
  await domain.change('vda', [
    { kind: 'write', offset: 64 * KIB, length: 192 * KIB, fill: { seed } },
    { kind: 'zero', offset: MIB, length: 128 * KIB },
    { kind: 'discard', offset: 2 * MIB, length: 128 * KIB },
    { kind: 'write', offset: 3 * MIB + 512, length: 1024, fill: seed & 0xff },
    { kind: 'write', offset: 12 * MIB, length: 64 * KIB, fill: { seed: seed + 1 } },
  ])
}

async function backingOf(image: string): Promise<{ readonly path: string; readonly format: string }> {
  const info = JSON.parse((await run('qemu-img', ['info', '-U', '--output=json', image])).stdout) as {
    'backing-filename': string
    'backing-filename-format': string
  }
  return { path: info['backing-filename'], format: info['backing-filename-format'] }
}

for (const state of ['running', 'shut off'] as const) {
  t.test(`${state}: what lies in the shared image is left out, and every byte comes back`, requires('lab'), async t => {
    await using it = await DepthLab.start()
    const domain = await it.chained('web01')
    if (state === 'running') await domain.start()
    await change(domain, 20)
    const truth = await domain.referenceImage('vda', 'full')

    const full = await it.pull('web01', '--depth', '-1')

    t.match({ code: full.code, mode: full.mode, codes: full.codes }, { code: 0, mode: 'full', codes: [] })
    t.ok(full.disk.new_bytes <= 512 * KIB, `new: ${full.disk.new_bytes}`)
    t.ok(it.storedBytes() < MIB, `the store has ${it.storedBytes()} bytes, the shared image ${SHARED}`)
    const overlay = await it.restore('web01')
    t.strictSame(await backingOf(overlay), { path: it.base(domain), format: 'qcow2' })
    t.equal(await imageDamage(overlay), undefined)
    t.equal(await imageDifference({ path: overlay, format: 'qcow2' }, { path: truth, format: 'raw' }), undefined)
    t.ok((await imageInfo(overlay)).size === SIZE)
    t.equal(await it.difference('web01', truth, '--flatten'), undefined, 'flattened')
    t.equal(await it.difference('web01', truth, '--format', 'raw'), undefined, 'raw')

    await change(domain, 30)
    // As the image below again, and the same bytes over it once more.
    await domain.write('vda', 4 * MIB, 64 * KIB, { seed: 99 })
    const later = await domain.referenceImage('vda', 'incremental')
    const next = await it.pull('web01', '--depth', '-1')

    t.match({ code: next.code, mode: next.mode, codes: next.codes }, { code: 0, mode: 'incremental', codes: [] })
    t.ok(next.disk.read_bytes < MIB, `read: ${next.disk.read_bytes}`)
    t.equal(await it.difference('web01', later), undefined, 'incremental, overlay')
    t.equal(await it.difference('web01', later, '--flatten'), undefined, 'incremental, flattened')

    const audit = await it.pull('web01', '--depth', '-1', '--mode', 'full')
    t.strictSame([audit.code, audit.codes], [0, []], 'all of it read, nothing missed by the bitmap')
    for (const level of ['quick', 'data', 'restore']) {
      t.equal((await it.run('verify', 'web01', '--level', level)).code, 0, level)
    }
    t.equal((await it.run('gc')).code, 0)
    t.equal(await it.difference('web01', later), undefined, 'after a gc')
    const left = await domain.leftovers()
    t.strictSame([left.jobs, left.files], [[], []])
  })
}

t.test(
  'a chain of three: a depth leaves out two images or one, and a snapshot between points none more',
  requires('lab'),
  async t => {
    await using it = await DepthLab.start()
    const domain = await it.chained('web01')
    await change(domain, 40)
    await it.lab.virsh('snapshot-create-as', domain.uuid, 'second', '--disk-only', '--no-metadata')
    await domain.start()
    await domain.write('vda', 5 * MIB, 64 * KIB, { seed: 50 })
    const truth = await it.truth(domain, 'first')

    for (const [depth, images] of [
      ['1', [domain.disk('vda').path, it.base(domain)]],
      ['-2', [domain.disk('vda').path, it.base(domain)]],
      ['2', [it.base(domain)]],
      ['-1', [it.base(domain)]],
    ] as const) {
      const pulled = await it.pull('web01', '--depth', depth)
      t.strictSame(
        pulled.disk.left_out?.images.map(({ path }) => path),
        images,
        depth,
      )
      t.equal(await it.difference('web01', truth), undefined, `${depth}, overlay`)
      t.equal(await it.difference('web01', truth, '--flatten'), undefined, `${depth}, flattened`)
    }
    t.ok(it.storedBytes() < MIB, `the store has ${it.storedBytes()} bytes`)

    await it.lab.virsh('snapshot-create-as', domain.uuid, 'third', '--disk-only', '--no-metadata')
    await change(domain, 60)
    const later = await it.truth(domain, 'later')
    const next = await it.pull('web01', '--depth', '-1')

    t.strictSame([next.mode, next.codes], ['incremental', []])
    t.equal(await it.difference('web01', later), undefined)
    const other = await it.pull('web01', '--depth', '1')
    t.strictSame([other.mode, other.codes, other.code], ['full', ['W_DISK_CHANGED'], 0], 'more is left out')
    t.equal(await it.difference('web01', later), undefined)
    const all = await it.pull('web01')
    t.strictSame(
      [all.mode, all.codes, all.disk.left_out],
      ['full', ['W_DISK_CHANGED'], undefined],
      'nothing is left out',
    )
    t.equal(await it.difference('web01', later), undefined)
  },
)

t.test(
  'domains on one image leave it out, by the configuration and by their own metadata',
  requires('lab'),
  async t => {
    await using it = await DepthLab.start()
    const first = await it.chained('web01')
    const second = await it.lab.domain({ name: 'web02', disks: [{ target: 'vda', size: SIZE }] })
    // The second on the first one's image, as a clone of a template is.
    const { path, shadow } = second.disk('vda')
    await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', it.base(first), '-F', 'qcow2', path])
    await run('qemu-img', ['convert', '-f', 'qcow2', '-O', 'raw', it.base(first), shadow])
    await first.start()
    await change(first, 70)
    await change(second, 80)
    const config = it.lab.path('config.yml')
    await writeFile(config, `groups:\n  web:\n    hosts:\n      - web01\n      - web02\n    depth: -1\n`)

    const both = await it.run('backup', 'pull', '--group', 'web', '--no-quiesce', '--config', config)

    t.equal(both.code, 0, JSON.stringify(both.json))
    t.ok(it.storedBytes() < 2 * MIB, `the store has ${it.storedBytes()} bytes`)
    for (const domain of [first, second]) {
      const truth = await it.truth(domain, domain.name)
      t.equal(await it.difference(domain.name, truth), undefined, domain.name)
      t.equal(await it.difference(domain.name, truth, '--format', 'raw'), undefined, `${domain.name}, raw`)
    }

    t.equal((await it.run('job', 'set', 'web01', '--depth', '-1')).code, 0)
    t.ok((await it.pull('web01')).disk.left_out !== undefined, 'by its metadata')
    t.strictSame((await it.pull('web01', '--depth', '0')).disk.left_out, undefined, 'a flag stands above it')
  },
)

t.test(
  'an image below that has changed makes the disk be read in full, whatever its size and time say',
  requires('lab'),
  async t => {
    await using it = await DepthLab.start()
    const domain = await it.chained('web01')
    await change(domain, 20)
    await it.pull('web01', '--depth', '-1')
    const base = it.base(domain)
    const before = statSync(base)

    await run('qemu-io', ['-f', 'qcow2', '-c', `write -P 0x77 ${6 * MIB} 65536`, base])
    await domain.disk('vda').changeShadow([{ kind: 'write', offset: 6 * MIB, length: 64 * KIB, fill: 0x77 }])
    const truth = await it.truth(domain, 'changed')
    const again = await it.pull('web01', '--depth', '-1')

    t.strictSame([again.mode, again.codes], ['full', ['W_DISK_CHANGED']])
    t.equal(await it.difference('web01', truth), undefined)
    const older = await it.refused('restore', 'web01@~1', '--to', it.lab.path('older'))
    t.match(older, { code: 'E_REFUSED', text: /holds something else/ })

    // Behind everybody's back: size, inode and time are what they were.
    const now = statSync(base)
    await run('qemu-io', ['-f', 'qcow2', '-c', `write -P 0x78 ${6 * MIB} 65536`, base])
    await domain.disk('vda').changeShadow([{ kind: 'write', offset: 6 * MIB, length: 64 * KIB, fill: 0x78 }])
    // In the middle of the millisecond: it goes through a floating-point number of seconds.
    await utimes(base, now.atimeMs / 1000, (Math.floor(now.mtimeMs) + 0.5) / 1000)
    const full = await it.pull('web01', '--depth', '-1', '--mode', 'full')
    t.ok(full.codes.includes('W_DISK_CHANGED'), full.codes.join())
    t.equal(await it.difference('web01', await it.truth(domain, 'hidden')), undefined)
    t.ok(before.ino === now.ino)
  },
)

t.test('a disk grown beyond its image, or shrunk and grown again, comes back to the byte', requires('lab'), async t => {
  await using it = await DepthLab.start()
  const domain = await it.chained('web01')
  await domain.start()
  await it.pull('web01', '--depth', '-1')
  await domain.resize('vda', SIZE + 3 * MIB + 512)
  await domain.write('vda', SIZE + MIB, 64 * KIB, { seed: 5 })
  const grown = await it.pull('web01', '--depth', '-1')
  t.strictSame([grown.mode, grown.codes], ['incremental', []])
  const truth = await it.truth(domain, 'grown')
  t.equal(await it.difference('web01', truth), undefined)
  t.equal(await it.difference('web01', truth, '--flatten'), undefined)

  await domain.resize('vda', 4 * MIB)
  await domain.resize('vda', SIZE)
  const cut = await it.pull('web01', '--depth', '-1')
  t.match(cut.codes, ['W_CHAIN'])
  const shrunk = await it.truth(domain, 'shrunk')
  t.equal(await it.difference('web01', shrunk), undefined)
  t.equal(await it.difference('web01', shrunk, '--flatten'), undefined)
})

t.test('restore asks for the image that is left out, and takes no other', requires('lab'), async t => {
  await using it = await DepthLab.start()
  const domain = await it.chained('web01')
  await change(domain, 20)
  await it.pull('web01', '--depth', '-1')
  const truth = await it.truth(domain, 'moved')
  const moved = it.lab.path('elsewhere.qcow2')
  await rename(it.base(domain), moved)

  const none = await it.refused('restore', 'web01@latest', '--to', it.lab.path('none'))
  t.match(none, { code: 'E_NOT_FOUND', text: new RegExp(it.base(domain)) })
  t.match(none.text, /--backing vda=/)
  t.equal(await it.difference('web01', truth, '--backing', moved), undefined)
  t.equal(await it.difference('web01', truth, '--backing', `vda=${moved}`, '--flatten'), undefined)
  const copy = it.lab.path('compressed.qcow2')
  await run('qemu-img', ['convert', '-c', '-f', 'qcow2', '-O', 'qcow2', moved, copy])
  t.equal(await it.difference('web01', truth, '--backing', copy), undefined, 'a copy that holds the same')

  await run('qemu-io', ['-f', 'qcow2', '-c', 'write -P 1 7m 512', copy])
  const wrong = await it.refused('restore', 'web01@latest', '--to', it.lab.path('wrong'), '--backing', copy)
  t.match(wrong, { code: 'E_REFUSED', text: /holds something else/ })
  const small = it.lab.path('small.qcow2')
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', small, '8M'])
  const other = await it.refused('restore', 'web01@latest', '--to', it.lab.path('small'), '--backing', small)
  t.match(other, { code: 'E_REFUSED', text: /8388608/ })
  t.match(
    await it.refused('restore', 'web01@latest', '--to', it.lab.path('w'), '--force', '--backing', copy),
    { code: 'E_REFUSED' },
    'force is for images that are there',
  )
  const taken = await it.run(
    'restore',
    'web01@latest',
    '--to',
    it.lab.path('taken'),
    '--backing',
    copy,
    '--trust-backing',
  )
  t.match([taken.code, JSON.stringify(taken.json)], [0, /not what the point leaves out/])

  t.match(await it.refused('export', 'web01@latest', '--once'), { code: 'E_NOT_FOUND', text: /--backing vda=/ })
  await rename(moved, it.base(domain))
  const socket = it.lab.path('export.sock')
  const serving = it.run('export', 'web01@latest', '--once', '--socket', socket)
  while (!existsSync(socket)) await delay(10)
  const served = `nbd+unix:///?socket=${socket}`
  const copied = it.lab.path('copied.raw')
  await run('qemu-img', ['convert', '-f', 'raw', '-O', 'raw', served, copied])
  t.equal(await imageDifference({ path: copied, format: 'raw' }, { path: truth, format: 'raw' }), undefined)
  t.equal((await serving).code, 0)

  await rename(it.base(domain), moved)
  const told = it.run('export', 'web01@latest', '--once', '--socket', socket, '--backing', moved)
  while (!existsSync(socket)) await delay(10)
  await run('qemu-img', ['convert', '-f', 'raw', '-O', 'raw', served, copied])
  t.equal(await imageDifference({ path: copied, format: 'raw' }, { path: truth, format: 'raw' }), undefined)
  t.equal((await told).code, 0)
  t.match(await it.refused('export', 'web01@latest', '--once', '--backing', small), { code: 'E_REFUSED' })
  t.match(await it.refused('files', 'web01@latest'), { code: 'E_NOT_FOUND', text: /--backing vda=/ })
  const found = await it.run('files', 'web01@latest', '--backing', `vda=${moved}`)
  t.equal(found.code, 0, JSON.stringify(found.json))
  await rename(moved, it.base(domain))

  for (const words of [
    ['restore', 'web01@latest', '--in-place', '--yes'],
    ['verify', 'web01', '--level', 'boot'],
  ]) {
    t.match(await it.refused(...words), { code: 'E_UNSUPPORTED', text: /--backing vda=/ }, words.join(' '))
  }

  t.equal((await it.pull('web01', '--depth', '0')).mode, 'full')
  const servingAll = it.run('export', '--all', '--once', '--socket', socket)
  while (!existsSync(socket)) await delay(10)
  await run('nbdcopy', [`nbd+unix:///web01@latest:vda?socket=${socket}`, 'null:'])
  t.match((await servingAll).stderr, /"exports":1,"left_out":1/, 'what is not served is told')
})

t.test('a lost node that says what is below stops a restore, and is told of by verify', requires('lab'), async t => {
  await using it = await DepthLab.start()
  const domain = await it.chained('web01')
  await change(domain, 20)
  await it.pull('web01', '--depth', '-1')
  const packs = it.lab.path('store/packs')
  for (const name of readdirSync(packs, { recursive: true, encoding: 'utf8' }).filter(path => path.endsWith('.pack'))) {
    await using file = await open(join(packs, name), 'r+')
    const header = Buffer.alloc(96)
    await file.read(header, 0, 96, 0)
    if (header[10] !== 2) continue
    const { size } = await file.stat()
    const bytes = Buffer.alloc(size)
    await file.read(bytes, 0, size, 0)
    // Kind 2 is a node; its payload is not what it was.
    for (let at = bytes.indexOf('VVR1'); at >= 0; at = bytes.indexOf('VVR1', at + 1)) {
      if (bytes[at + 4] === 2) await file.write(Buffer.alloc(8, 0xff), 0, 8, at + 64)
    }
  }

  t.match(await it.refused('restore', 'web01@latest', '--to', it.lab.path('damaged')), { code: 'E_DAMAGED' })
  t.equal((await it.run('verify', 'web01', '--level', 'data')).code, 7)
  await mkdir(it.lab.path('kept'))
  const kept = await it.run('restore', 'web01@latest', '--to', it.lab.path('kept'), '--allow-damaged')
  t.equal(kept.code, 7)
  const image = it.lab.path('kept/vda.damaged.qcow2')
  t.equal(await imageDamage(image), undefined)
  const zeros = it.lab.path('zeros.raw')
  await run('truncate', ['--size', String(SIZE), zeros])
  t.equal(
    await imageDifference({ path: image, format: 'qcow2' }, { path: zeros, format: 'raw' }),
    undefined,
    'what is lost reads as zeros, not as what is below',
  )
})
