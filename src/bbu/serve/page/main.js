// The page: one photo, its answer, and the actions on it.

const state = {
  file: null, // the photo to predict
  row: null, // the server's answer, all scores
  objects: [], // shown, as {desc, box, score}; while correcting, the user's own
  chosen: -1,
  correcting: false,
  examples: [],
  question: 0, // number of the newest; answers to older ones are ignored
  url: "",
};
const [canvas, frame, shown, threshold] = ["canvas", "frame", "shown", "threshold"].map(byId);

// ---------------------------------------------------------------- talking to the server

async function readFacts() {
  try {
    const facts = await (await fetch("/health")).json();
    byId("facts").textContent = `${facts.model} on ${facts.device}${facts.queue ? `, ${plural(facts.queue, "request")} waiting` : ""}`;
  } catch {
    byId("facts").textContent = "the server does not answer";
  }
}

async function ask(file) {
  const question = ++state.question;
  if (file !== state.file) showPhoto(file);
  say(`Looking at ${file.name} …`);
  byId("again").disabled = true;
  try {
    const response = await fetch("/predict", { method: "POST", body: formOf(file) });
    const answer = await response.json().catch(() => ({ error: `the server answered with status ${response.status}` }));
    if (question !== state.question) return;
    if (!response.ok) fail(answer.error);
    else showAnswer(answer, /dur=(\d+)/.exec(response.headers.get("Server-Timing"))?.[1]);
  } catch {
    if (question === state.question) fail("The server does not answer. Is it still running?");
  }
  byId("again").disabled = state.file === null;
  readFacts();
}

function formOf(file) {
  const form = new FormData();
  form.append("photo", file, file.name);
  if (state.examples.length) form.append("teachers", JSON.stringify(state.examples.map((example) => example.row)));
  for (const example of state.examples) form.append("teacher_photo", example.file, example.row.images[0]);
  return form;
}

function say(text) {
  byId("problem").hidden = true;
  byId("status").textContent = text;
}

function fail(text) {
  byId("status").textContent = "";
  byId("problem").textContent = text;
  byId("problem").hidden = false;
}

// ---------------------------------------------------------------- showing

function showPhoto(file) {
  URL.revokeObjectURL(state.url);
  Object.assign(state, { file, row: null, objects: [], chosen: -1, correcting: false, url: URL.createObjectURL(file) });
  frame.classList.remove("unseen");
  shown.src = state.url;
  byId("drop").hidden = true;
  frame.hidden = false;
  render();
}

function showAnswer(row, milliseconds) {
  Object.assign(state, { row, chosen: -1, correcting: false });
  if (frame.classList.contains("unseen")) shown.style.aspectRatio = `${row.width} / ${row.height}`;
  const given = state.examples.length ? `, shown ${plural(state.examples.length, "example")}` : "";
  say(`${row.images[0]}: ${row.width} × ${row.height} pixels, ${decimals((milliseconds || 0) / 1000, 2)} seconds${given}`);
  render();
}

const visible = () => state.row.predictions.filter((object) => object.score >= Number(threshold.value));

function render() {
  if (state.row && !state.correcting) state.objects = visible().map((object) => ({ desc: object.desc, box: object.bbox_2d, score: object.score }));
  state.chosen = Math.min(state.chosen, state.objects.length - 1);
  byId("level").textContent = decimals(Number(threshold.value), 2);
  byId("count").textContent = !state.row ? (state.file ? "…" : "no photo yet") : plural(state.objects.length, "object");
  threshold.disabled = state.correcting;
  byId("reading").hidden = state.correcting;
  byId("correcting").hidden = byId("help").hidden = !state.correcting;
  for (const id of ["correct", "teach", "copy", "save"]) byId(id).disabled = !state.row;
  byId("copy").disabled ||= state.correcting;
  byId("save").disabled ||= frame.classList.contains("unseen");
  renderList();
  renderPhoto();
}

function renderPhoto() {
  canvas.classList.toggle("editing", state.correcting);
  if (!state.row) return canvas.replaceChildren();
  const { width, height } = state.row;
  const focused = document.activeElement?.closest?.("#canvas .object")?.dataset.index;
  const size = (13 * width) / (canvas.clientWidth || width); // 13 pixels of the screen
  drawObjects(canvas, state.objects, { width, height, size, withDescriptions: byId("descriptions").checked, chosen: state.chosen, handles: state.correcting });
  if (focused !== undefined) canvas.querySelector(`[data-index="${focused}"]`)?.focus();
}

function renderList() {
  const descriptions = new Set([...(state.row?.predictions || []).map((object) => object.desc),
    ...state.examples.flatMap((example) => (example.row.objects || []).map((item) => item.desc))]);
  byId("known").replaceChildren(...[...descriptions].map((desc) => html("option", { value: desc })));
  byId("objects").replaceChildren(...state.objects.map((object, index) => html("li", { class: index === state.chosen ? "chosen" : "" },
    state.correcting ? editableRow(object, index) : readableRow(object, index))));
}

function tag(object, index) {
  const node = html("b", { class: "tag" }, String(index + 1));
  node.style.setProperty("--tone", colourOf(object.desc));
  return node;
}

function readableRow(object, index) {
  return html("button", { class: "row", "aria-pressed": String(index === state.chosen), click: () => choose(index === state.chosen ? -1 : index) },
    tag(object, index), html("span", {}, object.desc || "(no description)"), html("span", { class: "score" }, decimals(object.score, 2)));
}

function editableRow(object, index) {
  const number = tag(object, index);
  const description = html("input", { value: object.desc, list: "known", placeholder: "type/state/remark", "aria-label": `description of object ${index + 1}` });
  description.addEventListener("input", () => {
    object.desc = description.value;
    number.style.setProperty("--tone", colourOf(object.desc));
    renderPhoto();
  });
  description.addEventListener("focus", () => {
    state.chosen = index;
    [...byId("objects").children].forEach((row, other) => row.classList.toggle("chosen", other === index));
    renderPhoto();
  });
  return html("div", { class: "edit" }, number, description,
    html("button", { class: "plain", "aria-label": `remove object ${index + 1}`, click: () => remove(index) }, "×"));
}

function choose(index) {
  state.chosen = index;
  renderList();
  renderPhoto();
  byId("objects").children[index]?.scrollIntoView({ block: "nearest" });
}

// ---------------------------------------------------------------- correcting

function startCorrecting() {
  Object.assign(state, { correcting: true, chosen: -1, objects: state.objects.map((object) => ({ ...object, score: null })) });
  render();
}

function stopCorrecting() {
  Object.assign(state, { correcting: false, chosen: -1 });
  render();
}

function remove(index) {
  state.objects.splice(index, 1);
  state.chosen = -1;
  render();
}

function create(box) {
  state.objects.push({ desc: "", box, score: null });
  state.chosen = state.objects.length - 1;
  render();
  return state.chosen;
}

makeCorrectable(canvas, {
  active: () => state.correcting,
  size: () => state.row,
  box: (index) => state.objects[index].box,
  chosen: () => state.chosen,
  choose,
  remove,
  create,
  change: (index, box) => {
    state.objects[index].box = box;
    renderPhoto();
  },
});

function useAsExample() {
  const silent = state.objects.findIndex((object) => !object.desc.trim());
  if (silent >= 0) {
    choose(silent);
    return fail(`Object ${silent + 1} has no description; write one, or remove the object.`);
  }
  addExample(state.examples, state.file, rowOf(state.row.images[0], state.row, state.objects));
  stopCorrecting();
  examplesChanged();
}

// ---------------------------------------------------------------- examples

function examplesChanged() {
  showExamples(byId("examples"), state.examples, (index) => {
    URL.revokeObjectURL(state.examples.splice(index, 1)[0].url);
    examplesChanged();
  });
  byId("rows").disabled = !state.examples.length;
  say(`${plural(state.examples.length, "example")} will be shown with the next photo${state.file ? "; Predict again shows the effect" : ""}.`);
}

async function loadExamples(files) {
  try {
    for (const { file, row } of await pairFiles(files)) addExample(state.examples, file, row);
    examplesChanged();
  } catch (error) {
    fail(error.message);
  }
}

// ---------------------------------------------------------------- copying and saving

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // no clipboard without https or localhost
    const area = html("textarea", {});
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  say(`${what} copied.`);
}

async function savePicture() {
  const { width, height } = state.row;
  const blob = await annotatedPicture(shown, state.objects, { width, height, withDescriptions: byId("descriptions").checked });
  if (!blob) return fail("The browser cannot draw a picture of this size.");
  const url = URL.createObjectURL(blob);
  html("a", { href: url, download: `${state.row.images[0].replace(/\.\w+$/, "")}-objects.png` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// ---------------------------------------------------------------- wiring

function on(id, name, act) {
  byId(id).addEventListener(name, act);
}

function opens(button, input, use) {
  on(button, "click", () => byId(input).click());
  on(input, "change", () => {
    const files = [...byId(input).files];
    byId(input).value = ""; // so the same file can be chosen again
    if (files.length) use(files);
  });
}

// One photo is predicted; several files, or a file with rows, are examples.
function take(files) {
  if (files.length === 1 && !/\.jsonl?$/i.test(files[0].name)) ask(files[0]);
  else if (files.length) loadExamples(files);
}

opens("choose", "photo", take);
on("drop", "click", () => byId("photo").click());
opens("load", "files", loadExamples);
on("threshold", "input", render);
on("descriptions", "change", renderPhoto);
on("correct", "click", startCorrecting);
on("teach", "click", useAsExample);
on("keep", "click", useAsExample);
on("discard", "click", stopCorrecting);
on("again", "click", () => ask(state.file));
on("add", "click", () => {
  const { width, height } = state.row;
  create([width * 0.4, height * 0.4, width * 0.6, height * 0.6]);
  byId("objects").lastElementChild.querySelector("input").focus();
});
on("copy", "click", () => copy(JSON.stringify({ ...state.row, predictions: visible() }), "JSON"));
on("rows", "click", () => copy(state.examples.map((example) => JSON.stringify(example.row)).join("\n"), "Rows"));
on("save", "click", savePicture);
shown.addEventListener("error", () => { // a TIFF: the model reads it, but most browsers do not show it
  frame.classList.add("unseen");
  if (state.row) shown.style.aspectRatio = `${state.row.width} / ${state.row.height}`;
  render();
});
shown.addEventListener("load", () => { shown.style.aspectRatio = ""; });
new ResizeObserver(() => renderPhoto()).observe(frame);
document.fonts.addEventListener("loadingdone", () => renderPhoto()); // the glyphs change the width of labels

document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) take([...event.clipboardData.files]);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
document.addEventListener("dragleave", () => document.body.classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  take([...event.dataTransfer.files]);
});
readFacts();
