// A recurrence of two units, h_t = J h_{t−1} with J = diag(d) U: what it makes of a circle, and how
// far it stretches over the steps, beside what eigenvalues and singular values say. Settings:
// values u_11, u_12, u_21, u_22, d_1, d_2 (the slopes of the units' nonlinearity) and t.
(() => {
  const {
    views, range, clamp, number, frame, curves, cursor, box, line, text, circle, path, svg, svgName, htmlName,
    BLUE, RED, GREEN, PURPLE, OCHRE, SKY, GREY, INK,
  } = GatesViews;
  const STEPS = 50, REACH = 2.5; // of the left panel, in units of the state
  const LOW = 1e-4, HIGH = 1e4; // of the right one

  // ---- two by two ---------------------------------------------------------------------------

  /** U and J = diag(d) U, row by row: [a, b, c, d] is ((a, b), (c, d)). */
  const matricesOf = ({ u_11, u_12, u_21, u_22, d_1, d_2 }) => ({
    recurrent: [u_11, u_12, u_21, u_22],
    jacobian: [d_1 * u_11, d_1 * u_12, d_2 * u_21, d_2 * u_22],
  });
  const product = ([a, b, c, d], [e, f, g, h]) => [a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h];

  /** The largest magnitude of an eigenvalue. */
  const spectralRadius = ([a, b, c, d]) => {
    const half = (a + d) / 2, rest = ((a - d) / 2) ** 2 + b * c;
    return rest < 0 ? Math.sqrt(a * d - b * c) : Math.abs(half) + Math.sqrt(rest);
  };
  /** The largest singular value: half of what turns plus what mirrors. */
  const norm = ([a, b, c, d]) => (Math.hypot(a + d, c - b) + Math.hypot(a - d, b + c)) / 2;

  /** J⁰, J¹, … as matrices. */
  const powersOf = (jacobian, count = STEPS) => {
    const found = [[1, 0, 0, 1]];
    while (found.length <= count) found.push(product(jacobian, found.at(-1)));
    return found;
  };

  // ---- the plane ----------------------------------------------------------------------------

  const CIRCLE = range(73).map((k) => [Math.cos((k * Math.PI) / 36), Math.sin((k * Math.PI) / 36)]);
  const image = ([a, b, c, d], [x, y]) => [a * x + b * y, c * x + d * y];

  /** Where a point of the plane stands in a square of this size, and back. */
  const planeOf = (size) => {
    const unit = size / 2 / REACH;
    return {
      size,
      place: ([x, y]) => [size / 2 + unit * x, size / 2 - unit * y],
      point: (x, y) => [(x - size / 2) / unit, (size / 2 - y) / unit],
    };
  };
  const ellipse = (plane, power, colour, width, more) =>
    path(CIRCLE.map((point) => plane.place(image(power, point))), colour, { width, more });

  const crossing = ({ size, place }) => {
    const [x, y] = place([0, 0]);
    return box(0.5, 0.5, size - 1, size - 1, "none", `stroke="${GREY}" opacity=".5"`) +
      line(x, 0, x, size, GREY, 0.8, 'opacity=".4"') + line(0, y, size, y, GREY, 0.8, 'opacity=".4"');
  };
  const COLUMNS = [
    { names: ["u_11", "u_21"], colour: RED, words: "1" },
    { names: ["u_12", "u_22"], colour: GREEN, words: "2" },
  ];
  /** The tip of a column of U, kept inside the square, where it can be held. */
  const tipOf = (plane, { names }, values) => {
    const [x, y] = plane.place(names.map((name) => values[name]));
    return [clamp(x, 11, plane.size - 11), clamp(y, 11, plane.size - 11)];
  };
  const arrow = (plane, column, values) => {
    const [x, y] = plane.place([0, 0]), [toX, toY] = tipOf(plane, column, values);
    return line(x, y, toX, toY, column.colour, 2) + circle(toX, toY, 9, column.colour, `stroke="#fff" stroke-width="1.5"`) +
      text(toX, toY + 4, column.words, { anchor: "middle", colour: "#fff", size: 11, weight: 600 });
  };
  const handleOf = (plane, column, values, left, top) => {
    const [x, y] = tipOf(plane, column, values);
    const round = (value) => Math.round(clamp(value, -REACH, REACH) * 20) / 20;
    const move = (toX, toY) => {
      const point = plane.point(toX - left, toY - top);
      return Object.fromEntries(column.names.map((name, k) => [name, round(point[k])]));
    };
    return { x: left + x, y: top + y, names: column.names, move };
  };
  /** The circle, what becomes of it step by step, and the columns of U; all cut at the square. */
  const planeBody = (plane, powers, values, left, top) => {
    const until = values.t, faint = (k) => `opacity="${number(0.2 + (0.5 * k) / until)}"`;
    const images = range(until).map((k) => (k ? ellipse(plane, powers[k], SKY, 1.3, faint(k)) : ""));
    const inside = crossing(plane) + images.join("") + ellipse(plane, powers[0], INK, 1.2, 'stroke-dasharray="3 3"') +
      ellipse(plane, powers[until], BLUE, 2.6) + COLUMNS.map((column) => arrow(plane, column, values)).join("");
    return `<svg x="${left}" y="${top}" width="${plane.size}" height="${plane.size}">${inside}</svg>`;
  };

  // ---- growth over steps --------------------------------------------------------------------

  /** The points of a curve up to the first that leaves the frame. */
  const untilOut = (values) => {
    const out = values.findIndex((value) => value < LOW || value > HIGH);
    return values.slice(0, out < 0 ? values.length : out + 1).map((value, t) => [t, value]);
  };
  const raised = (base) => `${base}<tspan dy="-6" font-size=".75em" font-style="italic">t</tspan><tspan dy="6">\u200b</tspan>`;
  const growthBody = (place, { powers, radius, largest }, t) => {
    const plot = frame({ ...place, x: { low: 0, high: STEPS, label: "step" }, y: { low: LOW, high: HIGH, log: true, label: "stretch" } });
    const steps = range(STEPS + 1), measured = powers.map(norm);
    const series = [
      { points: untilOut(steps.map((k) => largest ** k)), colour: PURPLE, dash: 2, label: raised(`‖${svgName("J")}‖`) },
      { points: untilOut(steps.map((k) => radius ** k)), colour: OCHRE, dash: 1, label: raised(`ρ(${svgName("J")})`) },
      { points: untilOut(measured), colour: BLUE, label: `‖${raised(svgName("J"))}‖` },
    ];
    const inside = measured[t] >= LOW && measured[t] <= HIGH ? [[measured[t], BLUE]] : [];
    return plot.body + curves(plot, series) + cursor(plot, t, inside);
  };

  const layout = (width) => {
    const beside = width >= 560, size = beside ? Math.round(width * 0.36) : Math.min(width, 280);
    const left = beside ? size + 24 : 0, top = beside ? 0 : size + 22;
    const bottom = beside ? size - 44 : top + 190;
    return {
      size,
      at: [beside ? 0 : (width - size) / 2, beside ? 0 : 4],
      place: { width: width - left, height: 0, left: left + 62, right: width - 48, top: top + 6, bottom },
      height: beside ? size + 2 : bottom + 46,
    };
  };

  const told = (matrix, name) =>
    `ρ(${htmlName(name)}) = ${number(spectralRadius(matrix))}, ‖${htmlName(name)}‖ = ${number(norm(matrix))}`;
  const sentence = ({ recurrent, jacobian }, { powers, radius, largest }, t) =>
    `${told(recurrent, "U")}; with the slopes, ${told(jacobian, "J")}. In ${number(t)} steps a difference ` +
    `grows at most ${number(norm(powers[t]))} times; eigenvalues say ${number(radius ** t)}, singular values ` +
    `${number(largest ** t)}.`;

  views.matrix = (definition, settings, width) => {
    const { values } = settings, matrices = matricesOf(values), { size, at, place, height } = layout(width);
    const found = {
      powers: powersOf(matrices.jacobian),
      radius: spectralRadius(matrices.jacobian),
      largest: norm(matrices.jacobian),
    };
    const plane = planeOf(size);
    const alt = "A circle and its images under a matrix of two units; beside it how far the matrix stretches over 50 steps";
    return {
      svg: svg(width, height, alt, planeBody(plane, found.powers, values, ...at) + growthBody(place, found, values.t)),
      reading: sentence(matrices, found, values.t),
      handles: COLUMNS.map((column) => handleOf(plane, column, values, ...at)),
    };
  };
  GatesViews.matrix = { matricesOf, spectralRadius, norm, powersOf };
})();
