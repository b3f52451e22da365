// Elements, numbers, outlines and the theme. Texts become text nodes only, so no description can become markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

const html = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
const byId = (id) => document.getElementById(id);

const share = (part, whole) => (whole ? part / whole : null); // null is undefined, shown as "–"
const decimals = (value, digits = 3) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

// A shape as two lines: a dark rim below, so that the outline shows on any photo.
function stroked(shape, style) {
  const rim = shape.cloneNode();
  rim.setAttribute("class", `rim ${style}`);
  shape.setAttribute("class", `edge ${style}`);
  return [rim, shape];
}

// The backdrop of a photo's SVG: the photo where there is one, else grey.
const backdrop = ({ width, height }, jpeg) => [
  svg("rect", { class: "no-photo", width, height }),
  ...(jpeg ? [svg("image", { width, height, preserveAspectRatio: "none", href: `data:image/jpeg;base64,${jpeg}` })] : []),
];

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = theme === "dark" ? "Light" : "Dark";
  byId("theme").setAttribute("aria-label", `Switch to ${theme === "dark" ? "light" : "dark"} colours`);
}

function startTheme() {
  byId("theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
  setTheme(document.documentElement.dataset.theme);
}
