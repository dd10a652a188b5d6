import { XMLBuilder, XMLParser, XMLValidator } from 'fast-xml-parser'

import { BackupError, messageOf } from '../base/errors.js'

/** An element of an XML document; comments and processing instructions are left out. */
export interface XmlElement {
  /** With its prefix, if it has one. */
  readonly name: string
  readonly attributes: ReadonlyMap<string, string>
  readonly children: readonly XmlElement[]
  /** The element's own text, not its children's. */
  readonly text: string
}

/** Larger than any domain that libvirt takes: its RPC limits a string to 4 MiB. */
const MAX_XML_BYTES = 16 * 1024 * 1024
const MAX_DEPTH = 64

const ATTRIBUTES = ':@'
const TEXT = '#text'
const PREFIX = '@'

const PARSER = new XMLParser({
  preserveOrder: true,
  ignoreAttributes: false,
  attributeNamePrefix: PREFIX,
  ignoreDeclaration: true,
  ignorePiTags: true,
  parseTagValue: false,
  parseAttributeValue: false,
  trimValues: false,
  // Nothing is expanded by the parser; unescape() knows the five entities of XML and no other.
  processEntities: false,
  maxNestedTags: MAX_DEPTH,
})

// Its successor is a package of its own as well.
// eslint-disable-next-line @typescript-eslint/no-deprecated
const BUILDER = new XMLBuilder({
  preserveOrder: true,
  ignoreAttributes: false,
  attributeNamePrefix: PREFIX,
  suppressBooleanAttributes: false,
  suppressEmptyNode: true,
  processEntities: true,
})

/**
 * Decodes one document whose root is `root`. Throws E_LIBVIRT where it is not
 * well-formed, has another root, a document type, more than 16 MiB or more
 * than 64 levels.
 */
export function parseXml(text: string, root: string): XmlElement {
  const refuse = (why: string, cause?: unknown) =>
    new BackupError('E_LIBVIRT', `libvirt gave a <${root}> that cannot be read: ${why}`, { cause })
  const found = parseDocument(text, refuse)
  if (found.name !== root) throw refuse(`its root is <${found.name}>`)
  return found
}

/** The error for a document, or for characters that cannot be written. */
export type Refuse = (why: string, cause?: unknown) => BackupError

/** Decodes one document of any root. Throws what `refuse` makes, for the same reasons as parseXml(). */
export function parseDocument(text: string, refuse: Refuse): XmlElement {
  if (text.length > MAX_XML_BYTES) throw refuse('it is larger than 16 MiB')
  if (hasDocumentType(text)) throw refuse('it has a document type')

  // Its successor is a package of its own, one more dependency for one function.
  // eslint-disable-next-line @typescript-eslint/no-deprecated
  const flaw = XMLValidator.validate(text)
  if (flaw !== true) throw refuse(`${flaw.err.msg} (line ${flaw.err.line})`)
  let nodes: unknown
  try {
    nodes = PARSER.parse(text)
  } catch (error) {
    throw refuse(messageOf(error), error)
  }
  const [root, ...more] = toElements(nodes, 1, refuse)
  if (root === undefined || more.length > 0) throw refuse('it is not one element')
  return root
}

/**
 * One document with `root` as its root element. Throws E_UNSUPPORTED, or what
 * `refuse` makes, for characters that XML cannot carry or that libvirt would
 * read back as others; `lines` lets text between tags have line ends and tabs,
 * as descriptions do.
 */
export function buildXml(root: XmlElement, text: 'line' | 'lines' = 'line', refuse: Refuse = cannotWrite): string {
  return BUILDER.build([toNode(root, text, refuse)])
}

/** An element to build; attributes whose value is undefined are left out. */
export function element(
  name: string,
  attributes: Readonly<Record<string, string | undefined>> = {},
  content: readonly XmlElement[] | string = [],
): XmlElement {
  const present = Object.entries(attributes).flatMap(([key, value]) =>
    value === undefined ? [] : [[key, value] as const],
  )
  const isText = typeof content === 'string'
  return { name, attributes: new Map(present), children: isText ? [] : content, text: isText ? content : '' }
}

export function childrenOf(parent: XmlElement | undefined, name: string): readonly XmlElement[] {
  return parent?.children.filter(child => child.name === name) ?? []
}

export function childOf(parent: XmlElement | undefined, name: string): XmlElement | undefined {
  return parent?.children.find(child => child.name === name)
}

export function attributeOf(of: XmlElement | undefined, name: string): string | undefined {
  return of?.attributes.get(name)
}

/** Text of the first child of that name; undefined where there is none or it is empty. */
export function textOfChild(parent: XmlElement | undefined, name: string): string | undefined {
  const text = childOf(parent, name)?.text.trim() ?? ''
  return text === '' ? undefined : text
}

/** A whole number of at most 2^53 - 1; undefined for anything else. */
export function wholeNumber(text: string | undefined): number | undefined {
  if (text === undefined || !/^[0-9]{1,16}$/.test(text)) return undefined
  const value = Number(text)
  return Number.isSafeInteger(value) ? value : undefined
}

/** A document type stands before the root: in what remains when the declaration and comments are skipped. */
function hasDocumentType(text: string): boolean {
  let at = 0
  for (;;) {
    while (/\s|\uFEFF/.test(text.charAt(at))) at++
    const end = text.startsWith('<?', at) ? '?>' : text.startsWith('<!--', at) ? '-->' : undefined
    if (end === undefined) return text.startsWith('<!', at)
    const found = text.indexOf(end, at)
    if (found < 0) return false
    at = found + end.length
  }
}

function toElements(nodes: unknown, depth: number, refuse: Refuse): XmlElement[] {
  if (depth > MAX_DEPTH) throw refuse(`it has more than ${MAX_DEPTH} levels`)
  return listOf(nodes).flatMap(node => {
    const name = nameOf(node)
    if (name === undefined || !isRecord(node)) return []
    const content = listOf(node[name])
    return [
      {
        name,
        attributes: toAttributes(node[ATTRIBUTES]),
        children: toElements(content, depth + 1, refuse),
        text: content.map(textOf).join(''),
      },
    ]
  })
}

function toAttributes(raw: unknown): Map<string, string> {
  if (!isRecord(raw)) return new Map()
  return new Map(Object.entries(raw).map(([key, value]) => [key.slice(PREFIX.length), unescape(String(value))]))
}

function nameOf(node: unknown): string | undefined {
  return isRecord(node) ? Object.keys(node).find(key => key !== ATTRIBUTES && key !== TEXT) : undefined
}

function textOf(node: unknown): string {
  return isRecord(node) && typeof node[TEXT] === 'string' ? unescape(node[TEXT]) : ''
}

function listOf(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : []
}

function isRecord(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null
}

const ENTITIES: ReadonlyMap<string, string> = new Map([
  ['amp', '&'],
  ['lt', '<'],
  ['gt', '>'],
  ['quot', '"'],
  ['apos', "'"],
])

function unescape(text: string): string {
  if (!text.includes('&')) return text
  return text.replace(/&(#x[0-9a-fA-F]{1,6}|#[0-9]{1,7}|[a-z]{2,4});/g, (whole, name: string) => {
    if (!name.startsWith('#')) return ENTITIES.get(name) ?? whole
    const point = name.startsWith('#x') ? parseInt(name.slice(2), 16) : Number(name.slice(1))
    return point <= 0x10ffff ? String.fromCodePoint(point) : whole
  })
}

function toNode(from: XmlElement, text: 'line' | 'lines', refuse: Refuse): Record<string, unknown> {
  const attributes = [...from.attributes].map(([key, value]) => [PREFIX + key, carried(value, refuse)] as const)
  const content: unknown[] = from.children.map(child => toNode(child, text, refuse))
  carried(text === 'lines' ? from.text.replaceAll(/[\n\t]/g, ' ') : from.text, refuse)
  if (from.text !== '') content.push({ [TEXT]: from.text })
  return { [from.name]: content, [ATTRIBUTES]: Object.fromEntries(attributes) }
}

/** Line ends and tabs in attributes come back as blanks; other control characters are no XML at all. */
function carried(text: string, refuse: Refuse): string {
  // With `u`, the last class is that of surrogates without their partner.
  if (/[\u0000-\u001f\u007f\ufffe\uffff]|\p{Cs}/u.test(text)) {
    throw refuse(`${JSON.stringify(text)} has a character that XML cannot hold`)
  }
  return text
}

function cannotWrite(why: string): BackupError {
  return new BackupError('E_UNSUPPORTED', why)
}
