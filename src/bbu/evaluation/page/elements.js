// Elements, numbers and words. Text goes in as text nodes only, so that no description can become markup.

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

const share = (part, whole) => (whole ? part / whole : null); // undefined is neither good nor bad
const decimals = (value, digits = 3) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
