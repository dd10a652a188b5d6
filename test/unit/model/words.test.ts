import fc from 'fast-check'
import t from 'tap'

import {
  formatAge,
  formatCountdown,
  formatDuration,
  parseDuration,
  writeDuration,
} from '../../../src/model/duration.js'
import { formatRate, formatSize, parseSize } from '../../../src/model/size.js'
import { didYouMean, editDistance, suggest } from '../../../src/model/suggest.js'

t.test('sizes are read with every unit people write', async t => {
  const sizes: [string, number][] = [
    ['4096', 4096],
    ['512k', 524_288],
    ['4MiB', 4_194_304],
    ['1.5 GiB', 1_610_612_736],
    ['200MiB', 209_715_200],
    ['200MB', 200_000_000],
    ['1T', 1024 ** 4],
    ['0', 0],
    ['10b', 10],
  ]
  for (const [text, bytes] of sizes) t.equal(parseSize(text), bytes, text)
  for (const text of ['', 'k', '-1k', '1 x', '1KiBB', '9999999P', '1e3', '5iB', '0x10', 'NaN']) {
    t.throws(() => parseSize(text), { code: 'E_USAGE' }, text)
  }
})

t.test('sizes are shown with the digits that matter', async t => {
  const shown: [number, string][] = [
    [0, '0 B'],
    [1023, '1023 B'],
    [7.9 * 1024 ** 3, '7.9 GiB'],
    [611 * 1024 ** 2, '611 MiB'],
    [1024 ** 2 - 1, '1.0 MiB'],
    [9.96 * 1024, '10 KiB'],
    [-2048, '-2.0 KiB'],
    [3 * 1024 ** 6, '3072 PiB'],
  ]
  for (const [bytes, text] of shown) t.equal(formatSize(bytes), text)
  t.equal(formatSize(611 * 1024 ** 2, ''), '611MiB')
  t.equal(formatRate(412 * 1024 ** 2), '412 MiB/s')
  t.equal(formatRate(1024 ** 2 / 2, ''), '0.5MiB/s')
})

t.test('a size that is shown reads back within its digits', async () => {
  fc.assert(
    fc.property(
      fc.nat({ max: 2 ** 31 - 1 }).chain(high => fc.nat(2 ** 21).map(low => high * 2 ** 21 + low)),
      bytes => {
        const back = parseSize(formatSize(bytes))
        return Math.abs(back - bytes) <= bytes * 0.051
      },
    ),
  )
})

t.test('durations are read with every unit people write', async t => {
  const durations: [string, number][] = [
    ['30d', 2_592_000_000],
    ['26h', 93_600_000],
    ['10m', 600_000],
    ['10 min', 600_000],
    ['1w', 604_800_000],
    ['2y', 63_072_000_000],
    ['1h30m', 5_400_000],
    ['250ms', 250],
    ['0', 0],
    ['1.5h', 5_400_000],
  ]
  for (const [text, ms] of durations) t.equal(parseDuration(text), ms, text)
  for (const text of ['', '5', 'h', '-1d', '1d 2', '1x', '1d!', '1 month', `${'9'.repeat(30)}y`]) {
    t.throws(() => parseDuration(text), { code: 'E_USAGE' }, text)
  }
})

t.test('a duration that is written reads back exactly', async t => {
  fc.assert(fc.property(fc.nat(), ms => parseDuration(writeDuration(ms)) === ms))
  t.strictSame([600_000, 90_000, 86_400_000, 1, 0].map(writeDuration), ['10m', '90s', '1d', '1ms', '0ms'])
})

t.test('durations are shown short', async t => {
  t.strictSame([110, 9000, 9500, 81_000, 118_000, 7_500_000, 273_600_000, 59_600].map(formatDuration), [
    '0.11s',
    '9s',
    '9.5s',
    '1m21s',
    '1m58s',
    '2h05m',
    '3d04h',
    '1m00s',
  ])
  t.strictSame([5000, 720_000, 21_600_000, 19 * 86_400_000, 800 * 86_400_000, -5].map(formatAge), [
    '5s',
    '12m',
    '6h',
    '19d',
    '2y',
    '0s',
  ])
  t.strictSame([6000, 760_000, 3_723_000, -1].map(formatCountdown), ['0:06', '12:40', '1:02:03', '0:00'])
})

t.test('the nearest word is suggested, a far one is not', async t => {
  const words = ['hourly', 'daily', 'weekly', 'last']

  t.equal(suggest('dayly', words), 'daily')
  t.equal(suggest('HOURYL', words), 'hourly')
  t.equal(suggest('x', words), undefined)
  t.equal(suggest('compression', words), undefined)
  t.equal(didYouMean('dayly', words), ' Did you mean "daily"?')
  t.equal(didYouMean('zzz', words), '')
})

t.test('the distance counts one slip as one', async t => {
  t.strictSame(
    [
      ['', 'abc'],
      ['abc', 'abc'],
      ['abc', 'acb'],
      ['abc', 'ab'],
      ['abc', 'axc'],
    ].map(([a = '', b = '']) => editDistance(a, b)),
    [3, 0, 1, 1, 1],
  )
})
