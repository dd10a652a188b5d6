import { readCommandLine, type Request } from './command-line.js'
import { EXIT } from './exit-codes.js'
import { readPackageJson } from './package-json.js'
import { renderRootHelp, renderTopicHelp } from './root-help.js'
import { wantsJson } from './settings.js'
import { documentText, writeWithoutStream } from './streams.js'

/** Answers what needs neither oclif nor a command: the version, and the help that lists commands. False where more is asked. */
export function answerAtOnce(argv: readonly string[]): boolean {
  const request = readCommandLine(argv)
  const json = wantsJson(argv, process.env)
  if (request.kind === 'version') {
    const { version } = readPackageJson()
    const document = { schema: 'virtvault/version/1', ok: true, version, node: process.versions.node }
    writeWithoutStream(json ? documentText(document) : `virtvault ${version}\n`)
    return true
  }
  const lines = listing(request)
  if (lines === undefined) return false
  const text = lines.join('\n')
  writeWithoutStream(json ? documentText({ schema: 'virtvault/help/1', ok: true, exit: EXIT.ok, text }) : `${text}\n`)
  return true
}

function listing(request: Request): readonly string[] | undefined {
  if (request.kind !== 'help') return undefined
  const { subject } = request
  if (subject.kind === 'root') return renderRootHelp()
  return subject.kind === 'topic' ? renderTopicHelp(subject.name) : undefined
}
