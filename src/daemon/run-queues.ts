import { limitedQueue } from '../base/async.js'
import type { Task } from './task.js'

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
 * The order domain, target, host is the same for all, so nobody waits in a
 * circle; a slot of a target that waits for the host keeps no one back that
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

  /** Runs `work` when it is this task's turn; settles as `work` does. */
  async run(task: Task, work: () => Promise<void>): Promise<void> {
    if (task.verb !== 'pull') {
      const priority = STORE_RANK[task.verb]
      await inQueue(queueOf(this.#stores, task.target, 1), work, priority)
      return
    }
    const { priority } = task
    const { uuid } = task.domain
    const domain = queueOf(this.#domains, uuid, 1)
    const target = queueOf(this.#targets, task.target, this.#limits.ofTarget(task.target))
    await inQueue(domain, () => inQueue(target, () => inQueue(this.#host, work, priority), priority), priority)
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
