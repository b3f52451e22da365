// Parts drawn over a photo: outlines and words, on the page (SVG) and into a picture (canvas) from one layout.

const COLOURS = ["#45b0f5", "#f5dc1e", "#ff7433", "#2fd8a4", "#f57fcb", "#9fd5ff", "#ffb52e", "#c9c9c9"];
const TYPEFACE = () => getComputedStyle(document.body).fontFamily;
const colourNumbers = new Map(); // first level of a description → its colour, the same while the page is open

function colourOf(desc) {
  const kind = desc.split("/")[0];
  if (!colourNumbers.has(kind)) colourNumbers.set(kind, colourNumbers.size);
  return COLOURS[colourNumbers.get(kind) % COLOURS.length];
}

const measuring = document.createElement("canvas").getContext("2d");

function clipped(text, room) {
  if (measuring.measureText(text).width <= room) return text;
  let end = text.length;
  while (end > 1 && measuring.measureText(`${text.slice(0, end)}…`).width > room) end -= 1;
  return `${text.slice(0, end)}…`;
}

const overlaps = (a, b) => a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height;

// Where each part's words go, in pixels of the photo: above the box, under it or inside, where they cover no other
// words; where there is no room, only the part's number. The chosen part comes first, then the surest.
function layoutLabels(parts, { width, height, size, withWords, chosen = -1 }) {
  measuring.font = `600 ${size}px ${TYPEFACE()}`;
  const labels = [];
  const taken = [];
  const place = (text, [x1, y1, x2, y2]) => {
    const label = { text, width: measuring.measureText(text).width + size * 0.6, height: size * 1.35 };
    const within = (x) => Math.max(0, Math.min(x, width - label.width));
    const rows = [y1 - label.height, y2, y1, y2 - label.height].filter((y) => y >= 0 && y + label.height <= height);
    const spots = [x1, x2 - label.width].flatMap((x) => rows.map((y) => ({ ...label, x: within(x), y })));
    return { free: spots.find((spot) => !taken.some((other) => overlaps(spot, other))), any: spots[0] || { ...label, x: within(x1), y: 0 } };
  };
  const order = [...parts.keys()].sort((a, b) => (b === chosen) - (a === chosen));
  for (const index of order) {
    const { desc, score, box } = parts[index];
    const words = `${index + 1} ${desc}${score === null ? "" : ` ${decimals(score, 2)}`}`;
    const long = withWords || index === chosen ? place(clipped(words, width - size), box).free : null;
    const short = place(`${index + 1}`, box);
    labels[index] = long || short.free || short.any;
    taken.push(labels[index]);
  }
  return labels;
}

const rectangle = ([x1, y1, x2, y2]) => ({ x: x1, y: y1, width: Math.max(x2 - x1, 0), height: Math.max(y2 - y1, 0) });

// Fill the SVG. size: of the words, in pixels of the photo. chosen: index or -1; handles: whether it can be pulled.
function drawParts(canvas, parts, { width, height, size, withWords, chosen, handles }) {
  canvas.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const labels = layoutLabels(parts, { width, height, size, withWords, chosen });
  const groups = parts.map((part, index) => svg("g", {
    class: `part${index === chosen ? " chosen" : ""}`, "data-index": index, tabindex: 0, role: "button",
    "aria-label": `${index + 1}: ${part.desc || "no words yet"}`,
  },
    svg("rect", { class: "rim", ...rectangle(part.box) }),
    svg("rect", { class: "edge", stroke: colourOf(part.desc), ...rectangle(part.box) })));
  const words = labels.map((label, index) => svg("g", { class: "label" },
    svg("rect", { x: label.x, y: label.y, width: label.width, height: label.height, rx: size * 0.2, fill: colourOf(parts[index].desc),
      "fill-opacity": chosen >= 0 && index !== chosen ? 0.55 : 0.95 }),
    svg("text", { x: label.x + size * 0.3, y: label.y + size, "font-size": size, "font-weight": 600, fill: "#101014" }, label.text)));
  canvas.replaceChildren(...groups, ...words, ...(handles && parts[chosen] ? corners(parts[chosen].box, size) : []));
}

function corners([x1, y1, x2, y2], size) {
  const side = size * 0.8;
  return [[x1, y1, 0, 1], [x2, y1, 2, 1], [x1, y2, 0, 3], [x2, y2, 2, 3]].map(([x, y, column, row]) => svg("rect", {
    class: `handle${(column === 0) === (row === 1) ? "" : " other"}`, "data-column": column, "data-row": row,
    x: x - side / 2, y: y - side / 2, width: side, height: side,
  }));
}

// The photo with its parts as a PNG blob; a small photo is enlarged, so that there is room for words.
async function annotatedPicture(image, parts, { width, height, withWords }) {
  const scale = Math.max(1, 1200 / Math.max(width, height));
  const sheet = html("canvas", { width: Math.round(width * scale), height: Math.round(height * scale) });
  const paint = sheet.getContext("2d");
  const size = Math.max(width, height) / 75;
  paint.scale(scale, scale);
  paint.drawImage(image, 0, 0, width, height);
  for (const part of parts) {
    for (const [stroke, line] of [["rgb(0 0 0 / 0.6)", size / 3], [colourOf(part.desc), size / 6]]) {
      const { x, y, width: w, height: h } = rectangle(part.box);
      Object.assign(paint, { strokeStyle: stroke, lineWidth: line });
      paint.strokeRect(x, y, w, h);
    }
  }
  layoutLabels(parts, { width, height, size, withWords }).forEach((label, index) => {
    paint.fillStyle = colourOf(parts[index].desc);
    paint.fillRect(label.x, label.y, label.width, label.height);
    Object.assign(paint, { fillStyle: "#101014", font: `600 ${size}px ${TYPEFACE()}` });
    paint.fillText(label.text, label.x + size * 0.3, label.y + size);
  });
  return new Promise((done) => { sheet.toBlob(done, "image/png"); });
}
