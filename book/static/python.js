// gatelib in a worker, for pages that ask it: `await GatesPython.ask("answer", text)`.
// Python starts with the first question. All its files come as scripts, which a browser loads from
// a folder on disk as well as from a host, and from no other place; the worker itself is a Blob.
(() => {
  const here = new URL("pack/", document.currentScript.src);
  const FILES = { // kilobytes that a host sends, for the progress that is told
    "pyodide.asm.wasm": 2900, "sympy.zip": 2600, "python_stdlib.zip": 800, "pyodide.asm.js": 220,
    "gatelib.zip": 170, "pyodide.js": 8, "pyodide-lock.json": 1,
  };
  const START = 60_000; // milliseconds that Python may take to start, once its files are here
  let worker, started, count = 0, starts = 0, ended = "";
  const waiting = new Map();

  // These two run in the worker, behind Pyodide's two scripts: they know of nothing here.
  async function boot(files) {
    const host = "gates://pack/"; // no such host: fetch answers from the files
    const types = { wasm: "application/wasm", zip: "application/zip", json: "application/json" };
    self.fetch = async (asked) => {
      const name = String(asked.url ?? asked).slice(host.length);
      if (!files[name]) throw new Error(`${asked} is not among the workshop's files`);
      const type = types[name.split(".").pop()];
      return new Response(files[name], { headers: { "Content-Type": type } });
    };
    const python = await loadPyodide({ indexURL: host });
    const archives = ["sympy.zip", "gatelib.zip"];
    for (const name of archives) python.FS.writeFile(`/${name}`, new Uint8Array(files[name]));
    files = undefined;
    python.runPython("import sys; sys.path[:0] = ['/gatelib.zip', '/sympy.zip']");
    return python.pyimport("gatelib.workshop");
  }
  function listen() {
    let workshop;
    self.onmessage = async ({ data: { id, files, call, text } }) => {
      try {
        if (files) workshop = boot(files);
        const module = await workshop;
        self.postMessage({ id, value: call ? JSON.parse(module[call](text)) : true });
      } catch (error) {
        self.postMessage({ id, failed: String(error.message ?? error) });
      }
    };
  }

  // ---- files -------------------------------------------------------------------------------

  const script = (name) => new Promise((done, failed) => {
    const tag = document.createElement("script");
    tag.onload = () => { tag.remove(); done(); };
    tag.onerror = () => failed(new Error(`${name} could not be loaded`));
    tag.src = new URL(`${name}.js`, here);
    document.head.append(tag);
  });
  const bytesOf = (text) =>
    Uint8Array.fromBase64?.(text) ?? Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const inflated = (text) => {
    const unpacked = new Blob([bytesOf(text)]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(unpacked).arrayBuffer();
  };
  /** Every file by its name; those that came before are here still. */
  const files = async () => {
    const total = Object.values(FILES).reduce((a, b) => a + b);
    let loaded = 0;
    await Promise.all(Object.entries(FILES).map(async ([name, size]) => {
      if (!self.gatesPython?.[name]) await script(name);
      loaded += size;
      tell("files", loaded, total);
    }));
    const pairs = Object.keys(FILES).map(async (name) => [name, await inflated(self.gatesPython[name])]);
    return Object.fromEntries(await Promise.all(pairs));
  };
  const tell = (stage, loaded = 1, total = 1) => self.GatesPython.onprogress?.({ stage, loaded, total });

  // ---- the worker --------------------------------------------------------------------------

  const send = (message, transfer = []) => new Promise((done, failed) => {
    waiting.set(++count, { done, failed });
    worker.postMessage({ id: count, ...message }, transfer);
  });
  const heard = ({ data: { id, value, failed } }) => {
    const { done, failed: refuse } = waiting.get(id);
    waiting.delete(id);
    if (failed === undefined) return done(value);
    if (/call stack/.test(failed)) failed = "This gate is too large, or nested too deeply.";
    refuse(new Error(failed));
    stop(failed); // Python may be in pieces: the next question starts it anew
  };
  const stop = (words = "Python was stopped.") => {
    worker?.terminate();
    worker = started = undefined;
    starts += 1;
    ended = words;
    for (const { failed } of waiting.values()) failed(new Error(words));
    waiting.clear();
  };
  const patiently = async (promise, patience) => {
    const bell = setTimeout(() => stop("That took too long, so it was stopped."), patience);
    try { return await promise; } finally { clearTimeout(bell); }
  };
  const start = async () => {
    const mine = starts;
    const found = await files();
    if (mine !== starts) throw new Error(ended); // stopped while the files came
    tell("python");
    const scripts = [found["pyodide.asm.js"], "\n", found["pyodide.js"]];
    const code = [...scripts, `\n${boot}\n${listen}\nlisten();`];
    const address = URL.createObjectURL(new Blob(code, { type: "text/javascript" }));
    worker = new Worker(address);
    worker.onmessage = heard;
    worker.onerror = (event) => stop(event.message ?? "The worker failed.");
    for (const name of ["pyodide.asm.js", "pyodide.js"]) delete found[name];
    await patiently(send({ files: found }, Object.values(found)), START);
    URL.revokeObjectURL(address);
    tell("ready");
  };

  self.GatesPython = {
    /** Called with {stage: "files" | "python" | "ready", loaded, total}, in kilobytes. */
    onprogress: undefined,
    /** Load Python, if it isn't there; a failed start may be tried again. */
    start() {
      const mine = starts;
      started ??= start().catch((error) => {
        if (mine === starts) started = undefined;
        throw error;
      });
      return started;
    },
    /** Ask a function of gatelib.workshop for its answer, as an object. A question that outlasts
        `patience`, in milliseconds from when Python is ready, ends the worker and all questions. */
    async ask(call, text, patience = 20_000) {
      await this.start();
      return patiently(send({ call, text }), patience);
    },
    /** End the worker; whoever waits is told the words, and the next question starts it anew. */
    stop,
  };
})();
