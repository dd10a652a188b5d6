import * as Args from '@oclif/core/args'

import { BackupError } from '../base/errors.js'
import { BaseCommand, type Envelope } from '../cli/base-command.js'
import { EXIT } from '../cli/exit-codes.js'
import { findPoint } from '../cli/points.js'
import { shortId } from '../model/point-ref.js'

export default class TagCommand extends BaseCommand {
  static override description =
    'Adds and removes tags of a recovery point. A tag finds its point (web01@pre-upgrade) and can protect it from prune.'
  static override examples = [
    { command: '<%= config.bin %> tag web01@latest +pre-upgrade', description: 'Add a tag' },
    { command: '<%= config.bin %> tag @3f9c2a1 +gold -- -pre-upgrade', description: 'Add one, remove another' },
  ]
  static override args = {
    point: Args.string({ description: '[DOMAIN]@REF', required: true, ignoreStdin: true }),
    change: Args.string({ description: '+TAG adds, -TAG removes (after --)', multiple: true, ignoreStdin: true }),
  }

  override async run(): Promise<Envelope> {
    const { args, flags } = await this.parse(TagCommand)
    const changes = (args.change ?? []).map(parseChange)
    if (changes.length === 0) throw new BackupError('E_USAGE', 'no tag was named', { hints: ['write +TAG or -TAG'] })
    await using session = await this.session(flags)
    const { openStore } = await import('../cli/wire.js')
    await using store = await openStore(session)
    const { point, notes } = (await findPoint(store, args.point)).noted

    const tags = new Set(notes.tags)
    for (const { adds, tag } of changes) {
      if (adds) tags.add(tag)
      else if (!tags.delete(tag)) throw new BackupError('E_NOT_FOUND', `@${shortId(point.id)} has no tag ${tag}`)
    }
    await store.points.annotate(point, { ...notes, tags: [...tags] })
    session.print([`${point.domain.name}@${shortId(point.id)}  ${tags.size === 0 ? 'no tags' : [...tags].join(', ')}`])
    return this.finish({
      schema: 'virtvault/tag/1',
      ok: true,
      status: 'success',
      exit: EXIT.ok,
      point: point.id,
      tags: [...tags],
    })
  }
}

/** What a point is called by must not look like another way to name one. */
function parseChange(text: string): { readonly adds: boolean; readonly tag: string } {
  const tag = text.slice(1)
  if (!/^[+-]/.test(text) || !/^[A-Za-z][\w.-]*$/.test(tag) || tag === 'latest') {
    throw new BackupError('E_USAGE', `"${text}" does not add or remove a tag`, {
      why: 'a tag begins with a letter and holds letters, digits, dots, dashes and underscores',
      hints: ['write +TAG or -TAG'],
    })
  }
  return { adds: text.startsWith('+'), tag }
}
