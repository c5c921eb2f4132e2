/**
 * Looks at proxies for those who watch them: however many these are, each proxy is asked as often as one of them would,
 * and none is asked while nobody watches. One that hangs holds up nobody: what it said last is told as that.
 */
import { isProxyError } from '../errors.ts'
import type { Failure, Look, PastLook, SiteLook } from './dashboard-api.ts'
import { outsideJson, printableJson } from './outside-json.ts'

/** How proxies are found and asked. */
export interface Proxies {
  /** Control sockets of those that are there. @throws ProxyError where none is */
  sockets(): readonly string[]
  /** JSON of a SiteStatus. */
  statusOf(control: string): Promise<Buffer>
  /** JSON of a SiteHistory. */
  historyOf(control: string): Promise<Buffer>
}

/** Calls `late` after some time. @returns what keeps it from that */
export type Patience = (late: () => void) => () => void

/** JSON in pieces: what a proxy says is passed on as it came. */
type Pieces = readonly Buffer[]

/** What was said so lately is said again: the page looks every second. */
const FRESH_MS = 900

export class Lookout {
  private readonly proxies: Proxies
  private readonly nowMs: () => number
  private readonly status = new Shared(() => this.lookAtStatus())
  private readonly past = new Shared(() => this.lookAtHistory())
  private readonly statuses: Patient<Buffer>
  private readonly histories: Patient<Buffer>

  /** @param patience after which a proxy's answer is not waited for any longer */
  constructor(proxies: Proxies, nowMs: () => number, patience: Patience) {
    this.proxies = proxies
    this.nowMs = nowMs
    this.statuses = new Patient(async control => printableJson(await proxies.statusOf(control)), patience)
    this.histories = new Patient(async control => printableJson(await proxies.historyOf(control)), patience)
  }

  /** JSON of a {@link Look}. */
  look(): Promise<Pieces> {
    return this.status.get(this.nowMs())
  }

  /** JSON of a {@link PastLook}. */
  history(): Promise<Pieces> {
    return this.past.get(this.nowMs())
  }

  private async lookAtStatus(): Promise<Pieces> {
    const found = await told(async () => this.proxies.sockets())
    const at = (): Pick<Look, 'at'> => ({ at: new Date().toISOString() })
    if ('failure' in found) return [outsideJson({ ...at(), sites: [], failure: found.failure } satisfies Look)]
    const { value: controls } = found
    this.statuses.keepOnly(controls)
    const sites = await Promise.all(
      controls.map(async (control): Promise<Pieces> => {
        const { value, failure } = await this.statuses.ask(control)
        const site = outsideJson({ control, ...(failure && { failure }) } satisfies SiteLook)
        return value ? withField(site, 'status', [value]) : [site]
      }),
    )
    return withField(outsideJson(at()), 'sites', listOf(sites))
  }

  private async lookAtHistory(): Promise<Pieces> {
    const found = await told(async () => this.proxies.sockets())
    if ('failure' in found) return [outsideJson({ histories: [], failures: [found.failure] } satisfies PastLook)]
    this.histories.keepOnly(found.value)
    const answers = await Promise.all(found.value.map(control => this.histories.ask(control)))
    const failures = answers.flatMap(({ failure }) => (failure ? [failure] : []))
    const histories = answers.flatMap(({ value }) => (value ? [[value]] : []))
    return withField(outsideJson({ failures }), 'histories', listOf(histories))
  }
}

/** @param json of an object that has fields */
function withField(json: Buffer, name: string, value: Pieces): Pieces {
  return [json.subarray(0, -1), Buffer.from(`,"${name}":`), ...value, Buffer.from('}')]
}

function listOf(values: readonly Pieces[]): Pieces {
  return [
    Buffer.from('['),
    ...values.flatMap((value, i) => (i > 0 ? [Buffer.from(','), ...value] : value)),
    Buffer.from(']'),
  ]
}

/** What a proxy says, or said before it hung, and why it does not say it now. */
interface Said<T> {
  readonly value?: T
  readonly failure?: Failure
}

/** Asks proxies that may hang: each at most once at a time, and none is waited for longer than `patience`. */
class Patient<T> {
  private readonly askOne: (control: string) => Promise<T>
  private readonly patience: Patience
  private readonly pending = new Map<string, Promise<Said<T>>>()
  private readonly last = new Map<string, { readonly value: T; readonly at: string }>()

  constructor(askOne: (control: string) => Promise<T>, patience: Patience) {
    this.askOne = askOne
    this.patience = patience
  }

  async ask(control: string): Promise<Said<T>> {
    const asked = this.pending.get(control) ?? this.begin(control)
    const late = Promise.withResolvers<undefined>()
    const enough = this.patience(() => late.resolve(undefined))
    const said = await Promise.race([asked, late.promise]).finally(enough)
    if (said) return said
    const { value, at } = this.last.get(control) ?? {}
    const shown = at === undefined ? '' : `; what it said at ${at.slice(11, 19)} UTC is shown`
    const action = 'is it stopped, or very busy? It is asked on'
    return {
      ...(value !== undefined && { value }),
      failure: { what: `${control} does not answer just now${shown}`, action },
    }
  }

  /** Others are gone. */
  keepOnly(controls: readonly string[]): void {
    for (const control of this.last.keys()) if (!controls.includes(control)) this.last.delete(control)
  }

  private begin(control: string): Promise<Said<T>> {
    const asked = told(() => this.askOne(control)).then(said => {
      this.last.delete(control)
      if ('value' in said) this.last.set(control, { value: said.value, at: new Date().toISOString() })
      return said
    })
    this.pending.set(control, asked)
    const over = (): void => void this.pending.delete(control)
    asked.then(over, over)
    return asked
  }
}

/** An answer that all who ask at about the same time get. */
class Shared<T> {
  private readonly ask: () => Promise<T>
  private answer: Promise<T> | undefined
  private sinceMs = 0

  constructor(ask: () => Promise<T>) {
    this.ask = ask
  }

  get(nowMs: number): Promise<T> {
    if (this.answer && nowMs - this.sinceMs < FRESH_MS) return this.answer
    // one that is under way is waited for
    this.sinceMs = Number.POSITIVE_INFINITY
    const answer = this.ask()
    this.answer = answer
    const settled = (): void => {
      this.sinceMs = nowMs
    }
    answer.then(settled, settled)
    return answer
  }
}

async function told<T>(ask: () => Promise<T>): Promise<{ readonly value: T } | { readonly failure: Failure }> {
  try {
    return { value: await ask() }
  } catch (error) {
    if (!isProxyError(error)) throw error
    return { failure: { what: error.what, action: error.action } }
  }
}
