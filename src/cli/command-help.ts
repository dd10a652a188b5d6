import type { Command } from '@oclif/core/command'
import { CommandHelp, Help } from '@oclif/core/help'

import { type CommandEntry, select } from './command-table.js'
import { loadOclifConfig } from './oclif-config.js'

/** `virtvault backup pull --help`, in lines. */
export async function renderCommandHelp(entry: CommandEntry): Promise<string[]> {
  await select([entry])
  const config = await loadOclifConfig()
  const command = config.findCommand(entry.id, { must: true })
  return new TextHelp(config, { flagSortOrder: 'none' }).text(command).trimEnd().split('\n')
}

class TextHelp extends Help {
  override CommandHelpClass = PlainCommandHelp

  text(command: Command.Loadable): string {
    return this.formatCommand(command)
  }
}

/** oclif's page with a synopsis that leaves out the flags of every command, and flags that begin at the margin. */
class PlainCommandHelp extends CommandHelp {
  protected override defaultUsage(): string {
    const own = Object.entries(this.command.flags).filter(([, flag]) => flag.helpGroup !== 'GLOBAL')
    const command = { ...this.command, flags: Object.fromEntries(own) }
    return new CommandHelpWithUsage(command, this.config, this.opts).synopsis()
  }

  protected override flags(flags: Command.Flag.Any[]): [string, string | undefined][] | undefined {
    return super.flags(flags)?.map(([label, text]) => [label.trimStart(), text])
  }
}

class CommandHelpWithUsage extends CommandHelp {
  synopsis(): string {
    return this.defaultUsage()
  }
}
