// The page: takes files, asks the server about one after another, and shows what it says.
import { showMap } from "./map.js";

const $ = (selector, within = document) => within.querySelector(selector);
const SHORT = 5; // classes shown before "all"
const results = []; // { name, answer } or { name, error }, in the order of the files
const queue = [];
let asking = null; // the request under way
let limits = null;
let opacity = 60;

const percent = (share) => {
  const digits = share >= 0.9995 || share < 0.0005 ? 0 : 1;
  return share > 0 && share < 0.0005 ? "< 0.1 %" : `${(100 * share).toFixed(digits)} %`;
};
const duration = (seconds) => (seconds < 1 ? `${Math.max(1, Math.round(1000 * seconds))} ms` : `${seconds.toFixed(1)} s`);
const capital = (word) => word[0].toUpperCase() + word.slice(1);

function make(tag, text = "", name = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  if (name) element.className = name;
  return element;
}

async function start() {
  try {
    const about = await (await fetch("about")).json();
    limits = about.limits;
    $("#limits").textContent =
      `JPEG, PNG, WebP or TIFF, up to ${+(limits.bytes / 2 ** 20).toFixed(1)} MiB and ${limits.megapixels} million pixels. ` +
      "It stays on the computer that runs this page.";
    $("#networks").textContent = Object.entries(about.networks).map(([role, one]) => {
      const words = [`${capital(role)} ${one.name}`, `${one.classes.length} classes`];
      if (one.data) words.push(`trained on ${one.data}`);
      if (one.oa) words.push(`OA ${(100 * one.oa).toFixed(2)} %`);
      return words.join(", ");
    }).join(" · ");
  } catch {
    complain("The server does not answer. Is `scenedistill serve` still running?");
  }
}

function take(files) {
  queue.push(...files);
  if (!asking) next();
}

async function next() {
  const file = queue.shift();
  if (!file) return;
  complain("");
  asking = new AbortController();
  working(`${file.name || "image"}${queue.length ? `, then ${queue.length} more` : ""}`);
  let entry;
  try {
    entry = { name: file.name, answer: await classify(file, asking.signal) };
  } catch (problem) {
    entry = { name: file.name, error: problem.name === "AbortError" ? "Stopped." : problem.message };
  }
  asking = null;
  working("");
  results.push(entry);
  listResults();
  show(entry);
  next();
}

async function classify(file, signal) {
  if (limits && file.size > limits.bytes) {
    throw new Error(`${file.name} is larger than ${+(limits.bytes / 2 ** 20).toFixed(1)} MiB, the limit of this page.`);
  }
  const words = new URLSearchParams({ name: file.name || "pasted image", kind: $("#kind").value });
  words.set("window", $("#window").value);
  words.set("overlap", $("#overlap").value);
  let response;
  try {
    response = await fetch(`classify?${words}`, {
      method: "POST", body: file, signal, headers: { "content-type": "application/octet-stream" },
    });
  } catch (problem) {
    if (problem.name === "AbortError") throw problem;
    throw new Error("The connection ended. Is `scenedistill serve` still running?");
  }
  const said = await response.json().catch(() => ({ error: `The server answered ${response.status}.` }));
  if (!response.ok) throw new Error(said.error);
  return said;
}

function working(what) {
  $("#status").hidden = !what;
  $("#doing").textContent = what ? `Looking at ${what} …` : "";
}

function complain(line) {
  $("#error").hidden = !line;
  $("#error").textContent = line;
}

function listResults() {
  const list = $("#history");
  list.hidden = results.length < 2;
  list.replaceChildren(...results.map((entry) => {
    const button = make("button");
    button.type = "button";
    const said = entry.error ? make("span", "not classified", "bad") : make("span", summary(entry.answer));
    button.append(make("span", entry.name), said);
    button.addEventListener("click", () => show(entry));
    const item = make("li");
    item.append(button);
    return item;
  }));
}

function summary(answer) {
  if (answer.kind === "map") return `map: ${answer.legend[0]?.name ?? "nothing"}`;
  const student = answer.networks.student;
  return `${student.ranking[0]} ${percent(student.probabilities[0])}`;
}

function show(entry) {
  document.body.classList.add("used");
  [...$("#history").children].forEach((item, number) => {
    item.firstChild.setAttribute("aria-current", String(results[number] === entry));
  });
  complain(entry.error ?? "");
  const place = $("#result");
  place.hidden = Boolean(entry.error);
  place.replaceChildren();
  if (entry.error) return;
  const { answer } = entry;
  place.append($(answer.kind === "map" ? "#map" : "#scene").content.cloneNode(true));
  $("h2", place).textContent = answer.name;
  slide(place);
  if (answer.kind === "map") showMap(place, answer, { percent, make });
  else showScene(place, answer);
  $(".facts", place).textContent = facts(answer);
  $(".downloads", place).append("Keep the result: ", ...Object.entries(answer.downloads).map(link));
}

function facts(answer) {
  const words = [`${answer.width.toLocaleString("en")} × ${answer.height.toLocaleString("en")} pixels`];
  if (answer.facts) words.push(...answer.facts);
  words.push(`answered in ${duration(answer.total_seconds)}`);
  if (answer.note) words.push(answer.note);
  return words.join(" · ");
}

const FILES = { csv: "CSV", json: "JSON", gpkg: "GeoPackage", tif: "GeoTIFF" };

function link([name, address]) {
  const anchor = make("a", FILES[name.split(".").pop()] ?? name);
  anchor.href = address;
  anchor.download = `scenedistill-${name}`;
  return anchor;
}

function slide(place) {
  const [slider, output] = [$(".opacity", place), $("output", place)];
  slider.value = opacity;
  const say = () => {
    opacity = Number(slider.value);
    output.textContent = `${opacity} %`;
    place.style.setProperty("--opacity", opacity / 100);
    for (const heat of place.querySelectorAll(".heat")) heat.style.opacity = opacity / 100;
  };
  slider.addEventListener("input", say);
  say();
}

function showScene(place, answer) {
  const { student, teacher } = answer.networks;
  const said = student.ranking[0];
  if (teacher) {
    const verdict = $(".verdict", place);
    verdict.hidden = false;
    verdict.textContent = teacher.ranking[0] === said
      ? `Teacher and student agree: ${said}.`
      : `They differ: the student says ${said}, the teacher ${teacher.ranking[0]}.`;
  }
  const cards = Object.entries(answer.networks).map(([role, one]) => card(role, one, answer, look));
  $(".networks", place).append(...cards);
  const any = Object.values(answer.networks).some((one) => Object.keys(one.looks).length);
  $(".slider", place).hidden = !any;

  function look(name) {
    $(".evidence", place).textContent = `evidence for ${name}; press another class below to see its own`;
    cards.forEach((element, number) => {
      const uri = Object.values(answer.networks)[number].looks[name];
      const heat = $(".heat", element);
      heat.hidden = !uri;
      if (uri) heat.src = uri;
      heat.style.opacity = opacity / 100;
      for (const button of element.querySelectorAll(".bars button")) {
        button.setAttribute("aria-pressed", String(button.dataset.name === name));
      }
    });
  }
  if (any) look(said);
}

function card(role, one, answer, look) {
  const element = $("#network").content.cloneNode(true).firstElementChild;
  element.dataset.role = role;
  $(".role", element).append(make("b", capital(role)), ` ${one.name}`);
  $(".said strong", element).textContent = one.ranking[0];
  $(".said span", element).textContent = percent(one.probabilities[0]);
  const picture = $(".picture", element);
  picture.src = answer.preview;
  picture.alt = answer.name;
  const shape = answer.width / answer.height;
  $("figure", element).style.aspectRatio = shape;
  $("figure", element).style.width = `min(100%, ${32 * shape}rem)`;
  if (one.no_looks) {
    $(".why", element).hidden = false;
    $(".why", element).textContent = one.no_looks;
  }
  const rows = one.ranking.map((name, number) => row(name, one.probabilities[number], one.looks[name] && look));
  rows.forEach((item, number) => { item.hidden = number >= SHORT; });
  $(".bars", element).append(...rows);
  const more = $(".more", element);
  more.hidden = rows.length <= SHORT;
  more.textContent = `All ${rows.length} classes`;
  more.addEventListener("click", () => {
    const all = rows.at(-1).hidden;
    rows.forEach((item, number) => { item.hidden = !all && number >= SHORT; });
    more.textContent = all ? "Fewer classes" : `All ${rows.length} classes`;
  });
  const { reading, network, looks } = one.seconds;
  $(".time", element).textContent =
    `Network ${duration(network)}, reading ${duration(reading)}${looks ? `, Grad-CAM ${duration(looks)}` : ""}`;
  return element;
}

function row(name, share, look) {
  const line = make(look ? "button" : "div");
  const track = make("span", "", "track");
  const bar = make("i");
  bar.style.width = `${100 * share}%`;
  track.append(bar);
  line.append(make("span", name, "name"), track, make("span", percent(share), "share"));
  if (look) {
    line.type = "button";
    line.dataset.name = name;
    line.title = `Show where it looks for ${name}`;
    line.addEventListener("click", () => look(name));
  }
  const item = make("li");
  item.append(line);
  return item;
}

$("#file").addEventListener("change", (event) => {
  take([...event.target.files]);
  event.target.value = ""; // the same file may be chosen again
});
$("#stop").addEventListener("click", () => {
  queue.length = 0;
  asking?.abort();
});
$("#entry").addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  take([...event.dataTransfer.files]);
});
document.addEventListener("paste", (event) => take([...event.clipboardData.files]));
start();
