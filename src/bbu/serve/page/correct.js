// Correcting boxes with the pointer or the keyboard. Boxes are [x1, y1, x2, y2] in pixels of the photo.

const SMALLEST = 2; // pixels a side

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

function moved([x1, y1, x2, y2], dx, dy, { width, height }) {
  const right = clamp(dx, -x1, width - x2);
  const down = clamp(dy, -y1, height - y2);
  return [x1 + right, y1 + down, x2 + right, y2 + down];
}

function between([ax, ay], [bx, by], { width, height }) {
  const [x1, x2] = [ax, bx].map((x) => clamp(x, 0, width)).sort((a, b) => a - b);
  const [y1, y2] = [ay, by].map((y) => clamp(y, 0, height)).sort((a, b) => a - b);
  return [x1, y1, x2, y2];
}

const bigEnough = ([x1, y1, x2, y2]) => x2 - x1 >= SMALLEST && y2 - y1 >= SMALLEST;

function pointOf(canvas, event) {
  const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(canvas.getScreenCTM().inverse());
  return [x, y];
}

// editor: {active(), size() → {width, height}, box(index), choose(index), change(index, box), create(box), remove(index), chosen()}.
function makeCorrectable(canvas, editor) {
  let pull = null; // point → box, while the pointer is down

  canvas.addEventListener("pointerdown", (event) => {
    const index = event.target.closest(".object")?.dataset.index;
    if (!editor.active()) {
      if (index !== undefined) editor.choose(Number(index));
      return;
    }
    event.preventDefault();
    const start = pointOf(canvas, event);
    canvas.setPointerCapture(event.pointerId);
    pull = event.target.classList.contains("handle") ? pullCorner(event.target.dataset) : index !== undefined ? pullBox(Number(index), start) : pullNew(start);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (pull) pull(pointOf(canvas, event));
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { pull = null; });

  function pullCorner({ column, row }) {
    const box = editor.box(editor.chosen());
    const fixed = [box[2 - column], box[4 - row]];
    return (point) => {
      const changed = between(fixed, point, editor.size());
      if (bigEnough(changed)) editor.change(editor.chosen(), changed);
    };
  }

  function pullBox(index, start) {
    editor.choose(index);
    const box = editor.box(index);
    return ([x, y]) => editor.change(index, moved(box, x - start[0], y - start[1], editor.size()));
  }

  function pullNew(start) {
    let index = -1;
    return (point) => {
      const box = between(start, point, editor.size());
      if (!bigEnough(box)) return;
      if (index < 0) index = editor.create(box);
      else editor.change(index, box);
    };
  }

  canvas.addEventListener("keydown", (event) => {
    const found = event.target.closest?.(".object")?.dataset.index;
    if (found === undefined) return;
    const index = Number(found);
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key === "Enter" || event.key === " ") editor.choose(index);
    else if (editor.active() && event.key === "Delete") editor.remove(index);
    else if (editor.active() && ways[event.key]) nudge(index, ways[event.key], event.shiftKey);
    else return;
    event.preventDefault();
  });

  function nudge(index, [right, down], resize) {
    const { width, height } = editor.size();
    const step = Math.max(1, Math.max(width, height) / 200);
    const box = editor.box(index);
    const [dx, dy] = [right * step, down * step];
    const changed = resize ? between([box[0], box[1]], [box[2] + dx, box[3] + dy], { width, height }) : moved(box, dx, dy, { width, height });
    editor.choose(index);
    if (bigEnough(changed)) editor.change(index, changed);
  }
}
