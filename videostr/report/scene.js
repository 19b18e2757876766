// Scene graphs as SVG: over a video frame or on a floor seen from above.
// A frame is {nodes: [[id, colour, x, y, inside, position, seen]], edges: [[i, j]]}; x and y are shares of the picture from above,
// `seen` those of the video frame ([x, y], or null from behind the camera), left out where both pictures are alike.

const SVG = "http://www.w3.org/2000/svg";

function svg(name, attributes, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// Control and direction characters as signs that can be seen.
function visible(text) {
  return String(text)
    .replace(/[\u0000-\u0008\u000b-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)))
    .replace(/[\u007f-\u009f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\uffff]/g,
      (c) => `‹${c.charCodeAt(0).toString(16).padStart(4, "0")}›`);
}

// One picture. `truth` and `predicted` are frames, or null where there is none; `image` is a data URL or "".
function scenePicture({ width, height, image, truth, predicted, stated }) {
  const parts = image
    ? [svg("image", { href: image, width, height, preserveAspectRatio: "none" })]
    : [svg("rect", { class: "floor", width, height, rx: 3 }), ...mesh(width, height)];
  const share = (node) => image && node.length > 6 ? node[6] : [node[2], node[3]];
  const within = (node) => image && node.length > 6 ? node[6].every((value) => value >= 0 && value <= 1) : node[4];
  const at = (node) => {
    const [x, y] = share(node);
    return [Math.min(Math.max(x * width, 5), width - 5), Math.min(Math.max(y * height, 5), height - 5)];
  };
  const places = new Map(), shown = (frame) => frame.nodes.filter(share);
  if (truth) {
    for (const node of shown(truth)) {
      const [x, y] = at(node);
      places.set(node[0], [x, y]);
      parts.push(svg("circle", { class: "halo", cx: x, cy: y, r: 7.5 }));
      parts.push(svg("circle", { class: "ghost", cx: x, cy: y, r: 7.5, style: `stroke:${node[1]}` }, title("true ", node)));
    }
  }
  if (predicted) {
    for (const [a, b] of predicted.edges) {
      if (!share(predicted.nodes[a]) || !share(predicted.nodes[b])) continue;
      const [[x1, y1], [x2, y2]] = [at(predicted.nodes[a]), at(predicted.nodes[b])];
      parts.push(svg("line", { class: "edge", x1, y1, x2, y2 }));
    }
    for (const node of shown(predicted)) {
      const [x, y] = at(node), home = places.get(node[0]);
      if (home) parts.push(svg("line", { class: "error", x1: home[0], y1: home[1], x2: x, y2: y }));
      const shape = svg("circle", { cx: x, cy: y, r: 4.5, style: `fill:${node[1]}` }, title("predicted ", node));
      parts.push(svg("g", { class: within(node) ? "node" : "node outside" }, shape));
    }
  }
  const named = predicted && predicted.nodes.length ? shown(predicted) : truth ? shown(truth) : [];
  parts.push(...names(named.map((node) => [node[0], ...at(node)]), width, height));
  if (stated === false) parts.push(svg("text", { class: "none", x: width / 2, y: height - 8, "text-anchor": "middle" }, "not stated"));
  return svg("svg", { class: image ? "scene over" : "scene", viewBox: `0 0 ${width} ${height}`, width, height, role: "img" }, ...parts);
}

function mesh(width, height) {
  return [1, 2, 3, 4].map((i) => svg("path", { class: "mesh", d: `M${i * width / 5} 0v${height}M0 ${i * height / 5}h${width}` }));
}

function title(kind, node) {
  return svg("title", {}, visible(`${kind}${node[0]} (${node[5].join(", ")})`));
}

// Ids next to their nodes, where they cover neither a node nor another id; crowded ones are left out.
function names(nodes, width, height) {
  const taken = nodes.map(([, x, y]) => [x - 7, y - 7, x + 7, y + 7]), texts = [];
  for (const [id, x, y] of nodes) {
    const name = visible(id.length <= 18 ? id : `${id.slice(0, 17)}…`), long = 5.1 * name.length;
    for (const [dx, dy] of [[10, -4.5], [-10 - long, -4.5], [-long / 2, 8], [-long / 2, -17]]) {
      const box = [x + dx, y + dy, x + dx + long, y + dy + 9];
      if (box[0] < 0 || box[1] < 0 || box[2] > width || box[3] > height) continue;
      if (taken.some((other) => box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3])) continue;
      taken.push(box);
      texts.push(svg("text", { class: "name", x: box[0], y: box[3] - 1.5 }, name));
      break;
    }
  }
  return texts;
}
