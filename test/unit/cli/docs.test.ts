import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

import t from 'tap'

import { renderCommandPage } from '../../../src/cli/command-page.js'
import { COMMAND_TABLE, loadCommand } from '../../../src/cli/command-table.js'

const ROOT = fileURLToPath(new URL('../../../..', import.meta.url))

t.test('docs/commands/ says what --help says: npm run docs writes it', async t => {
  const names = COMMAND_TABLE.map(({ id }) => `${id.replaceAll(':', '-')}.md`)
  t.strictSame(readdirSync(`${ROOT}/docs/commands`).sort(), names.sort())
  for (const entry of COMMAND_TABLE) {
    const path = `${ROOT}/docs/commands/${entry.id.replaceAll(':', '-')}.md`
    t.equal(readFileSync(path, 'utf8'), renderCommandPage(entry, await loadCommand(entry)), entry.id)
  }
})

t.test('README.md names only commands that exist', async t => {
  const text = readFileSync(`${ROOT}/README.md`, 'utf8')
  const ids = new Set(COMMAND_TABLE.map(({ id }) => id.replaceAll(':', ' ')))
  const known = new Set([...ids].flatMap(id => [id, id.split(' ')[0] ?? '']))
  const verbs = [...text.matchAll(/^virtvault ((?:backup )?[a-z]+)|`virtvault ((?:backup )?[a-z]+)/gm)].map(
    ([, line, inline]) => line ?? inline ?? '',
  )

  t.ok(verbs.length > 3)
  for (const verb of verbs) t.ok(known.has(verb) || verb === 'help', verb)
  for (const [, path = ''] of text.matchAll(/\]\(([^)#:]+)\)/g)) t.ok(existsSync(`${ROOT}/${path}`), path)
})
