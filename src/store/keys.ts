/**
 * What an encrypted store derives its keys with; the plain implementation has
 * none. Everything that encodes or decodes is given this, never a key.
 */
export interface StoreKeys {
  /** Key of the ids (HMAC-SHA-256), 32 bytes; undefined: SHA-256. */
  readonly idKey: Uint8Array | undefined
  /** AES-256 key of one pack, from the salt in its header. */
  packKey(salt: Uint8Array, packId: Uint8Array): Uint8Array | undefined
  /** AES-256 key of one point or notes file, from the salt in its header. */
  pointKey(salt: Uint8Array): Uint8Array | undefined
}

/** A store without encryption. */
export const plainKeys: StoreKeys = {
  idKey: undefined,
  packKey: () => undefined,
  pointKey: () => undefined,
}
