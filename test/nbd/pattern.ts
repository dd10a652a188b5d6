/** Where `bytes`, read at `offset` of nbdkit's pattern (each aligned 8 bytes hold their own offset), are wrong; or -1. */
export function firstWrongPattern(bytes: Uint8Array, offset: number): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  for (let at = 0; at < bytes.length; at += 8) {
    if (Number(view.getBigUint64(at)) !== offset + at) return offset + at
  }
  return -1
}
