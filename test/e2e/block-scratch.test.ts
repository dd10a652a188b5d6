import { open, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

import t from 'tap'

import type { PullPorts } from '../../src/jobs/pull-ports.js'
import { PullHost } from '../../src/libvirt/pull-host.js'
import { cliEnvironment } from '../demo/virtvault-cli.js'
import { Matrix, readings } from '../harness/matrix.js'
import { requires } from '../harness/requires.js'
import { MIB } from '../lab/fill.js'
import type { LabDomain } from '../lab/lab-domain.js'
import { run } from '../lab/run-program.js'

const MAIN = fileURLToPath(new URL('../../src/cli/main.cjs', import.meta.url))

t.setTimeout(120_000)

t.test('scratch on block devices', { ...requires('lab'), timeout: 120_000 }, async t => {
  await using matrix = await Matrix.start()
  const { lab, puller } = matrix
  await using devices = new LoopDevices(lab.path('loop'))
  const domain = await lab.domain({ name: 'web01', disks: [{ target: 'vda', size: 64 * MIB }] })
  await domain.start()
  await domain.write('vda', 0, 40 * MIB, { seed: 1 })
  const device = await devices.make(32 * MIB)

  const hostWith = (scratchDevices: Readonly<Record<string, string>>) =>
    new PullHost(puller.hypervisor, {
      runtimeDir: join(lab.scratchFolder, 'r'),
      scratchDir: join(lab.scratchFolder, 's'),
      scratchDevices: new Map(Object.entries(scratchDevices)),
      readOnly: false,
      shareable: false,
    })
  /** Pulls with `during` called while the disk is read. */
  const pullOn = (path: string, during?: (signal: AbortSignal) => Promise<void>, of: LabDomain = domain) => {
    const ports = puller.ports()
    const openExport: PullPorts['openExport'] = async (...args) => {
      const source = await ports.openExport(...args)
      await during?.(args[2])
      return source
    }
    return matrix.pull(of, { ports: { hypervisor: hostWith({ vda: path }), openExport } })
  }
  const overwrite = (bytes: number) => () => domain.write('vda', 0, bytes, { seed: Math.floor(Math.random() * 1e6) })

  await t.test('one takes what the domain overwrites, and can be used again', async t => {
    const first = await pullOn(device, overwrite(2 * MIB))
    const magic = (await readHead(device)).toString('latin1', 0, 3)
    const second = await pullOn(device, overwrite(2 * MIB))

    t.strictSame([first.difference, second.difference], [undefined, undefined])
    t.strictSame(
      [...readings(first.point), ...readings(second.point)],
      [`vda full ${40 * MIB}`, `vda incremental ${2 * MIB}`],
    )
    t.equal(magic, 'QFI', 'libvirt leaves its qcow2 there')
    t.equal(await domain.state(), 'running')
  })

  await t.test('a pull is given up before one is full, and the domain is never paused', async t => {
    const pull = pullOn(device, async signal => {
      await overwrite(28 * MIB)()
      // A reader that has all it needs would be faster than the watch.
      while (!signal.aborted) await delay(10)
    })

    await t.rejects(pull, { code: 'E_NO_SPACE', why: /scratch vda\[\d+\] has grown past 24/ })
    t.equal(await domain.state(), 'running')
    t.strictSame((await domain.leftovers()).jobs, [])
    t.equal((await pullOn(device)).difference, undefined, 'and the next is right')
  })

  await t.test('two pulls at once never share one', async t => {
    const other = await lab.domain({ name: 'web02', disks: [{ target: 'vda', size: 16 * MIB }] })
    await other.start()
    let refused: unknown
    const pull = await pullOn(device, async () => {
      refused = await pullOn(device, undefined, other).catch((error: unknown) => error)
    })

    t.match(refused, { code: 'E_LOCKED', message: `${device} is the scratch of disk vda of web01` })
    t.equal(pull.difference, undefined)
    await other.destroy()
  })

  await t.test('what a domain, a file system or somebody else has on a device is never overwritten', async t => {
    const disk = await devices.make(32 * MIB)
    const user = await lab.domain({
      name: 'user',
      disks: [{ target: 'vda', size: 16 * MIB }],
      devices: `<disk type='block'><source dev='${disk}'/><target dev='vdb' bus='virtio'/></disk>`,
    })
    const held = await devices.make(32 * MIB)
    const claim = await open(held, 0x80 /* O_EXCL */)
    const used = await devices.make(32 * MIB)
    await run('mke2fs', ['-q', used])
    const small = await devices.make(8 * MIB)
    const file = lab.path('no-device')
    await writeFile(file, '')
    const before = await readFile(used)

    await t.rejects(pullOn(disk), {
      code: 'E_REFUSED',
      message: `${disk} is no scratch device: it is disk vdb of user`,
    })
    await t.rejects(pullOn(held), { code: 'E_LOCKED' })
    await t.rejects(pullOn(used), { code: 'E_REFUSED', message: `${used} holds something` })
    await t.rejects(pullOn(small), { code: 'E_NO_SPACE' })
    await t.rejects(pullOn(file), { code: 'E_CONFIG' })
    await t.rejects(pullOn('/dev/nothing'), { code: 'E_CONFIG' })

    await claim.close()
    t.ok(before.equals(await readFile(used)))
    t.strictSame((await domain.leftovers()).jobs, [])
    await lab.virsh('undefine', user.uuid)
  })

  await t.test('--scratch-device and scratch_devices lead there', async t => {
    const env = { ...process.env, ...cliEnvironment(lab), VIRTVAULT_CONNECT: lab.uri }
    const config = lab.path('config.yml')
    const store = lab.path('cli-store')
    await writeFile(config, `default: { target: ${store}, scratch_devices: { vda: ${device}, vdq: /dev/vg/no } }\n`)
    await run(process.execPath, [MAIN, 'init', store], { env })
    const pull = async (...args: readonly string[]) => {
      await run('dd', ['if=/dev/zero', `of=${device}`, 'bs=1M', 'count=1', 'conv=notrunc,fsync', 'status=none'])
      const { code, stdout } = await run(
        process.execPath,
        [MAIN, 'backup', 'pull', 'web01', '--config', config, '--json', ...args],
        { env, check: false },
      )
      return { code, stdout, magic: (await readHead(device)).toString('latin1', 0, 3) }
    }

    const byFlag = await pull('--scratch-device', `vda=${device}`)
    const byConfig = await pull()
    const twice = await pull('--scratch-device', `vda=${device}`, '--scratch-device', `vdb=${device}`)

    t.match(byFlag, { code: 0, magic: 'QFI' })
    t.match(byConfig, { magic: 'QFI', stdout: /web01 has no disk vdq/ })
    t.match(twice, { code: 2, stdout: /E_USAGE/ })
  })
})

/** Block devices on files, taken away in the end. */
class LoopDevices implements AsyncDisposable {
  readonly #prefix: string
  readonly #devices: string[] = []

  constructor(prefix: string) {
    this.#prefix = prefix
  }

  async make(bytes: number): Promise<string> {
    const image = `${this.#prefix}-${this.#devices.length}`
    await run('truncate', ['--size', String(bytes), image])
    const device = (await run('losetup', ['--find', '--show', image])).stdout.trim()
    this.#devices.push(device)
    return device
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const device of this.#devices) await run('losetup', ['--detach', device])
  }
}

async function readHead(device: string): Promise<Buffer> {
  const bytes = Buffer.alloc(512)
  const file = await open(device)
  try {
    await file.read(bytes, 0, bytes.length, 0)
  } finally {
    await file.close()
  }
  return bytes
}
