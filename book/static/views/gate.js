// Running a gate: its values, its derived backward pass, a cell over time, and who is to blame.
// A gate is what gatelib.workshop.brief says of a Spec.
(() => {
  const { range } = GatesViews;
  const made = new Map();

  /** The last function of a source; those above it are its helpers. Node alone makes it here. */
  const fromSource = (source) => {
    const name = [...source.matchAll(/^function ([^(]+)/gm)].at(-1)[1];
    if (!made.has(source)) made.set(source, new Function(`"use strict";\n${source}return ${name};`)());
    return made.get(source);
  };
  /** Generated code as a function: given as such, or known to the page by its text. */
  const compile = (code) => {
    if (typeof code === "function") return code;
    return globalThis.GatesCode ? GatesCode.get(code) : fromSource(code);
  };

  /** Every value of a gate by name, from its inputs by name. */
  const forward = (gate, given) => {
    const found = compile(gate.run.forward)(...gate.inputs.map((name) => given[name]));
    return { ...given, ...Object.fromEntries(gate.values.map((name, k) => [name, found[k]])) };
  };
  /** ∂(Σ seed·output)/∂input by name. `seeds` by output; one that is left out counts as 0. */
  const backward = (gate, given, seeds) => {
    const named = Object.fromEntries(Object.entries(gate.run.seeds).map(([output, seed]) => [seed, seeds[output] ?? 0]));
    const taken = gate.run.takes.map((name) => (name in named ? named[name] : given[name]));
    const found = compile(gate.run.backward)(...taken);
    return Object.fromEntries(gate.inputs.map((name, k) => [name, found[k]]));
  };

  // ---- gates over features ----------------------------------------------------------------------

  /** The names of a vector's elements: a_1, a_2, … */
  const elements = (name, count) => range(count).map((k) => `${name}_${k + 1}`);
  /** A gate's inputs from settings: `definition.vectors` says which are vectors, of how many elements. */
  const inputsOf = (definition, gate, values) => {
    const one = (name) => {
      const count = definition.vectors?.[name];
      return count ? elements(name, count).map((element) => values[element] ?? 1) : values[name] ?? 1;
    };
    return Object.fromEntries(gate.inputs.map((name) => [name, one(name)]));
  };
  /** Every value of a gate as settings have it; an elementwise gate with vectors runs place by place. */
  const evaluate = (definition, gate, values) => {
    const given = inputsOf(definition, gate, values);
    const count = Math.max(0, ...Object.values(given).map((value) => value.length ?? 0));
    if (!gate.elementwise || !count) return forward(gate, given);
    const at = (k) => Object.fromEntries(Object.entries(given).map(([name, value]) => [name, value.length ? value[k] : value]));
    const places = range(count).map((k) => forward(gate, at(k)));
    return Object.fromEntries(Object.keys(places[0]).map((name) => [name, places.map((place) => place[name])]));
  };
  /** The slope of `output` with respect to the input `along`; of vectors, in the place of `along`. */
  const slope = (definition, gate, values, output, along) => {
    const found = /^(.+)_(\d+)$/.exec(along), count = definition.vectors?.[found?.[1]];
    const given = inputsOf(definition, gate, values);
    if (!count) return backward(gate, given, { [output]: 1 })[along];
    const place = Number(found[2]) - 1;
    const seed = range(count).map((k) => (k === place ? 1 : 0));
    if (!gate.elementwise) return backward(gate, given, { [output]: seed })[found[1]][place];
    const here = Object.fromEntries(Object.entries(given).map(([name, value]) => [name, value.length ? value[place] : value]));
    return backward(gate, here, { [output]: 1 })[found[1]];
  };

  // ---- over time --------------------------------------------------------------------------------

  /** An input at one step: its bias, plus weights times x and the value `back` one step before. */
  const wired = (settings, name, now, before) => {
    const wire = settings.wires[name] ?? {};
    return (settings.values[name] ?? 0) + (wire.in ?? 0) * now + (wire.back ?? 0) * before;
  };
  /** Runs a cell over the sequence of the settings; returns {given, all} of every step. */
  const unrolled = (gate, settings) => {
    const carried = Object.entries(gate.carries);
    let state = Object.fromEntries(carried.map(([previous]) => [previous, settings.values[previous] ?? 0]));
    let before = state[carried.find(([, name]) => name === settings.back)?.[0]] ?? 0;
    return settings.x.map((now) => {
      const input = (name) => (name in state ? state[name] : wired(settings, name, now, before));
      const given = Object.fromEntries(gate.inputs.map((name) => [name, input(name)]));
      const all = forward(gate, given);
      state = Object.fromEntries(carried.map(([previous, name]) => [previous, all[name]]));
      before = all[settings.back] ?? 0;
      return { given, all };
    });
  };
  /** What one end of the wires (`in` or `back`) hands on of the inputs' adjoints. */
  const handedOn = (gate, wires, adjoints, end) => {
    const free = gate.inputs.filter((name) => !(name in gate.carries));
    return free.reduce((total, name) => total + (wires[name]?.[end] ? wires[name][end] * adjoints[name] : 0), 0);
  };
  /** ∂(last `output`)/∂x at every step: the backward pass through time. */
  const blame = (gate, settings, steps, output) => {
    let seeds = { [output]: 1 };
    const shares = [...steps].reverse().map(({ given }) => {
      const adjoints = backward(gate, given, seeds);
      seeds = {};
      const add = (name, value) => { seeds[name] = (seeds[name] ?? 0) + value; };
      Object.entries(gate.carries).forEach(([previous, name]) => add(name, adjoints[previous]));
      if (settings.back) add(settings.back, handedOn(gate, settings.wires, adjoints, "back"));
      return handedOn(gate, settings.wires, adjoints, "in");
    });
    return shares.reverse();
  };

  Object.assign(GatesViews, { compile, forward, backward, elements, inputsOf, evaluate, slope, unrolled, blame });
})();
