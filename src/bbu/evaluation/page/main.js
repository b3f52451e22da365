// Counts and charts are drawn at the start, photos when they come into view.

const state = { threshold: DATA.threshold, counted: null, show: { truth: true, said: true } };

function showCounts() {
  const { total } = state.counted;
  const values = { found: total.found, wrong: total.wrong, missed: total.missed, fp: total.fp,
    precision: decimals(precisionOf(total)), recall: decimals(recallOf(total)) };
  for (const [name, value] of Object.entries(values)) byId(`count-${name}`).textContent = String(value);
  byId("threshold-value").textContent = String(Number(state.threshold.toFixed(4)));
}

// Recount and redraw what is in view; photos are reordered when the slider is released.
function setThreshold(threshold) {
  state.threshold = threshold;
  state.counted = recount(threshold);
  showCounts();
  drawThresholds(threshold);
  drawDescriptions(state.counted, chooseDescription);
  redrawCards();
  if (byId("detail").open) drawDetail();
}

function chooseDescription(desc) {
  byId("description").value = desc;
  chooseCurve(desc);
  arrange();
  byId("photos").scrollIntoView();
}

// Every path and every prefix of one, with its number of annotated objects.
function fillDescriptionChoice() {
  const counts = new Map();
  for (const photo of DATA.photos) for (const object of photo.truth) counts.set(object[DESC], (counts.get(object[DESC]) || 0) + 1);
  const paths = new Map();
  DATA.descriptions.forEach((desc, index) => {
    const levels = desc.split("/");
    for (let level = 1; level <= levels.length; level += 1) {
      const beginning = levels.slice(0, level).join("/");
      paths.set(beginning, (paths.get(beginning) || 0) + (counts.get(index) || 0));
    }
  });
  const byName = [...paths].sort((a, b) => (a[0] < b[0] ? -1 : 1));
  byId("description").append(...byName.map(([beginning, count]) => html("option", { value: beginning }, `${beginning} (${count})`)));
}

function start() {
  DATA.photos.forEach(prepare);
  measureThresholds();
  state.counted = recount(state.threshold);
  cards = DATA.photos.map(makeCard);
  fillDescriptionChoice();
  fillCurveChoice();
  fillConfusionChoice();
  fillReliabilityChoice();
  setThreshold(state.threshold);
  arrange();
  if (DATA.verdicts) drawVerdicts();

  const slider = byId("threshold");
  slider.value = String(state.threshold);
  slider.addEventListener("input", () => setThreshold(Number(slider.value)));
  slider.addEventListener("change", arrange);
  for (const id of ["kind", "order", "description"]) byId(id).addEventListener("change", arrange);
  byId("name").addEventListener("input", arrange);
  for (const name of ["truth", "said"]) {
    for (const box of document.querySelectorAll(`input[data-show=${name}]`)) {
      box.addEventListener("change", () => {
        state.show[name] = box.checked;
        document.querySelectorAll(`input[data-show=${name}]`).forEach((other) => { other.checked = box.checked; });
        redrawCards();
        if (byId("detail").open) drawDetail();
      });
    }
  }
  startTheme();
  document.addEventListener("keydown", onKey);
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("close").addEventListener("click", () => byId("detail").close());
  // the browser would focus the photo that was opened first, not the last one viewed
  byId("detail").addEventListener("close", () => {
    (shown.opener ?? cards[shown.opened].button).focus();
    shown.opener = null;
  });
  window.addEventListener("resize", () => byId("detail").open && placeTags());
  // photos follow this script in the file: redraw what was in view before they were parsed
  document.addEventListener("DOMContentLoaded", redrawCards);

  let theme = "";
  window.addEventListener("beforeprint", () => {
    theme = document.documentElement.dataset.theme;
    setTheme("light");
    shown.numbers.slice(0, PRINTED).forEach((number) => drawCard(cards[number]));
  });
  window.addEventListener("afterprint", () => setTheme(theme));
}

const PRINTED = 24; // photos; the style sheet hides the others on paper
start();
document.documentElement.dataset.ready = String(Math.round(performance.now())); // milliseconds since it was opened
