import { Buffer } from 'node:buffer'

import { damaged } from './damage.js'
import { Fields } from './fields.js'

/** What a restore to files needs to go on after its process has died. Nothing about what the files hold: that is looked at. */
export interface RestoreState {
  /** Eight hex characters; what `--resume` takes. */
  readonly id: string
  readonly storeId: string
  readonly pointId: string
  readonly domain: string
  /** The flags of the command, as it was given them. */
  readonly words: readonly string[]
  readonly images: readonly UnfinishedImage[]
}

export interface UnfinishedImage {
  /** Final path. */
  readonly path: string
  /** Path while it is written. */
  readonly partial: string
}

export function encodeRestoreState(state: RestoreState): Uint8Array {
  return Buffer.from(`${JSON.stringify({ format: 1, ...state }, undefined, 2)}\n`)
}

const WHAT = 'the state of a restore'

/** Throws E_DAMAGED. */
export function decodeRestoreState(bytes: Uint8Array): RestoreState {
  let value: unknown
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes))
  } catch (error) {
    throw damaged(WHAT, error instanceof Error ? error.message : String(error), error)
  }
  const fields = new Fields(value, WHAT)
  if (fields.count('format') !== 1) throw damaged(WHAT, 'it is of another format')
  const words = list(fields.raw('words')).map(word => {
    if (typeof word !== 'string') throw damaged(WHAT, 'a word is no text')
    return word
  })
  return {
    id: fields.text('id'),
    storeId: fields.text('storeId'),
    pointId: fields.text('pointId'),
    domain: fields.text('domain'),
    words,
    images: list(fields.raw('images')).map(one => {
      const image = new Fields(one, WHAT)
      return { path: image.text('path'), partial: image.text('partial') }
    }),
  }
}

function list(value: unknown): readonly unknown[] {
  if (!Array.isArray(value)) throw damaged(WHAT, 'something is no list')
  return value
}
