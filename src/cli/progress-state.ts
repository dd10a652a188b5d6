import type { DiskEvent, FinishedEvent, ProgressEvent } from '../jobs/progress.js'

/** What is known of one disk; numbers only grow. */
export interface DiskState {
  readonly target: string
  totalBytes: number
  doneBytes: number
  newBytes: number
}

/** What is known of one subject (a domain, a store). */
export interface SubjectState {
  readonly name: string
  readonly startedMs: number
  readonly disks: Map<string, DiskState>
  readonly rate: RateMeter
  phase: string | undefined
  /** Highest percentage ever shown, so that a total that grows cannot turn it back. */
  percent: number
  finished: FinishedEvent | undefined
}

/** The sum of all that was reported, for every renderer. */
export class ProgressState {
  readonly subjects = new Map<string, SubjectState>()
  readonly rate = new RateMeter()
  #percent = 0

  /** Takes an event in and gives back what it was about; undefined for log lines. */
  apply(event: ProgressEvent, nowMs: number): SubjectState | undefined {
    if (event.kind === 'log') return undefined
    const subject = this.#subject(event.subject, nowMs)
    switch (event.kind) {
      case 'phase':
        subject.phase = event.phase
        break
      case 'disk':
        this.#applyDisk(subject, event, nowMs)
        break
      case 'finished':
        subject.finished = event
        if (event.status === 'success') subject.percent = 100
        break
      case 'started':
      case 'warning':
        break
    }
    return subject
  }

  /** Percentage of everything, by bytes; never runs backwards. */
  get percent(): number {
    const all = [...this.subjects.values()]
    const isDone = all.length > 0 && all.every(subject => subject.finished !== undefined)
    this.#percent = Math.max(this.#percent, isDone ? 100 : cappedPercent(sumDisks(all)))
    return this.#percent
  }

  #subject(name: string, nowMs: number): SubjectState {
    const known = this.subjects.get(name)
    if (known !== undefined) return known
    const fresh: SubjectState = {
      name,
      startedMs: nowMs,
      disks: new Map(),
      rate: new RateMeter(),
      phase: undefined,
      percent: 0,
      finished: undefined,
    }
    this.subjects.set(name, fresh)
    return fresh
  }

  #applyDisk(subject: SubjectState, event: DiskEvent, nowMs: number): void {
    const { target } = event
    const disk = subject.disks.get(target) ?? { target, totalBytes: 0, doneBytes: 0, newBytes: 0 }
    disk.totalBytes = Math.max(disk.totalBytes, event.totalBytes)
    disk.doneBytes = Math.max(disk.doneBytes, event.doneBytes)
    disk.newBytes = Math.max(disk.newBytes, event.newBytes)
    subject.disks.set(target, disk)
    subject.phase = undefined
    const sums = sumDisks([subject])
    subject.percent = Math.max(subject.percent, cappedPercent(sums))
    subject.rate.note(nowMs, sums.doneBytes)
    this.rate.note(nowMs, sumDisks(this.subjects.values()).doneBytes)
  }
}

export interface Sums {
  readonly totalBytes: number
  readonly doneBytes: number
  readonly newBytes: number
}

export function sumDisks(subjects: Iterable<SubjectState>): Sums {
  let totalBytes = 0
  let doneBytes = 0
  let newBytes = 0
  for (const subject of subjects) {
    for (const disk of subject.disks.values()) {
      totalBytes += disk.totalBytes
      doneBytes += disk.doneBytes
      newBytes += disk.newBytes
    }
  }
  return { totalBytes, doneBytes, newBytes }
}

/** At most 99: only the end of a job is 100 %. */
function cappedPercent({ doneBytes, totalBytes }: Sums): number {
  return totalBytes === 0 ? 0 : Math.min(99, Math.floor((doneBytes * 100) / totalBytes))
}

const RATE_WINDOW_MS = 15_000
const RATE_SAMPLE_MS = 500

/** Bytes per second over the last quarter of a minute. */
export class RateMeter {
  readonly #samples: { readonly ms: number; readonly bytes: number }[] = []

  note(ms: number, bytes: number): void {
    const last = this.#samples.at(-1)
    if (last !== undefined && ms - last.ms < RATE_SAMPLE_MS) return
    this.#samples.push({ ms, bytes })
    while ((this.#samples[0]?.ms ?? ms) < ms - RATE_WINDOW_MS) this.#samples.shift()
  }

  /** undefined until there are two samples. */
  bytesPerSecond(): number | undefined {
    const first = this.#samples[0]
    const last = this.#samples.at(-1)
    if (first === undefined || last === undefined || last.ms <= first.ms) return undefined
    return ((last.bytes - first.bytes) * 1000) / (last.ms - first.ms)
  }

  /** Seconds until `remaining` bytes are done at this rate. */
  secondsFor(remaining: number): number | undefined {
    const rate = this.bytesPerSecond()
    return rate === undefined || rate <= 0 ? undefined : remaining / rate
  }
}
