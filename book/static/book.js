// What CSS cannot do for a reader with a keyboard or a screen reader.
addEventListener("DOMContentLoaded", () => {
  // A box that scrolls sideways can be focused, and then scrolled by the arrow keys.
  const boxes = ".katex-display, .bd-article pre, .wide, .cell_output, .circuit-drawing, .pst-scrollable-table-container";
  const mark = () => {
    for (const box of document.querySelectorAll(boxes)) {
      const scrolls = box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1;
      if (scrolls) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  };
  mark();
  document.fonts.ready.then(mark);
  addEventListener("resize", mark);
  // The button says "Search Ctrl + K", so that is its name.
  document.querySelectorAll(".search-button-field, details.hide > summary").forEach((button) => button.removeAttribute("aria-label"));
  // Icons are drawn as text, which nobody should hear.
  document.querySelectorAll("i.fa-solid, i.fas, i.fab, i.fa-brands").forEach((icon) => icon.setAttribute("aria-hidden", "true"));
  // The entries of the bibliography are a list.
  document.querySelectorAll(".citation-list > .citation").forEach((entry) => entry.setAttribute("role", "listitem"));
});
