/**
 * A remote store in S3, or in what speaks it. By Amazon's own client, an optional dependency, so that its users have what
 * they set up already: environment, profiles, roles, endpoints. docs/adr/0012-remote-stores.md, 4.
 */
import { Readable } from 'node:stream'
import type { S3Client } from '@aws-sdk/client-s3'
import { isProxyError, ProxyError } from '../errors.ts'
import {
  STORE_ANSWER_BYTES_MAX,
  STORE_ANSWER_MS,
  STORE_LISTINGS_MAX,
  STORE_PART_BYTES,
  STORE_UPLOAD_BYTES_A_SECOND,
} from '../limits.ts'
import { requireSafe, storeAgents } from './http-store.ts'
import {
  bodyOf,
  type ListedObject,
  lost,
  type OpenObject,
  type OpenOptions,
  type ReadAt,
  type RemoteStore,
  readFully,
  refused,
  type SmallObject,
  type StoreWriter,
  strange,
  wholeBody,
} from './remote-store.ts'

/** The version that is tested, as package.json names it. */
const PACKAGE = '@aws-sdk/client-s3'
const PACKAGE_VERSION = '3.1175.0'
/** Where nobody says another: what stores of other makers take. */
const REGION_DEFAULT = 'us-east-1'
const BUCKET = /^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$/
/** Parts that are sent at once, each of them in memory. */
const PARTS_AT_ONCE = 3
/** How often the client sends a request again that got no answer, or one of a server in trouble. */
const ATTEMPTS = 3

const NOT_IMPLEMENTED = 501
/** Of what is written on a condition. */
const REFUSALS = [409, 412, NOT_IMPLEMENTED]

/** What has to be there, or nothing, for something to be written. */
interface Condition {
  readonly IfMatch?: string
  readonly IfNoneMatch?: string
}

type Sdk = typeof import('@aws-sdk/client-s3')

export interface S3StoreOptions {
  /** Allows an endpoint of `http://` on another host: sets cross readable by all on the way. */
  readonly insecure?: boolean | undefined
  readonly answerMs?: number
  readonly stallMs?: number
  readonly partBytes?: number
  /** What stands for the package; tests take it away. */
  readonly load?: () => Promise<Sdk>
}

/** What the client throws, as far as it is read. */
interface ClientError {
  readonly name: string
  readonly message: string
  readonly $metadata?: { readonly httpStatusCode?: number }
}

export class S3Store implements RemoteStore, StoreWriter {
  readonly name: string
  readonly writer = this
  private readonly sdk: Sdk
  private readonly client: S3Client
  private readonly bucket: string
  private readonly prefix: string
  private readonly answerMs: number
  private readonly stallMs: number | undefined
  private readonly partBytes: number
  private knowsConditions = true

  /**
   * Loads the client; asks nobody yet.
   * @param name `s3://BUCKET/PREFIX`
   * @throws USAGE where it is no such name, or the package is not there
   */
  static async of(name: string, options: S3StoreOptions = {}): Promise<S3Store> {
    const [, bucket = '', path = ''] = /^s3:\/\/([^/?#@:]+)(?:\/([^?#]*))?$/.exec(name) ?? []
    if (!BUCKET.test(bucket)) throw new ProxyError('USAGE', `${name} is no bucket`, undefined, 's3://BUCKET/PREFIX')
    let sdk: Sdk
    try {
      sdk = await (options.load?.() ?? import('@aws-sdk/client-s3'))
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code !== 'ERR_MODULE_NOT_FOUND') throw cause
      const what = `${name} needs ${PACKAGE}, which is not installed`
      const action = `npm install --no-save ${PACKAGE}@${PACKAGE_VERSION}`
      throw new ProxyError('USAGE', what, undefined, action, { cause })
    }
    const prefix = path === '' || path.endsWith('/') ? path : `${path}/`
    return new S3Store(name, bucket, prefix, sdk, options)
  }

  private constructor(name: string, bucket: string, prefix: string, sdk: Sdk, options: S3StoreOptions) {
    this.name = name
    this.sdk = sdk
    this.bucket = bucket
    this.prefix = prefix
    this.answerMs = options.answerMs ?? STORE_ANSWER_MS
    this.stallMs = options.stallMs
    this.partBytes = options.partBytes ?? STORE_PART_BYTES
    const { http, https } = storeAgents()
    const client = new sdk.S3Client({
      ...(isRegionTold() ? {} : { region: regionOf(sdk) }),
      requestHandler: { httpAgent: http, httpsAgent: https },
      // stores of other makers have no names of hosts for their buckets
      forcePathStyle: (async () => client.config.isCustomEndpoint === true) as never,
      maxAttempts: ATTEMPTS,
      // what is fetched is verified by its digest; and other makers' stores do not know them all
      requestChecksumCalculation: 'WHEN_REQUIRED',
      responseChecksumValidation: 'WHEN_REQUIRED',
      followRegionRedirects: false,
    })
    client.middlewareStack.add(
      next => async args => {
        const { protocol, hostname, port } = args.request as { protocol: string; hostname: string; port?: number }
        const url = new URL(`${protocol}//${hostname}${port === undefined ? '' : `:${port}`}`)
        requireSafe(url, `${name} at ${url.origin}`, options.insecure)
        return await next(args)
      },
      { name: 'pageferrySafe', step: 'finalizeRequest', priority: 'high' },
    )
    type Answered = { readonly response: { readonly statusCode: number; body?: unknown } }
    type Send = (args: { readonly request: unknown }) => Promise<Answered>
    const limitAnswers =
      (next: Send): Send =>
      async args => {
        const answered = await next(args)
        const { query } = args.request as { query?: Record<string, unknown> }
        const isObject = query?.['x-id'] === 'GetObject' && answered.response.statusCode < 300
        if (!isObject) answered.response.body = bounded(answered.response.body as Readable, name)
        return answered
      }
    client.middlewareStack.addRelativeTo(limitAnswers as never, {
      name: 'pageferryBounded',
      relation: 'after',
      toMiddleware: 'deserializerMiddleware',
    })
    this.client = client
  }

  async read(
    key: string,
    maxBytes: number,
    { unlessTag, signal }: { unlessTag?: string | undefined; signal?: AbortSignal | undefined } = {},
  ): Promise<SmallObject | 'unchanged' | undefined> {
    const answer = await this.get(key, unlessTag === undefined ? {} : { IfNoneMatch: unlessTag }, signal)
    if (answer === undefined || answer === 'unchanged') return answer
    const { lengthBytes, body, tag } = answer
    if (lengthBytes > maxBytes) {
      body.destroy()
      throw strange(this.name, `${key} of ${lengthBytes} bytes: at most ${maxBytes}`)
    }
    return { bytes: await wholeBody(bodyOf(body, lengthBytes, this.name, signal, this.stallMs), lengthBytes), tag }
  }

  async open(key: string, { from = 0, tag, signal }: OpenOptions = {}): Promise<OpenObject | undefined> {
    const part = from === 0 ? {} : { Range: `bytes=${from}-`, ...(tag === undefined ? {} : { IfMatch: tag }) }
    const answer = await this.get(key, part, signal)
    if (answer === undefined) return undefined
    // another object stands there now: from its beginning
    if (answer === 'unchanged') return await this.open(key, { signal })
    const { lengthBytes, range, body } = answer
    if (from === 0 || range === undefined) {
      return { lengthBytes, tag: answer.tag, from: 0, body: bodyOf(body, lengthBytes, this.name, signal, this.stallMs) }
    }
    const [, first, last, total] = /^bytes (\d{1,15})-(\d{1,15})\/(\d{1,15})$/.exec(range) ?? []
    const allBytes = Number(total)
    if (Number(first) !== from || Number(last) !== allBytes - 1 || lengthBytes !== allBytes - from) {
      body.destroy()
      throw strange(this.name, `another part of ${key} than was asked for`)
    }
    return {
      lengthBytes: allBytes,
      tag: answer.tag,
      from,
      body: bodyOf(body, lengthBytes, this.name, signal, this.stallMs),
    }
  }

  async lengthOf(key: string, signal?: AbortSignal): Promise<number | undefined> {
    const answer = await this.ask(
      `ask for ${key}`,
      abortSignal =>
        this.client.send(new this.sdk.HeadObjectCommand({ Bucket: this.bucket, Key: this.prefix + key }), {
          abortSignal,
        }),
      signal,
      [404],
    )
    if (typeof answer === 'number') return undefined
    return this.lengthTold(answer.ContentLength, key)
  }

  close(): void {
    this.client.destroy()
  }

  async *list(prefix: string): AsyncGenerator<ListedObject, void> {
    let token: string | undefined
    for (let listings = 0; ; listings++) {
      if (listings === STORE_LISTINGS_MAX) throw strange(this.name, 'a listing without an end')
      const page = await this.ask(`list ${prefix}`, abortSignal =>
        this.client.send(
          new this.sdk.ListObjectsV2Command({
            Bucket: this.bucket,
            Prefix: this.prefix + prefix,
            ContinuationToken: token,
          }),
          { abortSignal },
        ),
      )
      if (typeof page === 'number') return
      if (page.Name !== this.bucket) throw strange(this.name, 'a listing that is none')
      for (const { Key: key, Size: lengthBytes } of page.Contents ?? []) {
        if (key === undefined || lengthBytes === undefined || !key.startsWith(this.prefix + prefix)) {
          throw strange(this.name, 'a listing of something else')
        }
        yield { key: key.slice(this.prefix.length), lengthBytes }
      }
      token = page.NextContinuationToken
      if (!page.IsTruncated || token === undefined) return
    }
  }

  async put(key: string, source: ReadAt, progress?: (bytes: number) => void, signal?: AbortSignal): Promise<boolean> {
    if ((await this.lengthOf(key, signal)) !== undefined) return false
    const { lengthBytes } = source
    if (lengthBytes > this.partBytes) return await this.putParts(key, source, progress, signal)
    const bytes = Buffer.allocUnsafe(lengthBytes)
    await readFully(source, 0, bytes)
    const isPut = await this.putSmall(key, bytes, { IfNoneMatch: '*' }, signal)
    if (isPut) progress?.(lengthBytes)
    return isPut
  }

  async replace(key: string, bytes: Uint8Array, tag: string | undefined, signal?: AbortSignal): Promise<boolean> {
    // some makers' stores know no condition on what is written, and do not say so
    if (!(await this.isThere(key, tag, signal))) return false
    const isPut = await this.putSmall(key, bytes, tag === undefined ? { IfNoneMatch: '*' } : { IfMatch: tag }, signal)
    const bare = /^"(.+)"$/.exec(tag ?? '')?.[1]
    if (!isPut && bare !== undefined && (await this.isThere(key, tag, signal))) {
      // refused, and it holds: Ceph compares with its tag as it has it, without the quotes that it gives out with it
      await this.putSmall(key, bytes, { IfMatch: bare }, signal)
    }
    // refused or not: where an answer is lost, the client asks again, and is refused because of what it wrote itself
    return await this.says(key, bytes, signal)
  }

  /** Whether what stands there has this tag; without one, whether nothing does. */
  private async isThere(key: string, tag: string | undefined, signal: AbortSignal | undefined): Promise<boolean> {
    const there = await this.get(key, tag === undefined ? {} : { IfNoneMatch: tag }, signal)
    if (typeof there === 'object') there.body.destroy() // whatever it is, it is not what was asked for
    return there === (tag === undefined ? undefined : 'unchanged')
  }

  /** Whether these bytes are what stands there. Reads no more than them. */
  private async says(key: string, bytes: Uint8Array, signal: AbortSignal | undefined): Promise<boolean> {
    const now = await this.get(key, {}, signal)
    if (typeof now !== 'object') return false
    if (now.lengthBytes !== bytes.length) {
      now.body.destroy()
      return false
    }
    const body = bodyOf(now.body, now.lengthBytes, this.name, signal, this.stallMs)
    return Buffer.compare(await wholeBody(body, now.lengthBytes), bytes) === 0
  }

  async remove(key: string): Promise<void> {
    await this.ask(`remove ${key}`, abortSignal =>
      this.client.send(new this.sdk.DeleteObjectCommand({ Bucket: this.bucket, Key: this.prefix + key }), {
        abortSignal,
      }),
    )
  }

  /** @returns false where the condition does not hold */
  private async putSmall(
    key: string,
    bytes: Uint8Array,
    condition: Condition,
    signal: AbortSignal | undefined,
  ): Promise<boolean> {
    const target = { Bucket: this.bucket, Key: this.prefix + key, Body: bytes }
    return await this.onCondition(condition, async held => {
      const command = new this.sdk.PutObjectCommand({ ...target, ...held })
      const send = (abortSignal: AbortSignal): Promise<unknown> => this.client.send(command, { abortSignal })
      return await this.ask(`write ${key}`, send, signal, REFUSALS, bytes.length)
    })
  }

  /**
   * Swift says that it knows no conditions on what is written: then the look before has to do.
   * @returns false where the condition does not hold
   */
  private async onCondition(condition: Condition, send: (held: Condition) => Promise<unknown>): Promise<boolean> {
    if (this.knowsConditions) {
      const answer = await send(condition)
      if (answer !== NOT_IMPLEMENTED) return typeof answer !== 'number'
      this.knowsConditions = false
    }
    return typeof (await send({})) !== 'number'
  }

  /** A large file: some parts at a time, each of them signed, so that one that is damaged on the way is refused. */
  private async putParts(
    key: string,
    source: ReadAt,
    progress: ((bytes: number) => void) | undefined,
    signal: AbortSignal | undefined,
  ): Promise<boolean> {
    const { sdk, client, partBytes } = this
    const { lengthBytes } = source
    const target = { Bucket: this.bucket, Key: this.prefix + key }
    const begun = await this.ask(
      `write ${key}`,
      abortSignal => client.send(new sdk.CreateMultipartUploadCommand(target), { abortSignal }),
      signal,
    )
    const id = typeof begun === 'number' ? undefined : begun.UploadId
    if (id === undefined) throw strange(this.name, 'an upload without its name')
    try {
      const count = Math.ceil(lengthBytes / partBytes)
      const parts: { ETag: string; PartNumber: number }[] = []
      let next = 0
      let reading: Promise<void> = Promise.resolve() // one read at a time
      const send = async (): Promise<void> => {
        while (next < count) {
          const index = next++
          const at = index * partBytes
          const bytes = Buffer.allocUnsafe(Math.min(partBytes, lengthBytes - at))
          reading = reading.then(() => readFully(source, at, bytes))
          await reading
          const part = { ...target, UploadId: id, PartNumber: index + 1, Body: bytes }
          const sent = await this.ask(
            `write ${key}`,
            abortSignal => client.send(new sdk.UploadPartCommand(part), { abortSignal }),
            signal,
            [],
            bytes.length,
          )
          const tag = typeof sent === 'number' ? undefined : sent.ETag
          if (tag === undefined) throw strange(this.name, 'a part without its tag')
          parts[index] = { ETag: tag, PartNumber: index + 1 }
          progress?.(bytes.length)
        }
      }
      // after a failure no more is begun, and what is under way is waited for: it is about to be thrown away
      const sent = await Promise.allSettled(
        Array.from({ length: PARTS_AT_ONCE }, () =>
          send().catch(error => {
            next = count
            throw error
          }),
        ),
      )
      const failed = sent.find(result => result.status === 'rejected')
      if (failed) throw failed.reason
      const end = { ...target, UploadId: id, MultipartUpload: { Parts: parts } }
      const isPut = await this.onCondition({ IfNoneMatch: '*' }, async held => {
        const command = new sdk.CompleteMultipartUploadCommand({ ...end, ...held })
        const complete = (abortSignal: AbortSignal): Promise<unknown> => client.send(command, { abortSignal })
        return await this.ask(`write ${key}`, complete, signal, REFUSALS, lengthBytes)
      })
      if (isPut) return true
      await this.abandon(target, id)
      return false
    } catch (error) {
      await this.abandon(target, id)
      throw error
    }
  }

  /** Parts that nobody completes are paid for, for ever. */
  private async abandon(target: { Bucket: string; Key: string }, id: string): Promise<void> {
    const command = new this.sdk.AbortMultipartUploadCommand({ ...target, UploadId: id })
    await this.ask('give up an upload', abortSignal => this.client.send(command, { abortSignal })).catch(() => {})
  }

  /** @returns 'unchanged' where the condition does not hold */
  private async get(
    key: string,
    condition: { IfNoneMatch?: string; IfMatch?: string; Range?: string },
    signal: AbortSignal | undefined,
  ): Promise<
    | 'unchanged'
    | undefined
    | {
        readonly lengthBytes: number
        readonly tag: string | undefined
        readonly range: string | undefined
        readonly body: Readable
      }
  > {
    const hasCondition = condition.IfNoneMatch !== undefined || condition.IfMatch !== undefined
    const command = new this.sdk.GetObjectCommand({ Bucket: this.bucket, Key: this.prefix + key, ...condition })
    const answer = await this.ask(
      `read ${key}`,
      abortSignal => this.client.send(command, { abortSignal }),
      signal,
      hasCondition ? [404, 304, 412] : [404],
    )
    if (answer === 404) return undefined
    if (typeof answer === 'number') return 'unchanged'
    const body = answer.Body as unknown as Readable
    try {
      const lengthBytes = this.lengthTold(answer.ContentLength, key)
      if ((answer.ContentEncoding || 'identity') !== 'identity') {
        throw strange(this.name, `an encoding that was not asked for: ${answer.ContentEncoding}`)
      }
      return { lengthBytes, tag: answer.ETag, range: answer.ContentRange, body }
    } catch (error) {
      body.destroy()
      throw error
    }
  }

  private lengthTold(length: number | undefined, key: string): number {
    // without a length nobody could tell a whole body from one that broke off
    if (length !== undefined && Number.isSafeInteger(length) && length >= 0) return length
    throw strange(this.name, `${key} without its length`)
  }

  /**
   * Sends a command and waits for its answer, or the head of it.
   * @param expected statuses of refusals that the caller can do something with
   * @param sentBytes that go along: more time
   * @returns the answer, or one of these statuses
   */
  private async ask<T>(
    doing: string,
    send: (signal: AbortSignal) => Promise<T>,
    signal?: AbortSignal,
    expected: readonly number[] = [],
    sentBytes = 0,
  ): Promise<T | number> {
    signal?.throwIfAborted()
    const controller = new AbortController()
    const ms = this.answerMs + (sentBytes / STORE_UPLOAD_BYTES_A_SECOND) * 1000
    let isLate = false
    const late = setTimeout(() => {
      isLate = true
      controller.abort()
    }, ms)
    const abort = (): void => controller.abort()
    signal?.addEventListener('abort', abort)
    try {
      return await send(controller.signal)
    } catch (error) {
      if (signal?.aborted) throw signal.reason
      if (isLate) throw lost(this.name, `cannot ${doing}: no answer in ${Math.ceil(ms / 1000)} s`)
      if (isProxyError(error)) throw error
      const status = (error as ClientError).$metadata?.httpStatusCode
      const { name } = error as ClientError
      if (status !== undefined && expected.includes(status) && name !== 'NoSuchBucket') return status
      throw this.told(error as ClientError, doing, status)
    } finally {
      clearTimeout(late)
      signal?.removeEventListener('abort', abort)
    }
  }

  /** What the client threw, by what an operator can do about it. */
  private told(error: ClientError, doing: string, status: number | undefined): ProxyError {
    const { name, message } = error
    const what = `cannot ${doing}: ${name}${message === '' || message === name ? '' : `: ${message}`}`
    if (name === 'NoSuchBucket' || (status === 404 && name === 'NotFound')) {
      return refused(this.name, what, 'make the bucket, or check its name and the endpoint (AWS_ENDPOINT_URL)', error)
    }
    if (name === 'PermanentRedirect' || name === 'AuthorizationHeaderMalformed' || status === 301 || status === 307) {
      return refused(this.name, what, 'the bucket is in another region: set AWS_REGION', error)
    }
    if (status === 401 || status === 403) {
      return refused(this.name, what, 'check the credentials, and what they may do with this bucket', error)
    }
    if (name === 'CredentialsProviderError' || name === 'TokenProviderError') {
      const action = 'set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give this host a role'
      return refused(this.name, what, action, error)
    }
    if (status === undefined || status === 408 || status === 429 || status >= 500) {
      return lost(this.name, `cannot ${doing}`, error)
    }
    return strange(this.name, `${what} (HTTP status ${status})`)
  }
}

function isRegionTold(): boolean {
  return (process.env.AWS_REGION ?? process.env.AWS_DEFAULT_REGION ?? '') !== ''
}

/** That of the profile; where it has none, one that stores of other makers take. */
function regionOf(sdk: Sdk): () => Promise<string> {
  const known = new sdk.S3Client({}).config.region
  return async () => {
    try {
      return await known()
    } catch {
      return REGION_DEFAULT
    }
  }
}

/** What is read whole by the client, which knows no limits. */
function bounded(body: Readable | undefined, store: string): Readable | undefined {
  return body === undefined || typeof body.pipe !== 'function' ? body : Readable.from(atMost(body, store))
}

async function* atMost(body: Readable, store: string): AsyncGenerator<Uint8Array, void> {
  let have = 0
  for await (const chunk of body as AsyncIterable<Uint8Array>) {
    have += chunk.length
    if (have > STORE_ANSWER_BYTES_MAX) throw strange(store, `an answer of more than ${STORE_ANSWER_BYTES_MAX} bytes`)
    yield chunk
  }
}
