// A view: values of gates over one input, the others held; the slope by the derived backward pass.
(() => {
  const {
    views, range, svg, escape, number, named, svgName, htmlName, plainName, titleOf, elements, evaluate, slope,
    frame, curves, cursor, marked, band, around, legend, lineSample, COLOURS, GATE_COLOURS, DASHES, RED, NARROW,
  } = GatesViews;
  const POINTS = 161;

  /** What is shown along what: a reader's choice before the page's. */
  const asked = (definition, settings) => {
    const chosen = settings.values["@show"];
    return { along: settings.values["@along"] ?? definition.along, show: chosen ? [chosen] : definition.show };
  };
  /** The axis of an input: that of the definition, or what its slider reaches. */
  const axisOf = (definition, along) => {
    const slider = definition.sliders.find(({ name }) => name === along);
    return along === definition.along && definition.axis ? definition.axis : { low: slider.low, high: slider.high };
  };
  /** A value, and of a vector each element, as {name, value: (values) → number}. */
  const picked = (definition, gate, name, values) => {
    const read = (given) => evaluate(definition, gate, given)[name];
    const count = read(values).length;
    if (!count) return [{ name, value: read }];
    return elements(name, count).map((element, k) => ({ name: element, value: (given) => read(given)[k] }));
  };
  const colourOf = (name, k) => GATE_COLOURS[name] ?? COLOURS[k % COLOURS.length];

  /** All curves of one gate: {html, label, title, colour, dash, value}. */
  const seriesOf = (definition, gate, k, { show, values, several }) => {
    const found = show.filter((name) => name in evaluate(definition, gate, values));
    return found.flatMap((name) => picked(definition, gate, name, values)).map(({ name, value }, place) => ({
      name, value, title: several ? titleOf(gate) : "",
      html: named(definition, name).html, words: named(definition, name).words,
      label: named(definition, name).words ? "" : svgName(name),
      colour: several ? COLOURS[k] : colourOf(name, place),
      dash: several ? k % DASHES.length : place % DASHES.length,
    }));
  };
  const slopeOf = (definition, gate, name, along) => ({
    name: `∂${name}`, title: "", colour: RED, dash: 1,
    html: `∂${htmlName(name)}/∂${htmlName(along)}`,
    label: `∂${svgName(name)}/∂${svgName(along)}`,
    value: (values) => slope(definition, gate, values, name, along),
  });
  const allSeries = (definition, settings, { along, show }) => {
    const { gates } = definition, { values } = settings, several = gates.length > 1;
    const series = gates.flatMap((gate, k) => seriesOf(definition, gate, k, { show, values, several }));
    if (definition.slope) series.push(slopeOf(definition, gates[0], show[0], along));
    return series;
  };

  /** Every series with its points and where it stands now. */
  const sampled = (series, { along, axis, values }) => {
    const places = range(POINTS).map((k) => axis.low + ((axis.high - axis.low) * k) / (POINTS - 1));
    return series.map((one) => ({
      ...one, now: one.value(values),
      points: places.map((at) => [at, one.value({ ...values, [along]: at })]),
    }));
  };
  const rise = (definition, series) => {
    if (definition.range) return definition.range;
    return around(series.flatMap(({ points }) => points.map(([, value]) => value)));
  };
  /** Words of the axis of values: of a single series with words, or of a page's own. */
  const sideLabel = (definition, series) => {
    const words = series.map(({ name }) => named(definition, name));
    return words.every((one) => one.words) ? words[0].svg : "";
  };
  const headOf = (series, width) => {
    const titles = series.filter(({ title }) => title);
    if (!titles.length) return { height: 0, body: "" };
    return legend(titles.map(({ title, colour, dash }) => ({ words: title, sample: lineSample(colour, DASHES[dash]) })), width, 8);
  };
  const isNow = ({ html, words }, value) => (words ? `${html} ${number(value)}` : `${html} = ${number(value)}`);
  /** What stands under the picture: the page's own list of values, or those of the curves. */
  const readingOf = (definition, settings, along, series) => {
    const values = definition.read && evaluate(definition, definition.gates[0], settings.values);
    const parts = definition.read
      ? definition.read.map((name) => isNow(named(definition, name), values[name]))
      : series.map(({ html, title, words, now }) => isNow({ html: title ? escape(title) : html, words }, now));
    return `At ${isNow(named(definition, along), settings.values[along])}: ${parts.join(", ")}.`;
  };
  const altOf = (definition, { along, show }, axis) => definition.alt
    ?? `${show.map(plainName).join(" and ")}${definition.slope ? " and its slope" : ""} over ${plainName(along)} from ${number(axis.low)} to ${number(axis.high)}`;

  views.curve = (definition, settings, width) => {
    const question = asked(definition, settings), { along } = question, axis = axisOf(definition, along);
    const series = sampled(allSeries(definition, settings, question), { along, axis, values: settings.values });
    const side = sideLabel(definition, series), several = definition.gates.length > 1;
    const shown = several || side ? series.map((one) => ({ ...one, label: "" })) : series;
    const head = headOf(series, width), height = head.height + (definition.height ?? 232);
    const words = named(definition, along);
    const plot = frame({
      width, height, top: head.height + 10,
      right: several || side ? width - 14 : width - (width < NARROW ? 62 : 76),
      x: { ...axis, label: words.svg },
      y: { ...rise(definition, series), log: definition.log, label: side },
    });
    const behind = (definition.bands ?? []).map((one) => band(plot, one)).join("");
    const dots = cursor(plot, settings.values[along], series.map(({ now, colour }) => [now, colour]));
    const marks = marked(plot, (definition.marks ?? []).map((at) => [at, series[0].value({ ...settings.values, [along]: at })]));
    const body = head.body + behind + plot.body + curves(plot, shown) + marks + dots;
    return {
      svg: svg(width, height, altOf(definition, question, axis), body),
      reading: readingOf(definition, settings, along, series),
    };
  };
})();
