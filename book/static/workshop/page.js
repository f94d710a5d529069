// The workshop's page: a gate's text becomes formulas, a backward pass, a circuit, code, and something to play with.
(() => {
  const here = document.currentScript.src;
  const { tidy, addressOf, gateOf, Editor, element, button, show, showCircuit, waiting, outdated, knobs, overTime, runsOverTime } = GatesWorkshop;
  const box = document.querySelector("#workshop-editor");
  if (!box) return;
  const bar = box.querySelector(".workshop-bar"), catalogue = GatesCatalogue;
  const known = new Map(catalogue.groups.flatMap((group) => group.gates.map((gate) => [gate.text, { ...gate, group }])));

  const BREATH = 250; // milliseconds between a gate's answer and its drawing
  let turn = 0; // how often the gate was read: a slow answer to an old question is dropped
  let start = box.querySelector("textarea").value, mine = null; // what Reset brings back; what the reader typed
  const figures = { knobs: null, time: null };

  // ---- where a gate comes from --------------------------------------------------------------

  const scripts = new Map();
  const script = (name) => {
    if (!scripts.has(name)) {
      scripts.set(name, new Promise((done, failed) => {
        const tag = element("script", { src: new URL(name, here), onload: done });
        tag.onerror = () => { scripts.delete(name); failed(new Error(`${name} could not be loaded`)); };
        document.head.append(tag);
      }));
    }
    return scripts.get(name);
  };
  /** A gate of the book: computed when the book was built. */
  const stored = async (gate) => {
    if (!catalogue.sheets[gate.text]) await script(`../catalogue/${gate.group.family}.js`);
    const { circuit, ...sheet } = catalogue.sheets[gate.text];
    return { sheet: { ...sheet, sliders: gate.sliders }, circuit };
  };
  const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
  GatesPython.onprogress = ({ loaded, total, stage }) => {
    if (stage === "ready" || known.has(tidy(area.text))) return;
    const meter = total ? [element("progress", { value: loaded, max: total }), ` of ${megabytes(total)} MB, once`] : [];
    area.say("busy", stage === "files" ? "Fetching Python " : "Starting Python in your browser …", ...(stage === "files" ? meter : []));
  };

  // ---- showing it ---------------------------------------------------------------------------

  const count = (number, one) => `${number} ${one}${number === 1 ? "" : "s"}`;
  const summary = (sheet) => `${count(sheet.values.length, "equation")}, ${count(sheet.inputs.length, "input")}, ${count(sheet.outputs.length, "output")}; ` +
    `${sheet.elementwise ? "each feature is on its own" : "it looks across the features"}. `;
  const about = (gate) => {
    if (!gate) return [];
    const { chapter } = gate.group;
    return [gate.about, ...(chapter ? [" ", element("a", { href: new URL(chapter.href, new URL("../../", here)), textContent: chapter.title }), "."] : [])];
  };
  const note = (figure, text) => {
    const place = figure.parentElement.querySelector(".workshop-note");
    place.textContent = text;
    place.hidden = !text;
    figure.hidden = Boolean(text);
  };
  const play = (name, definition, why) => {
    const figure = document.querySelector(`.workshop-${name} figure`), before = figures[name], inputs = definition?.sliders.map((one) => one.name).join();
    note(figure, definition ? "" : why);
    before?.mounted.destroy();
    figures[name] = null;
    if (!definition) return;
    const mounted = GatesExplorer.mount(figure, definition, before?.inputs === inputs ? before.mounted.settings : undefined);
    figures[name] = { mounted, inputs };
  };
  const present = async (sheet, mineIs) => {
    await GatesCode.load([sheet.run.forward, sheet.run.backward]);
    if (mineIs !== turn) return;
    outdated(false);
    show(sheet);
    play("knobs", knobs(sheet));
    play("time", runsOverTime(sheet) ? overTime(sheet, GatesViews.backward) : null, sheet.elementwise
      ? "This gate keeps nothing from one step to the next: it has no input NAME_prev of a value NAME, and no layer gives it its own output back."
      : "This gate looks across the features, so one number a step is too little to run it over time.");
  };

  /** Show the gate in the editor: one of the book at once, any other through Python. */
  const update = async () => {
    const mineIs = ++turn, text = area.text, gate = known.get(tidy(text));
    GatesWorkshop.idle = false;
    select.value = gate?.text ?? "";
    if (!gate) mine = text;
    own.hidden = mine === null;
    try {
      await (gate ? fromBook(gate, mineIs) : fromPython(text, mineIs));
    } catch (error) {
      if (mineIs === turn) { outdated(true); area.say("wrong", error.message); }
    }
    if (mineIs === turn) GatesWorkshop.idle = true; // for the tests: all of this gate is shown
  };
  const fromBook = async (gate, mineIs) => {
    const { sheet, circuit } = await stored(gate);
    if (mineIs !== turn) return;
    start = gate.text;
    area.fine(summary(sheet), ...about(gate));
    await present(sheet, mineIs);
    if (mineIs === turn) showCircuit(circuit);
  };
  const fromPython = async (text, mineIs) => {
    const soon = setTimeout(() => area.say("busy", "Working …"), 300);
    const sheet = await GatesPython.ask("answer", text).finally(() => clearTimeout(soon));
    if (mineIs !== turn) return;
    if (sheet.error) { outdated(true); return area.refuse(sheet.error); }
    area.fine(summary(sheet));
    waiting(true);
    await present(sheet, mineIs);
    await new Promise((done) => setTimeout(done, BREATH)); // a reader who types on is answered first
    if (mineIs !== turn) return;
    const circuit = await GatesPython.ask("drawing", text).catch((error) => ({ error }));
    if (mineIs === turn) showCircuit(circuit);
  };

  // ---- what the reader does -----------------------------------------------------------------

  const area = new Editor(box, {
    changed: () => update(),
    typed: () => { turn++; GatesWorkshop.idle = false; },
    started: () => GatesPython.start().catch(() => {}), // the first question says what went wrong
  });
  const choose = (text) => { area.set(text); update(); };

  const own = element("option", { value: "", textContent: "your own", hidden: true });
  const select = element("select", { id: "workshop-gate" }, own, ...catalogue.groups.map(({ title, gates }) => {
    const group = element("optgroup", { label: title });
    group.append(...gates.map((gate) => element("option", { value: gate.text, textContent: gate.title })));
    return group;
  }));
  select.addEventListener("change", () => choose(select.value || mine));
  const copy = button("Copy link", async () => {
    const address = addressOf(area.text, location.href);
    if (address) history.replaceState(null, "", address);
    const copied = address && await navigator.clipboard?.writeText(address).then(() => true, () => false);
    copy.textContent = !address ? "Too long for a link" : copied ? "Copied" : "It is in the address bar";
    setTimeout(() => { copy.textContent = "Copy link"; }, 2000);
  });
  const reset = button("Reset", () => {
    for (const figure of Object.values(figures)) if (figure) figure.inputs = ""; // so that nothing is kept
    choose(start);
  });
  bar.append(element("label", { htmlFor: select.id, textContent: "Start from" }), select, copy, reset);
  bar.hidden = false;

  const fromAddress = () => {
    const text = gateOf(location.hash);
    if (text === null) return false;
    start = text;
    choose(text);
    return true;
  };
  addEventListener("hashchange", fromAddress);
  if (!fromAddress()) update();
})();
