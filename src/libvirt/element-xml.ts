import { XMLBuilder, XMLParser, XMLValidator } from 'fast-xml-parser'

import { BackupError } from '../base/errors.js'

/**
 * XML as a tree of elements with their namespaces, for documents that people
 * edit and whose order and spelling matter: domain metadata.
 */

export interface XmlElement {
  /** Without its prefix. */
  readonly name: string
  readonly namespace: string | undefined
  readonly attributes: ReadonlyMap<string, string>
  /** Its own text, without that of its children. */
  readonly text: string
  readonly children: readonly XmlElement[]
}

export type XmlAttributes = Readonly<Record<string, string | number | undefined>>

/** What `buildXml` writes: the library's ordered form, `{ tag: [children], ':@': { attributes } }`. */
export type XmlNode = Readonly<Record<string, unknown>>

const MAX_XML_LENGTH = 16 * 1024 * 1024
const MAX_DEPTH = 64
const ATTRIBUTES = ':@'
const TEXT = '#text'

const parser = new XMLParser({
  preserveOrder: true,
  ignoreAttributes: false,
  attributeNamePrefix: '',
  parseTagValue: false,
  parseAttributeValue: false,
  trimValues: true,
  // Numeric references such as &#228; count among these.
  htmlEntities: true,
})
// Its successors are packages of their own, made by the same author from this code.
// eslint-disable-next-line @typescript-eslint/no-deprecated
const builder = new XMLBuilder({
  preserveOrder: true,
  ignoreAttributes: false,
  attributeNamePrefix: '',
  suppressEmptyNode: true,
})

/** The one root of a well-formed document without a DTD. Throws E_CONFIG for anything else. */
export function parseXml(xml: string): XmlElement {
  // A DTD has no business here: entities that expand are how XML is used against its readers.
  if (xml.length > MAX_XML_LENGTH || /<!(DOCTYPE|ENTITY)/i.test(xml)) throw badXml('it is too large or has a DTD')
  // The parser takes what is not well-formed; this does not.
  // eslint-disable-next-line @typescript-eslint/no-deprecated
  const valid = XMLValidator.validate(xml)
  if (valid !== true) throw badXml(`${valid.err.msg} (line ${valid.err.line})`)
  const nodes: unknown = parser.parse(xml)
  const [root, ...more] = elementsOf(nodes, 0, new Map())
  if (root === undefined || more.length > 0) throw badXml('it is not one element')
  return root
}

/** Throws E_USAGE for a value that XML cannot hold. */
export function element(name: string, attributes: XmlAttributes, children: readonly XmlNode[]): XmlNode {
  const given = Object.entries(attributes).flatMap(([key, value]) =>
    value === undefined ? [] : [[key, printable(String(value))]],
  )
  const written: unknown = Object.fromEntries(given)
  return { [name]: children, ...(given.length > 0 ? { [ATTRIBUTES]: written } : {}) }
}

/** Throws E_USAGE for a value that XML cannot hold. */
export function textElement(name: string, value: string | number, attributes: XmlAttributes = {}): XmlNode {
  return element(name, attributes, [{ [TEXT]: printable(String(value)) }])
}

export function buildXml(node: XmlNode): string {
  return builder.build([node])
}

/** An element that was read, to be written again without its namespaces. */
export function toNode({ name, attributes, text, children }: XmlElement): XmlNode {
  const plain = Object.fromEntries([...attributes].filter(([key]) => !key.startsWith('xmlns')))
  return text === '' ? element(name, plain, children.map(toNode)) : textElement(name, text, plain)
}

function elementsOf(nodes: unknown, depth: number, outer: ReadonlyMap<string, string>): readonly XmlElement[] {
  if (depth > MAX_DEPTH) throw badXml('it is nested too deeply')
  if (!Array.isArray(nodes)) return []
  return nodes.flatMap((node: unknown) => {
    if (!isRecord(node)) return []
    const tag = Object.keys(node).find(key => key !== ATTRIBUTES && key !== TEXT && !key.startsWith('?'))
    if (tag === undefined) return []
    const attributes = attributesOf(node[ATTRIBUTES])
    const prefixes = new Map(outer)
    for (const [name, value] of attributes) {
      if (name === 'xmlns') prefixes.set('', value)
      else if (name.startsWith('xmlns:')) prefixes.set(name.slice(6), value)
    }
    const colon = tag.indexOf(':')
    const inside = node[tag]
    return [
      {
        name: tag.slice(colon + 1),
        namespace: prefixes.get(colon < 0 ? '' : tag.slice(0, colon)),
        attributes,
        text: textOf(inside),
        children: elementsOf(inside, depth + 1, prefixes),
      },
    ]
  })
}

function attributesOf(value: unknown): ReadonlyMap<string, string> {
  return new Map(isRecord(value) ? Object.entries(value).map(([name, text]) => [name, String(text)]) : [])
}

function textOf(nodes: unknown): string {
  if (!Array.isArray(nodes)) return ''
  return nodes.map((node: unknown) => (isRecord(node) && TEXT in node ? String(node[TEXT]) : '')).join('')
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function badXml(why: string): BackupError {
  return new BackupError('E_CONFIG', 'the XML cannot be read', { why })
}

/** XML has no way to write a control character. */
function printable(text: string): string {
  if (/[\u0000-\u001f\u007f]/.test(text)) {
    throw new BackupError('E_USAGE', `${JSON.stringify(text)} has a control character, which XML cannot hold`)
  }
  return text
}
