import type { BaseCommand } from './base-command.js'

export type CommandClass = typeof BaseCommand &
  (new (
    ...args: ConstructorParameters<typeof BaseCommand>
  ) => BaseCommand)

export type CommandGroup = 'DAILY' | 'KEEPING' | 'SET UP'

/** What is known of a command without loading it. */
export interface CommandEntry {
  /** oclif's id: words joined by `:`. */
  readonly id: string
  readonly group: CommandGroup
  /** At most 70 characters. */
  readonly summary: string
  readonly aliases?: readonly string[] | undefined
  /** Names that arrivals from other tools type. */
  readonly hiddenAliases?: readonly string[] | undefined
  readonly load: () => Promise<{ readonly default: CommandClass }>
}

/** Every command there is, in the order of the help. One that is not here does not exist. */
export const COMMAND_TABLE: readonly CommandEntry[] = [
  {
    id: 'backup:pull',
    group: 'DAILY',
    summary: 'Back up domains: read what changed, store what is new',
    hiddenAliases: ['backup:create', 'bak'],
    load: () => import('../commands/backup/pull.js'),
  },
  {
    id: 'backup:abort',
    group: 'DAILY',
    summary: 'End what a backup that died left behind on domains',
    load: () => import('../commands/backup/abort.js'),
  },
  {
    id: 'backup:reset',
    group: 'DAILY',
    summary: 'Forget our checkpoints of a domain; the next pull reads everything',
    load: () => import('../commands/backup/reset.js'),
  },
  {
    id: 'list',
    group: 'DAILY',
    summary: 'List recovery points',
    aliases: ['ls'],
    hiddenAliases: ['snapshots'],
    load: () => import('../commands/list.js'),
  },
  {
    id: 'show',
    group: 'DAILY',
    summary: 'Show everything about one recovery point',
    load: () => import('../commands/show.js'),
  },
  {
    id: 'status',
    group: 'DAILY',
    summary: 'Show each job, its last result and its next run',
    load: () => import('../commands/status.js'),
  },
  {
    id: 'restore',
    group: 'DAILY',
    summary: 'Bring back disks, domains, or everything on a new host',
    hiddenAliases: ['extract'],
    load: () => import('../commands/restore.js'),
  },
  {
    id: 'export',
    group: 'DAILY',
    summary: 'Serve the disks of a recovery point over NBD, read-only',
    load: () => import('../commands/export.js'),
  },
  {
    id: 'files',
    group: 'DAILY',
    summary: 'Look into the file systems of a recovery point',
    load: () => import('../commands/files.js'),
  },
  {
    id: 'cp',
    group: 'DAILY',
    summary: 'Copy files out of a recovery point',
    load: () => import('../commands/cp.js'),
  },
  {
    id: 'mount',
    group: 'DAILY',
    summary: 'Mount a file system of a recovery point, read-only',
    load: () => import('../commands/mount.js'),
  },
  {
    id: 'umount',
    group: 'DAILY',
    summary: 'Unmount what mount has mounted',
    load: () => import('../commands/umount.js'),
  },
  {
    id: 'forget',
    group: 'KEEPING',
    summary: 'Delete recovery points',
    load: () => import('../commands/forget.js'),
  },
  {
    id: 'tag',
    group: 'KEEPING',
    summary: 'Add and remove tags of a recovery point',
    load: () => import('../commands/tag.js'),
  },
  {
    id: 'hold',
    group: 'KEEPING',
    summary: 'Keep a recovery point from prune and forget',
    load: () => import('../commands/hold.js'),
  },
  {
    id: 'release',
    group: 'KEEPING',
    summary: 'End a hold',
    load: () => import('../commands/release.js'),
  },
  {
    id: 'diff',
    group: 'DAILY',
    summary: 'Say how two recovery points differ',
    load: () => import('../commands/diff.js'),
  },
  {
    id: 'stats',
    group: 'KEEPING',
    summary: 'Say what the store holds, and what deleting would free',
    load: () => import('../commands/stats.js'),
  },
  {
    id: 'verify',
    group: 'KEEPING',
    summary: 'Find out whether recovery points can be restored',
    hiddenAliases: ['check'],
    load: () => import('../commands/verify.js'),
  },
  {
    id: 'prune',
    group: 'KEEPING',
    summary: 'Delete recovery points that no rule keeps',
    hiddenAliases: ['clean'],
    load: () => import('../commands/prune.js'),
  },
  {
    id: 'gc',
    group: 'KEEPING',
    summary: 'Free what no recovery point needs any more',
    load: () => import('../commands/gc.js'),
  },
  {
    id: 'store:check',
    group: 'KEEPING',
    summary: 'Compare the index of a store with its packs',
    load: () => import('../commands/store/check.js'),
  },
  {
    id: 'store:rebuild-index',
    group: 'KEEPING',
    summary: 'Make the index of a store anew from its packs',
    load: () => import('../commands/store/rebuild-index.js'),
  },
  {
    id: 'init',
    group: 'SET UP',
    summary: 'Create a store',
    load: () => import('../commands/init.js'),
  },
  {
    id: 'doctor',
    group: 'SET UP',
    summary: 'Say what a backup would meet here, and what mends it',
    load: () => import('../commands/doctor.js'),
  },
  {
    id: 'job:list',
    group: 'SET UP',
    summary: 'List the jobs of domains',
    load: () => import('../commands/job/list.js'),
  },
  {
    id: 'job:show',
    group: 'SET UP',
    summary: 'Show every setting of a job and who says so',
    load: () => import('../commands/job/show.js'),
  },
  {
    id: 'job:set',
    group: 'SET UP',
    summary: 'Write a job into the metadata of a domain',
    load: () => import('../commands/job/set.js'),
  },
  {
    id: 'job:unset',
    group: 'SET UP',
    summary: 'Remove a job, or settings of it, from a domain',
    load: () => import('../commands/job/unset.js'),
  },
  {
    id: 'job:run',
    group: 'SET UP',
    summary: 'Have the daemon run jobs now',
    load: () => import('../commands/job/run.js'),
  },
  {
    id: 'job:next',
    group: 'SET UP',
    summary: 'Show what runs next',
    load: () => import('../commands/job/next.js'),
  },
  {
    id: 'job:history',
    group: 'SET UP',
    summary: 'Show what ran, with results and figures',
    load: () => import('../commands/job/history.js'),
  },
  {
    id: 'job:pause',
    group: 'SET UP',
    summary: 'Stop jobs from being started by schedule',
    load: () => import('../commands/job/pause.js'),
  },
  {
    id: 'job:resume',
    group: 'SET UP',
    summary: 'Have paused jobs started again',
    load: () => import('../commands/job/resume.js'),
  },
  {
    id: 'job:import',
    group: 'SET UP',
    summary: 'Take over jobs of virt-dup',
    load: () => import('../commands/job/import.js'),
  },
  {
    id: 'daemon:run',
    group: 'SET UP',
    summary: 'Run what is scheduled, until it is ended',
    load: () => import('../commands/daemon/run.js'),
  },
  {
    id: 'daemon:status',
    group: 'SET UP',
    summary: 'Show how the daemon is',
    load: () => import('../commands/daemon/status.js'),
  },
  {
    id: 'daemon:reload',
    group: 'SET UP',
    summary: 'Have the daemon read its configuration now',
    load: () => import('../commands/daemon/reload.js'),
  },
  {
    id: 'systemd:generate',
    group: 'SET UP',
    summary: 'Write units for systemd',
    load: () => import('../commands/systemd/generate.js'),
  },
  {
    id: 'notify:test',
    group: 'SET UP',
    summary: 'Send a test through every notifier',
    load: () => import('../commands/notify/test.js'),
  },
  {
    id: 'config:validate',
    group: 'SET UP',
    summary: 'Check the configuration',
    load: () => import('../commands/config/validate.js'),
  },
  {
    id: 'config:generate',
    group: 'SET UP',
    summary: 'Print a configuration to start from',
    load: () => import('../commands/config/generate.js'),
  },
  {
    id: 'config:show',
    group: 'SET UP',
    summary: 'Print the configuration as it is understood',
    load: () => import('../commands/config/show.js'),
  },
  {
    id: 'config:import',
    group: 'SET UP',
    summary: 'Take over a configuration of virt-backup',
    load: () => import('../commands/config/import.js'),
  },
  {
    id: 'config:schema',
    group: 'SET UP',
    summary: 'Print the JSON schema of the configuration',
    load: () => import('../commands/config/schema.js'),
  },
  {
    id: 'key:list',
    group: 'SET UP',
    summary: 'List the key slots of an encrypted store',
    load: () => import('../commands/key/list.js'),
  },
  {
    id: 'key:add',
    group: 'SET UP',
    summary: 'Add a passphrase to an encrypted store',
    load: () => import('../commands/key/add.js'),
  },
  {
    id: 'key:remove',
    group: 'SET UP',
    summary: 'Remove a passphrase from an encrypted store',
    load: () => import('../commands/key/remove.js'),
  },
  {
    id: 'key:passwd',
    group: 'SET UP',
    summary: 'Change the passphrase of an encrypted store',
    load: () => import('../commands/key/passwd.js'),
  },
  {
    id: 'key:export',
    group: 'SET UP',
    summary: 'Print the key of an encrypted store, for the safe',
    load: () => import('../commands/key/export.js'),
  },
  {
    id: 'key:import',
    group: 'SET UP',
    summary: 'Give a store a passphrase by its printed key',
    load: () => import('../commands/key/import.js'),
  },
]

/** First words of commands that have several. */
export const TOPICS: Readonly<Record<string, string>> = {
  backup: 'Make recovery points',
  config: 'Look at the configuration',
  daemon: 'Run backups on schedule',
  job: 'Look at and change what is scheduled',
  notify: 'Tell people',
  key: 'Manage the keys of an encrypted store',
  systemd: 'Run under systemd',
  store: 'Look at and maintain a store',
}

/** Names under which `entry` is found, its id first. */
export function namesOf(entry: CommandEntry): readonly string[] {
  return [entry.id, ...(entry.aliases ?? []), ...(entry.hiddenAliases ?? [])]
}

/** Loads a command and gives its class what the table knows. */
export async function loadCommand(entry: CommandEntry): Promise<CommandClass> {
  const { default: command } = await entry.load()
  return Object.assign(command, {
    id: entry.id,
    summary: entry.summary,
    aliases: [...(entry.aliases ?? [])],
    hiddenAliases: [...(entry.hiddenAliases ?? [])],
  })
}
