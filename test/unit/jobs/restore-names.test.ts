import fc from 'fast-check'
import t from 'tap'

import { fileNames } from '../../../src/jobs/restore-names.js'

t.test('plain names stay as they are', async t => {
  t.strictSame(fileNames(['vda', 'sdb', 'web-01.example'], 'disk'), ['vda', 'sdb', 'web-01.example'])
})

t.test('others keep what is harmless, behind their number', async t => {
  t.strictSame(fileNames(['../vda', '.hidden', '', 'a\u0000b'], 'disk'), [
    'disk-0-_vda',
    'disk-1-_hidden',
    'disk-2',
    'disk-3-a_b',
  ])
})

t.test('any names give as many files, all in the directory, none twice, whatever the case', async () => {
  const odd = fc.constantFrom('vda', 'VDA', 'disk-0', 'disk-1-vda', '..', '.', '/', 'a/b', 'CON', 'x'.repeat(300))
  await fc.assert(
    fc.asyncProperty(fc.array(fc.oneof(odd, fc.string()), { maxLength: 12 }), async names => {
      const files = fileNames(names, 'disk')

      if (files.length !== names.length) throw new Error('another number')
      if (new Set(files.map(file => file.toLowerCase())).size !== files.length) throw new Error('one twice')
      const bad = files.find(file => !/^[A-Za-z0-9][A-Za-z0-9._-]*$/.test(file) || file.length > 200)
      if (bad !== undefined) throw new Error(`bad name ${bad}`)
    }),
  )
})
