import fc from 'fast-check'
import t from 'tap'

import { buildXml, childrenOf, element, parseXml, type XmlElement } from '../../../src/libvirt/tree-xml.js'

const name = fc.stringMatching(/^[a-z][a-z0-9-]{0,8}$/)
/** What XML can carry, and libvirt would give back as it was. */
const text = fc.string({ unit: 'binary' }).filter(value => !/[\u0000-\u001f\u007f\ufffe\uffff]|\p{Cs}/u.test(value))

const tree: fc.Arbitrary<XmlElement> = fc.letrec<{ node: XmlElement }>(tie => ({
  node: fc
    .record({
      name,
      attributes: fc.dictionary(name, text, { maxKeys: 4 }),
      content: fc.oneof(
        { depthSize: 'small', withCrossShrink: true },
        text.filter(value => value !== ''),
        fc.array(tie('node'), { maxLength: 4 }),
      ),
    })
    .map(({ name, attributes, content }) => element(name, attributes, content)),
})).node

t.test('what is built is what is read', async t => {
  fc.assert(
    fc.property(tree, root => {
      t.same(parseXml(buildXml(root), root.name), root)
    }),
    { numRuns: 300 },
  )
})

t.test('whatever bytes come, the answer is a tree or E_LIBVIRT', async t => {
  const pieces = fc.constantFrom(
    '<domain>',
    '</domain>',
    '<a',
    ' b="',
    '"',
    '>',
    '/>',
    '&amp;',
    '&#0;',
    '<!--',
    '-->',
    ']]>',
  )
  fc.assert(
    fc.property(fc.array(fc.oneof(pieces, text), { maxLength: 12 }), parts => {
      try {
        parseXml(parts.join(''), 'domain')
      } catch (error) {
        t.match(error, { code: 'E_LIBVIRT' })
      }
    }),
    { numRuns: 500 },
  )
})

t.test('names that JavaScript objects own never reach those', async t => {
  t.throws(() => parseXml('<domain><constructor/></domain>', 'domain'), { code: 'E_LIBVIRT' })
  const root = parseXml('<domain><valueOf a="1"/></domain>', 'domain')

  t.equal(childrenOf(root, 'hasOwnProperty').length, 0)
  t.equal(root.children[0]?.attributes.get('toString'), undefined)
})
