// A raster's result as a map: the raster below, the classes over it; drag, wheel, pinch or keys move it.

const MOST = 64; // canvas pixels for one pixel of the raster, at the closest

export function showMap(place, answer, { percent, make }) {
  const canvas = place.querySelector("canvas");
  const context = canvas.getContext("2d");
  const { grid, legend } = answer;
  const classes = new Uint16Array(bytes(grid.classes).buffer); // 0: nothing, k + 1: class k
  const confidence = bytes(grid.confidence); // 0..255
  const layer = document.createElement("canvas");
  const picture = new Image();
  let view = null; // { scale, x, y }: canvas pixel = x + scale * raster pixel
  let only = null; // the one class shown, of the legend
  let fitted = true;

  layer.width = grid.columns;
  layer.height = grid.rows;
  picture.addEventListener("load", draw);
  picture.src = answer.preview;

  function paint() {
    const image = new ImageData(grid.columns, grid.rows);
    const colours = Object.fromEntries(legend.map((one) => [one.number, rgb(one.colour)]));
    const fade = place.querySelector(".fade").checked;
    for (let cell = 0; cell < classes.length; cell++) {
      const colour = colours[classes[cell] - 1];
      if (!colour || (only !== null && classes[cell] - 1 !== only)) continue;
      image.data.set([...colour, fade ? confidence[cell] : 255], 4 * cell);
    }
    layer.getContext("2d").putImageData(image, 0, 0);
    draw();
  }

  function draw() {
    if (!view) return;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.setTransform(view.scale, 0, 0, view.scale, view.x, view.y);
    context.save();
    context.beginPath(); // the last cells may reach over the edge
    context.rect(0, 0, answer.width, answer.height);
    context.clip();
    context.imageSmoothingEnabled = view.scale < 1;
    if (picture.complete && picture.naturalWidth) context.drawImage(picture, 0, 0, answer.width, answer.height);
    context.globalAlpha = Number(place.querySelector(".opacity").value) / 100;
    context.imageSmoothingEnabled = false;
    context.drawImage(layer, 0, 0, grid.columns * grid.cell_width, grid.rows * grid.cell_height);
    context.restore();
  }

  function fit() {
    const scale = 0.96 * Math.min(canvas.width / answer.width, canvas.height / answer.height);
    view = { scale, x: (canvas.width - scale * answer.width) / 2, y: (canvas.height - scale * answer.height) / 2 };
    fitted = true;
    draw();
  }

  function zoom(factor, x = canvas.width / 2, y = canvas.height / 2) {
    const least = 0.5 * Math.min(canvas.width / answer.width, canvas.height / answer.height);
    const scale = Math.min(MOST, Math.max(least, view.scale * factor));
    const real = scale / view.scale;
    move(x - real * (x - view.x), y - real * (y - view.y), scale);
  }

  function move(x, y, scale = view.scale) {
    // a quarter of the canvas keeps a piece of the map in sight
    const hold = (at, length, side) => Math.min(0.75 * side, Math.max(0.25 * side - length, at));
    view = {
      scale, x: hold(x, scale * answer.width, canvas.width), y: hold(y, scale * answer.height, canvas.height),
    };
    fitted = false;
    draw();
  }

  function read(point) {
    const [across, down] = [(point.x - view.x) / view.scale, (point.y - view.y) / view.scale];
    const column = Math.floor(across / grid.cell_width);
    const row = Math.floor(down / grid.cell_height);
    const inside = across >= 0 && down >= 0 && across < answer.width && down < answer.height;
    const cell = row * grid.columns + column;
    const found = inside && classes[cell] ? legend.find((one) => one.number === classes[cell] - 1) : null;
    const words = found ? [`${found.name}, ${percent(confidence[cell] / 255)}`] : [inside ? "no data" : "outside"];
    if (inside) {
      words.push(`pixel ${Math.floor(across)}, ${Math.floor(down)}`);
      if (answer.transform) {
        const [a, b, c, d, e, f] = answer.transform;
        const digits = answer.geographic ? 5 : 1;
        const [east, north] = [a * across + b * down + c, d * across + e * down + f];
        words.push(`${east.toFixed(digits)}, ${north.toFixed(digits)}`);
      }
    }
    place.querySelector(".readout").textContent = words.join(" · ");
  }

  const pointers = new Map();
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    const ratio = canvas.width / box.width;
    return { x: ratio * (event.clientX - box.left), y: ratio * (event.clientY - box.top) };
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, at(event));
    read(at(event));
  });
  canvas.addEventListener("pointermove", (event) => {
    const now = at(event);
    const before = pointers.get(event.pointerId);
    if (!before) return read(now);
    const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
    if (other) {
      const apart = (point) => Math.max(1, Math.hypot(point.x - other.x, point.y - other.y));
      zoom(apart(now) / apart(before), (now.x + other.x) / 2, (now.y + other.y) / 2);
      move(view.x + (now.x - before.x) / 2, view.y + (now.y - before.y) / 2);
    } else {
      move(view.x + now.x - before.x, view.y + now.y - before.y);
    }
    pointers.set(event.pointerId, now);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, (event) => pointers.delete(event.pointerId));
  }
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 16 * event.deltaY : event.deltaY;
    const { x, y } = at(event);
    zoom(Math.exp(-0.002 * Math.max(-300, Math.min(300, lines))), x, y);
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const step = 0.1 * canvas.width;
    const keys = {
      "+": () => zoom(1.4), "=": () => zoom(1.4), "-": () => zoom(1 / 1.4), 0: fit,
      ArrowLeft: () => move(view.x + step, view.y), ArrowRight: () => move(view.x - step, view.y),
      ArrowUp: () => move(view.x, view.y + step), ArrowDown: () => move(view.x, view.y - step),
    };
    if (!keys[event.key] || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    keys[event.key]();
  });
  place.querySelector(".in").addEventListener("click", () => zoom(1.6));
  place.querySelector(".out").addEventListener("click", () => zoom(1 / 1.6));
  place.querySelector(".all").addEventListener("click", fit);
  place.querySelector(".opacity").addEventListener("input", draw);
  place.querySelector(".fade").addEventListener("change", paint);

  place.querySelector(".legend").append(...legend.map((one) => {
    const button = make("button");
    button.type = "button";
    button.title = `Show only ${one.name}`;
    button.setAttribute("aria-pressed", "false");
    const patch = make("i");
    patch.style.background = one.colour;
    button.append(patch, make("span", one.name, "name"), make("span", percent(one.share), "share"));
    button.addEventListener("click", () => {
      only = only === one.number ? null : one.number;
      for (const other of place.querySelectorAll(".legend button")) {
        other.setAttribute("aria-pressed", String(other === button && only !== null));
      }
      paint();
    });
    const item = make("li");
    item.append(button);
    return item;
  }));

  new ResizeObserver(() => {
    const ratio = window.devicePixelRatio || 1;
    if (!canvas.clientWidth) return;
    canvas.width = Math.round(ratio * canvas.clientWidth);
    canvas.height = Math.round(ratio * canvas.clientHeight);
    if (fitted || !view) fit();
    else draw();
  }).observe(canvas);
  paint();
}

function bytes(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

function rgb(colour) {
  return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
}
