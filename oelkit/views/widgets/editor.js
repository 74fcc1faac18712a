// The experience editor in the browser. It keeps only cursor, selection and filter. All item data comes from the
// kernel; every decision is sent there and shown once it comes back.

function render({ model, el: host }) {
  const items = new Map();
  let state = { order: [], draws: [], reads: [], cut: [], can: [false, false], before: "", after: "", log: [null, 0] };
  let shown = [], cursor = null, selected = new Set(), filter = null, sort = "support", source = "", query = "";
  let hitsOnly = false, writing = null;  // { id, form, area }: the row being edited; id "" when adding an item
  const sent = [], refused = [];  // { id, text } of forms: without an answer yet; not saved, so shown again
  let told = "", looked = null, loaded = false, coming = true, stays = null;  // a row shown in any filter while it is current

  const current = () => items.get(cursor);
  const chosen = () => (selected.size ? state.order.filter((id) => selected.has(id)) : cursor ? [cursor] : []);

  // -- operations: requested from the kernel, never done here

  function ask(op, more = {}) {
    if (kernel.down()) return lost();
    keepFocus(() => failure.tell());
    const said = more.said ?? DECIDED[op];  // comes back once it is done
    if (op in DECIDED) [told, after.textContent, why.hidden] = [said, "", true];  // a reason applies to the last one
    kernel.send({ op, ...more, said });
  }
  function decide(op) {
    const ids = chosen();
    if (!ids.length || (op === "merge" && ids.length < 2) || kernel.down()) return kernel.down() && lost();
    if (op === "merge") return join(ids);
    const said = ids.length > 1 ? several(ids.length, "item") : `“${visible(items.get(ids[0]).text.slice(0, 60))}”`;
    ask(op, { ids, said: `${DECIDED[op]} ${said}` });
    [why.value, why.hidden] = ["", false];
    selected.clear();
    if (["accept", "reject", "skip"].includes(op)) step(1, ids);
  }
  function move(by) {  // past the visible neighbour, which can differ from the one in the list
    const beside = shown[shown.indexOf(cursor) + by];
    if (cursor && beside && inOrder()) ask("move", { ids: [cursor], texts: [beside], to: by > 0 ? 1 : 0 });
  }
  const inOrder = () => sort === "" && filter !== "alike" && filter !== "against";
  function explain() {
    if (why.value.trim()) ask("explain", { reason: why.value, said: `${told}: ${why.value}` });
    why.hidden = true;
    focusRow();
  }
  function lost() {
    failure.tell(...unheard(state.log, sent, () => kernel.send({ op: "refresh" })));
    root.classList.add("oel-lost");
    why.hidden = true;
  }

  // -- cursor, selection and focus

  function go(id, focus = null) {
    if (id == null || writing) return;
    if (!shown.includes(id) && items.has(id)) { filter = "all"; source = query = search.value = ""; show(); }
    cursor = id;
    layout();
    list.reveal(shown.indexOf(id));
    focus ? focus.focus() : focusRow();
    look();
  }
  /** Go to the next row, or after deciding on several rows to the one after the last. */
  function step(by, from = [cursor]) {
    const at = Math.max(...from.map((id) => shown.indexOf(id)));
    go(shown[Math.max(0, Math.min(shown.length - 1, at + by))]);
  }
  function hit(by, focus) {
    const n = shown.length, at = shown.indexOf(cursor);
    for (let k = 1; query && k <= n; k++) {
      const id = shown[(((at + by * k) % n) + n) % n];
      if (matches(items.get(id))) return go(id, focus);
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
    (writing?.area ?? list.box.querySelector("[aria-current]") ?? root).focus({ preventScroll: true });
    coming = true;
  }
  function keepFocus(work) {  // the focused element can be redrawn or removed; keys need the focus
    const inside = root.contains(active());
    work();
    if (inside && !(root.contains(active()) && active().checkVisibility())) focusRow();
  }
  function look(again = false) {  // request evidence once the cursor rests on an item
    if (!cursor || (looked === cursor && !again) || kernel.down()) return;
    looked = cursor;
    clearTimeout(look.timer);
    look.timer = setTimeout(() => items.has(cursor) && kernel.send({ op: "look", ids: [cursor] }), 60);
  }
  function leave() {  // Esc
    if (!help.hidden) help.hidden = true;
    else if (selected.size) selected.clear();
    else if (query) search.value = query = "";
    show();
    focusRow();
  }

  // -- writing: edit an item in place, or add one

  /** ids: the rows that the text replaces; several are merged, at the row `id`. */
  function write(id, text, ids = id ? [id] : []) {
    if (writing) return writing.area.focus();
    const done = (op, texts) => {
      if (op && kernel.down()) return lost();
      writing = null;
      adding.replaceChildren();
      layout();
      focusRow();
      if (op) {
        const accepts = ids.some((each) => items.get(each)?.status !== "rejected");
        sent.push({ id, ids, text: area.value });
        ask(op, { ids, texts, said: `${DECIDED[op]}${accepts ? " and accepted" : ""}` });
      }
      reopen();
    };
    const { form, area } = itemForm(id ? items.get(id).text : "", ids.length, layout, done);
    area.value = text ?? area.value;
    writing = { id, ids, form, area };
    if (!id) adding.replaceChildren(form);
    layout();
    if (id) list.reveal(shown.indexOf(id));
    area.focus({ preventScroll: Boolean(id) });
  }
  function reopen() {  // with what was not saved; as a new item if its row is gone
    if (writing || !refused.length) return;
    const { id, ids, text } = refused.shift(), there = ids.length > 0 && ids.every((each) => items.has(each));
    if (there) go(id);
    write(there ? id : "", text, there ? ids : []);
  }
  function join(ids) {  // the person words the merged item, from a line for each row
    const id = ids.find((each) => shown.includes(each)) ?? ids[0];
    go(id);
    write(id, ids.map((each) => items.get(each).text).join("\n"), ids);
  }

  // -- commands: one table for buttons, keys and help

  const commands = editorCommands({ step, decide, write: (id = cursor) => id != null && write(id), select, move, ask, hit,
    leave, selectAlike, search: () => search.select(), evidence: () => evidence.focus(),
    full: () => (document.fullscreenElement ? document.exitFullscreen() : root.requestFullscreen?.()),
    why: () => !why.hidden && why.focus(), help: () => { help.hidden = !help.hidden; } });
  const byKey = new Map(commands.flatMap((command) => command.keys.map((key) => [key, command])));
  const bar = new Map(commands.filter((c) => c.label).map(({ run, shown: keys, what, label: text }) => [text,
    el("button", { title: what, onclick: (e) => e.currentTarget.ariaDisabled !== "true" && run() }, text, " ",
      el("kbd", {}, keys))]));

  // Jupyter must see none of our keys: `a` would insert a cell, `d d` delete one. Ctrl and Cmd stay Jupyter's.
  function onkeydown(event) {
    const field = event.target.closest("input[type=search], input[type=text], input[type=number], textarea, select");
    if (!(event.ctrlKey || event.metaKey) || (field && event.key !== "s")) event.stopPropagation();
    const inside = event.target.closest(".oel-side");
    const command = byKey.get(event.altKey ? `Alt+${event.key}` : event.key);
    if (field || event.ctrlKey || event.metaKey || !command || writing) return;
    if (event.key === " " && event.target.closest("button, input, summary")) return;
    if (inside && event.key.startsWith("Arrow") && !event.altKey) return;  // scrolls the panel
    event.preventDefault();
    if (inside && event.key === "g") focusRow(); else command.run();
  }

  // -- the page

  const parts = editorPage({ bar, commands, selectAll, ask, explain, run: (key) => byKey.get(key).run(),
    source(value) { source = value; show(); }, sort(by) { sort = by; show(); }, hits() { hitsOnly = !hitsOnly; show(); },
    author(name) { remembered.set(name); ask("author", { texts: [name] }); focusRow(); },
    draw: (to) => kernel.send({ op: "draw", to }), budget: (to) => ask("budget", { to }),
    rows: { count: () => shown.length, keep: () => shown.indexOf(cursor), row, key: (i) => shown[i], height: 58 } });
  const { root, progress, failure, search, hits, why, after, every, none, list, help, adding, about, evidence } = parts;

  ownKeys(root);
  root.addEventListener("keydown", onkeydown);
  for (const kind of ["keypress", "keyup"]) root.addEventListener(kind, (event) => event.stopPropagation());
  root.addEventListener("focusin", (event) => {  // show what Python code did meanwhile
    if (coming && !root.contains(event.relatedTarget)) kernel.send({ op: "refresh" });
  });
  root.addEventListener("mouseup", (event) => {  // a click outside all controls focuses the list
    if (event.target.closest("input, textarea, select, button, summary, .oel-side, .oel-divider") || String(getSelection())) return;
    focusRow();
  });
  search.addEventListener("input", () => {
    query = search.value.toLowerCase();
    show();
    if (!current() || !matches(current())) hit(1, search);  // and go on typing
  });
  search.addEventListener("keydown", (event) => {
    if (event.key === "Enter") { if (current() && matches(current()) && query) focusRow(); else hit(1); }
    if (event.key === "Escape") { search.value = query = ""; show(); focusRow(); }
  });

  // -- drawing

  const matches = (item) => item.text.toLowerCase().includes(query);
  function row(i) {
    const id = shown[i];
    if (writing?.id === id) return writing.form;
    return itemRow({ id, item: items.get(id), here: id === cursor, query, unit: state.unit, selected: selected.has(id),
      edge: inOrder() && id === state.edge, on: { go, write, select }, place: [i, shown.length] });
  }
  const layout = () => keepFocus(() => list.refresh());
  function show() { keepFocus(showAll); }
  function showAll() {
    const all = state.order.map((id) => items.get(id));
    const count = (kind) => all.filter(FILTERS[kind]).length;
    if (loaded) filter ??= count("pending") ? "pending" : "all";  // start with the undecided items
    const before = shown, at = shown.indexOf(cursor), kind = filter ?? "all";
    const listed = state.order.filter((id) => writing?.id === id || (stays === id && cursor === id)
      || (FILTERS[kind](items.get(id)) && (!source || items.get(id).sources.includes(source))));
    const found = listed.filter((id) => matches(items.get(id)));
    shown = sorted(hitsOnly && query ? listed.filter((id) => writing?.id === id || found.includes(id)) : listed, items, sort, kind);
    selected = new Set([...selected].filter((id) => items.has(id)));
    if (!shown.includes(cursor)) {  // it is gone: move to the next one still shown
      cursor = before.slice(at + 1).find((id) => shown.includes(id)) ?? shown.at(at < 0 ? 0 : -1) ?? null;
    }
    progress.textContent = progressOf(all, state);
    parts.showBudget(state);
    parts.showFilters(kind, count, showOnly);
    const origins = [...new Set(all.flatMap((item) => item.sources))].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
    if (!origins.includes(source)) source = "";
    parts.showSources(origins, source);
    hits.hidden = !query;
    hits.textContent = several(found.length, "hit");
    hits.ariaPressed = String(hitsOnly);
    every.checked = shown.length > 0 && shown.every((id) => selected.has(id));
    every.indeterminate = !every.checked && selected.size > 0;
    const changed = chosen().some((id) => items.get(id).diff || items.get(id).status !== "pending");
    const able = { Undo: state.can[0], Redo: state.can[1], Merge: selected.size > 1, Up: inOrder() && cursor != null,
      Down: inOrder() && cursor != null, Restore: changed, "Select similar": current()?.alike != null, Add: true };
    for (const [text, button] of bar) {
      button.ariaDisabled = String(!(able[text] ?? cursor != null));  // `disabled` would lose the focus
      const many = selected.size > 1 && ["Accept", "Reject", "Skip", "Merge"].includes(text);
      button.firstChild.data = many ? `${text} ${selected.size}` : text;
    }
    none.hidden = shown.length > 0;
    none.textContent = emptyList(loaded, kind, all.length);
    layout();
  }
  function showOnly(kind) {
    filter = kind;
    if (!writing && !(current() && FILTERS[kind](current()))) cursor = null;  // start at the first match
    show();
    focusRow();
    look();
  }
  const showDetail = (detail) => about.replaceChildren(...evidenceNodes(detail, current().against, state.viewer, {
    restore: (ids) => ask("restore", { ids }), go,
    turn: (game, to) => kernel.send({ op: "turn", ids: [game], to }),
    all: () => kernel.send({ op: "look", ids: [cursor], to: 1 }) }));

  function hear({ rows, order, at, reveal, error, conflict, detail, file, notice, saved, ...news }) {
    for (const [id, item] of Object.entries(rows)) items.set(id, item);
    const there = order && new Set(order);
    if (order) for (const id of items.keys()) if (!there.has(id)) items.delete(id);
    if (saved != null) refused.push(...sent.splice(0, 1).filter(() => !saved));
    if (notice) after.textContent = notice;
    if (writing?.ids.some((id) => !items.has(id))) {  // undone or merged meanwhile
      refused.push({ ...writing, text: writing.area.value });
      writing = null;
      after.textContent = "The item is gone: your text becomes a new one.";
    }
    Object.assign(state, order && { order }, news);
    if (!loaded && state.author === "user" && remembered.get()) kernel.send({ op: "author", texts: [remembered.get()] });
    loaded = true;
    if (at && items.has(at) && !writing) cursor = stays = at;  // show what was done or undone
    if (order || Object.keys(rows).length || Object.keys(news).length || at) { show(); look(true); }
    if (at) list.reveal(shown.indexOf(cursor));
    if (reveal) { root.scrollIntoView({ block: "nearest" }); focusRow(); }
    if (["reads", "cut", "before", "prompt_tokens", "draw", "budget"].some((key) => key in news)) parts.showPrompt(state);
    if (detail?.id === cursor) keepFocus(() => showDetail(detail));
    parts.showSaved(state);
    if (file) download(...file);
    if (error) {
      why.hidden = true;
      failure.tell(`${error} `, conflict ? el("button", { onclick: () => ask("reload") }, "Read the log again") : "");
    }
    reopen();
  }

  const found = () => keepFocus(() => { failure.tell(); root.classList.remove("oel-lost"); });
  const kernel = line(model, { hear, lost, found });
  settle(host, root, focusRow);
  show();
  kernel.send({ op: "hello" });
  return kernel.close;
}

export default { render };
