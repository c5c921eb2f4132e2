/** A command's help, read back: what its manual page and completions are made of. */

export interface Option {
  /** As typed, the long one first; of a positional its name. */
  readonly flags: readonly string[]
  /** What stands behind it, a name in capitals; empty where nothing does. */
  readonly value: string
  readonly text: string
  /** What holds besides: `(required)`, a default. */
  readonly notes: readonly string[]
  readonly choices: readonly string[]
}

export interface Command {
  /** Behind `pageferry`: none is the program itself. */
  readonly words: readonly string[]
  readonly usage: string
  readonly what: string
  readonly commands: readonly { readonly name: string; readonly text: string }[]
  readonly positionals: readonly Option[]
  readonly options: readonly Option[]
  readonly examples: readonly { readonly command: string; readonly text: string }[]
}

/** @param help of yargs, not wrapped. @throws where a line of it is not understood */
export function readHelp(words: readonly string[], help: string): Command {
  const sections = new Map<string, string[]>()
  let section = 'head'
  for (const line of help.split('\n')) {
    const title = /^(Commands|Positionals|Options|Examples):$/.exec(line)?.[1]
    if (title !== undefined) section = title
    else if (line.trim() !== '') sections.set(section, [...(sections.get(section) ?? []), line])
  }
  const [usage = '', ...what] = sections.get('head') ?? []
  return {
    words,
    usage,
    what: what.join(' '),
    commands: (sections.get('Commands') ?? []).map(line => {
      const [, name, text] =
        /^ {2}pageferry (?:\S+ )*?([a-z][a-z-]*)(?: [<[].*?[>\]])* {2,}(.*)$/.exec(line) ?? unread(line)
      return { name: name!, text: text! }
    }),
    positionals: (sections.get('Positionals') ?? []).map(readOption),
    options: (sections.get('Options') ?? []).map(readOption),
    examples: (sections.get('Examples') ?? []).map(line => {
      const [command = '', text = ''] = line.trim().split(/ {2,}/)
      return { command, text }
    }),
  }
}

function unread(line: string): never {
  throw new Error(`a line of help that is not understood: ${line}`)
}

function readOption(line: string): Option {
  const [, names, rest] = /^ +((?:-\w, )?--[\w-]+(?:, -\w)?|[\w-]+)(?: {2,}(.*))?$/.exec(line) ?? unread(line)
  const [, text, notes] =
    /^(.*?)((?:\s*\[(?:array|boolean|string|number|count|required|default: .*?|choices: .*?)\])*)$/.exec(rest ?? '')!
  const has = (note: string): boolean => notes!.includes(`[${note}]`)
  const choices = [...(/\[choices: (.*?)\](?:\s|$)/.exec(notes!)?.[1]?.matchAll(/"([^"]*)"/g) ?? [])].map(
    ([, it]) => it!,
  )
  const standard = /\[default: (.*)\]$/.exec(notes!)?.[1]
  const flags = names!.split(', ').sort((a, b) => b.length - a.length)
  const isFlag = flags[0]!.startsWith('--')
  const told: string[] = []
  if (choices.length > 0) told.push(`One of ${choices.join(', ')}.`)
  if (standard !== undefined && standard !== 'false' && standard !== '[]')
    told.push(`Default: ${standard.replaceAll(/[[\]"]/g, '').replaceAll(',', ', ')}.`)
  if (has('required') && isFlag) told.push('Required.')
  return {
    flags,
    value: !isFlag || has('boolean') ? '' : flags[0]!.slice(2).replace(/^.*-/, '').toUpperCase(),
    text: told.length > 0 && !/[.:]$/.test(text!) ? `${text}.` : text!,
    notes: told,
    choices,
  }
}
