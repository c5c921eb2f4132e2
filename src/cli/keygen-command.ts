import path from 'node:path'
import type { ArgumentsCamelCase, Argv, CommandModule } from 'yargs'
import { ProxyError } from '../errors.ts'
import { PSK_USERNAME_DEFAULT } from '../link/credential-files.ts'
import { CA_KEY_FILE, makePsk, makeX509, type SiteNames, writeCredentialFiles } from '../link/keygen.ts'
import { addX509, renewX509 } from '../link/keygen-renew.ts'
import { parseCount } from '../quantity.ts'
import { printLines } from './output.ts'

interface KeygenArgs {
  kind: 'psk' | 'x509' | 'add' | 'renew'
  dir: string
  name: string[] | undefined
  peerName: string[] | undefined
  username: string
  days: string
  json?: boolean
}

/** Long enough that a first set-up does not end in an outage that nobody expects; renewal is a matter of seconds. */
const DAYS_DEFAULT = '3650'
/** A century: what ends later ends with whoever made it. */
const DAYS_MAX = 36_500

const [SITE_A, SITE_B] = [['site-a'], ['site-b']] as const

/**
 * `pageferry keygen psk|x509 --dir DIR --name SITE_A --peer-name SITE_B`: credentials of two sites, made offline;
 * `add` and `renew` go on with what x509 made.
 */
export const keygenCommand: CommandModule<object, KeygenArgs> = {
  command: 'keygen <kind>',
  describe: 'Make the keys or certificates with which two sites prove themselves to each other',
  builder: (yargs: Argv): Argv<KeygenArgs> =>
    yargs
      .positional('kind', {
        choices: ['psk', 'x509', 'add', 'renew'] as const,
        demandOption: true,
        describe:
          'One shared secret key; a private CA with certificates of both sites; one more site under that CA; new certificates for its sites',
      })
      .option('dir', {
        type: 'string',
        demandOption: true,
        requiresArg: true,
        describe: "Where to put them: one directory per site, in the layout of QEMU's tls-creds",
      })
      .option('name', {
        type: 'string',
        array: true,
        requiresArg: true,
        defaultDescription: '"site-a"; renew: every site',
        describe:
          'Name of the one site, or of the new one; further names or addresses that it is dialled by may follow. renew: sites to renew',
      })
      .option('peer-name', {
        type: 'string',
        array: true,
        requiresArg: true,
        defaultDescription: '"site-b"',
        describe: 'Name of the other site, likewise; not for add and renew',
      })
      .option('username', {
        type: 'string',
        default: PSK_USERNAME_DEFAULT,
        requiresArg: true,
        describe: "psk: name of the key; QEMU's own default",
      })
      .option('days', {
        type: 'string',
        default: DAYS_DEFAULT,
        requiresArg: true,
        describe: 'x509: how long the certificates are valid',
      })
      .option('json', { type: 'boolean', describe: 'Print the names of the files as JSON' })
      .example('$0 keygen renew --dir pki', 'before they expire: same CA, same names, same keys')
      .example('$0 keygen add --dir pki --name lon.example.net', 'a third site')
      .example(
        '$0 keygen x509 --dir pki --name ams.example.net --peer-name fra.example.net',
        'A first set-up',
      ) as never,
  handler: async (args: ArgumentsCamelCase<KeygenArgs>): Promise<void> => {
    const { files, advice } = await keygen(args)
    const paths = files.map(file => path.join(args.dir, file))
    printLines(args.json ? JSON.stringify({ files: paths }) : advice)
  },
}

/** What was made: paths below the directory, and what to do with it. */
export interface Made {
  readonly files: readonly string[]
  readonly advice: string
}

/**
 * Makes and writes the files.
 * @throws ProxyError USAGE, IO
 */
export async function keygen(args: Omit<KeygenArgs, 'json'>): Promise<Made> {
  const { kind, dir, username } = args
  const days = parseCount(args.days, '--days', 1)
  if (days > DAYS_MAX) throw new ProxyError('USAGE', `--days ${args.days}`, undefined, `give 1 to ${DAYS_MAX}`)
  if (kind === 'renew' || kind === 'add') return goOn(kind, { ...args, days })
  const [site, peer] = [args.name ?? SITE_A, args.peerName ?? SITE_B] as unknown as [SiteNames, SiteNames]
  if (site.length === 0 || peer.length === 0)
    throw new ProxyError('USAGE', 'a site without a name', undefined, 'say --name SITE_A --peer-name SITE_B')
  const files = kind === 'psk' ? makePsk(site, peer, username) : await makeX509(site, peer, days)
  writeCredentialFiles(dir, files)
  return { files: files.map(file => file.path), advice: adviceFor({ ...args, kind }, site[0], peer[0]) }
}

/** With the CA that x509 made. @throws USAGE, IO */
async function goOn(
  kind: 'renew' | 'add',
  { dir, name, peerName, days }: Pick<KeygenArgs, 'dir' | 'name' | 'peerName'> & { readonly days: number },
): Promise<Made> {
  if (peerName !== undefined)
    throw new ProxyError('USAGE', `--peer-name with ${kind}`, undefined, 'name sites by --name alone')
  if (kind === 'renew') {
    const { files, sites, until } = await renewX509(dir, days, name)
    const lines = [`Renewed until ${dayOf(until)}, with the names and keys of before:`]
    for (const site of sites) lines.push(...copyLines(dir, site.name))
    lines.push(
      'Then, at each, in any order: systemctl restart pageferry-source (-destination, -serve), when it suits; where the',
      "proxy reads the folder itself (docs/operations.md, Keys that change), systemctl reload 'pageferry-*' is enough.",
    )
    return { files, advice: lines.join('\n') }
  }
  if (name === undefined || name.length === 0)
    throw new ProxyError('USAGE', 'add without --name', undefined, 'say --name SITE, and what else it is dialled by')
  const { files, until, sites } = await addX509(dir, name as unknown as SiteNames, days)
  writeCredentialFiles(dir, files)
  const [site] = name as unknown as SiteNames
  const lines = [
    `Made certificates for ${site} under the CA of ${sites.join(', ')}, valid until ${dayOf(until)}.`,
    ...copyLines(dir, site),
    `Then, at ${site}: --tls-creds /etc/pageferry/tls --peer-name ${sites[0]}`,
    `      at a site that guests of ${site} come to: nothing, where its destination proxy has no --peer-name`,
    `      at a site whose guests go to ${site}: --peer-name ${site}`,
  ]
  return { files: files.map(file => file.path), advice: lines.join('\n') }
}

function dayOf(date: Date): string {
  return date.toISOString().slice(0, 10)
}

/** As a shell takes it. */
function quoted(text: string): string {
  return /^[\w./:@+-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`
}

/** What is for a site, and how it gets there. */
function copyLines(dir: string, site: string): string[] {
  const folder = path.join(dir, site)
  return [
    `  ${folder}/  is for the host of ${site}:`,
    `    tar -C ${quoted(folder)} -c . | ssh root@${site} 'install -d -m 700 /etc/pageferry/tls && tar -C /etc/pageferry/tls -xp --no-same-owner'`,
  ]
}

/** What to copy where, and what to say at each end. */
function adviceFor({ kind, dir, username, days }: Omit<KeygenArgs, 'json'>, a: string, b: string): string {
  const lines =
    kind === 'psk'
      ? [`Made one pre-shared key (username ${username}) for ${a} and ${b}.`]
      : [`Made a private CA, and certificates for ${a} and ${b}, valid for ${days} days.`]
  for (const site of [a, b]) lines.push(...copyLines(dir, site))
  if (kind === 'x509') {
    lines.push(
      `  ${path.join(dir, CA_KEY_FILE)}  signs further certificates: keep it offline, neither site needs it`,
      `Then, at ${a}: --tls-creds /etc/pageferry/tls --peer-name ${b}`,
      `      at ${b}: --tls-creds /etc/pageferry/tls --peer-name ${a}`,
    )
  } else {
    lines.push(
      'Whoever has the key is in: copy it over a safe way only, and remove it here.',
      'Then, at both: --tls-creds /etc/pageferry/tls',
    )
  }
  return lines.join('\n')
}
