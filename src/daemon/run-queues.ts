import { limitedQueue } from '../base/async.js'
import type { Task, Together } from './task.js'

export interface RunLimits {
  /** Pulls on this host at once. */
  readonly host: number
  /** Pulls into one target at once. */
  readonly ofTarget: (target: string) => number
}

type Queue = ReturnType<typeof limitedQueue>

/** Of work on a whole store that is due together, in this order: what a prune drops, the gc frees. */
const STORE_RANK = { prune: 2, gc: 1, verify: 0 } as const

/**
 * Who may run: pulls at most `host` at once, at most so many into one target,
 * and one per domain, as libvirt runs one job on it. Work on a whole store runs
 * one after another for each store, beside the pulls. The higher priority goes
 * first. Bounded because a task stands in it at most once.
 *
 * The order domain, targets by name, host is the same for all, so nobody waits
 * in a circle; a slot of a target that waits for the host keeps no one back that
 * the host would let run.
 */
export class RunQueues {
  readonly #host: Queue
  readonly #targets = new Map<string, Queue>()
  readonly #domains = new Map<string, Queue>()
  readonly #stores = new Map<string, Queue>()
  #limits: RunLimits

  constructor(limits: RunLimits) {
    this.#limits = limits
    this.#host = limitedQueue(limits.host)
  }

  /** What runs goes on; the new limits count for what starts. */
  setLimits(limits: RunLimits): void {
    this.#limits = limits
    this.#host.concurrency = limits.host
    for (const [target, queue] of this.#targets) queue.concurrency = limits.ofTarget(target)
  }

  /** Runs `work` when it is the turn of all these tasks, which are one run; settles as `work` does. */
  async run(tasks: Together<Task>, work: () => Promise<void>): Promise<void> {
    const [task] = tasks
    if (task.verb !== 'pull') {
      const priority = STORE_RANK[task.verb]
      await inQueue(queueOf(this.#stores, task.target, 1), work, priority)
      return
    }
    const { priority } = task
    const { uuid } = task.domain
    const domain = queueOf(this.#domains, uuid, 1)
    // By name, as all do: two runs with the same targets never hold one each.
    const targets = tasks.map(({ target }) => target).sort()
    const held = targets.map(target => queueOf(this.#targets, target, this.#limits.ofTarget(target)))
    const inAll = [domain, ...held, this.#host].reduceRight<() => Promise<void>>(
      (inner, queue) => () => inQueue(queue, inner, priority),
      work,
    )
    await inAll()
    if (domain.size === 0 && domain.pending === 0) this.#domains.delete(uuid)
  }
}

function queueOf(queues: Map<string, Queue>, key: string, limit: number): Queue {
  const queue = queues.get(key) ?? limitedQueue(limit)
  queues.set(key, queue)
  return queue
}

async function inQueue(queue: Queue, work: () => Promise<void>, priority: number): Promise<void> {
  await queue.add(work, { priority })
}
