// Shared by the views. Model text is untrusted: it only ever becomes a text node or an attribute.

/** An element: el("button", { class: "x", onclick: f, hidden: true }, "text or", node, …). */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child != null && child !== false));
  return node;
}

/** A text with its control and bidi characters, which are invisible or reorder their neighbours, made visible. */
function visible(text) {
  const hidden = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;
  const name = (code) => (code < 0x20 ? String.fromCharCode(0x2400 + code) : `\u2039${code.toString(16)}\u203a`);
  return text.replace(hidden, (c) => name(c.charCodeAt(0)));
}

const number = (n) => n.toLocaleString("en");
const several = (n, what) => `${number(n)} ${what}${n === 1 ? "" : "s"}`;
const outcomeName = (outcome) => ({ success: "won", failure: "lost" })[outcome] ?? outcome.replace("_", " ");

/** Text as nodes, with search hits marked. */
function marked(text, query) {
  if (!query) return [visible(text)];
  const parts = text.split(new RegExp(`(${query.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")})`, "gi"));
  return parts.map((part, i) => (i % 2 ? el("mark", {}, visible(part)) : visible(part)));
}

/** Keep Jupyter's shortcuts out of `root`, except those with Ctrl or Cmd outside a field. Notebook 7 sees a key before
 *  `root` does, so stopping the event is too late; it checks an attribute of the focused element instead. */
function ownKeys(root) {
  const own = ({ ctrlKey, metaKey, target }) => target.toggleAttribute("data-lm-suppress-shortcuts",
    !(ctrlKey || metaKey) || target.matches("input, textarea, select"));
  for (const kind of ["keydown", "keyup", "focusin"]) root.addEventListener(kind, own);
}

/** A list that keeps only the visible rows in the page. count(): rows; row(i): its element; height: px of a row, or with
 *  key(i), its name, until it was drawn; keep(): a row that always stays in the page (the one with the focus), or -1. */
function virtualList({ count, height, row, key = null, keep = () => -1, attributes = {} }) {
  const rows = el("div", { class: "oel-rows", role: "list" });
  const box = el("div", { class: "oel-list", ...attributes }, rows);
  let tops = [0], drawn = new Map();
  const heights = new Map();  // measured, by key
  const tall = (i) => (key && heights.get(key(i))) || height;

  const at = (y) => {  // the row at that height
    let low = 0, high = tops.length - 2;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (tops[middle] <= y) low = middle; else high = middle - 1;
    }
    return low;
  };
  function draw() {
    place();
    for (let tries = 0; key && tries < 4 && measure(); tries++) { stack(); place(); }
  }
  function measure() {  // whether a drawn row has another height than was thought
    const other = [...drawn].filter(([i, { offsetHeight: h }]) => h && Math.abs(h - tall(i)) > 1);
    for (const [i, node] of other) heights.set(key(i), node.offsetHeight);
    return other.length > 0;
  }
  function stack() {
    tops = [0];
    for (let i = 0; i < count(); i++) tops.push(tops[i] + tall(i));
    rows.style.height = `${tops.at(-1)}px`;
  }
  function place() {
    const wanted = new Set(), n = tops.length - 1;
    if (n) for (let i = at(box.scrollTop - 200); i <= at(box.scrollTop + box.clientHeight + 200); i++) wanted.add(i);
    if (keep() >= 0 && keep() < n) wanted.add(keep());
    const before = drawn;
    drawn = new Map([...wanted].sort((a, b) => a - b).map((i) => [i, before.get(i) ?? row(i)]));
    const nodes = new Set(drawn.values());
    for (const child of [...rows.children]) if (!nodes.has(child)) child.remove();
    let next = rows.firstChild;
    for (const [i, node] of drawn) {  // a node already in place is not touched, to keep the focus
      node.style.top = `${tops[i]}px`;
      if (node === next) next = next.nextSibling; else rows.insertBefore(node, next);
    }
  }
  /** Call after rows were added, removed or changed. */
  function refresh() {
    stack();
    drawn.clear();
    draw();
  }
  function reveal(i) {
    for (let tries = 0; tries < 2; tries++) {  // again if rows that were not drawn before are higher than was thought
      if (tops[i + 1] > box.scrollTop + box.clientHeight) box.scrollTop = tops[i + 1] - box.clientHeight;
      if (tops[i] < box.scrollTop) box.scrollTop = tops[i];
      draw();
    }
  }
  box.addEventListener("scroll", draw);
  new ResizeObserver(draw).observe(box);
  return { box, refresh, reveal };
}

/** What went wrong; hidden if that is nothing. */
function failureBox() {
  const node = el("div", { class: "oel-failure", role: "alert", hidden: true });
  return { node, tell: (...words) => { node.replaceChildren(...words); node.hidden = !words.some(Boolean); } };
}

const UNHEARD = "The kernel does not answer: it is busy or has stopped.";
const QUIET = 6000;  // ms without an answer until the kernel counts as busy or gone

/** Messages to Python and back. lost(): no answer in time, or sending failed; found(): an answer arrived after all. */
function line(model, { hear, lost, found }) {
  let timer = null, down = false;
  const miss = () => { timer = null; down = true; lost(); };
  function send(message) {
    timer ??= setTimeout(miss, QUIET);
    try { model.send(message); } catch { clearTimeout(timer); miss(); }
  }
  function receive(message) {
    if (message.json == null) return;
    clearTimeout(timer);
    timer = null;
    if (down) { down = false; found(); }
    hear(JSON.parse(message.json));
  }
  model.on("msg:custom", receive);
  return { send, close: () => { clearTimeout(timer); model.off("msg:custom", receive); }, down: () => down };
}

/** Download a text as a file. */
function download(name, text) {
  const link = el("a", { href: URL.createObjectURL(new Blob([text], { type: "text/plain;charset=utf-8" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

/** Insert a view and hide the static table of a saved notebook beside it (in Jupyter, STATIC's style does the same).
 *  If it is alone on its page, as in `oelkit curate`, it takes the focus at once. */
function settle(host, root, takeKeys) {
  host.append(root);
  requestAnimationFrame(() => {  // once it is in the page
    const cell = host.closest(".jp-OutputArea, .output, .cell") ?? document;
    for (const node of cell.querySelectorAll(".oel-static")) node.hidden = true;
    if (getComputedStyle(root).position === "fixed") takeKeys();
  });
}

/** A divider between two columns of `root`, for mouse and arrow keys; --left holds the left column's share. */
function divider(root, share) {
  const set = (percent) => {
    share = Math.min(80, Math.max(20, percent));
    root.style.setProperty("--left", `${share}%`);
    bar.ariaValueNow = Math.round(share);
  };
  const bar = el("div", { class: "oel-divider", role: "separator", tabindex: 0, "aria-orientation": "vertical",
    "aria-label": "Width of the list", "aria-valuemin": 20, "aria-valuemax": 80,
    onpointerdown(event) { bar.setPointerCapture(event.pointerId); event.preventDefault(); },
    onpointermove(event) {
      if (!bar.hasPointerCapture(event.pointerId)) return;
      const box = bar.parentElement.getBoundingClientRect();
      set((100 * (event.clientX - box.left)) / box.width);
    },
    onkeydown(event) {
      const by = { ArrowLeft: -2, ArrowRight: 2 }[event.key];
      if (by) { set(share + by); event.preventDefault(); event.stopPropagation(); }
    } });
  set(share);
  return bar;
}
