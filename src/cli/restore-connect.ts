import { BackupError } from '../base/errors.js'
import { isLocalUri } from '../model/libvirt-uri.js'
import { redactUrls } from './error-report.js'

/** Throws E_REFUSED where libvirt is on another machine, which would not find `what`. */
export function requireLocal(uri: string, what: string): void {
  if (isLocalUri(uri)) return
  throw new BackupError('E_REFUSED', `${redactUrls(uri)} is on another machine, which would not find ${what}`, {
    why: 'they are written on the machine that runs virtvault',
    hints: [
      'run virtvault on that machine',
      'or restore the images here without --define, and copy them:   virtvault restore POINT --to DIR',
    ],
  })
}
