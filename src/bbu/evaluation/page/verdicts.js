// Verdicts on groups of photos: mistakes first, each with the photos that made it.

const MISTAKES = { "pass fail": ["missed", "false pass"], "fail pass": ["wrong", "false fail"] }; // verdict, truth
const mistakeOf = (row) => MISTAKES[`${row.verdict} ${row.truth}`];
const ORDER = ["false pass", "false fail", "fail", "pass"];
const rankOf = (row) => ORDER.indexOf(mistakeOf(row)?.[1] || row.verdict);

const thumbnails = new Map(); // button → what draws it, once it is near
const thumbnailWatcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) thumbnails.get(target)(isIntersecting);
}, { rootMargin: "200px" });

// A small photo with the boxes of the evidence; a click opens it.
function thumbnail([number, boxes]) {
  const photo = DATA.photos[number];
  const canvas = svg("svg", { viewBox: `0 0 ${photo.width} ${photo.height}`, "aria-hidden": "true" });
  const button = html("button", { type: "button", class: "thumbnail", title: photo.name, "aria-label": `Open ${photo.name}`,
    click: () => openFrom(button, number) }, canvas);
  thumbnails.set(button, (near) => canvas.replaceChildren(...(near
    ? [...backdrop(photo, stored("small", number)), ...boxes.flatMap((box) => stroked(rectangle(box), "fp"))] : [])));
  thumbnailWatcher.observe(button);
  return button;
}

function openFrom(button, number) {
  if (!shown.numbers.includes(number)) {
    byId("kind").value = "all";
    for (const id of ["description", "name"]) byId(id).value = "";
    arrange();
  }
  openDetail(number);
  shown.opener = button;
}

function drawVerdicts() {
  const rows = DATA.verdicts.map((row, place) => ({ ...row, place }))
    .sort((a, b) => rankOf(a) - rankOf(b) || a.place - b.place);
  const known = rows.filter((row) => row.truth);
  const count = (test) => rows.filter(test).length;
  const sums = [plural(rows.length, "group"), `${count((row) => row.verdict === "pass")} pass`];
  if (known.length) {
    sums.push(`${count((row) => mistakeOf(row)?.[1] === "false pass")} false passes of ${count((row) => row.truth === "fail")}`,
      `${count((row) => mistakeOf(row)?.[1] === "false fail")} false fails of ${count((row) => row.truth === "pass")}`);
  }
  byId("verdict-sums").textContent = sums.join(" · ");
  const columns = ["group", "verdict", ...(known.length ? ["truth"] : []), "why", "photos"];
  const body = rows.map((row) => {
    const mistake = mistakeOf(row);
    const truth = known.length ? [html("td", {}, row.truth || "–", mistake ? html("span", { class: `chip ${mistake[0]}` }, mistake[1]) : null)] : [];
    return html("tr", {}, html("th", { scope: "row" }, row.group), html("td", {}, row.verdict), truth,
      html("td", { class: "why" }, row.reason),
      html("td", {}, html("div", { class: "thumbnails" }, row.photos.map(thumbnail))));
  });
  byId("verdicts").replaceChildren(html("thead", {}, html("tr", {}, columns.map((name) => html("th", { scope: "col" }, name)))),
    html("tbody", {}, body));
}

// Photos follow this script in the file: draw again those that came into view before they were read.
document.addEventListener("DOMContentLoaded", () => {
  for (const button of thumbnails.keys()) {
    thumbnailWatcher.unobserve(button);
    thumbnailWatcher.observe(button);
  }
});
