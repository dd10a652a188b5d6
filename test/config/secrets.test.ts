import { chmodSync, closeSync, openSync } from 'node:fs'

import t from 'tap'

import { resolveSecret, secretSourceOf } from '../../src/config/secrets.js'
import type { SecretRequest } from '../../src/config/secrets.js'

const signal = new AbortController().signal
const name = 'passphrase of target nas'

async function secret(request: Partial<SecretRequest>): Promise<string | undefined> {
  return (await resolveSecret({ name, env: {}, ...request }, signal))?.secret
}

t.test(
  'a secret comes from a file, a command, a credential, a descriptor or as it is, without the last newline',
  async t => {
    const folder = t.testdir({ key: 'two words\n\n' })
    chmodSync(`${folder}/key`, 0o600)
    const fd = openSync(`${folder}/key`, 'r')
    t.teardown(() => closeSync(fd))
    const env = { PATH: '/usr/bin:/bin', CREDENTIALS_DIRECTORY: folder }

    t.equal(await secret({ source: { file: `${folder}/key` } }), 'two words\n')
    t.equal(await secret({ source: { command: `cat '${folder}/key'` }, env }), 'two words\n')
    t.equal(await secret({ source: { credential: 'key' }, env }), 'two words\n')
    t.equal(await secret({ source: { fd } }), 'two words\n')
    t.equal(await secret({ source: { value: 'as it is\r\n' } }), 'as it is')
    t.equal(await secret({}), undefined)
  },
)

t.test('the environment goes before the configuration', async t => {
  const source = { value: 'config' }

  t.equal(await secret({ source, variable: 'X', env: { X: 'env' } }), 'env')
  t.equal(await secret({ source, variable: 'X', env: { X: '', X_FILE: '' } }), 'config')
  t.equal(
    await secret({ source, variable: 'X', env: { X_COMMAND: 'echo from-command', PATH: '/bin' } }),
    'from-command',
  )
})

t.test('one secret in two ways is refused', async t => {
  await t.rejects(secret({ variable: 'X', env: { X: 'a', X_FILE: '/b' } }), {
    code: 'E_CONFIG',
    message: /two ways, file and value/,
  })
  await t.rejects(secret({ source: { file: '/a', command: 'b' } }), { code: 'E_CONFIG', message: /two ways/ })
})

t.test('a file that everybody can read is refused, one that its group can read is a warning', async t => {
  const folder = t.testdir({ open: 'hunter2', group: 'hunter2' })
  chmodSync(`${folder}/open`, 0o604)
  chmodSync(`${folder}/group`, 0o640)

  await t.rejects(secret({ source: { file: `${folder}/open` } }), { code: 'E_CONFIG', hints: [/chmod 600/] })
  const found = await resolveSecret({ name, env: {}, source: { file: `${folder}/group` } }, signal)
  t.match(found, { secret: 'hunter2', warnings: [{ code: 'W_CONFIG_FILE', message: /group of/ }] })
})

t.test('what gives no secret is an error that names it and shows nothing', async t => {
  const folder = t.testdir({ empty: '\n', long: 'x'.repeat(70_000) })
  for (const file of ['empty', 'long']) chmodSync(`${folder}/${file}`, 0o600)
  const wrong: Partial<SecretRequest>[] = [
    { source: { file: `${folder}/none` } },
    { source: { file: `${folder}/empty` } },
    { source: { file: `${folder}/long` } },
    { source: { file: folder } },
    { source: { value: '' } },
    { source: { credential: 'x' } },
    { source: { credential: '../x' }, env: { CREDENTIALS_DIRECTORY: folder } },
    { source: { command: 'echo hunter2; echo hunter2 >&2; exit 3' } },
    { source: { command: `cat '${folder}/long'; cat '${folder}/long'` }, env: { PATH: '/bin' } },
    { variable: 'X', env: { X_FD: 'three' } },
    { variable: 'X', env: { X_FD: '999' } },
  ]
  for (const request of wrong) {
    const error: unknown = await secret(request).then(
      () => undefined,
      (reason: unknown) => reason,
    )
    t.match(error, { code: 'E_CONFIG', message: /passphrase of target nas/ }, JSON.stringify(request))
    t.notMatch(`${String(error)} ${JSON.stringify(error)}`, 'hunter2')
  }
})

t.test('a command is ended when the caller gives up', async t => {
  const controller = new AbortController()
  const running = resolveSecret(
    { name, env: { PATH: '/bin:/usr/bin' }, source: { command: 'exec sleep 60' } },
    controller.signal,
  )
  controller.abort()

  await t.rejects(running, { code: 'E_INTERRUPTED' })
})

t.test('the four keys of a section are one secret', async t => {
  t.strictSame(secretSourceOf({ url_file: '/x', start: true }, 'url'), {
    value: undefined,
    file: '/x',
    command: undefined,
    credential: undefined,
  })
})
