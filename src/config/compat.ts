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
