// A board as SVG: the same drawing as oelkit/envs/picture.py.

const TURN = { left: 180, right: 0, up: -90, down: 90 };
const TILES = ["#c9a7eb", "#f6c177", "#8fd3c1", "#f2a6b8", "#a8b8f0", "#d5cf7a"];

function shape(tag, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text != null) node.textContent = text;
  return node;
}

function tile(symbol, kind, indoors) {
  const g = shape("g", {});
  const add = (tag, attributes, text) => g.append(shape(tag, attributes, text));
  const square = (fill, stroke) =>
    add("rect", { x: .04, y: .04, width: .92, height: .92, rx: .12, fill, stroke, "stroke-width": .025 });
  const letter = (x, y, size, fill) =>
    add("text", { x, y, "font-size": size, fill, "font-weight": 700, "text-anchor": "middle",
      "dominant-baseline": "central", "font-family": "system-ui, sans-serif" }, visible(symbol));
  const crate = (fill, stroke) => {
    add("rect", { x: .16, y: .16, width: .68, height: .68, fill, stroke, "stroke-width": .06 });
    add("path", { d: "M.2 .2L.8 .8M.2 .8L.8 .2", stroke, "stroke-width": .05 });
  };
  if (kind === "wall") {
    add("rect", { width: 1.01, height: 1.01, fill: "#6f6a75" });
    for (let row = 0; row < 4; row++)
      for (const [x, width] of row % 2 ? [[.02, .46], [.52, .46]] : [[.02, .21], [.27, .46], [.77, .21]])
        add("rect", { x, y: row * .25 + .02, width, height: .21, fill: "#8b8592" });
    return g;
  }
  square(indoors ? "#f1e9dc" : "#e3f1fa", indoors ? "#e0d3bf" : "#c3deee");
  if (kind === "free" && !indoors)
    add("path", { d: "M.24 .46L.42 .28M.24 .6L.49 .35", stroke: "#fff", "stroke-width": .05 });
  else if (kind === "hole") {
    add("ellipse", { cx: .5, cy: .5, rx: .39, ry: .35, fill: "#3d6f9e", stroke: "#fff", "stroke-width": .03 });
    add("ellipse", { cx: .5, cy: .54, rx: .32, ry: .27, fill: "#16324f" });
    letter(.5, .54, .36, "#9cc4e4");
  } else if (kind === "goal") {
    square("#cdeecb", "#8fce8b");
    add("path", { d: "M.34 .2V.84", stroke: "#5b4636", "stroke-width": .055 });
    add("path", { d: "M.36 .18L.88 .38L.36 .58Z", fill: "#2f9e44" });
    letter(.5, .385, .22, "#fff");
  } else if (kind === "key") {
    square("#fff3cd", "#e0b93b");
    add("circle", { cx: .32, cy: .66, r: .13, fill: "none", stroke: "#b8860b", "stroke-width": .07 });
    add("path", { d: "M.44 .66H.84M.7 .66V.8M.81 .66V.8", fill: "none", stroke: "#b8860b", "stroke-width": .07 });
    letter(.5, .3, .3, "#7a5c00");
  } else if (kind === "target" || kind === "player on target") {
    add("circle", { cx: .5, cy: .5, r: .27, fill: "none", stroke: "#d6336c", "stroke-width": .07 });
    add("circle", { cx: .5, cy: .5, r: .1, fill: "#d6336c" });
  } else if (kind === "box") crate("#d99a55", "#b9793a");
  else if (kind === "done") crate("#8ccf8a", "#2f8f46");
  else if (kind !== "free" && !kind.startsWith("player")) {
    square(TILES[symbol.codePointAt(0) % TILES.length], "#fff");
    letter(.5, .5, .5, "#333");
  }
  if (kind.startsWith("player")) {
    add("ellipse", { cx: .5, cy: .86, rx: .23, ry: .05, fill: "#00000022" });
    add("rect", { x: .35, y: .48, width: .3, height: .34, rx: .13, fill: "#e4572e" });
    add("circle", { cx: .5, cy: .33, r: .155, fill: "#f7d3b1", stroke: "#7a4a2b", "stroke-width": .02 });
    add("path", { d: "M.33 .29L.5 .09L.67 .29Z", fill: "#e4572e" });
  }
  if (kind === "player with key") {
    add("circle", { cx: .78, cy: .5, r: .08, fill: "none", stroke: "#b8860b", "stroke-width": .05 });
    add("path", { d: "M.78 .58V.82M.78 .79H.88", fill: "none", stroke: "#b8860b", "stroke-width": .05 });
  }
  return g;
}

/** A board as SVG; move: an arrow at the player. */
function board({ cells, kinds, action }) {
  const indoors = cells.some((row) => row.some((symbol) => kinds[symbol] === "wall"));
  const say = cells.map((row, y) => `row ${y + 1}: ${row.map((s) => kinds[s] ?? s).join(", ")}`).join("; ");
  const svg = shape("svg", { viewBox: `-.04 -.04 ${cells[0].length + .08} ${cells.length + .08}`, role: "img",
    "aria-label": visible(`board, ${say}; move: ${action ?? "none"}`) });
  let player;
  cells.forEach((row, y) => row.forEach((symbol, x) => {
    const kind = Object.hasOwn(kinds, symbol) ? kinds[symbol] : "unknown";
    const g = tile(symbol, kind, indoors);
    g.setAttribute("transform", `translate(${x} ${y})`);
    svg.append(g);
    if (kind.startsWith("player")) player = [x + .5, y + .5];
  }));
  if (player && Object.hasOwn(TURN, action ?? "")) {
    const g = shape("g", { transform: `translate(${player}) rotate(${TURN[action]})` });
    for (const [stroke, width] of [["#fff", .15], ["#212529", .07]])
      g.append(shape("path", { d: "M.34 0H.62M.62 -.13L.84 0L.62 .13Z", stroke, fill: "#212529", "stroke-width": width,
        "stroke-linejoin": "round" }));
    svg.append(g);
  }
  return svg;
}
