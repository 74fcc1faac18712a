// The editor's page: its commands and keys, and the elements that editor.js fills.

const [MOVE, DECIDE, FIND, MORE] = ["Move", "Decide", "Find", "More"];

const DECIDED = { accept: "Accepted", reject: "Rejected", skip: "Skipped", restore: "Restored", merge: "Merged",
  edit: "Edited", split: "Split", add: "Added", move: "Moved", undo: "Undone", redo: "Redone", import: "", reload: "" };
const remembered = { get() { try { return localStorage.getItem("oelkit.author"); } catch { return null; } },
  set(name) { try { localStorage.setItem("oelkit.author", name); } catch { /* a frame without storage */ } } };

/** The commands: action, keys, keys as shown, description, group, button label, and whether the button is in the menu. */
function editorCommands(on) {
  const command = (run, keys, shown, what, group, label = "", more = false) =>
    ({ run, keys, shown, what, group, label, more });
  return [
    command(() => on.step(1), ["j", "ArrowDown"], "j ↓", "next item", MOVE),
    command(() => on.step(-1), ["k", "ArrowUp"], "k ↑", "previous item", MOVE),
    command(() => on.decide("accept"), ["a"], "a", "accept: the model should learn this, in every draw", DECIDE, "Accept"),
    command(() => on.decide("reject"), ["x"], "x", "reject: the teacher does not read it", DECIDE, "Reject"),
    command(() => on.decide("skip"), ["s"], "s", "skip: seen, not decided", DECIDE, "Skip"),
    command(() => on.write(), ["e"], "e", "edit in place; Ctrl+Enter saves and accepts, Esc cancels", DECIDE, "Edit"),
    command(() => on.select(), [" "], "Space", "select several, to decide on them at once", DECIDE, "Select"),
    command(() => on.decide("merge"), ["m"], "m", "merge the selection into one item: opens its text", DECIDE, "Merge"),
    command(() => on.ask("undo"), ["u"], "u", "undo (no limit)", DECIDE, "Undo"),
    command(() => on.ask("redo"), ["U"], "U", "redo", DECIDE, "Redo"),
    command(on.why, ["w"], "w", "why: a reason for the last decision", DECIDE),
    command(() => on.write(""), ["i"], "i", "add an item of your own", DECIDE, "Add", true),
    command(() => on.write(), ["d"], "d", "divide: put each new item on a line, then Ctrl+Shift+Enter", DECIDE, "Split", true),
    command(() => on.decide("restore"), ["r"], "r", "restore the original text and make it pending", DECIDE, "Restore", true),
    command(on.selectAlike, ["l"], "l", "select the near-duplicates of this item", FIND, "Select similar", true),
    command(() => on.move(-1), ["Alt+ArrowUp"], "Alt+↑", "move up (in the teacher's order; the budget cuts from the top)", MOVE, "Up", true),
    command(() => on.move(1), ["Alt+ArrowDown"], "Alt+↓", "move down", MOVE, "Down", true),
    command(on.search, ["/"], "/", "search", FIND),
    command(() => on.hit(1), ["n"], "n", "next hit", FIND),
    command(() => on.hit(-1), ["N"], "N", "previous hit", FIND),
    command(on.evidence, ["g"], "g", "go to the evidence and back", FIND, "Evidence", true),
    command(on.full, ["f"], "f", "toggle full screen", MORE, "Full screen", true),
    command(on.help, ["?"], "?", "this help", MORE),
    command(on.leave, ["Escape"], "Esc", "close the help, or clear the selection or search", MORE),
  ];
}

function editorPage(on) {
  const { commands, bar } = on;
  const progress = el("span", { class: "oel-progress", role: "status" });
  const meter = el("div", {
    class: "oel-meter", role: "meter", "aria-label": "Budget of the experience", "aria-valuemin": 0,
  });
  const budget = el("input", { type: "number", min: 0, step: 50, "aria-label": "Budget", placeholder: "no limit",
    title: "Try another budget here. A run uses its own setting, budget_tokens.",
    onchange: () => on.budget(budget.value === "" ? null : Math.max(0, Math.round(budget.value))) });
  const spent = el("span", { class: "oel-dim" });
  const failure = failureBox();
  const filters = el("div", { class: "oel-group", role: "group", "aria-label": "Filter by status" });
  const choice = (text, change, ...options) =>
    el("select", { "aria-label": text, onchange(event) { change(event.target.value); } }, ...options);
  const sources = choice("Filter by source", on.source);
  const sorts = choice("Sort", on.sort, ...[["support", "most draws first"], ["evidence", "most evidence first"],
    ["", "as the teacher reads"], ["worth", "highest worth first"]].map(([value, text]) => el("option", { value }, text)));
  const search = el("input", { type: "search", placeholder: "Search  /", "aria-label": "Search the items" });
  const hits = el("button", { title: "Show the hits only", onclick: on.hits });
  const after = el("span", { class: "oel-after", role: "status" }, "Decide with a, x or s; you can add a reason afterwards.");
  const why = el("input", { type: "text", hidden: true, placeholder: "why?  w", "aria-label": "Reason of the last decision",
    onkeydown(event) {
      if (event.key === "Enter") on.explain();
      if (event.key === "Escape") { why.value = ""; on.explain(); }
    } });
  const name = el("input", { type: "text", placeholder: "your name, for the log", "aria-label": "Your name, for the log",
    hidden: true, onkeydown(event) { if (event.key === "Enter" && name.value.trim()) on.author(name.value.trim()); } });
  const author = el("button", { class: "oel-link", title: "Change the name",
    onclick() { name.hidden = false; name.focus(); } });
  const saved = el("span", { class: "oel-saved" });
  const hint = el("span", { class: "oel-hint", role: "status" });
  const every = el("input", { type: "checkbox", "aria-label": "Select all shown", onclick: on.selectAll });
  const adding = el("div");
  const none = el("p", { class: "oel-none" });
  const list = virtualList({ ...on.rows, attributes: { "aria-label": "Experience items", role: "region" } });
  const about = el("div", {}), prompt = el("pre", {}), promptSize = el("span", { class: "oel-dim" });
  const draws = el("select", { "aria-label": "Draw", title: "Each draw is an independent reading. What you accept goes into every draw.",
    onchange: () => on.draw(Number(draws.value)) });
  const panel = (title, head, body) => el("section", { class: "oel-side", tabindex: 0, "aria-label": title },
    el("header", {}, el("h3", {}, title), ...head), body);
  const evidence = panel("Evidence", [el("kbd", {}, "g")], about);
  const teacher = panel("What the teacher reads", [draws, promptSize], prompt);
  const help = el("div", { class: "oel-help", hidden: true, role: "dialog", "aria-label": "Keys" },
    el("header", {}, el("h3", {}, "Keys"), el("button", { onclick: () => on.run("Escape") }, "Close ", el("kbd", {}, "Esc"))),
    ...[MOVE, DECIDE, FIND, MORE].map((group) => el("section", {}, el("h3", {}, group), el("dl", {},
      ...commands.filter((c) => c.group === group)
        .flatMap(({ shown, what }) => [el("dt", {}, el("kbd", {}, shown)), el("dd", {}, what)])))),
    el("p", {}, "Keys work while the editor has the focus. A decision moves on to the next item. A row groups the items in the "
      + "same words; a decision applies to all of them. A draw is one reading of all games or conversations: ten draws give ten texts."));
  const file = el("input", { type: "file", accept: ".jsonl,.csv", hidden: true, "aria-label": "File to import",
    async onchange() {
      if (file.files[0]) on.ask("import", { texts: [await file.files[0].text()] });
      file.value = "";
    } });
  const menu = el("details", { class: "oel-menu", onkeydown(event) {
    if (event.key !== "Escape" || !menu.open) return;
    menu.open = false;
    menu.firstChild.focus();
    event.stopPropagation();  // Esc outside the menu clears the selection
  }, onfocusout(event) { if (!menu.contains(event.relatedTarget)) menu.open = false; } },
    el("summary", { role: "button" }, "More ▾"), el("div", { class: "oel-pop" },
      ...commands.filter((c) => c.more).map((c) => bar.get(c.label)),
      el("button", { onclick: () => on.ask("export", { texts: ["jsonl"] }) }, "Export JSONL"),
      el("button", { onclick: () => on.ask("export", { texts: ["csv"] }) }, "Export CSV"),
      el("button", { onclick: () => file.click() }, "Import …"), file));
  menu.addEventListener("click", (event) => { if (event.target.closest(".oel-pop button")) menu.open = false; });
  const right = el("div", { class: "oel-sides" }, evidence, teacher);
  const root = el("section", { class: "oel oel-editor", tabindex: -1, "aria-label": "Experience editor" },
    el("header", { class: "oel-head" }, progress, el("label", { class: "oel-budget" }, spent, budget), meter),
    el("div", { class: "oel-tools" }, filters, sorts, sources, search, hits),
    help, failure.node,
    el("div", { class: "oel-bar", role: "toolbar", "aria-label": "Decisions" },
      every, ...commands.filter((c) => c.label && !c.more).map((c) => bar.get(c.label)), menu,
      el("button", { "aria-label": "Help: keys", title: "Keys (?)", onclick: () => on.run("?") }, "?")),
    el("div", { class: "oel-strip" }, after, why, name));
  const main = el("div", { class: "oel-main" }, el("div", { class: "oel-left" }, adding, none, list.box));
  main.append(divider(main, 56), right);
  root.append(main, el("footer", { class: "oel-foot" }, saved, hint, author));

  function showFilters(kind, count, choose) {
    const some = Object.keys(FILTERS).filter((which) => which === kind || which === "all" || count(which));
    filters.replaceChildren(...some.map((which) => el("button", {
      "aria-pressed": String(which === kind), onclick: () => choose(which),
    }, label(which), " ", el("span", { class: "oel-count" }, number(count(which))))));
  }
  function showSources(found, source) {
    sources.replaceChildren(el("option", { value: "" }, "all sources"),
      ...found.map((each) => el("option", { value: each, selected: each === source }, each)));
    sources.hidden = found.length < 2;
  }
  function showPrompt(state) {
    prompt.replaceChildren(...promptNodes(state));
    promptSize.textContent = `${number(state.prompt_tokens ?? 0)} ${state.unit ?? ""}`;
    draws.hidden = state.draws.length < 2;
    draws.replaceChildren(...state.draws.map((d) =>
      el("option", { value: d, selected: d === state.draw }, `draw ${d}`)));
    const [limit, item] = [".oel-limit", ".oel-item"].map((each) => prompt.querySelector(each));
    if (!limit && !item) return;
    const head = teacher.firstChild.offsetHeight, goal = (limit ?? item).offsetTop - teacher.clientHeight / (limit ? 2 : 3);
    const lines = [...prompt.children].flatMap((node) => [...node.getClientRects()].map((box) => box.top));  // none is cut
    const from = teacher.getBoundingClientRect().top - teacher.scrollTop;
    teacher.scrollTop = Math.max(0, lines.map((top) => top - from).find((top) => top >= goal + head) - head) || 0;
  }
  function showBudget({ budget: most, tokens = 0, cut, unit = "tokens", measured }) {
    sorts.lastChild.hidden = !measured;
    meter.hidden = most == null;
    meter.style.setProperty("--share", `${Math.min(100, (100 * tokens) / Math.max(1, most))}%`);
    meter.classList.toggle("oel-over", cut.length > 0);
    meter.ariaValueMax = most;
    meter.ariaValueNow = Math.min(tokens, most);
    meter.title = cut.length ? `${several(cut.length, "item")} over the budget: the oldest are cut, from the top` : "";
    spent.textContent = `${number(tokens)} ${unit} of `;
    if (budget.getRootNode().activeElement !== budget) budget.value = most ?? "";
  }
  function showSaved({ log: [path, n], author: who, hint: then }) {
    saved.textContent = path ? `saved to ${path}: ${several(n, "operation")}` : `not saved: this curation has no log file`;
    hint.textContent = hint.title = visible(then);
    author.textContent = `as ${who}`;
    if (who !== "user") name.hidden = true;
    else if (n && name.dataset.asked == null) { name.hidden = false; name.dataset.asked = ""; }  // once
  }
  return { root, progress, failure, search, hits, why, after, every, none, list, help, adding, about, evidence,
    showFilters, showSources, showPrompt, showBudget, showSaved };
}
