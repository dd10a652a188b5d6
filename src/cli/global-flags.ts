import * as Flags from '@oclif/core/flags'

/** Flags of every command, in the order of `--help`. Secrets are never flag values: they would show in `ps`. */
export const GLOBAL_FLAGS = {
  json: Flags.boolean({
    summary: 'print one JSON document instead of text (VIRTVAULT_JSON=1)',
    helpGroup: 'GLOBAL',
  }),
  config: Flags.string({
    summary: 'configuration file (VIRTVAULT_CONFIG)',
    helpGroup: 'GLOBAL',
    helpValue: 'FILE',
  }),
  connect: Flags.string({
    char: 'c',
    summary: 'libvirt to talk to (VIRTVAULT_CONNECT, then LIBVIRT_DEFAULT_URI, then qemu:///system)',
    helpGroup: 'GLOBAL',
    helpValue: 'URI',
  }),
  target: Flags.string({
    char: 't',
    summary: 'store: a name from the configuration, a path or a URL (VIRTVAULT_TARGET)',
    helpGroup: 'GLOBAL',
    helpValue: 'NAME|PATH|URL',
  }),
  progress: Flags.option({
    summary: 'how to show progress on stderr (VIRTVAULT_PROGRESS)',
    helpGroup: 'GLOBAL',
    options: ['auto', 'bar', 'plain', 'json', 'none'] as const,
  })(),
  quiet: Flags.boolean({
    char: 'q',
    summary: 'print only results, warnings and errors',
    helpGroup: 'GLOBAL',
    exclusive: ['verbose'],
  }),
  verbose: Flags.boolean({
    char: 'v',
    summary: 'say more; -vv also shows where an error came from',
    helpGroup: 'GLOBAL',
  }),
  color: Flags.option({
    summary: 'colours (NO_COLOR and FORCE_COLOR are honoured)',
    helpGroup: 'GLOBAL',
    options: ['auto', 'always', 'never'] as const,
  })(),
  override: Flags.string({
    summary: 'set one key of the configuration for this run',
    helpGroup: 'GLOBAL',
    helpValue: 'KEY=VALUE',
    multiple: true,
    multipleNonGreedy: true,
  }),
  yes: Flags.boolean({
    char: 'y',
    summary: 'do it without asking',
    helpGroup: 'GLOBAL',
  }),
}
