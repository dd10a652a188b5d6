import { BackupError } from '../../src/base/errors.js'
import type { Machine, MachineEvent } from '../../src/daemon/follow-domains.js'
import type { DomainJob } from '../../src/model/domain-job.js'

/** A libvirt that does what the test says. */
export class FakeMachine implements Machine {
  readonly uri = 'fake:///'
  names: readonly string[] = []
  readonly metadata = new Map<string, readonly DomainJob[] | Error>()
  isThere = true
  reconnects = 0
  #emit: ((event: MachineEvent) => void) | undefined

  domains() {
    if (!this.isThere) return Promise.reject(new BackupError('E_LIBVIRT_CONNECT', 'it is away'))
    return Promise.resolve(
      this.names.map(text => {
        const [uuid = '', name = uuid] = text.split('=')
        return { uuid, name, isRunning: true }
      }),
    )
  }

  jobs(uuid: string) {
    const found = this.metadata.get(uuid) ?? []
    return found instanceof Error ? Promise.reject(found) : Promise.resolve(found)
  }

  async *events(signal: AbortSignal): AsyncGenerator<MachineEvent> {
    const waiting: MachineEvent[] = []
    let wake: (() => void) | undefined
    this.#emit = event => {
      waiting.push(event)
      wake?.()
    }
    signal.addEventListener('abort', () => wake?.())
    while (!signal.aborted) {
      const next = waiting.shift()
      if (next !== undefined) yield next
      else await new Promise<void>(resolve => (wake = resolve))
    }
  }

  emit(event: MachineEvent): void {
    this.#emit?.(event)
  }

  reconnect() {
    this.reconnects++
    return this.isThere ? Promise.resolve() : Promise.reject(new BackupError('E_LIBVIRT_CONNECT', 'it is away'))
  }

  [Symbol.asyncDispose]() {
    return Promise.resolve()
  }
}
