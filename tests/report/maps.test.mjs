// What the maps compute, worked out here in other ways. pytest runs it: tests/report/test_pages.py.
import { describe, test } from "node:test"
import assert from "node:assert/strict"
import m from "../../ccd/report/pages/maps_math.js"

const NONE = m.NONE
let seed = 1
const random = () => (seed = seed * 16807 % 2147483647) / 2147483647 // the same at every run
const scattered = n => Float32Array.from({ length: n }, () => 10 * random() - 5)
const map = (more = {}) => ({ x: scattered(300), y: scattered(300), X: { start: -5, end: 5 }, Y: { start: -4, end: 4 }, w: 400, h: 320,
                              drawn: [], levels: {}, ...more })

describe("what Python wrote", () => {
  test("base64 becomes the numbers that were packed", () => {
    const code = Uint16Array.from([0, 1, 300, NONE]), share = Float32Array.from([0, 0.25, -1.5])
    for (const v of [code, share, new Int16Array(0)]) {
      const text = Buffer.from(v.buffer).toString("base64")
      assert.deepEqual(new v.constructor(m.bytes(text).buffer), v)
    }
  })
  test("a row's neighbors are its own, without the missing ones", () => {
    const near = Uint16Array.from([1, 2, NONE, 0, 2, 3, 0, NONE, NONE])
    assert.deepEqual([0, 1, 2].map(i => [...m.neighbors(near, 3, i)]), [[1, 2], [0, 2, 3], [0]])
  })
  test("shared is what every list names; a missing one is shared by none", () => {
    const lists = [Uint16Array.from([1, 2, NONE]), Uint16Array.from([2, 3, NONE])]
    assert.deepEqual([1, 2, 3, NONE].filter(j => m.inAll(lists, 3, 0, j)), [2])
  })
  test("every thumbnail has a place of its own, row by row, sheet by sheet", () => {
    const sheets = { per_sheet: 12, columns: 4 }, places = Array.from({ length: 30 }, (_, i) => m.spot(i, sheets))
    assert.deepEqual([places[0], places[5], places[11], places[12], places[29]], [[0, 0, 0], [0, 1, 1], [0, 3, 2], [1, 0, 0], [2, 1, 1]])
    assert.equal(new Set(places.map(String)).size, 30)
  })
  test("a code becomes its value, none a dash", () => {
    const factors = [{ code: [1, NONE], values: ["cat", "dog"] }, { code: [0, 0], values: ["red"] }]
    assert.deepEqual([m.labels(factors, 0), m.labels(factors, 1), m.labels([], 0)], [["dog", "red"], ["–", "red"], []])
  })
})

test("numbers are written as print has them", () => {
  assert.deepEqual([1.25, -0.5, 0].map(m.signed), ["+1.3", "−0.5", "+0.0"])
  assert.deepEqual([0.831, -0.831, 1, 0].map(m.short), [".83", "−.83", "1.00", ".00"])
  assert.deepEqual([0, 0.126, 1].map(m.percent), ["0 %", "13 %", "100 %"])
  assert.equal(m.number(20000), "20,000")
  assert.equal(m.mean(Float32Array.from([1, 2, 6])), 3)
})

describe("places on a map", () => {
  test("corners of what is shown are corners of the map, up is up", () => {
    const corners = map({ x: [-5, 5, 0], y: [4, -4, 0] })
    assert.deepEqual([0, 1, 2].map(i => m.at(corners, i)), [[0, 0], [400, 320], [200, 160]])
  })
  test("under the pointer is the nearest dot that is near and not faded", () => {
    const a = map(), faded = Uint8Array.from({ length: 300 }, () => random() < 0.3)
    for (let k = 0; k < 200; k++) {
      const p = [400 * random(), 320 * random()]
      const far = i => faded[i] ? Infinity : Math.hypot(m.at(a, i)[0] - p[0], m.at(a, i)[1] - p[1])
      const best = [...faded.keys()].reduce((i, j) => far(j) < far(i) ? j : i)
      assert.equal(m.under(a, ...p, faded), far(best) < 18 ? best : -1)
    }
  })
  test("a picture that is drawn comes before a dot beneath it", () => {
    const a = map({ x: [0, 1], y: [0, 1] }), [x, y] = m.at(a, 0)
    a.drawn = [[1, x + 5, y, 13]]
    assert.deepEqual([m.under(a, x, y, [0, 0]), m.under(a, x - 9, y, [0, 0])], [1, 0])
  })
  test("pictures spread: none faded, no two in one cell or in cells side by side, and no more fit", () => {
    const { x, y } = map(), faded = Uint8Array.from({ length: 300 }, (_, i) => i % 3 === 0), cell = 0.5
    const found = m.spread(x, y, cell, faded), of = i => [Math.floor(x[i] / cell), Math.floor(y[i] / cell)]
    const close = (i, j) => Math.max(...of(i).map((c, d) => Math.abs(c - of(j)[d]))) <= 1
    assert.ok(found.length > 20 && found.every(i => !faded[i]))
    assert.ok(found.every(i => found.every(j => i === j || !close(i, j))))
    for (let i = 0; i < 300; i++) assert.ok(faded[i] || found.some(j => close(i, j)))
  })
  test("landmarks stay while the map moves, and more come as it is zoomed", () => {
    const a = map(), faded = new Uint8Array(300), first = m.landmarks(a, faded)
    for (const axis of ["X", "Y"]) a[axis] = { start: a[axis].start + 1, end: a[axis].end + 1 }
    assert.equal(m.landmarks(a, faded), first)
    for (const axis of ["X", "Y"]) a[axis] = m.zoomed(a[axis], 2)
    assert.ok(m.landmarks(a, faded).length > first.length)
  })
  test("a picture beside its dot stays on the map", () => {
    for (let k = 0; k < 200; k++) {
      const [x, y] = [400 * random(), 320 * random()]
      const [px, py, s] = m.beside(map(), x, y, random() < 0.5, random() < 0.5)
      assert.ok(px - s / 2 >= 0 && px + s / 2 <= 400 && py - s / 2 >= 0 && py + s / 2 <= 320)
      assert.ok(Math.abs(px - x) - s / 2 >= 11.9) // and off the dot
    }
  })
  test("zooming keeps the middle, and back is back", () => {
    assert.deepEqual(m.zoomed({ start: 2, end: 6 }, 2), { start: 3, end: 5 })
    assert.deepEqual(m.zoomed(m.zoomed({ start: 2, end: 6 }, 4), 1 / 4), { start: 2, end: 6 })
  })
})

describe("colors and the filter", () => {
  test("the first ten values have a color, the rest share one, none has another", () => {
    const theme = { few: [..."abcdefghij"], other: "other", none: "none" }, f = { code: [0, 9, 10, 400, NONE] }
    assert.deepEqual(f.code.map((_, i) => m.colorOf(f, i, theme)), ["a", "j", "other", "other", "none"])
    assert.equal(m.colorOf(undefined, 0, theme), "none")
  })
  test("without a factor, or without a value, all match", () => {
    const f = { code: [0, 1, NONE] }, kept = (f, value) => [0, 1, 2].filter(i => m.matches(f, value, i))
    assert.deepEqual([kept(undefined, 1), kept(f, -1), kept(f, 1), kept(f, 7)], [[0, 1, 2], [0, 1, 2], [1], []])
  })
  test("a pair agrees where both say the same, unless neither says anything", () => {
    assert.deepEqual([["a", "a"], ["a", "b"], ["–", "–"], ["–"], ["a"]].map(m.agreement), ["same", "", "none", "none", ""])
  })
})
