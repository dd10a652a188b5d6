import * as Args from '@oclif/core/args'
import * as Flags from '@oclif/core/flags'

/** Which domains of a hypervisor a command is about. */
export const LIVING_DOMAINS = Args.string({
  description: 'domains: a name, a UUID, web*, r:REGEX, !x to leave out',
  multiple: true,
  ignoreStdin: true,
})

/** Which domains of a store a command is about; see selectStored. */
export const STORED_DOMAINS = Args.string({
  description: 'domains: a name, web*, r:REGEX, !x',
  multiple: true,
  ignoreStdin: true,
})

/** The groups of which the domains of a store are meant; see selectStored. */
export const STORED_GROUPS = Flags.string({
  char: 'g',
  summary: 'domains of this group (repeatable)',
  multiple: true,
  multipleNonGreedy: true,
})
