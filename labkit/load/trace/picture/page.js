"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const bars = document.getElementById("bars"), panel = document.getElementById("panel"), part = document.getElementById("part");
const pieces = new Map();  // the element of each drawn slice -> its figure, its bar and the slice

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

const text = (number) => data.texts[number];
const percent = (share) => `${100 * share}%`;
const where = (bar) => (bar.rank === null ? "" : ` on rank ${bar.rank}`);

function showSection(number) {
  const chosen = data.sections[number];
  pieces.clear();
  bars.replaceChildren(...(chosen ? chosen.figures.map(drawFigure) : []));
  const first = bars.querySelector(".slice");
  if (first) first.tabIndex = 0;
  fitLabels();
  panel.replaceChildren(make("p", "note", "Point at a slice, or press Tab to reach the bars and move with the arrow keys: this panel then shows what was copied, and how its numbers are derived."));
}

function drawFigure(figure) {
  const section = make("section");
  section.append(make("h2", "", `${figure.name} ${figure.shape}`), make("p", "note", figure.caption));
  for (const bar of figure.bars) {
    const row = make("div", "bar"), room = make("div", "room"), lanes = make("div", "lanes");
    lanes.style.setProperty("--lanes", bar.lanes);
    lanes.append(...bar.slices.map((slice) => drawSlice(figure, bar, slice)));
    room.append(lanes);
    row.append(make("div", "rank", bar.name), room);
    section.append(row);
  }
  return section;
}

function drawSlice(figure, bar, slice) {
  const element = make("button", `slice ${slice.kind === "copy" ? `tone${slice.tone % 4}` : slice.kind.replace(" ", "-")}`);
  const [top, bottom] = slice.down || [0, 1], lane = slice.lane || 0;
  element.type = "button";
  element.tabIndex = -1;
  element.classList.toggle("fault", Boolean(slice.faults));
  element.classList.toggle("tall", Boolean(slice.down));
  element.style.left = percent(slice.start / figure.length);
  element.style.width = percent((slice.stop - slice.start) / figure.length);
  element.style.top = percent((lane + top) / bar.lanes);
  element.style.height = percent((bottom - top) / bar.lanes);
  element.setAttribute("aria-label", `${text(slice.labels[0])}${where(bar)}`);
  element.append(make("span"));
  pieces.set(element, { figure, bar, slice });
  return element;
}

function fitLabels() {  // a character of the label's font is 7 pixels wide; widths are read before anything is written
  const widths = [...pieces.keys()].map((element) => element.clientWidth);
  [...pieces].forEach(([element, { slice }], place) => {
    const label = slice.labels.map(text).find((candidate) => 7 * candidate.length + 8 <= widths[place]);
    element.firstChild.textContent = label || "";
    element.firstChild.hidden = !label;
  });
}

function explain(element) {
  const { figure, bar, slice } = pieces.get(element), list = make("dl"), sentences = make("ul"), record = data.records[slice.record];
  const row = (term, ...values) => {
    list.append(make("dt", "", term), make("dd", "", values.filter((value) => value !== null).join(" ")));
  };
  if (record) {
    row("source", text(slice.source), "of", record.tensor, shape(record.shape), record.dtype);
    row("destination", text(slice.destination), "of", record.parameter, shape(record.parameter_shape), record.parameter_dtype);
    row("mapping row", mapping(record.mapping));
    if (record.file) row("file", record.file, record.bytes && `bytes ${record.bytes[0]}:${record.bytes[1]}`);
  } else {
    row(bar.rank === null ? "tensor" : "parameter", figure.name, figure.shape);
    row("part", text(slice.destination));
  }
  sentences.append(...slice.sentences.map((number) => make("li", "", text(number))));
  panel.replaceChildren(make("h2", "", `${text(slice.labels[0])}${where(bar)}`), sentences, list);
  if (record) panel.append(make("div", "note", "the part of the tensor that was read:"), drawSource(record));
  panel.scrollTop = 0;
  for (const other of bars.querySelectorAll(".shown")) other.classList.remove("shown");
  element.classList.add("shown");
}

function drawSource(record) {
  const cut = record.source.findIndex(([start, stop], axis) => start !== 0 || stop !== record.shape[axis]);
  const [start, stop] = cut < 0 ? [0, 1] : record.source[cut], length = cut < 0 ? 1 : record.shape[cut];
  const whole = make("div", "whole"), read = make("i");
  read.style.left = percent(start / length);
  read.style.width = percent((stop - start) / length);
  whole.append(read);
  return whole;
}

const shape = (sizes) => `(${sizes.join(", ")}${sizes.length === 1 ? "," : ""})`;
const mapping = (row) => row === null ? "none: the tensor keeps its name" : `${row.from} -> ${row.to}${row.shard === null ? "" : `, shard ${row.shard}`}`;

function nearest(element, key) {  // left and right along the bar; up and down to the bar's neighbour, at about the same place
  const all = [...pieces.keys()], place = all.indexOf(element);
  if (key === "ArrowLeft") return all[place - 1];
  if (key === "ArrowRight") return all[place + 1];
  const box = element.getBoundingClientRect(), down = key === "ArrowDown";
  const ahead = all.map((other) => ({ other, at: other.getBoundingClientRect() }))
    .filter(({ at }) => down ? at.top >= box.bottom - 1 : at.bottom <= box.top + 1);
  const edge = down ? Math.min(...ahead.map(({ at }) => at.top)) : Math.max(...ahead.map(({ at }) => at.top));
  const near = ahead.filter(({ at }) => Math.abs(at.top - edge) < 2);
  const off = ({ at }) => Math.max(at.left - box.left, box.left - at.right + 1, 0);
  return near.sort((one, another) => off(one) - off(another))[0]?.other;
}

function listFindings() {
  const found = document.getElementById("findings");
  if (!data.findings.length) {
    found.append(make("p", "", "No fault was found: every row of every parameter was written once."));
    return;
  }
  const details = make("details"), list = make("ul");
  details.open = data.findings.length <= 4;
  details.append(make("summary", "", `${data.findings.length} fault${data.findings.length === 1 ? "" : "s"} found`), list);
  data.findings.forEach((finding, number) => {
    const item = make("li"), button = make("button", "", finding);
    button.type = "button";
    button.addEventListener("click", () => goTo(number));
    item.append(button);
    list.append(item);
  });
  found.append(details);
}

function goTo(finding) {
  const has = (slice) => slice.faults?.includes(finding);
  const number = data.sections.findIndex((chosen) => slicesOf(chosen).some(has));
  if (number < 0) return;
  part.value = number;
  showSection(number);
  [...pieces].find(([, { slice }]) => has(slice))[0].focus();
}

const slicesOf = (chosen) => chosen.figures.flatMap(({ bars }) => bars.flatMap(({ slices }) => slices));
const faulty = (chosen) => slicesOf(chosen).some(({ faults }) => faults);
data.sections.forEach((chosen, number) => part.append(new Option(chosen.title + (faulty(chosen) ? " (fault)" : ""), number)));
part.addEventListener("change", () => showSection(Number(part.value)));
bars.addEventListener("focusin", ({ target }) => {
  if (!pieces.has(target)) return;
  for (const other of pieces.keys()) other.tabIndex = other === target ? 0 : -1;
  explain(target);
});
bars.addEventListener("pointerover", ({ target }) => {
  const element = target.closest(".slice");
  if (element) explain(element);
});
bars.addEventListener("pointerleave", () => {
  if (pieces.has(document.activeElement)) explain(document.activeElement);
});
bars.addEventListener("keydown", (event) => {
  if (!event.key.startsWith("Arrow") || !pieces.has(event.target)) return;
  event.preventDefault();
  nearest(event.target, event.key)?.focus();
});
window.addEventListener("resize", fitLabels);

listFindings();
const opened = [data.sections.findIndex(faulty), data.sections.findIndex(({ title }) => /\d$/.test(title)), 0].find((number) => number >= 0);
part.value = opened;
showSection(opened);
