// A conversation as a transcript: every message with its role; reasoning and tool definitions are folded.

const LONG_SYSTEM = 400;  // longer system prompts are folded (characters)

/** Options as in gameView; `turn` is the marked one. */
function chatView({ key, row, game, turn: now, caption, query, open, go, openItem, comments }) {
  const text = (value) => el("div", { class: "ov-text", dir: "auto" }, ...long(value, query));
  const said = (role, label, ...content) => el("section", { class: `ov-said ov-by-${role}` },
    el("h4", {}, ...[label].flat()), ...content);
  function message({ role, name: who, text: words, tools }, place) {
    const known = ["system", "user", "assistant", "tool"].includes(role) ? role : "other";
    const label = dots(visible(role), visible(who));
    const folded = role === "system" && words.length > LONG_SYSTEM;
    const defined = tools.length > 0 && fold(`${place} tools`, several(tools.length, "tool"), open, ...tools.map(text));
    if (!folded) return said(known, label, text(words), defined);
    return said(known, label, fold(place, several(words.length, "character"), open, text(words)), defined);
  }
  function exchange(turn, k) {
    const place = `${key}/${k}`;
    const label = [el("button", { "data-focus": place, "aria-label": `turn ${k + 1}`, title: "go to this turn",
      onclick: () => go({ turn: k }, true) }, `${k + 1}`),
    ` assistant${turn.reply_tokens ? ` · ${several(turn.reply_tokens, "token")}` : ""}`,
    turn.truncated && pill("cut", "cut off at the limit")];
    const calls = turn.calls.map(([tool, given]) => el("div", { class: "ov-call" },
      el("h4", {}, "calls ", el("b", { class: "ov-action" }, visible(tool || "a tool"))), text(given)));
    const words = turn.reply.join("") || !calls.length;
    return el("div", { class: "ov-exchange", "aria-current": k === now && "step" },
      ...turn.before.map((m, i) => message(m, `${place} ${i}`)),
      said("assistant", label.filter(Boolean),
        turn.thinking && fold(`${place} thinking`, `reasoning · ${several(turn.thinking.length, "character")}`, open,
          text(turn.thinking)),
        words && el("div", { class: "ov-text", dir: "auto" }, ...replyOf(turn, query)), ...calls),
      ...learned(turn, openItem), ...comments(k),
      turn.feedback && said("after", k === game.turns.length - 1 ? "after the last reply" : "after the reply",
        text(turn.feedback)));
  }
  return el("div", { class: "ov-game ov-chat" },
    caption && el("h3", {}, pill(row.outcome, outcomeName(row.outcome)), " ", caption), ...game.turns.map(exchange));
}
