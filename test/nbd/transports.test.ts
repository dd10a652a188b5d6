import { mkdirSync, renameSync, writeFileSync } from 'node:fs'
import { createServer, type AddressInfo } from 'node:net'

import t from 'tap'

import { native } from '../../src/native/binding.js'
import type { NbdAddress } from '../../src/native/nbd.js'
import { ExportReader } from '../../src/nbd/export-reader.js'
import { requires } from '../harness/requires.js'
import { firstWrongPattern } from './pattern.js'
import { nbdkit, run } from './servers.js'

const MIB = 1024 * 1024
const dir = t.testdir()
const never = new AbortController().signal
const options = { exportName: '', connections: 2, requestTimeoutMs: 10_000 }

async function readsPattern(address: NbdAddress): Promise<boolean> {
  await using reader = await ExportReader.open(address, options, never)
  const bytes = new Uint8Array(MIB)
  await reader.read(Float64Array.of(0, MIB, 0), bytes, never)
  return firstWrongPattern(bytes, 0) === -1
}

async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  await new Promise(resolve => server.close(resolve))
  return port
}

/** A certificate authority, a server for 127.0.0.1 and a client, as QEMU and libnbd lay them out. */
async function makeCertificates(): Promise<string> {
  const pki = `${dir}/pki`
  mkdirSync(pki)
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2']
  await run('openssl', [
    'req',
    '-x509',
    ...key,
    '-subj',
    '/CN=test',
    '-keyout',
    `${pki}/ca-key.pem`,
    '-out',
    `${pki}/ca-cert.pem`,
  ])
  for (const name of ['server', 'client']) {
    const request = `${pki}/${name}.csr`
    writeFileSync(`${pki}/${name}.ext`, 'subjectAltName=IP:127.0.0.1,DNS:localhost\n')
    await run('openssl', [
      'req',
      ...key.slice(0, 5),
      '-subj',
      `/CN=${name}`,
      '-keyout',
      `${pki}/${name}-key.pem`,
      '-out',
      request,
    ])
    const ca = ['-CA', `${pki}/ca-cert.pem`, '-CAkey', `${pki}/ca-key.pem`, '-CAcreateserial', '-days', '2']
    await run('openssl', [
      'x509',
      '-req',
      '-in',
      request,
      ...ca,
      '-extfile',
      `${pki}/${name}.ext`,
      '-out',
      `${pki}/${name}-cert.pem`,
    ])
  }
  return pki
}

t.test('an export is read over TCP', requires('nbdkit'), async t => {
  const port = await freePort()
  await nbdkit(t, dir, ['-i', '127.0.0.1', '-p', String(port), 'pattern', '1M'], { overTcp: true })

  t.ok(await readsPattern({ host: '127.0.0.1', port }))
})

t.test('nobody listening is an error that names the place', requires('nbdkit'), async t => {
  const port = await freePort()

  await t.rejects(readsPattern({ host: '127.0.0.1', port }), {
    code: 'E_NBD',
    message: new RegExp(`127.0.0.1:${port}`),
  })
})

t.test('an export is read from a program', requires('nbdkit'), async t => {
  t.ok(await readsPattern({ command: ['nbdkit', '-s', 'pattern', '1M'] }))
})

t.test('a program that is not there is an error', async t => {
  await t.rejects(readsPattern({ command: ['/nonexistent/nbd'] }), { name: 'BackupError', code: 'E_NBD' })
})

t.test('a program that never answers is given up and ended', async t => {
  const address = { command: ['sleep', '1000'], connectTimeoutMs: 200 }
  const started = performance.now()

  await t.rejects(readsPattern(address), { code: 'E_TIMEOUT' })

  t.ok(performance.now() - started < 5_000)
})

t.test('an export is read from a URI, whose export name can be overruled', requires('nbdkit'), async t => {
  const { socket } = await nbdkit(t, dir, [
    '--filter=exportname',
    'pattern',
    '1M',
    'exportname=disk',
    'exportname-strict=true',
  ])

  t.ok(await readsPattern({ uri: `nbd+unix:///disk?socket=${socket}` }))
  await using reader = await ExportReader.open(
    { uri: `nbd+unix:///?socket=${socket}` },
    { ...options, exportName: 'disk' },
    never,
  )
  t.equal(reader.size, MIB)
})

t.test('a wrong export name is an error that names it', requires('nbdkit'), async t => {
  const { socket } = await nbdkit(t, dir, [
    '--filter=exportname',
    'pattern',
    '1M',
    'exportname=disk',
    'exportname-strict=true',
  ])

  const opening = ExportReader.open({ socket }, { ...options, exportName: 'vdz' }, never)

  await t.rejects(opening, { code: 'E_NBD', message: /vdz/ })
})

t.test('exports are listed with their sizes', requires('nbdkit'), async t => {
  const { socket } = await nbdkit(t, dir, [
    '--filter=exportname',
    'pattern',
    '1M',
    'exportname=disk',
    'exportname-list=explicit',
  ])

  t.match(await native().nbdList({ socket }), [{ name: 'disk', size: MIB }])
})

t.test('TLS with a shared key', requires('nbdkit'), async t => {
  const pskFile = `${dir}/keys.psk`
  writeFileSync(pskFile, `alice:${'5a'.repeat(32)}\nmallory:${'00'.repeat(32)}\n`)
  const serverKeys = `${dir}/server.psk`
  writeFileSync(serverKeys, `alice:${'5a'.repeat(32)}\n`)
  const { socket } = await nbdkit(t, dir, ['--tls=require', `--tls-psk=${serverKeys}`, 'pattern', '1M'])

  t.ok(await readsPattern({ socket, tls: { pskFile, username: 'alice', verifyPeer: true } }))
  await t.rejects(readsPattern({ socket, tls: { pskFile, username: 'mallory', verifyPeer: true } }), { code: 'E_NBD' })
  await t.rejects(readsPattern({ socket }), { name: 'BackupError', code: 'E_NBD' }, 'the server insists')
})

t.test('TLS with certificates, both sides checked', requires('nbdkit', 'openssl'), async t => {
  const pki = await makeCertificates()
  const port = await freePort()
  const tls = ['--tls=require', `--tls-certificates=${pki}`, '--tls-verify-peer']
  await nbdkit(t, dir, ['-i', '127.0.0.1', '-p', String(port), ...tls, 'pattern', '1M'], { overTcp: true })

  t.ok(await readsPattern({ host: '127.0.0.1', port, tls: { certificates: pki, verifyPeer: true } }))
  renameSync(`${pki}/ca-cert.pem`, `${pki}/other.pem`)
  await run('openssl', [
    'req',
    '-x509',
    '-newkey',
    'ec',
    '-pkeyopt',
    'ec_paramgen_curve:P-256',
    '-nodes',
    '-subj',
    '/CN=other',
    '-keyout',
    `${pki}/k.pem`,
    '-out',
    `${pki}/ca-cert.pem`,
  ])
  await t.rejects(
    readsPattern({ host: '127.0.0.1', port, tls: { certificates: pki, verifyPeer: true } }),
    { code: 'E_NBD' },
    'another authority',
  )
})

t.test('a server without TLS is refused where TLS is wanted', requires('nbdkit'), async t => {
  const pskFile = `${dir}/only.psk`
  writeFileSync(pskFile, `alice:${'5a'.repeat(32)}\n`)
  const { socket } = await nbdkit(t, dir, ['--tls=off', 'pattern', '1M'])

  await t.rejects(readsPattern({ socket, tls: { pskFile, username: 'alice', verifyPeer: true } }), { code: 'E_NBD' })
})
