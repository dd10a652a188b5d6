import * as Flags from '@oclif/core/flags'

import { BackupError } from '../base/errors.js'

/** An image that a point leaves out; without a target that of the only disk that leaves out any. */
export interface BackingFile {
  readonly target: string | undefined
  readonly path: string
}

export const backingFlag = Flags.string({
  summary: 'where an image is now that the point leaves out below a disk (--depth); compared before use (repeatable)',
  helpValue: '[vda=]FILE',
  multiple: true,
  multipleNonGreedy: true,
})

/** Throws E_USAGE. */
export function parseBacking(texts: readonly string[] = []): readonly BackingFile[] {
  const files = texts.map(text => {
    const [, target, path] = /^([A-Za-z0-9]+)=(.+)$/.exec(text) ?? []
    return target === undefined || path === undefined ? { target: undefined, path: text } : { target, path }
  })
  if (files.length > 1 && files.some(({ target }) => target === undefined)) {
    throw new BackupError('E_USAGE', 'of several --backing each names its disk', {
      hints: ['--backing vda=FILE --backing vdb=FILE'],
    })
  }
  return files
}
