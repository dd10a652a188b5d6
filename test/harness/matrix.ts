import { open, writeFile } from 'node:fs/promises'

import type { PullResult } from '../../src/jobs/pull-job.js'
import type { RecoveryPoint } from '../../src/model/recovery-point.js'
import { Store } from '../../src/store/store.js'
import type { StorePort } from '../../src/store/store-types.js'
import { imageDifference } from '../lab/images.js'
import type { LabDomain } from '../lab/lab-domain.js'
import { Lab } from '../lab/lab.js'
import { diskBytes, LabPuller } from './pull.js'

/** A lab, a store, and pulls between them whose disks are compared with what the domain held. */
export class Matrix implements AsyncDisposable {
  readonly lab: Lab
  readonly store: StorePort
  readonly puller: LabPuller
  #images = 0

  private constructor(lab: Lab, store: StorePort, puller: LabPuller) {
    this.lab = lab
    this.store = store
    this.puller = puller
  }

  static async start(): Promise<Matrix> {
    const lab = await Lab.start()
    await Store.init(lab.path('store'))
    const store = await Store.open(lab.path('store'))
    return new Matrix(lab, store, await LabPuller.open(lab, store))
  }

  /**
   * Pulls, and says how the point's disks differ from what the domain held
   * before: undefined where they do not. The domain must not write meanwhile.
   */
  async pull(domain: LabDomain, ...options: Parameters<LabPuller['pull']>[1][]): Promise<Pulled> {
    const held = new Map<string, string>()
    for (const { target } of domain.disks) {
      held.set(target, await domain.referenceImage(target, `held-${++this.#images}`))
    }
    const result = await this.puller.pull(domain, options[0] ?? {})
    const differences: string[] = []
    for (const { target } of result.point.disks) {
      const reference = held.get(target)
      if (reference === undefined) continue
      const difference = await this.difference(result.point, target, reference)
      if (difference !== undefined) differences.push(`${target}: ${difference}`)
    }
    return { ...result, difference: differences.length === 0 ? undefined : differences.join('; ') }
  }

  /** How a disk of a point differs from a raw image; undefined where it does not. */
  async difference(point: RecoveryPoint, target: string, reference: string): Promise<string | undefined> {
    const restored = await this.writeOut(point, target)
    return await imageDifference({ path: restored, format: 'raw' }, { path: reference, format: 'raw' })
  }

  /** A disk of a point as a raw image. */
  async writeOut(point: RecoveryPoint, target: string): Promise<string> {
    const disk = point.disks.find(one => one.target === target)
    if (disk === undefined) throw new Error(`the point has no disk ${target}`)
    const path = this.lab.path(`${point.id}-${target}-${++this.#images}.raw`)
    const file = await open(path, 'w')
    await file.truncate(disk.size)
    for await (const [offset, bytes] of diskBytes(this.store, disk)) await file.write(bytes, 0, bytes.length, offset)
    await file.close()
    return path
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.puller[Symbol.asyncDispose]()
    await this.store[Symbol.asyncDispose]()
    await this.lab[Symbol.asyncDispose]()
  }
}

export interface Pulled extends PullResult {
  readonly difference: string | undefined
}

/** Mode and bytes read of each disk, e.g. `vda incremental 65536`. */
export function readings(point: RecoveryPoint): string[] {
  return point.disks.map(disk => `${disk.target} ${disk.mode} ${disk.statistics.readBytes}`)
}

export function codes({ warnings }: PullResult): string[] {
  return warnings.map(({ code }) => code)
}

/** Defines a domain anew with its inactive XML changed, as an administrator does with `virsh edit`. */
export async function redefine(lab: Lab, domain: LabDomain, change: (xml: string) => string): Promise<void> {
  const before = await lab.virsh('dumpxml', '--inactive', domain.uuid)
  const after = change(before)
  if (after === before) throw new Error(`the change of ${domain.name} changes nothing`)
  const file = lab.path(`${domain.name}-redefined.xml`)
  await writeFile(file, after)
  await lab.virsh('define', file)
}
