/**
 * Text from outside (names of domains, messages of guests) as it may go to a
 * terminal or a log: control characters and the ones that reorder a line are
 * spelled out, `\x1b` for ESC.
 */
export function printable(text: string): string {
  return text.replace(UNPRINTABLE, spellOut)
}

/** As printable(), for text of several lines. */
export function printableLines(text: string): string[] {
  return text.split('\n').map(printable)
}

// C0 and C1 controls, DEL, line separators, bidirectional overrides and isolates.
const UNPRINTABLE = /[\p{Cc}\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]/gu

function spellOut(character: string): string {
  const code = character.charCodeAt(0)
  return code < 0x100 ? `\\x${code.toString(16).padStart(2, '0')}` : `\\u${code.toString(16).padStart(4, '0')}`
}
