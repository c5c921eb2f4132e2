/** What `pageferry check` makes of what it saw: a sentence for each thing, and the command that mends it. Pure. */
import type { SiteStatus } from '../daemon/control-api.ts'
import type { Expiry, LinkStatus } from '../daemon/status.ts'
import { AGENT, VERSION } from '../daemon/version.ts'
import type { ProxyError } from '../errors.ts'
import type { PeerCertificate, Probed } from '../link/probe.ts'
import { formatRate, plural } from '../quantity.ts'

/** ok: as it should be. warning: works, and should be mended. wrong: does not work. unknown: could not be seen. */
export type FindingState = 'ok' | 'warning' | 'wrong' | 'unknown'

/** One thing that was looked at. Fields keep their names and meaning: scripts read them. */
export interface Finding {
  /** Whom it is about: a peer as it is called here, or this site. */
  readonly of: string
  readonly what:
    | 'keys'
    | 'store'
    | 'peer'
    | 'certificate'
    | 'session'
    | 'version'
    | 'targets'
    | 'sets'
    | 'learning'
    | 'round trip'
    | 'throughput'
    | 'clock'
  readonly state: FindingState
  readonly text: string
  /** What to run, or to do, where; none where there is nothing to mend. */
  readonly mend?: string
}

export const THIS_SITE = 'this site'

const DAY_MS = 86_400_000
/** As long before its end as a proxy's log warns. */
const EXPIRY_WARNING_MS = 30 * DAY_MS
/** What mends a certificate that ends. */
const RENEW = 'pageferry keygen renew --dir DIR, of the folder that has ca-key.pem'
/** Names that one line tells. */
const NAMES_MAX = 8

/** The sets of a host's own store, as it would offer them: the newest first. */
export interface HeldSets {
  readonly folder: string
  readonly digests: readonly string[]
  /** Those of them that were learned. */
  readonly learned: ReadonlySet<string>
}

/** Who was looked at. */
export interface CheckedPeer {
  readonly name: string
  readonly host: string
  readonly port: number
  /** Name that its certificate must carry; undefined: the host. */
  readonly peerName: string | undefined
  readonly isPlaintext: boolean
  /** Targets that listeners of this site lead to; undefined: not known here. */
  readonly targets?: readonly string[] | undefined
  readonly held: HeldSets | undefined
}

/** What a look at a peer says, in the order in which things are reached. */
export function peerFindings(peer: CheckedPeer, found: Probed, nowMs: number): Finding[] {
  const tell = teller(peer.name)
  const { failure, address, hello, certificate, roundTripsMs, bytesPerSecond } = found
  const at = `${peer.host}:${peer.port}`
  if (address === undefined)
    return [tell('peer', 'wrong', `${at}: ${failure!.error.what}`, unreached(peer, failure!.error))]
  const findings = [tell('peer', 'ok', address === peer.host ? `${at} answers` : `${at} answers at ${address}`)]
  if (failure?.stage === 'tls') {
    findings.push(
      tell(
        'certificate',
        'wrong',
        failure.error.what + namesOf(certificate),
        mendTls(peer, failure.error, certificate),
      ),
    )
    return findings
  }
  findings.push(secured(peer, found, nowMs))
  if (failure?.stage === 'hello' || !hello) return [...findings, refused(peer, failure!.error)]
  findings.push(versionOf(peer.name, hello.agent))
  findings.push(targetsOf(peer, hello.targets))
  findings.push(...setsOf(peer, hello.cold ?? []))
  if (roundTripsMs) findings.push(tell('round trip', 'ok', roundTrips(roundTripsMs)))
  if (bytesPerSecond !== undefined)
    findings.push(tell('throughput', 'ok', `${formatRate(bytesPerSecond)} over one connection, for two seconds`))
  if (failure) {
    const mend = `pageferry history; journalctl -u 'pageferry-*' at ${peer.host}: why it ended`
    findings.push(tell(roundTripsMs ? 'throughput' : 'round trip', 'wrong', failure.error.what, mend))
  }
  return findings
}

function teller(of: string) {
  return (what: Finding['what'], state: FindingState, text: string, mend?: string): Finding => ({
    ...{ of, what, state, text },
    ...(mend !== undefined && { mend }),
  })
}

function unreached({ host, port }: CheckedPeer, { cause, action }: ProxyError): string {
  const code = (cause as NodeJS.ErrnoException | undefined)?.code ?? ''
  switch (code) {
    case 'ECONNREFUSED':
      return `at ${host}: systemctl start pageferry-destination (or pageferry-serve), and that its --listen is port ${port}`
    case 'ENOTFOUND':
    case 'EAI_AGAIN':
      return `getent ahosts ${shell(host)}: mend the name, or give the address`
    case 'EHOSTUNREACH':
    case 'ENETUNREACH':
      return `ip route get ${shell(host)}: mend the route`
    default:
      return code === '' && !/no answer/.test(action)
        ? action
        : `let TCP port ${port} of ${host} through firewalls on the way`
  }
}

function namesOf(certificate: PeerCertificate | undefined): string {
  return certificate && certificate.names.length > 0 ? `; its names are ${listed(certificate.names)}` : ''
}

/** It has let us connect, and then said nothing: so does a source proxy, at its own port. */
function mendSilence({ host, port, isPlaintext }: CheckedPeer): string {
  const tls = isPlaintext ? '; --tls-creds, where it has TLS' : ''
  return `at ${host}: journalctl -u 'pageferry-*'${tls}; if ${port} is a source proxy's --listen, this is a port for QEMU, not for proxies`
}

function mendTls(
  peer: CheckedPeer,
  { action, what, code }: ProxyError,
  certificate: PeerCertificate | undefined,
): string {
  const { peerName, host } = peer
  const [name] = certificate?.names ?? []
  if (name !== undefined && /does not carry the name/.test(what))
    return `--peer-name ${shell(name)}, if that is who ${peerName ?? host} should be (peer-name in the file of serve)`
  if (/expired/i.test(what)) return `for ${host}: ${RENEW}`
  return code === 'PEER_LOST' ? mendSilence(peer) : action
}

function secured({ name, isPlaintext, peerName, host }: CheckedPeer, found: Probed, nowMs: number): Finding {
  const tell = teller(name)
  const { certificate, identity } = found
  if (isPlaintext)
    return tell(
      'certificate',
      'warning',
      'no TLS: whoever is on the way reads and changes guests',
      'pageferry keygen x509 --help',
    )
  if (!certificate) return tell('certificate', 'ok', `both sites hold the key of ${identity}`)
  const { names, toMs } = certificate
  const until = `valid until ${new Date(toMs).toISOString().slice(0, 10)}`
  const text = `carries ${peerName ?? host}, ${until}; its names are ${listed(names)}`
  if (toMs - nowMs > EXPIRY_WARNING_MS) return tell('certificate', 'ok', text)
  return tell('certificate', 'warning', text, `for ${host}: ${RENEW}`)
}

function refused(peer: CheckedPeer, { code, what, action }: ProxyError): Finding {
  const { name, host } = peer
  const tell = teller(name)
  switch (code) {
    case 'PROTOCOL_VERSION':
      return tell(
        'version',
        'wrong',
        `${what}; here is ${AGENT}`,
        'apt-get install pageferry: the same version at both sites',
      )
    case 'PEER_AUTH':
      return tell(
        'session',
        'wrong',
        what,
        `at ${host}: its log names our certificate; --peer-name (wan: peer-name) and the CA decide`,
      )
    case 'LIMIT_EXCEEDED':
      return tell(
        'session',
        'wrong',
        what,
        `at ${host}: --sessions-max (sessions-max under wan), or end proxies that nobody needs`,
      )
    default:
      return tell('session', 'wrong', what, code === 'PEER_LOST' ? mendSilence(peer) : action)
  }
}

/** @param agent as the other side tells it */
function versionOf(name: string, agent: string): Finding {
  const tell = teller(name)
  if (agent === AGENT) return tell('version', 'ok', `${agent} at both sites`)
  // they have understood each other's hellos
  const text = `${JSON.stringify(agent)} there, ${AGENT} here: they understand each other`
  return tell('version', 'ok', text)
}

function targetsOf({ name, host, targets: wanted }: CheckedPeer, targets: readonly string[]): Finding {
  const tell = teller(name)
  if (targets.length === 0)
    return tell(
      'targets',
      'wrong',
      'none: no guest can arrive there',
      `at ${host}: --target ADDRESS (targets in the file of serve)`,
    )
  const missing = wanted?.filter(target => !targets.includes(target)) ?? []
  if (missing.length > 0) {
    const mend = `at ${host}: add them to its targets, or lead the listeners of this site to others`
    return tell('targets', 'wrong', `${listed(missing)}: not there; there are ${listed(targets)}`, mend)
  }
  return tell('targets', 'ok', listed(targets))
}

function setsOf({ name, host, held }: CheckedPeer, common: readonly string[]): Finding[] {
  const tell = teller(name)
  if (!held)
    return [
      tell('sets', 'unknown', 'no --store here: guests find nothing that both sites hold', '--store DIR at both sites'),
    ]
  const { digests, learned, folder } = held
  if (digests.length === 0)
    return [tell('sets', 'ok', 'none here yet'), tell('learning', 'unknown', 'nothing was learned here yet')]
  const missing = digests.filter(digest => !common.includes(digest))
  const made = missing.filter(digest => !learned.has(digest))
  const text = `${digests.length - missing.length} of ${digests.length} here are there too`
  const findings = [
    made.length === 0
      ? tell('sets', 'ok', text)
      : tell(
          'sets',
          'warning',
          `${text}; not there: ${listed(made.map(digest => digest.slice(0, 12)))}`,
          `rsync -a ${made
            .slice(0, NAMES_MAX)
            .map(digest => shell(`${folder}/${digest}.pfset`))
            .join(' ')} ${shell(host)}:${shell(`${folder}/`)}`,
        ),
  ]
  const alike = [...learned].filter(digest => common.includes(digest)).length
  if (learned.size === 0) findings.push(tell('learning', 'unknown', 'nothing was learned here yet'))
  else if (alike > 0)
    findings.push(tell('learning', 'ok', `${alike} of ${learned.size} sets that were learned here are there too`))
  else {
    const mend = 'give --learn, --learn-size and --learn-age the same values at both sites'
    findings.push(tell('learning', 'warning', `none of the ${learned.size} sets that were learned here is there`, mend))
  }
  return findings
}

function roundTrips(all: readonly number[]): string {
  const sorted = [...all].sort((a, b) => a - b)
  const [least, middle, most] = [sorted[0]!, sorted[sorted.length >> 1]!, sorted[sorted.length - 1]!]
  return `${ms(middle)} (${ms(least)} to ${ms(most)}, ${all.length} times)`
}

/** Keys of this site as they are read; what should be mended though they work. */
export function keysFindings(role: string, described: string, warnings: readonly string[]): Finding[] {
  const tell = teller(THIS_SITE)
  if (warnings.length === 0) return [tell('keys', 'ok', `${role}: ${described}`)]
  return warnings.map(warning => {
    const [text = '', mend = RENEW] = warning.split('; ')
    return tell('keys', /expired|not valid/.test(text) ? 'wrong' : 'warning', text, mend)
  })
}

/** Keys or a store that cannot be used as they are. */
export function brokenFinding(what: 'keys' | 'store', { what: text, action }: ProxyError): Finding {
  return teller(THIS_SITE)(what, 'wrong', text, action)
}

/** @param synchronized undefined: nobody here can say */
export function clockFinding(synchronized: boolean | undefined): Finding {
  const tell = teller(THIS_SITE)
  if (synchronized === undefined)
    return tell('clock', 'unknown', 'timedatectl does not say whether the clock follows others')
  if (synchronized) return tell('clock', 'ok', 'follows others (NTP); the other site is to be asked there')
  return tell(
    'clock',
    'warning',
    'follows nobody: logs of two sites do not fit, and certificates may seem expired',
    'timedatectl set-ntp true',
  )
}

/** What a running proxy says of its own sessions. */
export function statusFindings(site: SiteStatus, nowMs: number): Finding[] {
  const tell = teller(THIS_SITE)
  const { version, sources, destination } = site
  const findings: Finding[] = [
    version === VERSION
      ? tell('version', 'ok', `the proxy that runs is ${version}, as this command`)
      : tell(
          'version',
          'warning',
          `the proxy that runs is ${version}, this command ${VERSION}`,
          "systemctl restart 'pageferry-*', when it suits: migrations finish first",
        ),
  ]
  for (const { peer, address, session, failure, certificates } of sources) {
    if (session) findings.push(...linkFindings(peer, session))
    else
      findings.push(
        teller(peer)(
          'session',
          'wrong',
          failure ? `none: ${failure.what}` : 'none',
          `pageferry check --peer ${shell(address)}, with the keys of the proxy: it says why`,
        ),
      )
    findings.push(...expiries(certificates, nowMs))
  }
  if (destination) {
    findings.push(...expiries(destination.certificates, nowMs))
    for (const session of destination.sessions) findings.push(...linkFindings(session.peer, session))
    if (destination.sessions.length === 0)
      findings.push(
        tell('session', 'unknown', 'no source proxy has one', 'pageferry check at the other site: it says why'),
      )
  }
  return findings
}

function linkFindings(peer: string, { agent, sets, coldSets, stats }: LinkStatus): Finding[] {
  const tell = teller(peer)
  return [
    tell('session', 'ok', `${stats.state}, with ${plural(stats.connections.length, 'connection')}`),
    versionOf(peer, agent ?? ''), // a proxy of before does not tell it
    tell('sets', 'ok', `${sets + coldSets} that both sites hold`),
    stats.rttMs > 0 ? tell('round trip', 'ok', ms(stats.rttMs)) : tell('round trip', 'unknown', 'not measured yet'),
  ]
}

function expiries(certificates: readonly Expiry[], nowMs: number): Finding[] {
  const tell = teller(THIS_SITE)
  return certificates.flatMap(({ file, expires }) => {
    const leftMs = Date.parse(expires) - nowMs
    if (leftMs > EXPIRY_WARNING_MS) return []
    const text = `${file}: ${leftMs < 0 ? 'expired' : 'expires'} on ${expires.slice(0, 10)}`
    return [tell('keys', leftMs < 0 ? 'wrong' : 'warning', text, RENEW)]
  })
}

function listed(names: readonly string[]): string {
  const shown = names.slice(0, NAMES_MAX).join(', ')
  return names.length > NAMES_MAX ? `${shown} and ${names.length - NAMES_MAX} more` : shown
}

function ms(value: number): string {
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`
}

/** As a shell takes it: names come from the other side, too. */
function shell(text: string): string {
  return /^[\w./:@+-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`
}
