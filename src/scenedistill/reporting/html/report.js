// The page's own behaviour: colours, sorting, downloads, tips, legends. The matrices are in matrices.js.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);

/** An element with attributes and children; text children become text nodes, so nothing is read as HTML. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// light or dark
{
  const button = document.getElementById("theme");
  const root = document.documentElement;
  const prefers = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : prefers.matches);
  const say = () => { button.textContent = isDark() ? "Light page" : "Dark page"; };
  try { // a page opened from a file may be refused a store
    const kept = localStorage.getItem("scenedistill-theme");
    if (kept) root.dataset.theme = kept;
  } catch { /* then the choice lasts as long as the page */ }
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("scenedistill-theme", root.dataset.theme); } catch { /* as above */ }
    say();
  });
  prefers.addEventListener("change", say);
  say();
  if (matchMedia("(max-width: 860px)").matches) document.querySelector("nav details").open = false;
}

// tables: sorting
function sortValue(cell) {
  return cell.dataset.sort === undefined ? cell.textContent : Number(cell.dataset.sort.replace("inf", "Infinity"));
}

function sortBy(table, column, heading) {
  const ascending = heading.getAttribute("aria-sort") !== "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const rows = [...table.tBodies[0].rows];
  rows.sort((one, other) => {
    const [a, b] = [sortValue(one.cells[column]), sortValue(other.cells[column])];
    const order = typeof a === "number" && typeof b === "number" ? a - b || 0 : String(a).localeCompare(String(b));
    return ascending ? order : -order;
  });
  table.tBodies[0].append(...rows);
}

// tables: downloads
const text = (cell) => cell.textContent.replace(/[↕↑↓]/g, "").trim().replace(/\s+/g, " ");

function asGrid(table, spreads) {
  const rows = [...table.rows];
  const extra = [...rows[0].cells].map((_, i) => spreads && rows.some((row) => row.cells[i].dataset.spread !== undefined));
  return rows.map((row, number) => [...row.cells].flatMap((cell, i) => {
    if (!extra[i]) return [text(cell)];
    if (!number) return [text(cell), `${text(cell)} std`];
    return cell.dataset.spread === undefined ? [text(cell), ""] : [text(cell).split(" ± ")[0], cell.dataset.spread];
  }));
}

const formats = {
  CSV: {
    ending: "csv", type: "text/csv",
    write: (table) => asGrid(table, true).map((row) => row.map((value) => {
      const safe = /^[=@]|^[+-](?![\d.])./.test(value) ? `'${value}` : value; // a spreadsheet must not run it
      return /[",\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
    }).join(",")).join("\r\n") + "\r\n",
  },
  LaTeX: {
    ending: "tex", type: "text/x-tex",
    write: (table) => {
      const special = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "±": "$\\pm$",
        "†": "$\\dagger$", "<": "\\textless{}", ">": "\\textgreater{}" };
      const safe = (value) => value.replace(/[\\~^±†<>&%$#_{}]/g, (letter) => special[letter] ?? `\\${letter}`);
      const [head, ...rows] = asGrid(table, false).map((row) => row.map(safe).join(" & ") + " \\\\");
      const columns = [...table.tHead.rows[0].cells].map((cell) => (cell.classList.contains("figure") ? "r" : "l")).join("");
      return ["\\begin{tabular}{" + columns + "}", "\\hline", head, "\\hline", ...rows, "\\hline", "\\end{tabular}", ""].join("\n");
    },
  },
  Markdown: {
    ending: "md", type: "text/markdown",
    write: (table) => {
      const safe = (value) => value.replace(/[\\|<>*_`[\]]/g, "\\$&");
      const [head, ...rows] = asGrid(table, false).map((row) => `| ${row.map(safe).join(" | ")} |`);
      const rule = [...table.tHead.rows[0].cells].map((cell) => (cell.classList.contains("figure") ? "---:" : "---"));
      return [head, `| ${rule.join(" | ")} |`, ...rows, ""].join("\n");
    },
  },
};

function download(name, type, content) {
  const url = URL.createObjectURL(new Blob([content], { type: `${type};charset=utf-8` }));
  const link = make("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

for (const box of document.querySelectorAll("div.table")) {
  const table = box.querySelector("table");
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = make("button", { type: "button", class: "sort" }, heading.textContent);
    button.addEventListener("click", () => sortBy(table, column, heading));
    heading.replaceChildren(button);
  });
  const caption = box.querySelector("h3").textContent;
  for (const [name, format] of Object.entries(formats)) {
    box.querySelector("[data-tools]").append(make("button", {
      type: "button", "data-format": format.ending, "aria-label": `download "${caption}" as ${name}`,
      onclick: () => download(`${box.dataset.name}.${format.ending}`, format.type, format.write(table)),
    }, name));
  }
}

// tips: the value under the pointer or the focus
const tip = document.getElementById("tip");

function showTip(target, x, y) {
  tip.textContent = target.dataset.tip;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(x + 12, innerWidth - box.width - 8))}px`;
  tip.style.top = `${y + 18 + box.height > innerHeight ? Math.max(4, y - box.height - 12) : y + 18}px`;
}

document.addEventListener("pointermove", (event) => {
  const target = event.target.closest?.("[data-tip]");
  if (target) showTip(target, event.clientX, event.clientY);
  else tip.hidden = true;
});
function showFocused() {
  const target = document.activeElement?.closest("[data-tip]");
  const box = target?.getBoundingClientRect();
  if (target) showTip(target, box.left, box.bottom - 14);
  else tip.hidden = true;
}
document.addEventListener("focusin", showFocused);
document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });
document.addEventListener("scroll", showFocused, { passive: true, capture: true }); // going to an entry may scroll

// legends: a series brought out
for (const charts of document.querySelectorAll(".charts")) {
  const keys = [...charts.querySelectorAll("[data-key]")];
  for (const key of keys) {
    key.addEventListener("click", () => {
      key.setAttribute("aria-pressed", key.getAttribute("aria-pressed") !== "true");
      const chosen = new Set(keys.filter((one) => one.getAttribute("aria-pressed") === "true").map((one) => one.dataset.key));
      for (const series of charts.querySelectorAll("[data-series]")) {
        series.classList.toggle("dim", chosen.size > 0 && !chosen.has(series.dataset.series));
      }
    });
  }
}

// small pictures, each held once
for (const image of document.querySelectorAll("img[data-thumb]")) image.src = data.thumbnails[image.dataset.thumb];

// printing shows what is folded
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not([open])")) { details.open = true; details.dataset.shut = ""; }
});
addEventListener("afterprint", () => {
  for (const details of document.querySelectorAll("details[data-shut]")) { details.open = false; delete details.dataset.shut; }
});
