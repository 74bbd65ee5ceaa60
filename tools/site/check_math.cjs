// Read [{tex, display}] from stdin and print, as JSON, those that KaTeX refuses, with its reason.
const katex = require("katex");
const { readFileSync } = require("fs");

const refused = [];
for (const { tex, display } of JSON.parse(readFileSync(0, "utf8"))) {
  try {
    katex.renderToString(tex, { displayMode: display, throwOnError: true, strict: false });
  } catch (error) {
    refused.push({ tex, reason: error.message });
  }
}
console.log(JSON.stringify(refused));
