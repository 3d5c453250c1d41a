"""The page's only program: tables that sort by a click on a heading and show the rows that hold a word.

Without it the page reads the same, unsorted. Its hash stands in the page's policy, so nothing else can run.
"""

import base64
import hashlib

SCRIPT = """
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], original = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const key = (row, i) => { const c = row.cells[i]; return c.dataset.value ?? c.textContent.trim(); };
  const compare = (a, b) => {
    const x = parseFloat(a), y = parseFloat(b);
    if (a === "" || b === "") return (a === "") - (b === "");
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, "en", {numeric: true}) : x - y;
  };
  heads.forEach((head, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      for (const other of heads) other.removeAttribute("aria-sort");
      if (now === "descending") { body.append(...original); return; }
      const sign = now === "ascending" ? -1 : 1;
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const missing = (row) => key(row, i) === "";
      body.append(...[...original].sort((a, b) =>
        missing(a) !== missing(b) ? missing(a) - missing(b) : sign * compare(key(a, i), key(b, i))));
    });
  });
  const field = document.createElement("input"), name = document.createElement("label");
  field.type = "search";
  name.className = "filter";
  name.append("Show rows with ", field);
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\\s+/).filter(Boolean);
    for (const row of original)
      row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
  });
  table.closest(".card").before(name);
}
"""
HASH = "sha256-" + base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
"""For the policy: browsers compare it with the text between the tags."""
