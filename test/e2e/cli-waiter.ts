/**
 * A command made of the program's own parts that works until it is ended, for
 * tests of signals and displays: `waiter [--stubborn] [--moving] [global flags]`.
 * Says `ready` and its process id on stdout. --stubborn does not heed the abort.
 */
import * as Flags from '@oclif/core/flags'

import { BaseCommand, type Envelope } from '../../src/cli/base-command.js'
import { loadOclifConfig } from '../../src/cli/oclif-config.js'
import { surviveBrokenPipes } from '../../src/cli/streams.js'

class WaiterCommand extends BaseCommand {
  static override id = 'backup:wait'
  static override flags = {
    stubborn: Flags.boolean(),
    moving: Flags.boolean(),
    name: Flags.string({ default: 'db01' }),
  }

  override async run(): Promise<Envelope> {
    const { flags } = await this.parse(WaiterCommand)
    await using session = await this.session(flags)
    const { progress } = session
    progress.report({ kind: 'started', subject: flags.name, verb: 'pull' })
    const MiB = 1024 ** 2
    const show = (done: number) =>
      progress.report({
        kind: 'disk',
        subject: flags.name,
        target: 'vda',
        totalBytes: 1000 * MiB,
        doneBytes: done * MiB,
        newBytes: 0,
      })
    if (flags.moving) for (let done = 0; done <= 1000; done += 100) show(done)
    else show(400)
    process.stdout.write(`ready ${process.pid}\n`)
    await new Promise((_, reject) => {
      const keepAlive = setInterval(() => undefined, 1000)
      if (flags.stubborn) return
      session.signal.addEventListener('abort', () => {
        clearInterval(keepAlive)
        reject(new Error('fell over because of the abort'))
      })
    })
    throw new Error('never comes here')
  }
}

surviveBrokenPipes()
await WaiterCommand.run(process.argv.slice(2), await loadOclifConfig())
