// What happens over steps: rows of coloured cells, and strips of bars from zero. What is no finite
// number leaves its place empty.
(() => {
  const { text, line, box, number, clamp, range, openColour, signedColour, svgName, GREY, INK } = GatesViews;
  const SCALE = 52; // px at the right, for what the colours mean
  const EDGE = 'shape-rendering="crispEdges"';

  /** How wide one step is between the labels and the scale. */
  const stepOf = (width, left, count) => (width - left - SCALE) / count;

  const oneRow = ({ label, values, most }, { width, left, y, cell }) => {
    const step = stepOf(width, left, values.length);
    const colour = (value) => (most ? signedColour(value, most) : openColour(value));
    const cells = values.map((value, t) => (Number.isFinite(value) ? box(left + t * step, y, step, cell, colour(value)) : ""));
    const name = text(left - 8, y + cell / 2 + 5, label, { anchor: "end", size: 14 });
    const rim = box(left - 0.5, y - 0.5, step * values.length + 1, cell + 1, "none", `stroke="${GREY}" stroke-width=".6" opacity=".5"`);
    const scale = text(width - SCALE + 6, y + cell / 2 + 4.5, most ? `±${number(Number(most.toPrecision(2)))}` : "0…1", { colour: GREY, size: 12 });
    return `${name}${rim}<g ${EDGE}>${cells.join("")}</g>${scale}`;
  };
  /** Rows of cells, one cell a step. `rows`: {label, values, most}; `most` is 0 for what lies in 0…1. */
  const heat = ({ width, rows, left, top, cell = 19, at }) => {
    const body = rows.map((row, k) => oneRow(row, { width, left, y: top + k * (cell + 4), cell })).join("");
    const height = rows.length * (cell + 4);
    return { height, body: body + mark({ width, left, top: top - 2, height, at, count: rows[0].values.length }) };
  };
  /** The frame around one step. */
  const mark = ({ width, left, top, height, at, count }) => {
    const step = stepOf(width, left, count);
    return at === undefined ? "" : box(left + at * step, top, step, height, "none", `stroke="${INK}" stroke-width="1.6"`);
  };
  /** Bars up and down from zero, one a step. */
  const strip = ({ width, left, top, height, values, most, colour, label, at, note = "" }) => {
    const step = stepOf(width, left, values.length), middle = top + height / 2;
    const gap = Math.min(0.8, step / 8);
    const bar = (value, t) => {
      if (!Number.isFinite(value)) return "";
      const tall = (clamp(value / most, -1, 1) * height) / 2;
      return box(left + t * step + gap, tall > 0 ? middle - tall : middle, step - 2 * gap, Math.max(Math.abs(tall), 0.5), colour);
    };
    const name = text(left - 8, middle + 5, label, { anchor: "end", size: 14 });
    const zero = line(left, middle, left + step * values.length, middle, GREY, 0.8);
    const scale = text(width - SCALE + 6, middle + 4.5, note, { colour: GREY, size: 12 });
    return name + zero + values.map(bar).join("") + mark({ width, left, top, height, at, count: values.length }) + scale;
  };
  /** The steps' numbers under what is drawn over them. */
  const steps = ({ width, left, top, count }) => {
    const step = stepOf(width, left, count), every = count > 20 ? 10 : 5;
    const numbers = range(Math.ceil(count / every)).map((k) =>
      text(left + (k * every + 0.5) * step, top, String(k * every), { anchor: "middle", colour: GREY, size: 12 }));
    return numbers.join("") + text(width - SCALE, top, "step", { anchor: "end", colour: GREY, size: 12 });
  };
  /** The sequence x as a strip in which a reader may draw, and where it is. */
  const sequenceStrip = ({ width, left, top = 4, height = 48, x, at, limit }) => ({
    body: strip({ width, left, top, height, values: x, most: limit, colour: INK, label: svgName("x_t"), at, note: `±${number(limit)}` }),
    area: { left, top, width: stepOf(width, left, x.length) * x.length, height, limit },
  });
  /** The largest size among values, never 0. */
  const largest = (values) => Math.max(1e-9, ...values.map(Math.abs).filter(Number.isFinite));

  Object.assign(GatesViews, { SCALE, stepOf, heat, mark, strip, steps, sequenceStrip, largest });
})();
