import fc from 'fast-check'
import t from 'tap'

import { BackupError } from '../../../src/base/errors.js'
import {
  decodeJobMetadata,
  encodeJobMetadata,
  findMetadata,
  JOB_METADATA_URI,
} from '../../../src/libvirt/job-metadata-xml.js'
import { decodeVirtDupMetadata, VIRT_DUP_METADATA_URI } from '../../../src/libvirt/virt-dup-xml.js'
import type { DomainJob } from '../../../src/model/domain-job.js'

const DOCUMENTED = `<virtvault:job xmlns:virtvault="${JOB_METADATA_URI}" group="prod">
  <virtvault:schedule timezone="Europe/Berlin" catchUp="yes">0 2 * * *</virtvault:schedule>
  <virtvault:keep hourly="24" daily="7" weekly="4" monthly="12" yearly="*"/>
  <virtvault:quiesce>required</virtvault:quiesce><virtvault:target>nas</virtvault:target><virtvault:exclude disk="vdc"/></virtvault:job>`

t.test('the documented job reads as its settings', async t => {
  t.strictSame(decodeJobMetadata(DOCUMENTED), [
    {
      id: 'default',
      group: 'prod',
      settings: {
        schedule: '0 2 * * *',
        timeZone: 'Europe/Berlin',
        catchUp: true,
        hourly: 24,
        daily: 7,
        weekly: 4,
        monthly: 12,
        yearly: '*',
        quiesce: 'required',
        targets: ['nas'],
        excludeDisks: ['vdc'],
      },
    },
  ])
})

t.test('what libvirt hands out, without prefixes, reads the same', async t => {
  const stripped = DOCUMENTED.replaceAll('virtvault:', '').replace('xmlns="', 'xmlns:virtvault="')

  t.strictSame(decodeJobMetadata(stripped), decodeJobMetadata(DOCUMENTED))
})

const word = fc.stringMatching(/^[a-z][a-z0-9/._-]{0,9}$/)
const option = <T>(value: fc.Arbitrary<T>) => fc.option(value, { nil: undefined })
const words = option(fc.array(word, { minLength: 1, maxLength: 3 }))
const text = option(fc.stringMatching(/^[!-~äß]([ -~äß]{0,9}[!-~äß])?$/))
const keep = option(fc.oneof(fc.nat(99), fc.constant('*' as const)))
const integer = option(fc.integer({ min: -9, max: 9999 }))
const settings = fc.record({
  targets: words,
  schedule: text,
  jitter: option(fc.nat(1e9)),
  catchUp: option(fc.boolean()),
  window: option(fc.constant('22:00-06:00')),
  timeZone: option(fc.constant('UTC')),
  autostart: option(fc.boolean()),
  paused: option(fc.boolean()),
  priority: integer,
  disks: words,
  excludeDisks: words,
  depth: integer,
  disableIfPoweredOff: option(fc.boolean()),
  startPaused: option(fc.boolean()),
  quiesce: option(fc.constantFrom(true, false, 'required' as const)),
  freezeMounts: words,
  onBrokenChain: option(fc.constantFrom('full_read' as const, 'fail' as const)),
  connections: integer,
  bwlimit: option(fc.nat()),
  minChange: option(fc.nat()),
  scratchDir: option(word),
  scratchDevices: fc.constantFrom(undefined, ['vda=/dev/vg/s'], ['vda=/dev/vg/a', 'vdb=/dev/vg/b']),
  within: option(fc.nat()),
  keepTags: words,
  tags: words,
  prune: option(fc.boolean()),
  last: keep,
  hourly: keep,
  daily: keep,
  weekly: keep,
  monthly: keep,
  yearly: keep,
})

t.test('every setting survives the way into XML and back', async t => {
  const jobs = fc.uniqueArray(
    fc.record({ id: fc.stringMatching(/^[a-z][a-z0-9-]{0,9}$/), group: text, description: text, settings }),
    {
      selector: job => job.id,
      maxLength: 3,
    },
  )
  fc.assert(
    fc.property(jobs, given => {
      const jobs = given.map(job => present(timed(job)))
      t.same(decodeJobMetadata(encodeJobMetadata(jobs)), jobs)
    }),
    { numRuns: 60 },
  )
})

t.test('one job stands alone, several stand in a list', async t => {
  t.equal(encodeJobMetadata([{ id: 'default', settings: { quiesce: true } }]), '<job><quiesce>yes</quiesce></job>')
  t.match(
    encodeJobMetadata([
      { id: 'a', settings: {} },
      { id: 'b', settings: {} },
    ]),
    /^<jobs><job id="a"\/><job id="b"\/>/,
  )
  t.strictSame(decodeJobMetadata('<jobs/>'), [])
})

t.test('everything that is not understood is listed, with what it may have meant', async t => {
  const xml =
    '<job grup="x" id="a b"><schedul>0 2 * * *</schedul><keep dayly="7" hourly="x"/><depth>deep</depth><target/></job>'

  t.throws(() => decodeJobMetadata(xml), {
    code: 'E_CONFIG',
    why: /"grup". Did you mean "group"\?.*<schedul>. Did you mean "schedule"\?.*"a b" is not a job id.*"dayly". Did you mean "daily"\?.*hourly: "x".*depth: "deep".*target: a name/,
  })
  t.throws(() => decodeJobMetadata('<jobs><job id="a"/><job id="a"/></jobs>'), { code: 'E_CONFIG', why: /two jobs/ })
})

t.test('what is not one well-formed element without a DTD is refused', async t => {
  const hostile = [
    '',
    'x',
    '<job>',
    '<job/><job/>',
    '<!DOCTYPE job [<!ENTITY a "b">]><job>&a;</job>',
    '<other/>',
    '<job>'.repeat(80) + '</job>'.repeat(80),
  ]
  for (const xml of hostile) t.throws(() => decodeJobMetadata(xml), { code: 'E_CONFIG' }, xml.slice(0, 30))
})

t.test('a control character cannot be written', async t => {
  const job = { id: 'a', settings: { targets: ['a\u0001b'] } }

  t.throws(() => encodeJobMetadata([job]), { code: 'E_USAGE' })
})

t.test('metadata is found in a whole domain by its namespace, whatever its prefix', async t => {
  const domain = `<domain><name>a</name><metadata>
    <o:job xmlns:o="https://other.example/1"><o:schedule>1</o:schedule></o:job>
    <vv:job xmlns:vv="${JOB_METADATA_URI}" group="a &amp; b"><vv:target>n&#228;s</vv:target></vv:job>
  </metadata></domain>`

  t.match(decodeJobMetadata(findMetadata(domain, JOB_METADATA_URI)!), [
    { group: 'a & b', settings: { targets: ['näs'] } },
  ])
  t.equal(findMetadata(domain, VIRT_DUP_METADATA_URI), undefined)
  t.equal(findMetadata('<domain/>', JOB_METADATA_URI), undefined)
})

t.test('virt-dup’s smallest job backs up every disk', async t => {
  const xml = `<virt-dup:instance xmlns:virt-dup="${VIRT_DUP_METADATA_URI}"><virt-dup:job/></virt-dup:instance>`

  t.strictSame(decodeVirtDupMetadata(xml), { jobs: [{ id: 'virt-dup-1', settings: {} }], remarks: [] })
})

t.test('virt-dup’s settings are taken over, and what has no equal is remarked', async t => {
  const xml = `<instance><job uuid="7f3c" description="d" schedule="31 * * * *" depth="-1" path="/images/a.qcow2"
    backends="s3" full_schedule="0 0 * * 0" full_retention="4" colour="red"><dev>vda</dev></job><job uuid="b"/></instance>`

  const { jobs, remarks } = decodeVirtDupMetadata(xml)

  t.strictSame(jobs, [
    {
      id: '7f3c',
      description: 'd',
      settings: { schedule: '31 * * * *', disks: ['vda', '/images/a.qcow2'], depth: -1 },
    },
    { id: 'b', settings: {} },
  ])
  t.equal(remarks.length, 4)
  for (const word of ['schedules', 'backends', 'full_retention', 'colour']) {
    t.ok(
      remarks.some(remark => remark.includes(word)),
      word,
    )
  }
  t.throws(() => decodeVirtDupMetadata('<job/>'), { code: 'E_CONFIG' })
  t.throws(() => decodeVirtDupMetadata('<instance><job uuid="a" depth="x"/></instance>'), { code: 'E_CONFIG' })
  t.throws(() => decodeVirtDupMetadata('<instance><job uuid="../a"/></instance>'), { code: 'E_CONFIG' })
})

t.test('whatever the metadata holds, decoding it gives jobs or one E_CONFIG', async () => {
  const piece = fc.oneof(
    fc.string({ maxLength: 6 }),
    fc.constantFrom('<', '>', '/>', '&', '&#0;', '"', '<!--', ']]>', '<?x?>', '\u0000'),
  )
  fc.assert(
    fc.property(fc.nat(DOCUMENTED.length), fc.nat(30), piece, (at, cut, put) => {
      const xml = DOCUMENTED.slice(0, at) + put + DOCUMENTED.slice(at + cut)
      for (const decode of [decodeJobMetadata, decodeVirtDupMetadata]) {
        try {
          decode(xml)
        } catch (error) {
          if (!(error instanceof BackupError) || error.code !== 'E_CONFIG') throw error
        }
      }
    }),
    { numRuns: 500 },
  )
})

/** What stands on the schedule's element needs a schedule to stand on. */
function timed<J extends { settings: { schedule: string | undefined } }>(job: J): J {
  return { ...job, settings: { ...job.settings, schedule: job.settings.schedule ?? '@daily' } }
}

/** Without the keys that are undefined. */
function present(value: unknown): DomainJob {
  return JSON.parse(JSON.stringify(value)) as DomainJob
}
