// What CSS cannot do for a reader with a keyboard: a box that scrolls sideways can be focused.
addEventListener("DOMContentLoaded", () => {
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
});
