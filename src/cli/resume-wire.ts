import { randomBytes } from 'node:crypto'
import { existsSync } from 'node:fs'
import { readdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'

import { BackupError } from '../base/errors.js'
import { isInstantId } from '../format/instant-state.js'
import { decodeRestoreState, encodeRestoreState, type RestoreState } from '../format/restore-state.js'
import type { ImageSpec } from '../image/image-factory.js'
import { makeDirectory } from '../image/directory.js'
import { removePartial, syncDirectory } from '../image/image-file.js'
import type { PlannedDisk, RestorePlan } from '../jobs/restore-plan.js'
import { stateDir } from './places.js'

/** Notes restores that can be gone on with: a part of wire.ts. */

/** qcow2's own, where none was asked for. */
const DEFAULT_CLUSTER_BYTES = 64 * 1024

/** A restore to files that can be gone on with, and its plan with the names of the unfinished images. */
export interface ResumableRestore {
  readonly plan: RestorePlan
  readonly state: RestoreState
}

/**
 * Notes a restore, so that it can be gone on with from the moment on in which
 * it creates its first file; undefined where none of its images allows that, or
 * the state directory cannot be written.
 * Rejects with E_EXISTS where there is an unfinished one of the same images;
 * with `force` that is removed.
 */
export async function beginResumable(
  plan: RestorePlan,
  store: { readonly id: string; readonly chunkSize: number },
  words: readonly string[],
): Promise<ResumableRestore | undefined> {
  await clearTheWay(plan)
  // What is left out must be found again, and compared again: begin anew.
  if (plan.disks.some(({ below }) => below !== undefined)) return undefined
  const id = randomBytes(4).toString('hex')
  const images = plan.disks.flatMap(({ spec }) => {
    if (!allowsResuming(spec, store.chunkSize)) return []
    const path = resolve(spec.path)
    return [{ path, partial: join(dirname(path), `.${basename(path)}.virtvault-${randomBytes(8).toString('hex')}`) }]
  })
  if (images.length === 0) return undefined
  const { point } = plan
  const state = { id, storeId: store.id, pointId: point.id, domain: point.domain.name, words, images }
  try {
    await saveState(state)
  } catch {
    // A rescue system may have no place for it: that must not stop a restore.
    return undefined
  }
  return { state, plan: withPartials(plan, state) }
}

async function saveState(state: RestoreState): Promise<void> {
  const path = statePath(state.id)
  await makeDirectory(folder())
  await writeFile(`${path}.tmp`, encodeRestoreState(state), { mode: 0o600, flush: true })
  await rename(`${path}.tmp`, path)
  await syncDirectory(folder())
}

/** The plan of a restore that goes on. */
export function withPartials(plan: RestorePlan, state: RestoreState): RestorePlan {
  const disks = plan.disks.map((planned): PlannedDisk => {
    const { spec } = planned
    if (spec.kind !== 'qcow2' && spec.kind !== 'raw') return planned
    const found = state.images.find(({ path }) => path === resolve(spec.path))
    return found === undefined ? planned : { ...planned, spec: { ...spec, partial: found.partial } }
  })
  return { ...plan, disks }
}

/**
 * Clusters no larger than chunks are written whole or not at all, and a plain
 * image is a file of nothing else: all of it can be looked at.
 */
function allowsResuming(spec: ImageSpec, chunkSize: number): spec is ImageSpec & { readonly kind: 'qcow2' | 'raw' } {
  if (spec.kind === 'raw') return (spec.preallocation ?? 'off') === 'off'
  if (spec.kind !== 'qcow2') return false
  const { preallocation, compression, dataFile, explicitZeros, clusterSize = DEFAULT_CLUSTER_BYTES } = spec
  if ((preallocation ?? 'off') !== 'off' || (compression ?? 'none') !== 'none') return false
  return dataFile === undefined && explicitZeros !== true && clusterSize <= chunkSize
}

async function clearTheWay(plan: RestorePlan): Promise<void> {
  const wanted = new Set(plan.disks.flatMap(({ spec }) => ('path' in spec ? [resolve(spec.path)] : [])))
  for (const state of await unfinishedRestores()) {
    const [same] = state.images.filter(({ path, partial }) => wanted.has(path) && existsSync(partial))
    if (same === undefined) continue
    if (!plan.force) {
      throw new BackupError('E_EXISTS', `a restore to ${same.path} was begun already and is not finished`, {
        hints: [`go on with it:   virtvault restore --resume ${state.id}`, 'or begin anew with --force'],
      })
    }
    for (const { partial } of state.images) await removePartial(partial)
    await dropRestoreState(state.id)
  }
}

async function unfinishedRestores(): Promise<readonly RestoreState[]> {
  const states: RestoreState[] = []
  for (const name of await readdir(folder()).catch(() => [])) {
    const state = await loadRestoreState(name.replace(/\.json$/, '')).catch(() => undefined)
    if (state !== undefined) states.push(state)
  }
  return states
}

/** undefined where there is none of this id. Rejects with E_DAMAGED. */
export async function loadRestoreState(id: string): Promise<RestoreState | undefined> {
  const bytes = isInstantId(id) ? await readFile(statePath(id)).catch(() => undefined) : undefined
  return bytes === undefined ? undefined : decodeRestoreState(bytes)
}

export async function dropRestoreState(id: string): Promise<void> {
  await rm(statePath(id), { force: true })
}

function folder(): string {
  return join(stateDir(), 'restores')
}

function statePath(id: string): string {
  return join(folder(), `${id}.json`)
}
