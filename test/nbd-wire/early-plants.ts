/** What the simulation of early answers must catch: rules each of which is wrong in one thing. */
import { EARLY_RULES, type EarlyRules } from '../../src/nbd/early-rules.ts'

const FLUSH = 3
const DISC = 2
const STATUS = 7
const FUA = 1

export const EARLY_PLANTS: Record<string, Partial<EarlyRules>> = {
  'FLUSH goes at once': { waitsForAll: request => request.type !== FLUSH && EARLY_RULES.waitsForAll(request) },
  'DISC goes at once': { waitsForAll: request => request.type !== DISC && EARLY_RULES.waitsForAll(request) },
  'BLOCK_STATUS waits for its range alone': {
    waitsForAll: request => request.type !== STATUS && EARLY_RULES.waitsForAll(request),
  },
  'what reads does not wait': {
    waitsFor: (later, earlier) => 'request' in later && isWrite(later) && EARLY_RULES.waitsFor(later, earlier),
  },
  'a write overtakes another at its place': {
    waitsFor: (later, earlier) => !('request' in later && isWrite(later)) && EARLY_RULES.waitsFor(later, earlier),
  },
  'a FUA write is answered early': {
    isEarly: (request, exported) =>
      EARLY_RULES.isEarly({ ...fieldsOf(request), flags: request.flags & ~FUA }, exported),
  },
  'FAST_ZERO is answered early': {
    isEarly: (request, exported) => EARLY_RULES.isEarly({ ...fieldsOf(request), flags: request.flags & ~16 }, exported),
  },
  'what lies beyond the end is answered early': {
    isEarly: (request, exported) => EARLY_RULES.isEarly(request, { ...exported, sizeBytes: 2 ** 40 }),
  },
  'an error is forgotten': { remembers: () => 0 },
  'an error is told once': { remembersTold: () => 0 },
  'the cookies of the client go to the server': {
    cookie: (_count, { cookieHigh, cookieLow }) => cookieHigh * 2 ** 32 + cookieLow + 1,
  },
  'a newer write stands for one that somebody waits for': {
    supersedes: (newer, older) => EARLY_RULES.supersedes(newer, { ...rangeOf(older), waiters: 0 }),
  },
  'a write stands for one that it covers in part': {
    supersedes: (_newer, older) => older.isEarly && older.waiters <= 1,
  },
  'what is not understood does not wait': { relays: () => true },
  'a server that has gone has ended in order': { endsWell: () => true },
}

type Unsettled = Parameters<EarlyRules['supersedes']>[0]

function rangeOf({ offset, end, request, isEarly }: Unsettled): Omit<Unsettled, 'waiters'> {
  return { offset, end, request, isEarly }
}

function isWrite(later: object): boolean {
  return [1, 4, 6].includes((later as Unsettled).request.type)
}

function fieldsOf(request: Parameters<EarlyRules['isEarly']>[0]) {
  const { type, flags, cookieHigh, cookieLow, offset, lengthBytes, payloadBytes } = request
  return { type, flags, cookieHigh, cookieLow, offset, lengthBytes, payloadBytes }
}
