import type { Command } from '@oclif/core/command'
import { CommandHelp, Help } from '@oclif/core/help'

import { type CommandClass, type CommandEntry, loadCommand } from './command-table.js'
import { loadOclifConfig } from './oclif-config.js'

/** `virtvault backup pull --help`, in lines. */
export async function renderCommandHelp(entry: CommandEntry): Promise<string[]> {
  const command = await loadCommand(entry)
  const config = await loadOclifConfig()
  return new TextHelp(config, { flagSortOrder: 'none' }).text(loadable(entry, command)).trimEnd().split('\n')
}

/** What oclif would have made of the class. */
function loadable(entry: CommandEntry, command: CommandClass): Command.Loadable {
  const { summary, description, examples, args, strict } = command
  return {
    id: entry.id,
    summary,
    description,
    examples,
    strict,
    args: named(args),
    flags: named({ ...command.baseFlags, ...command.flags }),
    aliases: [...(entry.aliases ?? [])],
    hiddenAliases: [...(entry.hiddenAliases ?? [])],
    hidden: false,
    load: () => Promise.resolve(command),
  }
}

function named<T extends object>(parts: Record<string, T> = {}): Record<string, T & { name: string }> {
  return Object.fromEntries(Object.entries(parts).map(([name, part]) => [name, { ...part, name }]))
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
