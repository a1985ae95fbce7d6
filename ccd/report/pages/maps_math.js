// What the maps compute without a page: in the page it stands before maps.js in one script, and node tests it.
const NONE = 65535, REACH = 18, TOP = 10 // no value, no neighbor; px from the pointer to a dot; values that have a color

// ---- what Python wrote
const bytes = s => {
  const b = atob(s), out = new Uint8Array(b.length)
  for (let i = 0; i < b.length; i++) out[i] = b.charCodeAt(i)
  return out
}
const neighbors = (near, k, i) => near.subarray(i * k, i * k + k).filter(j => j !== NONE)
const inAll = (lists, k, i, j) => lists.every(near => neighbors(near, k, i).includes(j))
const spot = (i, { per_sheet, columns }) => // the sheet of a thumbnail, its column, its row
  [Math.floor(i / per_sheet), i % columns, Math.floor(i % per_sheet / columns)]
const labels = (factors, i) => factors.map(f => f.code[i] === NONE ? "–" : f.values[f.code[i]])

// ---- numbers in words
const signed = v => (v < 0 ? "−" : "+") + Math.abs(v).toFixed(1), percent = v => Math.round(100 * v) + " %"
const short = v => v.toFixed(2).replace("-", "−").replace("0.", ".") // .83: there is little room
const number = v => v.toLocaleString("en")
const mean = v => v.reduce((a, b) => a + b, 0) / v.length

// ---- places on a map of w by h px that shows X.start to X.end and Y.start to Y.end
const at = (m, i) => [(m.x[i] - m.X.start) / (m.X.end - m.X.start) * m.w, (m.Y.end - m.y[i]) / (m.Y.end - m.Y.start) * m.h]
function under(m, sx, sy, faded) { // the row under the pointer: a picture on the map, or the nearest dot
  for (const [i, x, y, half] of m.drawn) if (Math.abs(x - sx) <= half && Math.abs(y - sy) <= half) return i
  const ux = m.w / (m.X.end - m.X.start), uy = m.h / (m.Y.end - m.Y.start)
  let best = -1, least = REACH ** 2
  for (let i = 0; i < faded.length; i++) if (!faded[i]) {
    const dx = (m.x[i] - m.X.start) * ux - sx, dy = (m.Y.end - m.y[i]) * uy - sy, d = dx * dx + dy * dy
    if (d < least) { least = d; best = i }
  }
  return best
}
function landmarks(m, faded) { // pictures spread over the map: one in a cell and none beside it, fixed while it moves
  const unit = (m.X.end - m.X.start) / m.w, level = Math.round(2 * Math.log2(unit * 34)) / 2
  return m.levels[level] ??= spread(m.x, m.y, 2 ** level, faded)
}
function spread(x, y, cell, faded) {
  const n = faded.length, taken = new Set(), found = [], step = 7919
  for (let j = 0, i = 0; j < n; j++, i = (i + step) % n) if (!faded[i]) {
    const cx = Math.floor(x[i] / cell), cy = Math.floor(y[i] / cell)
    let free = true
    for (let a = -1; a < 2 && free; a++) for (let b = -1; b < 2; b++) if (taken.has((cx + a) * 1e6 + cy + b)) { free = false; break }
    if (free) { taken.add(cx * 1e6 + cy); found.push(i) }
  }
  return found
}
function beside({ w, h }, x, y, left, below) { // where the picture of a dot goes, inside the map, and its side
  const s = Math.min(60, w / 6), room = s + 16
  return [x + ((left ? x > room : x > w - room) ? -1 : 1) * (s / 2 + 12),
          Math.max(s / 2 + 4, Math.min(h - s / 2 - 4, y + (below ? 1 : -1) * (s / 2 + 6))), s]
}
function zoomed({ start, end }, by) {
  const c = (start + end) / 2, half = (end - start) / 2 / by
  return { start: c - half, end: c + half }
}

// ---- colors and the filter
const matches = (f, value, i) => !f || value < 0 || f.code[i] === value // of a factor, or of none
function colorOf(f, i, { few, other, none }) {
  const c = f ? f.code[i] : 0
  return !f || c === NONE ? none : colorAt(f, c, few, other)
}
const colorAt = (f, c, few, other) => f.paint ? f.paint[c] : c < TOP ? few[c] : other // a value that names a color has it
const agreement = all => // of the labels of one picture, or of a pair
  all.every(v => v === "–") ? "none" : all.length > 1 && all[0] === all[1] ? "same" : ""

if (typeof module === "object") { // node
  module.exports = { NONE, bytes, neighbors, inAll, spot, labels, signed, percent, short, number, mean, at, under, landmarks, spread,
    beside, zoomed, matches, colorOf, agreement }
}
