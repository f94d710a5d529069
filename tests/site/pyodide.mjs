// node pyodide.mjs PYODIDE PACK, with [[call, text], …] as JSON on stdin: what gatelib.workshop
// answers in Pyodide, from the scripts that a page loads, as JSON.
import fs from "node:fs";
import { registerHooks } from "node:module";
import os from "node:os";
import path from "node:path";
import { pathToFileURL } from "node:url";
import zlib from "node:zlib";

const [pyodide, pack] = process.argv.slice(2);
const asked = JSON.parse(fs.readFileSync(0, "utf8")); // before Pyodide opens the pipe its own way
const empty = { url: "data:text/javascript,export default null", shortCircuit: true };
registerHooks({ resolve: (name, at, next) => (name === "ws" ? empty : next(name, at)) });
const { loadPyodide } = await import(pathToFileURL(path.join(pyodide, "pyodide.mjs")));

const of = (name) => {
  const [, text] = fs.readFileSync(path.join(pack, `${name}.js`), "utf8").match(/ = "(.*)";\n$/);
  return zlib.gunzipSync(Buffer.from(text, "base64"));
};
const scratch = fs.mkdtempSync(path.join(os.tmpdir(), "pack-"));
const stdLibURL = path.join(scratch, "python_stdlib.zip");
fs.writeFileSync(stdLibURL, of("python_stdlib.zip"));
const python = await loadPyodide({ indexURL: pyodide + path.sep, stdLibURL });
fs.rmSync(scratch, { recursive: true });
for (const name of ["sympy.zip", "gatelib.zip"]) python.FS.writeFile(`/${name}`, of(name));
python.runPython("import sys; sys.path[:0] = ['/gatelib.zip', '/sympy.zip']");
const workshop = python.pyimport("gatelib.workshop");
const found = asked.map(([call, text]) => {
  const start = performance.now();
  const answer = workshop[call](text);
  return [answer, performance.now() - start];
});
process.stdout.write(JSON.stringify(found), () => process.exit(0));
