import { Buffer } from 'node:buffer'

import { damaged } from './damage.js'

/** What an instant restore needs to go on after its process has died. */
export interface InstantState {
  /** Eight hex characters; what `--resume` takes. */
  readonly id: string
  readonly storeId: string
  readonly pointId: string
  readonly domain: { readonly uuid: string; readonly name: string }
  /** The libvirt of another machine, where it is one; paths are paths over there then. */
  readonly connect?: string | undefined
  /** Where the domain's overlays expect the export. */
  readonly socket: string
  readonly disks: readonly InstantDisk[]
  /** What is put beside the disks before the domain is defined: UEFI variables, TPM state, kernels. */
  readonly files: readonly string[]
  /** A definition whose disks are as they shall be when the domain needs its export no more. */
  readonly hydratedXml: string
  /** false: no domain has written to the overlays yet. */
  readonly started: boolean
}

export interface InstantDisk {
  readonly target: string
  /** Path of the overlay. */
  readonly image: string
}

const INSTANT_ID = /^[0-9a-f]{8}$/

export function isInstantId(text: string): boolean {
  return INSTANT_ID.test(text)
}

export function encodeInstantState(state: InstantState): Uint8Array {
  return Buffer.from(`${JSON.stringify({ format: 1, ...state }, undefined, 2)}\n`)
}

/** Throws E_DAMAGED. */
export function decodeInstantState(bytes: Uint8Array): InstantState {
  try {
    const fields = record(JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes)))
    if (fields['format'] !== 1) throw new Error('it is of another format')
    const domain = record(fields['domain'])
    const disks = fields['disks']
    if (!Array.isArray(disks)) throw new Error('it names no disks')
    return {
      id: text(fields, 'id'),
      storeId: text(fields, 'storeId'),
      pointId: text(fields, 'pointId'),
      domain: { uuid: text(domain, 'uuid'), name: text(domain, 'name') },
      connect: fields['connect'] === undefined ? undefined : text(fields, 'connect'),
      socket: text(fields, 'socket'),
      disks: disks.map(disk => ({ target: text(record(disk), 'target'), image: text(record(disk), 'image') })),
      files: texts(fields['files']),
      hydratedXml: text(fields, 'hydratedXml'),
      // States of before this was noted are of domains that run.
      started: fields['started'] !== false,
    }
  } catch (error) {
    throw damaged('the state of an instant restore', error instanceof Error ? error.message : String(error), error)
  }
}

function record(value: unknown): Readonly<Record<string, unknown>> {
  if (typeof value !== 'object' || value === null) throw new Error('something is no object')
  return value as Readonly<Record<string, unknown>>
}

function text(fields: Readonly<Record<string, unknown>>, name: string): string {
  const value = fields[name]
  if (typeof value !== 'string') throw new Error(`${name} is no text`)
  return value
}

/** Earlier states name none. */
function texts(value: unknown): readonly string[] {
  if (value === undefined) return []
  if (!Array.isArray(value)) throw new Error('its files are no list')
  return value.map(one => {
    if (typeof one !== 'string') throw new Error('a file of it is no text')
    return one
  })
}
