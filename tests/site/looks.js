// Marks one element for each way that text looks on the page, for the check of its contrast.
function chooseLooks() {
  document.querySelectorAll("[data-look]").forEach((element) => delete element.dataset.look);
  // The ground that text stands on, and how much of it shines through.
  const ground = (element) => {
    let opacity = 1;
    for (let box = element; box; box = box.parentElement) {
      const style = getComputedStyle(box);
      opacity *= style.opacity;
      if (style.backgroundColor !== "rgba(0, 0, 0, 0)" || style.backgroundImage !== "none") {
        return [opacity, style.filter, style.backgroundColor, style.backgroundImage];
      }
    }
    return [opacity];
  };
  // A link in a sentence must differ from the words beside it.
  const link = (element) => {
    const a = element.closest("a");
    return a ? [getComputedStyle(a).textDecorationLine, getComputedStyle(a.parentElement).color] : [];
  };
  const seen = new Set(), texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !element.checkVisibility()) continue;
    const { color, fontSize, fontWeight, textShadow } = getComputedStyle(element);
    const look = [color, fontSize, fontWeight, textShadow, ...ground(element), ...link(element)].join("|");
    if (!seen.has(look)) element.dataset.look = "";
    seen.add(look);
  }
}
