// The editor's panels: the origin of an item, and what the teacher reads.

/** The evidence of a row. on: restore(ids), turn(game, turn), go(id), all(). */
function evidenceNodes({ originals, evidence, more, parents, history }, against, viewer, on) {
  const part = (title, ...nodes) => [el("h4", {}, title), ...nodes];
  const text = (value) => el("pre", {}, visible(value));
  const told = (title, value) => (value ? part(title, text(value)) : []);
  const ended = (outcome) => (outcome && outcome !== "unknown" ? `: ${outcomeName(outcome)}` : "");  // unknown: a log
  const shownTurn = (t, n) => el("details", { open: n < 2 },
    el("summary", {}, `Turn ${t.turn}${t.of ? ` of ${t.of}` : ""}${ended(t.outcome)}`,
      el("span", { class: "oel-dim" }, ` ${visible(t.game)}`)),
    ...(!t.of ? [el("p", { class: "oel-dim" }, "The editor was not given this game or conversation.")] : [
      ...(t.board.cells.length ? [board(t.board)] : told(t.chat ? "Before the reply" : "Observation", t.text)),
      t.thinking && el("details", {}, el("summary", {}, `Thinking · ${several(t.thinking.length, "character")}`), text(t.thinking)),
      ...told("Reply", t.reply || (t.calls.length ? "" : t.thinking ? "no answer: the thinking never ended" : "empty")),
      ...t.calls.flatMap(([tool, given]) => part(`Calls ${visible(tool || "a tool")}`, text(given))),
      ...told("Move", t.chat ? "" : t.move ?? "none found"),
      ...told(t.chat ? "After the reply" : "Feedback", t.feedback),
      viewer && el("button", { onclick: () => on.turn(t.game, t.turn - 1) }, t.chat ? "Whole conversation" : "Whole game"),
    ]));
  const made = ([ids, words]) => el("p", { dir: "auto" }, visible(words), " ",
    el("button", { onclick: () => on.restore(ids) }, "Restore"));
  const other = ([id, words, n]) => el("button", { dir: "auto", onclick: () => on.go(id) }, visible(words),
    el("span", { class: "oel-dim" }, n ? `  ${several(n, "draw")}` : ""));
  const done = ([op, author, time, why]) =>
    el("li", {}, el("b", {}, op), visible(` by ${author}, ${new Date(time).toLocaleString()}${why && `: ${why}`}`));
  return [
    against.length > 0 && el("div", { class: "oel-contra" }, ...part("Contradicts", ...against.map(other))),
    ...evidence.map(shownTurn),
    more > 0 && el("button", { onclick: on.all }, `Show the other ${several(more, "turn")} of evidence`),
    ...(evidence.length ? [] : [el("p", { class: "oel-none" }, "No evidence is recorded.")]),
    ...(parents.length ? part(parents.flatMap(([ids]) => ids).length > 1 ? "Merged from" : "Split from", ...parents.map(made)) : []),
    ...part(originals.length > 1 ? "As first written" : "Original", ...originals.map(text)),
    ...(history.length ? part("History", el("ul", {}, ...history.map(done))) : [])].filter(Boolean);
}

/** The teacher's prompt as nodes: the items that the budget cuts, a dividing line, and the items that it reads. */
function promptNodes({ before, after, cut, reads, budget, unit }) {
  const shown = (name, text) => el("span", { class: name }, visible(text), "\n");
  const nodes = [
    before && el("span", { class: "oel-dim" }, visible(before)),
    ...cut.map((text) => shown("oel-gone", text)),
    cut.length > 0 && el("span", { class: "oel-limit" }, `budget of ${number(budget)} ${unit}: cut above this line`),
    ...reads.map((text) => shown("oel-item", text)),
    after && el("span", { class: "oel-dim" }, visible(after.replace(/^\n/, "")))].filter(Boolean);
  const none = el("p", { class: "oel-none" }, cut.length
    ? "No item fits this budget: the teacher would read no experience."
    : "Nothing is accepted yet: the teacher would read no experience.");
  return reads.length ? nodes : [none, ...nodes];
}

/** The progress: "12 of 63 reviewed, 40 kept, 12 fit, 28 cut". Automatic decisions do not count as reviewed. */
function progressOf(all, { reads, cut, draws, draw }) {
  const reviewed = all.filter((i) => i.status !== "pending" && !i.auto).length;
  const kept = cut.length ? reads.length + cut.length : all.filter((i) => i.status === "accepted").length;
  const fit = cut.length ? `, ${number(reads.length)} fit, ${number(cut.length)} cut` : "";
  return `${number(reviewed)} of ${number(all.length)} reviewed, ${number(kept)} kept${fit}`
    + (draws.length > 1 && cut.length ? ` (draw ${draw})` : "");
}

/** What stands in place of a list without rows. */
function emptyList(loaded, kind, items) {
  if (!loaded) return "Waiting for the kernel …";
  if (!items) return "No items yet: extract some or add one.";
  return kind === "pending" ? "Nothing is pending: all items are decided." : "No item matches.";
}

/** What to say while the kernel does not answer. sent: forms that it may not have read; again: asks once more. */
function unheard([log, n], sent, again) {
  return [`${UNHEARD} Nothing you do now is recorded. ${
    log ? `Your earlier decisions are saved in ${log} (${several(n, "operation")}).` : "This curation has no log on disk."
  } If the kernel has stopped, run the editor's cell again or reload this page. `,
  el("button", { onclick: again }, "Ask again"),
  ...sent.map(({ text }) => el("p", { dir: "auto" }, "Perhaps not saved: ", visible(text)))];
}

const SAVES = "What you write is accepted, unless you rejected what it replaces";

/** A form for a text that replaces `items` items. done(op, texts): "add" (none), "edit", "merge" (several),
 *  "split" at line breaks, or nothing. */
function itemForm(text, items, oninput, done) {
  const isNew = items === 0, op = ["add", "edit"][items] ?? "merge";
  const what = { add: "Text of the new item", edit: "Text of the item", merge: "Text of the merged item" }[op];
  const area = el("textarea", { rows: 3, oninput, "aria-label": what });
  area.value = text;
  const lines = () => area.value.split("\n").filter((words) => words.trim());
  const save = () => (op === "edit" && area.value === text ? done() : done(op, [area.value]));
  const split = () => (lines().length > 1 ? done("split", lines()) : area.focus());
  const button = (words, keys, run, title) => el("button", { onclick: run, title }, `${words} `, el("kbd", {}, keys));
  const form = el("div", { class: "oel-form", role: isNew ? null : "listitem" }, area, el("div", { class: "oel-acts" },
    button(op === "merge" ? `Merge ${items}` : "Save", "Ctrl+Enter", save, SAVES), button("Cancel", "Esc", () => done()),
    op === "merge" && el("span", { class: "oel-dim" }, "Line breaks become spaces: keep the best wording, delete the rest."),
    op === "edit" && button("Split at line breaks", "Ctrl+Shift+Enter", split, "Make each line an item, with all the evidence")));
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) (op === "edit" && event.shiftKey ? split : save)();
    else if (event.key === "Escape") done();
    else return;
    event.preventDefault();
  });
  return { form, area };
}
