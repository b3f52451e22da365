// Objects drawn over a photo: outlines and labels, on the page (SVG) and in a picture (canvas), with the same layout.

const TYPEFACE = () => getComputedStyle(document.body).fontFamily;
const colourNumbers = new Map(); // first level of a description → its colour, the same while the page is open

function colourOf(desc) {
  const kind = desc.split("/")[0];
  if (!colourNumbers.has(kind)) colourNumbers.set(kind, colourNumbers.size);
  return PALETTE[colourNumbers.get(kind) % PALETTE.length];
}

const measuring = document.createElement("canvas").getContext("2d");

function clipped(text, room) {
  if (measuring.measureText(text).width <= room) return text;
  let end = text.length;
  while (end > 1 && measuring.measureText(`${text.slice(0, end)}…`).width > room) end -= 1;
  return `${text.slice(0, end)}…`;
}

const overlaps = (a, b) => a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height;

// Place of each object's label, in pixels of the photo: above, below or inside the box, without covering other labels;
// if there is no room, only the object's number. The chosen object comes first, then by score.
function layoutLabels(objects, { width, height, size, withDescriptions, chosen = -1 }) {
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
  const order = [...objects.keys()].sort((a, b) => (b === chosen) - (a === chosen));
  for (const index of order) {
    const { desc, score, box } = objects[index];
    const line = `${index + 1} ${desc}${score === null ? "" : ` ${decimals(score, 2)}`}`;
    const long = withDescriptions || index === chosen ? place(clipped(line, width - size), box).free : null;
    const short = place(`${index + 1}`, box);
    labels[index] = long || short.free || short.any;
    taken.push(labels[index]);
  }
  return labels;
}

const rectangle = ([x1, y1, x2, y2]) => ({ x: x1, y: y1, width: Math.max(x2 - x1, 0), height: Math.max(y2 - y1, 0) });

// Fill the SVG. size: of the text, in pixels of the photo. chosen: index or -1; handles: whether to draw its corners.
function drawObjects(canvas, objects, { width, height, size, withDescriptions, chosen, handles }) {
  canvas.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const labels = layoutLabels(objects, { width, height, size, withDescriptions, chosen });
  const groups = objects.map((object, index) => svg("g", {
    class: `object${index === chosen ? " chosen" : ""}`, "data-index": index, tabindex: 0, role: "button",
    "aria-label": `${index + 1}: ${object.desc || "no description yet"}`,
  },
    stroked(svg("rect", rectangle(object.box)), "")));
  groups.forEach((group, index) => group.style.setProperty("--tone", colourOf(objects[index].desc)));
  const tags = labels.map((label, index) => svg("g", { class: "label" },
    svg("rect", { x: label.x, y: label.y, width: label.width, height: label.height, rx: size * 0.2, fill: colourOf(objects[index].desc),
      "fill-opacity": chosen >= 0 && index !== chosen ? 0.55 : 0.95 }),
    svg("text", { x: label.x + size * 0.3, y: label.y + size, "font-size": size, "font-weight": 600, fill: "#101014" }, label.text)));
  canvas.replaceChildren(...groups, ...tags, ...(handles && objects[chosen] ? corners(objects[chosen].box, size) : []));
}

function corners([x1, y1, x2, y2], size) {
  const side = size * 0.8;
  return [[x1, y1, 0, 1], [x2, y1, 2, 1], [x1, y2, 0, 3], [x2, y2, 2, 3]].map(([x, y, column, row]) => svg("rect", {
    class: `handle${(column === 0) === (row === 1) ? "" : " other"}`, "data-column": column, "data-row": row,
    x: x - side / 2, y: y - side / 2, width: side, height: side,
  }));
}

// The photo with its objects as a PNG blob; a small photo is enlarged to make room for labels.
async function annotatedPicture(image, objects, { width, height, withDescriptions }) {
  const scale = Math.max(1, 1200 / Math.max(width, height));
  const sheet = html("canvas", { width: Math.round(width * scale), height: Math.round(height * scale) });
  const paint = sheet.getContext("2d");
  const size = Math.max(width, height) / 75;
  paint.scale(scale, scale);
  paint.drawImage(image, 0, 0, width, height);
  for (const object of objects) {
    for (const [stroke, line] of [["rgb(0 0 0 / 0.6)", size / 3], [colourOf(object.desc), size / 6]]) {
      const { x, y, width: w, height: h } = rectangle(object.box);
      Object.assign(paint, { strokeStyle: stroke, lineWidth: line });
      paint.strokeRect(x, y, w, h);
    }
  }
  layoutLabels(objects, { width, height, size, withDescriptions }).forEach((label, index) => {
    paint.fillStyle = colourOf(objects[index].desc);
    paint.fillRect(label.x, label.y, label.width, label.height);
    Object.assign(paint, { fillStyle: "#101014", font: `600 ${size}px ${TYPEFACE()}` });
    paint.fillText(label.text, label.x + size * 0.3, label.y + size);
  });
  return new Promise((done) => { sheet.toBlob(done, "image/png"); });
}
