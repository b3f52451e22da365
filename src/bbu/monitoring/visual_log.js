// Curves over steps, and each photo at the step of its slider: annotation and prediction side by side.

const LOOKS = DATA.looks;
const STYLES = { agrees: "found", "wrong description": "wrong" }; // other states: missed, or a false positive
const STATES = { found: "agree", wrong: "wrong description", missed: "missed", fp: "false positive" };

// ---- curves

const SIDE = { width: 430, height: 270, left: 44, top: 10, bottom: 40, right: 12 };
const lastStep = Math.max(1, ...LOOKS.map((look) => look.step), ...DATA.losses.map((point) => point[0]));
const across = (step) => SIDE.left + (step / lastStep) * (SIDE.width - SIDE.left - SIDE.right);
const upward = (share) => SIDE.height - SIDE.bottom - share * (SIDE.height - SIDE.top - SIDE.bottom);

// Ticks of a linear axis of steps: about five, in steps of 1, 2 or 5 times a power of ten.
function stepTicks() {
  const rough = lastStep / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const gap = Math.max(1, [1, 2, 5, 10].map((times) => times * power).find((value) => value >= rough));
  return Array.from({ length: Math.floor(lastStep / gap) + 1 }, (_, i) => i * gap);
}

const shareScale = { place: (value) => value, ticks: [0, 0.2, 0.4, 0.6, 0.8, 1], text: (value) => value.toFixed(1) };

// Terms differ by powers of ten: a logarithmic axis around everything that is drawn.
function lossScale(values) {
  const positive = values.filter((value) => value > 0);
  const low = Math.floor(Math.log10(Math.max(Math.min(...positive), 1e-4)));
  const high = Math.max(low + 1, Math.log10(Math.max(...positive)));
  const ticks = [];
  for (let power = low; power <= high; power += 1) {
    ticks.push(...(high - low < 3 ? [1, 2, 5] : [1]).map((times) => times * 10 ** power).filter((tick) => Math.log10(tick) <= high));
  }
  return { place: (value) => Math.max(0, (Math.log10(Math.max(value, 1e-9)) - low) / (high - low)), ticks, text: (value) => String(Number(value.toPrecision(1))) };
}

// Lines over steps; each is {name, points: [[step, value], …], style: number}. A value of null is a gap.
function drawCurves(place, label, lines, scale) {
  const drawn = lines.map((line) => ({ ...line, points: line.points.filter((point) => point[1] !== null) })).filter((line) => line.points.length);
  if (!drawn.length) {
    byId(place).replaceChildren(html("p", { class: "empty" }, "Nothing to show yet."));
    return;
  }
  const at = ([step, value]) => `${across(step).toFixed(1)},${upward(scale.place(value)).toFixed(1)}`;
  const look = ({ style }) => `stroke: var(--c${style}); stroke-dasharray: ${["none", "none", "7 3", "2 3", "9 3 2 3", "4 2", "12 4", "1 3"][style]}`;
  const grid = [
    ...scale.ticks.map((tick) => [
      svg("path", { class: "grid", d: `M${across(0)},${upward(scale.place(tick))}H${across(lastStep)}` }),
      svg("text", { x: across(0) - 7, y: upward(scale.place(tick)) + 4, "text-anchor": "end" }, scale.text(tick)),
    ]),
    ...stepTicks().map((tick) => svg("text", { x: across(tick), y: upward(0) + 17, "text-anchor": "middle" }, String(tick))),
  ].flat();
  byId(place).replaceChildren(
    svg("svg", { viewBox: `0 0 ${SIDE.width} ${SIDE.height}`, role: "img", "aria-label": label }, grid,
      drawn.map((line) => svg("path", { class: "curve", style: look(line), d: `M${line.points.map(at).join("L")}` }, svg("title", {}, line.name))),
      drawn.map((line) => line.points.length < 40 && line.dots ? line.points.map(([step, value]) =>
        svg("circle", { class: "curve", cx: across(step), cy: upward(scale.place(value)), r: 3, style: `fill: var(--c${line.style})` },
          svg("title", {}, `${line.name}, step ${step}: ${decimals(value)}`))) : null),
      svg("path", { class: "marker" }),
      svg("text", { x: across(lastStep / 2), y: SIDE.height - 5, "text-anchor": "middle" }, "step")),
    html("figcaption", {}, drawn.map((line) => html("span", { class: "key" }, svg("svg", { viewBox: "0 0 28 6", "aria-hidden": "true" },
      svg("path", { class: "curve", style: look(line), d: "M0 3H28" })), line.name))),
  );
}

function drawCharts() {
  const terms = ["loss", ...DATA.terms].map((name, i) => ({ name, style: i, points: DATA.losses.map((point) => [point[0], point[i + 1] || null]) }));
  const values = terms.flatMap((line) => line.points.map((point) => point[1])).filter((value) => value);
  drawCurves("losses", "Loss terms by step", terms, values.length ? lossScale(values) : shareScale);
  const AP50 = { AP50: "AP50", AP50_agnostic: "AP50, class-agnostic" };
  const scores = Object.entries(AP50).flatMap(([key, name], i) => [
    { name: `${name}, these photos`, dots: true, style: i ? 3 : 1, points: LOOKS.map((look) => [look.step, look.metrics[key]]) },
    { name: `${name}, val`, dots: true, style: i ? 4 : 2, points: DATA.val.map((point) => [point[0], point[1 + DATA.metrics.indexOf(key)]]) },
  ]);
  drawCurves("scores", "Scores by step", scores, shareScale);
  const WORDS = { words_in_use: "share of the words that are a token's likeliest", words_entropy: "entropy of a token's choice, as a share of its largest value" };
  const words = Object.entries(WORDS).map(([key, name], i) => (
    { name, dots: true, style: i, points: DATA.val.map((point) => [point[0], point[1 + DATA.metrics.indexOf(key)]]) }));
  if (words.some((line) => line.points.some((point) => typeof point[1] === "number"))) {  // families that have any
    byId("words-card").hidden = false;
    drawCurves("words", "Visual words by step, val", words, shareScale);
  }
  const stability = LOOKS.map((look) => [look.step, look.stability]);
  drawCurves("stability", "Match stability by step", [{ name: "objects matched to the same query as at the previous look", dots: true, style: 0, points: stability }], shareScale);
}

function markStep(step) {
  document.querySelectorAll(".marker").forEach((marker) => marker.setAttribute("d", `M${across(step)},${upward(0)}V${upward(1)}`));
}

// ---- photos

const styleOf = (state, alone) => STYLES[state] || alone;

// A number at the upper left corner of an object, inside the photo, of the same size on screen for every photo.
function tag(object, number, photo) {
  const size = Math.max(photo.width, photo.height) / 38;
  const [height, width] = [size * 1.25, size * (0.7 + 0.6 * String(number).length)];
  const xs = object.points.filter((_, i) => i % 2 === 0);
  const ys = object.points.filter((_, i) => i % 2 === 1);
  const x = Math.min(Math.max(object.closed ? Math.min(...xs) : xs[0], 0), photo.width - width);
  const y = Math.min(Math.max((object.closed ? Math.min(...ys) : ys[0]) - height, 0), photo.height - height);
  return svg("g", { class: `tag ${object.style}`, style: `font-size: ${size}px` },
    svg("rect", { x, y, width, height, rx: size / 5 }),
    svg("text", { x: x + width / 2, y: y + size * 0.98, "text-anchor": "middle" }, String(number)));
}

function drawSide(side, photo, objects, title, extra) {
  const outlines = objects.map((object) => svg("g", { class: `object ${object.style}` },
    stroked(svg(object.closed ? "polygon" : "polyline", { points: object.points.join(" ") }), object.style)));
  const tags = objects.map((object, i) => tag(object, i + 1, photo)); // above all outlines, so every number can be read
  side.view.replaceChildren(...backdrop(photo, photo.jpeg), ...[...outlines].reverse(), ...[...tags].reverse());
  side.title.replaceChildren(`${title}: ${plural(objects.length, "object")}`, html("span", { class: "faint" }, extra));
  const pick = (i) => () => {
    side.view.classList.toggle("picking", i >= 0);
    for (const layer of [outlines, tags]) layer.forEach((group, n) => group.classList.toggle("picked", n === i));
  };
  side.list.replaceChildren(...objects.map((object, i) => html("li", { class: `${object.style} ${object.state === "alone" ? "alone" : ""}`, tabindex: "0",
    mouseenter: pick(i), mouseleave: pick(-1), focus: pick(i), blur: pick(-1) },
    html("b", { class: `tag ${object.style}` }, String(i + 1)), html("span", {}, object.desc), html("i", {}, object.note))));
}

const tally = (objects, styles) => styles.map((style) => {
  const count = objects.filter((object) => object.style === style).length;
  return ["wrong", "fp"].includes(style) ? plural(count, STATES[style]) : `${count} ${STATES[style]}`;
}).join(", ");

function makePhoto(photo, number) {
  const side = () => ({ title: html("h3", {}), view: svg("svg", { class: "view", viewBox: `0 0 ${photo.width} ${photo.height}`, role: "img" }), list: html("ol", {}) });
  const sides = [side(), side()];
  const step = html("span", {});
  const slider = html("input", { type: "range", min: 0, max: LOOKS.length - 1, step: 1, "aria-label": `Step of ${photo.name}` });
  const problem = html("p", { class: "warn" });
  slider.addEventListener("input", () => show(Number(slider.value)));
  const card = html("section", { class: "card photo", id: `photo-${number}` },
    html("header", {}, html("h2", {}, photo.name), html("label", { class: "slide" }, step, slider)), problem,
    html("div", { class: "sides" }, sides.map(({ title, view, list }) => html("div", {}, title, view, list))));

  function show(index) {
    const look = LOOKS[index].photos[number];
    slider.value = String(index);
    slider.setAttribute("aria-valuetext", `step ${LOOKS[index].step}`);
    step.textContent = `step ${LOOKS[index].step}`;
    problem.textContent = look.error || "";
    const truth = look.truth.map(([state, note], i) => {
      const [desc, closed, ...points] = photo.objects[i];
      return { desc, closed, points, state, note, style: styleOf(state, "missed") };
    });
    const found = look.found.map(([x1, y1, x2, y2, desc, state, note]) =>
      ({ desc, closed: true, points: [x1, y1, x2, y1, x2, y2, x1, y2], state, note, style: styleOf(state, "fp") }));
    drawSide(sides[0], photo, truth, "truth", `${tally(truth, ["found", "wrong", "missed"])}`);
    drawSide(sides[1], photo, found, "prediction", `${tally(found, ["found", "wrong", "fp"])}${look.hidden ? ` · ${look.hidden} with lower scores hidden` : ""}`);
  }
  return { card, show };
}

// ---- the page

function showFigures(look) {
  const figures = [["AP50", decimals(look.metrics.AP50)], ["AP50, class-agnostic", decimals(look.metrics.AP50_agnostic)],
    ["caption accuracy", decimals(look.metrics.description_accuracy)], ["match stability", decimals(look.stability)], ["seconds per look", decimals(look.seconds, 1)]];
  byId("figures").replaceChildren(...figures.map(([name, value]) => html("div", {}, html("dt", {}, name), html("dd", {}, value))));
}

// An open page does not change with its file: reload it, and keep the choice in the address, which survives.
function follow() {
  const box = byId("follow");
  let timer = 0;
  const set = () => {
    clearTimeout(timer);
    history.replaceState(null, "", box.checked ? "#follow" : "#");
    if (box.checked) timer = setTimeout(() => location.reload(), 30000);
  };
  box.checked = location.hash === "#follow";
  box.addEventListener("change", set);
  if (box.checked) set();
}

function start() {
  startTheme();
  follow();
  drawCharts();
  byId("keys").append(...Object.entries(STATES).map(([style, name]) => html("span", { class: `key ${style}` },
    svg("svg", { viewBox: "0 0 28 6", "aria-hidden": "true" }, svg("path", { class: `edge ${style}`, d: "M0 3H28" })), name)));
  byId("failed").textContent = `${plural(DATA.failed, "update")} of this page failed; the first one's reason is in the run's output`;
  byId("failed").hidden = !DATA.failed;
  byId("progress").textContent = `step ${LOOKS.length ? LOOKS.at(-1).step : 0} of ${DATA.facts.max_steps}, one look every ${plural(DATA.facts.every, "step")}`;
  if (!LOOKS.length) return;
  const photos = DATA.photos.map(makePhoto);
  byId("photos").append(...photos.map(({ card }) => card));
  const all = byId("all");
  all.max = String(LOOKS.length - 1);
  const showAll = () => {
    const look = LOOKS[Number(all.value)];
    byId("all-step").textContent = String(look.step);
    all.setAttribute("aria-valuetext", `step ${look.step}`);
    photos.forEach(({ show }) => show(Number(all.value)));
    showFigures(look);
    markStep(look.step);
  };
  all.addEventListener("input", showAll);
  document.fonts.ready.then(showAll); // redraw what was drawn before the typeface was loaded
  all.value = all.max;
  showAll();
}

start();
document.documentElement.dataset.ready = "yes";
