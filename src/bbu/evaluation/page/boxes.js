// A photo with its boxes as one SVG in pixels of the photo; outlines keep their width at any zoom.

const LABELS = { found: "found", wrong: "wrong caption", missed: "missed", fp: "false positive" };
const WORST = ["missed", "wrong", "fp", "found"];

const stored = (kind, number) => byId(`${kind}-${number}`)?.textContent || null;

// Every object and false positive once, worst first: {state, truth: index or -1, said: index or -1}.
function objectsOf(photo, verdict) {
  const objects = [];
  verdict.truth.forEach(({ state, partner }, n) => objects.push({ state, truth: n, said: partner }));
  verdict.found.forEach((said, m) => {
    if (said && said.state === "fp") objects.push({ state: "fp", truth: -1, said: m });
  });
  const score = (object) => (object.said < 0 ? 0 : photo.found[object.said][SCORE]);
  return objects.sort((a, b) => WORST.indexOf(a.state) - WORST.indexOf(b.state) || score(b) - score(a));
}

function outline(photo, n) {
  const drawn = photo.outlines?.[n];
  if (!drawn) return rectangle(photo.truth[n]);
  const [kind, ...numbers] = drawn;
  return svg(kind === "line" ? "polyline" : "polygon", { points: numbers.join(" ") });
}

const rectangle = ([x1, y1, x2, y2]) => svg("rect", { x: x1, y: y1, width: x2 - x1, height: y2 - y1 });

// The annotated outline of an object (thin where a prediction covers it) and the predicted box.
function drawObject(photo, object, show) {
  const group = svg("g", { class: `object ${object.state}` });
  if (object.truth >= 0 && show.truth) {
    group.append(...stroked(outline(photo, object.truth), object.state === "missed" ? "missed" : "annotated"));
  }
  if (object.said >= 0 && show.said) group.append(...stroked(rectangle(photo.found[object.said]), object.state));
  return group;
}

// Fill an SVG with a photo and its objects, mistakes on top.
function drawPhoto(canvas, number, objects, show, kinds) {
  const photo = DATA.photos[number];
  const jpeg = kinds.map((kind) => stored(kind, number)).find((text) => text);
  canvas.replaceChildren(...backdrop(photo, jpeg), ...[...objects].reverse().map((object) => drawObject(photo, object, show)));
  return Boolean(jpeg);
}
