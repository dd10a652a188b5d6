import t from 'tap'

import { isSelected, parseSelector, selectDomains } from '../../../src/model/selector.js'

const domains = ['db01', 'web1', 'web2', 'web-test', 'lab[1]', 'tmp-x'].map((name, at) => ({
  uuid: `00000000-0000-4000-8000-00000000000${at}`,
  name,
}))
const groups = new Map([
  ['prod', ['db01', 'r:^web\\d+$', '!web2']],
  ['lab', ['r:^nothing-']],
])

function names(selectors: string[], more: { groups?: string[]; all?: boolean } = {}): string[] {
  return selectDomains(domains, { selectors, ...more }, groups).domains.map(domain => domain.name)
}

t.test('names, UUIDs, globs and expressions select, each domain once, in the hypervisor’s order', async t => {
  t.strictSame(names(['web2', 'db01', 'web2']), ['db01', 'web2'])
  t.strictSame(names(['00000000-0000-4000-8000-000000000001']), ['web1'])
  t.strictSame(names(['web?']), ['web1', 'web2'])
  t.strictSame(names(['web[!1]', 'd*']), ['db01', 'web2'])
  t.strictSame(names(['r:^(web|db)\\d+$']), ['db01', 'web1', 'web2'])
  t.strictSame(names([], { groups: ['prod'] }), ['db01', 'web1'])
})

t.test('an expression is anchored at the beginning only, as Python’s re.match', async t => {
  t.strictSame(names(['r:web']), ['web1', 'web2', 'web-test'])
  t.throws(() => names(['r:eb']), { code: 'E_NOT_FOUND' })
  t.strictSame(names(['r:(?i)WEB\\d\\Z']), ['web1', 'web2'])
  t.strictSame(names(['r:(?P<letter>w)e']), ['web1', 'web2', 'web-test'])
})

t.test('leaving out wins, whatever the order', async t => {
  t.strictSame(names(['!web-test', 'web*']), ['web1', 'web2'])
  t.strictSame(names(['!r:^(web|tmp)'], { all: true }), ['db01', 'lab[1]'])
})

t.test('a name with a bracket can be given as it is', async t => {
  t.strictSame(names(['lab[1]']), ['lab[1]'])
})

t.test('a selector that matches nothing is an error with the nearest name', async t => {
  t.throws(() => names(['db1']), { code: 'E_NOT_FOUND', message: /"db1".*Did you mean "db01"/ })
  t.throws(() => names(['db01', 'nowhere*']), { code: 'E_NOT_FOUND' })
  t.throws(() => names([], { groups: ['pord'] }), { code: 'E_NOT_FOUND', message: /Did you mean "prod"/ })
  t.throws(() => names([], { groups: ['lab'] }), { code: 'E_NOT_FOUND', why: /nothing-/ })
  t.throws(() => names(['db01', '!db01']), { code: 'E_NOT_FOUND', why: /left out/ })
})

t.test('choosing nothing is a usage error, never everything', async t => {
  t.throws(() => names([]), { code: 'E_USAGE' })
  t.throws(() => names(['!web1']), { code: 'E_USAGE', why: /only exclusions/ })
})

t.test('an exclusion that leaves nothing out is reported', async t => {
  const { idleExclusions } = selectDomains(domains, { selectors: ['web*', '!web-tset', '!web1'] }, groups)

  t.strictSame(idleExclusions, ['!web-tset'])
})

t.test('what cannot be read is refused', async t => {
  for (const text of ['', '!', 'r:', '!r:', 'r:(', 'r:[z-a]', 'x[z-a]']) {
    t.throws(() => parseSelector(text), { code: 'E_USAGE' }, text)
  }
})

t.test('a list of hosts includes and leaves out', async t => {
  const hosts = ['r:^web', '!web-test'].map(parseSelector)

  t.ok(isSelected(domains[1]!, hosts))
  t.notOk(isSelected(domains[3]!, hosts))
  t.notOk(isSelected(domains[0]!, hosts))
})
