"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const plots = JSON.parse(document.getElementById("plots").textContent);
const root = document.documentElement;

const config = {
  responsive: true,
  displaylogo: false,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"],
};

// Dark or light: as the system has it, until somebody chooses.
function theme(dark) {
  root.dataset.theme = dark ? "dark" : "light";
  const style = getComputedStyle(root);
  const text = style.getPropertyValue("--text"), line = style.getPropertyValue("--line");
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line };
  for (const name of Object.keys(plots)) {
    const layout = plots[name].layout;
    layout.font = { color: text };
    layout.xaxis = { ...layout.xaxis, ...axis };
    layout.yaxis = { ...layout.yaxis, ...axis };
    Plotly.react(`plot-${name}`, plots[name].data, layout, config);
  }
}
const system = matchMedia("(prefers-color-scheme: dark)");
theme(system.matches);
system.addEventListener("change", (event) => theme(event.matches));
document.getElementById("theme").addEventListener("click", () => theme(root.dataset.theme !== "dark"));

// The table: a page of it at a time, so that a hundred thousand jobs are as quick as ten.
const SIZE = 100;
const body = document.querySelector("#jobs tbody"), head = document.querySelector("#jobs thead");
const filter = document.getElementById("filter"), outcome = document.getElementById("outcome");
let sorted = -1, way = 1, page = 0, shown = data.rows;

for (const each of data.outcomes) outcome.add(new Option(each, each));
const titles = document.createElement("tr");
data.columns.forEach((name, index) => {
  const cell = document.createElement("th"), button = document.createElement("button");
  cell.scope = "col";
  if (data.rows.some((row) => typeof row[index] === "number")) cell.className = "number";
  button.type = "button";
  button.textContent = name;
  button.addEventListener("click", () => {
    way = sorted === index ? -way : 1;
    sorted = index;
    select();
  });
  cell.append(button);
  titles.append(cell);
});
head.append(titles);

function compare(left, right) {
  const a = left[sorted], b = right[sorted];
  const none = (value) => value === null || value === undefined || value === "";
  if (none(a) || none(b)) return none(a) - none(b); // what is missing comes last, either way
  if (typeof a === "number" && typeof b === "number") return way * (a - b);
  return way * String(a).localeCompare(String(b), undefined, { numeric: true });
}

const RELATION = /^\s*(.+?)\s*(<=|>=|<|>|=)\s*(\S+)\s*$/;
function wanted() {
  const text = filter.value.toLowerCase(), relation = RELATION.exec(filter.value);
  const column = relation ? data.columns.indexOf(relation[1]) : -1;
  if (column < 0) return (row) => row.some((cell) => cell !== null && String(cell).toLowerCase().includes(text));
  const value = Number(relation[3]);
  const tests = {
    "<": (cell) => cell < value, ">": (cell) => cell > value,
    "<=": (cell) => cell <= value, ">=": (cell) => cell >= value,
    "=": (cell) => String(cell) === relation[3] || cell === value,
  };
  return (row) => row[column] !== null && row[column] !== "" && tests[relation[2]](row[column]);
}

function select() {
  const test = filter.value ? wanted() : () => true;
  shown = data.rows.filter((row) => (!outcome.value || row[1] === outcome.value) && test(row));
  if (sorted >= 0) shown = shown.slice().sort(compare);
  page = 0;
  draw();
}

// Seven digits are enough to look at; all of them are in the cell's title.
function shortly(value) {
  if (value === null) return "";
  return typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toPrecision(7))) : value;
}

function draw() {
  const pages = Math.max(1, Math.ceil(shown.length / SIZE));
  page = Math.min(Math.max(page, 0), pages - 1);
  body.replaceChildren(...shown.slice(page * SIZE, (page + 1) * SIZE).map((row) => {
    const line = document.createElement("tr");
    row.forEach((value, index) => {
      const cell = document.createElement("td");
      cell.textContent = shortly(value);
      cell.title = value === null ? "" : value;
      if (typeof value === "number") cell.className = "number";
      if (index === 1) {
        const mark = document.createElement("i");
        mark.style.background = data.colours[value];
        cell.prepend(mark);
      }
      line.append(cell);
    });
    return line;
  }));
  document.getElementById("count").textContent = `${shown.length.toLocaleString()} jobs`;
  document.getElementById("page").textContent = `${page + 1} / ${pages}`;
  [...titles.children].forEach((cell, index) => {
    cell.ariaSort = index === sorted ? (way > 0 ? "ascending" : "descending") : null;
  });
}

filter.addEventListener("input", select);
outcome.addEventListener("change", select);
document.getElementById("back").addEventListener("click", () => { page -= 1; draw(); });
document.getElementById("next").addEventListener("click", () => { page += 1; draw(); });
draw();
