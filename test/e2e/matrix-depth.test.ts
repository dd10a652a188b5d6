import { readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
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
  readonly code: number
  readonly json: {
    readonly error?: { readonly code: string; readonly message: string; readonly why: string; readonly hints: string[] }
    readonly results?: {
      readonly point: string
      readonly mode: string
      readonly warnings: { readonly code: string; readonly message: string }[]
      readonly disks: { readonly mode: string; readonly read_bytes: number; readonly new_bytes: number }[]
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
    return { code, json: JSON.parse(stdout) as Answer['json'] }
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
