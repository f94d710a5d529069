// A view: cells over a sequence. x as bars, values as rows of cells, and under them what the last
// output owes to each step, by the derived backward pass through time.
(() => {
  const {
    views, svg, text, number, svgName, htmlName, plainName, escape, titleOf, unrolled, blame,
    sequenceStrip, heat, strip, steps, largest, LIMIT, RED,
  } = GatesViews;
  const BLAMED = 38; // px of the strip of blame

  const runOf = (definition, settings, gate) => {
    const output = definition.blame ?? gate.outputs[0], done = unrolled(gate, settings);
    const names = definition.show.filter((name) => gate.values.includes(name));
    const traces = Object.fromEntries(names.map((name) => [name, done.map(({ all }) => all[name])]));
    return { gate, names, traces, output, shares: blame(gate, settings, done, output) };
  };
  /** One scale for a name, so that cells can be compared; 0 where all gates have it in 0…1. */
  const scalesOf = (runs) => {
    const names = [...new Set(runs.flatMap((run) => run.names))];
    const scale = (name) => {
      const having = runs.filter((run) => name in run.traces);
      return having.every(({ gate }) => gate.open.includes(name)) ? 0 : largest(having.flatMap((run) => run.traces[name]));
    };
    return Object.fromEntries(names.map((name) => [name, scale(name)]));
  };
  const owed = (output) => `∂${svgName(`${output}_T`)}/∂${svgName("x_t")}`;

  /** One gate's rows from `top` on: {body, height}. */
  const block = (run, { width, left, top, at, scales, worst, titled }) => {
    const head = titled ? 22 : 0;
    const title = titled ? text(left, top + 13, escape(titleOf(run.gate)), { weight: 600 }) : "";
    const rows = run.names.map((name) => ({ label: svgName(name), values: run.traces[name], most: scales[name] }));
    const drawn = heat({ width, rows, left, top: top + head, at });
    const below = top + head + drawn.height + 3;
    const shares = strip({
      width, left, top: below, height: BLAMED, values: run.shares, most: worst, colour: RED,
      label: owed(run.output), at, note: `±${number(Number(worst.toPrecision(2)))}`,
    });
    return { body: title + drawn.body + shares, height: head + drawn.height + BLAMED + 12 };
  };
  const said = ({ gate, names, traces, output, shares }, at, titled) => {
    const values = names.map((name) => `${htmlName(name)} = ${number(traces[name][at])}`);
    values.push(`∂${htmlName(`${output}_T`)}/∂${htmlName("x_t")} = ${number(shares[at])}`);
    return `${titled ? `<br><b>${escape(titleOf(gate))}</b>: ` : ""}${values.join(", ")}`;
  };

  views.time = (definition, settings, width) => {
    const at = settings.step, left = 68, titled = definition.gates.length > 1;
    const runs = definition.gates.map((gate) => runOf(definition, settings, gate));
    const scales = scalesOf(runs), worst = largest(runs.flatMap((run) => run.shares));
    const first = sequenceStrip({ width, left, x: settings.x, at, limit: LIMIT });
    let top = 64, body = first.body;
    runs.forEach((run) => {
      const drawn = block(run, { width, left, top, at, scales, worst, titled });
      body += drawn.body;
      top += drawn.height;
    });
    body += steps({ width, left, top: top + 8, count: settings.x.length });
    const alt = definition.alt ?? `A sequence x of ${settings.x.length} steps, and at every step ${definition.show.map(plainName).join(", ")} of ${definition.gates.map(titleOf).join(" and ")}`;
    return {
      svg: svg(width, top + 14, alt, body),
      reading: `At step ${at}, ${htmlName("x_t")} = ${number(settings.x[at])}${titled ? "" : ": "}${runs.map((run) => said(run, at, titled)).join("")}.`,
      area: first.area,
    };
  };
})();
