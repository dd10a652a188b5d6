import { readdirSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

import t from 'tap'
import ts from 'typescript'

import { COMMAND_TABLE, loadCommand } from '../../../src/cli/command-table.js'
import { GLOBAL_FLAGS } from '../../../src/cli/global-flags.js'

const ROOT = fileURLToPath(new URL('../../../..', import.meta.url))
/** Commands of others, whose options are theirs. */
const OTHERS = /\b(virsh|qemu-img|qemu-nbd|systemctl|apt-get|openssl|ssh|chown|npm|nbdkit|certtool) /

/** Every text that stands in a list called `hints`, with its file. */
function advice(): { file: string; text: string }[] {
  const found: { file: string; text: string }[] = []
  for (const name of readdirSync(`${ROOT}/src`, { recursive: true, encoding: 'utf8' })) {
    if (!name.endsWith('.ts')) continue
    const source = ts.createSourceFile(name, readFileSync(`${ROOT}/src/${name}`, 'utf8'), ts.ScriptTarget.Latest)
    const texts = (node: ts.Node): void => {
      if (ts.isStringLiteralLike(node)) found.push({ file: name, text: node.text })
      else if (ts.isTemplateExpression(node)) {
        const middle = node.templateSpans.map(({ literal }) => `X${literal.text}`)
        found.push({ file: name, text: node.head.text + middle.join('') })
      }
      node.forEachChild(texts)
    }
    const visit = (node: ts.Node): void => {
      if (ts.isPropertyAssignment(node) && node.name.getText(source) === 'hints') texts(node.initializer)
      else node.forEachChild(visit)
    }
    visit(source)
  }
  return found
}

t.test('what an error advises can be typed: its commands and flags exist', async t => {
  const flags = new Set([...Object.keys(GLOBAL_FLAGS), 'help', 'version'])
  const commands = new Set(['help', 'COMMAND'])
  for (const entry of COMMAND_TABLE) {
    const words = entry.id.split(':')
    for (const id of [entry.id, ...(entry.aliases ?? [])]) commands.add(id.replaceAll(':', ' '))
    if (words.length > 1) commands.add(words[0] ?? '')
    for (const [name, flag] of Object.entries((await loadCommand(entry)).flags ?? {})) {
      flags.add(name)
      if (flag.type === 'boolean' && flag.allowNo) flags.add(`no-${name}`)
    }
  }

  const all = advice()
  t.ok(all.length > 100, 'there is advice to look at')
  for (const { file, text } of all) {
    if (OTHERS.test(text)) continue
    for (const [, flag = ''] of text.matchAll(/(?<![\w-])--([a-z][a-z-]*)/g))
      t.ok(flags.has(flag), `${file}: --${flag}: ${text}`)
    for (const [, first = '', second = ''] of text.matchAll(/virtvault ([a-z][a-z-]*)(?: ([a-z-]+))?/g)) {
      const topic = COMMAND_TABLE.some(({ id }) => id.startsWith(`${first}:`))
      t.ok(commands.has(topic ? `${first} ${second}` : first) || first === 'on' || first === 'and', `${file}: ${text}`)
    }
  }
})
