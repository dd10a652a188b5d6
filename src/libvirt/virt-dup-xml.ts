import { BackupError } from '../base/errors.js'
import { isJobId } from '../model/domain-job.js'
import type { DomainJob, JobSettings } from '../model/domain-job.js'
import { parseXml } from './element-xml.js'
import type { XmlElement } from './element-xml.js'

/** Where virt-dup keeps its jobs: `<instance><job uuid="…" schedule="0 2 * * *"><dev>vda</dev></job></instance>`. */
export const VIRT_DUP_METADATA_URI = 'https://www.github.com/spencerharmon/virt-dup'

export interface ImportedJobs {
  readonly jobs: readonly DomainJob[]
  /** What has no equal here, and what to do instead. */
  readonly remarks: readonly string[]
}

/** The jobs that virt-dup left in a domain. Throws E_CONFIG for what is not XML of its form. */
export function decodeVirtDupMetadata(xml: string): ImportedJobs {
  const root = parseXml(xml)
  if (root.name !== 'instance') throw unreadable(`<${root.name}> is not its <instance>`)
  const remarks: string[] = []
  const jobs = root.children
    .filter(child => child.name === 'job')
    .map((job, at) => readVirtDupJob(job, { fallbackId: `virt-dup-${at + 1}`, remarks }))
  return { jobs, remarks }
}

function readVirtDupJob(job: XmlElement, to: { fallbackId: string; remarks: string[] }): DomainJob {
  const attribute = (name: string) => job.attributes.get(name)
  const id = attribute('uuid') ?? to.fallbackId
  const remark = (text: string) => to.remarks.push(`job ${id}: ${text}`)
  if (!isJobId(id)) throw unreadable(`"${id}" is not a job id`)
  const schedules = ['schedule', 'incremental_schedule', 'full_schedule'].flatMap(name => attribute(name) ?? [])
  const [schedule] = schedules
  if (new Set(schedules).size > 1) {
    remark(
      `of its schedules "${schedules.join('", "')}" the first is taken: every pull here is incremental and every point full`,
    )
  }
  if (attribute('backends') !== undefined) {
    remark(`its backends "${attribute('backends') ?? ''}" belong to duplicity: choose a target of the configuration`)
  }
  for (const name of ['full_retention', 'incremental_retention']) {
    if (attribute(name) !== undefined) remark(`its ${name} "${attribute(name) ?? ''}" has no equal: set what to keep`)
  }
  const known = [
    'uuid',
    'path',
    'description',
    'depth',
    'backends',
    'schedule',
    'incremental_schedule',
    'full_schedule',
  ]
  for (const name of job.attributes.keys()) {
    if (!known.includes(name) && !name.endsWith('_retention')) remark(`its attribute ${name} is not known`)
  }
  const disks = [...job.children.filter(child => child.name === 'dev').map(dev => dev.text), attribute('path') ?? '']
  const named = disks.filter(disk => disk !== '')
  const depth = attribute('depth')
  if (depth !== undefined && !/^-?\d{1,9}$/.test(depth)) throw unreadable(`depth "${depth}" is not a whole number`)
  const settings: JobSettings = {
    ...(schedule === undefined ? {} : { schedule }),
    ...(named.length === 0 ? {} : { disks: named }),
    ...(depth === undefined ? {} : { depth: Number(depth) }),
  }
  const description = attribute('description')
  return { id, ...(description === undefined ? {} : { description }), settings }
}

function unreadable(why: string): BackupError {
  return new BackupError('E_CONFIG', 'the metadata of virt-dup cannot be read', { why })
}
