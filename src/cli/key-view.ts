import type { KeyRing, SlotView } from '../store/key-ring.js'
import { storePassphrase } from './passphrases.js'
import type { Session } from './session.js'
import type { TargetPlace } from './targets.js'
import { BackupError } from '../base/errors.js'

/** A key slot in `--json`. */
export function slotDocument({ id, label, created, cost }: SlotView): object {
  return {
    id,
    label,
    created: new Date(created).toISOString(),
    kdf: { algorithm: 'scrypt', n: cost.cost, r: cost.blockSize, p: cost.parallelism },
  }
}

/** Opens the key ring with the passphrase of the store. Rejects with E_KEY, E_CONFIG. */
export async function unlockRing(
  session: Session,
  { ring, place }: { readonly ring: KeyRing; readonly place: TargetPlace },
): Promise<SlotView | undefined> {
  const passphrase = await storePassphrase(session, place)
  if (passphrase !== undefined) return await ring.unlock(passphrase)
  throw new BackupError('E_KEY', 'no passphrase was given', {
    hints: ['export VIRTVAULT_PASSPHRASE_FILE=/etc/virtvault/store.key', 'or name one in the configuration'],
  })
}
