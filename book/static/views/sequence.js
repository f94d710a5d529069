// Sequences that an explorer may start from, and the settings with which it starts.
(() => {
  const { range } = GatesViews;
  const STEPS = 40, LIMIT = 1.2;
  const fraction = (value) => value - Math.floor(value);
  const SEQUENCES = {
    pulse: (t) => (t === 4 ? 1 : 0),
    "two pulses": (t) => (t === 4 ? 1 : t === 22 ? -1 : 0),
    step: (t) => (t >= 8 && t < 24 ? 1 : 0),
    wave: (t) => Math.round(100 * Math.sin((2 * Math.PI * t) / 16)) / 100,
    noise: (t) => Math.round(20 * fraction(Math.sin(t * 12.9898 + 4.1) * 43758.5453) - 10) / 10,
  };
  /** The numbers of a sequence by its name. */
  const sequence = (name, count = STEPS) => range(count).map(SEQUENCES[name]);

  /** What an explorer starts with; a reader changes this, never the definition. */
  const initial = (definition) => {
    const chosen = (definition.choices ?? []).map(({ name, value }) => [name, value]);
    const slid = (definition.sliders ?? []).map(({ name, value }) => [name, value]);
    return {
      values: Object.fromEntries([...slid, ...chosen]),
      wires: structuredClone(definition.wires ?? {}),
      back: definition.back,
      sequence: definition.sequence ?? "pulse",
      x: sequence(definition.sequence ?? "pulse", definition.steps),
      step: definition.step ?? 8,
    };
  };

  Object.assign(GatesViews, { STEPS, LIMIT, SEQUENCES, sequence, initial });
})();
