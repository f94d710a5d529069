// A view: gates over several features beside each other: who opens when one preactivation moves?
(() => {
  const {
    views, range, sum, svg, number, svgName, plainName, escape, titleOf, elements, evaluate, bars, barLook,
    around, legend, boxSample, COLOURS,
  } = GatesViews;
  const PLOT = 200;

  const shownIn = (settings, definition) => settings.values["@show"] ?? definition.show[0];
  /** Which vector names the groups: the first of the definition. */
  const featuresOf = (definition) => elements(...Object.entries(definition.vectors)[0]);
  const valuesOf = (definition, gate, settings, name, count) => {
    const found = evaluate(definition, gate, settings.values)[name];
    return Array.isArray(found) ? found : range(count).map(() => found);
  };
  const rise = (definition, all) => {
    if (definition.range) return definition.range;
    return all.every((value) => value >= 0 && value <= 1) ? { low: 0, high: 1 } : around(all);
  };
  const readingOf = (definition, found) => {
    const short = (value) => number(Number(value.toFixed(2)));
    const one = (gate, k) => `${escape(titleOf(gate))}: ${found[k].map(short).join(", ")}, together ${short(sum(found[k]))}`;
    return `${definition.gates.map(one).join("; ")}.`;
  };

  views.bars = (definition, settings, width) => {
    const name = shownIn(settings, definition), features = featuresOf(definition);
    const found = definition.gates.map((gate) => valuesOf(definition, gate, settings, name, features.length));
    const samples = definition.gates.map((gate, k) => ({ words: titleOf(gate), sample: boxSample(COLOURS[k], barLook(COLOURS[k], k)) }));
    const head = legend(samples, width, 40);
    const groups = features.map((feature, k) => ({
      label: svgName(feature),
      bars: found.map((values, g) => ({ value: values[k], colour: COLOURS[g] })),
    }));
    const height = head.height + (definition.height ?? PLOT);
    const body = bars({ width, height, groups, y: rise(definition, found.flat()), top: head.height + 18 });
    const alt = definition.alt ?? `Bars of ${plainName(name)} for ${features.length} features`;
    return { svg: svg(width, height, alt, head.body + body), reading: readingOf(definition, found) };
  };
})();
