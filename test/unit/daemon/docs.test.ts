import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

import t from 'tap'
import { parse } from 'yaml'

import { metricFamilies } from '../../../src/daemon/metrics.js'

const DOCS = fileURLToPath(new URL('../../../../docs/', import.meta.url))

t.test('alert rules and dashboard ask only for metrics that exist', async t => {
  const facts = { version: '1', views: [], figures: new Map(), stores: [], libvirtConnected: true, configOk: true }
  const known = new Set(metricFamilies(facts).map(({ name }) => name))
  const rules = parse(readFileSync(`${DOCS}alerts.yml`, 'utf8')) as { groups: { rules: { expr: string }[] }[] }
  const dashboard = JSON.parse(readFileSync(`${DOCS}grafana.json`, 'utf8')) as {
    panels: { targets: { expr: string }[] }[]
  }
  const expressions = [
    ...rules.groups.flatMap(group => group.rules.map(({ expr }) => expr)),
    ...dashboard.panels.flatMap(({ targets }) => targets.map(({ expr }) => expr)),
  ]

  t.ok(expressions.length > 15)
  for (const expression of expressions) {
    for (const [name] of expression.matchAll(/virtvault_\w+/g)) t.ok(known.has(name), name)
  }
})
