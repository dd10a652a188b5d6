import { BackupError } from '../base/errors.js'
import { type HelpSubject, readCommandLine, type Request } from './command-line.js'
import { type CommandEntry, loadCommand } from './command-table.js'
import { EXIT } from './exit-codes.js'
import { answerAtOnce } from './front.js'
import { hideSecrets } from './secret-env.js'
import { wantsColor, wantsJson } from './settings.js'
import { surviveBrokenPipes, writeDocument, writeErr, writeOut } from './streams.js'

/** A command that has ended but left something running is not waited for longer than this. */
const LINGER_MS = 5000
/**
 * Runs one command line and sets the exit code of the process. Loads as little
 * as it can. The version and the help that lists commands are front.ts's.
 */
export async function main(argv: readonly string[]): Promise<void> {
  surviveBrokenPipes()
  hideSecrets()
  settleColors(argv)
  // What nobody caught: say so in the agreed form and end at once, since nothing can be relied on any more. A pull's
  // guardian then cleans up after it.
  process.on('uncaughtException', error => {
    void fail(error, argv).finally(() => process.exit())
  })
  try {
    await dispatch(readCommandLine(argv), argv)
  } catch (error) {
    await fail(error, argv)
  }
  setTimeout(() => process.exit(), LINGER_MS).unref()
}

async function dispatch(request: Request, argv: readonly string[]): Promise<void> {
  const json = wantsJson(argv, process.env)
  switch (request.kind) {
    case 'version':
      answerAtOnce(argv)
      return
    case 'help': {
      const lines = await helpLines(request.subject)
      if (json) writeDocument({ schema: 'virtvault/help/1', ok: true, exit: EXIT.ok, text: lines.join('\n') })
      else writeOut(lines)
      return
    }
    case 'incomplete': {
      if (json) throw new BackupError('E_USAGE', 'no command given', { hints: ['see virtvault --help'] })
      writeErr(await helpLines(request.subject))
      process.exitCode = EXIT.usage
      return
    }
    case 'unknown': {
      const hint = request.suggestion === undefined ? 'see virtvault --help' : `virtvault ${request.suggestion}`
      const message = `there is no command "${request.typed}"`
      const why = request.suggestion === undefined ? undefined : `did you mean "${request.suggestion}"?`
      await fail(new BackupError('E_USAGE', message, { why, hints: [hint] }), argv, EXIT.unknownCommand)
      return
    }
    case 'run':
      await runCommand(request.entry, request.argv)
  }
}

async function runCommand(entry: CommandEntry, argv: readonly string[]): Promise<void> {
  const { loadOclifConfig } = await import('./oclif-config.js')
  const command = await loadCommand(entry)
  await command.run([...argv], await loadOclifConfig())
}

/** oclif colours by the environment alone, when it is loaded. */
function settleColors(argv: readonly string[]): void {
  const flag = argv.find((word, index) => argv[index - 1] === '--color' || word.startsWith('--color='))
  const color = wantsColor(flag?.replace('--color=', ''), process.env, process.stdout.isTTY)
  if (color) {
    delete process.env['NO_COLOR']
    process.env['FORCE_COLOR'] = '1'
  } else {
    delete process.env['FORCE_COLOR']
    process.env['NO_COLOR'] = '1'
  }
}

async function helpLines(subject: HelpSubject): Promise<readonly string[]> {
  switch (subject.kind) {
    case 'root':
      return (await import('./root-help.js')).renderRootHelp()
    case 'topic':
      return (await import('./root-help.js')).renderTopicHelp(subject.name)
    case 'code':
      return (await import('./code-help.js')).renderCodeHelp(subject.code)
    case 'command':
      return (await import('./command-help.js')).renderCommandHelp(subject.entry)
  }
}

/** For what fails outside of a command; a command reports its own failures. */
async function fail(error: unknown, argv: readonly string[], exit?: number): Promise<void> {
  const { errorDocument, renderError, reportError } = await import('./error-report.js')
  const report = reportError(error)
  const code = exit ?? report.exit
  process.exitCode = code
  if (wantsJson(argv, process.env)) writeDocument(errorDocument({ ...report, exit: code }))
  else writeErr(renderError(report))
}
