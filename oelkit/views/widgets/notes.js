// Tags (#word) and comments on turns. Python keeps them in a log; this holds what it sent last.

const isTag = (note) => note.text.startsWith("#");
const COMMENT = "with a comment";

/** kernel(): the line to Python; place(): the open game and turn; tell(text): says what went wrong. */
function notesPanel({ kernel, place, tell }) {
  let notes = new Map();  // by game
  const of = (game) => notes.get(game) ?? [];
  const tags = (game) => [...new Set(of(game).map((note) => (isTag(note) ? note.text : COMMENT)))];
  const chips = el("span", { class: "ov-chips" });
  const field = el("input", { type: "text", placeholder: "#tag or comment  c", "aria-label": "tag or comment on this turn",
    onkeydown(event) {
      const words = field.value.trim().split(/\s+/);
      if (event.key !== "Enter" || !words[0] || field.readOnly) return;
      change({ kind: "note", ...place(), texts: words.every((word) => word.startsWith("#")) ? words : [field.value] });
      field.readOnly = !kernel().down();  // until it is saved
    } });
  const change = (message) => kernel().down() || kernel().send(message);
  const away = (note) => el("button", { "aria-label": `remove ${visible(note.text)}`, title: "remove (u undoes this)",
    onclick({ target }) {
      target.closest("[tabindex]").focus({ preventScroll: true });
      change({ kind: "unnote", id: note.id });
    } }, "×");

  return {
    line: el("div", { class: "ov-notes" }, chips, field), field, tags,
    undo: () => change({ kind: "undo" }),
    hear({ notes: all, wrong, path }) {
      notes = new Map();
      for (const [game, id, turn, text, author, time] of all)
        notes.set(game, [...of(game), { id, turn, text, author, time }]);
      if (field.readOnly && !wrong) field.value = "";
      field.readOnly = false;
      tell(wrong);
      field.title = path ? `saved to ${path}` : "not saved: this viewer has no log for notes";
    },
    /** Show the tags of a game in its header. */
    draw: (game) => chips.replaceChildren(...of(game).filter(isTag).map((note) =>
      el("span", { class: "ov-pill ov-tag", title: `turn ${note.turn + 1}, ${note.author}, ${note.time}` },
        el("bdi", {}, visible(note.text)), away(note)))),
    /** The comments on a turn. */
    comments: (game, turn) => of(game).filter((note) => note.turn === turn && !isTag(note)).map((note) =>
      el("p", { class: "ov-comment", dir: "auto" }, visible(note.text), " ",
        el("span", { class: "oel-dim" }, dots(visible(note.author), note.time.replace("T", " "))), away(note))),
    counts(games) {
      const found = new Map();
      for (let i = 0; i < games; i++) for (const tag of tags(i)) found.set(tag, (found.get(tag) ?? 0) + 1);
      return found;
    },
  };
}
