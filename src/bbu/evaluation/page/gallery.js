// Cards of photos, drawn only while they are near the window, and one photo in detail.

const shown = { numbers: [], current: -1, opened: -1, objects: [], zoom: null, opener: null }; // numbers: photos that pass the filters
const DRAWN_AHEAD = "500px"; // beyond the window

// ---- which photos, in which order

function passes(number, filter) {
  const photo = DATA.photos[number];
  const { total, verdict } = state.counted.photos[number];
  if (filter.name && !photo.name.toLowerCase().includes(filter.name)) return false;
  if (filter.kind === "clean" && (total.fp || total.found < total.truth)) return false;
  if (filter.kind === "fp" && total.fp <= total.wrong) return false;
  if (["missed", "wrong"].includes(filter.kind) && !total[filter.kind]) return false;
  if (filter.kind === "failed" && !photo.error) return false;
  if (!filter.desc) return true;
  const fits = (index) => (DATA.descriptions[index] + "/").startsWith(filter.desc + "/");
  return photo.truth.some((object) => fits(object[DESC])) || verdict.found.some((said, m) => said && fits(photo.found[m][DESC]));
}

// The photo's objects that were not found, as [description, count], the rarest description first.
function notFound(number) {
  const { verdict } = state.counted.photos[number];
  const counts = new Map();
  verdict.truth.forEach(({ state: word }, n) => {
    const desc = DATA.photos[number].truth[n][DESC];
    if (word !== "found") counts.set(desc, (counts.get(desc) || 0) + 1);
  });
  const rarity = (desc) => state.counted.descriptions[desc].truth;
  return [...counts].sort((a, b) => rarity(a[0]) - rarity(b[0]) || a[0] - b[0]);
}

// Sort keys, smaller first; ties stay in order of name.
const ORDERS = {
  rare: (number) => {
    const lost = notFound(number);
    const { total } = state.counted.photos[number];
    return [lost.length ? state.counted.descriptions[lost[0][0]].truth : Infinity, total.found - total.truth];
  },
  fp: (number) => [-state.counted.photos[number].total.fp],
  name: () => [],
};

function arrange() {
  const filter = { kind: byId("kind").value, desc: byId("description").value, name: byId("name").value.trim().toLowerCase() };
  const keyOf = ORDERS[byId("order").value];
  shown.numbers = DATA.photos.map((_, number) => number).filter((number) => passes(number, filter))
    .map((number) => [keyOf(number), number])
    .sort(([a], [b]) => a.map((value, i) => (value === b[i] ? 0 : value - b[i])).find((gap) => gap) || 0)
    .map(([, number]) => number);
  if (!shown.numbers.includes(shown.current)) shown.current = -1;
  byId("gallery").replaceChildren(...shown.numbers.map((number) => cards[number].button));
  byId("shown").textContent = `${shown.numbers.length} of ${plural(DATA.photos.length, "photo")}`;
  byId("no-photos").hidden = shown.numbers.length > 0;
  byId("no-photos").textContent = DATA.photos.length ? "No photo passes these filters." : "There are no photos.";
}

// ---- cards

let cards = [];
const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const card = cards[Number(target.dataset.number)];
    card.near = isIntersecting;
    if (isIntersecting) drawCard(card);
    else card.canvas.replaceChildren(); // so memory does not grow while scrolling
  }
}, { rootMargin: DRAWN_AHEAD });

function makeCard(photo, number) {
  const canvas = svg("svg", { viewBox: `0 0 ${photo.width} ${photo.height}`, "aria-hidden": "true" });
  const caption = html("span", { class: "caption" });
  const button = html("button", { type: "button", class: "card photo", "data-number": number, click: () => openDetail(number),
    focus: () => { shown.current = number; } }, html("span", { class: "field" }, canvas), caption);
  watcher.observe(button);
  return { number, canvas, caption, button, near: false };
}

const chip = (word, count, label) => count ? html("span", { class: `chip ${word}` }, `${count} ${label || LABELS[word]}`) : null;

function drawCard(card) {
  const photo = DATA.photos[card.number];
  const { total, verdict } = state.counted.photos[card.number];
  drawPhoto(card.canvas, card.number, objectsOf(photo, verdict), state.show, ["small", "large"]);
  const lost = notFound(card.number)[0];
  const fp = total.fp - total.wrong;
  card.caption.replaceChildren(
    html("b", { title: photo.name }, photo.name),
    html("span", { class: "chips" }, chip("missed", total.missed), chip("wrong", total.wrong),
      chip("fp", fp, fp > 1 ? "false positives" : "false positive"), chip("found", total.found)),
    lost ? html("span", { class: "lost", title: DATA.descriptions[lost[0]] }, `not found: ${DATA.descriptions[lost[0]]}`) : "",
    photo.error ? html("span", { class: "lost" }, `not predicted: ${photo.error}`) : "",
    photo.problem ? html("span", { class: "lost" }, `photo not shown: ${photo.problem}`) : "",
  );
}

function redrawCards() {
  for (const card of cards) if (card.near) drawCard(card);
}

// ---- left and right, photo by photo

function step(by) {
  if (!shown.numbers.length) return;
  const place = shown.numbers.indexOf(byId("detail").open ? shown.opened : shown.current);
  const next = place < 0 ? (by > 0 ? 0 : shown.numbers.length - 1) : place + by;
  if (next < 0 || next >= shown.numbers.length) return;
  if (byId("detail").open) openDetail(shown.numbers[next]);
  else cards[shown.numbers[next]].button.focus();
}

function onKey(event) {
  if (event.altKey || event.ctrlKey || event.metaKey || event.target.matches("input, select")) return;
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!by) return;
  event.preventDefault();
  step(by);
}

// ---- one photo

function openDetail(number) {
  shown.current = shown.opened = number;
  shown.zoom = null;
  drawDetail();
  const detail = byId("detail");
  if (!detail.open) detail.showModal();
  placeTags();
}

function drawDetail() {
  const number = shown.opened;
  const photo = DATA.photos[number];
  const { total, verdict } = state.counted.photos[number];
  const objects = objectsOf(photo, verdict);
  const canvas = byId("canvas");
  const hasPhoto = drawPhoto(canvas, number, objects, state.show, ["large", "small"]);
  canvas.append(svg("g", { id: "tags" }));
  byId("detail-name").textContent = photo.name;
  const small = hasPhoto && !stored("large", number) && Math.max(photo.width, photo.height) > DATA.smallSide ? ", shown small" : "";
  const place = shown.numbers.indexOf(number);
  byId("detail-place").textContent = `${place + 1} of ${shown.numbers.length}, ${photo.width} × ${photo.height} pixels${small}`;
  byId("previous").disabled = place <= 0;
  byId("next").disabled = place >= shown.numbers.length - 1;
  const problem = photo.error ? `Not predicted: ${photo.error}` : photo.problem ? `Photo not shown: ${photo.problem}` : "";
  byId("detail-problem").textContent = problem;
  byId("detail-sums").textContent = `precision ${decimals(precisionOf(total))}, recall ${decimals(recallOf(total))}`;
  byId("objects").replaceChildren(...objects.map((object, i) => objectLine(photo, object, i)));
  byId("no-objects").hidden = objects.length > 0;
  shown.objects = objects;
  lookAt(shown.zoom);
}

function objectLine(photo, object, i) {
  const described = (index, list) => DATA.descriptions[list[index][DESC]];
  const truth = object.truth < 0 ? null : described(object.truth, photo.truth);
  const said = object.said < 0 ? null : described(object.said, photo.found);
  const text = object.state === "wrong"
    ? [html("span", {}, truth), html("span", { class: "called" }, html("i", {}, "called "), said)]
    : [html("span", {}, truth ?? said)];
  return html("li", {}, html("button", { type: "button", class: object.state, "aria-pressed": "false",
    click: () => lookAt(shown.zoom === i ? null : i) },
  html("b", { class: "tag" }, String(i + 1)), html("span", { class: "description" }, text,
    html("span", { class: "note" }, svg("svg", { viewBox: "0 0 30 6", "aria-hidden": "true" },
      svg("path", { class: `edge ${object.state}`, d: "M1 3H29" })), LABELS[object.state])),
  html("span", { class: "score" }, object.said < 0 ? "" : decimals(photo.found[object.said][SCORE], 2))));
}

// Zoom to an object, or show the whole photo.
function lookAt(i) {
  shown.zoom = i;
  const canvas = byId("canvas");
  const photo = DATA.photos[shown.opened];
  let field = [0, 0, photo.width, photo.height];
  if (i !== null) {
    const object = shown.objects[i];
    const box = object.truth >= 0 ? photo.truth[object.truth] : photo.found[object.said];
    const height = Math.max(box[2] - box[0], box[3] - box[1], 24) * 2.5;
    const width = (height * canvas.clientWidth) / canvas.clientHeight;
    field = [(box[0] + box[2] - width) / 2, (box[1] + box[3] - height) / 2, width, height];
  }
  canvas.setAttribute("viewBox", field.join(" "));
  byId("objects").querySelectorAll("button").forEach((line, j) => line.setAttribute("aria-pressed", String(i === j)));
  placeTags();
}

// Numbers beside the boxes, apart from one another where there is room; sized in screen pixels.
function placeTags() {
  const canvas = byId("canvas");
  const view = canvas.viewBox.baseVal;
  const scale = Math.max(view.width / canvas.clientWidth, view.height / canvas.clientHeight);
  if (!canvas.clientWidth || !Number.isFinite(scale)) return; // not on the screen yet
  const photo = DATA.photos[shown.opened];
  const taken = [];
  byId("tags")?.replaceChildren(...shown.objects.flatMap((object, i) => {
    if (!(object.said >= 0 ? state.show.said : state.show.truth)) return [];
    const box = object.said >= 0 ? photo.found[object.said] : photo.truth[object.truth];
    const outside = box[2] < view.x || box[0] > view.x + view.width || box[3] < view.y || box[1] > view.y + view.height;
    if (outside) return [];
    const [width, height] = [(String(i + 1).length * 8 + 8) * scale, 17 * scale];
    const spots = [[box[0], box[1] - height], [box[2] - width, box[1] - height], [box[0], box[3]],
      [box[2] - width, box[3]], [box[0], box[1]], [box[2], box[1]], [box[0] - width, box[1]]]
      .map(([x, y]) => [Math.min(Math.max(x, view.x), view.x + view.width - width),
        Math.min(Math.max(y, view.y), view.y + view.height - height)]);
    const clear = ([x, y]) => taken.every(([a, b, w]) => x + width <= a || a + w <= x || y + height <= b || b + height <= y);
    const [x, y] = spots.find(clear) || spots[0];
    taken.push([x, y, width]);
    return [svg("g", { class: `tag ${object.state}` },
      svg("rect", { x, y, width, height, rx: 3 * scale }),
      svg("text", { x: x + width / 2, y: y + height * 0.76, "text-anchor": "middle", style: `font-size: ${12.5 * scale}px` }, String(i + 1)))];
  }));
}
