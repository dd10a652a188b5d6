import { rename, rm, writeFile } from 'node:fs/promises'

import type { Clock } from '../base/clock.js'
import { messageOf } from '../base/errors.js'
import type { LoadedConfig } from '../config/load.js'
import { HOUR_MS } from '../model/duration.js'
import type { RunEntry } from './history-entry.js'
import { type MetricFacts, metricFamilies, renderMetrics, type StoreFacts } from './metrics.js'
import type { RunFigures } from './task.js'

export interface PublisherPorts {
  readonly clock: Clock
  surveyStores(loaded: LoadedConfig): Promise<readonly StoreFacts[]>
  facts(): Omit<MetricFacts, 'figures' | 'stores'>
  /** Told once, until it is over. */
  onTrouble(message: string): void
}

const SURVEY_EVERY_MS = HOUR_MS
/** Others collect the file: readable by all, there are no secrets in it. */
const FILE_MODE = 0o644

/** Keeps the metrics, and their file where the configuration names one. */
export class Publisher {
  readonly #ports: PublisherPorts
  readonly #figures = new Map<string, RunFigures>()
  readonly #troubles = new Set<string>()
  #stores: readonly StoreFacts[] = []
  #surveyedAt = -Infinity
  #surveying: Promise<void> | undefined

  constructor(ports: PublisherPorts) {
    this.#ports = ports
  }

  ran({ task, figures }: Pick<RunEntry, 'task' | 'figures'>): void {
    this.#figures.set(task, figures)
  }

  metrics(): string {
    return renderMetrics(metricFamilies({ ...this.#ports.facts(), figures: this.#figures, stores: this.#stores }))
  }

  /** What the targets hold has changed. */
  surveySoon(): void {
    this.#surveyedAt = -Infinity
  }

  /** Writes the file, and has the targets looked at where that is due. Never rejects. */
  async publish(loaded: LoadedConfig): Promise<void> {
    const now = this.#ports.clock.monotonic()
    if (this.#surveying === undefined && now - this.#surveyedAt > SURVEY_EVERY_MS) {
      this.#surveyedAt = now
      this.#surveying = this.#guard('the targets cannot be looked at', async () => {
        this.#stores = await this.#ports.surveyStores(loaded)
      }).finally(() => (this.#surveying = undefined))
    }
    const file = loaded.config.metrics?.textfile
    if (file === undefined) return
    await this.#guard('the metrics cannot be written', () => writeMetricsFile(file, this.metrics()))
  }

  async settled(): Promise<void> {
    await this.#surveying
  }

  async #guard(trouble: string, work: () => Promise<void>): Promise<void> {
    try {
      await work()
      this.#troubles.delete(trouble)
    } catch (error) {
      if (!this.#troubles.has(trouble)) this.#ports.onTrouble(`${trouble}: ${messageOf(error)}`)
      this.#troubles.add(trouble)
    }
  }
}

/** Replaces the file as a whole: a collector never reads half of it. Rejects as the system does. */
export async function writeMetricsFile(path: string, text: string): Promise<void> {
  // Collectors read *.prom alone.
  const temporary = `${path}.new`
  try {
    await writeFile(temporary, text, { mode: FILE_MODE })
    await rename(temporary, path)
  } catch (error) {
    await rm(temporary, { force: true })
    throw error
  }
}
