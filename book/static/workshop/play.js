// What a gate is played with: definitions for the two explorers of the page. No DOM, so that node draws them too.
(() => {
  const PLACES = [1, 2, 3, 4], SPREAD = [1, 0, -1, -2].map((steps) => steps / 8); // four features, unequal; of a range
  const WIDE = { low: -6, high: 6, step: 0.1 }, STATE = { low: -3, high: 3, step: 0.1 };
  const CONTENT = /^(a_)?[gnhc]$|^[axG]$/; // the usual names of what is written, where a sequence enters

  const isCarry = (sheet, name) => name in sheet.carries;
  const free = (sheet) => sheet.inputs.filter((name) => !isCarry(sheet, name));
  /** Outputs first, then the values on the way, the last of them first. */
  const shown = (sheet) => [...sheet.outputs.filter((name) => sheet.values.includes(name)), ...sheet.values.filter((name) => !sheet.outputs.includes(name)).reverse()];

  const slider = (sheet, name, value) => {
    const range = { ...(isCarry(sheet, name) ? STATE : WIDE), ...sheet.sliders?.[name] };
    return { ...range, name, value: Math.min(range.high, Math.max(range.low, value)) };
  };
  const isSwitch = ({ low, high, step }) => low === 0 && high === 1 && step === 1;
  /** One feature of several: unequal to the others; of a switch the last is off. */
  const feature = (one, place, k) => {
    const value = isSwitch(one) ? Number(place < PLACES.length) : one.value + SPREAD[k] * (one.high - one.low);
    const rounded = one.low + Math.round((value - one.low) / one.step) * one.step;
    return { ...one, name: `${one.name}_${place}`, value: Number(Math.min(one.high, Math.max(one.low, rounded)).toFixed(6)) };
  };
  /** One slider an input, or one a feature where the gate looks across them. */
  const sliders = (sheet, valueOf) => sheet.inputs.flatMap((name) => {
    const one = slider(sheet, name, valueOf(name));
    return sheet.elementwise ? [one] : PLACES.map((place, k) => feature(one, place, k));
  });
  /** Where an input starts: where its own range says, else at a number for all. */
  const startOf = (sheet, name, otherwise) => sheet.sliders?.[name]?.value ?? otherwise;

  /** Outputs and a slope over any input: the first input sweeps, the others hold. */
  const knobs = (sheet) => {
    const first = free(sheet)[0] ?? sheet.inputs[0];
    const made = sliders(sheet, (name) => (isCarry(sheet, name) ? 0.5 : startOf(sheet, name, name === first ? 0 : 1)));
    const along = made.map((one) => one.name), show = shown(sheet);
    const { low, high } = made[0];
    return {
      view: "curve", gates: [sheet], along: along[0], axis: { low, high }, show: [show[0]], slope: true, sliders: made,
      ...(sheet.elementwise ? {} : { vectors: Object.fromEntries(sheet.inputs.map((name) => [name, PLACES.length])) }),
      choices: [{ name: "@along", title: "over", options: along, value: along[0] }, { name: "@show", title: "show", options: show, value: show[0] }],
    };
  };

  /** Whether the gate remembers: by a carry, or by the product with its own output that a layer brings. */
  const runsOverTime = (sheet) => sheet.elementwise && (Object.keys(sheet.carries).length > 0 || sheet.layer.kind === "recurrent");
  /** The bias of each preactivation that opens the way from the old state to the new one. */
  const remembering = (sheet, backward) => {
    const at = Object.fromEntries(sheet.inputs.map((name) => [name, startOf(sheet, name, 0)]));
    const kept = (given) => Object.entries(sheet.carries).reduce((sum, [old, now]) => sum + backward(sheet, given, { [now]: 1 })[old], 0);
    return (name) => {
      if (isCarry(sheet, name) || !/^a_/.test(name) || CONTENT.test(name)) return at[name];
      const [shut, open] = [-3, 3].map((value) => kept({ ...at, [name]: value }));
      return Math.abs(open - shut) < 0.3 ? at[name] : open > shut ? 3 : -3;
    };
  };
  /** The cell over a sequence. An input is its slider, plus a weight times x, plus a weight times the old output. */
  const overTime = (sheet, backward) => {
    const inputs = free(sheet), content = inputs.filter((name) => CONTENT.test(name)), enter = content.length ? content : inputs.slice(0, 1);
    const loop = Object.keys(sheet.carries).length ? 0 : 0.9; // without a carry nothing else remembers
    const made = sliders(sheet, remembering(sheet, backward));
    return {
      view: "time", gates: [sheet], show: sheet.values, sequence: "two pulses", back: sheet.outputs[0], wired: true, sliders: made,
      wires: Object.fromEntries(inputs.map((name) => [name, { in: enter.includes(name) ? 2 : 0, back: enter.includes(name) ? loop : 0 }])),
    };
  };

  globalThis.GatesWorkshop = Object.assign(globalThis.GatesWorkshop ?? {}, { knobs, overTime, runsOverTime });
})();
