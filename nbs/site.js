// Images that cells draw enlarge at a click; their tables sort by a column. Both work from the keyboard.
const all = css => [...document.querySelectorAll(css)]
const make = (tag, attrs, ...inside) => { const e = Object.assign(document.createElement(tag), attrs); e.append(...inside); return e }
const dialog = make("dialog", { className: "enlarged", ariaLabel: "Image" })
const close = make("button", { type: "button", className: "btn-close", ariaLabel: "Close" })
document.body.append(dialog)
dialog.onclick = () => dialog.close()
for (const img of all("main .cell-output img, main .cell-output-display img, main figure img")) {
  if (img.closest("a, button, .no-lightbox")) continue
  const button = make("button", { type: "button", className: "enlarge", title: "Enlarge" })
  img.replaceWith(button); button.append(img)
  button.onclick = () => { dialog.replaceChildren(close, make("img", { src: img.src, alt: img.alt })); dialog.showModal() }
}

// Signs as print has them, whoever wrote the number; options of a command are not broken after a hyphen.
const walk = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT)
while (walk.nextNode()) {
  const t = walk.currentNode, said = printed(t.data, t.parentElement.closest("th"))
  if (said !== t.data && !t.parentElement.closest("pre, code, script, style")) t.data = said
}
for (const code of all("main :not(pre) > code"))
  if (code.textContent.includes("-") && !code.childElementCount) code.replaceChildren(...code.textContent.split(/(\s+)/)
    .map(x => /^-/.test(x) ? make("span", { className: "option" }, x) : x))

// A row of heads that only names the rows goes into the corner above it.
for (const head of all("main .cell-output thead")) {
  const [top, names] = head.rows, text = row => [...row.cells].map(c => c.textContent.trim())
  if (head.rows.length !== 2 || head.querySelector("[rowspan], [colspan]")) continue
  const named = corner(text(top), text(names))
  for (let k = 0; k < named; k++) top.cells[k].append(...names.cells[k].childNodes)
  if (named >= 0) names.remove()
}

for (const table of all("main .cell-output table, main .cell-output-display table")) {
  const body = table.tBodies[0], heads = table.tHead ? [...table.tHead.rows] : []
  if (!body || heads.length !== 1 || body.rows.length < 3 || table.querySelector("[rowspan], [colspan]")) continue
  const first = [...body.rows]
  for (const th of heads[0].cells) {
    if (!th.textContent.trim()) continue
    const button = make("button", { type: "button", className: "sort" }, ...th.childNodes)
    th.append(button)
    button.onclick = () => {
      const up = th.ariaSort === "ascending" ? -1 : 1, k = th.cellIndex
      for (const other of heads[0].cells) other.removeAttribute("aria-sort")
      th.ariaSort = up > 0 ? "ascending" : "descending"
      const of = row => row.cells[k].textContent.trim()
      body.append(...first.toSorted((r, s) => order(of(r), of(s), up)))
    }
  }
}

// What the builder leaves to us for readers without a mouse or a screen: corners of tables are no headings, what scrolls
// can be reached, what folds is a button, landmarks have names.
for (const th of all("main th:not([scope=row])")) if (!th.textContent.trim()) th.replaceWith(make("td", {}))
for (const th of all("main .cell-output tbody th:first-child")) th.classList.toggle("long", th.textContent.trim().length > 14)
for (const td of all("main .cell-output tbody td")) td.classList.toggle("long", td.textContent.trim().length > 48)
for (const th of all("main .cell-output thead th")) { // in two lines at most, or one long head leaves a hole above the others
  const n = th.textContent.trim().length
  if (n) th.style.minWidth = headWidth(n) + "ch"
}
const more = e => e.classList.toggle("more", e.scrollLeft + e.clientWidth < e.scrollWidth - 1)
const reach = () => all("main pre, main .cell-output, main .cell-output-display, main .sd-table, main .math-display")
  .forEach(e => { if (e.scrollWidth > e.clientWidth) e.tabIndex = 0; else e.removeAttribute("tabindex"); more(e); e.onscroll = () => more(e) })
addEventListener("resize", reach); addEventListener("load", reach); reach()
for (const a of all("a[role=navigation]:not([href])")) { // they fold a part of the sidebar
  a.role = "button"; a.tabIndex = 0
  a.onkeydown = e => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); a.click() } }
}
const names = { ".navbar": "Site", ".quarto-secondary-nav": "Top of the page", "#quarto-sidebar": "All pages", "#TOC": "On this page", ".page-navigation": "Next pages" }
for (const [css, name] of Object.entries(names)) for (const e of all(css)) e.ariaLabel = name
