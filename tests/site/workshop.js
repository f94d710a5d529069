// What the tests of the workshop compute in its page, where the gates' code runs.
globalThis.Checks = (() => {
  const gates = () => GatesCatalogue.groups.flatMap((group) => group.gates);
  const whole = ({ text, sliders }) => ({ ...GatesCatalogue.sheets[text], sliders });
  const script = (name) => new Promise((done) => {
    const tag = document.createElement("script");
    tag.onload = done;
    tag.src = new URL(`../_static/catalogue/${name}.js`, document.baseURI);
    document.head.append(tag);
  });

  /** Load every sheet, and make every function. */
  const load = async () => {
    for (const { family } of GatesCatalogue.groups) await script(family);
    await GatesCode.load(gates().map(whole).flatMap(({ run }) => [run.forward, run.backward]));
    return gates().length;
  };
  const definitions = (sheet) => {
    const { knobs, overTime, runsOverTime } = GatesWorkshop;
    return [knobs(sheet), ...(runsOverTime(sheet) ? [overTime(sheet, GatesViews.backward)] : [])];
  };
  /** What is wrong in the first pictures and the formulas of all gates. */
  const drawn = () => gates().flatMap((gate) => {
    const sheet = whole(gate), place = document.createElement("div"), { views, initial } = GatesViews;
    katex.render(`${sheet.latex} ${sheet.backward}`, place, { displayMode: true });
    const all = definitions(sheet).map((one) => views[one.view](one, initial(one), 700));
    const odd = all.filter(({ svg, reading }) => /NaN|Infinity/.test(svg) || /undefined|∞/.test(reading));
    return [...odd.map(({ reading }) => [gate.title, reading]), ...(sheet.circuit.svg.includes("<svg") ? [] : [[gate.title, "circuit"]])];
  });

  // ---- slopes ---------------------------------------------------------------------------------

  const far = (found, wanted) => !(Math.abs(found - wanted) <= 1e-9 * Math.max(1, Math.abs(wanted)));
  /** A derivative by central differences, twice extrapolated. */
  const difference = (f) => {
    const plain = (h) => (f(h) - f(-h)) / (2 * h), once = (h) => (4 * plain(h / 2) - plain(h)) / 3;
    return (16 * once(5e-4) - once(1e-3)) / 15;
  };
  const generator = (seed) => () => (seed = (seed * 16807) % 2147483647) / 2147483647;
  const inside = (random, { low, high } = { low: 0, high: 1 }) => low + (high - low) * (0.3 + 0.4 * random());
  const WEIGHTS = [1, -0.5, 0.25];
  /** Features that lie apart: where they are nearly equal a norm bends too much for differences. */
  const features = (random, range) => WEIGHTS.map((_, k) => inside(random, range) + (range ? 0 : 0.7 * k));

  /** The derived backward pass of one gate against differences, for each output and each input. */
  const slopesOf = (gate, random) => {
    const sheet = whole(gate), wide = !sheet.elementwise, wrong = [], { forward, backward } = GatesViews;
    const value = (name) => (wide ? features : inside)(random, gate.sliders[name]);
    const at = Object.fromEntries(sheet.inputs.map((name) => [name, value(name)]));
    const moved = (name, k, d) => ({ ...at, [name]: wide ? at[name].map((v, j) => v + (j === k) * d) : at[name] + d });
    for (const output of sheet.outputs) {
      const bars = backward(sheet, at, { [output]: wide ? WEIGHTS : 1 }); // one number stands for all features
      const total = ({ [output]: y }) => (wide ? WEIGHTS.reduce((sum, weight, k) => sum + weight * (y[k] ?? y), 0) : y);
      for (const name of sheet.inputs) for (const k of wide ? WEIGHTS.keys() : [0]) {
        const found = bars[name][k] ?? bars[name], wanted = difference((d) => total(forward(sheet, moved(name, k, d))));
        if (far(found, wanted)) wrong.push([gate.title, output, name, found, wanted]);
      }
    }
    return wrong;
  };
  /** The same through time: what the last output owes to each step of a random sequence. */
  const timeSlopesOf = (gate, random) => {
    const sheet = whole(gate), { initial, unrolled, blame } = GatesViews;
    if (!GatesWorkshop.runsOverTime(sheet)) return [];
    const [output] = sheet.outputs, settings = initial(GatesWorkshop.overTime(sheet, GatesViews.backward));
    settings.x = Array.from({ length: 12 }, () => 2 * random() - 1);
    for (const [name, wire] of Object.entries(settings.wires)) if (/^a_/.test(name)) wire.back ||= 0.3;
    const last = (t, d) => unrolled(sheet, { ...settings, x: settings.x.map((v, k) => v + (k === t) * d) }).at(-1).all[output];
    const shares = blame(sheet, settings, unrolled(sheet, settings), output);
    return shares.map((share, t) => [gate.title, t, share, difference((d) => last(t, d))]).filter(([, , share, wanted]) => far(share, wanted));
  };
  const slopes = (seed) => {
    const random = generator(seed);
    return gates().flatMap((gate) => [...slopesOf(gate, random), ...timeSlopesOf(gate, random)]);
  };

  // ---- Python -----------------------------------------------------------------------------------

  /** Gates whose stored answers differ from those of Python in the page: the shortest of each family. */
  const different = async () => {
    const found = [];
    for (const group of GatesCatalogue.groups) {
      const { text } = group.gates.reduce((a, b) => (b.text.length < a.text.length ? b : a));
      const { circuit, ...sheet } = GatesCatalogue.sheets[text];
      const now = [await GatesPython.ask("answer", text), await GatesPython.ask("drawing", text)];
      if (JSON.stringify(now) !== JSON.stringify([sheet, circuit])) found.push(text);
    }
    return found;
  };
  /** Let a drawing have `patience` milliseconds, as if its search had no end; undone by 0. */
  const hurry = (patience) => {
    const ask = (GatesPython.unhurried ??= GatesPython.ask);
    GatesPython.ask = patience ? (call, text) => ask.call(GatesPython, call, text, call === "drawing" ? patience : 60_000) : ask;
  };
  return { load, drawn, slopes, different, hurry };
})();
