// A photo with its boxes, as one SVG in pixels of the photo: outlines keep their width at any zoom.

const LABELS = { found: "found", wrong: "wrong words", missed: "missed", alarm: "false alarm" };
const WORST = ["missed", "wrong", "alarm", "found"];

const stored = (kind, number) => byId(`${kind}-${number}`)?.textContent || null;

// Every part once, worst first: {state, truth: index or -1, said: index or -1}.
function partsOf(photo, verdict) {
  const parts = [];
  verdict.truth.forEach(({ state, partner }, n) => parts.push({ state, truth: n, said: partner }));
  verdict.found.forEach((said, m) => {
    if (said && said.state === "alarm") parts.push({ state: "alarm", truth: -1, said: m });
  });
  const score = (part) => (part.said < 0 ? 0 : photo.found[part.said][SCORE]);
  return parts.sort((a, b) => WORST.indexOf(a.state) - WORST.indexOf(b.state) || score(b) - score(a));
}

function outline(photo, n) {
  const drawn = photo.outlines?.[n];
  if (!drawn) return rectangle(photo.truth[n]);
  const [kind, ...numbers] = drawn;
  return svg(kind === "line" ? "polyline" : "polygon", { points: numbers.join(" ") });
}

const rectangle = ([x1, y1, x2, y2]) => svg("rect", { x: x1, y: y1, width: x2 - x1, height: y2 - y1 });

// A dark rim under the line, so that it shows on any photo.
function stroked(shape, style) {
  const rim = shape.cloneNode();
  rim.setAttribute("class", `rim ${style}`);
  shape.setAttribute("class", `edge ${style}`);
  return [rim, shape];
}

// The lines of one part: the annotated outline (thin where a prediction lies over it) and the predicted box.
function drawPart(photo, part, show) {
  const group = svg("g", { class: `part ${part.state}` });
  if (part.truth >= 0 && show.truth) {
    group.append(...stroked(outline(photo, part.truth), part.state === "missed" ? "missed" : "annotated"));
  }
  if (part.said >= 0 && show.said) group.append(...stroked(rectangle(photo.found[part.said]), part.state));
  return group;
}

// Fill an SVG with a photo and its parts; the good ones lie under the bad ones.
function drawPhoto(canvas, number, parts, show, kinds) {
  const photo = DATA.photos[number];
  const jpeg = kinds.map((kind) => stored(kind, number)).find((text) => text);
  const field = { x: 0, y: 0, width: photo.width, height: photo.height };
  canvas.replaceChildren(
    svg("rect", { class: "no-photo", ...field }),
    ...(jpeg ? [svg("image", { ...field, preserveAspectRatio: "none", href: `data:image/jpeg;base64,${jpeg}` })] : []),
    ...[...parts].reverse().map((part) => drawPart(photo, part, show)),
  );
  return Boolean(jpeg);
}
