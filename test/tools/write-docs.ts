/** Writes docs/commands/ from the commands themselves: `npm run docs`. */
import { mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import { renderCommandPage } from '../../src/cli/command-page.js'
import { COMMAND_TABLE, loadCommand } from '../../src/cli/command-table.js'

const FOLDER = fileURLToPath(new URL('../../../docs/commands', import.meta.url))

mkdirSync(FOLDER, { recursive: true })
for (const name of readdirSync(FOLDER)) rmSync(join(FOLDER, name))
for (const entry of COMMAND_TABLE) {
  const page = renderCommandPage(entry, await loadCommand(entry))
  writeFileSync(join(FOLDER, `${entry.id.replaceAll(':', '-')}.md`), page)
}
