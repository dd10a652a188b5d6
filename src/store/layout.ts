import { isHex, toHex } from '../base/hex.js'

/** Folders that every store has. */
export const STORE_FOLDERS = ['packs', 'points', 'jobs', 'locks'] as const

/** Key slots; only encrypted stores have it. */
export const KEY_FOLDER = 'keys'

export const STORE_FILE = 'store.json'
export const CONDEMNED_FILE = 'jobs/condemned.set'
/** What verify found damaged. */
export const DAMAGE_FILE = 'jobs/damage.set'
/** Which packs verify has read, and when. */
export const VERIFIED_FILE = 'jobs/verified.set'

export function packKeyOf(packId: Uint8Array | string): string {
  const name = typeof packId === 'string' ? packId : toHex(packId)
  return `packs/${name.slice(0, 2)}/${name}.pack`
}

/** The pack's id in hex; undefined where `key` names no pack. */
export function packOfKey(key: string): string | undefined {
  const name = key.slice('packs/ab/'.length, -'.pack'.length)
  return isHex(name, 32) && key === packKeyOf(name) ? name : undefined
}

export function pointKeyOf(domainUuid: string, pointId: string): string {
  return `points/${domainUuid}/${pointId}.point`
}

/** Where a point lies that was removed while a gc was under way, until the next one. */
export function tombstoneKeyOf(domainUuid: string, pointId: string): string {
  return `points/${domainUuid}/${pointId}.gone`
}

export function notesKeyOf(domainUuid: string, pointId: string): string {
  return `points/${domainUuid}/${pointId}.notes`
}
