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

  /** The numbers of the lines, that of a wrong line in bold. */
  const numbersOf = (count, wrong) => {
    const lines = (from, to) => Array.from({ length: Math.max(0, to - from + 1) }, (_, k) => `${from + k}\n`).join("");
    if (!wrong) return [lines(1, count)];
    return [lines(1, wrong - 1), element("b", { textContent: `${wrong}\n` }), lines(wrong + 1, count)];
  };

  class Editor {
    /** `changed` is called a moment after the last key, `typed` at every key, `started` at the first touch. */
    constructor(box, { changed, typed, started }) {
      Object.assign(this, { changed, typed });
      this.area = box.querySelector("textarea");
      this.gutter = box.querySelector(".workshop-gutter");
      this.status = box.querySelector(".workshop-status");
      this.area.addEventListener("input", () => this.wait());
      this.area.addEventListener("scroll", () => this.follow(), { passive: true });
      this.area.addEventListener("focus", started, { once: true });
      this.area.readOnly = false;
    }

    get text() { return this.area.value; }
    set(text) {
      clearTimeout(this.due);
      this.area.value = text;
      this.number();
    }
    wait() {
      this.number();
      this.typed();
      clearTimeout(this.due);
      this.due = setTimeout(this.changed, PAUSE);
    }

    number(wrong = 0) {
      const count = lineCount(this.text);
      this.area.rows = Math.min(MOST, Math.max(FEWEST, count));
      this.gutter.replaceChildren(...numbersOf(count, wrong));
      this.follow();
    }
    follow() { this.gutter.scrollTop = this.area.scrollTop; }
    goTo(line, column) {
      const [start, end] = lineSpan(this.text, line);
      this.area.focus();
      this.area.setSelectionRange(column ? Math.min(end, start + column - 1) : start, end);
    }

    /** Put words below the text; `kind` is fine, busy or wrong. */
    say(kind, ...what) {
      this.status.dataset.kind = kind;
      this.status.replaceChildren(...what);
    }
    fine(...what) {
      this.area.removeAttribute("aria-invalid");
      this.number();
      this.say("fine", ...what);
    }
    /** Say what is wrong, at its line; offer a first line where that is what is missing. */
    refuse({ message, line, column, header }) {
      const place = Math.min(Math.max(1, line ?? 1), lineCount(this.text));
      this.number(place);
      this.area.setAttribute("aria-invalid", "true");
      const offer = header ? [" ", button(`Put “${header}” first`, () => this.prepend(header))] : [];
      this.say("wrong", button(`Line ${place}`, () => this.goTo(place, column), "workshop-place"), `: ${message} `, ...offer);
    }
    prepend(header) {
      this.set(`${header}\n${this.text}`);
      this.area.focus();
      this.changed();
    }
  }

  Object.assign(GatesWorkshop, { Editor, element, button });
})();
