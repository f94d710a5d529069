// A view: one value of several cells over the same sequence, as curves in one frame.
(() => {
  const {
    views, range, svg, number, svgName, htmlName, plainName, escape, named, titleOf, unrolled, sequenceStrip,
    stepOf, SCALE, frame, curves, cursor, around, legend, lineSample, LIMIT, COLOURS, DASHES, NARROW,
  } = GatesViews;
  const STRIP = 58, PLOT = 178;

  const seriesOf = (definition, settings) => definition.gates.map((gate, k) => {
    const values = unrolled(gate, settings).map(({ all }) => all[definition.show[0]]);
    const points = values.map((value, t) => [t, value]);
    return { gate, values, points, colour: COLOURS[k], dash: k % DASHES.length };
  });
  const headOf = (series, width) => legend(
    series.map(({ gate, colour, dash }) => ({ words: titleOf(gate), sample: lineSample(colour, DASHES[dash]) })), width, 8);
  const readingOf = (name, settings, series) => {
    const at = settings.step;
    const values = series.map(({ gate, values: all }) => `${escape(titleOf(gate))} ${number(all[at])}`);
    return `At step ${at}, with ${htmlName("x_t")} = ${number(settings.x[at])}, ${name} is: ${values.join("; ")}.`;
  };

  views.traces = (definition, settings, width) => {
    const [name] = definition.show, left = width < NARROW ? 46 : 54, count = settings.x.length;
    const series = seriesOf(definition, settings), head = headOf(series, width);
    const step = stepOf(width, left, count), top = head.height + 4;
    const first = sequenceStrip({ width, left, top, x: settings.x, at: settings.step, limit: LIMIT });
    const plot = frame({
      width, height: top + STRIP + PLOT, top: top + STRIP, bottom: top + STRIP + PLOT - 40,
      left: left + step / 2, right: width - SCALE - step / 2,
      x: { low: 0, high: count - 1, label: "step" },
      y: { ...(definition.range ?? around(series.flatMap(({ values }) => values))), label: "" },
    });
    const dots = cursor(plot, settings.step, series.map(({ values, colour }) => [values[settings.step], colour]));
    const side = `<g transform="translate(${width - SCALE + 8} ${(plot.top + plot.bottom) / 2})">${GatesViews.text(0, 4, named(definition, name).svg, { size: 14 })}</g>`;
    const alt = definition.alt ?? `A sequence x of ${count} steps, and ${plainName(name)} of ${series.map(({ gate }) => titleOf(gate)).join(", ")}`;
    return {
      svg: svg(width, top + STRIP + PLOT, alt, head.body + first.body + plot.body + curves(plot, series) + dots + side),
      reading: readingOf(named(definition, name).html, settings, series),
      area: first.area,
    };
  };
})();
