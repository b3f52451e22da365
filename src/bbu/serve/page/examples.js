// Worked examples, {file, row, url}. They live on this page only and are sent with every photo.

const baseName = (path) => path.replaceAll("\\", "/").split("/").pop();
const rounded = (value) => Math.round(value * 100) / 100;

// A record's row from objects that a person has corrected.
function rowOf(name, { width, height }, corrected) {
  const objects = corrected.map((object) => ({ desc: object.desc.trim(), bbox_2d: object.box.map(rounded) }));
  objects.sort((a, b) => a.bbox_2d[1] - b.bbox_2d[1] || a.bbox_2d[0] - b.bbox_2d[0]);
  return { images: [name], objects, width, height };
}

// A name that no other example has, since the server matches photos and rows by name.
function freeName(examples, name) {
  const used = new Set(examples.map((example) => baseName(example.row.images[0])));
  let free = name;
  for (let number = 2; used.has(free); number += 1) free = `${number}-${name}`;
  return free;
}

function addExample(examples, file, row) {
  const name = freeName(examples, baseName(row.images[0]));
  examples.push({ file, row: { ...row, images: [name] }, url: URL.createObjectURL(file) });
}

function parseRows(text, name) {
  try {
    const whole = text.trim();
    if (!whole.startsWith("{")) return [].concat(JSON.parse(whole));
    try {
      return [JSON.parse(whole)];
    } catch {
      return whole.split("\n").filter((line) => line.trim()).map((line) => JSON.parse(line));
    }
  } catch (error) {
    throw new Error(`${name}: is not JSON or JSONL: ${error.message}`);
  }
}

// Photos and row files chosen together → pairs by file name; throws an error for photos without a row.
async function pairFiles(files) {
  const photos = new Map();
  const rows = [];
  for (const file of files) {
    if (/\.jsonl?$/i.test(file.name)) rows.push(...parseRows(await file.text(), file.name));
    else photos.set(file.name, file);
  }
  if (!rows.length || !photos.size) throw new Error("Choose photos and the JSON or JSONL with their rows together.");
  const pairs = [];
  for (const row of rows) {
    const name = typeof row?.images?.[0] === "string" ? baseName(row.images[0]) : "";
    if (photos.has(name)) pairs.push({ file: photos.get(name), row });
    photos.delete(name);
  }
  const without = [...photos.keys()];
  if (without.length) throw new Error(`${without.join(", ")}: the chosen JSON has no row with this file name in "images".`);
  return pairs;
}

function showExamples(list, examples, remove) {
  list.replaceChildren(...examples.map((example, index) => html("li", {},
    html("img", { src: example.url, alt: "" }),
    html("span", {}, `${baseName(example.row.images[0])}: ${plural((example.row.objects || []).length, "object")}`),
    html("button", { class: "plain", "aria-label": `Remove example ${baseName(example.row.images[0])}`, click: () => remove(index) }, "Remove"))));
}
