import { dirname } from 'node:path'

import type { LoadedConfig } from '../config/load.js'
import { parseDuration } from '../model/duration.js'
import { parseSchedule } from '../model/schedule.js'
import { calendarEvents } from './calendar-event.js'

/** A file for /etc/systemd/system. */
export interface Unit {
  readonly name: string
  readonly text: string
}

export interface UnitOptions {
  /** Absolute path of the program. */
  readonly program: string
  readonly configFile: string
  /** Of the machine, for schedules without one. */
  readonly timeZone: string
}

/** The daemon under systemd. */
export function daemonUnits(loaded: LoadedConfig, options: UnitOptions): readonly Unit[] {
  const command = `${options.program} daemon run --config ${options.configFile}`
  const text = `[Unit]
Description=virtvault: backups of virtual machines on schedule
Documentation=man:virtvault(1)
After=network-online.target libvirtd.service virtqemud.socket
Wants=network-online.target

[Service]
Type=notify
NotifyAccess=main
ExecStart=${command}
ExecReload=${options.program} daemon reload --config ${options.configFile}
Restart=on-failure
RestartSec=30s
WatchdogSec=60
# What runs is waited for; the daemon asks for more time itself.
TimeoutStopSec=15min
KillMode=mixed
${credentials(loaded)}${HARDENING}${writable(loaded)}
[Install]
WantedBy=multi-user.target
`
  return [{ name: 'virtvault-daemon.service', text }]
}

/**
 * The same schedule without a daemon: one timer per group that has one, and
 * for prune, gc and verify of each target. Jobs in the metadata of domains are
 * not in it: only a daemon sees them. Throws E_UNSUPPORTED for a schedule that
 * systemd cannot say.
 */
export function timerUnits(loaded: LoadedConfig, options: UnitOptions): readonly Unit[] {
  const { config } = loaded
  const zone = config.timezone ?? options.timeZone
  const groups = Object.entries(config.groups ?? {}).flatMap(([name, group]) => {
    const settings = { ...config.default, ...group }
    if (settings.schedule === undefined || settings.paused === true) return []
    // Ends what a killed run left at libvirt; the next run would do it too, but the guest waits for nobody.
    const targets = settings.targets ?? [settings.target ?? '']
    const cleanUp = targets.map(target => `backup abort --quiet${target === '' ? '' : ` -t ${target}`}`)
    const commands = [`backup pull -g ${name}`]
    const timing = {
      schedule: settings.schedule,
      zone: settings.timezone ?? zone,
      jitterMs: settings.jitter === undefined ? 0 : parseDuration(settings.jitter),
      catchUp: settings.catch_up ?? true,
    }
    return pairOf(
      `virtvault-pull-${name}`,
      { what: `back up the group ${name}`, commands, cleanUp, timing },
      { loaded, options },
    )
  })
  const names = Object.keys(config.targets ?? {})
  const stores = (['prune', 'gc', 'verify'] as const).flatMap(verb => {
    const section = config[verb]
    if (section?.schedule === undefined) return []
    const targets = 'targets' in section ? (section.targets ?? names) : names
    const level = verb === 'verify' ? ` --level ${config.verify?.level ?? 'quick'}` : ''
    const commands = targets.map(target => `${verb} -t ${target}${level}${verb === 'verify' ? '' : ' --yes'}`)
    const timing = { schedule: section.schedule, zone, jitterMs: 0, catchUp: true }
    return pairOf(
      `virtvault-${verb}`,
      { what: `${verb} of ${targets.join(', ')}`, commands, timing },
      { loaded, options },
    )
  })
  const timers = [...groups, ...stores, ...bootTimer(loaded, { zone, options })]
  return timers.length === 0 ? [] : [...timers, notifyUnit()]
}

function bootTimer(
  loaded: LoadedConfig,
  { zone, options }: { readonly zone: string; readonly options: UnitOptions },
): readonly Unit[] {
  const { targets, verify } = loaded.config
  const boot = verify?.boot
  if (boot?.schedule === undefined) return []
  const names = verify?.targets ?? Object.keys(targets ?? {})
  const words = [
    ...(boot.groups ?? []).map(group => ` -g ${group}`),
    ...(boot.timeout === undefined ? [] : [` --boot-timeout ${boot.timeout}`]),
  ].join('')
  const commands = names.map(target => `verify -t ${target} --level boot${words}`)
  const timing = { schedule: boot.schedule, zone, jitterMs: 0, catchUp: true }
  return pairOf('virtvault-boot-test', { what: 'boot tests', commands, timing }, { loaded, options })
}

interface Timed {
  readonly what: string
  /** After the program's name; run one after another, a failure does not keep the next ones back. */
  readonly commands: readonly string[]
  /** Run when it has ended, however that was. */
  readonly cleanUp?: readonly string[]
  readonly timing: {
    readonly schedule: string
    readonly zone: string
    readonly jitterMs: number
    readonly catchUp: boolean
  }
}

function pairOf(
  name: string,
  { what, commands, cleanUp = [], timing }: Timed,
  { loaded, options }: { readonly loaded: LoadedConfig; readonly options: UnitOptions },
): readonly Unit[] {
  const { cron, timeZone } = parseSchedule(timing.schedule, timing.zone)
  const run = commands.map(command => `${options.program} ${command} --config ${options.configFile}`)
  const start =
    run.length === 1
      ? run[0]
      : `/bin/sh -c 'status=0; ${run.map(one => `${one} || status=$?`).join('; ')}; exit $status'`
  const service = `[Unit]
Description=virtvault: ${what}
After=network-online.target libvirtd.service virtqemud.socket
OnFailure=virtvault-notify@%n.service

[Service]
Type=oneshot
ExecStart=${start}
${cleanUp.map(command => `ExecStopPost=-${options.program} ${command} --config ${options.configFile}\n`).join('')}TimeoutStartSec=infinity
TimeoutStopSec=5min
${credentials(loaded)}${HARDENING}${writable(loaded)}`
  const timer = `[Unit]
Description=virtvault: ${what}, ${timing.schedule}

[Timer]
${calendarEvents(cron, timeZone)
  .map(event => `OnCalendar=${event}`)
  .join('\n')}
Persistent=${timing.catchUp ? 'true' : 'false'}
RandomizedDelaySec=${Math.round(timing.jitterMs / 1000)}
FixedRandomDelay=true
AccuracySec=1s

[Install]
WantedBy=timers.target
`
  return [
    { name: `${name}.service`, text: service },
    { name: `${name}.timer`, text: timer },
  ]
}

function notifyUnit(): Unit {
  const text = `# What is done when one of the others fails; put your own command here, for instance a mail.
[Unit]
Description=virtvault: %i failed

[Service]
Type=oneshot
ExecStart=/usr/bin/logger -t virtvault -p daemon.err "%i failed: journalctl -u %i"
`
  return { name: 'virtvault-notify@.service', text }
}

/** Measured with systemd-analyze security where it runs; V8 compiles at run time, so memory must be executable. */
const HARDENING = `Nice=10
IOSchedulingClass=best-effort
IOSchedulingPriority=7
LogRateLimitIntervalSec=0
StateDirectory=virtvault
StateDirectoryMode=0700
CacheDirectory=virtvault
CacheDirectoryMode=0700
RuntimeDirectory=virtvault
RuntimeDirectoryMode=0755
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
NoNewPrivileges=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
SystemCallArchitectures=native
SystemCallFilter=@system-service
# Scratch files and sockets are given to the user that QEMU runs as.
CapabilityBoundingSet=CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER
MemoryDenyWriteExecute=no
UMask=0077
`

function writable({ config }: LoadedConfig): string {
  const stores = Object.values(config.targets ?? {}).flatMap(({ path, index_dir: index }) =>
    [path ?? [], index ?? []].flat(),
  )
  const metrics = config.metrics?.textfile
  const others = [
    config.state_dir ?? [],
    metrics === undefined ? [] : dirname(metrics),
    config.default?.scratch_dir ?? [],
  ]
  const paths = [...new Set([...stores, ...others.flat()])]
  return paths.length === 0 ? '' : `ReadWritePaths=${paths.map(path => `-${path}`).join(' ')}\n`
}

/** Those that the configuration names, from where `systemd-creds encrypt` puts them. */
function credentials({ config }: LoadedConfig): string {
  const found = new Set<string>()
  const look = (node: unknown): void => {
    if (typeof node !== 'object' || node === null) return
    for (const [key, value] of Object.entries(node)) {
      if (key.endsWith('_credential') && typeof value === 'string') found.add(value)
      else look(value)
    }
  }
  look(config)
  return [...found].map(name => `LoadCredentialEncrypted=${name}\n`).join('')
}
