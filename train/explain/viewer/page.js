// Fills the pictures for the node next to the place that somebody points at.
"use strict";

const facts = JSON.parse(document.getElementById("facts").textContent);
const element = (id) => document.getElementById(id);
const state = { place: null, node: 0, chosen: null };
let model;

start();

async function start() {
  const json = JSON.parse(element("document").textContent);
  const item = { docid: "page", roots: facts.roots, root_ids: Object.keys(facts.roots) };
  await Bokeh.embed.embed_items({ page: json }, [item]);
  const [page] = Bokeh.documents;
  model = (name) => page.get_model_by_name(name);
  for (const [i, text] of facts.stacks.entries()) {
    element("stack").append(new Option(text, i, false, i === facts.first.stack));
  }
  element("stack").addEventListener("change", showPoints);
  element("whole").addEventListener("click", showWhole);
  element("panels").addEventListener("keydown", move);
  addEventListener("pick", ({ detail }) => point(detail));
  point(facts.first.place);
}

// Shows what is at a place, in the coordinates of boxes.
function point(place) {
  state.place = place;
  state.node = nearest(place);
  state.chosen = detectionsAt(place)[0] ?? null;
  show();
}

function show() {
  const { x, y } = pixelOf(state.node);
  model("shown node").data = { x: [x + 0.5], y: [y + 0.5] };
  const [nx, ny] = ["x", "y"].map((axis) => column("nodes", axis)[state.node]);
  const [rows, columns] = facts.map_size;
  element("node").textContent = `x ${nx}, y ${ny} of a map of ${columns} × ${rows}`;
  element("pixel").textContent = `x ${x}, y ${y} (stride ${facts.stride})`;
  showPoints();
  showField();
  showDetections();
}

function showPoints() {
  const stack = element("stack").value;
  const name = `points ${stack}`;
  const of = (axis) => row(name, axis, state.node);
  const [x, y, level, inside] = ["x", "y", "strength", "inside"].map(of);
  const within = [...inside.keys()].filter((i) => inside[i]);
  const without = [...inside.keys()].filter((i) => !inside[i]);
  // Pixel i is from i to i + 1.
  const places = (which) => ({
    x: which.map((i) => x[i] / facts.steps + 0.5),
    y: which.map((i) => y[i] / facts.steps + 0.5),
  });
  model("shown points").data = {
    ...places(within),
    level: within.map((i) => level[i]),
    size: within.map((i) => 3 + (5 * level[i]) / facts.levels),
  };
  model("shown points outside").data = places(without);
  element("layers").textContent = facts.layers[stack].join(", ") || "the model";
  const count = facts.counts[stack];
  const shown = inside.length < count ? `, ${inside.length} strongest shown` : "";
  const outside = column(name, "outside")[state.node];
  element("count").textContent = `${count}, of which ${outside} outside of the map${shown}`;
}

function showField() {
  const source = model("shown field");
  source.data.image[0].set(row("nodes", "field", state.node));
  source.change.emit();
  for (const [id, name] of [["area", "area_side"], ["square", "square_side"]]) {
    const side = column("nodes", name)[state.node];
    element(id).textContent = `${side.toFixed(0)} pixels`;
  }
}

function showDetections() {
  const here = detectionsAt(state.place);
  const names = column("detections", "name");
  const scores = column("detections", "score");
  const text = (d) => `${names[d]} ${scores[d].toFixed(2)}`;
  // The chosen one is drawn last, on top.
  const order = [...names.keys()].sort((a, b) => rank(a) - rank(b) || b - a);
  const corner = (name) => order.map((d) => column("detections", name)[d]);
  function rank(d) {
    return d === state.chosen ? 2 : here.includes(d) ? 1 : 0;
  }
  model("shown boxes").data = {
    x1: corner("x1"),
    y1: corner("y1"),
    x2: corner("x2"),
    y2: corner("y2"),
    width: order.map((d) => [1, 2, 3][rank(d)]),
    alpha: order.map((d) => [0.55, 1, 1][rank(d)]),
  };
  const chosen = order.filter((d) => d === state.chosen);
  model("shown name").data = {
    x: chosen.map((d) => column("detections", "x1")[d]),
    y: chosen.map((d) => column("detections", "y1")[d]),
    text: chosen.map(text),
  };
  element("here").textContent = here.length
    ? `${here.length} of ${names.length} here:`
    : `None of ${names.length} here.`;
  element("list").replaceChildren(...here.map((d) => choice(d, text(d))));
  showBins();
}

// A button that shows the bins of a detection.
function choice(d, text) {
  const [button, item] = ["button", "li"].map((kind) => document.createElement(kind));
  button.type = "button";
  button.textContent = text;
  button.ariaPressed = String(d === state.chosen);
  button.addEventListener("click", () => {
    state.chosen = d;
    showDetections();
    // The list is new; whoever came by the keyboard stays where he was.
    element("list").querySelector("[aria-pressed=true]").focus();
  });
  item.append(button);
  return item;
}

function showBins() {
  const d = state.chosen;
  const known = d !== null && facts.bins;
  const of = (name) => (known ? [...row("detections", name, d)] : []);
  const mask = of("mask");
  const side = (name) => mask.map(() => column("detections", name)[d]);
  const width = side("bin_width");
  const height = side("bin_height");
  model("shown bins").data = {
    x: of("bin_x"),
    y: of("bin_y"),
    width,
    height,
    level: mask.map((m) => facts.levels * Math.sqrt(m / facts.most_mask)),
  };
  const [low, high] = [Math.min(...mask), Math.max(...mask)].map((m) => m.toFixed(2));
  const [h, w] = facts.bins ?? [];
  element("bins").textContent = known
    ? `${w} × ${h} bins of ${width[0].toFixed(1)} × ${height[0].toFixed(1)} pixels, ` +
      `modulation ${low} to ${high}`
    : "";
}

function showWhole() {
  const { x_range, y_range } = model("points-picture");
  x_range.setv({ start: facts.view.x[0], end: facts.view.x[1] });
  y_range.setv({ start: facts.view.y[0], end: facts.view.y[1] });
}

// Goes to the next node in the direction of an arrow key.
function move(event) {
  const step = {
    ArrowLeft: [-1, 0],
    ArrowRight: [1, 0],
    ArrowUp: [0, -1],
    ArrowDown: [0, 1],
  }[event.key];
  const other = event.target.closest("select, button");
  if (step === undefined || other || event.ctrlKey || event.altKey) return;
  event.preventDefault();
  const [xs, ys] = ["x", "y"].map((axis) => column("nodes", axis));
  const wide = new Set(xs).size;
  const tall = new Set(ys).size;
  const clamp = (i, size) => Math.max(0, Math.min(size - 1, i));
  const right = clamp((state.node % wide) + step[0], wide);
  const down = clamp(Math.floor(state.node / wide) + step[1], tall);
  const { x, y } = pixelOf(down * wide + right);
  point({ x: x + 0.5, y: y + 0.5 });
}

// Detections that contain a place, the best first.
function detectionsAt({ x, y }) {
  const [x1, y1, x2, y2, score] = ["x1", "y1", "x2", "y2", "score"].map((name) =>
    column("detections", name),
  );
  return [...score.keys()]
    .filter((d) => x1[d] <= x && x <= x2[d] && y1[d] <= y && y <= y2[d])
    .sort((a, b) => score[b] - score[a]);
}

function nearest({ x, y }) {
  let best = 0;
  let least = Infinity;
  for (let k = 0; k < column("nodes", "x").length; k++) {
    const pixel = pixelOf(k);
    const distance = Math.hypot(pixel.x + 0.5 - x, pixel.y + 0.5 - y);
    if (distance < least) [best, least] = [k, distance];
  }
  return best;
}

// Position i of a map is centred on pixel stride * i.
function pixelOf(node) {
  const [x, y] = ["x", "y"].map((axis) => facts.stride * column("nodes", axis)[node]);
  return { x, y };
}

function column(source, name) {
  return model(source).data[name];
}

// What a node or a detection has in a column with several numbers for each.
function row(source, name, index) {
  const values = column(source, name);
  const count = values.length / values.shape[0];
  return Array.from({ length: count }, (_, i) => values[index * count + i]);
}
