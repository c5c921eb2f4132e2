/**
 * A WAN to try things on: two network namespaces with a link between them, and a command at the source site.
 *
 *   node scripts/harness/wan/wan.ts --link 100Mbit,40ms,outage=5s@30s [--destination 'COMMAND'] [-- COMMAND...]
 *
 * Says where both sites are and what the link really delivers, runs COMMAND at the source site (a shell where none is
 * given), says what passed, and removes everything again, also on Ctrl-C. Needs root. As fields of the environment the
 * command gets SOURCE and DESTINATION, the addresses, and SOURCE_NETNS and DESTINATION_NETNS for `ip netns exec`.
 */
import { parseArgs } from 'node:util'
import { formatSize } from '../../../src/quantity.ts'
import { formatLink, LINK_PROFILES, parseLink } from './link.ts'
import { PacketLink } from './packet-link.ts'

const usage = `usage: wan.ts [--link LINK] [--destination COMMAND] [-- COMMAND...]

  --link LINK             rate, round trip and faults, as 100Mbit,40ms,loss=0.1%,outage=5s@30s, or one of
                          ${Object.keys(LINK_PROFILES).join(', ')} (wan)
  --destination COMMAND   a shell command that runs at the destination site meanwhile
  --no-measure            do not fill the link to measure it first
  COMMAND                 runs at the source site; default: a shell
`

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    allowNegative: true,
    options: {
      link: { type: 'string', default: 'wan' },
      destination: { type: 'string' },
      measure: { type: 'boolean', default: true },
      help: { type: 'boolean', default: false },
    },
  })
  if (values.help) {
    console.log(usage.trimEnd())
    return 0
  }
  const say = (text: string) => console.error(`wan: ${text}`)
  await using link = await PacketLink.open(parseLink(values.link))
  const { source, destination } = link
  say(`${formatLink(link.link)}, by ${link.kind}`)
  say(
    `source ${source.address} in namespace ${source.netns}, destination ${destination.address} in ${destination.netns}`,
  )
  if (values.measure) {
    const { bitsPerSecond, roundTripMs } = await link.measure()
    say(
      `delivers ${(bitsPerSecond / 1e6).toFixed(1)} Mbit/s to one TCP connection, round trip ${roundTripMs.toFixed(1)} ms`,
    )
  }
  const env = {
    ...process.env,
    SOURCE: source.address,
    DESTINATION: destination.address,
    SOURCE_NETNS: source.netns,
    DESTINATION_NETNS: destination.netns,
  }
  const before = await link.counters()
  link.startClock()
  if (values.destination !== undefined) destination.spawn(['sh', '-c', values.destination], { stdio: 'inherit', env })
  const command = positionals.length > 0 ? positionals : [process.env.SHELL ?? 'sh']
  // A Ctrl-C is the command's too; this process ends after it.
  process.on('SIGINT', () => {})
  const child = source.spawn(command, { stdio: 'inherit', env })
  const status = await new Promise<number>((resolve, reject) => {
    child.once('error', reject)
    child.once('exit', (code, signal) => resolve(code ?? (signal === 'SIGINT' ? 130 : 1)))
  })
  const after = await link.counters()
  const drops = await link.drops().catch(() => undefined) // ended by the same Ctrl-C
  say(
    `${formatSize(after.sentBytes - before.sentBytes)} to the destination, ` +
      `${formatSize(after.backSentBytes - before.backSentBytes)} back` +
      (drops ? `; ${drops.lost} packets lost, ${drops.overflowed} dropped by full queues` : ''),
  )
  return status
}

try {
  process.exitCode = await main()
} catch (error) {
  console.error(`error: ${(error as Error).message}`)
  process.exitCode = 2
}
