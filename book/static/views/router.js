// A router over experts, and ways to balance it. Each round brings new tokens, whose logits lean to
// the first experts; a method answers to what it saw, and the next round's tokens meet the answer.
// Settings: values lean, eta (rate of the sign bias), alpha (rate times weight of Switch's loss),
// round and the choice balance. definition.gates[0] is the loss of one token, a f -> l, at each
// expert's price f, E/k times its share: its derived backward pass moves the logits. `tokens`,
// `experts`, `k` and `rounds` come with `:set:`.
(() => {
  const {
    views, range, number, backward, frame, curves, cursor, box, line, text, legend, lineSample, svg,
    BLUE, RED, GREEN, GREY, INK, DASHES,
  } = GatesViews;

  // ---- the tokens ---------------------------------------------------------------------------

  /** Numbers between 0 and 1 from a seed (Mulberry32). */
  const uniform = (seed) => {
    let state = seed;
    return () => {
      state = (state + 0x6d2b79f5) | 0;
      let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
      mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
      return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
    };
  };
  const normal = (draw) => Math.sqrt(-2 * Math.log(1 - draw())) * Math.cos(2 * Math.PI * draw());

  const drawn = new Map();
  /** Noise of deviation 1 for each token and expert of a round; the same at every call. */
  const noiseOf = ({ tokens, experts }, round) => {
    const key = [tokens, experts, round].join();
    if (!drawn.has(key)) {
      const draw = uniform(round + 1);
      drawn.set(key, range(tokens).map(() => range(experts).map(() => normal(draw))));
    }
    return drawn.get(key);
  };
  /** The logits of one round's tokens: noise, and a lean that falls from +lean to −lean. */
  const logitsOf = (definition, lean, round) => {
    const last = definition.experts - 1, own = range(last + 1).map((e) => lean * (1 - (2 * e) / last));
    return noiseOf(definition, round).map((row) => plus(row, own));
  };

  // ---- what a round shows -------------------------------------------------------------------

  const sigmoid = (a) => 1 / (1 + Math.exp(-a));
  const mean = (values) => values.reduce((sum, v) => sum + v, 0) / values.length;
  const descending = (values) => [...values].sort((a, b) => b - a);
  const plus = (row, extra) => row.map((value, e) => value + extra[e]);

  /** The k largest, the largest first; of equal ones the first. */
  const best = (scores, k) => {
    const found = [];
    while (found.length < k) {
      let top = -1;
      scores.forEach((score, e) => { if (!found.includes(e) && (top < 0 || score > scores[top])) top = e; });
      found.push(top);
    }
    return found;
  };

  /** How many choices fall on each expert, and which share of them differs from those `alone`. */
  const chosenBy = (rows, alone, k) => {
    const counts = rows[0].map(() => 0);
    let stayed = 0;
    rows.forEach((row, t) => best(row, k).forEach((e) => {
      counts[e] += 1;
      if (alone[t].includes(e)) stayed += 1;
    }));
    return { counts, moved: 1 - stayed / (k * rows.length) };
  };
  const maxViolation = (counts) => Math.max(...counts) / mean(counts) - 1;

  // ---- the methods: what each adds in the next round, from what it saw in this one -------------

  const METHODS = {
    nothing: { answer: (added) => added },
    "Switch’s loss": {
      rate: "alpha",
      /** One step down the slope of the loss, for one number that each expert adds to its logits. */
      answer: (added, { seen, counts, loss, k }, { alpha }) => {
        const price = counts.map((count) => (added.length * count) / seen.length / k);
        const seed = added.map((_, e) => (e ? 0 : 1)); // l is one number, given to every place
        const slopes = seen.map((a) => backward(loss, { a, f: price }, { l: seed }).a);
        return added.map((value, e) => value - alpha * mean(slopes.map((slope) => slope[e])));
      },
    },
    "sign bias": {
      biased: true,
      rate: "eta",
      /** Up by the rate where an expert had fewer tokens than the mean, down where more; centred. */
      answer: (added, { counts }, { eta }) => {
        const signs = counts.map((count) => Math.sign(mean(counts) - count)), middle = mean(signs);
        return added.map((value, e) => value + eta * (signs[e] - middle));
      },
    },
    "quantile bias": {
      biased: true,
      /** The bias under which each expert would have taken its share of these tokens. */
      answer: (added, { scores, k }) => {
        const left = scores.map((row) => descending(plus(row, added))[k]);
        const place = Math.floor((scores.length * k) / added.length);
        return added.map((_, e) => -descending(scores.map((row, t) => row[e] - left[t]))[place]);
      },
    },
  };
  /** What all methods share: each round's logits, scores, and the choices by the logits alone. */
  const batchesOf = (definition, lean) =>
    range(definition.rounds + 1).map((round) => {
      const logits = logitsOf(definition, lean, round);
      return { logits, scores: logits.map((row) => row.map(sigmoid)), alone: logits.map((row) => best(row, definition.k)) };
    });

  /** What a round's tokens choose under what a method added. */
  const routed = ({ k, gates }, { logits, scores, alone }, added, biased) => {
    const seen = biased ? logits : logits.map((row) => plus(row, added));
    const { counts, moved } = chosenBy(biased ? scores.map((row) => plus(row, added)) : seen, alone, k);
    return { seen, scores, counts, moved, violation: maxViolation(counts), loss: gates[0], k };
  };

  /** Every round of one method: [{counts, moved, violation, added}]. */
  const courseOf = (definition, batches, { biased, answer }, rates) => {
    let added = range(definition.experts).map(() => 0);
    return batches.map((batch) => {
      const { counts, moved, violation, ...told } = routed(definition, batch, added, biased);
      const now = { counts, moved, violation, added };
      added = answer(added, { counts, ...told }, rates);
      return now;
    });
  };

  const kept = new Map();
  /** A value once for a key, until another key comes for the same place. */
  const once = (place, key, make) => {
    if (kept.get(place)?.key !== key) kept.set(place, { key, value: make() });
    return kept.get(place).value;
  };
  /** The courses of all methods by name; what a moved slider does not touch is not made again. */
  const simulated = (definition, { lean, eta, alpha }) => {
    const { tokens, experts, k, rounds } = definition, shape = [tokens, experts, k, rounds, lean].join();
    const batches = once("batches", shape, () => batchesOf(definition, lean));
    const course = ([name, method]) => {
      const key = [shape, method.rate ? { eta, alpha }[method.rate] : ""].join();
      return [name, once(name, key, () => courseOf(definition, batches, method, { eta, alpha }))];
    };
    return Object.fromEntries(Object.entries(METHODS).map(course));
  };

  // ---- the drawing --------------------------------------------------------------------------

  const NAMES = Object.keys(METHODS);
  const colourOf = (name) => [GREY, RED, BLUE, GREEN][NAMES.indexOf(name)];
  const dashOf = (name) => [2, 1, 0, 3][NAMES.indexOf(name)];

  /** The load of each expert at one round, and a line at the even share. */
  const loadBody = (place, counts, colour) => {
    const total = counts.reduce((all, count) => all + count, 0), shares = counts.map((count) => count / total);
    const even = 1 / counts.length, high = Math.max(2.2 * even, 1.1 * Math.max(...shares));
    const plot = frame({ ...place, x: { low: 0.5, high: counts.length + 0.5, label: "expert" }, y: { low: 0, high, label: "share of the choices" } });
    const step = plot.across(2) - plot.across(1), size = Math.min(40, 0.7 * step);
    const bar = (share, e) => box(plot.across(e + 1) - size / 2, plot.up(share), size, plot.bottom - plot.up(share), colour);
    return plot.body + shares.map(bar).join("") +
      line(plot.left, plot.up(even), plot.right, plot.up(even), INK, 1.2, 'stroke-dasharray="5 4"') +
      text(plot.right + 5, plot.up(even) + 4, "even", { size: 12 });
  };
  /** MaxVio over the rounds under every method; the chosen one is drawn last and thick. */
  const courseBody = (place, found, chosen, round) => {
    const all = NAMES.map((name) => found[name].map(({ violation }) => violation));
    const high = 1.06 * Math.max(0.5, ...all.flat());
    const plot = frame({ ...place, x: { low: 0, high: all[0].length - 1, label: "round" }, y: { low: 0, high, label: "MaxVio (0: even load)" } });
    const series = NAMES.map((name, k) => ({ points: all[k].map((value, t) => [t, value]), colour: colourOf(name), dash: dashOf(name) }));
    const order = [...NAMES.keys()].sort((a, b) => (NAMES[a] === chosen) - (NAMES[b] === chosen));
    return plot.body + curves(plot, order.map((k) => series[k])) +
      cursor(plot, round, [[all[NAMES.indexOf(chosen)][round], colourOf(chosen)]]);
  };
  const layout = (width, top) => {
    const beside = width >= 560, first = beside ? 0.44 * width : width, second = beside ? first + 20 : 0;
    const under = beside ? top : top + 226;
    return {
      loads: { width: first, height: 0, left: 52, right: first - 40, top, bottom: top + 170 },
      course: { width: width - second, height: 0, left: second + 46, right: width - 10, top: under, bottom: under + 170 },
      height: under + 214,
    };
  };

  const sentence = (name, { counts, moved, violation }, round) => {
    const most = Math.max(...counts) / counts.reduce((all, count) => all + count, 0);
    return `Round ${round}, ${name}: the busiest expert takes ${number(100 * most)} % of the choices, ` +
      `${number(100 / counts.length)} % would be even; MaxVio is ${number(violation)}. ` +
      `${number(100 * moved)} % of the choices are not what the logits alone would choose.`;
  };

  views.router = (definition, settings, width) => {
    const { balance, round } = settings.values, found = simulated(definition, settings.values);
    const key = legend(NAMES.map((name) => ({ words: name, sample: lineSample(colourOf(name), DASHES[dashOf(name)]) })), width);
    const { loads, course, height } = layout(width, key.height + 8), now = found[balance][round];
    const body = key.body + loadBody(loads, now.counts, colourOf(balance)) + courseBody(course, found, balance, round);
    const alt = `The load of ${definition.experts} experts under ${balance}, and over ${definition.rounds} rounds how far the busiest is above the mean under four methods`;
    return { svg: svg(width, height, alt, body), reading: sentence(balance, now, round) };
  };
  GatesViews.router = { logitsOf, simulated };
})();
