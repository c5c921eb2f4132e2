/** Completions for shells, of every command and option. They start nothing: a key press costs no Node. */
import type { Command } from './help.ts'

/** For bash. What is no command, option or choice is a file. */
export function bashCompletion(commands: readonly Command[]): string {
  const cases: string[] = []
  for (const { words, commands: below, options, positionals } of commands) {
    const first = positionals[0]?.choices ?? []
    const all = [...below.map(({ name }) => name), ...first, ...options.flatMap(({ flags }) => flags)]
    cases.push(`    '${words.join(' ')}') words='${all.join(' ')}' ;;`)
  }
  const choices = new Map<string, string>()
  for (const { options } of commands)
    for (const { flags, choices: some } of options) if (some.length > 0) choices.set(flags[0]!, some.join(' '))
  const path = commands.map(({ words }) => words.join(' ')).filter(Boolean)
  return `# bash completion for pageferry, made from its help
_pageferry() {
  local current=\${COMP_WORDS[COMP_CWORD]} previous=\${COMP_WORDS[COMP_CWORD - 1]} command='' words='' word
  COMPREPLY=()
  for word in "\${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    case "\${command:+$command }$word" in
    ${path.map(words => `'${words}'`).join(' | ')}) command="\${command:+$command }$word" ;;
    esac
  done
  case $previous in
${[...choices].map(([flag, some]) => `    ${flag}) words='${some}' ;;`).join('\n')}
  esac
  if [[ -z $words ]]; then
    case $command in
${cases.join('\n')}
    esac
  fi
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}
complete -o bashdefault -o default -F _pageferry pageferry
`
}

/** For zsh, which tells what each is for. */
export function zshCompletion(commands: readonly Command[]): string {
  const quote = (text: string): string => `'${text.replaceAll("'", "'\\''")}'`
  const entry = (name: string, text: string): string => quote(`${name.replaceAll(':', '\\:')}:${text}`)
  const cases = commands.map(({ words, commands: below, options, positionals }) => {
    const entries = [
      ...below.map(({ name, text }) => entry(name, text)),
      ...(positionals[0]?.choices ?? []).map(choice => entry(choice, '')),
      ...options.map(({ flags, text }) => entry(flags[0]!, text)),
    ]
    return `    ${quote(words.join(' '))}) entries=(\n      ${entries.join('\n      ')}\n    ) ;;`
  })
  const path = commands.map(({ words }) => words.join(' ')).filter(Boolean)
  return `#compdef pageferry
# zsh completion for pageferry, made from its help
local command= word
local -a entries
for word in "\${(@)words[2,CURRENT-1]}"; do
  case "\${command:+$command }$word" in
    ${path.map(quote).join('|')}) command="\${command:+$command }$word" ;;
  esac
done
case $command in
${cases.join('\n')}
esac
_describe -t commands 'pageferry' entries || _files
`
}
