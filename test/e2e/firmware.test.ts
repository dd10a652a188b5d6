import { existsSync, readdirSync } from 'node:fs'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'

import t, { type Test } from 'tap'

import { LabProgram } from '../harness/linux-point.js'
import { requires } from '../harness/requires.js'
import { MIB } from '../lab/fill.js'
import { Lab } from '../lab/lab.js'

t.setTimeout(600_000)
const CODE = '/usr/share/OVMF/OVMF_CODE_4M.fd'
const VARS = '/usr/share/OVMF/OVMF_VARS_4M.fd'
const TPM = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
const NETWORK = "<interface type='user'><mac address='52:54:00:12:34:56'/><model type='virtio'/></interface>"
const needs = requires('lab', 'swtpm', 'swtpm_setup', ...(existsSync(CODE) ? [] : ['ovmf']))

/** A running domain with UEFI, a TPM and an interface, and a recovery point of it. */
async function setUp(lab: Lab, program: LabProgram) {
  const domain = await lab.domain({
    name: 'efi01',
    machine: 'q35',
    memory: 128 * MIB,
    disks: [{ target: 'vda', size: 16 * MIB, content: [{ kind: 'write', offset: 0, length: MIB, fill: 7 }] }],
    devices: `${TPM}${NETWORK}`,
  })
  const xml = lab.path('efi01.new.xml')
  const firmware = `<loader readonly='yes' type='pflash'>${CODE}</loader><nvram template='${VARS}'>${lab.path('efi01_VARS.fd')}</nvram>`
  const before = await lab.virsh('dumpxml', '--inactive', domain.uuid)
  await writeFile(xml, before.replace('</os>', `${firmware}</os>`))
  await lab.virsh('define', xml)
  await domain.start()
  for (const args of [
    ['init', program.store],
    ['backup', 'pull', 'efi01'],
  ]) {
    const { code, stderr } = await program.run(...args)
    if (code !== 0) throw new Error(`${args.join(' ')}: ${stderr}`)
  }
  return domain
}

t.test('a domain with UEFI and TPM', { ...needs, timeout: 600_000 }, async t => {
  await using lab = await Lab.start()
  await using program = new LabProgram(lab)
  const domain = await setUp(lab, program)
  const tpmOf = (uuid: string) => join(lab.folder, 'lib', 'swtpm', uuid, 'tpm2', 'tpm2-00.permall')
  // The firmware writes both while it boots: what the point has is what counts.
  t.equal((await program.run('restore', 'efi01@latest', '--to', lab.path('plain'))).code, 0)
  const variables = await readFile(lab.path('plain/efi01.nvram'))
  const state = await readFile(lab.path('plain/efi01.tpm-tpm2-tpm2-00.permall'))
  const restore = (...args: string[]) => program.run('restore', 'efi01@latest', ...args, '--json')
  const remove = async (t: Test, name: string) => {
    await lab.virsh('destroy', name)
    t.match(await lab.tryVirsh('undefine', '--nvram', '--tpm', '--checkpoints-metadata', name), { code: 0 })
  }

  await t.test('is started as a copy without network, with its TPM’s state', async t => {
    const ended = await restore('--to', lab.path('copy'), '--start', '--name', 'copy', '--network', 'none')

    t.equal(ended.code, 0, ended.stderr + ended.stdout)
    t.equal(await lab.virsh('domstate', 'copy'), 'running')
    const uuid = await lab.virsh('domuuid', 'copy')
    t.not(uuid, domain.uuid)
    t.ok(existsSync(tpmOf(uuid)))
    t.notMatch(await lab.virsh('dumpxml', 'copy'), /<interface/)
    t.equal(await domain.state(), 'running', 'beside the original')
    await remove(t, 'copy')
  })

  await t.test('keeps its interfaces, with addresses of its own where it is a copy', async t => {
    const ended = await restore('--to', lab.path('keep'), '--define', '--name', 'copy', '--network', 'keep')

    t.equal(ended.code, 0, ended.stderr + ended.stdout)
    const xml = await lab.virsh('dumpxml', 'copy')
    t.match(xml, /<interface type='user'>/)
    t.notMatch(xml, /52:54:00:12:34:56/)
    await lab.virsh('undefine', '--nvram', '--tpm', 'copy')
  })

  await t.test('that cannot start for want of a network has complete images, stays defined, and says so', async t => {
    const folder = lab.path('named')
    const ended = await restore('--to', folder, '--start', '--name', 'copy', '--network', 'nowhere')

    t.equal(ended.code, 5, ended.stdout)
    t.match(ended.stdout, /is not running as asked/)
    t.ok(existsSync(join(folder, 'vda.qcow2')))
    t.match(await lab.virsh('dumpxml', 'copy'), /<source network='nowhere'/)
    await lab.virsh('undefine', '--nvram', '--tpm', 'copy')
  })

  await t.test('passes verify --level boot, of which nothing is left', async t => {
    const before = readdirSync(join(lab.folder, 'lib', 'swtpm')).sort()

    const booted = await program.run('verify', 'efi01@latest', '--level', 'boot', '--console', 'BdsDxe')

    t.match(booted, { code: 0, stdout: /ok: efi01@.*console/ }, booted.stderr)
    t.strictSame(readdirSync(join(lab.folder, 'lib', 'swtpm')).sort(), before, 'no TPM of the trial')
    t.match(await lab.virsh('list', '--all', '--name'), /^\s*efi01\s*$/)
    t.equal(await domain.state(), 'running')
  })

  await t.test('comes back as itself with --keep-uuid, its own TPM and variables', async t => {
    t.match(await restore('--to', lab.path('clash'), '--start', '--keep-uuid'), { code: 15 })
    await remove(t, 'efi01')
    t.notOk(existsSync(tpmOf(domain.uuid)))

    const ended = await restore('--to', lab.path('back'), '--define', '--keep-uuid')

    t.equal(ended.code, 0, ended.stderr + ended.stdout)
    t.equal(await lab.virsh('domuuid', 'efi01'), domain.uuid)
    t.ok((await readFile(tpmOf(domain.uuid))).equals(state))
    t.ok((await readFile(join(lab.folder, 'lib', 'qemu', 'nvram', 'efi01_VARS.fd'))).equals(variables))
    await domain.start()
    t.equal(await domain.state(), 'running')
  })

  await t.test('runs at once with --instant', async t => {
    await remove(t, 'efi01')

    const ended = await restore('--to', lab.path('instant'), '--instant')

    t.equal(ended.code, 0, ended.stderr + ended.stdout)
    t.equal(await domain.state(), 'running')
    t.ok(existsSync(tpmOf(domain.uuid)))
  })
})
