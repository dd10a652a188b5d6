/**
 * How this run was asked to behave, from global flags and environment, in that
 * order. What the configuration file adds is up to wire.ts.
 */
export interface Settings {
  readonly configFile: string | undefined
  /** A flag or a variable named it; else the configuration may. */
  readonly connect: string | undefined
  readonly target: string | undefined
  readonly json: boolean
  readonly progress: ProgressMode
  readonly verbosity: Verbosity
  readonly color: boolean
  readonly yes: boolean
  readonly overrides: readonly string[]
}

export type ProgressMode = 'bar' | 'plain' | 'json' | 'none'
/** 0 quiet, 1 normal, 2 -v, 3 -vv. */
export type Verbosity = 0 | 1 | 2 | 3

export type Environment = Readonly<Record<string, string | undefined>>

export interface Terminal {
  readonly stdoutIsTty: boolean
  readonly stderrIsTty: boolean
}

export interface GlobalFlagValues {
  readonly config?: string | undefined
  readonly connect?: string | undefined
  readonly target?: string | undefined
  readonly progress?: 'auto' | ProgressMode | undefined
  readonly quiet?: boolean | undefined
  readonly verbose?: boolean | undefined
  readonly color?: 'auto' | 'always' | 'never' | undefined
  readonly override?: readonly string[] | undefined
  readonly yes?: boolean | undefined
}

/** Where libvirt is when nobody says. */
export const DEFAULT_CONNECT = 'qemu:///system'

export function resolveSettings(
  flags: GlobalFlagValues,
  surroundings: { readonly argv: readonly string[]; readonly env: Environment; readonly terminal: Terminal },
): Settings {
  const { argv, env, terminal } = surroundings
  const verbosity = flags.quiet === true ? 0 : verbosityOf(argv)
  return {
    configFile: flags.config ?? filled(env['VIRTVAULT_CONFIG']),
    connect: flags.connect ?? filled(env['VIRTVAULT_CONNECT']) ?? filled(env['LIBVIRT_DEFAULT_URI']),
    target: flags.target ?? filled(env['VIRTVAULT_TARGET']),
    json: wantsJson(argv, env),
    progress: progressMode(flags, env, { terminal, verbosity }),
    verbosity,
    color: wantsColor(flags.color, env, terminal.stderrIsTty),
    yes: flags.yes === true,
    overrides: flags.override ?? [],
  }
}

/** Asked for by `--json` before a `--`, or by VIRTVAULT_JSON=1; known before flags are parsed, so that parse errors are JSON too. */
export function wantsJson(argv: readonly string[], env: Environment): boolean {
  return optionWords(argv).includes('--json') || env['VIRTVAULT_JSON'] === '1'
}

/** 1 + number of -v, at most 3. */
export function verbosityOf(argv: readonly string[]): Verbosity {
  let count = 0
  for (const word of optionWords(argv)) {
    if (word === '--verbose') count++
    else if (/^-v+$/.test(word)) count += word.length - 1
  }
  return count === 0 ? 1 : count === 1 ? 2 : 3
}

/** As no-color.org and its relatives say; a flag beats them all. */
export function wantsColor(flag: string | undefined, env: Environment, isTty: boolean): boolean {
  if (flag === 'always') return true
  if (flag === 'never') return false
  if (filled(env['NO_COLOR']) !== undefined) return false
  const forced = env['FORCE_COLOR']
  if (forced !== undefined) return forced !== '0' && forced !== 'false'
  return isTty && env['TERM'] !== 'dumb'
}

function progressMode(
  flags: GlobalFlagValues,
  env: Environment,
  { terminal, verbosity }: { readonly terminal: Terminal; readonly verbosity: Verbosity },
): ProgressMode {
  const asked = flags.progress ?? filled(env['VIRTVAULT_PROGRESS']) ?? 'auto'
  const canDraw = terminal.stderrIsTty && env['TERM'] !== 'dumb'
  switch (asked) {
    case 'json':
    case 'none':
    case 'plain':
      return asked
    case 'bar':
      return canDraw ? 'bar' : 'plain'
    default:
      if (verbosity === 0) return 'none'
      return canDraw ? 'bar' : 'plain'
  }
}

/** Words up to a lone `--`. */
function optionWords(argv: readonly string[]): readonly string[] {
  const end = argv.indexOf('--')
  return end === -1 ? argv : argv.slice(0, end)
}

/** An empty variable counts as unset. */
function filled(value: string | undefined): string | undefined {
  return value === '' ? undefined : value
}
