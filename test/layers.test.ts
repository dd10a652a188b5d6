import { fileURLToPath } from 'node:url'

import t from 'tap'

import { findViolations, type ModuleMap, readSources } from './harness/module-map.js'

/**
 * The map of docs/architecture.md: imports point down, never up, never
 * sideways within layer 3. Changing an arrow means changing this table and
 * that page in the same commit.
 */
const BELOW_THE_MACHINE = ['base', 'native', 'model', 'format']
const LAYER_3 = ['libvirt', 'nbd', 'image', 'files', 'store']
const BELOW_JOBS = [...BELOW_THE_MACHINE, ...LAYER_3, 'config']

const MAP: ModuleMap = {
  rooms: {
    // 1
    base: { may: [] },
    native: { may: ['base'] },
    // 2
    model: { may: ['base'] },
    format: { may: ['base', 'model', 'native'] },
    // 3: these six never import one another
    libvirt: { may: BELOW_THE_MACHINE },
    nbd: { may: BELOW_THE_MACHINE },
    image: { may: BELOW_THE_MACHINE },
    files: { may: BELOW_THE_MACHINE },
    store: { may: BELOW_THE_MACHINE },
    config: { may: ['base', 'model'] },
    // 4
    jobs: { may: BELOW_THE_MACHINE, byType: [...LAYER_3, 'config'] },
    // 5: cli/wire.ts alone constructs; the guardian is a process of its own
    commands: { may: ['base', 'model', 'config', 'cli', 'daemon'], byType: [...BELOW_JOBS, 'jobs'] },
    // The daemon never looks back at them.
    cli: { may: ['base', 'model', 'config', 'daemon'], byType: [...BELOW_JOBS, 'jobs', 'commands'] },
    daemon: { may: ['base', 'model', 'config'], byType: [...BELOW_JOBS, 'jobs'] },
  },
  // wire.ts and its parts make objects, command-table.ts loads the command that was asked for
  builders: [
    'cli/wire.ts',
    'cli/backing-wire.ts',
    'cli/restore-wire.ts',
    'cli/export-wire.ts',
    'cli/trial-wire.ts',
    'cli/files-wire.ts',
    'cli/walker-main.ts',
    'cli/instant-wire.ts',
    'cli/instant-place.ts',
    'cli/resume-wire.ts',
    'cli/remote-wire.ts',
    'cli/remote-restore-wire.ts',
    'cli/daemon-wire.ts',
    'cli/guardian-main.ts',
    'cli/command-table.ts',
  ],
  packages: {
    '@oclif/core': /^(cli|commands)\//,
    ansis: /^cli\//,
    'cli-progress': /^cli\//,
    'cli-table3': /^cli\//,
    croner: /^model\/schedule\.ts$/,
    nodemailer: /^daemon\/smtp\.ts$/,
    'fast-xml-parser': /^libvirt\/[a-z-]+-xml\.ts$/,
    level: /^store\//,
    'classic-level': /^store\//,
    msgpackr: /^format\//,
    'p-queue': /^base\/async\.ts$/,
    ulid: /^(base|store)\//,
    yaml: /^(config|cli)\//,
    zod: /^config\/schema\.ts$/,
  },
  builtins: {
    'node:module': /^native\/binding\.ts$/,
  },
  pure: {
    model: [],
    // Cryptography is arithmetic: bytes and key in, bytes out.
    format: ['node:buffer', 'node:crypto'],
  },
  globals: {
    'process.env': /^(base|cli)\//,
    'Date.now': /^(base|cli)\//,
    'Math.random': /^(base|cli)\//,
    // bundled.cts loads the program itself
    'process.dlopen': /^(native\/binding\.ts|cli\/bundled\.cts)$/,
  },
}

t.test('every import of src/ is on the map', async t => {
  const sources = readSources(fileURLToPath(new URL('../../src', import.meta.url)))

  t.ok(sources.size > 5, 'src/ was found')
  t.strictSame(findViolations(MAP, sources), [])
})

/** Each file breaks the map in the one way that stands beside it. */
const BREACHES: readonly (readonly [path: string, text: string, violation: string])[] = [
  ['store/a.ts', `import { x } from '../libvirt/x.js'`, '1: src/store may not import src/libvirt'],
  ['libvirt/a.ts', `import type { X } from '../nbd/x.js'`, '1: src/libvirt may not import src/nbd'],
  ['config/a.ts', `export { x } from '../store/x.js'`, '1: src/config may not import src/store'],
  ['base/a.ts', `\nimport { x } from '../model/x.js'`, '2: src/base may not import src/model'],
  ['model/a.ts', `import { x } from '../format/x.js'`, '1: src/model may not import src/format'],
  ['model/b.ts', `type X = import('../store/x.js').X`, '1: src/model may not import src/store'],
  ['model/c.ts', `import { readFile } from 'node:fs/promises'`, '1: a pure folder may not import node:fs/promises'],
  ['jobs/a.ts', `import { x } from '../store/x.js'`, '1: src/jobs may import src/store only with import type'],
  ['jobs/b.ts', `const x = await import('../nbd/x.js')`, '1: src/jobs may import src/nbd only with import type'],
  ['jobs/c.ts', `import type { X } from '../cli/x.js'`, '1: src/jobs may not import src/cli'],
  ['commands/a.ts', `import { x } from '../jobs/x.js'`, '1: src/commands may import src/jobs only with import type'],
  ['cli/a.ts', `import { x } from '../store/x.js'`, '1: src/cli may import src/store only with import type'],
  [
    'cli/b.ts',
    `const x = await import('../commands/x.js')`,
    '1: src/cli may import src/commands only with import type',
  ],
  ['cli/c.cts', `import('../commands/x.js')`, '1: src/cli may import src/commands only with import type'],
  ['daemon/a.ts', `import { x } from '../cli/x.js'`, '1: src/daemon may not import src/cli'],
  ['store/b.ts', `import { pack } from 'msgpackr'`, '1: may not import msgpackr here'],
  ['jobs/d.ts', `import PQueue from 'p-queue'`, '1: may not import p-queue here'],
  ['libvirt/b.ts', `import { XMLParser } from 'fast-xml-parser'`, '1: may not import fast-xml-parser here'],
  ['store/c.ts', `import _ from 'lodash'`, '1: package lodash is not on the map'],
  ['nbd/a.ts', `import { createRequire } from 'node:module'`, '1: may not import node:module here'],
  ['nbd/b.ts', `const path = '../build/x.node'`, '1: may not use process.dlopen here'],
  ['store/d.ts', `const x = process.env['HOME']`, '1: may not use process.env here'],
  ['store/e.ts', `const x = Date.now()`, '1: may not use Date.now here'],
  ['store/f.ts', `const x = new Date()`, '1: may not use Date.now here'],
  ['jobs/e.ts', `const x = Math.random()`, '1: may not use Math.random here'],
  ['jobs/f.ts', `const x = await import(name)`, '1: imports something that cannot be told'],
  ['jobs/g.ts', `import { x } from '../../test/x.js'`, '1: imports ../../test/x.js, which is not in src/'],
  ['utils/a.ts', `export const x = 1`, '1: src/utils is not on the map'],
]

const SOUND: readonly (readonly [path: string, text: string])[] = [
  ...['base', 'libvirt', 'nbd', 'store', 'model', 'format', 'cli', 'jobs', 'config', 'commands'].map(
    folder => [`${folder}/x.ts`, 'export const x = 1\nexport type X = 1'] as const,
  ),
  ['cli/wire.ts', `import { x } from '../store/x.js'\nimport { x as y } from '../jobs/x.js'`],
  ['cli/command-table.ts', `const x = await import('../commands/x.js')`],
  ['jobs/sound.ts', `import type { X } from '../store/x.js'\nimport { x } from '../model/x.js'`],
  ['libvirt/domain-xml.ts', `import { XMLParser } from 'fast-xml-parser'`],
  ['store/sound.ts', `const x = new Date(0)\nconst env = options.env`],
]

for (const [path, text, violation] of BREACHES) {
  t.test(`the map refuses ${text.trim()} in ${path}`, async t => {
    const sources = new Map([...SOUND, [path, text] as const])

    t.strictSame(findViolations(MAP, sources), [`${path}:${violation}`])
  })
}

t.test('the map lets pass what is sound', async t => {
  t.strictSame(findViolations(MAP, new Map(SOUND)), [])
})
