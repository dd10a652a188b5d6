import { resolve } from 'node:path'

import * as Args from '@oclif/core/args'
import * as Flags from '@oclif/core/flags'

import { BackupError } from '../base/errors.js'
import { backingFlag, parseBacking } from '../cli/backing-flag.js'
import { BaseCommand, type Envelope } from '../cli/base-command.js'
import {
  exportDocument,
  exportEvent,
  exportLines,
  exportUri,
  storeExportDocument,
  storeExportLines,
} from '../cli/export-view.js'
import { findPoint, selectStored } from '../cli/points.js'
import { parseHostPort } from '../cli/host-port.js'
import type { ExportPlace } from '../cli/export-wire.js'
import type { Session } from '../cli/session.js'
import { plural } from '../cli/output.js'
import { writeErr } from '../cli/streams.js'
import { parseSize } from '../model/size.js'
import type { StorePort } from '../store/store-types.js'

export default class ExportCommand extends BaseCommand {
  static override description =
    'Serves the disks of a recovery point over NBD, read-only, for qemu-img, nbdcopy, guestfish or QEMU itself, until ' +
    'Ctrl-C. What is served is safe from gc meanwhile. A unix socket is for this user alone; TCP needs TLS, or ' +
    '--insecure. With --json, one line on stderr says where to connect, and the document comes at the end.'
  static override examples = [
    { command: '<%= config.bin %> export web01@latest', description: 'On a socket of its own; prints lines to paste' },
    {
      command: '<%= config.bin %> export web01@~1:vda --socket /run/web01.sock --once',
      description: 'One disk, until its client has gone',
    },
    {
      command: '<%= config.bin %> export web01@latest --listen 10.0.0.5:10809 --tls /etc/pki/virtvault',
      description: 'For other hosts',
    },
    {
      command: '<%= config.bin %> export --all --socket /run/store.sock',
      description: 'Everything: nbd+unix:///web01@latest:vda?socket=/run/store.sock',
    },
  ]
  static override args = {
    point: Args.string({
      description:
        '[DOMAIN]@REF[:DISK], REF = latest, ~N, an id, a date or a tag; with --all a domain, for its points only',
      ignoreStdin: true,
    }),
  }
  static override flags = {
    all: Flags.boolean({
      summary: 'all points, as a list of exports named DOMAIN@ID:DISK',
      exclusive: ['disk', 'backing'],
    }),
    socket: Flags.string({ summary: 'listen on this unix socket', helpValue: 'PATH', exclusive: ['listen'] }),
    listen: Flags.string({ summary: 'listen on TCP; port 0 takes a free one', helpValue: 'HOST:PORT' }),
    tls: Flags.string({
      summary: 'directory with server-cert.pem and server-key.pem; with ca-cert.pem clients need certificates',
      helpValue: 'DIR',
      dependsOn: ['listen'],
      exclusive: ['insecure'],
    }),
    insecure: Flags.boolean({ summary: 'serve over TCP to everybody, unencrypted', dependsOn: ['listen'] }),
    disk: Flags.string({
      summary: 'only this disk (repeatable)',
      helpValue: 'vda',
      multiple: true,
      multipleNonGreedy: true,
    }),
    backing: backingFlag,
    once: Flags.boolean({ summary: 'end when the last client has gone' }),
    cache: Flags.string({ summary: 'memory for decoded chunks', helpValue: '64MiB', default: '64MiB' }),
  }

  override async run(): Promise<Envelope> {
    const { args, flags } = await this.parse(ExportCommand)
    await using session = await this.session(flags)
    const { openStore } = await import('../cli/wire.js')
    const { startExport } = await import('../cli/export-wire.js')
    const cacheBytes = parseSize(flags.cache)
    const listen = flags.listen === undefined ? undefined : parseHostPort(flags.listen)
    if (listen !== undefined && flags.tls === undefined && !flags.insecure) {
      throw new BackupError('E_REFUSED', 'whoever reaches a TCP port could read the disks', {
        hints: ['give --tls DIR, or --insecure if the network is yours alone'],
      })
    }
    await using store = await openStore(session)
    const where = listen ?? (flags.socket === undefined ? undefined : { path: resolve(flags.socket) })
    const place = { cacheBytes, where, tlsDirectory: flags.tls }
    const started = session.clock.monotonic()
    if (flags.all) return await this.#serveAll(session, store, { ...place, selector: args.point, once: flags.once })
    if (args.point === undefined) {
      throw new BackupError('E_USAGE', 'export needs a recovery point, or --all', {
        hints: ['virtvault list shows the points'],
      })
    }
    const { noted, ref } = await findPoint(store, args.point)
    if (ref.path !== undefined) {
      throw new BackupError('E_USAGE', 'export serves whole disks, not files within them', {
        hints: [`leave out ${ref.path}`],
      })
    }
    const disks = [...(flags.disk ?? []), ...(ref.disk === undefined ? [] : [ref.disk])]
    const { point } = noted
    await using exported = await startExport(session, store, {
      ...place,
      point,
      disks: disks.length === 0 ? undefined : disks,
      backing: parseBacking(flags.backing),
    })
    const { job, at } = exported
    if (session.settings.json) writeErr([exportEvent(point, job.disks, at)])
    else session.print(exportLines(point, job.disks, at))

    await exported.untilEnd(flags.once, session.signal)
    const outcome = { point, at, disks: job.disks, failedReads: job.failedReads }
    return this.finish(exportDocument({ ...outcome, durationMs: session.clock.monotonic() - started }))
  }

  async #serveAll(
    session: Session,
    store: StorePort,
    wish: ExportPlace & { readonly selector: string | undefined; readonly once: boolean },
  ): Promise<Envelope> {
    const { selector } = wish
    const started = session.clock.monotonic()
    const { startStoreExport } = await import('../cli/export-wire.js')
    const points = await store.points.readable()
    const selectors = selector === undefined ? [] : [selector]
    const domains = selector === undefined ? undefined : selectStored(points, { selectors, groups: [] }, new Map())
    await using exported = await startStoreExport(session, store, { ...wish, domains })
    const { job, at } = exported
    const offered = points.filter(({ domain }) => domains === undefined || domains.has(domain.uuid))
    const disks = offered.flatMap(point => point.disks.map(disk => ({ point, disk })))
    // Those of which images are left out need these images: `export POINT` looks for them, or is told.
    const served = disks.filter(({ disk }) => disk.below === undefined)
    const [newest] = served.toSorted((a, b) => b.point.time - a.point.time)
    const example = newest === undefined ? undefined : `${newest.point.domain.name}@latest:${newest.disk.target}`
    const leftOut = disks.length - served.length
    if (leftOut > 0) {
      session.complain(
        `${plural(leftOut, 'disk')} not served, of which images are left out: export each point by itself`,
      )
    }
    const event = { event: 'serving', uri: exportUri(at, ''), exports: served.length, left_out: leftOut }
    if (session.settings.json) writeErr([JSON.stringify(event)])
    else session.print(storeExportLines(served.length, example, at))
    await exported.untilEnd(wish.once, session.signal)
    const durationMs = session.clock.monotonic() - started
    return this.finish(storeExportDocument({ at, durationMs, failedReads: job.failedReads }))
  }
}
