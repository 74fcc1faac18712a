// Menus and fields to filter and sort the list of games.

/** The value of a menu's option; "" is the one for any. */
const optionOf = (value) => String(value) || "no arm";

/** filter, sort: the choices, changed here; rows(), tags(): from index and notes; refilter, relist: called after a change. */
function filterBar({ filter, sort, rows, tags, refilter, relist }) {
  const node = el("div", { class: "ov-group" });
  function select(key, any, label = String) {
    const counts = key === "tag" ? tags() : new Map();
    if (key !== "tag") for (const r of rows()) counts.set(r[key], (counts.get(r[key]) ?? 0) + 1);
    if (counts.size < (key === "tag" ? 1 : 2)) return null;
    const values = [...counts.keys()].sort((a, b) => (a > b ? 1 : -1));
    return el("select", { "aria-label": { cut: "cut off", taught: "has items" }[key] ?? key, "data-filter": key,
      onchange(e) { filter[key] = e.target.value; refilter(); } }, el("option", { value: "" }, any),
    ...values.map((v) => el("option", { value: optionOf(v), selected: filter[key] === optionOf(v) },
      `${label(v)} (${counts.get(v)})`)));
  }
  const field = (key, label) => el("input", { "data-filter": key, "aria-label": label, placeholder: label, type: "text", value: filter[key],
    inputmode: "numeric", oninput(e) { filter[key] = e.target.value; refilter(); } });
  const order = el("button", { title: "descending", "aria-label": "descending", "aria-pressed": "false", onclick() {
    sort.down = !sort.down;
    order.setAttribute("aria-pressed", String(sort.down));
    order.textContent = sort.down ? "↓" : "↑";
    relist();
  } }, "↑");
  function draw() {
    const lengths = new Set(rows().map((r) => r.turns)).size > 1, seeds = rows().some((r) => r.seed != null);
    const keys = ["outcome", "round", "arm", "seed", "turns", "tokens", "cut", "id"];
    const sorts = el("select", { "aria-label": "sort by", onchange(e) { sort.by = e.target.value; relist(); } },
      el("option", { value: "" }, "sort: as given"),
      ...keys.map((key) => el("option", { value: key, selected: sort.by === key }, `sort: ${key === "cut" ? "cut off" : key}`)));
    node.replaceChildren(...[
      select("outcome", "outcome", outcomeName), select("round", "round", (v) => `round ${v}`),
      select("arm", "arm", (v) => visible(optionOf(v))),
      select("taught", "items", (v) => (v ? "has items" : "no items")), select("tag", "tag", visible),
      select("cut", "cut off", (v) => (v ? "cut off" : "not cut off")),
      lengths && el("span", { class: "ov-pair" }, field("low", "min turns"), "–", field("high", "max turns")),
      seeds && field("seed", "map seed"), el("span", { class: "ov-pair" }, sorts, order)].filter(Boolean));
  }
  return { node, draw };
}
