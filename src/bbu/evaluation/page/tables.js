// Confusions on matched boxes, and one line per description at the threshold.

const CONFUSED = 12; // descriptions in the matrix: the most confused ones

const prefixOf = (desc, level) => (level ? desc.split("/").slice(0, level).join("/") : desc);

// {truth name → {said name or null for missed → count}} at a level, 0 = full description.
function confusions(level) {
  const table = new Map();
  for (const [truth, said, count] of DATA.confusions) {
    const row = prefixOf(DATA.descriptions[truth], level);
    const column = said < 0 ? null : prefixOf(DATA.descriptions[said], level);
    if (!table.has(row)) table.set(row, new Map());
    table.get(row).set(column, (table.get(row).get(column) || 0) + count);
  }
  return table;
}

// [truth, said, count] of wrong captions, the most frequent first.
function largestConfusions(table) {
  const found = [];
  for (const [truth, row] of table) {
    for (const [said, count] of row) if (said !== null && said !== truth) found.push([truth, said, count]);
  }
  return found.sort((a, b) => b[2] - a[2] || (a[0] + a[1] < b[0] + b[1] ? -1 : 1));
}

function drawConfusions(level) {
  const table = confusions(level);
  const largest = largestConfusions(table);
  const names = new Set();
  for (const [truth, said] of largest) {
    if (new Set([...names, truth, said]).size <= CONFUSED) names.add(truth).add(said);
  }
  const sizeOf = (name) => [...(table.get(name) || new Map()).values()].reduce((sum, count) => sum + count, 0);
  const shown = [...names].sort((a, b) => sizeOf(b) - sizeOf(a) || (a < b ? -1 : 1));
  const place = byId("confusions");
  if (!largest.length) {
    place.replaceChildren(html("p", { class: "empty" }, "No wrong captions on matched boxes."));
    return;
  }
  place.replaceChildren(matrix(table, shown, sizeOf), list(largest));
}

function matrix(table, shown, sizeOf) {
  const head = html("tr", {}, html("th", { scope: "col" }, "annotated"),
    shown.map((name, i) => html("th", { scope: "col", title: name, class: "number" }, String(i + 1))),
    html("th", { scope: "col", class: "number" }, "other"), html("th", { scope: "col", class: "number" }, "missed"));
  const rows = shown.map((truth, i) => {
    const row = table.get(truth) || new Map();
    const all = sizeOf(truth);
    const missed = row.get(null) || 0;
    const counts = shown.map((said) => row.get(said) || 0);
    const other = all - missed - counts.reduce((sum, count) => sum + count, 0);
    const cell = (count, kind, said) => html("td", { class: `number ${count ? kind : "none"}`,
      style: count ? `--share:${Math.round((60 * count) / all)}%` : null,
      title: `${truth}: ${count} of ${all} ${said}` }, count ? String(count) : "·");
    return html("tr", {},
      html("th", { scope: "row", title: truth }, html("b", {}, String(i + 1)), truth),
      counts.map((count, j) => cell(count, i === j ? "right" : "mistaken", `called ${shown[j]}`)),
      cell(other, "mistaken", "called something else"), cell(missed, "mistaken", "missed"));
  });
  return html("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Confusion matrix" },
    html("table", { class: "matrix" }, html("thead", {}, head), html("tbody", {}, rows)));
}

function list(largest) {
  return html("ol", { class: "largest" }, largest.slice(0, 8).map(([truth, said, count]) =>
    html("li", {}, html("b", {}, `${count} ×`), html("span", {}, truth, html("i", {}, " called "), said))));
}

function fillConfusionChoice() {
  const levels = DATA.confusions.reduce((most, [truth]) => Math.max(most, DATA.descriptions[truth].split("/").length), 1);
  const choice = byId("confusion-level");
  for (let level = 1; level < Math.min(levels, 6); level += 1) {
    choice.append(html("option", { value: level }, level === 1 ? "first level" : `first ${level} levels`));
  }
  choice.addEventListener("change", () => drawConfusions(Number(choice.value)));
  drawConfusions(0);
}

// ---- descriptions

const COLUMNS = [
  ["description", (row) => row.desc],
  ["annotated", (row) => row.truth],
  ["found", (row) => row.found],
  ["wrong caption", (row) => row.wrong],
  ["missed", (row) => row.missed],
  ["false positives", (row) => row.fp],
  ["recall", (row) => recallOf(row)],
  ["precision", (row) => precisionOf(row)],
  ["AP50", (row) => row.ap50],
  [`recall at precision ${DATA.targetPrecision}`, (row) => row.recallAt], // at the threshold that gives this precision
];
const sorting = { column: 1, down: false }; // rare ones first: they matter most

function compareRows(a, b) {
  const [, value] = COLUMNS[sorting.column];
  const [x, y] = [value(a), value(b)];
  if (x === y) return a.desc < b.desc ? -1 : 1;
  if (x === null || y === null) return x === null ? 1 : -1; // undefined values last, in either order
  return (x < y ? -1 : 1) * (sorting.down ? -1 : 1);
}

function drawDescriptions(counted, choose) {
  const rows = counted.descriptions
    .map((total, number) => {
      const [ap50, recallAt] = DATA.scored[number] ?? [null, null]; // a description without ground truth has none
      return { ...total, desc: DATA.descriptions[number], ap50, recallAt };
    })
    .filter((row) => row.truth || row.said);
  rows.sort(compareRows);
  const sortBy = (column) => () => {
    sorting.down = sorting.column === column ? !sorting.down : column > 0;
    sorting.column = column;
    drawDescriptions(counted, choose);
    byId("descriptions").querySelectorAll("thead button")[column].focus();
  };
  const head = COLUMNS.map(([name], column) =>
    html("th", { scope: "col", class: column ? "number" : "",
      "aria-sort": column === sorting.column ? (sorting.down ? "descending" : "ascending") : null },
    html("button", { type: "button", click: sortBy(column) }, name)));
  const body = rows.map((row) => html("tr", {}, COLUMNS.map(([, value], column) => {
    if (!column) return html("th", { scope: "row" }, html("button", { type: "button", click: () => choose(row.desc) }, row.desc));
    const shown = value(row);
    return html("td", { class: "number" }, column < 6 ? String(shown) : decimals(shown));
  })));
  byId("descriptions").replaceChildren(html("thead", {}, html("tr", {}, head)), html("tbody", {}, body));
}
