/** Windows of many flows out of one budget: disks leave a part of it to the memory that comes behind them. */
import t from 'tap'
import { FairShares } from '../../src/fair-shares.ts'
import {
  CREDIT_FLOW_BYTES_MAX,
  CREDIT_INITIAL_BYTES,
  CREDIT_KEPT_BYTES,
  DISK_CONNECTIONS_MAX,
  MEMORY_BUDGET_BYTES,
} from '../../src/limits.ts'
import { ReceiveWindow } from '../../src/session/receive-window.ts'

t.test('memory finds room behind 128 disks that are fast', t => {
  const budget = new FairShares(MEMORY_BUDGET_BYTES)
  const share = budget.share('peer')
  const window = (kept = 0): ReceiveWindow => new ReceiveWindow(CREDIT_INITIAL_BYTES, share, 0, kept)
  const disks = Array.from({ length: DISK_CONNECTIONS_MAX }, () => window(CREDIT_KEPT_BYTES))
  for (const disk of disks) disk.grow(CREDIT_FLOW_BYTES_MAX)
  t.ok(share.held > MEMORY_BUDGET_BYTES / 4, 'they have what is there but for that')
  const memory = window()
  memory.grow(CREDIT_FLOW_BYTES_MAX)
  t.equal(memory.size, CREDIT_INITIAL_BYTES + CREDIT_KEPT_BYTES)
  t.equal(disks[0]!.grow(CREDIT_FLOW_BYTES_MAX), false)
  for (const one of [...disks, memory]) one.close()
  t.equal(share.held, 0)
  t.end()
})
