import { mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import type { Lab } from '../lab/lab.js'
import { run } from '../lab/run-program.js'

const ROOT = fileURLToPath(new URL('../../..', import.meta.url))

/** What `backup pull --json` says of one disk. */
export interface PullDisk {
  readonly target: string
  readonly dirty_bytes: number
  readonly read_bytes: number
  readonly new_bytes: number
  readonly stored_bytes: number
}

export interface PullResult {
  readonly point: string
  readonly mode: string
  readonly disks: readonly PullDisk[]
}

/** The installed program, run as a user runs it, on one lab and one store. */
export class VirtvaultCli {
  readonly #program: string
  readonly #store: string
  readonly #uri: string
  readonly #say: (line: string) => void
  readonly #env: NodeJS.ProcessEnv

  constructor(lab: Lab, store: string, say: (line: string) => void) {
    const { bin } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as { bin: Record<string, string> }
    this.#program = join(ROOT, bin['virtvault'] ?? '')
    this.#store = store
    this.#uri = lab.uri
    this.#say = say
    this.#env = cliEnvironment(lab)
  }

  /** Runs a command and returns what it prints; throws where its exit code is not 0. */
  async run(...words: readonly string[]): Promise<string> {
    const target = words[0] === 'init' ? [] : ['-t', this.#store]
    const command = [...words, ...target]
    this.#say(`   $ virtvault ${command.join(' ')}`)
    const { stdout } = await run(process.execPath, [this.#program, ...command], { env: this.#env })
    return stdout
  }

  async pull(domain: string): Promise<PullResult> {
    const text = await this.run('backup', 'pull', domain, '-c', this.#uri, '--json')
    const document = JSON.parse(text) as { results: PullResult[] }
    const [result] = document.results
    if (result === undefined) throw new Error(`no result in ${text}`)
    return result
  }
}

/** Keeps the program's files within the lab, and the user's own configuration out of it. */
export function cliEnvironment(lab: Lab): NodeJS.ProcessEnv {
  const home = lab.path('home')
  mkdirSync(home, { recursive: true })
  return {
    HOME: home,
    XDG_CONFIG_HOME: join(home, '.config'),
    XDG_CACHE_HOME: join(home, '.cache'),
    XDG_STATE_HOME: join(home, '.state'),
    VIRTVAULT_SCRATCH_DIR: lab.scratchFolder,
    VIRTVAULT_RUNTIME_DIR: lab.scratchFolder,
    VIRTVAULT_CACHE_DIR: join(home, 'cache'),
    VIRTVAULT_STATE_DIR: join(home, 'state'),
  }
}
