// Generated JavaScript in a page without `eval`: a source becomes a script, its function is kept by its text.
// `await GatesCode.load([source, …])`, then `GatesCode.get(source)`; node, which draws at build time, needs no load.
(() => {
  const kept = new Map(), inPage = typeof document !== "undefined";

  /** The last function of a source; those above it are its helpers. */
  const nameOf = (source) => [...source.matchAll(/^function ([^(\s]+)\(/gm)].at(-1)[1];
  const wrapped = (source) => `(() => { "use strict";\n${source}return ${nameOf(source)};\n})()`;

  /** A script of a Blob: what the page's policy lets in as `blob:`, from a folder on disk too. */
  const run = (text) => new Promise((done, failed) => {
    const address = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
    const tag = document.createElement("script");
    const end = (settle, value) => () => { URL.revokeObjectURL(address); tag.remove(); settle(value); };
    tag.onload = end(done);
    tag.onerror = end(failed, new Error("the page's policy lets no generated script run"));
    tag.src = address;
    document.head.append(tag);
  });
  const keep = (sources, functions) => sources.forEach((source, k) => kept.set(source, functions[k]));

  /** Make the functions of these sources; those that are there already cost nothing. */
  const load = async (sources) => {
    const missing = [...new Set(sources)].filter((source) => !kept.has(source));
    if (!missing.length || !inPage) return;
    await run(`GatesCode.keep(${JSON.stringify(missing)}, [${missing.map(wrapped).join(",\n")}]);`);
    const lost = missing.filter((source) => !kept.has(source));
    if (lost.length) throw new Error(`generated source that is no JavaScript:\n${lost[0]}`);
  };
  const get = (source) => {
    if (!kept.has(source) && !inPage) kept.set(source, new Function(`return ${wrapped(source)}`)());
    if (!kept.has(source)) throw new Error("this source was never loaded: await GatesCode.load([source])");
    return kept.get(source);
  };

  globalThis.GatesCode = { load, get, keep };
})();
