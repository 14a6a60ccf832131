// Values under the pointer, charts as PNG, and everything unfolded in print. The page is whole without it.
"use strict";

const NAMESPACE = "http://www.w3.org/2000/svg";

for (const figure of document.querySelectorAll("figure")) {
  const svg = figure.querySelector("svg[data-x]");
  if (!svg) continue;
  const save = document.createElement("button");
  save.className = "save";
  save.type = "button";
  save.textContent = "Save as PNG";
  save.addEventListener("click", () => savePng(figure));
  figure.append(save);
  svg.addEventListener("pointermove", (event) => point(figure, svg, event));
  svg.addEventListener("pointerleave", () => unpoint(figure));
}

function point(figure, svg, event) {
  unpoint(figure);
  const [low, high, start, end] = svg.dataset.x.split(" ").map(Number);
  const [top, bottom] = svg.dataset.y.split(" ").map(Number);
  const box = svg.getBoundingClientRect();
  const place = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
  const wanted = low + ((place - start) / (end - start)) * (high - low);
  const lines = [...svg.querySelectorAll("[data-points]")].map((line) => ({ line, at: nearest(line, wanted) }));
  if (!lines.length) return;
  const best = lines.reduce((a, b) => (Math.abs(a.at[0] - wanted) <= Math.abs(b.at[0] - wanted) ? a : b)).at[0];
  const x = start + ((best - low) / (high - low)) * (end - start);

  const pointer = document.createElementNS(NAMESPACE, "path");
  pointer.setAttribute("class", "pointer");
  pointer.setAttribute("d", `M${x} ${top}V${bottom}`);
  svg.append(pointer);

  const tip = document.createElement("div");
  tip.className = "tip";
  tip.append(`iteration ${best}`);
  for (const { line, at } of lines) {
    const row = document.createElement("div");
    const dot = document.createElement("i");
    dot.style.background = getComputedStyle(line).getPropertyValue("--hue");
    const elsewhere = at[0] === best ? "" : ` (at ${at[0]})`;
    row.append(dot, `${line.dataset.name}: ${at[1]}${elsewhere}`);
    tip.append(row);
  }
  figure.append(tip);
  // Under the chart: over it, it would hide what it tells of.
  const inside = figure.getBoundingClientRect();
  const across = box.left - inside.left + (x / svg.viewBox.baseVal.width) * box.width - tip.offsetWidth / 2;
  tip.style.left = `${Math.max(4, Math.min(across, figure.clientWidth - tip.offsetWidth - 4))}px`;
  tip.style.top = `${box.bottom - inside.top + 2}px`;
}

function unpoint(figure) {
  figure.querySelectorAll(".tip, .pointer").forEach((one) => one.remove());
}

function nearest(line, wanted) {
  line.points ??= line.dataset.points.split(" ").map((pair) => pair.split(":").map(Number));
  return line.points.reduce((a, b) => (Math.abs(a[0] - wanted) <= Math.abs(b[0] - wanted) ? a : b));
}

// A chart with its title and legend, twice as large as on the page, in the colours that the page has now.
async function png(figure) {
  const svg = figure.querySelector("svg[data-x]").cloneNode(true);
  svg.querySelectorAll(".pointer").forEach((one) => one.remove());
  const { width, height } = svg.viewBox.baseVal;
  const colours = getComputedStyle(document.documentElement);
  const names = [...document.querySelector("style").textContent.matchAll(/(--[a-z0-9]+):/g)].map((match) => match[1]);
  const resolved = [...new Set(names)].map((name) => `${name}:${colours.getPropertyValue(name)}`).join(";");
  const style = document.createElementNS(NAMESPACE, "style");
  const rules = document.querySelector("style").textContent.replace(/@media[^{]*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}/g, "");
  style.textContent = rules.replaceAll(".several figure ", "") + `svg{${resolved}}`;
  const words = [heading(figure), ...legend(figure)];
  const head = 26 + 16 * (words.length > 1 ? Math.ceil((words.length - 1) / 2) : 0);
  const title = words.map((word, place) => caption(word, place)).flat();
  svg.setAttribute("viewBox", `0 ${-head} ${width} ${height + head + 4}`);
  svg.setAttribute("width", 2 * width);
  svg.setAttribute("height", 2 * (height + head + 4));
  const paper = document.createElementNS(NAMESPACE, "rect");
  for (const [key, value] of Object.entries({ x: 0, y: -head, width, height: height + head + 4 })) {
    paper.setAttribute(key, value);
  }
  paper.style.fill = colours.getPropertyValue("--card");
  svg.prepend(style, paper, ...title.map((one) => (one.setAttribute("transform", `translate(0 ${-head})`), one)));

  const image = new Image();
  image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(new XMLSerializer().serializeToString(svg));
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = 2 * width;
  canvas.height = 2 * (height + head + 4);
  canvas.getContext("2d").drawImage(image, 0, 0);
  return canvas.toDataURL("image/png");
}

// What the chart is of, with the unit; of several runs also which part is drawn how.
function heading(figure) {
  const parts = [...figure.querySelectorAll(".parts.plain .part")].map((part) => part.textContent);
  const styles = parts.map((part, place) => `${part} ${place ? "dashed" : "solid"}`);
  return [figure.querySelector("h3").textContent, ...styles].join(", ");
}

// Name and colour of what the lines are.
function* legend(figure) {
  for (const item of [...document.querySelectorAll(".legend.names li"), ...figure.querySelectorAll(".parts:not(.plain) .part")]) {
    yield { text: item.textContent, hue: getComputedStyle(item.querySelector("svg")).getPropertyValue("--hue") };
  }
}

function caption(word, place) {
  const text = document.createElementNS(NAMESPACE, "text");
  if (place === 0) {
    text.textContent = word;
    text.setAttribute("x", 12);
    text.setAttribute("y", 18);
    text.style.cssText = "font-size:14px;font-weight:600;fill:var(--ink)";
    return [text];
  }
  const [x, y] = [12 + 194 * ((place - 1) % 2), 34 + 16 * Math.floor((place - 1) / 2)];
  const line = document.createElementNS(NAMESPACE, "path");
  line.setAttribute("d", `M${x} ${y - 4}h18`);
  line.style.cssText = `stroke:${word.hue};stroke-width:2`;
  text.textContent = word.text;
  text.setAttribute("x", x + 24);
  text.setAttribute("y", y);
  return [line, text];
}

async function savePng(figure) {
  const link = document.createElement("a");
  link.href = await png(figure);
  link.download = `${figure.dataset.title.toLowerCase().replace(/[^a-z0-9]+/g, "-")}.png`;
  link.click();
}

window.addEventListener("beforeprint", () => {
  for (const one of document.querySelectorAll("details:not([open])")) {
    one.open = true;
    one.dataset.folded = "";
  }
});
window.addEventListener("afterprint", () => {
  for (const one of document.querySelectorAll("details[data-folded]")) {
    one.open = false;
    delete one.dataset.folded;
  }
});
