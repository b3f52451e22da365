// Three charts on the unit square, as SVG. Lines differ in dash as well as in colour.

const SIDE = { width: 520, height: 330, left: 50, top: 22, bottom: 44, right: 14 };
const across = (value) => SIDE.left + value * (SIDE.width - SIDE.left - SIDE.right);
const upward = (value) => SIDE.height - SIDE.bottom - value * (SIDE.height - SIDE.top - SIDE.bottom);
const at = (x, y) => `${across(x).toFixed(1)},${upward(y).toFixed(1)}`;
const path = (points) => points.map(([x, y], i) => (i ? "L" : "M") + at(x, y)).join("");

// Axes from 0 to 1; marks are drawn between grid and labels.
function chart(label, xName, yName, ...marks) {
  const grid = [];
  for (const tick of [0, 0.2, 0.4, 0.6, 0.8, 1]) {
    grid.push(
      svg("path", { class: "grid", d: `M${at(tick, 0)}L${at(tick, 1)}M${at(0, tick)}L${at(1, tick)}` }),
      svg("text", { x: across(tick), y: upward(0) + 17, "text-anchor": "middle" }, tick.toFixed(1)),
      svg("text", { x: across(0) - 8, y: upward(tick) + 4, "text-anchor": "end" }, tick.toFixed(1)),
    );
  }
  const middle = upward(0.5);
  return svg(
    "svg",
    { viewBox: `0 0 ${SIDE.width} ${SIDE.height}`, role: "img", "aria-label": label },
    grid,
    marks,
    svg("text", { class: "axis", x: across(0.5), y: SIDE.height - 6, "text-anchor": "middle" }, xName),
    svg("text", { class: "axis", x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` }, yName),
  );
}

const key = (line, text) =>
  html("span", { class: "key" }, svg("svg", { viewBox: "0 0 30 6", "aria-hidden": "true" },
    svg("path", { class: `line ${line}`, d: "M0 3H30" })), text);

const emptyChart = (text) => html("p", { class: "empty" }, text);

// ---- precision and recall of a ranking

function drawCurve(number) {
  const place = byId("curve");
  const [reference, chosen] = [DATA.curves[0], DATA.curves[number]];
  if (!reference.points) {
    place.replaceChildren(emptyChart("No annotated objects: there is nothing to find."));
    return;
  }
  const mean = (points) => points.reduce((sum, value) => sum + value, 0) / points.length;
  const said = (curve) => `${curve.name}, AP50 ${decimals(mean(curve.points))}`;
  const line = (curve, style) =>
    svg("path", { class: `line ${style}`, d: path(curve.points.map((value, i) => [i / (curve.points.length - 1), value])) });
  const both = number ? [line(reference, "second"), line(chosen, "first")] : [line(reference, "first")];
  place.replaceChildren(
    chart(`Precision by recall: ${said(chosen)}`, "recall", "precision", both),
    html("figcaption", {}, key("first", said(chosen)), number ? key("second", said(reference)) : null),
  );
}

function fillCurveChoice() {
  const choice = byId("curve-choice");
  const groups = new Map();
  DATA.curves.forEach((curve, number) => {
    if (curve.group && !groups.has(curve.group)) {
      groups.set(curve.group, html("optgroup", { label: curve.group }));
      choice.append(groups.get(curve.group));
    }
    (groups.get(curve.group) || choice).append(html("option", { value: number }, curve.name));
  });
  // the macro average over full descriptions is AP50
  const mean = DATA.curves.map((curve) => curve.name).lastIndexOf("full description, macro average");
  choice.value = String(Math.max(mean, 0));
  choice.addEventListener("change", () => drawCurve(Number(choice.value)));
  drawCurve(Number(choice.value));
}

function chooseCurve(name) {
  const number = DATA.curves.map((curve) => curve.name).lastIndexOf(name);
  if (number < 0) return;
  byId("curve-choice").value = String(number);
  drawCurve(number);
}

// ---- precision and recall at every threshold

let byThreshold = null;

function measureThresholds() {
  const truth = DATA.photos.reduce((sum, photo) => sum + photo.truth.length, 0);
  const ranked = rankedPredictions();
  const precision = [];
  const recall = [];
  let [said, found] = [0, 0];
  for (let step = 100; step >= 0; step -= 1) {
    for (; said < ranked.length && ranked[said][0] >= step / 100; said += 1) found += ranked[said][1] ? 1 : 0;
    if (said) precision.push([step / 100, found / said]);
    if (truth) recall.push([step / 100, found / truth]);
  }
  byThreshold = { ranked, precision, recall };
}

function drawThresholds(threshold) {
  const place = byId("thresholds");
  if (!byThreshold.ranked.length) {
    place.replaceChildren(emptyChart("No predictions: there is no threshold to choose."));
    return;
  }
  place.replaceChildren(
    chart("Precision and recall by threshold", "confidence threshold", "share",
      svg("path", { class: "line first", d: path(byThreshold.precision) }),
      svg("path", { class: "line second", d: path(byThreshold.recall) }),
      svg("path", { class: "marker", d: `M${at(threshold, 0)}L${at(threshold, 1)}` })),
    html("figcaption", {}, key("first", "precision"), key("second", "recall"), key("marker", "threshold")),
  );
}

// ---- reliability: precision against confidence

// Bins of equal width and their expected calibration error, as the scorer computed them.
function drawReliability(name) {
  const place = byId("reliability");
  const { equal_width: bins, ECE: ece } = DATA.calibration[name];
  byId("ece").textContent = decimals(ece);
  if (ece === null) {
    place.replaceChildren(emptyChart("No predictions: no score can be judged."));
    return;
  }
  const bars = bins.map(({ count, confidence, accuracy, low, high }) => {
    if (!count) return null;
    const summary = `${plural(count, "prediction")}, mean ${name} ${decimals(confidence)}, precision ${decimals(accuracy)}`;
    return svg("g", {},
      svg("title", {}, summary),
      svg("rect", { class: "bar", x: across(low) + 2, width: across(high) - across(low) - 4,
        y: upward(accuracy), height: upward(0) - upward(accuracy) }),
      svg("path", { class: "expected", d: `M${at(low, confidence)}L${at(high, confidence)}` }),
      svg("text", { class: "count", x: across((low + high) / 2), y: upward(Math.max(accuracy, confidence)) - 5,
        "text-anchor": "middle" }, count));
  });
  place.replaceChildren(
    chart(`Reliability of the ${name}, expected calibration error ${decimals(ece)}`, name, "precision",
      svg("path", { class: "diagonal", d: `M${at(0, 0)}L${at(1, 1)}` }), bars),
    html("figcaption", {}, key("bar-key", "precision per bin"), key("expected", `mean ${name}`),
      html("span", { class: "key" }, "numbers: predictions in the bin")),
  );
}

function fillReliabilityChoice() {
  const choice = byId("reliability-choice");
  const meanings = { score: "score: box and description", objectness: "objectness: box, class-agnostic" };
  for (const name of Object.keys(DATA.calibration)) choice.append(html("option", { value: name }, meanings[name] ?? name));
  choice.addEventListener("change", () => drawReliability(choice.value));
  drawReliability(choice.value);
}
