import { BackupError } from '../base/errors.js'
import { PERIODS } from '../model/calendar.js'
import { BROKEN_CHAIN_POLICIES, DEFAULT_JOB_ID, isJobId } from '../model/domain-job.js'
import type { BrokenChainPolicy, DomainJob, JobSettings, Quiesce } from '../model/domain-job.js'
import { parseDuration, writeDuration } from '../model/duration.js'
import type { KeepCount } from '../model/retention.js'
import { parseScratchDevices } from '../model/scratch-device.js'
import { parseSize } from '../model/size.js'
import { didYouMean } from '../model/suggest.js'
import { buildXml, element, parseXml, textElement, toNode } from './element-xml.js'
import type { XmlElement, XmlNode } from './element-xml.js'

/**
 * Jobs in a domain's own metadata, so that they travel with it:
 *
 *     <jobs><job id="nightly" group="prod">
 *       <schedule timezone="Europe/Berlin" catchUp="yes">0 2 * * *</schedule>
 *       <keep daily="7" yearly="*"/><quiesce>required</quiesce><target>nas</target><exclude disk="vdc"/>
 *     </job></jobs>
 *
 * libvirt adds the prefix when it stores the element and takes it off when it
 * hands it out. People edit this with `virsh edit`: what is unknown is an
 * error, since a misspelt `<schedul>` that is ignored is a backup that never runs.
 */

export const JOB_METADATA_URI = 'https://virtvault.example.org/xmlns/job/1'
export const JOB_METADATA_KEY = 'virtvault'

/** For `virDomainSetMetadata(ELEMENT, xml, JOB_METADATA_KEY, JOB_METADATA_URI)`. One job stands alone, several in `<jobs>`. */
export function encodeJobMetadata(jobs: readonly DomainJob[]): string {
  const elements = jobs.map(jobElement)
  const [only] = elements
  return buildXml(only !== undefined && elements.length === 1 ? only : element('jobs', {}, elements))
}

/**
 * The jobs in what `virDomainGetMetadata` gave. Throws E_CONFIG that lists
 * every part which is not understood.
 */
export function decodeJobMetadata(xml: string): readonly DomainJob[] {
  const root = parseXml(xml)
  const problems: string[] = []
  const elements = root.name === 'jobs' ? root.children : [root]
  if (root.name === 'jobs') checkNames(root, { attributes: [], children: ['job'] }, problems)
  else if (root.name !== 'job') problems.push(`<${root.name}> is not <job> or <jobs>`)
  const jobs = problems.length > 0 ? [] : elements.map(one => readJob(one, problems))
  const ids = jobs.map(job => job.id)
  for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) problems.push(`two jobs have the id "${id}"`)
  if (problems.length > 0) throw unreadable(problems)
  return jobs
}

/**
 * The metadata element of the namespace `uri` within a whole domain XML, as
 * `virDomainGetMetadata` would give it; undefined when there is none.
 */
export function findMetadata(domainXml: string, uri: string): string | undefined {
  const domain = parseXml(domainXml)
  const metadata = domain.children.find(child => child.name === 'metadata')
  const found = metadata === undefined ? undefined : metadata.children.find(child => child.namespace === uri)
  return found === undefined ? undefined : buildXml(toNode(found))
}

// Settings, one element or attribute each.

function readJob(job: XmlElement, problems: string[]): DomainJob {
  checkNames(
    job,
    { attributes: ['id', 'group', 'paused', 'autostart', 'priority'], children: Object.keys(CHILDREN) },
    problems,
  )
  const id = job.attributes.get('id') ?? DEFAULT_JOB_ID
  if (!isJobId(id)) problems.push(`"${id}" is not a job id`)
  const read = reader(problems)
  const settings: Writable<JobSettings> = {}
  read('paused', job.attributes.get('paused'), parseYesNo, value => (settings.paused = value))
  read('autostart', job.attributes.get('autostart'), parseYesNo, value => (settings.autostart = value))
  read('priority', job.attributes.get('priority'), parseInteger, value => (settings.priority = value))
  for (const child of job.children) {
    const shape = CHILDREN[child.name]
    if (shape === undefined) continue
    checkNames(child, { attributes: shape.attributes, children: [] }, problems)
    shape.read(settings, child, read)
  }
  const group = job.attributes.get('group')
  const description = job.children.find(child => child.name === 'description')?.text
  return {
    id,
    ...(group === undefined ? {} : { group }),
    ...(description === undefined ? {} : { description }),
    settings,
  }
}

type Writable<T> = { -readonly [K in keyof T]: T[K] }
type Read = <T>(name: string, text: string | undefined, parse: (text: string) => T, set: (value: T) => void) => void

interface ChildShape {
  readonly attributes: readonly string[]
  read(settings: Writable<JobSettings>, element: XmlElement, read: Read): void
}

const KEEP_COUNTS = ['last', ...PERIODS] as const

const CHILDREN: Readonly<Record<string, ChildShape>> = {
  description: { attributes: [], read: () => undefined },
  schedule: {
    attributes: ['timezone', 'catchUp', 'jitter', 'window'],
    read: (settings, { text, attributes }, read) => {
      settings.schedule = text
      const timeZone = attributes.get('timezone')
      const window = attributes.get('window')
      if (timeZone !== undefined) settings.timeZone = timeZone
      if (window !== undefined) settings.window = window
      read('catchUp', attributes.get('catchUp'), parseYesNo, value => (settings.catchUp = value))
      read('jitter', attributes.get('jitter'), parseDuration, value => (settings.jitter = value))
    },
  },
  keep: {
    attributes: [...KEEP_COUNTS, 'within', 'tags'],
    read: (settings, { attributes }, read) => {
      for (const rule of KEEP_COUNTS)
        read(rule, attributes.get(rule), parseKeepCount, value => (settings[rule] = value))
      read('within', attributes.get('within'), parseDuration, value => (settings.within = value))
      const tags = attributes.get('tags')
      if (tags !== undefined) settings.keepTags = tags.split(/[\s,]+/).filter(tag => tag !== '')
    },
  },
  quiesce: text('quiesce', parseQuiesce, (settings, value) => (settings.quiesce = value)),
  target: list((settings, value) => (settings.targets = [...(settings.targets ?? []), value])),
  disk: list((settings, value) => (settings.disks = [...(settings.disks ?? []), value]), 'name'),
  exclude: list((settings, value) => (settings.excludeDisks = [...(settings.excludeDisks ?? []), value]), 'disk'),
  freeze: list((settings, value) => (settings.freezeMounts = [...(settings.freezeMounts ?? []), value]), 'mount'),
  tag: list((settings, value) => (settings.tags = [...(settings.tags ?? []), value])),
  depth: text('depth', parseInteger, (settings, value) => (settings.depth = value)),
  connections: text('connections', parseInteger, (settings, value) => (settings.connections = value)),
  bwlimit: text('bwlimit', parseSize, (settings, value) => (settings.bwlimit = value)),
  minChange: text('minChange', parseSize, (settings, value) => (settings.minChange = value)),
  scratchDir: text('scratchDir', String, (settings, value) => (settings.scratchDir = value)),
  scratch: {
    attributes: ['disk', 'dev'],
    read: (settings, { attributes }, read) => {
      const text = `${attributes.get('disk') ?? ''}=${attributes.get('dev') ?? ''}`
      const all = [...(settings.scratchDevices ?? []), text]
      read(
        'scratch',
        text,
        () => parseScratchDevices(all),
        () => (settings.scratchDevices = all),
      )
    },
  },
  onBrokenChain: text('onBrokenChain', parseBrokenChain, (settings, value) => (settings.onBrokenChain = value)),
  disableIfPoweredOff: text(
    'disableIfPoweredOff',
    parseYesNo,
    (settings, value) => (settings.disableIfPoweredOff = value),
  ),
  startPaused: text('startPaused', parseYesNo, (settings, value) => (settings.startPaused = value)),
  prune: text('prune', parseYesNo, (settings, value) => (settings.prune = value)),
}

function text<T>(
  name: string,
  parse: (text: string) => T,
  set: (settings: Writable<JobSettings>, value: T) => void,
): ChildShape {
  return {
    attributes: [],
    read: (settings, element, read) => read(name, element.text, parse, value => set(settings, value)),
  }
}

/** An element that may be repeated; its value is an attribute, or its text. */
function list(add: (settings: Writable<JobSettings>, value: string) => void, attribute?: string): ChildShape {
  return {
    attributes: attribute === undefined ? [] : [attribute],
    read: (settings, element, read) => {
      const value = attribute === undefined ? element.text : (element.attributes.get(attribute) ?? '')
      read(element.name, value, parseName, found => add(settings, found))
    },
  }
}

function jobElement({ id, group, description, settings }: DomainJob): XmlNode {
  const own = {
    id: id === DEFAULT_JOB_ID ? undefined : id,
    group,
    paused: yesNo(settings.paused),
    autostart: yesNo(settings.autostart),
    priority: settings.priority,
  }
  const many = (name: string, values: readonly string[] | undefined, attribute?: string) =>
    (values ?? []).map(value =>
      attribute === undefined ? textElement(name, value) : element(name, { [attribute]: value }, []),
    )
  const one = (name: string, value: string | number | undefined) =>
    value === undefined ? [] : [textElement(name, value)]
  const keep = {
    ...Object.fromEntries(KEEP_COUNTS.map(rule => [rule, settings[rule]])),
    within: settings.within === undefined ? undefined : writeDuration(settings.within),
    tags: settings.keepTags?.join(' '),
  }
  const timing = {
    timezone: settings.timeZone,
    catchUp: yesNo(settings.catchUp),
    jitter: settings.jitter === undefined ? undefined : writeDuration(settings.jitter),
    window: settings.window,
  }
  const hasKeep = Object.values(keep).some(value => value !== undefined)
  return element('job', own, [
    ...one('description', description),
    ...(settings.schedule === undefined ? [] : [textElement('schedule', settings.schedule, timing)]),
    ...(hasKeep ? [element('keep', keep, [])] : []),
    ...one('quiesce', settings.quiesce === true ? 'yes' : settings.quiesce === false ? 'no' : settings.quiesce),
    ...many('target', settings.targets),
    ...many('disk', settings.disks, 'name'),
    ...many('exclude', settings.excludeDisks, 'disk'),
    ...many('freeze', settings.freezeMounts, 'mount'),
    ...many('tag', settings.tags),
    ...one('depth', settings.depth),
    ...one('connections', settings.connections),
    ...one('bwlimit', settings.bwlimit),
    ...one('minChange', settings.minChange),
    ...one('scratchDir', settings.scratchDir),
    ...[...parseScratchDevices(settings.scratchDevices ?? [])].map(([disk, dev]) =>
      element('scratch', { disk, dev }, []),
    ),
    ...one('onBrokenChain', settings.onBrokenChain),
    ...one('disableIfPoweredOff', yesNo(settings.disableIfPoweredOff)),
    ...one('startPaused', yesNo(settings.startPaused)),
    ...one('prune', yesNo(settings.prune)),
  ])
}

/** Reads an optional value, and notes what is wrong with it instead of throwing. */
function reader(problems: string[]): Read {
  return (name, text, parse, set) => {
    if (text === undefined) return
    try {
      set(parse(text))
    } catch (error) {
      if (!(error instanceof BackupError)) throw error
      problems.push(`${name}: ${error.message}`)
    }
  }
}

function checkNames(
  element: XmlElement,
  known: { readonly attributes: readonly string[]; readonly children: readonly string[] },
  problems: string[],
): void {
  for (const name of element.attributes.keys()) {
    if (known.attributes.includes(name) || name === 'xmlns' || name.startsWith('xmlns:')) continue
    problems.push(`<${element.name}> has no attribute "${name}".${didYouMean(name, known.attributes)}`)
  }
  for (const { name } of element.children) {
    if (!known.children.includes(name)) {
      problems.push(`<${element.name}> has no element <${name}>.${didYouMean(name, known.children)}`)
    }
  }
}

function unreadable(problems: readonly string[]): BackupError {
  return new BackupError('E_CONFIG', 'the job in the domain’s metadata cannot be read', {
    why: problems.join('; '),
    hints: [`look at it with: virsh metadata DOMAIN ${JOB_METADATA_URI}`],
  })
}

function parseYesNo(text: string): boolean {
  if (/^(yes|true|on|1)$/i.test(text)) return true
  if (/^(no|false|off|0)$/i.test(text)) return false
  throw new BackupError('E_USAGE', `"${text}" is neither yes nor no`)
}

function yesNo(value: boolean | undefined): string | undefined {
  return value === undefined ? undefined : value ? 'yes' : 'no'
}

function parseInteger(text: string): number {
  if (!/^[+-]?\d{1,9}$/.test(text)) throw new BackupError('E_USAGE', `"${text}" is not a whole number`)
  return Number(text)
}

function parseKeepCount(text: string): KeepCount {
  if (text === '*') return '*'
  if (!/^\d{1,9}$/.test(text)) throw new BackupError('E_USAGE', `"${text}" is neither a number nor *`)
  return Number(text)
}

function parseQuiesce(text: string): Quiesce {
  return text === 'required' ? text : parseYesNo(text)
}

function parseBrokenChain(text: string): BrokenChainPolicy {
  const found = BROKEN_CHAIN_POLICIES.find(policy => policy === text)
  if (found === undefined)
    throw new BackupError('E_USAGE', `"${text}" is not one of ${BROKEN_CHAIN_POLICIES.join(', ')}`)
  return found
}

function parseName(text: string): string {
  if (text === '') throw new BackupError('E_USAGE', 'a name is missing')
  return text
}
