// Matches at a threshold, by the rules of bbu.evaluation.matching: one to one, greedy, best score first, at IoU >= 0.5;
// each prediction takes the free annotated box that it overlaps most.
//
// A prediction at or above the threshold is "found" if it takes a box of its own description, else "wrong" (caption) if
// it takes any other, else "fp" (false positive). An annotated box is "found", "wrong" or "missed".

const [DESC, SCORE, NEAR] = [4, 5, 6]; // after the four corners; NEAR lists annotated boxes, best overlap last

// Predictions by score; a sort in JavaScript is stable, as Python's is.
function prepare(photo) {
  photo.order = photo.found.map((_, m) => m).sort((a, b) => photo.found[b][SCORE] - photo.found[a][SCORE]);
}

// Match predictions in the given order; taken[n] is the prediction matched to annotated box n, -1 for none.
function greedy(photo, order, taken, fits) {
  const matched = new Set();
  for (const m of order) {
    const best = photo.found[m][NEAR].findLast((n) => taken[n] < 0 && fits(m, n));
    if (best !== undefined) {
      taken[best] = m;
      matched.add(m);
    }
  }
  return matched;
}

// The matches of one photo: {truth: [{state, partner}], found: [{state, partner} or null if below]}.
function verdicts(photo, threshold) {
  const order = photo.order.filter((m) => photo.found[m][SCORE] >= threshold);
  const taken = photo.truth.map(() => -1);
  const right = greedy(photo, order, taken, (m, n) => photo.found[m][DESC] === photo.truth[n][DESC]);
  const rest = order.filter((m) => !right.has(m));
  greedy(photo, rest, taken, () => true);
  const found = photo.found.map(() => null);
  for (const m of order) found[m] = { state: "fp", partner: -1 };
  const truth = taken.map((m, n) => {
    if (m < 0) return { state: "missed", partner: -1 };
    const state = right.has(m) ? "found" : "wrong";
    found[m] = { state, partner: n };
    return { state, partner: m };
  });
  return { truth, found };
}

const nothing = () => ({ truth: 0, said: 0, found: 0, wrong: 0, missed: 0, fp: 0 });

// Every prediction that is not "found" counts as a false positive, so wrong captions do too, as in metrics.json.
function addVerdicts(total, verdict) {
  for (const { state } of verdict.truth) {
    total.truth += 1;
    total[state] += 1;
  }
  for (const said of verdict.found) {
    if (said) {
      total.said += 1;
      if (said.state !== "found") total.fp += 1;
    }
  }
  return total;
}

// All photos at a threshold: {total, photos: [{verdict, total}], descriptions: [totals by description]}.
function recount(threshold) {
  const total = nothing();
  const descriptions = DATA.descriptions.map(nothing);
  const photos = DATA.photos.map((photo) => {
    const verdict = verdicts(photo, threshold);
    verdict.truth.forEach(({ state }, n) => {
      const own = descriptions[photo.truth[n][DESC]];
      own.truth += 1;
      own[state] += 1;
    });
    verdict.found.forEach((said, m) => {
      if (!said) return;
      const own = descriptions[photo.found[m][DESC]];
      own.said += 1;
      if (said.state !== "found") own.fp += 1;
    });
    addVerdicts(total, verdict);
    return { verdict, total: addVerdicts(nothing(), verdict) };
  });
  return { total, photos, descriptions };
}

const precisionOf = (total) => share(total.said - total.fp, total.said);
const recallOf = (total) => share(total.found, total.truth);

// Every prediction as [score, whether it is "found"], best first. It holds at any threshold, since greedy matching by
// score does not depend on later predictions.
function rankedPredictions() {
  const ranked = [];
  for (const photo of DATA.photos) {
    verdicts(photo, 0).found.forEach((said, m) => ranked.push([photo.found[m][SCORE], said.state === "found"]));
  }
  return ranked.sort((a, b) => b[0] - a[0]);
}
