/**
 * Where a store's objects live: the one seam between the store and its
 * backend. Local files (local-objects.ts) come first; an S3 bucket fits the
 * same four verbs. test/conformance/object-store.ts holds every implementation
 * to it.
 *
 * Keys are `packs/ab/….pack`, `points/<uuid>/….point`, `store.json` and so on:
 * lower-case letters, digits, `.`, `-` and `/`.
 *
 * Rejects with E_NO_SPACE, E_REFUSED, E_IO, E_UNREACHABLE; reading what is not
 * there gives undefined.
 */
export interface ObjectStore extends AsyncDisposable {
  /** For people. */
  readonly location: string

  /** Starts a new object. Readers may see it, incomplete, before seal(). */
  create(key: string): Promise<ObjectWriter>

  /**
   * Makes a small object appear whole and durable, after reading it back.
   * false (and nothing done) where the key exists.
   */
  putNew(key: string, bytes: Uint8Array): Promise<boolean>

  /** As putNew, in place of what is there. */
  replace(key: string, bytes: Uint8Array): Promise<void>

  /** A small object. */
  get(key: string): Promise<Uint8Array | undefined>

  /** Bytes; undefined where there is none. */
  size(key: string): Promise<number | undefined>

  /**
   * Fills `into` from `offset`. Gives the bytes read, fewer only at the
   * object's end; undefined where there is no such object.
   */
  read(key: string, into: Uint8Array, offset: number): Promise<number | undefined>

  /**
   * Every key below `folder` (`packs`, `points/<uuid>`), sorted. A listing is
   * whole or it rejects; one of the store's own folders that is missing is an
   * error (E_DAMAGED), not an empty listing.
   */
  list(folder: string): Promise<string[]>

  /** Durable when it resolves. false where there was none. */
  remove(key: string): Promise<boolean>
}

export interface ObjectWriter {
  /** Bytes appended so far. */
  readonly size: number
  /** In order, one call at a time; `bytes` is borrowed until it settles. After a failure nothing more is taken. */
  append(bytes: Uint8Array): Promise<void>
  /** Makes the object durable, name included, and ends it. A failure is final: the object is condemned. */
  seal(): Promise<void>
  /** Removes what was written; best effort, never rejects. */
  abandon(): Promise<void>
}
