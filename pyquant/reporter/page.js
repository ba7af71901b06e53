"use strict";
const report = JSON.parse(document.getElementById("report-data").textContent);

for (const [id, figure] of Object.entries(report.figures)) {
  const narrow = window.innerWidth < 760;
  if (narrow && id === "chart-layers") figure.layout.legend.font = { size: 11 };
  Plotly.newPlot(id, figure.data, figure.layout, { responsive: true, displaylogo: false, displayModeBar: false });
}

// A table of `rows` (arrays of text or numbers) that a search box filters word by word and a click on a head sorts.
function fill(name, { columns, rows }) {
  const shown = 1000;
  const root = document.getElementById(name);
  const box = root.querySelector("input"), count = root.querySelector(".count");
  const head = root.querySelector("thead"), body = root.querySelector("tbody");
  let order = null, falling = false;
  const text = (value) => (value === null ? "" : typeof value === "number" ? value.toLocaleString("en-US") : value);
  const cell = (tag, column, value) => {
    const made = document.createElement(tag);
    made.textContent = value;
    made.className = column.kind;
    return made;
  };
  const compare = (a, b) => {
    const [x, y] = [a[order], b[order]];
    if (x === null || y === null) return (x === null) - (y === null);
    const [m, n] = [parseFloat(x), parseFloat(y)];
    return Number.isNaN(m) || Number.isNaN(n) ? String(x).localeCompare(String(y)) : m - n;
  };
  function draw() {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = rows.filter((row) => {
      const line = row.map(text).join(" ").toLowerCase();
      return words.every((word) => line.includes(word));
    });
    if (order !== null) found = [...found].sort((a, b) => (falling ? compare(b, a) : compare(a, b)));
    body.replaceChildren(...found.slice(0, shown).map((row) => {
      const line = document.createElement("tr");
      line.append(...row.map((value, index) => cell("td", columns[index], text(value))));
      return line;
    }));
    const more = found.length > shown ? `, the first ${shown} shown` : "";
    count.textContent = `${found.length} of ${rows.length}${more}`;
  }
  const line = document.createElement("tr");
  columns.forEach((column, index) => {
    const made = cell("th", column, column.title);
    made.scope = "col";
    made.addEventListener("click", () => {
      falling = order === index ? !falling : false;
      order = index;
      for (const other of line.children) other.removeAttribute("aria-sort");
      made.setAttribute("aria-sort", falling ? "descending" : "ascending");
      draw();
    });
    line.append(made);
  });
  head.append(line);
  box.addEventListener("input", draw);
  draw();
}

for (const [name, table] of Object.entries(report.tables)) fill(name, table);
document.documentElement.dataset.ready = "true";
