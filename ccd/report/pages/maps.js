(async () => {
const $ = id => document.getElementById(id), page = JSON.parse($("data").textContent)
const { names, n, k, ids } = page
const near = page.near.map(s => new Uint16Array(bytes(s).buffer)) // [encoder][n * k]
const cosine = page.cosine.map(of => of.map(s => new Int16Array(bytes(s).buffer))) // [whose neighbours][measured by]
const kept = new Float32Array(bytes(page.kept).buffer) // share of neighbours in both lists
const factors = page.factors.map(f => ({ ...f, code: new Uint16Array(bytes(f.code).buffer) }))
const make = (tag, cls, ...inside) => {
  const e = document.createElement(tag)
  if (cls) e.className = cls
  e.append(...inside)
  return e
}
const say = text => { $("status").textContent = text }

// ---- thumbnails: one sprite, shown as a background or drawn on a map
const sheets = page.sheets.map((id, s) => {
  const url = URL.createObjectURL(new Blob([bytes($(id).textContent)], { type: "image/webp" }))
  $("sprites").textContent += `[data-sheet="${s}"]{background-image:url(${url})}`
  return Object.assign(new Image(), { src: url })
})
await Promise.all(sheets.map(s => s.decode()))
const values = i => labels(factors, i)
const words = i => [ids[i], ...values(i).filter(v => v !== "–")].join(", ")
function thumb(e, i) {
  const [sheet, x, y] = spot(i, page)
  e.classList.add("thumb")
  e.dataset.sheet = sheet; e.dataset.row = i
  e.style.setProperty("--x", x); e.style.setProperty("--y", y)
  e.setAttribute("aria-label", words(i))
  return e
}
const picture = i => { const e = thumb(make("span"), i); e.setAttribute("role", "img"); return e }
function stamp(g, i, x, y, side, edge, line = 2) { // a picture on a map, around (x, y)
  const [sheet, column, row] = spot(i, page), p = page.px
  g.fillStyle = edge
  g.fillRect(x - side / 2 - line, y - side / 2 - line, side + 2 * line, side + 2 * line)
  g.drawImage(sheets[sheet], column * p, row * p, p, p, x - side / 2, y - side / 2, side, side)
}

Bokeh.set_log_level("warn")
// ---- two maps: bokeh draws the dots and moves them; over them lie a sheet of pictures and one of marks
await Bokeh.embed.embed_items(page.docs, page.render)
const model = name => Bokeh.documents[0].get_model_by_name(name), source = model("dots")
const maps = names.map((name, t) => {
  const box = $("map-" + t), { x_range: X, y_range: Y } = model("plot-" + t)
  const [tiles, marks] = ["tiles-", "marks-"].map(id => $(id + t).getContext("2d"))
  return { t, box, tiles, marks, X, Y, home: [X.start, X.end, Y.start, Y.end],
           x: source.get_array("x" + t), y: source.get_array("y" + t), w: 1, h: 1, drawn: [], levels: {} }
})
let theme = { colors: [] } // colours, which follow the page's

// ---- what is shown: one picture, a pair, or nothing; pinned or passing
let focus = -1, pair = null, pinned = false, hint = -1, lit = true
let [colorBy, telling] = page.opening, filterBy = -1, filterValue = -1, faded = new Uint8Array(n), dots = [], chosen = []

function drawTiles(m) { // when the map moves, not when the pointer does
  const { tiles: g, w, h } = m, side = Math.min(26, w / 14)
  g.clearRect(0, 0, w, h)
  m.drawn = []
  if (lit) for (const i of landmarks(m, faded)) {
    const [x, y] = at(m, i)
    if (x < -side || y < -side || x > w + side || y > h + side) continue
    stamp(g, i, x, y, side, dots[i], 1.5)
    m.drawn.push([i, x, y, side / 2])
  }
}
function drawMarks(m) {
  const { marks: g, w, h } = m, { ink, back, colors } = theme
  g.clearRect(0, 0, w, h)
  g.canvas.previousElementSibling.style.opacity = focus >= 0 || pair || chosen.length ? 0.35 : 1
  const ring = (i, color, r, line) => {
    const [x, y] = at(m, i)
    for (const [c, l] of [[back, line + 2], [color, line]]) {
      g.beginPath(); g.arc(x, y, r, 0, 7); g.lineWidth = l; g.strokeStyle = c; g.stroke()
    }
  }
  const line = (i, j, color, width) => {
    g.beginPath(); g.moveTo(...at(m, i)); g.lineTo(...at(m, j)); g.lineWidth = width; g.strokeStyle = color; g.stroke()
  }
  const label = (i, left = false, below = false) => { // the picture itself, beside its dot and inside the map
    const [x, y, s] = beside(m, ...at(m, i), left, below)
    stamp(g, i, x, y, s, ink)
  }
  if (pair) {
    line(pair[0], pair[1], back, 5); line(pair[0], pair[1], ink, 2)
    for (const i of pair.slice(0, 2)) ring(i, ink, 7, 2.5)
    const [[x0, y0], [x1, y1]] = [at(m, pair[0]), at(m, pair[1])] // the two pictures keep apart
    label(pair[0], x0 <= x1, y0 > y1); label(pair[1], x1 < x0, y1 >= y0)
  } else if (focus >= 0) {
    for (const t of [1 - m.t, m.t]) {
      g.globalAlpha = t === m.t ? 0.9 : 0.5
      for (const j of list(t, focus)) line(focus, j, colors[t], t === m.t ? 1.5 : 1)
      g.globalAlpha = 1
      for (const j of list(t, focus)) ring(j, shared(focus, j) ? ink : colors[t], shared(focus, j) ? 6.5 : 5, 2)
    }
    ring(focus, ink, 8, 3)
    label(focus)
  }
  if (hint >= 0) { ring(hint, ink, 10, 3); label(hint) }
}
const soon = (m, draw) => { // once in a frame
  m.due ??= new Set()
  if (!m.due.size) requestAnimationFrame(() => { const due = [...m.due]; m.due.clear(); due.forEach(f => f(m)) })
  m.due.add(draw)
}
const remark = () => maps.forEach(m => soon(m, drawMarks))
const redraw = m => { soon(m, drawTiles); soon(m, drawMarks) }
const list = (t, i) => neighbors(near[t], k, i), shared = (i, j) => inAll(near, k, i, j)

// ---- the panel: its elements are made once and filled anew
const facts = $("facts"), cells = factors.map(f => [make("td"), make("td")])
factors.forEach((f, r) => facts.append(make("tr", "", make("th", "", f.label), ...cells[r])))
const big = [$("big-0"), $("big-1")], rows = names.map((_, t) => Array.from({ length: k }, (_, r) => {
  const pic = make("button", "pic"), num = names.map((_, u) => { const e = make("span"); e.style.color = `var(--c${u})`; return e })
  const slot = make("div", "slot", pic, make("div", "numbers", ...num))
  pic.onclick = () => show(+pic.dataset.row, true)
  pic.onmouseenter = pic.onfocus = () => { hint = +pic.dataset.row; remark() }
  pic.onmouseleave = pic.onblur = () => { hint = -1; remark() }
  $("near-" + t).append(slot)
  return { slot, pic, num }
}))
function fill() {
  const two = pair ? [pair[0], pair[1]] : focus >= 0 ? [focus] : []
  document.body.dataset.shows = pair ? "pair" : focus >= 0 ? "one" : "nothing"
  document.body.dataset.pinned = pinned
  big.forEach((e, b) => { e.hidden = !(b in two); if (b in two) thumb(e, two[b]) })
  $("name").textContent = two.map(i => ids[i]).join(" · ")
  if (two.length) {
    const shown = two.map(values)
    cells.forEach(([a, b], r) => {
      a.textContent = shown[0][r]; b.textContent = shown[1]?.[r] ?? ""
      a.parentNode.className = agreement(shown.map(v => v[r]))
    })
  }
  if (pair) {
    const [, , za, zb, sa, sb] = pair
    $("verdict").replaceChildren(...[[0, sa, za], [1, sb, zb]].map(([t, s, z]) => {
      const e = make("span", "", `${names[t]}: cosine ${short(s)}, ${signed(z)} σ`)
      e.style.color = `var(--c${t})`
      return e
    }))
  } else if (focus >= 0) {
    $("verdict").textContent = `${Math.round(kept[focus] * page.k_all)} of ${page.k_all} nearest neighbors in common`
    rows.forEach((row, t) => row.forEach(({ slot, pic, num }, r) => {
      const j = near[t][focus * k + r]
      slot.hidden = j === NONE
      if (j === NONE) return
      thumb(pic, j)
      slot.classList.toggle("shared", shared(focus, j))
      num.forEach((e, u) => { e.textContent = short(cosine[t][u][focus * k + r] / 1e4) })
    }))
  }
  document.querySelectorAll(".row[aria-current]").forEach(e => e.removeAttribute("aria-current"))
  if (pair) pair.row.setAttribute("aria-current", "true")
  remark()
}
function show(i, pin = false) {
  if (i === focus && !pair && pin === pinned) return
  focus = i; pair = null; hint = -1; pinned = pin && i >= 0
  fill()
  if (pinned) say(`Pinned ${words(i)}. ${$("verdict").textContent}.`)
}
function showPair(p, pin = false) {
  pair = p; focus = -1; hint = -1; pinned = pin
  fill()
  if (pin) say(`Pair ${words(p[0])} and ${words(p[1])}. ${$("verdict").textContent}`)
}
const clear = () => { pinned = false; show(-1); say("Nothing pinned.") }
$("unpin").onclick = clear
document.addEventListener("keydown", e => { if (e.key === "Escape") { pinned ? clear() : choose([]) } })

for (const m of maps) {
  let pointer = null
  const place = e => { const r = m.box.getBoundingClientRect(); return [e.clientX - r.left, e.clientY - r.top] }
  m.box.addEventListener("pointermove", e => {
    if (e.pointerType === "touch" || e.buttons || pinned) return
    if (!pointer) requestAnimationFrame(() => { const p = pointer; pointer = null; if (p && !pinned) show(under(m, ...p, faded)) })
    pointer = place(e)
  })
  m.box.addEventListener("pointerleave", e => { pointer = null; if (!pinned && e.pointerType !== "touch") show(-1) })
  let down = null // a press that does not move is a tap
  m.box.addEventListener("pointerdown", e => { down = place(e) }, true)
  m.box.addEventListener("pointerup", () => requestAnimationFrame(() => document.activeElement.blur())) // bokeh's outline
  m.box.addEventListener("click", e => {
    const [x, y] = place(e)
    if (down && Math.hypot(x - down[0], y - down[1]) > 5) return
    const i = under(m, x, y, faded)
    if (i < 0 || (pinned && i === focus)) clear(); else show(i, true)
  }, true)
  for (const r of [m.X, m.Y]) r.change.connect(() => redraw(m))
  new ResizeObserver(() => {
    const r = m.box.getBoundingClientRect(), ratio = devicePixelRatio || 1
    Object.assign(m, { w: r.width, h: r.height })
    for (const g of [m.tiles, m.marks]) {
      Object.assign(g.canvas, { width: r.width * ratio, height: r.height * ratio })
      g.setTransform(ratio, 0, 0, ratio, 0, 0)
    }
    redraw(m)
  }).observe(m.box)
}

// ---- colours and the filter
const dark = matchMedia("(prefers-color-scheme: dark)"), narrow = matchMedia("(max-width: 700px)")
function paint() {
  const css = getComputedStyle(document.body), [ink, back, ...colors] = ["--ink", "--card", "--c0", "--c1"].map(v => css.getPropertyValue(v))
  theme = { ink, back, colors, ...page.palette[dark.matches ? "dark" : "light"] }
  const f = factors[colorBy]
  dots = new Array(n)
  let left = 0
  for (let i = 0; i < n; i++) {
    const match = matches(factors[filterBy], filterValue, i)
    faded[i] = match ? 0 : 1; left += match
    dots[i] = colorOf(f, i, theme)
  }
  for (const t of [0, 1]) model(`ring-${t}`).glyph.line_color = f?.paint ? { value: "#888888" } : { value: null } // white on white
  source.data = { ...source.data, color: dots, alpha: Float32Array.from(faded, v => v ? 0.06 : 0.85) }
  for (const m of maps) { m.levels = {}; redraw(m) }
  $("count").textContent = filterValue < 0 ? `${number(n)} images` : `${number(left)} of ${number(n)} images`
  legend()
}
function legend() {
  const f = factors[colorBy], { few, other, none } = theme
  if (!f) return $("legend").replaceChildren()
  const entry = (tag, color, text) => {
    const swatch = make("i")
    swatch.style.background = color
    return make(tag, "key", swatch, text)
  }
  const seen = f.paint ? f.values.length : TOP
  const keys = f.values.slice(0, seen).map((v, c) => {
    const e = entry("button", colorAt(f, c, few, other), v)
    e.setAttribute("aria-pressed", filterBy === colorBy && filterValue === c)
    e.onclick = () => filterBy === colorBy && filterValue === c ? filter(filterBy, -1) : filter(colorBy, c)
    return e
  })
  if (f.values.length > seen) keys.push(entry("span", other, `other (${f.values.length - seen} more)`))
  if (f.code.includes(NONE)) keys.push(entry("span", none, "no value"))
  $("legend").replaceChildren(...keys)
}
const option = (value, text) => { const e = make("option", "", text); e.value = value; return e }
function filter(by, value) {
  filterValue = value
  if (by !== filterBy) {
    filterBy = by
    const f = factors[by]
    $("value").replaceChildren(option(-1, f ? "all values" : "–"),
      ...(f ? f.values.map((v, c) => option(c, `${v} (${number(f.counts[c])})`)) : []))
  }
  $("value").hidden = by < 0
  $("factor").value = by; $("value").value = value
  paint()
  say($("count").textContent)
}
for (const [id, first] of [["color", "nothing"], ["factor", "nothing"]])
  $(id).append(option(-1, first), ...factors.map((f, c) => option(c, f.label)))
$("color").value = colorBy
$("color").onchange = e => { colorBy = +e.target.value; paint() }
$("factor").onchange = e => filter(+e.target.value, -1)
$("value").onchange = e => filter(filterBy, +e.target.value)
$("pictures").onclick = () => { lit = !lit; $("pictures").setAttribute("aria-pressed", lit); maps.forEach(redraw) }
dark.addEventListener("change", paint)

// ---- what a drag does, and how near the maps are
const MODES = ["move", "box", "lasso"]
function mode(name) {
  for (const id of MODES) {
    $(id).setAttribute("aria-pressed", id === name)
    for (const t of [0, 1]) model(`${id}-${t}`).active = id === name
  }
}
for (const id of MODES) $(id).onclick = () => mode($(id).getAttribute("aria-pressed") === "true" ? null : id)
mode(matchMedia("(pointer: coarse)").matches ? null : "move") // a thumb scrolls the page first
function zoom(by) {
  for (const m of maps) for (const r of [m.X, m.Y]) r.setv(zoomed(r, by))
}
$("nearer").onclick = () => zoom(1.5)
$("farther").onclick = () => zoom(1 / 1.5)
$("reset").onclick = () => {
  for (const { X, Y, home } of maps) { X.setv({ start: home[0], end: home[1] }); Y.setv({ start: home[2], end: home[3] }) }
  clear(); choose([])
}

// ---- a selection in one map is the same selection in the other: they share their dots
const SHOWN = 60
const choose = rows => { source.selected.indices = rows }
source.selected.properties.indices.change.connect(() => {
  chosen = Array.from(source.selected.indices)
  $("selection").hidden = !chosen.length
  remark()
  if (!chosen.length) return
  $("selected").textContent = `${number(chosen.length)} ${chosen.length === 1 ? "image" : "images"} selected` +
    (chosen.length > SHOWN ? `, the first ${SHOWN} shown` : "")
  $("share").textContent = `${percent(mean(chosen.map(i => kept[i])))} of their nearest neighbors are the same in both encoders; ` +
    `over all images: ${percent(mean(kept))}.`
  $("thumbs").replaceChildren(...chosen.slice(0, SHOWN).map(i => {
    const e = thumb(make("button", "pic"), i)
    e.onclick = () => show(i, true)
    return e
  }))
  say($("selected").textContent + ". " + $("share").textContent)
})
$("unselect").onclick = () => choose([])

// ---- the pairs that moved most
page.pairs.forEach((pairs, d) => {
  $("pairs-" + d).append(...pairs.map((p, r) => {
    const sigma = [0, 1].map(t => { const e = make("span", "", `${signed(p[2 + t])} σ ${names[t]}`); e.style.color = `var(--c${t})`; return e })
    const e = make("button", "row", make("span", "rank", String(r + 1)), picture(p[0]), picture(p[1]), make("span", "sigmas", ...sigma))
    p.row = e
    e.onmouseenter = e.onfocus = () => { if (!pinned) showPair(p) }
    e.onmouseleave = e.onblur = () => { if (!pinned) show(-1) }
    e.onclick = () => {
      if (pair === p && pinned) return clear()
      showPair(p, true)
      if (narrow.matches) $("map-0").scrollIntoView({ block: "start", behavior: "smooth" })
    }
    return make("li", "", e)
  }))
})

filter(-1, -1)
fill()
if (telling >= 0 && !narrow.matches) show(telling, true) // an image that shows what separates the two
window.atlas = { maps, at, show, choose, state: () => ({ focus, pair: pair && pair.slice(0, 2), pinned, chosen,
                 filtered: n - faded.reduce((a, b) => a + b, 0) }) }
document.body.dataset.ready = "true"
})()
