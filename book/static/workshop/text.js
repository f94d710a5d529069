// The text of a gate: what counts of it, where a line begins, and the address that carries it.
(() => {
  const KEY = "gate", LONGEST = 8000; // longer addresses are cut by mail programs and hosts

  /** What Python reads of a text: no comments, no blank lines, no indents. */
  const tidy = (text) => text.split("\n").map((line) => line.split("#")[0].trim()).filter(Boolean).join("\n");
  const lineCount = (text) => text.split("\n").length;
  /** Where a line begins and ends, lines counted from 1. */
  const lineSpan = (text, line) => {
    const lines = text.split("\n"), start = lines.slice(0, line - 1).reduce((sum, above) => sum + above.length + 1, 0);
    return [start, start + (lines[line - 1] ?? "").length];
  };
  /** The page's address with the gate in it, or null where the text is too long for one. */
  const addressOf = (text, page) => {
    const address = new URL(page);
    address.hash = `${KEY}=${encodeURIComponent(text)}`;
    return address.href.length > LONGEST ? null : address.href;
  };
  /** The gate that an address carries, or null. */
  const gateOf = (hash) => new URLSearchParams(hash.replace(/^#/, "")).get(KEY);

  globalThis.GatesWorkshop = { tidy, lineCount, lineSpan, addressOf, gateOf };
})();
