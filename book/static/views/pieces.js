// What every drawing is made of: colours, numbers, names, and marks in SVG.
// Makes GatesViews, to which the files beside it add. Nothing here or there touches a page: node
// draws with the same functions when the book is built.
(() => {
  // The colours of gatelib.lab.style; a test compares.
  const BLUE = "#0072B2", RED = "#C85200", GREEN = "#008A64", PURPLE = "#B8538A";
  const OCHRE = "#B87A00", SKY = "#3A94CC", GREY = "#6B6B6B", INK = "#1A1A1A";
  const COLOURS = [BLUE, RED, GREEN, PURPLE, OCHRE, SKY, GREY];
  const GATE_COLOURS = {
    i: GREEN, f: BLUE, o: PURPLE, g: RED, c: OCHRE, h: GREY, r: GREEN, z: BLUE, n: RED,
  };
  const OPEN = ["#F4F4F4", "#86BBDA", BLUE, "#00263D"];
  const SIGNED = ["#4A1E00", RED, "#E9B48F", "#F4F4F4", "#86BBDA", BLUE, "#00263D"];
  const DASHES = ["", "9 4", "2 3.5", "9 4 2 4"];
  const NARROW = 480; // below this width a drawing is on a phone

  // ---- numbers --------------------------------------------------------------------------------

  const range = (count) => Array.from({ length: count }, (_, k) => k);
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const sum = (values) => values.reduce((total, value) => total + value, 0);

  const raised = (power) => String(power).replace(/[-\d]/g, (sign) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(sign)]);
  const digitsOf = (size) => {
    if (size >= 1e6 || (size !== 0 && size < 1e-3)) {
      const [head, power] = size.toExponential(1).split("e");
      const times = head === "1.0" ? "" : `${head.replace(/\.0$/, "")}·`;
      return `${times}10${raised(Number(power))}`;
    }
    if (size >= 1000) return String(Math.round(size)).replace(/\B(?=(\d{3})+$)/g, ",");
    return String(Number(size.toPrecision(3)));
  };
  /** A number for a reader: three digits, a real minus, powers of ten as such. */
  const number = (value) => {
    if (Number.isNaN(value)) return "undefined";
    const size = Math.abs(value);
    const digits = size === Infinity ? "∞" : digitsOf(size);
    return value < 0 && digits !== "0" ? `−${digits}` : digits;
  };

  /** Round numbers between two others, about `count` of them. */
  const ticks = (low, high, count) => {
    const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999) * power;
    const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
    return range(last - first + 1).map((k) => Number(((first + k) * step).toPrecision(12)));
  };
  /** The powers of ten between two numbers, or every second or third of them. */
  const powers = (low, high, most = 6) => {
    const first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9);
    const stride = Math.ceil((last - first + 1) / most);
    return range(Math.floor((last - first) / stride) + 1).map((k) => 10 ** (first + k * stride));
  };

  const channel = (colour, at) => parseInt(colour.slice(1 + 2 * at, 3 + 2 * at), 16);
  /** The colour at a share between 0 and 1 of a list of colours. */
  const mix = (map, share) => {
    const place = clamp(share, 0, 1) * (map.length - 1);
    const below = Math.min(map.length - 2, Math.floor(place)), rest = place - below;
    const between = (at) => {
      const from = channel(map[below], at), to = channel(map[below + 1], at);
      return Math.round(from + rest * (to - from)).toString(16).padStart(2, "0");
    };
    return `#${[0, 1, 2].map(between).join("")}`;
  };
  const openColour = (value) => mix(OPEN, value);
  /** The colour of a value between minus and plus `most`. */
  const signedColour = (value, most) => mix(SIGNED, 0.5 + value / most / 2);

  // ---- names ----------------------------------------------------------------------------------

  const escape = (words) => String(words).replace(/[&<>"]/g, (sign) => `&#${sign.charCodeAt(0)};`);
  /** `a_f` as its letter and its part; `c_prev` is c one step before. */
  const partsOf = (name) => {
    const [base, ...rest] = name.split("_");
    return [base, rest.map((part) => (part === "prev" ? "t−1" : part)).join(",")];
  };
  const isLetter = (text) => /^\p{L}$/u.test(text);

  /** Whether the second part of a name stands above it, as the book's formulas have a preactivation's. */
  const isRaised = (base, part) => /^[au]$/.test(base) && isLetter(part);

  const htmlName = (name) => {
    const [base, part] = partsOf(name).map(escape), tag = isRaised(base, part) ? "sup" : "sub";
    const small = isLetter(part) ? `<i>${part}</i>` : part;
    const letter = base.length > 1 ? `<b>${base}</b>` : `<i>${base}</i>`;
    return `<span class="gates-name">${letter}${small && `<${tag}>${small}</${tag}>`}</span>`;
  };
  /** How a screen reader should say a name. */
  const plainName = (name) => partsOf(name).filter(Boolean).join(" ");

  const ITALIC = 'font-family="KaTeX_Math, Georgia, serif" font-style="italic"';
  const UPRIGHT = 'font-family="KaTeX_Main, Georgia, serif"';
  /** A name inside a text of a drawing. */
  const svgName = (name) => {
    const [base, part] = partsOf(name).map(escape), down = isRaised(base, part) ? -5 : 4;
    const look = base.length > 1 ? "" : `${ITALIC} font-size="1.15em"`;
    const letter = `<tspan ${look}>${base}</tspan>`;
    if (!part) return letter;
    const style = isLetter(part) ? ITALIC : UPRIGHT;
    return `${letter}<tspan dy="${down}" font-size=".82em" ${style}>${part}</tspan><tspan dy="${-down}">\u200b</tspan>`;
  };
  /** Words that the page gave a name, or the name itself: in a sentence, in a drawing, in a label. */
  const named = (definition, name) => {
    const words = definition.labels?.[name];
    if (words) return { html: escape(words), svg: escape(words), plain: words, words: true };
    return { html: htmlName(name), svg: svgName(name), plain: plainName(name), words: false };
  };
  const titleOf = (gate) => gate.title ?? gate.name;

  // ---- marks ----------------------------------------------------------------------------------

  const px = (value) => String(Math.round(value * 100) / 100);
  /** Text at a place; `content` is SVG, so words of others are escaped before. */
  const text = (x, y, content, { anchor = "start", colour = INK, size = 13, weight = 400 } = {}) =>
    `<text x="${px(x)}" y="${px(y)}" text-anchor="${anchor}" fill="${colour}" font-size="${size}" font-weight="${weight}">${content}</text>`;
  const line = (x1, y1, x2, y2, colour = INK, width = 1, more = "") =>
    `<line x1="${px(x1)}" y1="${px(y1)}" x2="${px(x2)}" y2="${px(y2)}" stroke="${colour}" stroke-width="${width}" ${more}/>`;
  const box = (x, y, width, height, fill, more = "") =>
    `<rect x="${px(x)}" y="${px(y)}" width="${px(Math.max(0, width))}" height="${px(Math.max(0, height))}" fill="${fill}" ${more}/>`;
  const circle = (x, y, radius, fill, more = "") =>
    `<circle cx="${px(x)}" cy="${px(y)}" r="${radius}" fill="${fill}" ${more}/>`;
  /** A line through points [x, y] of the drawing. */
  const path = (points, colour, { width = 2.2, dash = "", more = "" } = {}) => {
    const way = points.map(([x, y], k) => `${k ? "L" : "M"}${px(x)} ${px(y)}`).join("");
    const dashes = dash && `stroke-dasharray="${dash}"`;
    return `<path d="${way}" fill="none" stroke="${colour}" stroke-width="${width}" stroke-linejoin="round" ${dashes} ${more}/>`;
  };
  /** A whole drawing, with the words that stand for it where it can't be seen. */
  const svg = (width, height, alt, body) =>
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${px(width)} ${px(height)}" width="${px(width)}" height="${px(height)}" ` +
    `role="img" aria-label="${escape(alt)}" font-family="Inter, system-ui, sans-serif">${body}</svg>`;

  /** Push labels apart that would stand on each other, within two ends. */
  const spread = (places, gap, low, high) => {
    const order = range(places.length).sort((a, b) => places[a] - places[b]), found = [...places];
    order.forEach((at, k) => { found[at] = Math.max(found[at], k ? found[order[k - 1]] + gap : low); });
    order.reverse().forEach((at, k) => { found[at] = Math.min(found[at], k ? found[order[k - 1]] - gap : high); });
    return found;
  };
  const wide = (words) => 7.3 * words.length; // what words of 13 px take, roughly

  /** Lines of samples and words above a drawing. `entries`: {words, sample: (x, y) → SVG}. */
  const legend = (entries, width, left = 0) => {
    let x = left, y = 14, body = "";
    entries.forEach(({ words, sample }) => {
      const needed = 38 + wide(words);
      if (x > left && x + needed > width) { x = left; y += 20; }
      body += sample(x, y) + text(x + 30, y + 4.5, escape(words));
      x += needed + 10;
    });
    return { height: y + 12, body };
  };
  const lineSample = (colour, dash = "") => (x, y) => path([[x, y], [x + 24, y]], colour, { dash });
  const boxSample = (colour, more = "") => (x, y) => box(x + 6, y - 6, 13, 13, colour, more);

  globalThis.GatesViews = {
    BLUE, RED, GREEN, PURPLE, OCHRE, SKY, GREY, INK, COLOURS, GATE_COLOURS, OPEN, SIGNED, DASHES, NARROW,
    range, clamp, sum, number, ticks, powers, mix, openColour, signedColour,
    escape, htmlName, plainName, svgName, named, titleOf,
    px, text, line, box, circle, path, svg, spread, legend, lineSample, boxSample, wide,
    views: {},
  };
})();
