import { createRequire } from 'node:module'
import { fileURLToPath } from 'node:url'

import type { CodecBinding } from './codec.js'
import type { NbdBinding } from './nbd.js'
import type { SystemBinding } from './system.js'
import type { VirtBinding } from './virt.js'

/** Must equal kBindingVersion in native/addon/addon.cc. */
const BINDING_VERSION = 5

export interface NativeBinding extends CodecBinding, NbdBinding, SystemBinding, VirtBinding {
  readonly bindingVersion: number
}

let loaded: NativeBinding | undefined

/**
 * The addon, loaded once. Loading is slow enough (shared libraries) that only
 * code about to use it calls this. Throws where the addon is missing or was
 * built for another version of this program.
 */
export function native(): NativeBinding {
  loaded ??= load()
  return loaded
}

function load(): NativeBinding {
  const require = createRequire(import.meta.url)
  const path = fileURLToPath(new URL('../../../build/Release/virtvault.node', import.meta.url))
  const binding = require(path) as NativeBinding
  if (binding.bindingVersion !== BINDING_VERSION) {
    throw new Error(
      `${path} has version ${binding.bindingVersion} where ${BINDING_VERSION} is needed: run npm run build:native`,
    )
  }
  return binding
}
