// What the site's script computes. pytest runs it: tests/report/test_pages.py.
import { test } from "node:test"
import assert from "node:assert/strict"
import s from "../../nbs/site_math.js"

test("signs become those of print, and only signs", () => {
  assert.equal(s.printed("-3 and (-4) of x-1, 5 %", false), "−3 and (−4) of x-1, 5\u00a0%")
  assert.deepEqual([s.printed("a - b", true), s.printed("a - b", false)], ["a − b", "a - b"])
})

test("words of a second row of heads go into the corner where it is empty", () => {
  assert.equal(s.corner(["", "a", "b"], ["encoder", "", ""]), 1)
  assert.equal(s.corner(["", "", "b"], ["encoder", "task", ""]), 2)
  assert.equal(s.corner(["", "b"], ["", ""]), 0)
  for (const [top, names] of [[["x", "a"], ["encoder", ""]], [["", "a"], ["encoder", "n"]], [["", "a"], ["encoder"]]])
    assert.equal(s.corner(top, names), -1)
})

test("the number of a cell is its first", () => {
  const cells = { "41.2 (38.0–44.1)": 41.2, "−0.5": -0.5, "–3": -3, "12,345 px": 12345, "≈ 7": 7, "**8**": 8, "+2": 2 }
  for (const [text, value] of Object.entries(cells)) assert.equal(s.number(text), value, text)
  for (const text of ["", "–", "ViT-B/16", "n = 3"]) assert.ok(Number.isNaN(s.number(text)), text)
})

test("columns sort by number, then word, then nothing; turned about, numbers stay before words", () => {
  const cells = ["b", "10", "–", "9", "a", "−1"], sorted = up => cells.toSorted((x, y) => s.order(x, y, up))
  assert.deepEqual(cells.toSorted(s.compare), ["−1", "9", "10", "a", "b", "–"])
  assert.deepEqual(sorted(1), ["−1", "9", "10", "a", "b", "–"])
  assert.deepEqual(sorted(-1), ["10", "9", "−1", "–", "b", "a"])
})

test("a head fits in two lines of its column", () => {
  for (let n = 1; n < 60; n++) assert.ok(2 * s.headWidth(n) >= n && s.headWidth(n) <= n + 3)
})
