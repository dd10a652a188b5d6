import t from 'tap'

import { BackupError, ERROR_CODES, WARNING_CODES } from '../../../src/base/errors.js'
import { readErrorPages, renderCodeHelp } from '../../../src/cli/code-help.js'
import { errorDocument, redactUrls, renderError, reportError } from '../../../src/cli/error-report.js'
import { EXIT_MEANINGS, exitOfError, exitOfItems } from '../../../src/cli/exit-codes.js'

t.test('every error code has an exit code that is documented and not 0', async t => {
  const documented = new Set(EXIT_MEANINGS.map(([code]) => code))
  for (const code of ERROR_CODES) {
    t.not(exitOfError(code), 0, code)
    t.ok(documented.has(exitOfError(code)), code)
  }
})

t.test('docs/errors.md has one entry for every code and none besides', async t => {
  t.strictSame([...readErrorPages().keys()].sort(), [...ERROR_CODES, ...WARNING_CODES].sort())
})

t.test('docs/errors.md names the exit code that the program uses', async t => {
  const pages = readErrorPages()
  for (const code of ERROR_CODES.filter(code => code !== 'E_INTERRUPTED')) {
    t.match(pages.get(code)?.[0], new RegExp(`^Exit ${exitOfError(code)}\\. `), code)
  }
})

t.test('help for a code prints its entry', async t => {
  t.match(renderCodeHelp('E_AGENT').join('\n'), /qemu-guest-agent/)
  t.throws(() => renderCodeHelp('E_NONSENSE'), { code: 'E_NOT_FOUND' })
})

t.test('several domains end with the code of UX', async t => {
  const failed = (exit: number) => ({ status: 'failed', exit }) as const
  const fine = { status: 'success' } as const

  t.equal(exitOfItems([fine, fine]), 0)
  t.equal(exitOfItems([fine, { status: 'skipped' }]), 0, 'skipped is fine')
  t.equal(exitOfItems([fine, { status: 'partial' }]), 3)
  t.equal(exitOfItems([fine, failed(6)]), 3, 'some worked')
  t.equal(exitOfItems([failed(6), failed(6)]), 6, 'all the same')
  t.equal(exitOfItems([failed(6), failed(5)]), 1, 'mixed')
})

t.test('an error says what, why and what to do', async t => {
  const error = new BackupError('E_AGENT', 'db01 was not backed up', {
    why: 'the agent is silent',
    hints: ['start it', 'or accept less'],
  })

  t.strictSame(renderError(reportError(error)), [
    'Error: db01 was not backed up  [E_AGENT]',
    '  Why:  the agent is silent',
    '  Do:   start it',
    '        or accept less',
    '  More: virtvault help E_AGENT',
  ])
  t.strictSame(errorDocument(reportError(error)), {
    schema: 'virtvault/error/1',
    ok: false,
    error: {
      code: 'E_AGENT',
      message: 'db01 was not backed up',
      why: 'the agent is silent',
      hints: ['start it', 'or accept less'],
      ref: 'virtvault help E_AGENT',
      exit: 6,
    },
  })
})

t.test('an error of the operating system keeps its meaning', async t => {
  const full = Object.assign(new Error('ENOSPC: no space left'), { code: 'ENOSPC', syscall: 'write' })

  t.match(reportError(full), { code: 'E_NO_SPACE', exit: 13 })
  t.match(reportError(new TypeError('x is not a function')), { code: 'E_INTERNAL', exit: 1 })
  t.match(reportError('a string'), { code: 'E_INTERNAL', message: 'a string' })
})

t.test('the cause of an error is its why', async t => {
  const error = new BackupError('E_IO', 'cannot write', { cause: new Error('disk on fire') })

  t.equal(reportError(error).why, 'disk on fire')
})

t.test('an error cannot drive the terminal', async t => {
  const lines = renderError(reportError(new BackupError('E_NOT_FOUND', 'no domain "\u001b[2Jx\u202e"\rgone')))

  t.equal(lines[0], 'Error: no domain "\\x1b[2Jx\\u202e"\\x0dgone  [E_NOT_FOUND]')
})

t.test('passwords in URLs are not printed', async t => {
  t.equal(
    redactUrls('at https://joe:secret@host/x and qemu+ssh://root@hv'),
    'at https://joe:***@host/x and qemu+ssh://root@hv',
  )
  t.notMatch(reportError(new BackupError('E_UNREACHABLE', 's3://k:hush@h')).message, /hush/)
})
