// The experience editor in the browser. It keeps only where the person is (cursor, selection, filter); all that is
// said of the items comes from the kernel, and every decision goes there and shows when it has come back.

const CLOSED = 58;  // px of a row that is not the current one

function render({ model, el: host }) {
  const items = new Map();
  let state = { order: [], draws: [], reads: [], cut: [], can: [false, false], before: "", after: "" };
  let shown = [], cursor = null, selected = new Set(), filter = "all", source = "", query = "", hitsOnly = false;
  let writing = null;  // { id, form }: the row that is being edited; id "" where an item is added
  let openHeight = CLOSED, looked = null, loaded = false, coming = true;

  const current = () => items.get(cursor);
  const chosen = () => (selected.size ? state.order.filter((id) => selected.has(id)) : cursor ? [cursor] : []);
  const number = (n) => n.toLocaleString("en");

  // -- operations: asked of the kernel, never done here

  function ask(op, more = {}) {
    keepFocus(() => { failure.hidden = true; });
    model.send({ op, reason: reason.value, ...more });
    reason.value = "";
  }
  function decide(op) {
    if (!chosen().length) return;
    ask(op, { ids: chosen() });
    selected.clear();
  }
  function move(step) {  // past its neighbour in sight, which need not be its neighbour in the list
    const beside = shown[shown.indexOf(cursor) + step];
    if (cursor && beside && filter !== "alike") ask("move", { ids: [cursor], to: state.order.indexOf(beside) });
  }

  // -- where the person is

  function go(id) {
    if (id == null || writing) return;
    cursor = id;
    layout();
    list.reveal(shown.indexOf(id));
    focusRow();
    look();
  }
  const step = (by) => go(shown[Math.max(0, Math.min(shown.length - 1, shown.indexOf(cursor) + by))]);
  function hit(by) {
    const n = shown.length, at = shown.indexOf(cursor);
    for (let k = 1; query && k <= n; k++) {
      const id = shown[(((at + by * k) % n) + n) % n];
      if (matches(items.get(id))) return go(id);
    }
  }
  function select(id = cursor) {
    if (!id) return;
    if (!selected.delete(id)) selected.add(id);
    show();
  }
  function selectAll() {
    const all = shown.every((id) => selected.has(id));
    for (const id of shown) if (all) selected.delete(id); else selected.add(id);
    show();
  }
  function selectAlike() {
    const { alike } = current() ?? {};
    if (alike != null) selected = new Set(state.order.filter((id) => items.get(id).alike === alike));
    show();
  }
  const active = () => root.getRootNode().activeElement;
  function focusRow() {
    coming = false;
    (list.box.querySelector("[aria-current]") ?? root).focus({ preventScroll: true });
    coming = true;
  }
  function keepFocus(work) {  // what has the focus may be drawn anew or go; without focus there are no keys
    const inside = root.contains(active());
    work();
    if (inside && !(root.contains(active()) && active().checkVisibility())) focusRow();
  }
  function look(again = false) {  // evidence is asked for when one rests on an item
    if (!cursor || (looked === cursor && !again)) return;
    looked = cursor;
    clearTimeout(look.timer);
    look.timer = setTimeout(() => model.send({ op: "look", ids: [cursor] }), 60);
  }
  function leave() {  // Esc
    if (!help.hidden) help.hidden = true;
    else if (selected.size) selected.clear();
    else if (query) search.value = query = "";
    show();
    focusRow();
  }

  // -- writing: edit in place, or an item of one's own

  function write(id) {
    if (id !== "" && !items.has(id)) return;
    const area = el("textarea", {
      rows: 3, oninput: layout, "aria-label": id ? "Text of the item" : "Text of the new item",
    });
    area.value = id ? items.get(id).text : "";
    const done = (op, texts) => {
      writing = null;
      adding.replaceChildren();
      layout();
      focusRow();
      if (op) ask(op, { ids: id ? [id] : [], texts });
    };
    const lines = () => area.value.split("\n").filter((line) => line.trim());
    const save = () => done(id && area.value === items.get(id)?.text ? null : id ? "edit" : "add", [area.value]);
    const button = (label, keys, run, title) =>
      el("button", { onclick: run, title }, `${label} `, ...(keys ? [el("kbd", {}, keys)] : []));
    const form = el("div", { class: "oel-form", role: id ? "listitem" : null }, area, el("div", { class: "oel-acts" },
      button("Save", "Ctrl+Enter", save),
      button("Cancel", "Esc", () => done()),
      id && button("Split at line breaks", "", () => (lines().length > 1 ? done("split", lines()) : area.focus()),
        "An item of each line, each with all the evidence")));
    area.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
      else if (event.key === "Escape") done();
      else return;
      event.preventDefault();
    });
    writing = { id, form };
    if (!id) adding.replaceChildren(form);
    layout();
    if (id) list.reveal(shown.indexOf(id));
    area.focus({ preventScroll: Boolean(id) });
  }

  // -- commands: buttons, keys and help from one table

  const [MOVE, DECIDE, FIND, MORE] = ["Move", "Decide", "Find", "More"];
  const commands = [  // name, keys, as shown, what it does, group, label of its button
    [() => step(1), ["j", "ArrowDown"], "j ↓", "next item", MOVE],
    [() => step(-1), ["k", "ArrowUp"], "k ↑", "previous item", MOVE],
    [() => decide("accept"), ["a"], "a", "accept: the teacher reads it", DECIDE, "Accept"],
    [() => decide("reject"), ["x"], "x", "reject: the teacher does not", DECIDE, "Reject"],
    [() => decide("skip"), ["s"], "s", "skip: seen, not decided", DECIDE, "Skip"],
    [() => cursor && write(cursor), ["e"], "e", "edit in place; Ctrl+Enter saves, Esc cancels", DECIDE, "Edit"],
    [() => select(), [" "], "Space", "select, for all decisions at once", DECIDE, "Select"],
    [() => selected.size > 1 && decide("merge"), ["m"], "m", "merge the selection into one item", DECIDE, "Merge"],
    [() => move(-1), ["Alt+ArrowUp"], "Alt+↑", "move up (the budget cuts from the top)", MOVE, "Up"],
    [() => move(1), ["Alt+ArrowDown"], "Alt+↓", "move down", MOVE, "Down"],
    [() => ask("undo"), ["u"], "u", "undo, without limit", DECIDE, "Undo"],
    [() => ask("redo"), ["U"], "U", "redo", DECIDE, "Redo"],
    [() => search.select(), ["/"], "/", "search", FIND],
    [() => hit(1), ["n"], "n", "next hit", FIND],
    [() => hit(-1), ["N"], "N", "previous hit", FIND],
    [() => evidence.focus(), ["g"], "g", "to the evidence, and back", FIND, "Evidence"],
    [() => { help.hidden = !help.hidden; }, ["?"], "?", "this help", MORE],
    [leave, ["Escape"], "Esc", "close the help, drop the selection, end the search", MORE],
  ];
  const byKey = new Map(commands.flatMap((command) => command[1].map((key) => [key, command])));
  const bar = new Map(commands.filter((c) => c[5]).map(([run, , keys, what, , label]) => [label,
    el("button", { title: what, onclick: (e) => e.currentTarget.ariaDisabled !== "true" && run() }, label, " ",
      el("kbd", {}, keys))]));

  // Jupyter must not see our keys, bound or not: a would insert a cell, d d delete one. Ctrl and Cmd stay Jupyter's.
  function onkeydown(event) {
    const field = event.target.closest("input[type=search], input[type=text], textarea, select");
    if (!(event.ctrlKey || event.metaKey) || (field && event.key !== "s")) event.stopPropagation();
    const inside = event.target.closest(".oel-side");
    const command = byKey.get(event.altKey ? `Alt+${event.key}` : event.key);
    if (field || event.ctrlKey || event.metaKey || !command || writing) return;
    if (event.key === " " && event.target.closest("button, input, summary")) return;
    if (inside && event.key.startsWith("Arrow") && !event.altKey) return;  // scrolls the panel
    event.preventDefault();
    if (inside && event.key === "g") focusRow(); else command[0]();
  }

  // -- the page

  const progress = el("span", { class: "oel-progress", role: "status" });
  const meter = el("div", {
    class: "oel-meter", role: "meter", "aria-label": "Budget of the experience", "aria-valuemin": 0,
  });
  const failure = el("div", { class: "oel-failure", role: "alert", hidden: true });
  const filters = el("div", { class: "oel-group", role: "group", "aria-label": "Filter by status" });
  const sources = el("select", {
    "aria-label": "Filter by source", onchange: () => { source = sources.value; show(); },
  });
  const search = el("input", { type: "search", placeholder: "Search  /", "aria-label": "Search the items" });
  const hits = el("button", { title: "Show the hits only", onclick: () => { hitsOnly = !hitsOnly; show(); } });
  const reason = el("input", {
    type: "text", placeholder: "Reason (optional)", "aria-label": "Reason of the next decision",
  });
  const every = el("input", { type: "checkbox", "aria-label": "Select all that are shown", onclick: selectAll });
  const alike = el("button", {
    title: "Select the items that share most of their words with this one", onclick: selectAlike,
  }, "Select alike");
  const restore = el("button", {
    title: "Back to the original text, undecided", onclick: () => decide("restore"),
  }, "Restore");
  const adding = el("div", { class: "oel-adding" });
  const none = el("p", { class: "oel-none" });
  const list = virtualList({
    count: () => shown.length, row, keep: () => shown.indexOf(cursor),
    height: (i) => (shown[i] === cursor ? openHeight : CLOSED),
    attributes: { "aria-label": "Experience items", role: "region" },
  });
  const about = el("div", {}), prompt = el("pre", {}), promptSize = el("span", { class: "oel-dim" });
  const draws = el("select", {
    "aria-label": "Draw", onchange: () => model.send({ op: "draw", draw: Number(draws.value) }),
  });
  const panel = (title, head, body) => el("section", { class: "oel-side", tabindex: 0, "aria-label": title },
    el("header", {}, el("h3", {}, title), ...head), body);
  const evidence = panel("Evidence", [el("kbd", {}, "g")], about);
  const teacher = panel("What the teacher reads", [draws, promptSize], prompt);
  const help = el("div", { class: "oel-help", hidden: true, role: "dialog", "aria-label": "Keys" },
    ...[MOVE, DECIDE, FIND, MORE].map((group) => el("section", {}, el("h3", {}, group), el("dl", {},
      ...commands.filter((c) => c[4] === group)
        .flatMap(([, , keys, what]) => [el("dt", {}, el("kbd", {}, keys)), el("dd", {}, what)])))),
    el("p", {}, "Keys work while the editor has the focus. " +
      "With the filter on pending, each decision brings up the next item."));
  const root = el("section", { class: "oel oel-editor", tabindex: -1, "aria-label": "Experience editor" },
    el("header", { class: "oel-head" }, progress, meter),
    el("div", { class: "oel-tools" }, filters, sources, search, hits,
      el("button", { class: "oel-right", title: "Write an item of your own", onclick: () => write("") }, "Add item"),
      el("button", { "aria-label": "Help: keys", onclick: () => byKey.get("?")[0]() }, el("kbd", {}, "?"))),
    help, failure,
    el("div", { class: "oel-bar", role: "toolbar", "aria-label": "Decisions" },
      every, ...bar.values(), alike, restore, reason),
    el("div", { class: "oel-main" }, el("div", { class: "oel-left" }, adding, none, list.box), evidence, teacher));

  ownKeys(root);
  root.addEventListener("keydown", onkeydown);
  for (const kind of ["keypress", "keyup"]) root.addEventListener(kind, (event) => event.stopPropagation());
  root.addEventListener("focusin", (event) => {  // what Python code did meanwhile
    if (coming && !root.contains(event.relatedTarget)) model.send({ op: "refresh" });
  });
  root.addEventListener("mouseup", (event) => {  // a click beside all controls: the keys go to the list
    if (event.target.closest("input, textarea, select, button, .oel-side") || String(getSelection())) return;
    focusRow();
  });
  search.addEventListener("input", () => { query = search.value.toLowerCase(); show(); });
  search.addEventListener("keydown", (event) => {
    if (event.key === "Enter") { if (current() && matches(current()) && query) focusRow(); else hit(1); }
    if (event.key === "Escape") { search.value = query = ""; show(); focusRow(); }
  });

  // -- drawing

  const matches = (item) => item.text.toLowerCase().includes(query);
  const kinds = {  // filters
    all: () => true, pending: (i) => i.status === "pending", skipped: (i) => i.status === "skipped",
    accepted: (i) => i.status === "accepted", rejected: (i) => i.status === "rejected",
    edited: (i) => i.diff, alike: (i) => i.alike != null,
  };
  const signs = { pending: "○", skipped: "–", accepted: "✓", rejected: "✕" };

  function marked(text) {  // nodes, with the hits of the search in <mark>
    const nodes = [], low = text.toLowerCase();
    let from = 0;
    if (!query || low.length !== text.length) return [visible(text)];
    for (let at; (at = low.indexOf(query, from)) >= 0; from = at + query.length) {
      nodes.push(visible(text.slice(from, at)), el("mark", {}, visible(text.slice(at, at + query.length))));
    }
    return [...nodes, visible(text.slice(from))];
  }
  function row(i) {
    const id = shown[i], item = items.get(id), here = id === cursor;
    if (writing?.id === id) return writing.form;
    const beside = items.get(shown[i - 1]);
    const node = el("div", {
      role: "listitem", class: `oel-row oel-${item.status}`, tabindex: here ? 0 : -1, "aria-current": here && "true",
      "aria-setsize": shown.length, "aria-posinset": i + 1,
      onclick: () => id !== cursor && go(id), ondblclick: () => write(id),
    },
      el("input", {
        type: "checkbox", tabindex: -1, "aria-label": "Select", onclick: (e) => { e.stopPropagation(); select(id); },
      }),
      el("span", { class: "oel-chip" }, `${signs[item.status]} ${item.status}`),
      el("div", { class: "oel-text", dir: "auto", tabindex: here && item.text.length > 1200 ? 0 : null },
        ...(here && item.diff ? item.diff.map(([sign, words]) =>
          el({ "=": "span", "-": "del", "+": "ins" }[sign], {}, visible(words), " "))
          : marked(here ? item.text : item.text.slice(0, 400)))),
      el("span", { class: "oel-meta" },
        item.alike != null && el("span", { class: "oel-alike", title: "A group that shares most of its words" },
          `alike ${item.alike + 1} · `),
        item.diff && "edited · ", item.cut && el("b", {}, "over budget · "),
        id === state.edge && el("b", {}, "the budget cuts above · "),
        `${item.source} · ${number(item.tokens)} ${unit(item.tokens)}`));
    node.firstChild.checked = selected.has(id);
    node.classList.toggle("oel-cut", item.cut);
    node.classList.toggle("oel-edge", id === state.edge);
    node.classList.toggle("oel-new", filter === "alike" && beside?.alike !== item.alike);
    return node;
  }
  const unit = (n) => (n === 1 ? state.unit.slice(0, -1) : state.unit);

  function layout() {
    keepFocus(() => {
      list.refresh();
      const open = writing?.id ? writing.form : list.box.querySelector("[aria-current]");
      if (!open || Math.abs(open.offsetHeight - openHeight) <= 1) return;
      openHeight = Math.max(CLOSED, open.offsetHeight);  // it has another height than the one before
      list.refresh();
    });
  }
  const show = () => keepFocus(showAll);
  function showAll() {
    const all = state.order.map((id) => items.get(id));
    const count = (kind) => all.filter(kinds[kind]).length;
    const before = shown, at = shown.indexOf(cursor);
    shown = state.order.filter((id) => {
      const item = items.get(id);
      return writing?.id === id ||
        (kinds[filter](item) && (!source || item.source === source) && (!hitsOnly || !query || matches(item)));
    });
    if (filter === "alike") shown.sort((a, b) => items.get(a).alike - items.get(b).alike);  // stable
    selected = new Set([...selected].filter((id) => items.has(id)));
    if (!shown.includes(cursor)) {  // it went: its place is taken by what came after it
      cursor = before.slice(at + 1).find((id) => shown.includes(id)) ?? shown.at(at < 0 ? 0 : -1) ?? null;
    }
    const reviewed = all.length - count("pending"), kept = count("accepted"), { tokens, budget } = state;
    progress.textContent = `${number(reviewed)} of ${number(all.length)} reviewed, ${number(kept)} kept, ` +
      `${number(tokens ?? 0)} ${budget == null ? "" : `of ${number(budget)} `}${state.unit ?? ""}` +
      (state.draws.length > 1 ? ` (draw ${state.draw})` : "");
    meter.hidden = budget == null;
    meter.style.setProperty("--share", `${Math.min(100, (100 * tokens) / Math.max(1, budget))}%`);
    meter.classList.toggle("oel-over", state.cut.length > 0);
    meter.ariaValueMax = budget;
    meter.ariaValueNow = Math.min(tokens, budget);
    meter.title = state.cut.length ? `${state.cut.length} items are over the budget: the oldest, on top, are cut` : "";
    const some = Object.keys(kinds).filter((kind) => kind === filter || kind === "all" || count(kind));
    filters.replaceChildren(...some.map((kind) => el("button", {
      "aria-pressed": String(kind === filter), onclick: () => { filter = kind; show(); focusRow(); },
    }, kind === "alike" ? "Near-duplicates" : kind[0].toUpperCase() + kind.slice(1), " ",
      el("span", { class: "oel-count" }, number(count(kind))))));
    const found = [...new Set(all.map((item) => item.source))];
    if (!found.includes(source)) source = "";
    sources.replaceChildren(el("option", { value: "" }, "all sources"),
      ...found.map((name) => el("option", { value: name, selected: name === source }, name)));
    sources.hidden = found.length < 2;
    hits.hidden = !query;
    hits.textContent = `${number(all.filter((i) => query && matches(i)).length)} hits`;
    hits.ariaPressed = String(hitsOnly);
    every.checked = shown.length > 0 && shown.every((id) => selected.has(id));
    every.indeterminate = !every.checked && selected.size > 0;
    const inOrder = filter !== "alike" && cursor != null;
    const able = { Undo: state.can[0], Redo: state.can[1], Merge: selected.size > 1, Up: inOrder, Down: inOrder };
    for (const [label, button] of bar) {
      button.ariaDisabled = String(!(able[label] ?? cursor != null));  // not `disabled`: that would lose the focus
      const many = selected.size > 1 && ["Accept", "Reject", "Skip", "Merge"].includes(label);
      button.firstChild.data = many ? `${label} ${selected.size}` : label;
    }
    alike.hidden = current()?.alike == null;
    restore.hidden = !chosen().some((id) => items.get(id).diff || items.get(id).status !== "pending");
    none.hidden = shown.length > 0;
    none.textContent = !loaded ? "Waiting for the kernel …"
      : all.length ? "Nothing here is like that." : "No items: extract some, or add one.";
    layout();
  }
  function showPrompt() {
    const line = (name, text) => el("span", { class: name }, visible(text), "\n");
    prompt.replaceChildren(...(state.before ? [el("span", { class: "oel-dim" }, visible(state.before))] : []),
      ...state.cut.map((text) => line("oel-gone", text)),
      state.cut.length ? el("span", { class: "oel-limit" },
        `budget of ${number(state.budget)} ${state.unit}: cut above this line`) : "",
      ...state.reads.map((text) => line("oel-item", text)),
      ...(state.after ? [el("span", { class: "oel-dim" }, visible(state.after.replace(/^\n/, "")))] : []));
    if (!state.reads.length) {
      prompt.prepend(el("p", { class: "oel-none" }, "Nothing is accepted yet: the teacher would read no experience."));
    }
    promptSize.textContent = `${number(state.prompt_tokens ?? 0)} ${state.unit ?? ""}`;
    draws.hidden = state.draws.length < 2;
    draws.replaceChildren(...state.draws.map((d) =>
      el("option", { value: d, selected: d === state.draw }, `draw ${d}`)));
  }
  function showDetail({ original, evidence: turns, parents, history, viewer }) {
    const part = (title, ...nodes) => [el("h4", {}, title), ...nodes];
    const text = (value) => el("pre", {}, visible(value));
    const shownTurn = (t, n) => el("details", { open: n < 2 },
      el("summary", {}, `Turn ${t.turn}${t.of ? ` of ${t.of}: ${t.outcome}` : ""}`,
        el("span", { class: "oel-dim" }, ` ${visible(t.game)}`)),
      ...(!t.of ? [el("p", { class: "oel-dim" }, "The game is not among those that the editor was given.")] : [
        ...(t.board.cells.length ? [board(t.board)] : part("Observation", text(t.text))),
        ...part("Reply", text(t.reply)), ...part("Move", text(t.move ?? "none found")),
        ...part("Feedback", text(t.feedback)),
        viewer && el("button", { onclick: () => model.send({ op: "turn", ids: [t.game], to: t.turn - 1 }) },
          "Whole game"),
      ]));
    const made = ([id, words]) => el("p", { dir: "auto" }, visible(words), " ",
      el("button", { onclick: () => ask("restore", { ids: [id] }) }, "Restore"));
    const done = ([op, author, time, why]) =>
      el("li", {}, el("b", {}, op), visible(` by ${author}, ${new Date(time).toLocaleString()}${why && `: ${why}`}`));
    about.replaceChildren(
      ...turns.map(shownTurn),
      ...(turns.length ? [] : [el("p", { class: "oel-none" }, "No evidence is recorded.")]),
      ...(parents.length ? part(parents.length > 1 ? "Merged from" : "Split from", ...parents.map(made)) : []),
      ...part("Original", text(original)),
      ...(history.length ? part("What was done", el("ul", {}, ...history.map(done))) : []));
  }

  function receive(message) {
    if (message.json == null) return;
    const { rows, order, at, reveal, error, conflict, detail, ...news } = JSON.parse(message.json);
    for (const [id, row] of Object.entries(rows)) items.set(id, row);
    if (order) for (const id of items.keys()) if (!order.includes(id)) items.delete(id);
    Object.assign(state, order && { order }, news);
    loaded = true;
    if (at && items.has(at) && !writing) {
      cursor = at;
      if (!kinds[filter](items.get(at))) filter = "all";  // what was undone is to be seen
    }
    if (order || Object.keys(rows).length || Object.keys(news).length || at) { show(); look(true); }
    if (at) list.reveal(shown.indexOf(cursor));
    if (reveal) { root.scrollIntoView({ block: "nearest" }); focusRow(); }
    if ("reads" in news || "cut" in news || "before" in news || "prompt_tokens" in news || "draw" in news) showPrompt();
    if (detail?.id === cursor) keepFocus(() => showDetail(detail));
    if (error) {
      failure.replaceChildren(`${error} `,
        conflict ? el("button", { onclick: () => ask("reload") }, "Read the log again") : "");
      failure.hidden = false;
    }
  }

  host.append(root);
  new ResizeObserver(() => requestAnimationFrame(layout)).observe(list.box);
  model.on("msg:custom", receive);
  show();
  model.send({ op: "hello" });
  return () => model.off("msg:custom", receive);
}

export default { render };
