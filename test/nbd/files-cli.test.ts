import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

import t from 'tap'

import { requires } from '../harness/requires.js'
import { partitioned, script, storeImage } from './guest-images.js'

const MAIN = fileURLToPath(new URL('../../src/cli/main.cjs', import.meta.url))

const folder = mkdtempSync(join(tmpdir(), 'vv-files-'))
t.teardown(() => rmSync(folder, { recursive: true, force: true }))
t.setTimeout(480_000)

interface Ended {
  readonly exit: number | null
  readonly stdout: string
  readonly stderr: string
}

function environment(store: string): NodeJS.ProcessEnv {
  return { ...process.env, VIRTVAULT_TARGET: join(folder, store), VIRTVAULT_RUNTIME_DIR: join(folder, 'r') }
}

function virtvault(store: string, args: readonly string[], env: NodeJS.ProcessEnv = {}): Ended {
  const { status, stdout, stderr } = spawnSync(process.execPath, [MAIN, ...args], {
    env: { ...environment(store), ...env },
  })
  return { exit: status, stdout: stdout.toString('latin1'), stderr: stderr.toString('latin1') }
}

function fresh(name: string): string {
  const path = join(folder, name)
  rmSync(path, { recursive: true, force: true })
  mkdirSync(path)
  return path
}

/** Mounts below our folder; none may be left when a command has ended. */
function mountsLeft(): string[] {
  return readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .filter(line => line.includes(folder))
}

function ext4From(tree: string, image: string, options = ''): void {
  script(`truncate -s 24M "$2"; mkfs.ext4 -q ${options} -d "$1" "$2"`, tree, image)
}

const TOOLS = ['nbdfuse', 'nbdkit', 'fuse2fs', 'mkfs.ext4', 'debugfs', 'sfdisk', 'setpriv', 'blkid', 'partx']

t.test('files, cp and mount as users run them', requires(...TOOLS, 'ntfs-3g', 'mkntfs', 'ntfscp'), async t => {
  const tree = fresh('tree')
  script(
    `cd "$1"; mkdir -p etc/deep/deeper "with blank"; echo web01 >etc/hostname; ln -s hostname etc/name; ln -s /etc /abs 2>/dev/null || true
     ln -s /etc/hostname absolute; head -c 3000001 /dev/urandom >etc/deep/big; printf x >"with blank/ü"
     truncate -s 8M sparse; printf end | dd of=sparse bs=1 seek=5000000 conv=notrunc status=none
     chmod 640 etc/hostname; chmod 4755 etc/deep/big; : >empty; rm -f /abs`,
    tree,
  )
  const ext4 = join(folder, 'ext4.img')
  const ntfs = join(folder, 'ntfs.img')
  ext4From(tree, ext4)
  script(
    'truncate -s 16M "$1"; mkntfs -q -F -L Daten "$1" >/dev/null 2>&1; ntfscp -q "$1" "$2" big',
    ntfs,
    join(tree, 'etc/deep/big'),
  )

  for (const label of ['gpt', 'dos'] as const) {
    await t.test(`all of an ext4 partition comes out as it went in (${label})`, async t => {
      partitioned(join(folder, `${label}.img`), label, [ntfs, ext4])
      await storeImage(join(folder, label), join(folder, `${label}.img`))
      const out = fresh('out')

      const { exit, stderr } = virtvault(label, ['cp', 'web01@latest:vda/', out, '--partition', '2', '--preserve'])

      t.equal(exit, 0, stderr)
      rmSync(join(out, 'lost+found'), { recursive: true })
      const modes = 'cd "$1"; find . -mindepth 1 -printf "%P %y %m %s %T@ %l\\n" | sort'
      t.equal(script(modes, out).replaceAll(/\.\d+ /g, ' '), script(modes, tree).replaceAll(/\.\d+ /g, ' '))
      script('diff -r --no-dereference "$1" "$2"', tree, out)
      t.ok(statSync(join(out, 'sparse')).blocks * 512 < 1_000_000, 'holes stay holes')
      t.same(mountsLeft(), [])
    })
  }

  await t.test('what is on a disk is listed, and of several file systems one must be named', async t => {
    const { exit, stdout } = virtvault('gpt', ['files', 'web01@latest', '--json'])
    t.equal(exit, 0)
    t.match(JSON.parse(stdout), {
      schema: 'virtvault/files/1',
      file_systems: [
        { disk: 'vda', partition: 1, type: 'ntfs', label: 'Daten', bytes: 16 << 20 },
        { disk: 'vda', partition: 2, type: 'ext4', bytes: 24 << 20 },
      ],
    })
    const vague = virtvault('gpt', ['files', 'web01@latest:vda/etc'])
    t.equal(vague.exit, 2)
    t.match(vague.stderr, /--partition 2 {2}\(ext4/)
    t.equal(virtvault('gpt', ['files', 'web01@latest:vda/etc', '--partition', '7']).exit, 4)
  })

  await t.test('a disk without partitions is read, and links lead within the guest', async t => {
    await storeImage(join(folder, 'bare'), ext4)
    const long = virtvault('bare', ['files', 'web01@latest:vda/etc', '--long'])
    t.match(long.stdout, /^-rw-r----- .*hostname$/m)
    t.match(long.stdout, /name -> hostname$/m)
    const printed = virtvault('bare', ['cp', 'web01@latest:vda/absolute', '-'])
    t.equal(printed.stdout, 'web01\n', 'the host has another /etc/hostname')
    t.equal(virtvault('bare', ['cp', 'web01@latest:vda/etc/nothing', '-']).exit, 4)
    t.equal(virtvault('bare', ['cp', 'web01@latest:vda/etc/../../x', '-']).exit, 2)
  })

  await t.test('without --preserve a copy is for this user alone, and no file is replaced without --force', async t => {
    const out = fresh('out')
    const args = ['cp', 'web01@latest:vda/etc', 'web01@latest:vda/empty', out]
    t.equal(virtvault('bare', args).exit, 0)
    t.equal(statSync(join(out, 'etc/hostname')).mode & 0o7777, 0o600)
    t.equal(statSync(join(out, 'etc/deep/big')).mode & 0o7777, 0o700)
    writeFileSync(join(out, 'etc/hostname'), 'mine')
    t.equal(virtvault('bare', args).exit, 15, 'everything is in the way')
    t.equal(readFileSync(join(out, 'etc/hostname'), 'utf8'), 'mine')
    t.equal(virtvault('bare', [...args, '--force']).exit, 0)
    t.equal(readFileSync(join(out, 'etc/hostname'), 'utf8'), 'web01\n')
    t.same(readdirSync(out).sort(), ['empty', 'etc'], 'nothing temporary is left')
  })

  await t.test('files of NTFS come out', t => {
    const listed = virtvault('gpt', ['files', 'web01@latest:vda/', '--partition', '1'])
    t.match(listed.stdout, /^big$/m)
    const copy = join(fresh('out'), 'copy')
    t.equal(virtvault('gpt', ['cp', 'web01@latest:vda/big', copy, '--partition', '1']).exit, 0)
    script('cmp "$1" "$2"', copy, join(tree, 'etc/deep/big'))
    t.end()
  })

  await t.test('what a guest had written to its journal alone is there', async t => {
    const image = join(folder, 'journal.img')
    const text = join(folder, 'new-block')
    ext4From(tree, image)
    // The journal gets another first block of etc/hostname; the file system itself keeps the old one.
    writeFileSync(text, Buffer.concat([Buffer.from('newer'), Buffer.alloc(1019)]))
    const block = script('debugfs -R "blocks /etc/hostname" "$1" 2>/dev/null', image).trim()
    const journal = `jo\njw -b ${block} ${text}\njc\n`
    script(
      'printf "%s" "$2" | debugfs -w "$1" >/dev/null 2>&1; dumpe2fs -h "$1" 2>/dev/null | grep -q needs_recovery',
      image,
      journal,
    )
    await storeImage(join(folder, 'journal'), image)
    t.equal(virtvault('journal', ['cp', 'web01@latest:vda/etc/hostname', '-']).stdout, 'newer\0')
  })

  await t.test(
    'nothing that a guest has in its file system writes outside of DEST or speaks to the terminal',
    async t => {
      const evil = fresh('evil')
      const outside = fresh('outside')
      script(
        `cd "$1"; ln -s "$2" dupA; mkdir dupB; echo pwned >dupB/pwned; mkdir slashes; echo pwned >slashes/zzzzzzzzzz
       mkfifo pipe; ln -s "$2/planted" planted; echo pwned >$'red\\e[31m\\nFAKE: line'; printf x >$'\\xff\\xfe'
       mkdir here; echo fine >here/fine; chmod 6777 here/fine`,
        evil,
        outside,
      )
      const image = join(folder, 'evil.img')
      ext4From(evil, image, '-O ^metadata_csum')
      script(
        'debugfs -w -R "mknod devnull c 1 3" "$1" 2>/dev/null; i=$(debugfs -R "stat /here" "$1" 2>/dev/null | sed -n "s/^Inode: \\([0-9]*\\).*/\\1/p"); debugfs -w -R "ln <$i> here/again" "$1" 2>/dev/null',
        image,
      )
      const bytes = readFileSync(image)
      const patch = (from: string, to: string) => {
        for (let at = bytes.indexOf(from); at >= 0; at = bytes.indexOf(from, at + 1)) bytes.write(to, at, 'latin1')
      }
      // Two entries of one name, a link and a directory; and a name that is a path.
      patch('dupB', 'dupA')
      patch('zzzzzzzzzz', '../../evil')
      writeFileSync(image, bytes)
      await storeImage(join(folder, 'evil-store'), image)
      const out = join(fresh('cage'), 'out')
      mkdirSync(out)
      symlinkSync(outside, join(out, 'red'))

      const run = virtvault('evil-store', ['cp', 'web01@latest:vda/', out, '--force'])

      t.equal(run.exit, 3, run.stderr)
      t.same(readdirSync(outside), [], 'no link was followed')
      t.same(readdirSync(join(folder, 'cage')), ['out'])
      t.equal(readFileSync(join(out, 'here/fine'), 'utf8'), 'fine\n')
      t.equal(statSync(join(out, 'here/fine')).mode & 0o7777, 0o700)
      t.equal(script('find "$1" ! -type f ! -type d ! -type l', out), '', 'no device, no pipe')
      t.match(run.stderr, /devnull: left out/)
      t.match(run.stderr, /again: /, 'a directory within itself is told')
      const listed = virtvault('evil-store', ['files', 'web01@latest:vda/'])
      const long = virtvault('evil-store', ['files', 'web01@latest:vda/', '--long'])
      for (const text of [run.stderr, run.stdout, listed.stdout, long.stdout]) {
        t.notMatch(text, /\x1b|^FAKE/m)
      }
      const document: { readonly entries: readonly { name_base64?: string }[] } = JSON.parse(
        virtvault('evil-store', ['files', 'web01@latest:vda/', '--json']).stdout,
      )
      t.match(
        document.entries.find(entry => entry.name_base64 !== undefined),
        { name_base64: '//4=' },
      )
    },
  )

  await t.test('mount shows it until umount, kill -9 or Ctrl-C, and leaves nothing', async t => {
    const at = fresh('mnt')
    const end = async (how: (child: ChildProcess) => void) => {
      const child = spawn(process.execPath, [MAIN, 'mount', 'web01@latest:vda', at], { env: environment('bare') })
      const ended = once(child, 'exit')
      await Promise.race([once(child.stdout, 'data'), ended])
      const text = spawnSync('cat', [join(at, 'etc/hostname')]).stdout.toString()
      t.equal(text, 'web01\n')
      t.not(spawnSync('touch', [join(at, 'new')]).status, 0, 'it is read-only')
      how(child)
      const [code] = (await ended) as [number | null]
      for (const deadline = AbortSignal.timeout(20_000); mountsLeft().length > 0 && !deadline.aborted; ) await delay(50)
      t.same(mountsLeft(), [])
      return code
    }
    t.equal(await end(() => t.equal(virtvault('bare', ['umount', at]).exit, 0)), 0)
    t.equal(await end(child => child.kill('SIGINT')), 0)
    t.equal(await end(child => child.kill('SIGKILL')), null)
    t.equal(virtvault('bare', ['umount', at]).exit, 4, 'nothing is mounted there any more')
    t.equal(virtvault('bare', ['mount', 'web01@latest:vda', folder]).exit, 15, 'a directory with things in it')
    t.equal(virtvault('bare', ['files', 'web01@latest']).exit, 0)
    t.same(readdirSync(join(folder, 'r')), [], 'the folder of the killed one went too')
  })

  await t.test('a missing program is named with its package', t => {
    const bin = fresh('bin')
    for (const tool of ['setpriv', 'nbdfuse', 'nbdkit', 'partx', 'fusermount3', 'umount']) {
      const found = (process.env['PATH'] ?? '')
        .split(delimiter)
        .map(each => join(each, tool))
        .find(path => existsSync(path))
      if (found !== undefined) symlinkSync(found, join(bin, tool))
    }
    const { exit, stderr } = virtvault('bare', ['files', 'web01@latest:vda/'], { PATH: bin })
    t.equal(exit, 1)
    t.match(
      stderr,
      /fuse2fs is not installed {2}\[E_TOOL_MISSING\][^]*apt-get install fuse2fs[^]*apt-get install guestmount/,
    )
    t.same(mountsLeft(), [])
    t.end()
  })
})
