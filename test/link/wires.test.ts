/** Which connections stand, and in which order they are served. */
import type net from 'node:net'
import t from 'tap'
import { type Wire, Wires } from '../../src/link/wires.ts'

const wire = (connection: number): Wire => ({
  connection,
  socket: {} as net.Socket,
  peer: '',
  attached: true,
  ending: false,
  heard: false,
  gone: () => {},
  keys: undefined,
  worn: undefined,
  leaving: false,
})

t.test('a connection that another took the place of', async t => {
  const wires = new Wires()
  t.ok(wires.isClosed)
  const [old, next] = [wire(3), wire(3)]
  wires.add(old)
  t.equal(wires.get(3), old)
  wires.remove(old)
  t.equal(wires.get(3), undefined)
  wires.add(next)
  t.same([wires.count, wires.isClosed], [1, false])
  wires.remove(old) // told late
  t.equal(wires.get(3), next, 'the one that stands stays')
  wires.remove(next)
  t.equal(wires.count, 0)
  wires.closed(next)
  t.notOk(wires.isClosed, 'the old socket lingers')
  wires.closed(old)
  t.ok(wires.isClosed)
})

t.test('all are served alike, and each is first in its turn', async t => {
  const wires = new Wires()
  for (let i = 0; i < 3; i++) wires.add(wire(i))
  const served: number[] = []
  const serve = (pieces: number[]): number[] => {
    wires.serve(({ connection }) => {
      served.push(connection)
      return pieces[connection]!-- > 0
    })
    return served.splice(0)
  }
  t.same(serve([0, 0, 0]), [1, 2, 0], 'each is asked once')
  t.same(serve([1, 1, 1]), [2, 0, 1, 2, 0, 1], 'a piece at a time')
  // all are asked once more after the last piece: it may have made room for the others
  t.same(serve([0, 2, 0]), [0, 1, 2, 0, 1, 2, 0, 1])
  for (let i = 0; i < 3; i++) wires.remove(wires.get(i)!)
  t.same(serve([]), [], 'nobody is there')
})
