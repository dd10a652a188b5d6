import { join } from 'node:path'

import t from 'tap'

import { readDomainFiles } from '../../../src/libvirt/domain-files.js'
import { parseDomainXml } from '../../../src/libvirt/domain-xml.js'

t.test('the state of an emulated TPM is read, without the lock of a running swtpm', async t => {
  const uuid = '6a1d4a7e-1c5b-4c0e-9d2f-000000000001'
  const tpm = `<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>`
  const domain = parseDomainXml(
    `<domain type='kvm'><name>n</name><uuid>${uuid}</uuid><devices>${tpm}</devices></domain>`,
  )
  const dir = t.testdir({ [uuid]: { tpm2: { 'tpm2-00.permall': 'state', '.lock': '' } } })

  const { files, warnings } = await readDomainFiles(domain, { swtpmDir: dir, isRunning: true })

  t.strictSame(warnings, [])
  t.strictSame(
    files.map(({ name, path, bytes }) => [name, path, Buffer.from(bytes).toString()]),
    [['tpm/tpm2/tpm2-00.permall', join(dir, uuid, 'tpm2', 'tpm2-00.permall'), 'state']],
  )
})

t.test(
  'state that a running domain must have and that is not found is told, of one that never ran it is not',
  async t => {
    const uuid = '6a1d4a7e-1c5b-4c0e-9d2f-000000000001'
    const tpm = `<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>`
    const dir = t.testdir()
    const domain = parseDomainXml(
      `<domain type='kvm'><name>n</name><uuid>${uuid}</uuid><os><type>hvm</type><nvram>${dir}/vars.fd</nvram></os>` +
        `<devices>${tpm}</devices></domain>`,
    )

    const running = await readDomainFiles(domain, { swtpmDir: dir, isRunning: true })
    const off = await readDomainFiles(domain, { swtpmDir: dir, isRunning: false })

    t.match(
      running.warnings.map(({ message }) => message),
      [/the TPM.*there is none/, /nvram/],
    )
    t.strictSame([running.files, off], [[], { files: [], warnings: [] }])
  },
)
