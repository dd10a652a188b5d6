import { BackupError } from '../base/errors.js'

/**
 * Sizes as people write and read them. The one parser: flags and configuration
 * both come here.
 */

const BINARY_UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'] as const
const SIZE = /^(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?b?)$/i

/**
 * Bytes in `512k`, `4MiB`, `1.5 GiB`, `200MB` or `4096`.
 *
 * A bare letter and `iB` count in 1024s, as everywhere in QEMU; only a written
 * `kB`, `MB`, `GB` counts in 1000s. Throws E_USAGE for anything else, for a
 * negative size, and for one past 2^53.
 */
export function parseSize(text: string): number {
  const match = SIZE.exec(text.trim())
  const [, digits = '', letter = '', suffix = ''] = match ?? []
  const step = letter !== '' && suffix.toLowerCase() === 'b' ? 1000 : 1024
  const power = letter === '' ? 0 : 'kmgtp'.indexOf(letter.toLowerCase()) + 1
  const bytes = Math.round(Number(digits) * step ** power)
  if (match === null || (letter === '' && suffix.toLowerCase().startsWith('i')) || !Number.isSafeInteger(bytes)) {
    throw new BackupError('E_USAGE', `"${text}" is not a size`, {
      hints: ['write a number with a unit: 512k, 64KiB, 1.5GiB, 200MB'],
    })
  }
  return bytes
}

/** `7.9 GiB`, `611 MiB`, `512 B`: two or three digits that matter. `separator` goes between number and unit. */
export function formatSize(bytes: number, separator = ' '): string {
  let value = Math.abs(bytes)
  let unit = 0
  // 1023.6 KiB would print as 1024 KiB: it is 1.0 MiB.
  while (Math.round(value) >= 1024 && unit < BINARY_UNITS.length - 1) {
    value /= 1024
    unit++
  }
  const sign = bytes < 0 ? '-' : ''
  const number = unit === 0 || value >= 9.95 ? String(Math.round(value)) : value.toFixed(1)
  return `${sign}${number}${separator}${BINARY_UNITS[unit] ?? ''}`
}

/** `412 MiB/s`; rates are always in MiB, so that two of them compare at a glance. */
export function formatRate(bytesPerSecond: number, separator = ' '): string {
  const value = bytesPerSecond / 1024 ** 2
  return `${value >= 9.95 ? String(Math.round(value)) : value.toFixed(1)}${separator}MiB/s`
}
