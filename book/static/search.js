// Search by section. The index and MiniSearch load when somebody searches, as scripts, because a
// page that is opened from a disk may not fetch. A hit opens its section with what was found marked.
(() => {
  const base = new URL(".", document.currentScript.src);
  const root = new URL("..", base);
  const PARAMETER = "found";
  const IN_DIALOG = 8, ON_PAGE = 60;
  const KIND = { chapter: 1, term: 0.45, page: 0.8, claim: 0.6, api: 0.45 };

  const make = (tag, className = "", text = "") => Object.assign(document.createElement(tag), { className, textContent: text });
  const load = (name) => new Promise((resolve, reject) => {
    document.head.append(Object.assign(document.createElement("script"), { src: new URL(name, base).href, onload: resolve, onerror: reject }));
  });
  const plain = (text) => text.toLowerCase().normalize("NFKC").replace(/[’']/g, "").replace(/[-\s]+/g, " ").trim();

  // ---- words -------------------------------------------------------------------------------
  // Chinese is written without spaces, so it is read two characters at a time.
  const pairs = (run) => run.length < 2 ? [run] : [...run].slice(1).map((sign, i) => [...run][i] + sign);
  const words = (text) => (plain(text).match(/\p{Script=Han}+|[\p{L}\p{N}\p{M}]+/gu) ?? [])
    .flatMap((word) => /\p{Script=Han}/u.test(word) ? pairs(word) : [word]);

  // ---- the index ---------------------------------------------------------------------------
  let ready;
  const open = () => ready ??= Promise.all([load("search/minisearch.js"), load("search/sections.js")]).then(build);
  const build = () => {
    const rows = globalThis.GATES_SECTIONS.map(([address, title, where, text, names, kind], id) => ({ id, address, title, where, text, names, kind, also: names.flat().join(" ") }));
    const index = new MiniSearch({
      fields: ["title", "also", "where", "text"], tokenize: words, processTerm: (term) => term,
      searchOptions: {
        boost: { title: 6, also: 6, where: 1.5, text: 1 },
        prefix: (term, i, all) => i === all.length - 1 && term.length > 1,
        fuzzy: (term) => term.length > 5 ? 0.15 : false,
      },
    });
    index.addAll(rows);
    return { rows, index };
  };

  // A section that defines a term of the glossary is known by all the names of the term.
  const named = (row, phrase) => row.names.find((group) => group.some((name) => plain(name) === phrase));
  // Words in a title count more than in the text (above); the phrase counts more than its words.
  const closeness = (row, phrase) => {
    const title = plain(row.title);
    if (named(row, phrase)) return row.kind === "chapter" ? 1000 : 12;
    if (title === phrase) return 6;
    return title.includes(phrase) ? 3 : plain(row.text).includes(phrase) ? 1.8 : 1;
  };
  // A section leads nearer than the page that it is in, unless the page bears what was asked for.
  const nearer = (hits, phrase) => {
    for (const page of hits.filter(({ row }) => !row.where && !plain(row.title).includes(phrase))) {
      const own = hits.find(({ row }) => row.where && row.address.startsWith(`${page.row.address}#`));
      if (own && own.score < page.score) [own.score, page.score] = [page.score, own.score];
    }
    return hits;
  };
  const find = ({ rows, index }, query) => {
    const phrase = plain(query);
    const scored = ({ id, score }) => ({ row: rows[id], score: score * KIND[rows[id].kind] * closeness(rows[id], phrase) });
    const sorted = (hits) => hits.sort((one, other) => other.score - one.score);
    const ranked = (how) => {
      const hits = sorted(index.search(query, { combineWith: how }).map(scored));
      return sorted(nearer(hits, phrase)).map((hit) => hit.row);
    };
    const all = ranked("AND");
    if (all.length >= 3) return all;
    return [...all, ...ranked("OR").filter((row) => !all.includes(row))];
  };

  // ---- what a hit looks like ------------------------------------------------------------------
  const escape = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  const pattern = (query) => {
    const inOrder = query.trim().split(/\s+/).map(escape).join("[\\s-]+");
    const single = words(query).filter((word) => word.length > 1).map(escape);
    return new RegExp([inOrder, ...single].join("|"), "giu");
  };
  const marked = (tag, className, text, query) => {
    const box = make(tag, className);
    let end = 0;
    for (const found of text.matchAll(pattern(query))) {
      box.append(text.slice(end, found.index), make("mark", "", found[0]));
      end = found.index + found[0].length;
    }
    box.append(text.slice(end));
    return box;
  };
  const snippet = (text, query) => {
    const phrase = text.search(new RegExp(query.trim().split(/\s+/).map(escape).join("[\\s-]+"), "iu"));
    const at = Math.max(0, phrase >= 0 ? phrase : text.search(pattern(query)));
    const sentence = Math.max(text.lastIndexOf(". ", at) + 2, 0);
    const from = at < 60 ? 0 : at - sentence < 110 && sentence > 1 ? sentence : text.indexOf(" ", at - 70) + 1;
    const part = text.slice(from, from + 190), cut = from + 190 < text.length;
    return (from ? "… " : "") + (cut ? part.slice(0, part.lastIndexOf(" ")) + " …" : part);
  };
  const item = (row, query) => {
    const li = make("li"), link = make("a", "found");
    const url = new URL(row.address, root);
    const group = named(row, plain(query)), where = row.where || "Whole page";
    url.searchParams.set(PARAMETER, group ? group.join("|") : query.trim());
    link.href = url.href;
    const defines = group && row.kind !== "term" ? ` · defines ${group[0]} ${group.find((name) => /\p{Script=Han}/u.test(name)) ?? ""}` : "";
    link.append(marked("span", "found-title", row.title, query), make("span", "found-where", where + defines));
    const shown = group && !plain(row.text).includes(plain(query)) ? group[0] : query;
    if (row.text) link.append(marked("span", "found-text", row.kind === "term" ? row.text : snippet(row.text, shown), shown));
    li.append(link);
    return li;
  };
  const show = (box, found, query, most, more) => {
    const list = make("ol", "found-list");
    list.append(...found.slice(0, most).map((row) => item(row, query)));
    const count = found.length ? `${found.length} ${found.length === 1 ? "section" : "sections"}` : `Nothing has “${query.trim()}”`;
    const line = make("p", "found-count", count);
    line.setAttribute("role", "status");
    box.replaceChildren(line, list);
    if (more && found.length > most) {
      const url = new URL("search.html", root);
      url.searchParams.set("q", query.trim());
      box.append(Object.assign(make("a", "found found-more", "Show them all"), { href: url.href }));
    }
  };

  // ---- a field with its results -----------------------------------------------------------------
  /** The arrow keys walk through the field and what it found. */
  const walk = (event, stops) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || stops.length < 2) return;
    event.preventDefault();
    stops[Math.min(stops.length - 1, Math.max(0, stops.indexOf(document.activeElement) + step))].focus();
  };
  const attach = (form, box, most, more) => {
    const input = form.querySelector("input[type=search]");
    let asked = 0;
    const update = async () => {
      const turn = ++asked, query = input.value;
      if (!words(query).length) return box.replaceChildren();
      const library = await open().catch(() => null);
      if (turn !== asked) return;
      if (library) show(box, find(library, query), query, most, more);
      else box.replaceChildren(make("p", "found-count", "The index could not be loaded."));
    };
    const links = () => [...box.querySelectorAll("a.found")];
    input.addEventListener("focus", () => open().catch(() => null), { once: true });
    input.addEventListener("input", update);
    form.addEventListener("submit", (event) => {
      const best = links()[0];
      if (!best || (!more && input.value !== new URLSearchParams(location.search).get("q"))) return;
      event.preventDefault();
      location.href = best.href;
    });
    form.parentElement.addEventListener("keydown", (event) => walk(event, [input, ...links()]));
    return { input, update };
  };

  // ---- arriving -----------------------------------------------------------------------------
  const part = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target?.matches("dl.glossary > dt")) return [target, target.nextElementSibling];
    return [target?.closest("section, dl, .claim") ?? document.querySelector("article")];
  };
  const tell = (found, clear) => {
    const box = make("div", "found-bar d-print-none");
    box.setAttribute("role", "status");
    const button = Object.assign(make("button", "btn btn-sm", "Clear"), { type: "button", title: "Clear the marks (Esc)", onclick: clear });
    box.append(make("span", "", found), button);
    document.body.append(box);
    return box;
  };
  // Marks the phrase or, where it isn't there, its words; tells what it found.
  const markOn = (marker, text) => {
    let count = 0;
    const mark = (terms) => marker.mark(terms, {
      exclude: [".katex *", "pre *", ".headerlink", ".gloss *"], acrossElements: true, separateWordSearch: false,
      done: (marks) => { count = marks; },
    });
    mark(text.split("|"));
    if (count) return `${count} × “${text.split("|")[0]}”`;
    mark(words(text));
    return count && `${count} × ${words(text).join(", ")}`;
  };
  const arrive = async () => {
    const address = new URL(location.href), text = address.searchParams.get(PARAMETER);
    if (!text) return;
    await load("search/mark.js");
    const place = part(), marker = new Mark(place), found = markOn(marker, text);
    if (!found) return;
    const marks = place.flatMap((box) => [...box.querySelectorAll("mark")]);
    for (const mark of marks) mark.closest("details:not([open])")?.setAttribute("open", "");
    const clear = () => {
      marker.unmark();
      bar.remove();
      removeEventListener("keydown", escapes);
      address.searchParams.delete(PARAMETER);
      try { history.replaceState(null, "", address); } catch { /* a page from a disk keeps its address */ }
    };
    const escapes = (event) => { if (event.key === "Escape" && !event.target.closest?.("dialog")) clear(); };
    const bar = tell(found, clear);
    addEventListener("keydown", escapes);
    const down = marks[0].getBoundingClientRect().top - place[0].getBoundingClientRect().top;
    if (down > innerHeight * 0.7) marks[0].scrollIntoView({ block: "center" });
    else if (location.hash) place[0].scrollIntoView();
  };

  addEventListener("DOMContentLoaded", () => {
    const dialog = document.querySelector("#pst-search-dialog");
    if (dialog) {
      const box = dialog.appendChild(make("div", "found-box"));
      // Sphinx takes the key for itself, and the browser would not close the dialog.
      dialog.addEventListener("keydown", (event) => { if (event.key === "Escape") dialog.close(); });
      attach(dialog.querySelector("form"), box, IN_DIALOG, true);
    }
    const results = document.querySelector("[data-search-results]");
    if (results) {
      const { input, update } = attach(results.parentElement.querySelector("form"), results, ON_PAGE, false);
      input.value = new URLSearchParams(location.search).get("q") ?? "";
      input.focus();
      update();
    }
  });
  addEventListener("load", () => arrive().catch(() => null));
})();
