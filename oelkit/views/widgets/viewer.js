// Games turn by turn. The page has the index of all games; the text of a game is requested when it is opened.

const GLYPH = { success: "✓", failure: "✕", invalid: "!", turn_limit: "…", unknown: "?" };
const COLUMNS = ["id", "outcome", "round", "arm", "seed", "turns", "cut", "tokens", "map", "taught", "chat", "words"];
const ROW = 46;

export default { render({ model, el: host }) {
  let rows = [], shown = [], canOpen = false;         // index, the games listed (positions in it), whether items can be opened
  let query = "", byGame = null, hits = [];           // search: its text, {game: [turns]}, hits in the games listed
  const games = new Map(), open = new Set();          // text of the games on screen; names of unfolded parts
  const filter = {}, sort = { by: "", down: false };
  const at = () => model.get("at");
  let still = false, last = "";                       // whether to leave the scroll position; the turn last scrolled to
  function go(change, stay = false) {
    still = stay;
    model.set("at", { ...at(), ...change });
    model.save_changes();
  }
  const focused = () => host.getRootNode().activeElement;
  const uid = `oel${Math.random().toString(36).slice(2, 9)}`;

  const ofLog = (r) => r.chat && r.outcome === "unknown";  // it has no outcome to show
  const inRound = (r) => !(ofLog(r) && r.round === 0) && `round ${r.round}`;

  // -- list

  const list = virtualList({
    count: () => shown.length, height: ROW,
    row(i) {
      const game = shown[i], r = rows[game], found = byGame?.get(game)?.length;
      const name = [el("bdi", { class: "ov-id" }, r.seed == null ? middle(visible(r.id)) : `map ${r.seed}`), " ",
        el("span", { class: "oel-dim" }, dots(inRound(r), found && several(found, "hit"), visible(r.arm)))];
      return el("div", { class: "ov-row", role: "option", id: `${uid}-${game}`, onclick: () => choose(game),
        "aria-selected": String(game === at().game), "aria-posinset": i + 1, "aria-setsize": shown.length },
      el("span", { class: `ov-dot ov-${r.outcome}`, "aria-hidden": "true" }, ofLog(r) ? "“" : GLYPH[r.outcome] ?? "?"),
      el("span", { class: "ov-what" },
        el("span", { title: visible(r.id) }, ...(r.words ? [el("bdi", {}, visible(r.words))] : name)),
        el("span", { class: "oel-dim", title: visible(r.id) }, ...(r.words ? [...name, " · "] : []), dots(!ofLog(r) && outcomeName(r.outcome), r.cut && "cut off",
          several(r.turns, "turn"), r.tokens > 0 && `${number(r.tokens)} tok`, ...noted.tags(game).map(visible)))));
    },
    attributes: { role: "listbox", tabindex: 0, "aria-label": "games" },
  });
  list.box.firstChild.setAttribute("role", "presentation");

  function passes(i) {
    const r = rows[i], low = parseInt(filter.low), high = parseInt(filter.high);
    return ["outcome", "round", "arm", "cut", "taught"].every((key) => !filter[key] || optionOf(r[key]) === filter[key])
      && (!filter.tag || noted.tags(i).includes(filter.tag)) && (!filter.seed || String(r.seed ?? "").startsWith(filter.seed.trim()))
      && !(r.turns < low) && !(r.turns > high) && (!byGame || byGame.has(i));
  }
  function relist() {
    shown = rows.map((_, i) => i).filter(passes);
    if (sort.by) {
      const less = (a, b) => (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
      shown.sort((a, b) => (sort.down ? -1 : 1) * less(rows[a][sort.by] ?? -1, rows[b][sort.by] ?? -1) || a - b);
    }
    hits = byGame ? shown.flatMap((game) => byGame.get(game).map((turn) => ({ game, turn }))) : [];
    list.refresh();
    const all = several(rows.length, noun());
    status.textContent = shown.length === rows.length ? all : `${number(shown.length)} of ${all}`;
    reset.hidden = !query && !Object.values(filter).some(Boolean);
    take.textContent = `export ${number(shown.length)}`;
    showHits();
    followList();
  }
  /** After a filter or search: if the open game is no longer listed, open the first that is. */
  function refilter() {
    relist();
    if (shown.length && !shown.includes(at().game)) choose(shown[0], hits[0]?.game === shown[0] ? hits[0].turn : 0);
  }
  function followList() {
    const i = shown.indexOf(at().game);
    if (i >= 0) list.reveal(i);
    for (const node of list.box.querySelectorAll("[role=option]"))
      node.setAttribute("aria-selected", String(node.id === `${uid}-${at().game}`));
    if (i >= 0) list.box.setAttribute("aria-activedescendant", `${uid}-${at().game}`);
    else list.box.removeAttribute("aria-activedescendant");
  }
  const left = el("div", {});
  const noun = () => (rows.length && rows.every((r) => r.chat) ? "conversation" : "game");
  const twins = (game) => rows.flatMap((r, i) => (i !== game && r.map === rows[game]?.map ? [i] : []));
  /** Open a game; if two were side by side, keep one of the same arm and round beside it. */
  function choose(game, turn = 0) {
    const beside = rows[at().other];
    const other = beside && twins(game).find((i) => rows[i].arm === beside.arm && rows[i].round === beside.round);
    go({ game, turn, other: other ?? null });
  }
  function step(by) {
    const i = shown.indexOf(at().game);
    const next = i < 0 ? shown[0] : shown[Math.min(shown.length - 1, Math.max(0, i + by))];
    if (next !== undefined && next !== at().game) choose(next);
  }

  // -- search

  const search = el("input", { type: "search", placeholder: "search", oninput() {
    clearTimeout(search.timer);
    search.timer = setTimeout(ask, 200);
  }, "aria-label": "search observations, replies and feedback" });
  function ask() {
    clearTimeout(search.timer);
    query = search.value;
    if (query) kernel.send({ kind: "search", text: query });
    else { byGame = null; relist(); draw(); }
  }
  const here = () => hits.findIndex((h) => h.game === at().game && h.turn === at().turn);
  function hit(by) {
    if (!hits.length) return;
    const { game, turn } = at(), place = shown.indexOf(game);
    const after = hits.findIndex((h) => (h.game === game ? h.turn > turn : shown.indexOf(h.game) > place));
    const next = here() >= 0 ? here() + by : by > 0 ? Math.max(after, 0) : (after < 0 ? hits.length : after) - 1;
    const to = hits[(next + hits.length) % hits.length];
    toHit = true;
    to.game === game ? go({ turn: to.turn }) : choose(to.game, to.turn);
  }
  let toHit = false;  // scroll to the hit once its text has arrived
  function showHits() {
    const place = here() < 0 ? "–" : here() + 1;
    hitText.textContent = !byGame ? "" : hits.length ? `${place} of ${several(hits.length, "hit")}` : "no hits";
    earlier.disabled = later.disabled = !hits.length;
  }
  const button = (label, text, onclick, title = label) => el("button", { "aria-label": label, title, onclick }, text);
  const earlier = button("previous hit", "↑", () => hit(-1), "previous hit (N)");
  const later = button("next hit", "↓", () => hit(1), "next hit (n)");
  const hitText = el("span", { class: "oel-dim", role: "status" });

  // -- filters

  const take = el("button", { title: "Download the listed games as JSON Lines",
    onclick: () => kernel.send({ kind: "export", games: shown }) }, "export");
  const reset = el("button", { hidden: true, onclick() {
    for (const key of Object.keys(filter)) delete filter[key];
    for (const field of bar.querySelectorAll("[data-filter]")) field.value = "";
    search.value = "";
    ask();
    list.box.focus();
  } }, "clear");

  // -- what is open

  const title = el("span", { class: "ov-title" });
  const compare = el("select", { "aria-label": "compare with", onchange: () =>
    go({ other: compare.value === "" ? null : Number(compare.value) }) });
  const slider = el("input", { type: "range", min: 1, "aria-label": "turn",
    oninput: () => go({ turn: slider.value - 1 }) });
  const back = button("previous turn", "‹", () => turnBy(-1), "previous turn (←)");
  const on = button("next turn", "›", () => turnBy(1), "next turn (→)");
  const place = el("span", { class: "ov-place", role: "status" });
  const differ = el("button", { onclick: () => go({ turn: differ.turn }) });
  const failure = failureBox();
  const noted = notesPanel({ kernel: () => kernel, place: () => ({ game: at().game, turn: at().turn }), tell: failure.tell });
  const offers = filterBar({ filter, sort, rows: () => rows, tags: () => noted.counts(rows.length), refilter, relist });
  const lessons = el("span", { class: "ov-chips" });
  const body = el("div", {});
  const detail = el("div", { class: "ov-detail", role: "region", "aria-label": "game", tabindex: 0 },
    el("div", { class: "ov-top" }, el("div", { class: "ov-head" }, title, compare),
      el("div", { class: "ov-steps" }, back, slider, on, place, differ, lessons, noted.line)), body);

  const wanted = () => [at().game, at().other].filter((i) => i != null && i < rows.length);
  function turnBy(by) {
    const last = Math.max(...wanted().map((i) => rows[i].turns)) - 1;
    const turn = Math.min(last, Math.max(0, at().turn + by));
    if (turn !== at().turn) go({ turn });
  }
  function draw() {
    const ids = wanted(), { turn, other } = at();
    for (const key of games.keys()) if (!ids.includes(key)) games.delete(key);
    followList();
    showHits();
    if (!ids.length || !ids.every((i) => games.has(i))) return;  // keep the old view until the text arrives
    const r = rows[ids[0]], texts = ids.map((i) => games.get(i));
    const others = [...new Set([...twins(ids[0]), ...ids.slice(1)])];  // Python can show any two side by side
    title.replaceChildren(ofLog(r) ? "" : pill(r.outcome, outcomeName(r.outcome)), " ", el("bdi", { class: "ov-id" }, visible(r.id)),
      el("span", { class: "oel-dim" }, dots(visible(texts[0].model), inRound(r), visible(r.arm),
        r.seed != null && `map seed ${r.seed}`, r.tokens > 0 && several(r.tokens, "token"))));
    const any = others.length ? `compare… (${others.length} on this map)` : "no other game on this map";
    compare.replaceChildren(el("option", { value: "" }, any), ...others.map((i) => el("option", { value: i },
      dots(visible(rows[i].arm), `round ${rows[i].round}`, outcomeName(rows[i].outcome), visible(rows[i].id)))));
    compare.value = other ?? "";
    compare.disabled = !others.length;
    compare.hidden = !others.length && r.chat;
    noted.draw(ids[0]);
    noted.field.disabled = turn >= texts[0].turns.length;  // only the game beside it has this turn
    lessons.replaceChildren(...texts[0].turns.flatMap((t, k) => (t.items.length ? [el("button", { class: "ov-learned",
      "data-focus": `lesson ${k}`, onclick: () => go({ turn: k }) }, `${several(t.items.length, "item")}: turn ${k + 1}`)] : [])));
    const end = Math.max(...texts.map((g) => g.turns.length)), both = texts.length > 1;
    const differs = both ? divergence(...texts) : -1;
    slider.max = end;
    slider.value = turn + 1;
    slider.disabled = end === 1;
    place.textContent = `turn ${turn + 1} of ${end}`;
    slider.setAttribute("aria-valuetext", place.textContent);
    back.disabled = turn <= 0;
    on.disabled = turn >= end - 1;
    differ.hidden = !both;
    differ.disabled = differs < 0;
    differ.turn = differs;
    differ.textContent = differs < 0 ? (r.chat ? "same replies" : "same moves") : `first difference: turn ${differs + 1}`;
    const had = body.contains(focused()) ? focused().dataset.focus ?? "" : null;
    body.className = both ? "ov-two" : "";
    body.replaceChildren(...ids.map((i) => (games.get(i).chat ? chatView : gameView)({
      key: i, row: rows[i], game: games.get(i), turn, differs, query, open, go,
      caption: both && el("bdi", { title: visible(rows[i].id) }, dots(visible(rows[i].arm), `round ${rows[i].round}`)),
      openItem: canOpen ? (id) => kernel.send({ kind: "item", id }) : null,
      comments: (k) => noted.comments(i, k),
    })));
    detail.removeAttribute("aria-busy");
    if (had !== null) {  // the focused part was redrawn
      const same = [...body.querySelectorAll("[data-focus]")].find((node) => node.dataset.focus === had);
      (same ?? detail).focus({ preventScroll: true });
    }
    if (toHit) body.querySelector("mark")?.scrollIntoView({ block: "nearest" });
    else if (last !== `${ids} ${turn}` && r.chat && !still) {  // scroll only the transcript, not the page
      const now = body.querySelector(".ov-exchange[aria-current]"), top = detail.firstChild.getBoundingClientRect().bottom;
      if (now) detail.scrollTop = turn ? detail.scrollTop + now.getBoundingClientRect().top - top : 0;
    }
    [last, toHit, still] = [`${ids} ${turn}`, false, false];
  }
  /** Something else is open: request the missing texts. */
  function move() {
    for (const i of wanted()) if (!games.has(i)) {
      detail.setAttribute("aria-busy", "true");
      kernel.send({ kind: "game", game: i });
    }
    draw();
  }

  // -- keys, page, messages

  const page = () => Math.max(1, Math.floor(list.box.clientHeight / ROW) - 1);
  const KEYS = {
    ArrowLeft: () => turnBy(-1), ArrowRight: () => turnBy(1), ArrowUp: () => step(-1), ArrowDown: () => step(1),
    k: () => step(-1), j: () => step(1), n: () => hit(1), N: () => hit(-1), "/": () => search.focus(),
    PageUp: () => step(-page()), PageDown: () => step(page()),
    c: () => noted.field.focus(), u: noted.undo,
    Home: () => step(-rows.length), End: () => step(rows.length),
  };
  function key(event) {
    const held = event.ctrlKey || event.metaKey || event.altKey;
    if (!held || event.key === "Enter") event.stopPropagation();  // otherwise `a` inserts a cell
    const typing = event.target.matches("input:not([type=range]), select");
    if (event.target === search && event.key === "Enter") search.value === query ? hit(event.shiftKey ? -1 : 1) : ask();
    else if (typing && event.key === "Escape") list.box.focus();
    else if (typing || held || !(event.key in KEYS)) return;
    else KEYS[event.key]();
    event.preventDefault();
  }
  const status = el("span", { class: "oel-dim", role: "status" }, "waiting for the kernel");
  const bar = el("div", { class: "ov-bar" }, el("div", { class: "ov-group" }, search, earlier, later), offers.node);
  const named = el("span", {}, "game");
  const help = [["←", "→", "turn"], ["↑", "↓", named], ["/", "search"], ["n", "N", "hit"], ["c", "tag or comment"], ["u", "undo"]];
  const root = el("div", { class: "oel oel-viewer", role: "group", "aria-label": "trajectory viewer", onkeydown: key },
  bar, failure.node,
  el("div", { class: "ov-body" },
    el("div", { class: "ov-side" }, el("div", { class: "ov-sum" }, status, hitText, reset, take), left, list.box), detail),
  el("div", { class: "ov-foot oel-dim" }, ...help.flatMap((keys) =>
    [...keys.slice(0, -1).map((k) => el("kbd", {}, k)), keys.at(-1), "  "])));
  ownKeys(root);
  settle(host, root, () => list.box.focus());

  const heard = {
    index(message) {
      rows = message.rows.map((row) => Object.fromEntries(row.map((value, i) => [COLUMNS[i], value])));
      canOpen = message.items;
      left.replaceChildren(...leftOut(message.bad));
      named.textContent = noun();
      list.box.ariaLabel = `${noun()}s`;
      detail.ariaLabel = noun();
      offers.draw();
      relist();
      move();
    },
    notes(message) {
      noted.hear(message);
      if (!noted.counts(rows.length).has(filter.tag)) delete filter.tag;  // its last note was removed
      offers.draw();
      relist();
      draw();
    },
    file(message) { download(message.name, message.text); },
    game(message) { games.set(message.game, message); draw(); },
    hits(message) {
      if (message.text !== query) return;
      byGame = new Map();
      for (const [game, turn] of message.hits) byGame.set(game, [...(byGame.get(game) ?? []), turn]);
      refilter();
      draw();
    },
    reveal() { root.scrollIntoView({ block: "nearest" }); detail.focus({ preventScroll: true }); },
  };
  function lost() {
    noted.field.readOnly = false;  // its text may not be saved
    failure.tell(`${UNHEARD} Nothing else can be opened or saved now. `,
      el("button", { onclick: () => kernel.send({ kind: "index" }) }, "Ask again"));
  }
  const kernel = line(model, { hear: (message) => heard[message.kind]?.(message), lost, found: () => failure.tell() });
  model.on("change:at", move);
  kernel.send({ kind: "index" });
  return () => { kernel.close(); model.off("change:at", move); };
} };
