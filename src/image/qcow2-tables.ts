import { putEntry, type Qcow2Geometry } from './qcow2-layout.js'

/** Bytes of the file and where they go. */
export interface PlacedTables {
  readonly bytes: Uint8Array
  readonly position: number
}

/**
 * The L1 table of an image that is being written, and the L2 tables under way.
 * Guest clusters are asked for in ascending order, so one L2 table is open at a
 * time; finished ones wait until they are many enough for one large write.
 */
export class MappingTables {
  readonly #geometry: Qcow2Geometry
  readonly #l1: DataView
  /** L2 table that is being filled. */
  #open: { readonly index: number; readonly view: DataView } | undefined
  #finished: { readonly index: number; readonly bytes: Uint8Array }[] = []

  constructor(geometry: Qcow2Geometry) {
    this.#geometry = geometry
    this.#l1 = new DataView(new ArrayBuffer(geometry.l1Entries * 8))
  }

  get l1Bytes(): Uint8Array {
    return new Uint8Array(this.#l1.buffer)
  }

  /** The entry of a guest cluster: its L2 table, and where in it. */
  entryOf(cluster: number): { readonly view: DataView; readonly at: number } {
    const { l2Entries, l2EntryBytes, clusterSize } = this.#geometry
    const index = Math.floor(cluster / l2Entries)
    if (this.#open?.index !== index) {
      this.finish()
      this.#open = { index, view: new DataView(new ArrayBuffer(clusterSize)) }
    }
    return { view: this.#open.view, at: (cluster % l2Entries) * l2EntryBytes }
  }

  /** Closes the open table, which take() then gives too. */
  finish(): void {
    if (this.#open === undefined) return
    this.#finished.push({ index: this.#open.index, bytes: new Uint8Array(this.#open.view.buffer) })
    this.#open = undefined
  }

  /** Finished tables side by side, to be written to `position`, once they fill `minimum` bytes. */
  take(minimum: number, position: number): PlacedTables | undefined {
    const { clusterSize } = this.#geometry
    const tables = this.#finished
    if (tables.length === 0 || tables.length * clusterSize < minimum) return undefined
    const bytes = new Uint8Array(tables.length * clusterSize)
    for (const [i, table] of tables.entries()) {
      bytes.set(table.bytes, i * clusterSize)
      this.putL1(table.index, position + i * clusterSize)
    }
    this.#finished = []
    return { bytes, position }
  }

  putL1(index: number, position: number): void {
    putEntry(this.#l1, index * 8, position)
  }
}
