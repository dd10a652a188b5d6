import { basename, dirname } from 'node:path'

import type { AppendFile, DurableFs, FileLock, ReadFile } from '../../src/base/durable-fs.js'
import { BackupError } from '../../src/base/errors.js'

/** What a call is about to do; `count` counts calls of all kinds, `syncs` those that make something durable. */
export interface Operation {
  readonly kind: 'mkdir' | 'create' | 'append' | 'sync' | 'syncdir' | 'rename' | 'remove'
  readonly path: string
  readonly count: number
  readonly syncs: number
}

/** How a power cut treats what was not synced. */
export type Loss = 'everything' | 'nothing' | ((choices: number) => number)

interface File {
  readonly kind: 'file'
  live: Buffer
  durable: Buffer
  locks: { shared: number; exclusive: boolean }
}

interface Directory {
  readonly kind: 'directory'
  live: Map<string, File | Directory>
  durable: Map<string, File | Directory>
}

export class PowerCut extends Error {
  constructor() {
    super('the power is off')
    this.name = 'PowerCut'
  }
}

/**
 * A file system in memory that promises no more than POSIX does: content is
 * durable after sync, a name after a sync of its directory; whatever else
 * happened may be lost, kept or torn, each thing for itself.
 */
export class SimulatedFs implements DurableFs {
  readonly #root: Directory
  /** Asked before every change; what it gives back is thrown, and nothing is done. */
  onOperation: ((operation: Operation) => Error | undefined) | undefined
  /**
   * Syncs that are left out, as by a mutant of whoever should have made them: nothing of a file becomes durable, and
   * of a directory only what went from it.
   */
  forgets: ((operation: Pick<Operation, 'kind' | 'path'>) => boolean) | undefined
  operations = 0
  syncs = 0
  #off = false

  constructor(root: Directory = newDirectory()) {
    this.#root = root
  }

  /** From now on nothing works any more. */
  powerOff(): void {
    this.#off = true
  }

  /** The disk as the next boot finds it. */
  afterPowerCut(loss: Loss): SimulatedFs {
    return new SimulatedFs(survivor(this.#root, loss))
  }

  /** Changes the bytes of a file behind everyone's back. */
  tamper(path: string, change: (bytes: Buffer) => Buffer): void {
    const file = this.#file(path)
    file.live = change(Buffer.from(file.live))
    file.durable = Buffer.from(file.live)
  }

  /** Every file with its bytes. */
  files(): Map<string, Buffer> {
    const found = new Map<string, Buffer>()
    const visit = (directory: Directory, path: string) => {
      for (const [name, node] of directory.live) {
        if (node.kind === 'file') found.set(`${path}/${name}`, node.live)
        else visit(node, `${path}/${name}`)
      }
    }
    visit(this.#root, '')
    return found
  }

  async makeDirectory(path: string): Promise<boolean> {
    await this.#change('mkdir', path)
    const parent = this.#directory(dirname(path))
    if (parent.live.has(basename(path))) return false
    parent.live.set(basename(path), newDirectory())
    return true
  }

  async createFile(path: string): Promise<AppendFile> {
    await this.#change('create', path)
    const parent = this.#directory(dirname(path))
    if (parent.live.has(basename(path))) throw new BackupError('E_EXISTS', `${path} exists`)
    const file: File = {
      kind: 'file',
      live: Buffer.alloc(0),
      durable: Buffer.alloc(0),
      locks: { shared: 0, exclusive: false },
    }
    parent.live.set(basename(path), file)
    const parts: Buffer[] = []
    let size = 0
    let failed = false
    const settle = () => {
      file.live = Buffer.concat([file.live, ...parts])
      parts.length = 0
    }
    const guarded = async (kind: 'append' | 'sync') => {
      if (failed) throw new BackupError('E_IO', `${path} failed before`)
      try {
        await this.#change(kind, path)
      } catch (error) {
        failed = true
        throw error
      }
    }
    return {
      get size() {
        return size
      },
      append: async bytes => {
        await guarded('append')
        parts.push(Buffer.from(bytes))
        size += bytes.length
        settle()
      },
      sync: async () => {
        await guarded('sync')
        if (this.forgets?.({ kind: 'sync', path }) === true) return
        file.durable = Buffer.from(file.live)
      },
      close: () => Promise.resolve(),
    }
  }

  async openFile(path: string): Promise<ReadFile> {
    await this.#pause()
    const file = this.#file(path)
    return {
      size: file.live.length,
      read: async (into, offset) => {
        await this.#pause()
        return file.live.copy(into, 0, Math.min(offset, file.live.length))
      },
      close: () => Promise.resolve(),
    }
  }

  async readWhole(path: string): Promise<Uint8Array | undefined> {
    await this.#pause()
    const node = this.#find(path)
    return node?.kind === 'file' ? Buffer.from(node.live) : undefined
  }

  async fileSize(path: string): Promise<number | undefined> {
    await this.#pause()
    const node = this.#find(path)
    return node?.kind === 'file' ? node.live.length : undefined
  }

  async list(path: string): Promise<string[]> {
    await this.#pause()
    return [...this.#directory(path).live.keys()]
  }

  async renameNoReplace(from: string, to: string): Promise<boolean> {
    await this.#change('rename', to)
    if (this.#find(to) !== undefined) return false
    this.#move(from, to)
    return true
  }

  async renameReplace(from: string, to: string): Promise<void> {
    await this.#change('rename', to)
    this.#move(from, to)
  }

  async remove(path: string): Promise<boolean> {
    await this.#change('remove', path)
    return this.#find(dirname(path))?.kind === 'directory' && this.#directory(dirname(path)).live.delete(basename(path))
  }

  async syncDirectory(path: string): Promise<void> {
    await this.#change('syncdir', path)
    const directory = this.#directory(path)
    const isForgotten = this.forgets?.({ kind: 'syncdir', path }) === true
    const { durable, live } = directory
    directory.durable = new Map(isForgotten ? [...live].filter(([name]) => durable.has(name)) : live)
  }

  async lock(path: string, mode: 'shared' | 'exclusive'): Promise<FileLock | undefined> {
    await this.#pause()
    const parent = this.#directory(dirname(path))
    let file = parent.live.get(basename(path))
    if (file === undefined) {
      file = { kind: 'file', live: Buffer.alloc(0), durable: Buffer.alloc(0), locks: { shared: 0, exclusive: false } }
      parent.live.set(basename(path), file)
    }
    if (file.kind !== 'file') throw new BackupError('E_IO', `${path} is a directory`)
    const { locks } = file
    if (locks.exclusive || (mode === 'exclusive' && locks.shared > 0)) return undefined
    if (mode === 'exclusive') locks.exclusive = true
    else locks.shared++
    let held = true
    return {
      isNamed: candidate => Promise.resolve(this.#find(candidate) === file),
      [Symbol.asyncDispose]: () => {
        if (held && mode === 'exclusive') locks.exclusive = false
        else if (held) locks.shared--
        held = false
        return Promise.resolve()
      },
    }
  }

  async #change(kind: Operation['kind'], path: string): Promise<void> {
    await this.#pause()
    const error = this.onOperation?.({ kind, path, count: this.operations, syncs: this.syncs })
    this.operations++
    if (kind === 'sync' || kind === 'syncdir') this.syncs++
    if (error !== undefined) throw error
    if (this.#off) throw new PowerCut()
  }

  async #pause(): Promise<void> {
    await Promise.resolve()
    if (this.#off) throw new PowerCut()
  }

  #move(from: string, to: string): void {
    const node = this.#find(from)
    if (node === undefined) throw new BackupError('E_NOT_FOUND', `there is no ${from}`)
    this.#directory(dirname(from)).live.delete(basename(from))
    this.#directory(dirname(to)).live.set(basename(to), node)
  }

  #find(path: string): File | Directory | undefined {
    let node: File | Directory | undefined = this.#root
    for (const name of path.split('/').filter(part => part !== '' && part !== '.')) {
      if (node?.kind !== 'directory') return undefined
      node = node.live.get(name)
    }
    return node
  }

  #directory(path: string): Directory {
    const node = this.#find(path)
    if (node?.kind !== 'directory') throw new BackupError('E_NOT_FOUND', `there is no directory ${path}`)
    return node
  }

  #file(path: string): File {
    const node = this.#find(path)
    if (node?.kind !== 'file') throw new BackupError('E_NOT_FOUND', `there is no file ${path}`)
    return node
  }
}

function newDirectory(): Directory {
  return { kind: 'directory', live: new Map(), durable: new Map() }
}

/** One of the states that the disk may be in after the power went. */
function survivor(directory: Directory, loss: Loss): Directory {
  const entries = new Map<string, File | Directory>()
  for (const name of new Set([...directory.durable.keys(), ...directory.live.keys()])) {
    const [durable, live] = [directory.durable.get(name), directory.live.get(name)]
    const keepsLive = durable === live || pick(loss, 2) === 1
    const node = keepsLive ? live : durable
    if (node === undefined) continue
    entries.set(name, node.kind === 'directory' ? survivor(node, loss) : survivingFile(node, loss))
  }
  return { kind: 'directory', live: entries, durable: new Map(entries) }
}

function survivingFile(file: File, loss: Loss): File {
  let content = file.durable
  if (!file.live.equals(file.durable)) {
    const choice = pick(loss, 5)
    if (choice === 1) content = file.live
    // Torn: only a part got to the disk; or its length did, and zeroes.
    if (choice === 2) content = file.live.subarray(0, pick(loss, file.live.length + 1))
    if (choice === 3) content = Buffer.alloc(file.live.length)
    if (choice === 4) {
      content = Buffer.from(file.live)
      if (content.length > 0) content.fill(0, pick(loss, content.length))
    }
  }
  return {
    kind: 'file',
    live: Buffer.from(content),
    durable: Buffer.from(content),
    locks: { shared: 0, exclusive: false },
  }
}

/** 0: as last synced. 1: as last seen. */
function pick(loss: Loss, choices: number): number {
  if (loss === 'everything') return 0
  if (loss === 'nothing') return Math.min(1, choices - 1)
  return loss(choices)
}
