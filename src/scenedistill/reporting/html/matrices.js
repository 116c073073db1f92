// Confusion matrices of two networks and their difference: values to hover, images behind every entry.
"use strict";

{
  const place = document.getElementById("matrix");
  const cells = data.matrices;
  const STRONG = 0.645; // from here on light text is read more easily than dark

  /** What two networks have of the chosen seed or, of all, of those that both have: others were tested on other images. */
  function chosenSeeds(first, second, seed) {
    const has = (network) => network.seeds.map((one) => String(one.seed));
    const both = has(first).filter((one) => has(second).includes(one));
    return (network) => network.seeds.filter((one) => {
      if (seed !== "all") return String(one.seed) === seed;
      return !both.length || both.includes(String(one.seed));
    });
  }

  /** Counts [K][K] over some seeds. */
  function counted(cell, seeds) {
    const counts = cell.classes.map(() => new Array(cell.classes.length).fill(0));
    for (const one of seeds) {
      for (const [row, column, count] of one.counts) counts[row][column] += count;
    }
    return counts;
  }

  const sum = (row) => row.reduce((total, count) => total + count, 0);
  const share = (row, all = sum(row)) => row.map((count) => (all ? count / all : NaN));
  const shares = (counts) => counts.map((row) => share(row));
  const percent = (share) => `${(100 * share).toFixed(1)} %`;
  const points = (share) => `${share >= 0 ? "+" : "−"}${Math.abs(100 * share).toFixed(1)} points`;

  function accuracy(counts) {
    const all = sum(counts.map(sum));
    return all ? percent(sum(counts.map((row, i) => row[i])) / all) : "-";
  }

  /** One grid: `value(r, c)` gives the cell's text, tone, depth of colour and words. */
  function grid(cell, title, note, value, open) {
    const body = make("tbody");
    cell.classes.forEach((name, r) => {
      const line = make("tr", {}, make("th", { scope: "row", title: name }, name));
      cell.classes.forEach((other, c) => {
        const shown = value(r, c);
        line.append(make("td", {
          tabindex: r || c ? "-1" : "0", "data-r": r, "data-c": c, "data-tip": shown.tip, "aria-label": shown.tip,
          class: `${shown.tone ?? ""}${shown.depth > STRONG ? " strong" : ""}`.trim() || null,
          style: `--v:${shown.depth.toFixed(3)}`,
        }, shown.text));
      });
      body.append(line);
    });
    const head = make("tr", {}, make("td", {}));
    for (const name of cell.classes) head.append(make("th", { scope: "col", title: name }, name));
    const label = `${title}: rows are true classes, columns predicted ones`;
    const table = make("table", { role: "grid", "aria-label": label }, make("thead", {}, head), body);
    table.style.setProperty("--classes", cell.classes.length);
    const at = (r, c) => table.querySelector(`td[data-r="${r}"][data-c="${c}"]`);
    const go = (target) => {
      table.querySelector('td[tabindex="0"]').tabIndex = -1;
      target.tabIndex = 0;
      target.focus();
    };
    table.addEventListener("click", (event) => {
      const target = event.target.closest("td[data-r]");
      if (target) { go(target); open(Number(target.dataset.r), Number(target.dataset.c)); }
    });
    table.addEventListener("keydown", (event) => {
      const target = event.target.closest("td[data-r]");
      if (!target) return;
      const [r, c] = [Number(target.dataset.r), Number(target.dataset.c)];
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(r, c); }
      else if (step && at(r + step[0], c + step[1])) { event.preventDefault(); go(at(r + step[0], c + step[1])); }
    });
    const scroll = make("div", { class: "scroll" }, table);
    return make("figure", { class: "matrix" }, make("h3", {}, title), make("p", { class: "note" }, note), scroll);
  }

  function plainGrid(cell, network, counts, note, open) {
    const share = shares(counts);
    return grid(cell, network.name, note, (r, c) => {
      const count = counts[r][c];
      const empty = Number.isNaN(share[r][c]);
      const words = `true: ${cell.classes[r]}\npredicted: ${cell.classes[c]}\n`;
      return {
        text: count && 100 * share[r][c] >= 0.5 ? Math.round(100 * share[r][c]) : "",
        depth: empty ? 0 : Math.sqrt(share[r][c]) * 0.95,
        tip: words + (empty ? "no test image of this class" : `${count} of ${sum(counts[r])} images, ${percent(share[r][c])}`),
      };
    }, open);
  }

  function differenceGrid(cell, first, second, before, after, open) {
    const [a, b] = [shares(before), shares(after)];
    const title = `Difference: ${second.name} minus ${first.name}`;
    return grid(cell, title, "Points of each true class. Blue: the second network is better; orange: worse.", (r, c) => {
      const change = b[r][c] - a[r][c];
      const known = Number.isFinite(change);
      const good = (r === c) === (change > 0);
      return {
        text: known && Math.abs(100 * change) >= 0.5 ? `${change > 0 ? "+" : "−"}${Math.round(Math.abs(100 * change))}` : "",
        tone: known && change ? (good ? "better" : "worse") : "",
        depth: known ? Math.sqrt(Math.min(1, Math.abs(change) * 2)) * 0.6 : 0,
        tip: `true: ${cell.classes[r]}\npredicted: ${cell.classes[c]}\n` + (known
          ? `${before[r][c]} images before, ${after[r][c]} after\n${points(change)}`
          : "no test image of this class"),
      };
    }, open);
  }

  // the images behind an entry
  const dialog = document.getElementById("images");

  function pictures(cell, network, seeds, r, c, counts) {
    const row = make("div", { class: "row" });
    const others = [];
    for (const one of seeds) {
      for (const [image, sure] of one.behind[`${r},${c}`] ?? []) {
        const [path, small] = cell.images[image];
        const words = `${path.split("/").pop()}, ${sure} % sure, seed ${one.seed}`;
        if (small < 0) { others.push(words); continue; }
        const picture = make("img", { src: data.thumbnails[small], alt: `${cell.classes[r]}: ${path}`, loading: "lazy" });
        row.append(make("figure", { class: `tile ${r === c ? "right" : "wrong"}` }, picture, make("figcaption", {}, words)));
      }
    }
    const all = counts[r][c];
    const listed = row.childElementCount + others.length;
    const count = `${all} image${all === 1 ? "" : "s"}${listed && listed < all ? `, ${listed} of them here` : ""}`;
    let note = others.length ? `Without a picture in this page: ${others.join("; ")}.` : "";
    if (all && !listed) note = "What the network said of each image was not kept.";
    return [make("h3", {}, `${network.name}: ${count}`), row, make("p", { class: "note" }, note)];
  }

  function openEntry(cell, chosen, r, c) {
    document.getElementById("images-title").textContent = r === c
      ? `${cell.classes[r]}, rightly named`
      : `${cell.classes[r]} taken for ${cell.classes[c]}`;
    const content = chosen.flatMap(([network, seeds, counts]) => pictures(cell, network, seeds, r, c, counts));
    dialog.querySelector(".content").replaceChildren(...content);
    tip.hidden = true;
    dialog.showModal();
  }
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

  // what is shown
  const select = (label, options, value, change) => {
    const box = make("select", { onchange: change }, ...options.map(([key, words]) => make("option", { value: key }, words)));
    box.value = value;
    return [make("label", {}, label, box), box];
  };

  function show(index, first, second, seed) {
    const cell = cells[index];
    const names = cell.networks.map((network, i) => [i, network.name]);
    const seeds = [...new Set(cell.networks.flatMap((network) => network.seeds.map((one) => String(one.seed))))];
    seed = seeds.includes(seed) ? seed : seeds.length > 1 ? "all" : seeds[0];
    const again = (focus) => {
      const other = cells[cellBox.value];
      const pair = other === cell ? [Number(firstBox.value), Number(secondBox.value)] : [other.first, other.second];
      show(Number(cellBox.value), ...pair, seedBox.value);
      place.querySelectorAll("select")[focus].focus();
    };
    const [cellLabel, cellBox] = select("data", cells.map((one, i) => [i, one.title]), index, () => again(0));
    const [firstLabel, firstBox] = select("first network", names, first, () => again(1));
    const [secondLabel, secondBox] = select("second network", names, second, () => again(2));
    const together = seeds.length > 1 ? [["all", "all that both have"]] : [];
    const seedNames = [...together, ...seeds.map((one) => [one, `seed ${one}`])];
    const [seedLabel, seedBox] = select("seeds", seedNames, seed, () => again(3));
    cellLabel.hidden = cells.length < 2;
    const [a, b] = [cell.networks[first], cell.networks[second]];
    const seedsOf = chosenSeeds(a, b, seed);
    const [before, after] = [counted(cell, seedsOf(a)), counted(cell, seedsOf(b))];
    const [mine, other] = [[a, seedsOf(a), before], [b, seedsOf(b), after]];
    const open = (...chosen) => (r, c) => openEntry(cell, chosen, r, c);
    const noteOf = ([, seeds, counts]) => {
      const numbers = seeds.map((one) => one.seed).join(", ") || "not there";
      return `OA ${accuracy(counts)}, seed ${numbers}. Percent of each true class.`;
    };
    place.replaceChildren(
      make("div", { class: "controls" }, cellLabel, firstLabel, secondLabel, seedLabel),
      make("div", { class: "matrices" },
        plainGrid(cell, a, before, noteOf(mine), open(mine)),
        plainGrid(cell, b, after, noteOf(other), open(other)),
        differenceGrid(cell, a, b, before, after, open(mine, other))),
    );
  }

  if (place && cells.length) show(0, cells[0].first, cells[0].second, "");
}
