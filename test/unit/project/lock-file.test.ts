import { readFileSync } from 'node:fs'

import t from 'tap'

interface LockedPackage {
  readonly dependencies?: Readonly<Record<string, string>>
  readonly optionalDependencies?: Readonly<Record<string, string>>
}

type Packages = Readonly<Record<string, LockedPackage>>

/** Dependencies that have no entry where Node would look for them. */
function missingEntries(packages: Packages): string[] {
  return Object.entries(packages).flatMap(([path, { dependencies, optionalDependencies }]) =>
    Object.keys({ ...dependencies, ...optionalDependencies })
      .filter(name => !foldersAbove(path).some(folder => `${folder}node_modules/${name}` in packages))
      .map(name => `${name}, which ${path === '' ? 'the project' : path} needs`),
  )
}

/** `a/node_modules/b` → `a/node_modules/b/`, `a/`, ``. */
function foldersAbove(path: string): string[] {
  const parts = path.split('/node_modules/')
  return ['', ...parts.map((_, index) => `${parts.slice(0, index + 1).join('/node_modules/')}/`)]
}

// npm install drops from the lock file what the registry of the day does not
// offer for other platforms; npm ci then refuses the file.
t.test('npm ci can install from package-lock.json: nothing in it lacks its entry', async t => {
  const lock = JSON.parse(readFileSync(new URL('../../../../package-lock.json', import.meta.url), 'utf8')) as {
    packages: Packages
  }

  t.strictSame(missingEntries(lock.packages), [])
})

t.test('a missing entry is found at any depth', async t => {
  const packages = {
    '': { dependencies: { a: '1' } },
    'node_modules/a': { dependencies: { b: '1' }, optionalDependencies: { 'c-linux': '1', 'c-darwin': '1' } },
    'node_modules/a/node_modules/b': {},
    'node_modules/c-linux': {},
  }

  t.strictSame(missingEntries(packages), ['c-darwin, which node_modules/a needs'])
})
