// What the page shows of a gate: formulas, the circuit, code. Text from Python stays text, and never becomes HTML.
(() => {
  const { element } = GatesWorkshop;
  const LANGUAGES = { numpy: "NumPy", torch: "PyTorch", triton: "Triton", javascript: "JavaScript" };
  const WORDS = {
    python: new Set("def return import from as if else for in is not and or None True False lambda with assert".split(" ")),
    javascript: new Set("function const let return if for of new throw".split(" ")),
  };
  const TOKEN = /(?<comment>#.*|\/\/.*)|(?<string>"[^"\n]*"|'[^'\n]*')|(?<decorator>@[\w.]+)|(?<number>\b\d+\.?\d*(?:e[-+]?\d+)?\b)|(?<word>[\p{L}_][\p{L}\p{N}_]*)/gu;
  const CLASSES = { comment: "c1", string: "s1", decorator: "nd", number: "mi", word: "k" }; // those of Pygments, which the theme colours

  /** Code as nodes with the theme's colours. */
  const painted = (code, language) => {
    const made = document.createDocumentFragment(), words = WORDS[language];
    let end = 0;
    for (const found of code.matchAll(TOKEN)) {
      const [kind] = Object.entries(found.groups).find(([, text]) => text !== undefined);
      if ((kind === "word" && !words.has(found[0])) || (kind === "comment" && found[0].startsWith(language === "python" ? "//" : "#"))) continue;
      made.append(code.slice(end, found.index), element("span", { className: CLASSES[kind], textContent: found[0] }));
      end = found.index + found[0].length;
    }
    made.append(code.slice(end));
    return made;
  };
  const putCode = (box, language, { code, none }) => {
    box.classList.toggle("workshop-none", code === undefined);
    box.querySelector("pre").replaceChildren(code === undefined ? none : painted(code, language));
  };
  /** Words with `names`, in a paragraph that is there while there are words. */
  const putNote = (place, words) => {
    place.hidden = !words;
    place.replaceChildren(...words.split("`").map((part, k) => (k % 2 ? element("code", { textContent: part }) : part)));
  };
  const putFormula = (part, tex) => {
    katex.render(tex, document.querySelector(`.workshop-${part} .math`), { displayMode: true, throwOnError: false, maxExpand: 1000 });
  };
  /** A drawing from its text, by the reader of SVG: nothing in it runs. */
  const putDrawing = (box, svg) => {
    const drawn = new DOMParser().parseFromString(svg, "image/svg+xml").documentElement;
    box.replaceChildren(document.importNode(drawn, true));
  };

  /** All but the circuit, which comes later where Python draws it. */
  const show = (sheet) => {
    putFormula("formulas", sheet.latex);
    putFormula("backward", sheet.backward);
    for (const [name, title] of Object.entries(LANGUAGES)) {
      const { code, none } = sheet.source[name], language = name === "javascript" ? "javascript" : "python";
      putCode(document.querySelector(`.workshop-${name}`), language, { code, none: `No ${title} source: ${none}` });
    }
    putCode(document.querySelector(".workshop-layer"), "python", sheet.layer);
    putNote(document.querySelector(".workshop-layer .workshop-note"), sheet.layer.note);
    dispatchEvent(new Event("resize")); // book.js lets what scrolls now be focused
  };
  const showCircuit = ({ svg, error }) => {
    const box = document.querySelector(".workshop-drawing");
    if (svg) putDrawing(box, svg);
    else box.replaceChildren(element("p", { className: "workshop-note", textContent: error?.message ?? "This gate has no drawing." }));
    waiting(false);
  };
  /** Fade the circuit while it is drawn anew, and everything while the text is no gate. */
  const waiting = (now) => document.querySelector(".workshop-drawing").classList.toggle("workshop-old", now);
  const outdated = (now) => document.body.classList.toggle("workshop-outdated", now);

  Object.assign(GatesWorkshop, { show, showCircuit, waiting, outdated });
})();
