// The editor: numbered lines, the line that is wrong, and what is said below it.
(() => {
  const { lineCount, lineSpan } = GatesWorkshop;
  const FEWEST = 6, MOST = 26, PAUSE = 350; // lines that show; milliseconds without a key before the gate is read

  const element = (tag, attributes = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), attributes);
    made.append(...children);
    return made;
  };
  const button = (text, pressed, className = "workshop-button") => {
    const made = element("button", { type: "button", className, textContent: text });
    made.addEventListener("click", pressed);
    return made;
  };

  /** An editor in `box`; `changed` is called a moment after the last key, `started` at the first touch. */
  const editor = (box, { changed, typed, started }) => {
    const area = box.querySelector("textarea"), gutter = box.querySelector(".workshop-gutter"), status = box.querySelector(".workshop-status");
    let due;

    const number = (wrong = 0) => {
      const count = lineCount(area.value), lines = (from, to) => Array.from({ length: Math.max(0, to - from + 1) }, (_, k) => `${from + k}\n`).join("");
      area.rows = Math.min(MOST, Math.max(FEWEST, count));
      gutter.replaceChildren(...(wrong ? [lines(1, wrong - 1), element("b", { textContent: `${wrong}\n` }), lines(wrong + 1, count)] : [lines(1, count)]));
      follow();
    };
    const follow = () => { gutter.scrollTop = area.scrollTop; };
    const say = (kind, ...what) => {
      status.dataset.kind = kind;
      status.replaceChildren(...what);
    };
    const set = (text) => {
      clearTimeout(due);
      area.value = text;
      number();
    };
    const fine = (...what) => {
      area.removeAttribute("aria-invalid");
      number();
      say("fine", ...what);
    };
    const goTo = (line, column) => {
      const [start, end] = lineSpan(area.value, line);
      area.focus();
      area.setSelectionRange(column ? Math.min(end, start + column - 1) : start, end);
    };
    /** Say what is wrong, at its line; offer a first line where that is what is missing. */
    const refuse = ({ message, line, column, header }) => {
      const place = Math.min(Math.max(1, line ?? 1), lineCount(area.value));
      number(place);
      area.setAttribute("aria-invalid", "true");
      const offer = header ? [" ", button(`Put “${header}” first`, () => { set(`${header}\n${area.value}`); area.focus(); changed(); })] : [];
      say("wrong", button(`Line ${place}`, () => goTo(place, column), "workshop-place"), `: ${message} `, ...offer);
    };

    area.addEventListener("input", () => {
      number();
      typed();
      clearTimeout(due);
      due = setTimeout(changed, PAUSE);
    });
    area.addEventListener("scroll", follow, { passive: true });
    area.addEventListener("focus", started, { once: true });
    area.readOnly = false;
    return { set, say, fine, refuse, get text() { return area.value; } };
  };

  Object.assign(GatesWorkshop, { editor, element, button });
})();
