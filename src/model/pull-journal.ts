/** What a dead pull leaves for its successor, enough to clean up after it. */
export interface PullJournal {
  readonly kind: 'pull'
  readonly domainUuid: string
  readonly domainName: string
  readonly uri: string
  readonly checkpoint: string
  readonly baseCheckpoint?: string | undefined
  readonly socket: string
  readonly scratch: readonly string[]
  /** Freezing was under way or done, thawing not. */
  readonly frozen: boolean
}
