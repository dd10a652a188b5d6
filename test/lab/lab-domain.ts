import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'

import { diskXml, domainXml } from './domain-xml.js'
import { type Fill, MIB } from './fill.js'
import { imageDifference, imageInfo } from './images.js'
import type { Lab } from './lab.js'
import { type Change, LabDisk, type LabDiskSpec, qemuIoCommands } from './lab-disk.js'
import { run } from './run-program.js'

export interface LabDomainSpec {
  readonly name: string
  readonly uuid?: string
  readonly disks: readonly LabDiskSpec[]
  /** Bytes; default 32 MiB. */
  readonly memory?: number
  readonly cpus?: number
  /** Default 'pc', which allows hotplug freely. */
  readonly machine?: 'pc' | 'q35'
  /** A guest agent: of a guest that has one, or a FakeAgent that listens at `agentSocket`. */
  readonly agent?: 'guest' | 'fake'
  /** A guest that writes by itself: its disks have no valid shadow. */
  readonly kernel?: { readonly image: string; readonly initrd: string; readonly arguments: string }
  /** Further XML inside `<devices>`, and inside `<domain>`. */
  readonly devices?: string
  readonly elements?: string
}

/** What a job could have left behind; all empty is what a test wants to see. */
export interface Leftovers {
  /** libvirt's running job, e.g. `Backup`. */
  readonly jobs: readonly string[]
  readonly checkpoints: readonly string[]
  /** `target:name` for each dirty bitmap, in QEMU or, for a domain that is off, in the image. */
  readonly bitmaps: readonly string[]
  /** NBD exports that QEMU serves. */
  readonly exports: readonly string[]
  /** Scratch files, sockets and the like, in the lab's scratch folder or beside the images. */
  readonly files: readonly string[]
}

const STATE_TIMEOUT_MS = 60_000

/** A domain of a lab. Made by Lab.domain(). */
export class LabDomain {
  readonly name: string
  readonly uuid: string
  readonly #disks: LabDisk[]
  readonly agentSocket: string
  readonly consoleLog: string
  readonly #lab: Lab
  readonly #hasGuest: boolean
  #patternFiles = 0

  private constructor(lab: Lab, spec: LabDomainSpec, disks: readonly LabDisk[], uuid: string) {
    this.#lab = lab
    this.name = spec.name
    this.uuid = uuid
    this.#disks = [...disks]
    this.agentSocket = agentSocket(lab, spec)
    this.consoleLog = consoleLog(lab, spec)
    this.#hasGuest = spec.kernel !== undefined
  }

  /** Use Lab.domain(). */
  static async define(lab: Lab, spec: LabDomainSpec): Promise<LabDomain> {
    const disks = await Promise.all(spec.disks.map(disk => LabDisk.create(disk, diskFiles(lab, spec.name, disk))))
    const xml = domainXml({
      name: spec.name,
      uuid: spec.uuid,
      memory: spec.memory ?? 32 * MIB,
      cpus: spec.cpus ?? 1,
      machine: spec.machine ?? 'pc',
      disks,
      agent: spec.agent === undefined ? undefined : { kind: spec.agent, socket: agentSocket(lab, spec) },
      kernel: spec.kernel,
      consoleLog: spec.kernel === undefined ? undefined : consoleLog(lab, spec),
      devices: spec.devices ?? '',
      elements: spec.elements ?? '',
    })
    const file = lab.path(`${spec.name}.xml`)
    writeFileSync(file, xml)
    await lab.virsh('define', file)
    return new LabDomain(lab, spec, disks, await lab.virsh('domuuid', spec.name))
  }

  get disks(): readonly LabDisk[] {
    return this.#disks
  }

  async start(): Promise<void> {
    await this.#lab.virsh('start', this.uuid)
  }

  /** Ends QEMU the orderly way (SIGTERM): bitmaps are stored in the images. */
  async destroy(): Promise<void> {
    await this.#lab.virsh('destroy', this.uuid)
  }

  /** Asks the guest by ACPI; only one with an operating system obeys. Returns when it is off. */
  async shutdown(): Promise<void> {
    await this.#lab.virsh('shutdown', this.uuid)
    await this.waitFor('shut off')
  }

  async suspend(): Promise<void> {
    await this.#lab.virsh('suspend', this.uuid)
  }

  async resume(): Promise<void> {
    await this.#lab.virsh('resume', this.uuid)
  }

  /**
   * Kills QEMU as a crash of the host does: bitmaps are lost. What was written
   * before is flushed first, so the disks hold what their shadows hold.
   */
  async kill9(): Promise<void> {
    for (const disk of this.disks) if (!disk.readOnly) await this.qemuIo(disk.target, 'flush')
    await this.signal('SIGKILL')
    await this.waitFor('shut off')
  }

  /** To QEMU: SIGSTOP and SIGCONT hang it for a while. */
  async signal(signal: NodeJS.Signals): Promise<void> {
    const pid = Number(readFileSync(join(this.#lab.folder, 'run', 'qemu', `${this.name}.pid`), 'utf8'))
    await this.#lab.signal(pid, signal)
  }

  /** As virsh domstate has it: `running`, `paused`, `shut off`, … */
  async state(): Promise<string> {
    return this.#lab.virsh('domstate', this.uuid)
  }

  async waitFor(state: string): Promise<void> {
    const deadline = performance.now() + STATE_TIMEOUT_MS
    for (let now = await this.state(); now !== state; now = await this.state()) {
      if (performance.now() > deadline) throw new Error(`${this.name} is ${now}, not ${state}`)
      await delay(20)
    }
  }

  /** Plugs a new disk into the running domain and its definition. */
  async attachDisk(spec: LabDiskSpec): Promise<LabDisk> {
    const disk = await LabDisk.create(spec, diskFiles(this.#lab, this.name, spec))
    const file = this.#lab.path(`${this.name}-${spec.target}.xml`)
    writeFileSync(file, diskXml(disk))
    await this.#lab.virsh('attach-device', this.uuid, file, '--persistent')
    this.#disks.push(disk)
    return disk
  }

  /** Of a domain that runs. What is cut off or added is so in the shadow as well. */
  async resize(target: string, size: number): Promise<void> {
    const disk = this.disk(target)
    await this.#lab.virsh('blockresize', this.uuid, target, `${size}B`)
    await run('truncate', ['--size', String(size), disk.shadow])
    disk.size = size
  }

  disk(target: string): LabDisk {
    const disk = this.disks.find(one => one.target === target)
    if (disk === undefined) throw new Error(`${this.name} has no disk ${target}`)
    return disk
  }

  async write(target: string, offset: number, length: number, fill: Fill): Promise<void> {
    await this.change(target, [{ kind: 'write', offset, length, fill }])
  }

  /** Offset and length are multiples of 64 KiB, or of the image's larger clusters. */
  async discard(target: string, offset: number, length: number): Promise<void> {
    await this.change(target, [{ kind: 'discard', offset, length }])
  }

  async zero(target: string, offset: number, length: number): Promise<void> {
    await this.change(target, [{ kind: 'zero', offset, length }])
  }

  /**
   * Changes a disk as the guest would, and its shadow alike; flushed when it
   * returns. Works on a domain that runs, is paused or is off. One virsh for
   * all changes: thousands are fine.
   */
  async change(target: string, changes: readonly Change[]): Promise<void> {
    const disk = this.disk(target)
    if (this.#hasGuest) throw new Error(`${this.name} has a guest: let that one write`)
    for (const change of changes) disk.checkChange(change)
    const files: string[] = []
    const patternFile = (bytes: Buffer): string => {
      const path = this.#lab.path(`pattern-${this.uuid}-${++this.#patternFiles}`)
      writeFileSync(path, bytes)
      files.push(path)
      return path
    }
    try {
      await this.qemuIo(target, ...changes.flatMap(change => qemuIoCommands(change, patternFile)), 'flush')
      await disk.changeShadow(changes)
    } finally {
      for (const file of files) rmSync(file)
    }
  }

  /**
   * Runs qemu-io commands on the disk of the running domain (LIBVIRT.md §11.3),
   * or on the image of one that is off. QEMU does not report a failed command
   * of a running domain; `referenceImage` notices. The shadow is not changed.
   */
  async qemuIo(target: string, ...commands: readonly string[]): Promise<void> {
    const disk = this.disk(target)
    if ((await this.state()) === 'shut off') {
      const args = commands.flatMap(command => ['-c', command])
      await run('qemu-io', ['-f', disk.format, '-d', 'unmap', ...args, disk.path])
      return
    }
    const device = `/machine/peripheral/${await this.#alias(target)}/virtio-backend`
    const output = await this.#lab.virshScript(
      commands.map(command => `qemu-monitor-command ${this.uuid} --hmp 'qemu-io -d ${device} "${command}"'`),
    )
    if (output.trim() !== '') throw new Error(`qemu-io on ${this.name} ${target}: ${output}`)
  }

  /**
   * An independent raw copy of the disk as it is at this instant. Of a disk
   * that the lab writes it is a copy of the shadow, and throws where the live
   * image differs from that; of a guest's disk it is a copy of the image, made
   * while the domain is paused.
   */
  async referenceImage(target: string, name: string): Promise<string> {
    const disk = this.disk(target)
    const reference = this.#lab.path(`${this.name}-${target}-${basename(name)}.raw`)
    const isRunning = (await this.state()) === 'running'
    if (isRunning && this.#hasGuest) await this.suspend()
    try {
      if ((await this.state()) !== 'shut off' && !disk.readOnly) await this.qemuIo(target, 'flush')
      if (this.#hasGuest) {
        await run('qemu-img', ['convert', '-U', '-f', disk.format, '-O', 'raw', disk.path, reference])
      } else {
        await run('cp', ['--sparse=always', disk.shadow, reference])
        const difference = await imageDifference({ path: reference, format: 'raw' }, disk)
        if (difference !== undefined) throw new Error(`${this.name} ${target} is not what was written: ${difference}`)
      }
    } finally {
      if (isRunning && this.#hasGuest) await this.resume()
    }
    return reference
  }

  /** Checkpoints that libvirt knows, oldest first. */
  async checkpoints(): Promise<string[]> {
    return words(await this.#lab.virsh('checkpoint-list', this.uuid, '--name', '--topological'))
  }

  /** What is still there of anybody's backup. */
  async leftovers(): Promise<Leftovers> {
    const isOff = (await this.state()) === 'shut off'
    const job = isOff ? '' : await this.#lab.virsh('domjobinfo', this.uuid)
    const known = new Set(this.disks.map(disk => basename(disk.path)))
    const images = readdirSync(join(this.#lab.folder, 'images')).filter(
      file => file.startsWith(`${this.name}-`) && !known.has(file),
    )
    const scratch = readdirSync(this.#lab.scratchFolder, { recursive: true, withFileTypes: true })
    return {
      jobs: /^Job type:\s*None/m.test(job) || job === '' ? [] : words(/^Operation:.*$/m.exec(job)?.[0] ?? job),
      checkpoints: await this.checkpoints(),
      bitmaps: isOff ? await this.#storedBitmaps() : await this.#liveBitmaps(),
      exports: isOff ? [] : (await this.#qmp<{ id: string }[]>('query-block-exports')).map(one => one.id),
      files: [...images, ...scratch.filter(entry => !entry.isDirectory()).map(entry => entry.name)],
    }
  }

  /** Runs a QMP command on QEMU and returns what it returns. */
  async #qmp<T>(command: string, args: object = {}): Promise<T> {
    const text = await this.#lab.virsh(
      'qemu-monitor-command',
      this.uuid,
      JSON.stringify({ execute: command, arguments: args }),
    )
    return (JSON.parse(text) as { return: T }).return
  }

  async #liveBitmaps(): Promise<string[]> {
    const nodes = await this.#qmp<{ file?: string; 'dirty-bitmaps'?: { name?: string }[] }[]>(
      'query-named-block-nodes',
      { flat: true },
    )
    return nodes.flatMap(node => {
      const target = this.disks.find(one => one.path === node.file)?.target ?? node.file ?? '?'
      // Those without a name are QEMU's own, for its block jobs.
      const names = (node['dirty-bitmaps'] ?? []).flatMap(bitmap => bitmap.name ?? [])
      return names.map(name => `${target}:${name}`)
    })
  }

  async #storedBitmaps(): Promise<string[]> {
    const perDisk = this.disks.map(async disk => {
      const { bitmaps } = await imageInfo(disk.path, disk.format)
      return bitmaps.map(bitmap => `${disk.target}:${bitmap.name}`)
    })
    return (await Promise.all(perDisk)).flat()
  }

  async #alias(target: string): Promise<string> {
    const xml = await this.#lab.virsh('dumpxml', this.uuid)
    const disk = xml.split('<disk ').find(part => part.includes(`<target dev='${target}'`))
    const alias = /<alias name='([^']+)'/.exec(disk ?? '')?.[1]
    if (alias === undefined) throw new Error(`${this.name} does not run with a disk ${target}`)
    return alias
  }
}

function words(text: string): string[] {
  return text.split(/\s+/).filter(word => word !== '')
}

function diskFiles(lab: Lab, domain: string, disk: LabDiskSpec): { path: string; shadow: string } {
  return {
    path: join(lab.folder, 'images', `${domain}-${disk.target}.${disk.format ?? 'qcow2'}`),
    shadow: join(lab.folder, 'shadows', `${domain}-${disk.target}.raw`),
  }
}

function agentSocket(lab: Lab, spec: LabDomainSpec): string {
  return lab.path(`${spec.name}.agent`)
}

function consoleLog(lab: Lab, spec: LabDomainSpec): string {
  return lab.path(`${spec.name}.console`)
}
