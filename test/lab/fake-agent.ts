import { rmSync } from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import { createInterface } from 'node:readline'

/**
 * What the agent does with a command: answers, never answers, closes the connection, refuses, or is busy with it, and with
 * what comes after it, until wake().
 */
export type AgentMood = 'answer' | 'hang' | 'die' | 'fail' | 'stall'

/**
 * A guest agent without a guest: enough of its protocol (JSON lines) to be
 * pinged, frozen and thawed, and to misbehave as told.
 *
 *     const domain = await lab.domain({ name: 'web01', agent: 'fake', disks: [...] })
 *     await using agent = await FakeAgent.listen(domain.agentSocket)
 *     await domain.start()
 *     agent.moods.set('guest-fsfreeze-freeze', 'hang')
 *
 * Listen before the domain starts: QEMU and libvirt both connect, and only
 * libvirt speaks.
 */
export class FakeAgent {
  /** Per command; 'answer' where nothing is said. `guest-sync` is what libvirt sends before each. */
  readonly moods = new Map<string, AgentMood>()
  /** Every command received, in order, without the syncs. */
  readonly commands: string[] = []
  /** Number of file systems that a freeze freezes. */
  fileSystems = 2
  readonly #server: Server
  readonly #path: string
  readonly #sockets = new Set<Socket>()
  #frozen = false
  /** What waits for wake(), in order; undefined where nothing is waited for. */
  #stalled: (() => void)[] | undefined
  #waiting: (() => void)[] = []

  private constructor(path: string) {
    this.#path = path
    this.#server = createServer(socket => this.#serve(socket))
  }

  static async listen(path: string): Promise<FakeAgent> {
    const agent = new FakeAgent(path)
    await new Promise<void>((done, fail) => {
      agent.#server.once('error', fail)
      agent.#server.listen(path, done)
    })
    return agent
  }

  get isFrozen(): boolean {
    return this.#frozen
  }

  /** Resolves when `command` has been received once more. */
  async received(command: string): Promise<void> {
    const before = this.#count(command)
    while (this.#count(command) === before) await new Promise<void>(wake => this.#waiting.push(wake))
  }

  /** Does what it was busy with, and what has come since, one after the other as an agent does. */
  wake(): void {
    const waiting = this.#stalled ?? []
    this.#stalled = undefined
    this.moods.clear()
    for (const work of waiting) work()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy()
    await new Promise<void>(done => this.#server.close(() => done()))
    rmSync(this.#path, { force: true })
  }

  #count(command: string): number {
    return this.commands.filter(one => one === command).length
  }

  #serve(socket: Socket): void {
    this.#sockets.add(socket)
    socket.on('close', () => this.#sockets.delete(socket))
    socket.on('error', () => undefined)
    createInterface({ input: socket }).on('line', line => {
      // libvirt starts with a byte that resets a real agent's parser.
      const text = line.replace(/^\xff|^\ufffd/, '')
      if (text.trim() !== '') this.#receive(socket, text)
    })
  }

  #receive(socket: Socket, text: string): void {
    if (this.#stalled !== undefined) {
      this.#stalled.push(() => this.#receive(socket, text))
      return
    }
    const { execute, arguments: args } = JSON.parse(text) as { execute: string; arguments?: { id?: number } }
    const isSync = execute === 'guest-sync' || execute === 'guest-sync-delimited'
    const mood = this.moods.get(execute) ?? 'answer'
    if (mood === 'stall') this.#stalled = [() => this.#receive(socket, text)]
    if (!isSync && mood !== 'stall') this.commands.push(execute)
    for (const wake of this.#waiting.splice(0)) wake()
    if (mood === 'stall') return
    if (mood === 'hang') return
    if (mood === 'die') {
      socket.destroy()
      return
    }
    const reply =
      mood === 'fail' ? failure('as the test wants it') : isSync ? { return: args?.id ?? 0 } : this.#answer(execute)
    socket.write(`${JSON.stringify(reply)}\n`)
  }

  #answer(command: string): object {
    switch (command) {
      case 'guest-ping':
        return { return: {} }
      case 'guest-fsfreeze-freeze':
      case 'guest-fsfreeze-freeze-list':
        if (this.#frozen)
          return failure('Command guest-fsfreeze-freeze has been disabled: the agent is in frozen state')
        this.#frozen = true
        return { return: this.fileSystems }
      case 'guest-fsfreeze-thaw': {
        const thawed = this.#frozen ? this.fileSystems : 0
        this.#frozen = false
        return { return: thawed }
      }
      case 'guest-fsfreeze-status':
        return { return: this.#frozen ? 'frozen' : 'thawed' }
      default:
        return { error: { class: 'CommandNotFound', desc: `The command ${command} has not been found` } }
    }
  }
}

function failure(text: string): object {
  return { error: { class: 'GenericError', desc: text } }
}
