// What CSS cannot do for a reader with a keyboard or a screen reader.
addEventListener("DOMContentLoaded", () => {
  // A box that scrolls sideways can be focused, and then scrolled by the arrow keys.
  const boxes = ".katex-display, .bd-article pre, .wide, .cell_output, .cell_output .output, .circuit-drawing, .pst-scrollable-table-container";
  const mark = () => {
    for (const box of document.querySelectorAll(boxes)) {
      const scrolls = box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1;
      if (scrolls) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
      fade(box);
    }
  };
  // The style fades it at the sides where there is more.
  const fade = (box) => {
    const rest = box.scrollWidth - box.clientWidth - box.scrollLeft;
    const more = [box.scrollLeft > 1 && "left", rest > 1 && "right"].filter(Boolean).join(" ");
    if (more) box.dataset.more = more;
    else delete box.dataset.more;
  };
  document.addEventListener("scroll", (event) => event.target.matches?.(boxes) && fade(event.target), { capture: true, passive: true });
  document.addEventListener("toggle", mark, true);
  mark();
  document.fonts.ready.then(mark);
  addEventListener("resize", mark);
  // The button says "Search Ctrl + K", so that is its name.
  document.querySelectorAll(".search-button-field, details.hide > summary").forEach((button) => button.removeAttribute("aria-label"));
  // Icons are drawn as text, which nobody should hear.
  document.querySelectorAll("i.fa-solid, i.fas, i.fab, i.fa-brands").forEach((icon) => icon.setAttribute("aria-hidden", "true"));
  // The menu's arrows open a list of pages, and have no name.
  document.querySelectorAll("nav.bd-links details > summary").forEach((arrow) => arrow.setAttribute("aria-label", `Pages of: ${arrow.closest("li").querySelector("a").textContent.trim()}`));
  // The entries of the bibliography are a list.
  document.querySelectorAll(".citation-list > .citation").forEach((entry) => entry.setAttribute("role", "listitem"));
});

// The page's list of contents shows where the reader is, however the reader came there.
addEventListener("DOMContentLoaded", () => {
  const list = document.querySelector("#pst-page-toc-nav");
  const links = [...(list?.querySelectorAll("a[href^='#']") ?? [])];
  const places = links.map((link) => [link, document.getElementById(decodeURIComponent(link.hash.slice(1)))]).filter(([, place]) => place);
  if (!places.length) return;
  const show = () => {
    const above = places.filter(([, place]) => place.getBoundingClientRect().top < 100); // a jump stops at 64
    const here = above.at(-1)?.[0];
    for (const link of links) {
      link.classList.toggle("active", link === here);
      if (link === here) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
    for (const entry of list.querySelectorAll(".toc-entry")) entry.classList.toggle("active", entry.contains(here ?? null));
    const box = list.closest(".sidebar-secondary__inner, .bd-sidebar-secondary");
    if (here && box && box.scrollHeight > box.clientHeight) box.scrollTop = here.offsetTop - box.clientHeight / 2;
  };
  let waiting = false;
  const soon = () => {
    if (!waiting) requestAnimationFrame(() => { waiting = false; show(); });
    waiting = true;
  };
  for (const event of ["scroll", "hashchange", "resize"]) addEventListener(event, soon, { passive: true });
  show();
});

// Paper is light, and on paper nothing can be opened.
addEventListener("DOMContentLoaded", () => {
  const page = document.documentElement;
  let screen = null;
  const toPaper = () => {
    if (screen) return;
    const shut = [...document.querySelectorAll("details:not([open])")];
    const hidden = [...document.querySelectorAll(".toggle-hidden")];
    screen = { theme: page.dataset.theme, shut, hidden };
    page.dataset.theme = "light";
    for (const fold of shut) fold.open = true;
    for (const fold of hidden) fold.classList.remove("toggle-hidden");
  };
  const toScreen = () => {
    if (!screen) return;
    page.dataset.theme = screen.theme;
    for (const fold of screen.shut) fold.open = false;
    for (const fold of screen.hidden) fold.classList.add("toggle-hidden");
    screen = null;
  };
  const paper = matchMedia("print");
  paper.addEventListener("change", () => (paper.matches ? toPaper() : toScreen()));
  addEventListener("beforeprint", toPaper);
  addEventListener("afterprint", toScreen);
  if (paper.matches) toPaper();
});
