// Games turn by turn. The index of all games is here; the text of a game is asked for when it is opened.

const GLYPH = { success: "✓", failure: "✕", invalid: "!", turn_limit: "…", unknown: "?" };
const COLUMNS = ["id", "outcome", "round", "arm", "seed", "turns", "cut", "tokens", "map"];
const ROW = 46;
const CLIP = 20000;  // characters that a text shows before one asks for the rest
const name = (outcome) => outcome.replace("_", " ");
const dots = (...parts) => parts.filter(Boolean).join(" · ");
const count = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;

/** Text as nodes, with what is searched for marked. */
function marked(text, query) {
  if (!query) return [visible(text)];
  const parts = text.split(new RegExp(`(${query.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")})`, "gi"));
  return parts.map((part, i) => (i % 2 ? el("mark", {}, visible(part)) : visible(part)));
}

export default { render({ model, el: host }) {
  let rows = [], shown = [], canGo = false;            // index, the games listed (positions in it), may items be opened
  let query = "", byGame = null, hits = [];            // search: its text, {game: [turns]}, those that are listed in order
  const games = new Map(), open = new Set();           // text of the games on screen; names of unfolded parts
  const filter = {}, sort = { by: "", down: false };
  const at = () => model.get("at");
  const go = (change) => { model.set("at", { ...at(), ...change }); model.save_changes(); };
  const focused = () => host.getRootNode().activeElement;
  const uid = `oel${Math.random().toString(36).slice(2, 9)}`;

  // -- list

  const list = virtualList({
    count: () => shown.length, height: () => ROW,
    row(i) {
      const game = shown[i], r = rows[game], found = byGame?.get(game)?.length;
      return el("div", { class: "ov-row", role: "option", id: `${uid}-${game}`, "aria-selected": String(game === at().game),
        "aria-posinset": i + 1, "aria-setsize": shown.length, onclick: () => choose(game) },
        el("span", { class: `ov-dot ov-${r.outcome}`, "aria-hidden": "true" }, GLYPH[r.outcome] ?? "?"),
        el("span", { class: "ov-what" },
          el("span", { title: visible(r.id) }, el("bdi", { class: "ov-id" }, r.seed == null ? visible(r.id) : `map ${r.seed}`), " ",
            el("span", { class: "ov-dim" }, dots(`round ${r.round}`, visible(r.arm)))),
          el("span", { class: "ov-dim" }, dots(found && count(found, "hit"), name(r.outcome), r.cut && "cut off",
            count(r.turns, "turn"), `${r.tokens.toLocaleString("en")} tok`))));
    },
    attributes: { role: "listbox", tabindex: 0, "aria-label": "games" },
  });
  list.box.firstChild.setAttribute("role", "presentation");

  function relist() {
    const number = (text) => (text?.trim() ? Number(text) : null);
    const low = number(filter.low), high = number(filter.high);
    shown = rows.map((_, i) => i).filter((i) => {
      const r = rows[i];
      return ["outcome", "round", "arm", "cut"].every((key) => !filter[key] || String(r[key]) === filter[key])
        && (!filter.seed || String(r.seed ?? "").startsWith(filter.seed.trim()))
        && (low === null || r.turns >= low) && (high === null || r.turns <= high) && (!byGame || byGame.has(i));
    });
    if (sort.by) {
      const less = (a, b) => (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
      shown.sort((a, b) => (sort.down ? -1 : 1) * less(rows[a][sort.by] ?? -1, rows[b][sort.by] ?? -1) || a - b);
    }
    hits = byGame ? shown.flatMap((game) => byGame.get(game).map((turn) => ({ game, turn }))) : [];
    list.refresh();
    status.textContent = shown.length === rows.length ? count(rows.length, "game")
      : `${shown.length.toLocaleString("en")} of ${count(rows.length, "game")}`;
    reset.hidden = !query && !Object.values(filter).some(Boolean);
    showHits();
    followList();
  }
  function followList() {
    const i = shown.indexOf(at().game);
    for (const node of list.box.querySelectorAll("[role=option]"))
      node.setAttribute("aria-selected", String(node.id === `${uid}-${at().game}`));
    if (i >= 0) {
      list.reveal(i);
      list.box.setAttribute("aria-activedescendant", `${uid}-${at().game}`);
    } else list.box.removeAttribute("aria-activedescendant");
  }
  /** Open a game; where two were side by side, the one beside it is again of that arm and round. */
  function choose(game, turn = 0) {
    const beside = rows[at().other];
    const other = beside && twins(game).find((i) => rows[i].arm === beside.arm && rows[i].round === beside.round);
    go({ game, turn, other: other ?? null });
  }
  const twins = (game) => rows.flatMap((r, i) => (i !== game && r.map === rows[game]?.map ? [i] : []));
  function step(by) {
    const i = shown.indexOf(at().game);
    const next = i < 0 ? shown[0] : shown[Math.min(shown.length - 1, Math.max(0, i + by))];
    if (next !== undefined && next !== at().game) choose(next);
  }

  // -- search

  const search = el("input", { type: "search", placeholder: "search in games", "aria-label": "search boards, replies and feedback",
    oninput: () => { clearTimeout(search.timer); search.timer = setTimeout(ask, 200); } });
  function ask() {
    clearTimeout(search.timer);
    if (search.value === query) return;
    query = search.value;
    if (query) model.send({ kind: "search", text: query });
    else { byGame = null; relist(); draw(); }
  }
  function hit(by) {
    if (!hits.length) return;
    const { game, turn } = at(), here = hits.findIndex((h) => h.game === game && h.turn === turn);
    const place = shown.indexOf(game);
    const later = hits.findIndex((h) => h.game === game ? h.turn > turn : shown.indexOf(h.game) > place);
    const next = here >= 0 ? here + by : by > 0 ? later : (later < 0 ? hits.length : later) - 1;
    const to = hits[(next + hits.length) % hits.length];
    to.game === game ? go({ turn: to.turn }) : choose(to.game, to.turn);
    detail.scroll = true;
  }
  function showHits() {
    const { game, turn } = at(), here = hits.findIndex((h) => h.game === game && h.turn === turn);
    hitText.textContent = !byGame ? "" : !hits.length ? "no hit" : `${here < 0 ? "–" : here + 1} of ${count(hits.length, "hit")}`;
    earlier.disabled = later.disabled = !hits.length;
  }
  const earlier = el("button", { title: "previous hit (N)", "aria-label": "previous hit", onclick: () => hit(-1) }, "↑");
  const later = el("button", { title: "next hit (n)", "aria-label": "next hit", onclick: () => hit(1) }, "↓");
  const hitText = el("span", { class: "ov-dim", role: "status" });

  // -- filters

  const reset = el("button", { hidden: true, onclick() {
    for (const key of Object.keys(filter)) delete filter[key];
    for (const field of bar.querySelectorAll("[data-filter]")) field.value = "";
    search.value = query = "";
    byGame = null;
    relist();
    draw();
    list.box.focus();
  } }, "clear");
  function select(key, any, label = String) {
    const counts = new Map();
    for (const r of rows) counts.set(r[key], (counts.get(r[key]) ?? 0) + 1);
    if (counts.size < 2) return [];
    const values = [...counts.keys()].sort((a, b) => (a > b ? 1 : -1));
    return [el("select", { "aria-label": key === "cut" ? "cut off" : key, "data-filter": key,
      onchange(e) { filter[key] = e.target.value; relist(); } },
      el("option", { value: "" }, any),
      ...values.map((v) => el("option", { value: String(v) }, `${label(v)} (${counts.get(v)})`)))];
  }
  const field = (key, label) => el("input", { "data-filter": key, "aria-label": label, placeholder: label,
    type: "text", inputmode: "numeric", oninput(e) { filter[key] = e.target.value; relist(); } });
  const order = el("button", { title: "turn the order round", "aria-label": "descending", "aria-pressed": "false", onclick() {
    sort.down = !sort.down;
    order.setAttribute("aria-pressed", String(sort.down));
    order.textContent = sort.down ? "↓" : "↑";
    relist();
  } }, "↑");
  const filters = el("div", { class: "ov-group" });
  function offer() {
    const lengths = new Set(rows.map((r) => r.turns)).size > 1, seeds = rows.some((r) => r.seed != null);
    filters.replaceChildren(...select("outcome", "any outcome", name), ...select("round", "any round", (v) => `round ${v}`),
      ...select("arm", "any arm", (v) => visible(v) || "no arm"), ...select("cut", "cut off or not", (v) => (v ? "cut off" : "not cut off")),
      ...(lengths ? [el("span", { class: "ov-pair" }, field("low", "min turns"), "–", field("high", "max turns"))] : []),
      ...(seeds ? [field("seed", "map seed")] : []),
      el("span", { class: "ov-pair" }, el("select", { "aria-label": "sort by", onchange(e) { sort.by = e.target.value; relist(); } },
        ...["", "outcome", "round", "arm", "seed", "turns", "tokens", "cut", "id"].map((key) =>
          el("option", { value: key }, key ? `sort: ${key === "cut" ? "cut off" : key}` : "sort: as given"))), order));
  }

  // -- a game

  const title = el("span", { class: "ov-title" });
  const compare = el("select", { "aria-label": "compare with", onchange: () =>
    go({ other: compare.value === "" ? null : Number(compare.value) }) });
  const slider = el("input", { type: "range", min: 1, "aria-label": "turn", oninput: () => go({ turn: slider.value - 1 }) });
  const back = el("button", { title: "previous turn (←)", "aria-label": "previous turn", onclick: () => turnBy(-1) }, "‹");
  const on = el("button", { title: "next turn (→)", "aria-label": "next turn", onclick: () => turnBy(1) }, "›");
  const place = el("span", { class: "ov-place", role: "status" });
  const differ = el("button", { class: "ov-differ", onclick: () => go({ turn: differ.turn }) });
  const body = el("div", { class: "ov-games" });
  const detail = el("div", { class: "ov-detail", role: "region", "aria-label": "game", tabindex: 0 },
    el("div", { class: "ov-head" }, title, compare), el("div", { class: "ov-steps" }, back, slider, on, place, differ), body);

  const pair = () => [at().game, at().other].filter((i) => i != null).map((i) => games.get(i));
  function turnBy(by) {
    const last = Math.max(...pair().map((g) => g?.turns.length ?? 1)) - 1;
    const turn = Math.min(last, Math.max(0, at().turn + by));
    if (turn !== at().turn) go({ turn });
  }
  /** The first turn in which two games of a map do not do the same; -1: none. */
  function divergence([a, b]) {
    const done = (t) => t && (t.action ?? t.thinking + t.reply.join(""));
    for (let i = 0; i < Math.max(a.turns.length, b.turns.length); i++) if (done(a.turns[i]) !== done(b.turns[i])) return i;
    return -1;
  }

  function long(text) {
    if (text.length <= CLIP || (query && text.toLowerCase().includes(query.toLowerCase(), CLIP - query.length)))
      return marked(text, query);
    const more = el("button", { class: "ov-more", "data-focus": "more", onclick() {
      more.replaceWith(...marked(text.slice(CLIP), query));
      detail.focus({ preventScroll: true });
    } }, `… show ${count(text.length - CLIP, "more character")}`);
    return [...marked(text.slice(0, CLIP), query), more];
  }
  const block = (label, kind, ...content) => el("section", { class: `ov-block${kind && ` ov-${kind}`}` }, el("h4", {}, label),
    el("div", { class: "ov-text", dir: "auto" }, ...content));
  function fold(key, label, ...content) {
    const node = el("details", { class: "ov-fold", open: open.has(key) }, el("summary", { "data-focus": key }, label), ...content);
    if (query && node.querySelector("mark")) node.open = true;
    else node.addEventListener("toggle", () => (node.open ? open.add(key) : open.delete(key)));
    return node;
  }
  const text = (value) => el("div", { class: "ov-text", dir: "auto" }, ...long(value));

  function column(index, game, differs) {
    const r = rows[index], turn = game.turns[at().turn], both = at().other != null;
    const strip = game.turns.length > 1 && game.turns.length <= 24 && game.turns.every((t) => t.cells.length)
      ? el("div", { class: "ov-strip" }, ...game.turns.map((t, i) =>
        el("button", { "data-focus": `${index}/${i}`, "aria-label": `turn ${i + 1}: ${visible(t.action ?? "no move")}${i === differs ? ", first difference" : ""}`,
          "aria-current": i === at().turn ? "step" : false, class: i === differs && "ov-differs", onclick: () => go({ turn: i }) },
        board(t), el("span", { "aria-hidden": "true" }, `${i + 1}`)))) : "";
    const caption = both ? el("h3", {}, el("span", { class: `ov-pill ov-${r.outcome}` }, name(r.outcome)), " ",
      el("bdi", { title: visible(r.id) }, dots(visible(r.arm), `round ${r.round}`))) : "";
    if (!turn) return el("div", { class: "ov-game" }, caption, strip,
      el("p", { class: "ov-dim" }, `ended after ${count(game.turns.length, "turn")}: ${visible(game.feedback)}`));
    const [before, mark, after] = turn.reply, found = turn.action != null;
    return el("div", { class: "ov-game" }, caption, strip,
      el("div", { class: turn.cells.length > 0 && "ov-turn" },
        turn.cells.length ? el("div", { class: "ov-board" }, board(turn)) : block("observation", "", ...long(turn.observation)),
        el("div", { class: "ov-texts" },
          turn.thinking ? fold("thinking", `thinking · ${count(turn.thinking.length, "character")}`, text(turn.thinking)) : "",
          block(el("span", {}, `reply · ${count(turn.reply_tokens, "token")}`,
            turn.truncated ? el("span", { class: "ov-pill ov-cut" }, "cut off at the limit") : ""), "reply",
            ...(before + mark + after ? [...long(before), mark ? el("b", { class: "ov-action" }, ...marked(mark, query)) : "", ...long(after)]
              : [el("span", { class: "ov-dim" }, turn.thinking ? "no answer: the thinking never ended" : "empty")])),
          el("p", { class: "ov-move" }, "move ", el("b", { class: found ? "ov-action" : "ov-action ov-none" }, found ? visible(turn.action) : "none found"),
            at().turn === differs ? el("span", { class: "ov-pill ov-differs" }, "first difference") : ""),
          block("feedback", `feedback${at().turn === game.turns.length - 1 ? ` ov-${r.outcome}` : ""}`, ...long(turn.feedback)))),
      turn.items.length ? el("section", { class: "ov-block ov-items" }, el("h4", {}, "items from this turn"),
        ...turn.items.map(([id, words]) => (canGo ? el("button", { "data-focus": `item ${id}`, onclick: () => model.send({ kind: "item", id }) }, visible(words))
          : el("p", {}, visible(words))))) : "",
      fold("prompt", `prompt · ${count(turn.prompt_tokens, "token")}`, ...turn.prompt.flatMap(([role, words]) =>
        [el("h4", {}, visible(role)), text(words)])),
      turn.cells.length ? fold("observation", "board as text", text(turn.observation)) : "");
  }

  function draw() {
    const { game, turn, other } = at(), wanted = [game, other].filter((i) => i != null && i < rows.length);
    for (const key of games.keys()) if (!wanted.includes(key)) games.delete(key);
    followList();
    showHits();
    if (!wanted.length || !wanted.every((i) => games.has(i))) return;  // what is there stays until the text comes
    const r = rows[game], texts = wanted.map((i) => games.get(i)), last = Math.max(...texts.map((g) => g.turns.length));
    title.replaceChildren(el("span", { class: `ov-pill ov-${r.outcome}` }, name(r.outcome)), " ", el("bdi", { class: "ov-id" }, visible(r.id)),
      el("span", { class: "ov-dim" }, dots(visible(texts[0].model), `round ${r.round}`, visible(r.arm), r.seed != null && `map seed ${r.seed}`,
        count(r.tokens, "token"))));
    const others = twins(game);
    compare.replaceChildren(el("option", { value: "" }, others.length ? `compare… (${others.length} of this map)` : "no other game of this map"),
      ...others.map((i) => el("option", { value: i }, dots(visible(rows[i].arm), `round ${rows[i].round}`, name(rows[i].outcome), visible(rows[i].id)))));
    compare.value = other ?? "";
    compare.disabled = !others.length;
    const differs = texts.length > 1 ? divergence(texts) : -1;
    slider.max = last;
    slider.value = turn + 1;
    slider.disabled = last === 1;
    place.textContent = `turn ${turn + 1} of ${last}`;
    slider.setAttribute("aria-valuetext", place.textContent);
    back.disabled = turn <= 0;
    on.disabled = turn >= last - 1;
    differ.hidden = texts.length < 2;
    differ.disabled = differs < 0;
    differ.turn = differs;
    differ.textContent = differs < 0 ? "same moves" : `first difference: turn ${differs + 1}`;
    const had = body.contains(focused()) ? focused().dataset.focus ?? "" : null;
    body.classList.toggle("ov-two", texts.length > 1);
    body.replaceChildren(...wanted.map((i) => column(i, games.get(i), differs)));
    detail.removeAttribute("aria-busy");
    if (had !== null) ([...body.querySelectorAll("[data-focus]")].find((n) => n.dataset.focus === had) ?? detail).focus({ preventScroll: true });
    if (detail.scroll) body.querySelector("mark")?.scrollIntoView({ block: "nearest" });
    detail.scroll = false;
  }
  /** Something else is open: ask for what is not here. */
  function move() {
    for (const i of [at().game, at().other]) if (i != null && i < rows.length && !games.has(i)) {
      detail.setAttribute("aria-busy", "true");
      model.send({ kind: "game", game: i });
    }
    draw();
  }

  // -- keys, messages, page

  function key(event) {
    if (!(event.ctrlKey || event.metaKey) || event.key === "Enter") event.stopPropagation();  // else `a` inserts a cell
    const typing = event.target.matches("input:not([type=range]), select");
    if (event.target === search && event.key === "Enter") { ask(); hit(event.shiftKey ? -1 : 1); }
    else if (typing && event.key === "Escape") list.box.focus();
    else if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    else if (event.key in KEYS) KEYS[event.key]();
    else return;
    event.preventDefault();
  }
  const page = () => Math.max(1, Math.floor(list.box.clientHeight / ROW) - 1);
  const KEYS = {
    ArrowLeft: () => turnBy(-1), ArrowRight: () => turnBy(1), ArrowUp: () => step(-1), ArrowDown: () => step(1),
    k: () => step(-1), j: () => step(1), n: () => hit(1), N: () => hit(-1), "/": () => search.focus(),
    PageUp: () => step(-page()), PageDown: () => step(page()), Home: () => step(-rows.length), End: () => step(rows.length),
  };
  const status = el("span", { class: "ov-dim", role: "status" }, "waiting for the kernel");
  const bar = el("div", { class: "ov-bar" }, el("div", { class: "ov-group" }, search, earlier, later), filters);
  const root = el("div", { class: "oel oel-viewer", role: "group", "aria-label": "trajectory viewer", onkeydown: key,
    "data-lm-suppress-shortcuts": "true" }, bar, el("div", { class: "ov-body" },
    el("div", { class: "ov-side" }, el("div", { class: "ov-sum" }, status, hitText, reset), list.box), detail),
    el("div", { class: "ov-foot ov-dim" }, ...[["←", "→", "turn"], ["↑", "↓", "game"], ["/", "search"], ["n", "N", "hit"]].flatMap((keys) =>
      [...keys.slice(0, -1).map((k) => el("kbd", {}, k)), `${keys.at(-1)}  `])));
  host.append(root);

  const heard = {
    index(message) {
      rows = message.rows.map((row) => Object.fromEntries(row.map((value, i) => [COLUMNS[i], value])));
      canGo = message.items;
      offer();
      relist();
      move();
    },
    game(message) { games.set(message.game, message); draw(); },
    hits(message) {
      if (message.text !== query) return;
      byGame = new Map();
      for (const [game, turn] of message.hits) byGame.set(game, [...(byGame.get(game) ?? []), turn]);
      relist();
      draw();
    },
    reveal() { root.scrollIntoView({ block: "nearest" }); detail.focus({ preventScroll: true }); },
  };
  const hear = ({ json }) => { const message = JSON.parse(json); heard[message.kind]?.(message); };
  model.on("msg:custom", hear);
  model.on("change:at", move);
  model.send({ kind: "index" });
  return () => { model.off("msg:custom", hear); model.off("change:at", move); };
} };
