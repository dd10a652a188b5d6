import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { request } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import t, { type Test } from 'tap'

import { ApiClient } from '../../../src/daemon/api-client.js'
import { type ApiPlace, type ApiPorts, ApiServer } from '../../../src/daemon/api-server.js'

const never = new AbortController().signal
const TOKEN = 'a'.repeat(64)

function ports(begun: string[] = []): ApiPorts {
  return {
    status: () => ({ health: 'ok' }),
    history: query => Promise.resolve([{ ...query }]),
    metrics: () => 'virtvault_build_info{version="1"} 1\n',
    runNow: ids => {
      begun.push(...ids)
      return ids
    },
    reload: () => Promise.resolve({ ok: true, problems: [] }),
  }
}

async function onLoopback(t: Test, token: string | undefined = TOKEN, begun?: string[]) {
  const server = await ApiServer.open({ kind: 'loopback', host: '127.0.0.1', port: 0, token }, ports(begun))
  t.teardown(() => server[Symbol.asyncDispose]())
  const ask = (method: string, path: string, headers: Record<string, string> = {}, body?: string) =>
    new Promise<number>((resolve, reject) => {
      const asked = request({ host: '127.0.0.1', port: server.port, method, path, headers }, response => {
        response.resume()
        response.on('end', () => resolve(response.statusCode ?? 0))
      })
      asked.on('error', reject)
      asked.end(body)
    })
  return ask
}

/** A socket's path has at most 107 bytes. */
function shortPath(t: Test): string {
  const folder = mkdtempSync(join(tmpdir(), 'vv-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  return join(folder, 'api.sock')
}

const BEARER = { authorization: `Bearer ${TOKEN}` }
const JSON_TYPE = { 'content-type': 'application/json' }

t.test('commands ask the daemon through its socket, which others cannot open', async t => {
  const path = shortPath(t)
  const begun: string[] = []
  await using _server = await ApiServer.open({ kind: 'socket', path }, ports(begun))
  const client = new ApiClient(path)

  t.equal(statSync(path).mode & 0o777, 0o660)
  t.strictSame(await client.get('/v1/status', never), { health: 'ok' })
  t.strictSame(await client.post('/v1/run', { tasks: ['gc/nas', 7] }, never), { begun: ['gc/nas'] })
  t.strictSame(begun, ['gc/nas'])
  t.match(await client.get('/v1/history?limit=3&domain=db01', never), { entries: [{ limit: 3, domain: 'db01' }] })
  await t.rejects(client.get('/v1/nothing', never), { code: 'E_REFUSED', message: /no GET/ })
  await t.rejects(client.get('/v1/run', never), { code: 'E_REFUSED' }, 'a GET changes nothing')
})

t.test('a dead socket is replaced, a living one is not', async t => {
  const path = shortPath(t)
  writeFileSync(path, '')
  await using _server = await ApiServer.open({ kind: 'socket', path }, ports())
  await t.rejects(ApiServer.open({ kind: 'socket', path }, ports()), { code: 'E_LOCKED' })
})

t.test('a path that the kernel would cut off is refused', async t => {
  await t.rejects(ApiServer.open({ kind: 'socket', path: `/tmp/${'x'.repeat(110)}` }, ports()), { code: 'E_CONFIG' })
})

t.test('without a daemon a command says how to start it', async t => {
  await t.rejects(new ApiClient(shortPath(t)).get('/v1/status', never), {
    code: 'E_UNREACHABLE',
    hints: [/systemctl start/],
  })
})

t.test('on loopback only who knows the token is answered', async t => {
  const ask = await onLoopback(t)
  t.equal(await ask('GET', '/v1/status'), 401)
  t.equal(await ask('GET', '/v1/status', { authorization: `Bearer ${TOKEN}x` }), 401)
  t.equal(await ask('GET', '/v1/status', BEARER), 200)
  t.equal(await ask('GET', '/metrics'), 200, 'metrics hold no secrets')
})

t.test('a server for metrics alone answers nothing else', async t => {
  const server = await ApiServer.open({ kind: 'loopback', host: '127.0.0.1', port: 0, token: undefined }, ports())
  t.teardown(() => server[Symbol.asyncDispose]())
  const get = async (path: string, headers = {}) =>
    (await fetch(`http://127.0.0.1:${server.port}${path}`, { headers })).status
  t.equal(await get('/metrics'), 200)
  t.equal(await get('/v1/status'), 401)
  t.equal(await get('/v1/status', { authorization: 'Bearer ' }), 401)
  t.equal(await get('/v1/status', { authorization: 'Bearer undefined' }), 401)
})

t.test('pages of others, other names, forms and large bodies are refused', async t => {
  const begun: string[] = []
  const ask = await onLoopback(t, TOKEN, begun)
  const body = '{"tasks":["gc/nas"]}'
  const good = { ...BEARER, ...JSON_TYPE }

  t.equal(await ask('POST', '/v1/run', { ...good, origin: 'https://evil.example' }, body), 403)
  t.equal(await ask('POST', '/v1/run', { ...good, 'sec-fetch-site': 'cross-site' }, body), 403)
  t.equal(await ask('GET', '/v1/status', { ...BEARER, host: 'evil.example' }), 403)
  t.equal(await ask('POST', '/v1/run', { ...BEARER, 'content-type': 'text/plain' }, body), 415)
  t.equal(await ask('POST', '/v1/run', good, 'x'.repeat(70_000)), 500)
  t.equal(await ask('POST', '/v1/run', good, 'nonsense'), 500)
  t.strictSame(begun, [])
  t.equal(await ask('POST', '/v1/run', good, body), 202)
  t.strictSame(begun, ['gc/nas'])
})

t.test('it listens nowhere but on this machine, and with no weak token', async t => {
  const open = (place: Partial<ApiPlace>) =>
    ApiServer.open({ kind: 'loopback', host: '127.0.0.1', port: 0, token: TOKEN, ...place } as ApiPlace, ports())
  await t.rejects(open({ host: '0.0.0.0' }), { code: 'E_CONFIG' })
  await t.rejects(open({ host: '192.168.1.2' }), { code: 'E_CONFIG' })
  await t.rejects(open({ token: 'short' }), { code: 'E_CONFIG' })
})
