/**
 * The main job on the real thing, step by step: pull a running domain, change
 * it, pull again, restore every point, compare each with what the disks held
 * at its time. Exits with 1 on any difference, also of a figure.
 */
import { readdirSync } from 'node:fs'
import { join } from 'node:path'

import { GIB, KIB, MIB } from '../lab/fill.js'
import { imageDamage, imageDifference, imageInfo } from '../lab/images.js'
import { Lab } from '../lab/lab.js'
import type { Change } from '../lab/lab-disk.js'
import type { LabDomain } from '../lab/lab-domain.js'
import { ExpectedFigures } from './expected-figures.js'
import { type PullDisk, VirtvaultCli } from './virtvault-cli.js'

interface Step {
  readonly title: string
  readonly changes: Readonly<Record<string, readonly Change[]>>
}

interface Point {
  readonly id: string
  readonly title: string
  readonly references: Readonly<Record<string, string>>
}

const CONTENT: Readonly<Record<string, readonly Change[]>> = {
  vda: [
    { kind: 'write', offset: 0, length: 48 * MIB, fill: { seed: 1 } },
    { kind: 'write', offset: GIB, length: 16 * MIB, fill: 0x5a },
    { kind: 'write', offset: 5 * GIB + 128 * KIB, length: 4 * MIB, fill: { seed: 2 } },
    { kind: 'write', offset: 8 * GIB - MIB, length: MIB, fill: { seed: 3 } },
  ],
  vdb: [{ kind: 'write', offset: 0, length: 24 * MIB, fill: { seed: 4 } }],
}

const STEPS: readonly Step[] = [
  {
    title: 'the guest writes, discards and zeroes',
    changes: {
      vda: [
        { kind: 'write', offset: 512 * KIB + 512, length: 2 * MIB, fill: { seed: 5 } },
        { kind: 'write', offset: 3 * GIB, length: 256 * KIB, fill: 0x33 },
        { kind: 'discard', offset: 8 * MIB, length: 4 * MIB },
        { kind: 'zero', offset: GIB + 64 * KIB, length: MIB },
        { kind: 'zero', offset: 20 * MIB + 512, length: 4 * KIB },
      ],
      vdb: [{ kind: 'write', offset: 100 * MIB, length: 3 * MIB, fill: { seed: 6 } }],
    },
  },
  {
    title: 'the guest scatters small writes, fills what it discarded, discards what it wrote',
    changes: {
      vda: [
        ...Array.from(
          { length: 100 },
          (_, index): Change => ({
            kind: 'write',
            offset: 2 * GIB + index * 37 * MIB + 4 * KIB,
            length: 4 * KIB,
            fill: { seed: 100 + index },
          }),
        ),
        { kind: 'write', offset: 9 * MIB, length: 64 * KIB, fill: { seed: 7 } },
        { kind: 'discard', offset: 3 * GIB, length: 128 * KIB },
      ],
      vdb: [{ kind: 'discard', offset: 100 * MIB, length: 2 * MIB }],
    },
  },
]

let mismatches = 0

function say(text: string): void {
  process.stdout.write(`${text}\n`)
}

function step(text: string): void {
  say(`\n== ${text}`)
}

function expectTo(claim: string, difference: string | undefined): void {
  if (difference !== undefined) mismatches++
  say(
    `   ${difference === undefined ? 'ok      ' : 'MISMATCH'}  ${claim}${difference === undefined ? '' : `: ${difference}`}`,
  )
}

function mib(bytes: number): string {
  return `${(bytes / MIB).toFixed(2)} MiB`
}

/** Pulls, and holds the figures against what changed. */
async function pull(cli: VirtvaultCli, domain: LabDomain, expected: ExpectedFigures, step: Step): Promise<Point> {
  const references: Record<string, string> = {}
  for (const { target } of domain.disks) {
    references[target] = await domain.referenceImage(target, `${Date.now()}`)
  }
  const start = performance.now()
  const result = await cli.pull(domain.name)
  const seconds = ((performance.now() - start) / 1000).toFixed(2)
  say(`   @${result.point.slice(0, 7)}  ${result.mode}  ${seconds} s`)
  for (const { target } of domain.disks) {
    const disk = result.disks.find((one: PullDisk) => one.target === target)
    const { readBytes, newBytes } = await expected.next(target, references[target] ?? '', step.changes[target] ?? [])
    const read = disk?.read_bytes ?? -1
    const fresh = disk?.new_bytes ?? -1
    expectTo(
      `${target} read over NBD ${mib(read)} = what changed and is not zero, in whole chunks`,
      read === readBytes ? undefined : `expected ${readBytes} bytes, were ${read}`,
    )
    expectTo(
      `${target} new in the store ${mib(fresh)} = chunks that it did not have, takes ${mib(disk?.stored_bytes ?? -1)}`,
      fresh === newBytes ? undefined : `expected ${newBytes} bytes, were ${fresh}`,
    )
  }
  const { jobs, exports, files, checkpoints, bitmaps } = await domain.leftovers()
  const left = [...jobs, ...exports, ...files]
  expectTo('no job, export, socket or scratch file is left', left.length === 0 ? undefined : left.join(', '))
  expectTo(
    `checkpoints of the newest points only (${checkpoints.length}), one bitmap each on both disks`,
    checkpoints.length >= 1 && checkpoints.length <= 2 && bitmaps.length === 2 * checkpoints.length
      ? undefined
      : `${checkpoints.join(' ')}; ${bitmaps.join(' ')}`,
  )
  expectTo('the domain runs', (await domain.state()) === 'running' ? undefined : await domain.state())
  return { id: result.point, title: step.title, references }
}

/** Restores a point and compares every disk with its reference. */
async function restore(lab: Lab, cli: VirtvaultCli, point: Point, number: number): Promise<void> {
  const folder = lab.path(`restored-${number}`)
  const start = performance.now()
  await cli.run('restore', `@${point.id}`, '--to', folder)
  say(`   @${point.id.slice(0, 7)}  ${((performance.now() - start) / 1000).toFixed(2)} s  ${point.title}`)
  const images = readdirSync(folder, { recursive: true, encoding: 'utf8' }).filter(name => name.endsWith('.qcow2'))
  for (const [target, reference] of Object.entries(point.references)) {
    const image = images.find(name => name.includes(target))
    if (image === undefined) {
      expectTo(`${target} is restored`, `only ${images.join(', ')}`)
      continue
    }
    const path = join(folder, image)
    const restored = { path, format: 'qcow2' }
    expectTo(
      `qemu-img compare: ${target} is what it was then (${mib((await imageInfo(path, 'qcow2')).size)})`,
      await imageDifference(restored, { path: reference, format: 'raw' }),
    )
    expectTo(`qemu-img check: ${target}`, await imageDamage(path))
  }
}

async function demo(): Promise<void> {
  step('A lab: a private libvirtd with a real QEMU domain (no KVM, no systemd)')
  await using lab = await Lab.start()
  say(`   ${lab.uri}`)
  const domain = await lab.domain({
    name: 'web01',
    disks: [
      { target: 'vda', size: 8 * GIB, content: CONTENT['vda'] ?? [] },
      { target: 'vdb', size: 256 * MIB, content: CONTENT['vdb'] ?? [] },
    ],
  })
  await domain.start()
  say('   web01 runs: vda 8 GiB, sparse; vdb 256 MiB')

  const store = lab.path('store')
  const cli = new VirtvaultCli(lab, store, say)
  const expected = new ExpectedFigures(64 * KIB)
  step('A store')
  await cli.run('init', store)

  const points: Point[] = []
  step('First pull: everything')
  points.push(await pull(cli, domain, expected, { title: 'as it began', changes: CONTENT }))
  for (const change of STEPS) {
    step(`In web01 ${change.title}`)
    for (const [target, changes] of Object.entries(change.changes)) {
      await domain.change(target, changes)
      say(`   ${target}  ${changes.length} changes`)
    }
    step('Pull: only what changed')
    points.push(await pull(cli, domain, expected, change))
  }

  step('Pull again, nothing changed')
  const before = storeFiles(store)
  points.push(await pull(cli, domain, expected, { title: 'unchanged', changes: {} }))
  const added = storeFiles(store).filter(path => !before.includes(path))
  expectTo(
    'the store has one point file more, no chunk and no node',
    added.length === 1 && added[0]?.endsWith('.point') === true ? undefined : `new files: ${added.join(', ')}`,
  )

  step('What is stored')
  say((await cli.run('list')).replace(/^/gm, '   ').trimEnd())
  say((await cli.run('show', `@${points[0]?.id ?? ''}`)).replace(/^/gm, '   ').trimEnd())

  step('Every point restores alone')
  for (const [number, point] of points.entries()) await restore(lab, cli, point, number)
}

function storeFiles(store: string): string[] {
  return ['packs', 'points'].flatMap(part =>
    readdirSync(join(store, part), { recursive: true, withFileTypes: true })
      .filter(entry => entry.isFile())
      .map(entry => entry.name),
  )
}

try {
  await demo()
  say(mismatches === 0 ? '\nAll as it should be.' : `\n${mismatches} MISMATCHES`)
} catch (error) {
  mismatches++
  say(`\nThe demo failed: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`)
}
process.exitCode = mismatches === 0 ? 0 : 1
