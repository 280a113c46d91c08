"use strict";
// Tooltips: the marks' <title> texts, shown at once.
(() => {
  const box = document.createElement("div");
  box.id = "tip";
  box.hidden = true;
  document.body.append(box);
  for (const title of document.querySelectorAll("svg title")) {
    title.parentNode.dataset.tip = title.textContent;
    title.parentNode.setAttribute("aria-label", title.textContent);
    title.remove();
  }
  document.addEventListener("mousemove", (event) => {
    const mark = event.target.closest ? event.target.closest("[data-tip]") : null;
    box.hidden = !mark;
    if (!mark) return;
    box.textContent = mark.dataset.tip;
    box.style.left = Math.min(event.clientX + 14, innerWidth - box.offsetWidth - 8) + "px";
    box.style.top = (event.clientY + 18 + box.offsetHeight > innerHeight ? event.clientY - box.offsetHeight - 10 : event.clientY + 18) + "px";
  });
})();

// The candidate table: sort by a click on a heading, filter by text, stage, hull distance and Tc.
(() => {
  const table = document.getElementById("candidates-table");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const shown = document.getElementById("shown");
  const inputs = Object.fromEntries(["find", "where", "hull", "tc"].map((name) => [name, document.getElementById("filter-" + name)]));

  const value = (row, column) => row.cells[column].dataset.v ?? row.cells[column].textContent.trim();
  const sort = (column, heading) => {
    const numeric = heading.dataset.kind === "number";
    const now = heading.getAttribute("aria-sort");
    const down = now ? now === "ascending" : heading.dataset.first === "descending";
    for (const h of table.tHead.rows[0].cells) h.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    rows.sort((a, b) => {
      const x = value(a, column), y = value(b, column);
      if (x === "" || y === "") return (x === "") - (y === "");  // unknown values last, whichever way
      const order = numeric ? x - y : x.localeCompare(y, "en", { numeric: true });
      return down ? -order : order;
    });
    body.append(...rows);
  };
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = heading.querySelector("button");
    if (button) button.addEventListener("click", () => sort(column, heading));
  });

  const filter = () => {
    const words = inputs.find.value.toLowerCase().split(/\s+/).filter(Boolean);
    const where = inputs.where.value;
    const hull = parseFloat(inputs.hull.value), tc = parseFloat(inputs.tc.value);
    let count = 0;
    for (const row of rows) {
      const d = row.dataset;
      const keep = words.every((w) => d.search.includes(w))
        && (where === "" || d.where.split(" ").includes(where))
        && (Number.isNaN(hull) || (d.hull !== "" && +d.hull <= hull))
        && (Number.isNaN(tc) || (d.tc !== "" && +d.tc >= tc));
      row.hidden = !keep;
      count += keep;
    }
    shown.textContent = `${count} of ${rows.length} shown`;
  };
  for (const input of Object.values(inputs)) input.addEventListener("input", filter);
  filter();
})();
