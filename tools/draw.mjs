// Draws explorers when the book is built: one question a line on stdin, one answer a line on stdout.
//
//     node tools/draw.mjs VIEWS.js ...
//
// A question is {definition, width}, or {definition, width, settings}, as JSON; of a figure of the
// workshop's page it is {part, sheet, width}. The answer is {svg, reading}, or {error} with its
// reason. The files are those that a page loads.
import fs from "node:fs";
import readline from "node:readline";
import vm from "node:vm";

for (const file of process.argv.slice(2)) {
  vm.runInThisContext(fs.readFileSync(file, "utf8"), { filename: file });
}

const partOf = (part, sheet) => GatesWorkshop[part](sheet, GatesViews.backward);
const answer = ({ part, sheet, definition = partOf(part, sheet), width, settings = GatesViews.initial(definition) }) => {
  const { svg, reading } = GatesViews.views[definition.view](definition, settings, width);
  if (/NaN|undefined/.test(svg.replace(/aria-label="[^"]*"/, "") + reading)) throw new Error("it is no number at the start");
  return { svg, reading };
};

for await (const line of readline.createInterface({ input: process.stdin })) {
  let found;
  try {
    found = answer(JSON.parse(line));
  } catch (error) {
    found = { error: `${error.name}: ${error.message}` };
  }
  process.stdout.write(`${JSON.stringify(found)}\n`);
}
