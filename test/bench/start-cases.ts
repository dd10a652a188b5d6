import { type Bench, type BenchCase, type CaseResult, interleave, PROGRAM } from './suite.js'

/** Short runs need many. */
const STARTS = 15

export const startCases: readonly BenchCase[] = [
  { name: 'start', about: 'start-up of --version and --help', run: start },
]

async function start(bench: Bench): Promise<CaseResult[]> {
  const node = process.execPath
  const rows = await interleave({ ...bench, rounds: Math.max(STARTS, bench.rounds), say: () => undefined }, [
    { name: 'node -e 0', command: [node, '-e', '0'] },
    { name: 'virtvault --version', command: [node, PROGRAM, '--version'] },
    { name: 'virtvault --help', command: [node, PROGRAM, '--help'] },
    { name: 'virtvault backup pull --help', command: [node, PROGRAM, 'backup', 'pull', '--help'] },
  ])
  const more = (what: string, of: string, reach: number) => ({
    what,
    of,
    against: 'node -e 0',
    by: 'wall' as const,
    difference: true,
    reach,
  })
  return [
    {
      title: 'Start-up',
      rows,
      // 65 and 110 ms where bare node takes 50 to 57.
      ratios: [
        more('--version, more than bare node', 'virtvault --version', 0.012),
        more('--help, more than bare node', 'virtvault --help', 0.057),
      ],
    },
  ]
}
