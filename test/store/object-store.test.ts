import t from 'tap'

import { localFs, makeDirectoryPath } from '../../src/base/durable-fs.js'
import { systemRandom } from '../../src/base/random.js'
import { native } from '../../src/native/binding.js'
import { STORE_FOLDERS } from '../../src/store/layout.js'
import { LocalObjects } from '../../src/store/local-objects.js'
import { checkObjectStore } from '../conformance/object-store.js'
import { MemoryObjects } from '../fakes/memory-objects.js'
import { SimulatedFs } from '../fakes/simulated-fs.js'

t.test('local files', async t => {
  let next = 0
  const root = t.testdir()
  checkObjectStore(t, async () => {
    const fs = localFs(native())
    const name = `store-${next++}`
    await makeDirectoryPath(fs, root, [name])
    for (const folder of STORE_FOLDERS) await makeDirectoryPath(fs, `${root}/${name}`, [folder])
    return new LocalObjects({ fs, root: `${root}/${name}`, random: systemRandom })
  })
})

t.test('files of the simulated disk', async t => {
  checkObjectStore(t, async () => {
    const fs = new SimulatedFs()
    await makeDirectoryPath(fs, '/', ['store'])
    for (const folder of STORE_FOLDERS) await makeDirectoryPath(fs, '/store', [folder])
    return new LocalObjects({ fs, root: '/store', random: systemRandom })
  })
})

t.test('the fake in memory', async t => {
  checkObjectStore(t, async () => new MemoryObjects())
})
