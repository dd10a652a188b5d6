import { BackupError } from '../base/errors.js'
import * as tree from './tree-xml.js'

/**
 * XML that people edit, as trees of elements with their namespaces: domain
 * metadata.
 */

export interface XmlElement {
  /** Without its prefix. */
  readonly name: string
  readonly namespace: string | undefined
  readonly attributes: ReadonlyMap<string, string>
  /** Its own text, without that of its children and the blanks around it. */
  readonly text: string
  readonly children: readonly XmlElement[]
}

export type XmlAttributes = Readonly<Record<string, string | number | undefined>>

/** What buildXml() writes. */
export type XmlNode = tree.XmlElement

/** The one root of a well-formed document without a DTD. Throws E_CONFIG for anything else. */
export function parseXml(xml: string): XmlElement {
  const refuse = (why: string, cause?: unknown) => new BackupError('E_CONFIG', 'the XML cannot be read', { why, cause })
  return inNamespaces(tree.parseDocument(xml, refuse), new Map())
}

/** An element with elements in it. */
export function element(name: string, attributes: XmlAttributes, children: readonly XmlNode[]): XmlNode {
  return tree.element(name, asText(attributes), children)
}

export function textElement(name: string, value: string | number, attributes: XmlAttributes = {}): XmlNode {
  return tree.element(name, asText(attributes), String(value))
}

/** Throws E_USAGE for a value that XML cannot hold. */
export function buildXml(node: XmlNode): string {
  return tree.buildXml(node, 'line', why => new BackupError('E_USAGE', why))
}

/** An element that was read, to be written again without its namespaces. */
export function toNode({ name, attributes, text, children }: XmlElement): XmlNode {
  const plain = Object.fromEntries([...attributes].filter(([key]) => !key.startsWith('xmlns')))
  return text === '' ? element(name, plain, children.map(toNode)) : textElement(name, text, plain)
}

function asText(attributes: XmlAttributes): Readonly<Record<string, string | undefined>> {
  return Object.fromEntries(
    Object.entries(attributes).map(([key, value]) => [key, value === undefined ? undefined : String(value)]),
  )
}

function inNamespaces(of: tree.XmlElement, outer: ReadonlyMap<string, string>): XmlElement {
  const prefixes = new Map(outer)
  for (const [name, value] of of.attributes) {
    if (name === 'xmlns') prefixes.set('', value)
    else if (name.startsWith('xmlns:')) prefixes.set(name.slice(6), value)
  }
  const colon = of.name.indexOf(':')
  return {
    name: of.name.slice(colon + 1),
    namespace: prefixes.get(colon < 0 ? '' : of.name.slice(0, colon)),
    attributes: of.attributes,
    text: of.text.trim(),
    children: of.children.map(child => inNamespaces(child, prefixes)),
  }
}
