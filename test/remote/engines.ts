/**
 * Real servers from the distribution: Ceph's radosgw, OpenStack Swift with its S3 face, and nginx. `missing()` gives the reason
 * where they cannot be had: apt-get install ceph-mon ceph-osd radosgw swift-proxy swift-account swift-container swift-object
 * nginx-light.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { accessSync, constants, existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { get } from 'node:http'
import { join } from 'node:path'
import { claimPort } from '../../scripts/harness/claimed-port.ts'
import { makeX509, writeCredentialFiles } from '../../src/link/keygen.ts'
import { until } from '../helpers/until.ts'
import { scratch } from '../template/makers.ts'

type Teardown = (end: () => void) => void

/** Why it cannot be had; undefined where it can. */
export function missing(...programs: readonly string[]): string | undefined {
  const absent = programs.filter(program => found(program) === undefined)
  return absent.length === 0 ? undefined : `not installed: ${absent.join(', ')}`
}

function found(program: string): string | undefined {
  for (const folder of ['/usr/bin', '/usr/sbin']) {
    try {
      accessSync(join(folder, program), constants.X_OK)
      return join(folder, program)
    } catch {}
  }
  return undefined
}

/** A process of ours, ended with the test. What it says is kept for failures. */
function start(program: string, args: readonly string[], teardown: Teardown): { said: () => string } {
  const child: ChildProcess = spawn(found(program)!, args, { stdio: ['ignore', 'pipe', 'pipe'] })
  let text = ''
  for (const stream of [child.stdout!, child.stderr!]) stream.setEncoding('utf8').on('data', piece => (text += piece))
  const exited = once(child, 'exit')
  child.on('error', error => (text += String(error)))
  teardown(async () => {
    child.kill('SIGTERM')
    await exited
  })
  return { said: () => `${program}: ${child.exitCode ?? 'runs'}; ${text.slice(-2000)}` }
}

export const SWIFT_PROGRAMS = [
  'swift-proxy-server',
  'swift-account-server',
  'swift-container-server',
  'swift-object-server',
  'swift-ring-builder',
]

/** What speaks S3. */
export interface S3Engine {
  readonly endpoint: string
  readonly accessKey: string
  readonly secretKey: string
}

/** One of each server, one replica, objects below a temporary folder. */
export async function swift(teardown: Teardown): Promise<S3Engine> {
  const { folder } = scratch(teardown)
  if (!existsSync('/etc/swift/swift.conf')) throw new Error('no /etc/swift/swift.conf: the packages bring it')
  mkdirSync(join(folder, 'devices/d1'), { recursive: true })
  const common = `swift_dir = ${folder}\nuser = ${process.env.USER ?? 'root'}\nworkers = 0\nbind_ip = 127.0.0.1\n`
  const servers: { said: () => string }[] = []
  const ports: number[] = []
  for (const kind of ['account', 'container', 'object']) {
    const port = await claimPort()
    const builder = join(folder, `${kind}.builder`)
    const ring = (...args: string[]): void => void execFileSync(found('swift-ring-builder')!, [builder, ...args])
    ring('create', '4', '1', '0')
    ring('add', `r1z1-127.0.0.1:${port}/d1`, '1')
    ring('rebalance')
    const file = join(folder, `${kind}-server.conf`)
    writeFileSync(
      file,
      `[DEFAULT]\n${common}bind_port = ${port}\ndevices = ${folder}/devices\nmount_check = false\n` +
        `[pipeline:main]\npipeline = ${kind}-server\n[app:${kind}-server]\nuse = egg:swift#${kind}\n`,
    )
    servers.push(start(`swift-${kind}-server`, [file, '-v'], teardown))
    ports.push(port)
  }
  const port = await claimPort()
  const file = join(folder, 'proxy-server.conf')
  writeFileSync(
    file,
    `[DEFAULT]\n${common}bind_port = ${port}\n` +
      '[pipeline:main]\npipeline = catch_errors healthcheck cache s3api tempauth slo proxy-server\n' +
      '[filter:catch_errors]\nuse = egg:swift#catch_errors\n[filter:healthcheck]\nuse = egg:swift#healthcheck\n' +
      // tempauth insists on a cache, and goes without where nobody answers there
      '[filter:cache]\nuse = egg:swift#memcache\nmemcache_servers = 127.0.0.1:1\n' +
      '[filter:s3api]\nuse = egg:swift#s3api\nlocation = us-east-1\n[filter:slo]\nuse = egg:swift#slo\n' +
      '[filter:tempauth]\nuse = egg:swift#tempauth\nuser_test_tester = testing .admin\n' +
      '[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\n',
  )
  servers.push(start('swift-proxy-server', [file, '-v'], teardown))
  const endpoint = `http://127.0.0.1:${port}`
  const said = (): string => servers.map(each => each.said()).join('\n')
  for (const each of [...ports, port]) await until(said, () => answers(`http://127.0.0.1:${each}/healthcheck`))
  return { endpoint, accessKey: 'test:tester', secretKey: 'testing' }
}

export const RADOSGW_PROGRAMS = ['radosgw', 'radosgw-admin', 'ceph', 'ceph-mon', 'ceph-osd', 'monmaptool']

/** A cluster of one monitor and one store of objects in memory, and its gateway; nobody asks who is there. */
export async function radosgw(teardown: Teardown): Promise<S3Engine> {
  const { folder } = scratch(teardown)
  for (const name of ['mon', 'osd', 'rgw']) mkdirSync(join(folder, name))
  const [monitor, port] = [await claimPort(), await claimPort()]
  const [fsid, osd] = [randomUUID(), randomUUID()]
  const file = join(folder, 'ceph.conf')
  const settings = {
    fsid,
    'mon host': `v2:127.0.0.1:${monitor}`,
    'public addr': '127.0.0.1',
    'auth cluster required': 'none',
    'auth service required': 'none',
    'auth client required': 'none',
    'ms mon client mode': 'crc', // the gateway's own would be a secure one, for which it has no key
    'osd objectstore': 'memstore',
    'osd pool default size': '1',
    'osd pool default min size': '1',
    'osd pool default pg num': '8',
    'osd crush chooseleaf type': '0',
    'mon allow pool size one': 'true',
    'mon data': `${folder}/mon`,
    'osd data': `${folder}/osd`,
    'rgw data': `${folder}/rgw`,
    'rgw frontends': `beast endpoint=127.0.0.1:${port}`,
    keyring: `${folder}/keyring`,
    'run dir': folder,
    'admin socket': '',
    'pid file': '',
    'log file': `${folder}/$name.log`,
  }
  const lines = Object.entries(settings).map(([name, value]) => `${name} = ${value}\n`)
  writeFileSync(file, `[global]\n${lines.join('')}`)
  writeFileSync(settings.keyring, '')
  const conf = ['-c', file]
  const tool = (program: string, ...args: string[]): void =>
    void execFileSync(found(program)!, args, { stdio: 'pipe', timeout: 120_000 })
  const map = join(folder, 'monmap')
  tool('monmaptool', '--create', '--fsid', fsid, '--addv', 'a', `[v2:127.0.0.1:${monitor}]`, map)
  tool('ceph-mon', ...conf, '--mkfs', '-i', 'a', '--monmap', map)
  const servers = [start('ceph-mon', [...conf, '-f', '-i', 'a'], teardown)]
  tool('ceph', ...conf, '--connect-timeout', '60', 'osd', 'new', osd)
  tool('ceph-osd', ...conf, '-i', '0', '--mkfs', '--osd-uuid', osd)
  servers.push(start('ceph-osd', [...conf, '-f', '-i', '0'], teardown))
  servers.push(start('radosgw', [...conf, '-d', '-n', 'client.rgw'], teardown))
  const endpoint = `http://127.0.0.1:${port}`
  await until(
    () => servers.map(each => each.said()).join('\n'),
    () => answers(endpoint),
  )
  const [accessKey, secretKey] = ['tester', 'testing']
  const user = ['--uid', 'tester', '--display-name', 'tester', '--access-key', accessKey, '--secret-key', secretKey]
  tool('radosgw-admin', ...conf, '-n', 'client.rgw', 'user', 'create', ...user)
  return { endpoint, accessKey, secretKey }
}

export interface Nginx {
  /** `https://127.0.0.1:PORT` */
  readonly url: string
  /** For NODE_EXTRA_CA_CERTS. */
  readonly caFile: string
}

/** Serves a folder by HTTPS, with a certificate of a CA of its own. */
export async function nginx(root: string, teardown: Teardown): Promise<Nginx> {
  const { folder } = scratch(teardown)
  writeCredentialFiles(folder, await makeX509(['here', '127.0.0.1'], ['there'], 2))
  const [port, plain] = [await claimPort(), await claimPort()]
  const file = join(folder, 'nginx.conf')
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi']
    .map(name => `${name}_temp_path ${folder}/${name};`)
    .join('\n')
  writeFileSync(
    file,
    `daemon off;\nmaster_process off;\npid ${folder}/pid;\nerror_log stderr;\nevents {}\n` +
      `http {\naccess_log off;\n${temporary}\nserver {\nlisten 127.0.0.1:${port} ssl;\nlisten 127.0.0.1:${plain};\n` +
      `ssl_certificate ${folder}/here/server-cert.pem;\nssl_certificate_key ${folder}/here/server-key.pem;\n` +
      `root ${root};\n}\n}\n`,
  )
  const { said } = start('nginx', ['-c', file, '-p', folder, '-e', 'stderr'], teardown)
  await until(said, () => answers(`http://127.0.0.1:${plain}/`))
  return { url: `https://127.0.0.1:${port}`, caFile: join(folder, 'here/ca-cert.pem') }
}

/** Whether anything comes back. */
function answers(url: string): Promise<boolean> {
  return new Promise(done => {
    get(url, response => {
      response.resume()
      done(true)
    }).on('error', () => done(false))
  })
}
