import { join } from 'node:path'

import { systemClock } from '../../src/base/clock.js'
import { startGuardian } from '../../src/cli/guardian.js'
import type { PullResult } from '../../src/jobs/pull-job.js'
import { onlyResult, PullJob } from '../../src/jobs/pull-job.js'
import type { PullPorts, PullRequest } from '../../src/jobs/pull-ports.js'
import { SILENT_PROGRESS } from '../../src/jobs/progress.js'
import { Hypervisor } from '../../src/libvirt/hypervisor.js'
import { PullHost } from '../../src/libvirt/pull-host.js'
import { chunkLength, type DiskGeometry } from '../../src/model/disk-tree.js'
import type { PointDisk } from '../../src/model/recovery-point.js'
import { ExportReader } from '../../src/nbd/export-reader.js'
import type { StorePort } from '../../src/store/store-types.js'
import type { Lab } from '../lab/lab.js'

const never = new AbortController().signal

/** Pulls domains of a lab into a store with the real parts; `overrides` replaces some. */
export class LabPuller implements AsyncDisposable {
  readonly hypervisor: Hypervisor
  readonly #lab: Lab
  readonly #store: StorePort

  private constructor(lab: Lab, store: StorePort, hypervisor: Hypervisor) {
    this.#lab = lab
    this.#store = store
    this.hypervisor = hypervisor
  }

  static async open(lab: Lab, store: StorePort): Promise<LabPuller> {
    return new LabPuller(lab, store, await Hypervisor.open(lab.uri, {}, never))
  }

  ports(overrides: Partial<PullPorts> = {}): PullPorts {
    const { hypervisor } = this
    return {
      targets: [{ name: 'store', store: this.#store }],
      hypervisor: new PullHost(hypervisor, {
        runtimeDir: join(this.#lab.scratchFolder, 'r'),
        scratchDir: join(this.#lab.scratchFolder, 's'),
        readOnly: false,
        shareable: false,
      }),
      openExport: (address, disk, signal) =>
        ExportReader.open(
          address,
          { exportName: disk.exportName, dirtyBitmap: disk.bitmap, connections: 2, requestTimeoutMs: 30_000 },
          signal,
        ),
      startGuardian: () => startGuardian({ uri: hypervisor.uri }),
      clock: systemClock,
      random: Math.random,
      progress: SILENT_PROGRESS,
      toolVersion: 'test',
      ...overrides,
    }
  }

  async pull(
    domain: { readonly uuid: string; readonly name: string },
    options: {
      readonly request?: Partial<PullRequest>
      readonly ports?: Partial<PullPorts>
      readonly signal?: AbortSignal
    } = {},
  ): Promise<PullResult> {
    const request: PullRequest = {
      domain: { uuid: domain.uuid, name: domain.name },
      wish: { mode: 'auto', only: [], except: [] },
      freeze: { mode: 'off', mountpoints: [], timeoutSeconds: 5 },
      scratchLimits: { minFreeBytes: 0, maxUsedBytes: undefined, intervalMs: 500 },
      tags: [],
      ...options.request,
    }
    return onlyResult(await new PullJob(this.ports(options.ports)).run(request, options.signal ?? never))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.hypervisor[Symbol.asyncDispose]()
  }
}

/** A disk of a point as the store gives it back, run by run: `[offset, bytes]`; what is not yielded is zero. */
export async function* diskBytes(store: StorePort, disk: PointDisk): AsyncGenerator<readonly [number, Buffer]> {
  const { chunkSize } = store
  const geometry: DiskGeometry = { size: disk.size, chunkSize }
  for await (const run of store.walkTree(disk.root, geometry)) {
    if (run.kind !== 'data') continue
    for (let i = 0; i < run.count; i++) {
      const index = run.first + i
      const out = Buffer.alloc(chunkLength(geometry, index))
      await store.chunks.read(run.ids.subarray(i * 32, i * 32 + 32), out, Uint32Array.of(0, out.length), never)
      yield [index * chunkSize, out]
    }
  }
}
