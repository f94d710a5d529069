// node pack.mjs, with {part, pyodide, packages, repository, files, out} as JSON on stdin:
// runs compiled.py in Pyodide, and wraps what it made as scripts, which a page loads from anywhere,
// a folder on disk included. A script holds one file, as gzip in base64.
import fs from "node:fs";
import { registerHooks } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";
import zlib from "node:zlib";

const asked = JSON.parse(fs.readFileSync(0, "utf8"));
// In node Pyodide asks for a package of WebSockets, of which nothing here opens one.
const empty = { url: "data:text/javascript,export default null", shortCircuit: true };
registerHooks({ resolve: (name, at, next) => (name === "ws" ? empty : next(name, at)) });
const { loadPyodide } = await import(pathToFileURL(path.join(asked.pyodide, "pyodide.mjs")));
const python = await loadPyodide({ indexURL: asked.pyodide + path.sep });
python.mountNodeFS("/packages", asked.packages);
python.mountNodeFS("/repository", asked.repository);
python.mountNodeFS("/out", asked.out);
python.runPython(fs.readFileSync(new URL("compiled.py", import.meta.url), "utf8"));

const wrap = (name, data) => {
  const text = zlib.gzipSync(data, { level: 9 }).toString("base64");
  const line = `(self.gatesPython ??= {})[${JSON.stringify(name)}] = "${text}";\n`;
  fs.writeFileSync(path.join(asked.out, `${name}.js`), line);
};
const of = (name) => fs.readFileSync(path.join(asked.pyodide, name));
const made = (name) => fs.readFileSync(path.join(asked.out, name));

if (asked.part === "base") {
  python.FS.writeFile("/standard.zip", of("python_stdlib.zip"));
  python.globals.get("base")("/packages", "/repository", "/standard.zip", "/out");
  const { info } = JSON.parse(of("pyodide-lock.json"));
  wrap("pyodide-lock.json", JSON.stringify({ info, packages: {} })); // of its packages we have none
  for (const name of ["pyodide.js", "pyodide.asm.js", "pyodide.asm.wasm"]) wrap(name, of(name));
  wrap("python_stdlib.zip", made("python.zip"));
  wrap("sympy.zip", made("sympy.zip"));
} else {
  python.globals.get("gatelib")("/repository", asked.files, "/out");
  wrap("gatelib.zip", made("gatelib.zip"));
}
process.exit(0);
