// What the site's script computes without a page: script.html has it before site.js, and node tests it.
const printed = (text, head) => // signs as print has them, in a head of a table too
  text.replace(/(^|[\s([])-(?=\d)/g, "$1−").replace(/([\d)]) %/g, "$1\u00a0%").replace(/ - /g, head ? " − " : " - ")

function corner(top, names) { // how many words of a second row of heads go into the empty corner above them; -1: it is a row of heads
  const n = names.filter(Boolean).length
  return top.length === names.length && !top.slice(0, n).some(Boolean) && !names.slice(n).some(Boolean) ? n : -1
}

function number(text) { // the first of a cell, or NaN
  const m = text.replace(/[−–](?=\d)/, "-").replace(/(\d),(?=\d{3})/g, "$1").match(/^[^\d\w-]*([-+]?\d+(?:\.\d+)?)/)
  return m ? parseFloat(m[1]) : NaN
}
function compare(a, b) { // numbers first, then words, then cells without either
  const [x, y] = [number(a), number(b)], empty = t => !/[\p{L}\d]/u.test(t)
  if (!isNaN(x) || !isNaN(y)) return isNaN(x) ? 1 : isNaN(y) ? -1 : x - y
  return empty(a) - empty(b) || a.localeCompare(b)
}
function order(a, b, up) { // as `compare`, up (1) or down (-1); numbers stay before words
  const d = compare(a, b)
  return isNaN(number(a)) === isNaN(number(b)) ? up * d : d
}
const headWidth = n => n > 18 ? Math.ceil(n / 2) + 4 : n + 3 // in letters: two lines at most

if (typeof module === "object") { // node
  module.exports = { printed, corner, number, compare, order, headWidth }
}
