import path from 'node:path'
import type { ArgumentsCamelCase, Argv, CommandModule } from 'yargs'
import { ProxyError } from '../errors.ts'
import { PSK_USERNAME_DEFAULT } from '../link/credential-files.ts'
import {
  CA_KEY_FILE,
  type CredentialFile,
  makePsk,
  makeX509,
  type SiteNames,
  writeCredentialFiles,
} from '../link/keygen.ts'
import { printLines } from './output.ts'

interface KeygenArgs {
  kind: 'psk' | 'x509'
  dir: string
  name: string[]
  peerName: string[]
  username: string
  days: number
  json?: boolean
}

/** Long enough that a first set-up does not end in an outage that nobody expects; renewal is a matter of seconds. */
const DAYS_DEFAULT = 3650

/** `pageferry keygen psk|x509 --dir DIR --name SITE_A --peer-name SITE_B`: credentials of two sites, made offline. */
export const keygenCommand: CommandModule<object, KeygenArgs> = {
  command: 'keygen <kind>',
  describe: 'Make the keys or certificates with which two sites prove themselves to each other',
  builder: (yargs: Argv): Argv<KeygenArgs> =>
    yargs
      .positional('kind', {
        choices: ['psk', 'x509'] as const,
        demandOption: true,
        describe: 'One shared secret key, or a private CA with certificates of both sites',
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
        default: ['site-a'],
        describe: 'Name of the one site; further names or addresses that it is dialled by may follow',
      })
      .option('peer-name', {
        type: 'string',
        array: true,
        default: ['site-b'],
        describe: 'Name of the other site, likewise',
      })
      .option('username', {
        type: 'string',
        default: PSK_USERNAME_DEFAULT,
        requiresArg: true,
        describe: "psk: name of the key; QEMU's own default",
      })
      .option('days', {
        type: 'number',
        default: DAYS_DEFAULT,
        requiresArg: true,
        describe: 'x509: how long the certificates are valid',
      })
      .option('json', { type: 'boolean', describe: 'Print the names of the files as JSON' })
      .example(
        '$0 keygen x509 --dir pki --name ams.example.net --peer-name fra.example.net',
        'A first set-up',
      ) as never,
  handler: async (args: ArgumentsCamelCase<KeygenArgs>): Promise<void> => {
    const files = await keygen(args)
    const paths = files.map(file => path.join(args.dir, file.path))
    printLines(args.json ? JSON.stringify({ files: paths }) : advice(args))
  },
}

/**
 * Makes and writes the files.
 * @throws ProxyError USAGE, IO
 */
export async function keygen(args: Omit<KeygenArgs, 'json'>): Promise<CredentialFile[]> {
  if (args.name.length === 0 || args.peerName.length === 0) {
    throw new ProxyError('USAGE', 'a site without a name', undefined, 'say --name SITE_A --peer-name SITE_B')
  }
  if (!(args.days >= 1 && args.days <= 36_500)) {
    throw new ProxyError('USAGE', `--days ${args.days}`, undefined, '1 to 36500')
  }
  const site = args.name as unknown as SiteNames
  const peer = args.peerName as unknown as SiteNames
  const files = args.kind === 'psk' ? makePsk(site, peer, args.username) : await makeX509(site, peer, args.days)
  writeCredentialFiles(args.dir, files)
  return files
}

/** As a shell takes it. */
function quoted(text: string): string {
  return /^[\w./:@+-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`
}

/** What to copy where, and what to say at each end. */
function advice(args: KeygenArgs): string {
  const [a = '', b = ''] = [args.name[0], args.peerName[0]]
  const lines =
    args.kind === 'psk'
      ? [`Made one pre-shared key (username ${args.username}) for ${a} and ${b}.`]
      : [`Made a private CA, and certificates for ${a} and ${b}, valid for ${args.days} days.`]
  for (const site of [a, b]) {
    const folder = path.join(args.dir, site)
    lines.push(
      `  ${folder}/  is for the host of ${site}:`,
      `    tar -C ${quoted(folder)} -c . | ssh root@${site} 'install -d -m 700 /etc/pageferry/tls && tar -C /etc/pageferry/tls -xp --no-same-owner'`,
    )
  }
  if (args.kind === 'x509') {
    lines.push(
      `  ${path.join(args.dir, CA_KEY_FILE)}  signs further certificates: keep it offline, neither site needs it`,
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
