// Plots on two axes: the frame, curves over a value that moves, bars of groups.
(() => {
  const {
    views, range, clamp, number, ticks, powers, text, line, box, circle, path, spread, wide,
    DASHES, GREY, INK, NARROW,
  } = GatesViews;

  const FAINT = 'opacity=".28"';
  const scaled = (low, high, from, to) => (value) => from + ((value - low) / (high - low)) * (to - from);

  const gridOf = (marks, place, left, right) =>
    marks.map((mark) => line(left, place(mark), right, place(mark), GREY, 0.8, FAINT) + text(left - 8, place(mark) + 4.5, number(mark), { anchor: "end" })).join("");
  const footOf = (marks, place, bottom) =>
    marks.map((mark) => line(place(mark), bottom, place(mark), bottom + 4) + text(place(mark), bottom + 18, number(mark), { anchor: "middle" })).join("");

  /**
   * Two axes with their grid. `x`: {low, high, label}, `y`: {low, high, label, log}; labels are SVG.
   * Returns the SVG, the places of values, and the edges of the plot.
   */
  const frame = ({ width, height, x, y, left = 52, right = width - 14, top = 12, bottom = height - 44 }) => {
    const size = y.log ? Math.log10 : (value) => value;
    const edge = y.label ? top + 22 : top;
    const across = scaled(x.low, x.high, left, right);
    const rise = scaled(size(y.low), size(y.high), bottom, edge);
    const up = (value) => clamp(rise(size(value)), edge - 8, bottom + 8);
    const marks = y.log ? powers(y.low, y.high) : ticks(y.low, y.high, 4);
    let body = gridOf(marks, up, left, right) + line(left, bottom, right, bottom);
    if (!y.log && y.low < 0 && y.high > 0) body += line(left, up(0), right, up(0), GREY, 1, 'opacity=".7"');
    body += footOf(ticks(x.low, x.high, width < NARROW ? 4 : 8), across, bottom);
    if (y.label) body += text(left - 44, top + 5, y.label);
    if (x.label) body += text((left + right) / 2, bottom + 37, x.label, { anchor: "middle" });
    return { body, across, up, drawn: (value) => Number.isFinite(size(value)), left, right, top: edge, bottom };
  };

  /** The stretches of points that can be drawn: a curve breaks where it is no finite number. */
  const stretches = (plot, points) => {
    const found = [[]];
    points.forEach(([at, value]) => {
      if (plot.drawn(value)) found.at(-1).push([plot.across(at), plot.up(value)]);
      else found.push([]);
    });
    return found.filter(({ length }) => length);
  };
  const oneCurve = (plot, { points, colour, dash = 0 }) =>
    stretches(plot, points).map((stretch) => path(stretch, colour, { dash: DASHES[dash] })).join("");
  const endsOf = (plot, series) => {
    const last = series.map(({ points }) => points.findLast(([, value]) => plot.drawn(value))?.[1]);
    const places = last.map((value) => (value === undefined ? plot.top : plot.up(value)));
    return spread(places, 17, plot.top + 4, plot.bottom - 2);
  };
  /** Curves in a frame. `series`: {points, colour, dash, label}; a label stands at its curve's end. */
  const curves = (plot, series) => {
    const ends = endsOf(plot, series);
    const label = ({ label: words, colour }, k) =>
      words ? text(plot.right + 8, ends[k] + 5, words, { colour, size: 14, weight: 500 }) : "";
    return series.map((one, k) => oneCurve(plot, one) + label(one, k)).join("");
  };
  /** A dotted line at `at`, and a dot on every curve there. `values`: [value, colour]. */
  const cursor = (plot, at, values) => {
    const x = plot.across(at);
    const dots = values.filter(([value]) => plot.drawn(value)).map(([value, colour]) => circle(x, plot.up(value), 4.6, colour));
    return line(x, plot.top - 6, x, plot.bottom, INK, 1, 'stroke-dasharray="2 3"') + dots.join("");
  };
  /** Dots that stay, with their numbers: [at, value]. */
  const marked = (plot, points) => points.map(([at, value]) =>
    circle(plot.across(at), plot.up(value), 3.6, INK) + text(plot.across(at) + 8, plot.up(value) + 15, number(value), { size: 12.5 })).join("");
  /** A band behind the curves, with its words at the foot. */
  const band = (plot, { low, high, words }) => {
    const from = plot.across(low), to = plot.across(high), middle = (from + to) / 2;
    const room = to - from > wide(words) ? text(middle, plot.bottom - 8, words, { anchor: "middle" }) : "";
    return box(from, plot.top, to - from, plot.bottom - plot.top, GREY, 'opacity=".15"') + room;
  };

  /** Outlined where it is not the first of its group, so that it is told apart without its colour. */
  const barLook = (colour, place) => (place ? `fill-opacity="${place > 1 ? 0 : 0.22}" stroke="${colour}" stroke-width="2"` : "");
  const oneBar = (plot, { value, colour, x, size, place }) => {
    if (!Number.isFinite(value)) return "";
    const tall = plot.up(clamp(value, plot.low, plot.high)), zero = plot.up(0), top = Math.min(tall, zero);
    const narrow = size < 26, small = narrow ? 11 : 12.5;
    const digits = number(Number(value.toFixed(2))), words = narrow ? digits.replace("0.", ".") : digits;
    const label = text(x + size / 2, value < 0 ? Math.max(tall, zero) + 15 : top - 6, words, { anchor: "middle", size: small, colour });
    return box(x + 2, top, size - 4, Math.abs(tall - zero), colour, barLook(colour, place)) + label;
  };
  /**
   * Groups of bars. `groups`: [{label, bars: [{value, colour}]}]; `y`: {low, high}, log unknown.
   */
  const bars = ({ width, height, groups, y, left = 46, right = width - 10, top = 12, bottom = height - 28 }) => {
    const plot = { up: scaled(y.low, y.high, bottom, top), low: y.low, high: y.high };
    const group = (right - left) / groups.length, most = Math.max(...groups.map((g) => g.bars.length));
    const size = Math.min(54, (group * 0.76) / most);
    const one = ({ label, bars: all }, k) => {
      const middle = left + group * (k + 0.5), start = middle - (size * all.length) / 2;
      const drawn = all.map((bar, place) => oneBar(plot, { ...bar, x: start + place * size, size, place }));
      return drawn.join("") + text(middle, bottom + 20, label, { anchor: "middle", size: 14 });
    };
    const grid = gridOf(ticks(y.low, y.high, 4), plot.up, left, right);
    return grid + groups.map(one).join("") + line(left, plot.up(Math.max(0, y.low)), right, plot.up(Math.max(0, y.low)));
  };

  /** Two ends around values, with zero inside and a little room. */
  const around = (values) => {
    const finite = values.filter(Number.isFinite);
    const least = Math.min(0, ...finite), most = Math.max(least + 0.1, ...finite), room = 0.05 * (most - least);
    return { low: least < 0 ? least - room : 0, high: most + room };
  };

  Object.assign(GatesViews, { scaled, frame, curves, cursor, marked, band, bars, barLook, around });
})();
