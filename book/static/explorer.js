// Makes an explorer move: controls around a drawing of GatesViews. Without it a figure shows what the
// build drew. GatesExplorer.mount(figure, definition, settings) → {settings, redraw, destroy}.
(() => {
  const { views, initial, sequence, SEQUENCES, LIMIT, named, htmlName, plainName, number, clamp } = GatesViews;
  const NARROWEST = 250, WIDEST = 760; // px of a drawing
  const QUIET = 900; // ms after the last move until a screen reader is told
  const OWN = "your own";
  const mounted = new WeakMap();
  const definitions = new Map(); // of the explorers of a chapter, by name
  let controls = 0;

  const element = (tag, attributes = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), attributes);
    made.append(...children);
    return made;
  };
  const html = (tag, inner, attributes = {}) => element(tag, { ...attributes, innerHTML: inner });
  const nextId = () => `explorer-control-${++controls}`;

  // ---- controls -------------------------------------------------------------------------------

  const stepOf = ({ step, low, high }) => step ?? (high - low > 20 ? 1 : high - low < 0.5 ? 0.01 : 0.1);

  /** A labelled slider with its value: {row, show}. `label`: {html, plain}. */
  const slider = (range, label, value, changed) => {
    const id = nextId();
    const input = element("input", { type: "range", id, min: range.low, max: range.high, step: stepOf(range) });
    const shown = element("output", { htmlFor: id });
    input.setAttribute("aria-label", label.plain);
    const show = (now) => {
      input.value = now;
      shown.textContent = number(Number(input.value));
      input.setAttribute("aria-valuetext", shown.textContent);
    };
    input.addEventListener("input", () => { show(input.value); changed(Number(input.value)); });
    show(value);
    const row = element("div", { className: "explorer-row" }, html("label", label.html, { htmlFor: id }), input, shown);
    return { row, show };
  };

  /** A labelled choice: {row, show}. */
  const choice = (title, options, chosen, changed) => {
    const id = nextId(), select = element("select", { id, className: "explorer-select" });
    select.append(...options.map((option) => element("option", { value: option, textContent: option })));
    select.value = chosen;
    select.addEventListener("change", () => changed(select.value));
    const row = element("div", { className: "explorer-choice" }, element("label", { htmlFor: id, textContent: title }), select);
    return { row, show: (now) => { select.value = now; } };
  };

  /** The weight with which an input reads x, or a value one step before. */
  const weight = (words, from, value, changed) => {
    const input = element("input", { type: "number", step: 0.5, min: -20, max: 20, value, className: "explorer-wire" });
    input.setAttribute("aria-label", words);
    input.addEventListener("input", () => changed(clamp(Number(input.value) || 0, -20, 20)));
    return element("span", { className: "explorer-wires" }, "+", input, html("span", `·&thinsp;${from}`));
  };

  // ---- one explorer ---------------------------------------------------------------------------

  const partOf = (parent, kind, tag = "div") => {
    const found = parent.querySelector(`.explorer-${kind}`);
    return found ?? parent.insertBefore(element(tag, { className: `explorer-${kind}` }), parent.querySelector(":scope > figcaption"));
  };

  class Explorer {
    constructor(figure, definition, settings) {
      Object.assign(this, { figure, definition, settings, rows: new Map(), grips: [], due: 0 });
      this.picture = partOf(figure, "picture");
      this.drawing = this.picture.querySelector(".explorer-drawing") ?? this.picture.appendChild(element("div", { className: "explorer-drawing" }));
      this.foot = partOf(figure, "foot");
      this.reading = this.foot.querySelector(".explorer-reading") ?? this.foot.appendChild(element("p", { className: "explorer-reading" }));
      this.controls = partOf(figure, "controls");
      this.pads = this.picture.appendChild(element("div", { className: "explorer-pads" }));
      this.addReset();
      this.build();
      this.draw();
      this.listen();
    }

    /** Stop, and leave the figure as the build made it, but for its last drawing. */
    destroy() {
      this.watch.disconnect();
      this.leave.abort();
      cancelAnimationFrame(this.due);
      clearTimeout(this.telling);
      [this.pads, this.reset, this.said].forEach((part) => part.remove());
      this.controls.replaceChildren();
      this.controls.hidden = true;
    }

    addReset() {
      this.reset = element("button", { type: "button", className: "btn btn-sm explorer-reset", textContent: "Reset" });
      this.said = element("p", { className: "explorer-said" });
      this.said.setAttribute("aria-live", "polite");
      this.foot.append(this.reset, this.said);
    }

    listen() {
      this.leave = new AbortController();
      const { signal } = this.leave;
      this.reset.addEventListener("click", () => this.restart(), { signal });
      for (const kind of ["pointerdown", "pointermove"]) {
        this.drawing.addEventListener(kind, (event) => this.stepTo(event), { signal });
      }
      this.watch = new ResizeObserver(() => { if (this.widthNow() !== this.width) this.redraw(); });
      this.watch.observe(this.picture);
    }

    restart() {
      const start = initial(this.definition);
      Object.keys(this.settings).forEach((key) => delete this.settings[key]);
      Object.assign(this.settings, start);
      this.build();
      this.moved();
    }

    // ---- drawing ------------------------------------------------------------------------------

    widthNow() { return Math.floor(clamp(this.picture.clientWidth, NARROWEST, WIDEST)); }

    draw() {
      this.due = 0;
      this.width = this.widthNow();
      try {
        this.drawn = views[this.definition.view](this.definition, this.settings, this.width);
      } catch (error) {
        this.drawn = { svg: "", reading: `This can't be drawn: ${GatesViews.escape(error.message)}.` };
      }
      this.drawing.innerHTML = this.drawn.svg;
      this.reading.innerHTML = this.drawn.reading;
      this.placePads();
    }
    redraw() { this.due ||= requestAnimationFrame(() => this.draw()); }

    /** After a reader's move: draw, and say it once the moving has ended. */
    moved() {
      this.redraw();
      clearTimeout(this.telling);
      this.telling = setTimeout(() => { this.said.textContent = this.reading.textContent; }, QUIET);
    }

    /** Set sliders and choices by name, as a drag or a preset does. */
    set(values) {
      Object.assign(this.settings.values, values);
      Object.entries(values).forEach(([name, value]) => this.rows.get(name)?.show(value));
      this.moved();
    }

    // ---- controls -----------------------------------------------------------------------------

    build() {
      this.rows.clear();
      this.controls.replaceChildren(...this.choices(), ...this.sliders(), ...this.steps());
      this.controls.hidden = false;
      this.showWanted();
      this.lineUp();
    }
    /** Sliders begin under each other: all labels are as wide as the longest. */
    lineUp() {
      const { controls } = this;
      controls.style.removeProperty("--explorer-label");
      const widths = [...controls.querySelectorAll(".explorer-row > label")].map((label) => label.offsetWidth);
      controls.style.setProperty("--explorer-label", `${Math.max(0, ...widths)}px`);
    }

    choices() {
      const { definition, settings } = this;
      const made = (definition.choices ?? []).map(({ name, title = name, options }) => {
        const one = choice(title, options, settings.values[name], (value) => { settings.values[name] = value; this.showWanted(); this.moved(); });
        this.rows.set(name, one);
        return one.row;
      });
      return definition.presets ? [this.presets(), ...made] : made;
    }

    presets() {
      const { presets } = this.definition, titles = presets.map(({ title }) => title);
      const take = (title) => title !== OWN && this.set(presets.find((preset) => preset.title === title).values);
      this.preset = choice("start from", [...titles, OWN], titles[0], take);
      return this.preset.row;
    }

    sliders() {
      const { definition, settings } = this;
      return (definition.sliders ?? []).map((range) => {
        const label = named(definition, range.name);
        const one = slider(range, label, settings.values[range.name], (value) => { settings.values[range.name] = value; this.preset?.show(OWN); this.moved(); });
        if (definition.wired && settings.wires[range.name]) one.row.append(...this.wires(range.name));
        this.rows.set(range.name, { ...one, when: range.when });
        return one.row;
      });
    }

    wires(name) {
      const { settings, definition: { back } } = this, wire = settings.wires[name];
      const set = (end) => (value) => { wire[end] = value; this.moved(); };
      const x = weight(`weight of x in ${plainName(name)}`, htmlName("x_t"), wire.in ?? 0, set("in"));
      if (!back) return [x];
      return [x, weight(`weight of ${plainName(back)} one step before in ${plainName(name)}`, htmlName(`${back}_prev`), wire.back ?? 0, set("back"))];
    }

    /** A row that belongs to an option of a choice shows only while that is chosen. */
    showWanted() {
      const { values } = this.settings;
      this.rows.forEach(({ row, when }) => {
        row.hidden = when !== undefined && Object.entries(when).some(([name, value]) => values[name] !== value);
      });
    }

    // ---- a sequence, drawn by pointer or set step by step ---------------------------------------

    /** Controls of a sequence, where the view says that it draws one. */
    steps() {
      const { settings } = this;
      if (!this.hasSequence()) return [];
      const kind = choice("sequence", [...Object.keys(SEQUENCES), OWN], settings.sequence, (name) => {
        if (name === OWN) return;
        Object.assign(settings, { sequence: name, x: sequence(name, settings.x.length) });
        this.moveTo(settings.step);
      });
      const at = slider({ low: 0, high: settings.x.length - 1, step: 1 }, { html: "step", plain: "step" }, settings.step, (step) => this.moveTo(step));
      const value = slider({ low: -LIMIT, high: LIMIT, step: 0.1 }, { html: htmlName("x_t"), plain: "x t" }, settings.x[settings.step], (x) => this.write(settings.step, x));
      this.rows.set("@sequence", kind).set("@step", at).set("@x", value);
      return [kind.row, at.row, value.row];
    }
    hasSequence() { return ["time", "traces"].includes(this.definition.view); }

    moveTo(step) {
      const { settings, rows } = this;
      settings.step = step;
      rows.get("@sequence").show(settings.sequence);
      rows.get("@step").show(step);
      rows.get("@x").show(settings.x[step]);
      this.moved();
    }
    write(step, x) {
      Object.assign(this.settings, { sequence: OWN });
      this.settings.x[step] = x;
      this.moveTo(step);
    }

    place(event) {
      const frame = this.drawing.getBoundingClientRect();
      return { x: event.clientX - frame.left, y: event.clientY - frame.top };
    }
    stepAt(x) {
      const { area } = this.drawn, count = this.settings.x.length;
      return clamp(Math.floor(((x - area.left) / area.width) * count), 0, count - 1);
    }
    /** A press or a drag outside the strip moves the step. */
    stepTo(event) {
      const { area } = this.drawn;
      if (!area || !(event.buttons & 1)) return;
      const { x } = this.place(event);
      if (x >= area.left && x <= area.left + area.width) this.moveTo(this.stepAt(x));
    }
    /** A drag in the strip writes every step that it passed. */
    paint(event, begins) {
      if (!(event.buttons & 1)) return;
      const { area } = this.drawn, { x, y } = this.place(event), to = this.stepAt(x);
      const value = Math.round(clamp(1 - (2 * (y - area.top)) / area.height, -1, 1) * area.limit * 10) / 10;
      const from = begins ? to : this.painted ?? to, way = Math.sign(to - from);
      for (let step = from; step !== to; step += way) this.settings.x[step] = value;
      this.painted = to;
      this.write(to, value);
      event.preventDefault();
    }

    // ---- what a pointer may hold ------------------------------------------------------------------

    placePads() {
      const { area, handles = [] } = this.drawn;
      const left = this.drawing.offsetLeft, top = this.drawing.offsetTop;
      const put = (pad, box) => Object.assign(pad.style, Object.fromEntries(Object.entries(box).map(([key, value]) => [key, `${value}px`])));
      if (area) put(this.pad ??= this.addPad(), { left: left + area.left, top: top + area.top, width: area.width, height: area.height });
      handles.forEach(({ x, y }, k) => put(this.grips[k] ??= this.addGrip(k), { left: left + x - 22, top: top + y - 22, width: 44, height: 44 }));
    }
    addPad() {
      const pad = this.pads.appendChild(element("div", { className: "explorer-pad" }));
      pad.addEventListener("pointerdown", (event) => { pad.setPointerCapture(event.pointerId); this.paint(event, true); });
      pad.addEventListener("pointermove", (event) => this.paint(event, false));
      return pad;
    }
    addGrip(k) {
      const grip = this.pads.appendChild(element("div", { className: "explorer-grip" }));
      grip.addEventListener("pointerdown", (event) => { grip.setPointerCapture(event.pointerId); event.preventDefault(); });
      grip.addEventListener("pointermove", (event) => {
        if (!(event.buttons & 1)) return;
        const { x, y } = this.place(event);
        this.preset?.show(OWN);
        this.set(this.drawn.handles[k].move(x, y));
      });
      return grip;
    }
  }

  /** Put an explorer into a figure, in the place of one that is there. */
  const mount = (figure, definition, settings = initial(definition)) => {
    mounted.get(figure)?.destroy();
    const made = new Explorer(figure, definition, settings);
    mounted.set(figure, made);
    return { settings, redraw: () => made.redraw(), destroy: () => made.destroy() };
  };
  /** Mount a figure of a chapter; `code` holds [forward, backward] of each of its gates. */
  const add = (name, definition, code) => {
    definition.gates.forEach((gate, k) => Object.assign(gate.run, { forward: code[k][0], backward: code[k][1] }));
    definitions.set(name, definition);
    return mount(document.getElementById(name), definition);
  };

  globalThis.GatesExplorer = { mount, add, definitions, element };
})();
