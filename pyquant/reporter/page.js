"use strict";
const report = JSON.parse(document.getElementById("report-data").textContent);

// What depends on the width: on a phone fewer places are named along the layers, and names of bars are cut in front.
function fitted(id, layout, width) {
  if (id === "chart-layers") {
    const { tickvals, ticktext } = layout.xaxis2;
    const calls = Math.max(...report.figures[id].data.flatMap((trace) => trace.x)) + 1;
    let last = -Infinity;
    const kept = tickvals.map((place) => {
      const fits = ((place - last) / calls) * (width - 90) >= 24;
      if (fits) last = place;
      return fits;
    });
    const values = tickvals.filter((_, index) => kept[index]), texts = ticktext.filter((_, index) => kept[index]);
    return {
      "xaxis.tickvals": values, "xaxis.ticktext": texts, "xaxis2.tickvals": values, "xaxis2.ticktext": texts,
      "legend.font.size": width < 500 ? 11 : 12,
    };
  }
  if (id === "chart-bytes") {
    const names = report.figures[id].data[0].y, room = width < 500 ? 20 : 44;
    const cut = (name) => (name.length > room ? "\u2026" + name.slice(1 - room) : name);
    return { "yaxis.tickvals": names, "yaxis.ticktext": names.map(cut) };
  }
  return {};
}

function applied(layout, changes) {
  for (const [path, value] of Object.entries(changes)) {
    const keys = path.split("."), last = keys.pop();
    keys.reduce((part, key) => (part[key] ??= {}), layout)[last] = value;
  }
  return layout;
}

const charts = Object.entries(report.figures).map(([id, figure]) => {
  const root = document.getElementById(id), changes = () => fitted(id, figure.layout, root.clientWidth);
  window.addEventListener("resize", () => Plotly.relayout(root, changes()));
  const layout = applied(structuredClone(figure.layout), changes());
  return Plotly.newPlot(root, figure.data, layout, { responsive: true, displaylogo: false, displayModeBar: false });
});

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
Promise.all(charts).then(() => { document.documentElement.dataset.ready = "true"; });
