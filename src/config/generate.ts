/** Choices that `virtvault config generate` fills in; everything else is there as a comment. */
export interface GenerateOptions {
  /** Path of the store. */
  readonly storePath?: string | undefined
  readonly timeZone?: string | undefined
  readonly schemaPath?: string | undefined
}

const SCHEMA_PATH = '/usr/share/virtvault/config.schema.json'
const STORE_PATH = '/var/lib/virtvault/store'

/**
 * A configuration that works as it stands and explains itself. Lines that begin
 * with `#` and no blank are settings to be taken in by deleting the `#`; with
 * all of them taken in it is valid too.
 */
export function generateConfig(options: GenerateOptions = {}): string {
  const { storePath = STORE_PATH, timeZone = 'UTC', schemaPath = SCHEMA_PATH } = options
  return `# yaml-language-server: $schema=${schemaPath}
version: 1

# Domains backed up at once; 0 = all cores.
threads: 2
# Let others go first: CPU priority 0 to 19, disk priority idle or best-effort:0 to best-effort:7.
#nice: 10
#ionice: idle
# Which libvirt: qemu:///system, or qemu+ssh://root@host/system.
uri: qemu:///system
# Its SASL user. The passphrase is best kept in a file, a command or a systemd credential.
#username: backup
#passphrase_file: /etc/virtvault/libvirt.pass
# For a libvirt on another machine: how its disks are read (ssh, or tls on these ports).
#remote: { nbd: tls, ports: 10809-10872, certificates: /etc/virtvault/pki }
# Of schedules, and of the days and weeks that are kept.
timezone: ${JSON.stringify(timeZone)}

# Where recovery points are kept. Make each with: virtvault init NAME
targets:
  local:
    path: ${JSON.stringify(storePath)}
    # One of passphrase_file, passphrase_command, passphrase_credential:
#    encryption: { passphrase_file: /etc/virtvault/local.key }
    # Domains written to it at once.
#    parallel: 2
#  offsite:
#    path: /mnt/offsite/virtvault
#    encryption: { passphrase_credential: virtvault-offsite }
#    bwlimit: 40MiB

# Inherited by every group, host entry and job.
default:
  target: local
  # Freeze filesystems through the guest agent: true if it answers, required or fail, false never.
  quiesce: true
  # When the dirty bitmap is lost: full_read stores only what changed all the same, fail stops.
  on_broken_chain: full_read
  # The first point of each hour, day, week, month and year; '*' keeps for ever. Without any rule nothing expires.
  last: 2
  hourly: 24
  daily: 7
  weekly: 4
  monthly: 12
  yearly: '*'
#  keep_within: 3d
#  keep_tags: [keep]

groups:
  all:
    # cron, @daily, or systemd's form: 'Mon..Fri 02:00'
    schedule: '0 2 * * *'
    # Start up to this much later, each domain at another moment.
    jitter: 10m
    # Run once after downtime if runs were missed.
    catch_up: true
    # Start only within.
#    window: 22:00-06:00
    # Part of \`virtvault backup pull\` without a selector.
    autostart: true
    # Drop what no rule keeps after each pull.
    prune: true
    # Names, UUIDs, globs, r:REGEX; !... leaves out, whatever the order.
    hosts:
      - 'r:.*'
#      - '!r:^tmp-'
#      - host: db01
#        disks: [vda, vdb]
#        quiesce: required
#        freeze_mounts: [/var/lib/postgresql]

verify:
  schedule: '0 5 * * SUN'
  level: data
  sample: 5%

gc:
  schedule: '30 5 * * SUN'

#commands:
#  - before: domain
#    when: [pull]
#    run: ['/usr/local/bin/quiet-app "$VIRTVAULT_DOMAIN"']
#    on_error: cancel
#  - after: domain
#    states: [partial, failed]
#    run: ['logger -t virtvault "$VIRTVAULT_DOMAIN $VIRTVAULT_STATUS $VIRTVAULT_ERROR_CODE"']

# A notifier that fails never fails a backup. stale: a job that should have run and did not.
#notify:
#  healthchecks: { url_file: /etc/virtvault/hc.url, start: true }
#  ntfy: { topic: 'https://ntfy.example.org/virtvault', on: [failed, partial, stale] }
#  mail: { to: ops@example.org, on: [failed, stale], digest: daily }

#metrics: { textfile: /var/lib/prometheus/node-exporter/virtvault.prom, listen: '127.0.0.1:9477' }
`
}
