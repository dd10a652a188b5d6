import { isMap } from 'yaml'

import { BackupError } from '../base/errors.js'
import { parseConfigDocument } from './document.js'
import type { ConfigDocument } from './document.js'
import { VIRT_BACKUP_0_1, VIRT_BACKUP_0_4 } from './virt-backup.js'
import type { ConfigLayer, ConfigRemark } from './virt-backup.js'

/**
 * Older forms of configuration, each brought one step nearer to ours. A layer
 * stays for ever: a file that was read once is read always. `version: 1` is the
 * first form of ours; the layer from it to 2 will stand at the end.
 */
export const CONFIG_LAYERS: readonly ConfigLayer[] = [VIRT_BACKUP_0_1, VIRT_BACKUP_0_4]

/** Brings the document to the present form, in place. */
export function migrateConfig(
  document: ConfigDocument,
  layers: readonly ConfigLayer[] = CONFIG_LAYERS,
): readonly ConfigRemark[] {
  return layers.flatMap(layer => (layer.appliesTo(document) ? layer.apply(document) : []))
}

export interface ConvertedConfig {
  /** In the present form, with the comments of the original. */
  readonly text: string
  readonly remarks: readonly ConfigRemark[]
}

/**
 * The text of a file in the present form, for `config import`. Throws E_CONFIG
 * for what is not YAML; whether the result is right is for `checkTexts` to say.
 */
export function convertConfig(file: string, text: string): ConvertedConfig {
  const { document, problems } = parseConfigDocument(file, text)
  if (problems.length > 0) {
    const why = problems.map(({ where, message }) => `${where}  ${message}`).join('; ')
    throw new BackupError('E_CONFIG', `${file} cannot be read`, { why })
  }
  const remarks = migrateConfig(document)
  const { yaml } = document
  if (isMap(yaml.contents) && !yaml.contents.has('version')) yaml.contents.items.unshift(yaml.createPair('version', 1))
  return { text: yaml.toString({ lineWidth: 0 }), remarks }
}
