// One game at one turn: board, thinking, reply, move, feedback, items with this evidence, prompt.

const CLIP = 20000;  // characters of a text that are shown at first
const dots = (...parts) => parts.filter(Boolean).join(" · ");
/** A long name without its middle: ids of one log begin alike. */
const middle = (name) => (name.length > 20 ? `${name.slice(0, 7)}…${name.slice(-12)}` : name);
/** The lines of a log that could not be read, which have no row. */
const leftOut = (bad) => (!bad.length ? [] : [el("details", { class: "ov-left" },
  el("summary", {}, `${several(bad.length, "line")} of the log could not be read`),
  ...bad.map(([line, said]) => el("div", {}, `line ${line}: ${visible(said)}`)))]);
const pill = (kind, text) => el("span", { class: `ov-pill ov-${kind}` }, text);

/** Text as nodes like `marked`, but only its beginning if it is long and no hit lies beyond. */
function long(text, query) {
  const hidden = query && text.toLowerCase().includes(query.toLowerCase(), CLIP - query.length);
  if (text.length <= CLIP || hidden) return marked(text, query);
  const more = el("button", { onclick() {
    more.closest("[tabindex]").focus({ preventScroll: true });
    more.replaceWith(...marked(text.slice(CLIP), query));
  } }, `… show ${several(text.length - CLIP, "more character")}`);
  return [...marked(text.slice(0, CLIP), query), more];
}

const block = (label, kind, ...content) => el("section", { class: `ov-block ov-${kind}` },
  el("h4", {}, ...[label].flat()), el("div", { class: "ov-text", dir: "auto" }, ...content));

/** A part that is folded unless its name is in `open` or it holds a hit. data-focus: see `draw` in viewer.js. */
function fold(key, label, open, ...content) {
  const node = el("details", { class: "ov-fold", open: open.has(key) },
    el("summary", { "data-focus": key }, label), ...content);
  if (node.querySelector("mark")) node.open = true;
  else node.addEventListener("toggle", () => (node.open ? open.add(key) : open.delete(key)));
  return node;
}

/** The first turn in which two games on a map differ; -1: none. */
function divergence(a, b) {
  const done = (t) => t && (t.action ?? t.thinking + t.reply.join(""));
  const last = Math.max(a.turns.length, b.turns.length);
  for (let i = 0; i < last; i++) if (done(a.turns[i]) !== done(b.turns[i])) return i;
  return -1;
}

function strip({ game, turn: now, differs, key, go }) {
  if (game.turns.length < 2 || game.turns.length > 40 || !game.turns.every((t) => t.cells.length)) return null;
  return el("div", { class: `ov-strip${game.turns.some((t) => t.level) ? " ov-levels" : ""}` }, ...game.turns.map((t, i) => {
    const label = `turn ${i + 1}: ${visible(t.action ?? "no move")}${i === differs ? ", first difference" : ""}`
      + (t.items.length ? ", has items" : "");
    const step = i + 1 + (t.items.length ? " •" : "");
    return el("button", { "data-focus": `${key}/${i}`, "aria-label": label, "aria-current": i === now && "step",
      class: i === differs && "ov-differs", onclick: () => go({ turn: i }) },
    board(t), el("span", { "aria-hidden": "true" }, t.level && t.level !== game.turns[i - 1]?.level
      ? `${step} · level ${t.level}` : step));
  }));
}

function replyOf(turn, query) {
  const [before, move, after] = turn.reply;
  const none = turn.thinking ? "no answer: the thinking never ended" : "empty";
  if (!(before + move + after)) return [el("span", { class: "oel-dim" }, none)];
  const found = move && el("b", { class: "ov-action" }, ...marked(move, query));
  return [...long(before, query), found, ...long(after, query)];
}

/** The items that a turn is evidence for. */
function learned(turn, openItem) {
  if (!turn.items.length) return [];
  const item = ([id, words, status]) => el(openItem ? "button" : "p",
    openItem ? { "data-focus": `item ${id}`, onclick: () => openItem(id) } : {}, visible(words), " ",
    el("span", { class: "oel-dim" }, status));
  return [el("section", { class: "ov-items" }, el("h4", {}, "items from this turn"), ...turn.items.map(item))];
}

/** key: identifies the game on the page; row: from the index; differs: first turn that differs, -1: none; caption: arm and
 *  round; go: on a click on a turn; openItem: on a click on an item, or null; comments(turn): its comments. */
function gameView({ key, row, game, turn: now, differs, caption, query, open, go, openItem, comments }) {
  const turn = game.turns[now], drawn = turn?.cells.length > 0;
  const text = (value) => el("div", { class: "ov-text", dir: "auto" }, ...long(value, query));
  const top = [caption && el("h3", {}, pill(row.outcome, outcomeName(row.outcome)), " ", caption),
    strip({ game, turn: now, differs, key, go })];
  if (!turn) return el("div", { class: "ov-game" }, ...top,
    el("p", { class: "oel-dim" }, `ended after ${several(game.turns.length, "turn")}${game.feedback && ": "}${visible(game.feedback)}`));
  const cut = turn.truncated ? pill("cut", "cut off at the limit") : "";
  const move = turn.action == null ? el("b", { class: "ov-action ov-none" }, "none found")
    : el("b", { class: "ov-action" }, visible(turn.action));
  const last = now === game.turns.length - 1 ? ` ov-${row.outcome}` : "";
  return el("div", { class: "ov-game" }, ...top,
    el("div", { class: drawn && "ov-turn" },
      drawn ? el("div", { class: "ov-board" }, board(turn))
        : block("observation", "seen", ...long(turn.observation, query)),
      el("div", { class: "ov-texts" },
        turn.thinking && fold("thinking", `thinking · ${several(turn.thinking.length, "character")}`, open,
          text(turn.thinking)),
        block([`reply · ${several(turn.reply_tokens, "token")}`, cut], "reply", ...replyOf(turn, query)),
        turn.level && el("p", { class: "oel-dim" }, `level ${turn.level}`),
        el("p", { class: "ov-move" }, "move ", move, now === differs && pill("differs", "first difference")),
        turn.feedback && block("feedback", `feedback${last}`, ...long(turn.feedback, query)))),
    ...learned(turn, openItem), ...comments(now),
    fold("prompt", `prompt · ${several(turn.prompt_tokens, "token")}`, open,
      ...turn.prompt.flatMap(([role, words]) => [el("h4", {}, visible(role)), text(words)])),
    drawn && fold("observation", "board as text", open, text(turn.observation)));
}
