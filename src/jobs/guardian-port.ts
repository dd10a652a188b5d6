import type { GuardianOrders } from '../libvirt/guardian.js'

/**
 * A small process that lives as long as its pull, and cleans up on the
 * hypervisor when the pull dies without a word.
 */
export interface GuardianPort extends AsyncDisposable {
  /** Replaces what was ordered before. Disposing disarms. */
  order(orders: GuardianOrders): void
}
