// Rows of the editor: what they show, the filters, and the order.

const SIGNS = { pending: "○", skipped: "–", accepted: "✓", rejected: "✕" };
const FILTERS = {
  all: () => true, pending: (i) => i.status === "pending", skipped: (i) => i.status === "skipped",
  accepted: (i) => i.status === "accepted", rejected: (i) => i.status === "rejected",
  edited: (i) => i.diff, alike: (i) => i.alike != null, against: (i) => i.against.length > 0, cut: (i) => i.cut,
};
const LABELS = { alike: "Near-duplicates", against: "Contradictions", cut: "Over budget" };
const label = (kind) => LABELS[kind] ?? kind[0].toUpperCase() + kind.slice(1);

/** "written by 7 of 10 draws", or the other sources. */
function support({ support: n, of, sources }) {
  if (n) return of > 1 ? `written by ${n} of ${of} draws` : "";
  return sources.join(", ");
}

/** "worth +12 points [3, 21]": what the pass rate loses without the item; null if not measured. It recommends nothing if
 *  another item contradicts this one. */
function worthOf(worth, disputed) {
  if (!worth) return null;
  const [middle, low, high] = worth.map((rate) => Math.round(100 * rate));
  const said = `worth ${middle > 0 ? "+" : ""}${middle} points [${low}, ${high}]`.replaceAll("-", "−");
  const title = "Pass rate with all items minus that without this one, with its 95% interval. Look at the evidence first.";
  if (disputed) return el("span", { title }, `${said}: see the evidence`);
  return el(low > 0 || high < 0 ? "b" : "span", { title, class: low > 0 ? "oel-helps" : high < 0 ? "oel-against" : "" }, said);
}

/** One row. here: it has the cursor; unit: tokens or words; edge: the budget cuts above it; on: go, write, select. */
function itemRow({ id, item, here, query, unit, edge, selected, on, place }) {
  const text = here && item.diff
    ? item.diff.map(([sign, words]) => el({ "=": "span", "-": "del", "+": "ins" }[sign], {}, visible(words), " "))
    : marked(here ? item.text : item.text.slice(0, 400), query);
  const parts = [
    item.against.length > 0 && el("b", { class: "oel-against", title: "These seem to contradict each other" },
      `contradicts “${visible(item.against[0][1].slice(0, 60))}”${item.against.length > 1
        ? ` and ${item.against.length - 1} more` : ""}`),
    worthOf(item.worth, item.against.length > 0), support(item), item.items > 1 && several(item.items, "item"), item.seen > 0 && `${several(item.seen, "turn")} of evidence`,
    item.alike != null && el("span", { class: "oel-alike", title: "Similar to other items: see the Near-duplicates filter" },
      `near-duplicate ${item.alike + 1}`),
    item.diff && "edited", item.auto && "decided automatically", item.cut && el("b", {}, "over budget"), edge && el("b", {}, "the budget cuts above"),
    `${number(item.tokens)} ${item.tokens === 1 ? unit.slice(0, -1) : unit}`].filter(Boolean);
  const node = el("div", {
    role: "listitem", class: `oel-row oel-${item.status}`, tabindex: here ? 0 : -1, "aria-current": here && "true",
    "aria-setsize": place[1], "aria-posinset": place[0] + 1,
    onclick: () => here || on.go(id), ondblclick: () => on.write(id),
  },
    el("input", {
      type: "checkbox", tabindex: -1, "aria-label": "Select", onclick: (e) => { e.stopPropagation(); on.select(id); },
    }),
    el("span", { class: "oel-chip" }, `${SIGNS[item.status]} ${item.status}`),
    el("div", { class: "oel-text", dir: "auto", tabindex: here && item.text.length > 1200 ? 0 : null }, ...text),
    el("span", { class: "oel-meta" }, ...parts.flatMap((part, i) => (i ? [" · ", part] : [part]))));
  node.firstChild.checked = selected;
  node.classList.toggle("oel-cut", item.cut);
  node.classList.toggle("oel-edge", edge);
  return node;
}

/** Ids in the requested order. */
function sorted(ids, items, sort, filter) {
  const by = (key) => (a, b) => key(items.get(b)) - key(items.get(a));
  if (filter === "alike") return ids.sort((a, b) => items.get(a).alike - items.get(b).alike);  // stable
  if (filter === "against") {  // keep contradicting items together
    const first = (id) => Math.min(...[id, ...items.get(id).against.map(([other]) => other)].map((i) => ids.indexOf(i))
      .filter((i) => i >= 0));
    const places = new Map(ids.map((id) => [id, first(id)]));
    return ids.sort((a, b) => places.get(a) - places.get(b));
  }
  if (sort === "support") return ids.sort((a, b) => by((i) => i.support)(a, b) || by((i) => i.items)(a, b));
  if (sort === "worth") return ids.sort(by((i) => i.worth?.[0] ?? -Infinity));
  if (sort === "evidence") return ids.sort(by((i) => i.seen));
  return ids;
}
