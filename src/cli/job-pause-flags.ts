import * as Args from '@oclif/core/args'
import * as Flags from '@oclif/core/flags'

/** What `job pause` and `job resume` have in common. */

export const PAUSED_DOMAINS = Args.string({
  description: 'domains: a name, a UUID, web*, r:REGEX, !x to leave out',
  required: true,
  multiple: true,
  ignoreStdin: true,
})

export const PAUSED_JOB = Flags.string({ summary: 'only this of their jobs', helpValue: 'ID' })
