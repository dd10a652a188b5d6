import { spawn } from 'node:child_process'
import { cpSync, existsSync, readdirSync, statSync } from 'node:fs'
import { mkdir, open, readFile, unlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import t from 'tap'

import { cliEnvironment } from '../demo/virtvault-cli.js'
import { requires } from '../harness/requires.js'
import { MIB } from '../lab/fill.js'
import { imageDamage, imageDifference } from '../lab/images.js'
import { Lab } from '../lab/lab.js'
import { run } from '../lab/run-program.js'

const MAIN = fileURLToPath(new URL('../../src/cli/main.cjs', import.meta.url))

interface Ended {
  readonly code: number | null
  readonly stdout: string
  readonly stderr: string
}

// Real domains, on a machine that others use as well.
t.setTimeout(600_000)

t.test('restore on the worst day', { ...requires('lab'), timeout: 600_000 }, async t => {
  const lab = await Lab.start()
  t.teardown(() => lab[Symbol.asyncDispose]())
  const bare = await Lab.start()
  t.teardown(() => bare[Symbol.asyncDispose]())
  const store = lab.path('store')
  const nvram = join(bare.folder, 'lib', 'qemu', 'nvram')
  const env: NodeJS.ProcessEnv = {
    ...process.env,
    ...cliEnvironment(lab),
    VIRTVAULT_TARGET: store,
    VIRTVAULT_CONNECT: bare.uri,
    VIRTVAULT_NVRAM_DIR: nvram,
    VIRTVAULT_SWTPM_DIR: join(bare.folder, 'lib', 'swtpm'),
  }
  const virtvault = (args: readonly string[], readBytes = Infinity) =>
    new Promise<Ended>((done, fail) => {
      const child = spawn(MAIN, args, { env, stdio: ['ignore', 'pipe', 'pipe'] })
      let stdout = ''
      let stderr = ''
      child.stdout.on('data', (part: Buffer) => {
        stdout += part.toString('latin1')
        if (stdout.length >= readBytes) child.stdout.destroy()
      })
      child.stderr.on('data', (part: Buffer) => (stderr += part.toString()))
      child.once('error', fail)
      child.once('close', code => done({ code, stdout, stderr }))
    })

  const content = [{ kind: 'write', offset: 0, length: 24 * MIB, fill: { seed: 1 } }] as const
  const web = await lab.domain({ name: 'web01', disks: [{ target: 'vda', size: 64 * MIB, content }] })
  const files = { kernel: lab.path('vmlinuz'), initrd: lab.path('initrd.img'), loader: lab.path('OVMF_CODE.fd') }
  for (const [name, path] of Object.entries(files)) await writeFile(path, `the ${name}`)
  const variables = lab.path('web01_VARS.fd')
  await writeFile(variables, 'variables')
  const xml = await lab.virsh('dumpxml', 'web01')
  const boot =
    `<loader readonly='yes' type='pflash'>${files.loader}</loader><nvram>${variables}</nvram>` +
    `<kernel>${files.kernel}</kernel><initrd>${files.initrd}</initrd>`
  await writeFile(lab.path('boot.xml'), xml.replace('</type>', `</type>${boot}`))
  await lab.virsh('define', lab.path('boot.xml'))
  await lab.domain({
    name: 'db01',
    disks: [{ target: 'vda', size: 16 * MIB, content: content.map(one => ({ ...one, length: MIB })) }],
  })
  t.equal((await virtvault(['init', store])).code, 0)
  t.match(await virtvault(['backup', 'pull', '--all', '-c', lab.uri]), { code: 0 })
  const vda = { path: web.disk('vda').path, format: 'qcow2' }
  const latest = ['restore', 'web01@latest'] as const

  await t.test('what cannot be is refused before a byte is written', async t => {
    const to = ['--to', lab.path('never')]
    for (const [words, code, says] of [
      [['--compression', 'zstd', '--data-file'], 2, /exclude each other/],
      [['--compression', 'zlib', '--preallocate', 'full'], 2, /exclude each other/],
      [['--compression', 'zstd', '--compat', '0.10'], 2, /needs --compat 1\.1/],
      [['--lazy-refcounts', '--compat', '0.10'], 2, /needs --compat 1\.1/],
      [['--format', 'raw', '--compression', 'zlib'], 2, /--compression is an option of qcow2/],
      [['--format', 'raw', '--preallocate', 'metadata'], 2, /no metadata/],
      [['--cluster-size', '100k'], 1, /cluster size of 102400/],
      [['--extended-l2', '--cluster-size', '4k', '-n'], 1, /16 KiB/],
    ] as const) {
      t.match(await virtvault([...latest, ...to, ...words]), { code, stderr: says }, words.join(' '))
    }
    t.match(await virtvault([...latest, '--to', '/proc/nowhere']), { code: 1, stderr: /cannot make the directory/ })
    t.match(await virtvault([...latest, '--to', join(store, 'store.json', 'x')]), {
      code: 15,
      stderr: /is not a directory/,
    })
    t.notOk(existsSync(lab.path('never')))
  })

  await t.test('compressed images and data files hold the disk', async t => {
    for (const words of [
      ['--compression', 'zstd'],
      ['--compression', 'original', '--cluster-size', '4k'],
      ['--data-file'],
    ]) {
      const to = lab.path(words.join(''))
      t.equal((await virtvault([...latest, '--to', to, ...words])).code, 0)
      t.equal(await imageDifference({ path: join(to, 'vda.qcow2'), format: 'qcow2' }, vda), undefined)
      t.equal(await imageDamage(join(to, 'vda.qcow2')), undefined)
    }
    const data = { path: join(lab.path('--data-file'), 'vda.data.raw'), format: 'raw' }
    t.equal(await imageDifference(data, vda), undefined)
  })

  await t.test('a reader of standard output that goes away is told from a disk that ended', async t => {
    t.match(await virtvault([...latest, '--stdout'], 100), { code: 1, stderr: /went away before the disk ended.*E_IO/ })
  })

  await t.test('a full file system leaves the old image as it was, with --force too', async t => {
    const small = lab.path('small')
    await mkdir(small)
    await run('mount', ['-t', 'tmpfs', '-o', 'size=8m', 'none', small])
    t.teardown(() => run('umount', [small]))
    await writeFile(join(small, 'vda.qcow2'), 'the old image')

    t.match(await virtvault([...latest, '--to', small, '--force']), { code: 13, stderr: /Free space there/ })

    t.strictSame(readdirSync(small), ['vda.qcow2'])
    t.equal(await readFile(join(small, 'vda.qcow2'), 'utf8'), 'the old image')
  })

  await t.test('on a bare host the kernel, initrd and firmware come back, the definition says where', async t => {
    const gone = ['restore', '--all', '--define', '--json']
    await unlink(files.loader)
    const ended = await virtvault([...gone, '--to', bare.path('images'), '--data-file'])

    t.equal(ended.code, 0, ended.stdout)
    const defined = await bare.virsh('dumpxml', 'web01')
    for (const name of ['kernel', 'initrd', 'loader']) {
      const path = new RegExp(`<${name}[^>]*>([^<]+)<`).exec(defined)?.[1] ?? ''
      t.equal(path, join(nvram, `web01.${name}`))
      t.equal(await readFile(path, 'utf8'), `the ${name}`)
    }
    await bare.virsh('start', 'db01')
    t.equal(await bare.virsh('domstate', 'db01'), 'running', 'on its data file')
    await bare.virsh('destroy', 'db01')
    for (const name of ['web01', 'db01']) await bare.virsh('undefine', '--keep-nvram', name)
  })

  await t.test('firmware state in the way is told before the disks are copied', async t => {
    const to = bare.path('again')
    t.match(await virtvault([...latest, '--to', to, '--define']), {
      code: 15,
      stderr: /web01.* exists.*E_EXISTS[^]*--force/,
    })
    t.notOk(existsSync(to))
    await writeFile(files.loader, 'a newer one')
    t.match(await virtvault([...latest, '--to', to, '--define', '--force']), { code: 0 })
    t.match(await bare.virsh('dumpxml', 'web01'), `>${files.loader}<`, 'this host has a firmware of its own')
    await bare.virsh('undefine', '--keep-nvram', 'web01')
  })

  await t.test('a lost chunk is exit 7, names disk and bytes, and the ways on', async t => {
    const broken = lab.path('broken')
    cpSync(store, broken, { recursive: true })
    await spoil(join(broken, 'packs'))
    const to = lab.path('part')

    t.match(await virtvault([...latest, '--to', to, '-t', broken]), {
      code: 7,
      stderr: /disk vda cannot be restored[^]*\[\d+, \d+\)[^]*--disk vda --to DIR --allow-damaged/,
    })
    t.strictSame(readdirSync(to), [])
    t.match(await virtvault([...latest, '--to', to, '-t', broken, '--allow-damaged', '--compression', 'zlib']), {
      code: 7,
    })
    t.ok(existsSync(join(to, 'vda.damaged.map.json')))
    t.equal(await imageDamage(join(to, 'vda.damaged.qcow2')), undefined)
  })
})

/** Changes some bytes in the middle of the largest pack. */
async function spoil(packs: string): Promise<void> {
  const names = readdirSync(packs, { recursive: true, encoding: 'utf8' }).filter(name => name.endsWith('.pack'))
  const sizeOf = (name: string) => statSync(join(packs, name)).size
  const [largest = ''] = names.toSorted((a, b) => sizeOf(b) - sizeOf(a))
  await using pack = await open(join(packs, largest), 'r+')
  await pack.write(Buffer.from('not what was written'), 0, 20, sizeOf(largest) >> 1)
}
