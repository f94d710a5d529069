// What a forget gate does to attention, beside ALiBi: the two masks, and what one row reads.
// Settings: values f (gates at letters), f_space (gates at spaces), m (ALiBi's slope), i (the
// position that reads) and e (the score of the first character; all others have 0).
// definition.gates are the Specs FORGET_READ and ALIBI_READ, in this order.
(() => {
  const {
    views, range, number, forward, scaled, sum, text, line, box, legend, boxSample, svg, htmlName, openColour,
    BLUE, RED, GREY, INK,
  } = GatesViews;
  const CHARACTERS = [..."away from the city"];
  const COUNT = CHARACTERS.length;

  // ---- masks and weights --------------------------------------------------------------------

  /** The running sums of log f over the characters. */
  const runningSums = ({ f, f_space }) => {
    let total = 0;
    return CHARACTERS.map((sign) => (total += Math.log(sign === " " ? f_space : f)));
  };
  /** What each row multiplies earlier weights by, before they are made to sum to 1. */
  const maskOf = (fall) => range(COUNT).map((i) => range(COUNT).map((j) => (j <= i ? Math.exp(-fall(i, j)) : 0)));
  const masksOf = (values) => {
    const sums = runningSums(values);
    return [maskOf((i, j) => sums[j] - sums[i]), maskOf((i, j) => values.m * (i - j))];
  };
  /** The weights of row i under both, by the Specs' own code. */
  const weightsOf = ([forgetting, alibi], values) => {
    const places = range(COUNT), i = values.i - 1, sums = runningSums(values);
    const shared = {
      e: places.map((j) => (j ? 0 : values.e)),
      mask: places.map((j) => (j <= i ? 1 : 0)),
      v: places.map(() => 1),
    };
    return [
      forward(forgetting, { ...shared, l_i: sums[i], l_j: sums }).g,
      forward(alibi, { ...shared, m: values.m, r: places.map((j) => i - j) }).g,
    ];
  };

  // ---- the drawing --------------------------------------------------------------------------

  const shown = (sign) => (sign === " " ? "␣" : sign);
  const letterRow = (place, top, size) =>
    CHARACTERS.map((sign, j) => text(place(j), top, shown(sign), { anchor: "middle", size })).join("");

  /** One mask as a triangle of cells, rows that read from top to bottom; a frame around row i. */
  const triangle = (mask, title, { left, top, side }, row) => {
    const cell = side / COUNT, words = cell >= 11 ? letterRow((j) => left + (j + 0.5) * cell, top + side + 13, 11) : "";
    const cells = mask.flatMap((values, i) => values.slice(0, i + 1).map((value, j) =>
      box(left + j * cell, top + i * cell, cell, cell, openColour(value))));
    const ends = cell >= 11 ? CHARACTERS.map((sign, i) => text(left - 8, top + (i + 0.5) * cell + 4, shown(sign), { anchor: "middle", size: 11 })).join("") : "";
    return text(left, top - 8, title, { weight: 500 }) + `<g shape-rendering="crispEdges">${cells.join("")}</g>` + words + ends +
      box(left, top + row * cell, (row + 1) * cell, cell, "none", `stroke="${INK}" stroke-width="1.6"`);
  };

  /** What row i reads: bars of both, letter by letter. */
  const rowBody = (weights, { left, right, top, bottom }, row) => {
    const most = Math.max(...weights.flat()), high = most > 0.5 ? 1 : most > 0.2 ? 0.5 : 0.2;
    const up = scaled(0, high, bottom, top), step = (right - left) / COUNT;
    const grid = [0, high / 2, high].map((mark) =>
      line(left, up(mark), right, up(mark), GREY, 0.8, 'opacity=".28"') + text(left - 8, up(mark) + 4.5, number(mark), { anchor: "end", size: 12 }));
    const bar = (value, j, k) => {
      const look = k ? `fill-opacity=".22" stroke="${RED}" stroke-width="1.6"` : "";
      const wide = step * 0.42, x = left + j * step + (k ? 0.5 * step : 0.06 * step);
      return box(x, up(value), wide, bottom - up(value), k ? RED : BLUE, look);
    };
    const drawn = weights.map((all, k) => all.slice(0, row + 1).map((value, j) => bar(value, j, k)).join(""));
    const mark = box(left + row * step, bottom + 3, step, 18, "none", `stroke="${INK}" stroke-width="1.2"`);
    return grid.join("") + drawn.join("") + line(left, bottom, right, bottom) + mark +
      letterRow((j) => left + (j + 0.5) * step, bottom + 16, step >= 14 ? 13 : 11);
  };

  /** The share of row i that stays in its own word, and that of the first character. */
  const sharesOf = (weights, row) => {
    const begin = CHARACTERS.slice(0, row).lastIndexOf(" ") + 1;
    return { word: sum(weights.slice(begin, row + 1)), first: weights[0] };
  };
  const sentence = (values, weights) => {
    const row = values.i - 1, [own, other] = weights.map((all) => sharesOf(all, row));
    const half = number(Math.log(2) / -Math.log(values.f)), slope = number(Math.log(2) / values.m);
    return `Place ${values.i}, “${shown(CHARACTERS[row])}”, reads ${number(100 * own.word)} % from its own word by forgetting, ` +
      `${number(100 * other.word)} % by ALiBi; ${number(100 * own.first)} % and ${number(100 * other.first)} % from the first character. ` +
      `A weight halves within a word in ${half} characters, under the slope in ${slope}.`;
  };

  views.mask = (definition, settings, width) => {
    const { values } = settings, weights = weightsOf(definition.gates, values), masks = masksOf(values), row = values.i - 1;
    const gap = width < 480 ? 16 : 48, edge = width < 480 ? 0 : 22, side = Math.min(224, (width - gap - edge) / 2);
    const first = (width - 2 * side - gap + edge) / 2, top = 24;
    const below = top + side + (side / COUNT >= 11 ? 20 : 6);
    const key = legend([
      { words: "forgetting", sample: boxSample(BLUE) },
      { words: "ALiBi", sample: boxSample(RED, `fill-opacity=".22" stroke="${RED}" stroke-width="1.6"`) },
    ], width, 40);
    const place = { left: 40, right: width - 4, top: below + key.height + 10, bottom: below + key.height + 100 };
    const body = triangle(masks[0], "forgetting", { left: first, top, side }, row) +
      triangle(masks[1], "ALiBi", { left: first + side + gap, top, side }, row) +
      `<g transform="translate(0 ${below})">${key.body}</g>` + rowBody(weights, place, row);
    const alt = "Two triangles of cells, what forget gates and what ALiBi leave of the weights of earlier characters, and the weights of one row under both";
    return { svg: svg(width, place.bottom + 26, alt, body), reading: sentence(values, weights) };
  };
  GatesViews.mask = { CHARACTERS, masksOf, weightsOf };
})();
