import { BackupError } from '../base/errors.js'
import { ApiClient } from '../daemon/api-client.js'
import type { StatusDocument, TaskDocument } from '../daemon/daemon-status.js'
import { type HistoryEntry, readHistoryDocument } from '../daemon/history-entry.js'

/** The daemon of this machine, as commands talk to it. Calls reject with E_UNREACHABLE where none runs. */
export class DaemonClient {
  readonly #api: ApiClient
  readonly #signal: AbortSignal

  constructor(socket: string, signal: AbortSignal) {
    this.#api = new ApiClient(socket)
    this.#signal = signal
  }

  async status(): Promise<StatusDocument> {
    const answer = await this.#api.get('/v1/status', this.#signal)
    if (!isStatus(answer)) throw notUnderstood()
    return answer
  }

  /** As status(), undefined where no daemon runs. */
  async statusIfThere(): Promise<StatusDocument | undefined> {
    try {
      return await this.status()
    } catch (error) {
      if (error instanceof BackupError && error.code === 'E_UNREACHABLE') return undefined
      throw error
    }
  }

  /** Oldest first. */
  async history(query: Readonly<Record<string, string>>): Promise<readonly HistoryEntry[]> {
    const answer = await this.#api.get(`/v1/history?${new URLSearchParams(query).toString()}`, this.#signal)
    return listIn(answer, 'entries').map(readHistoryDocument)
  }

  /** Ids of the tasks that were begun. */
  async run(tasks: readonly string[]): Promise<readonly string[]> {
    return listIn(await this.#api.post('/v1/run', { tasks }, this.#signal), 'begun').filter(
      id => typeof id === 'string',
    )
  }

  /** What is wrong with the configuration; nothing where it is in use now. */
  async reload(): Promise<readonly string[]> {
    const answer = await this.#api.post('/v1/reload', {}, this.#signal)
    return listIn(answer, 'problems').filter(problem => typeof problem === 'string')
  }
}

/** What every use of it depends on. */
function isStatus(answer: unknown): answer is StatusDocument {
  const schema = typeof answer === 'object' && answer !== null && 'schema' in answer ? answer.schema : undefined
  return schema === 'virtvault/daemon_status/1' && listIn(answer, 'jobs').every(isTask)
}

function isTask(value: unknown): value is TaskDocument {
  return (
    typeof value === 'object' &&
    value !== null &&
    ['id', 'verb', 'target', 'schedule', 'state'].every(name => typeof Reflect.get(value, name) === 'string')
  )
}

function listIn(answer: unknown, name: string): readonly unknown[] {
  const list: unknown = typeof answer === 'object' && answer !== null ? Reflect.get(answer, name) : undefined
  if (!Array.isArray(list)) throw notUnderstood()
  return list
}

function notUnderstood(): BackupError {
  return new BackupError('E_UNSUPPORTED', 'the daemon speaks another version', {
    hints: ['restart it: systemctl restart virtvault-daemon'],
  })
}
