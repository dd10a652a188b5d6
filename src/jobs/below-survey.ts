import type { DomainSurvey, PullHypervisor, PullRequest } from './pull-ports.js'

/** The survey with what each disk lies on, where a depth is asked for; nobody needs to know it otherwise. */
export async function withBacking(
  hypervisor: Pick<PullHypervisor, 'backingOf'>,
  survey: DomainSurvey,
  { domain, wish }: Pick<PullRequest, 'domain' | 'wish'>,
  signal: AbortSignal,
): Promise<DomainSurvey> {
  const targets = survey.disks.filter(({ ability }) => ability !== 'skip').map(({ target }) => target)
  if ((wish.depth ?? 0) === 0 || targets.length === 0) return survey
  const found = await hypervisor.backingOf(domain, targets, signal)
  return { ...survey, disks: survey.disks.map(disk => ({ ...disk, backing: found.get(disk.target) })) }
}
