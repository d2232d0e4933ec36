// Draws the board that /api/stream sends. Text goes in as text: names come from other organisations.
const PHASES = ["offer", "manifest", "join", "roster", "upload", "check", "vote", "open", "done"];
const NOTES_SHOWN = 60;
const SVG = "http://www.w3.org/2000/svg";

const $ = (id) => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function draw(tag, attributes, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

const clock = (ms) => new Date(ms).toLocaleTimeString([], { hour12: false });
const number = (value) => value.toLocaleString("en");

function phases(line) {
  const at = PHASES.indexOf(line.phase);
  return make("ol", { className: "phases", ariaLabel: `phase: ${line.phase}` }, ...PHASES.map((phase, place) => {
    const seconds = line.seconds[phase];
    const text = seconds === undefined ? phase : `${phase} ${seconds.toFixed(1)} s`;
    let kind = place < at ? "past" : place === at ? (phase === "done" ? "end" : "now") : "";
    if (line.phase === "failed") kind = seconds === undefined ? "" : "past";
    return make("li", { className: kind, textContent: text });
  }), ...(line.phase === "failed" ? [make("li", { className: "failed", textContent: `failed: ${line.code}` })] : []));
}

function funnel(line) {
  const rows = [["joined", line.joined], ["in the roster", line.enrolled], ["uploaded", line.uploaded], ["in the sum", line.survivors]];
  const most = Math.max(1, ...rows.map(([, count]) => count));
  return make("dl", { className: "funnel" }, ...rows.flatMap(([name, count]) => {
    const fill = make("i");
    fill.style.setProperty("width", `${(100 * count) / most}%`);
    return [make("dt", { textContent: name }), make("dd", { className: "bar", ariaHidden: "true" }, fill), make("dd", { textContent: number(count) })];
  }));
}

function frame(title, most, first, last) {
  const chart = draw("svg", { viewBox: "0 0 480 140", class: "chart", role: "img", "aria-label": title });
  chart.append(draw("line", { x1: 34, y1: 118, x2: 476, y2: 118, class: "axis" }), draw("line", { x1: 34, y1: 12, x2: 476, y2: 12, class: "axis" }));
  chart.append(draw("text", { x: 30, y: 16, "text-anchor": "end" }, most), draw("text", { x: 30, y: 122, "text-anchor": "end" }, "0"));
  chart.append(draw("text", { x: 34, y: 136 }, `round ${first}`), draw("text", { x: 476, y: 136, "text-anchor": "end" }, last === first ? "" : last));
  return chart;
}

function lossChart(rounds) {
  const points = rounds.filter((line) => line.loss !== null);
  if (!points.length) return "";
  const most = Math.max(...points.map((line) => line.loss)) || 1;
  const latest = points.at(-1);
  const chart = frame(`training loss, latest ${latest.loss.toPrecision(3)} in round ${latest.number}`, most.toPrecision(2), points[0].number, latest.number);
  const x = (place) => 34 + (442 * place) / Math.max(1, points.length - 1);
  const y = (loss) => 118 - (106 * loss) / most;
  chart.append(draw("polyline", { points: points.map((line, place) => `${x(place)},${y(line.loss)}`).join(" "), class: "curve" }));
  chart.append(draw("circle", { cx: x(points.length - 1), cy: y(latest.loss), r: 3, class: "dot" }));
  return make("div", {}, make("h3", { textContent: `Training loss on the devices: ${latest.loss.toPrecision(3)}` }), chart);
}

function cohortChart(rounds) {
  const over = rounds.filter((line) => line.ended);
  if (!over.length) return "";
  const most = Math.max(1, ...over.map((line) => Math.max(line.joined, line.survivors)));
  const latest = over.at(-1);
  const chart = frame(`devices in the sum, latest ${latest.survivors} of ${latest.joined} that joined`, number(most), over[0].number, latest.number);
  const step = 442 / over.length;
  over.forEach((line, place) => {
    const box = (count, kind) => draw("rect", { x: 34 + place * step, y: 118 - (106 * count) / most, width: Math.max(0.5, step * 0.8), height: (106 * count) / most, class: kind });
    chart.append(line.code ? box(line.joined, "box lost") : box(line.survivors, "box"));
  });
  return make("div", {}, make("h3", { textContent: "Devices in the sum (red: a round that failed)" }), chart);
}

function taskCard(task) {
  const line = task.rounds.at(-1);
  const title = make("header", {}, make("h2", { textContent: task.name }),
    make("p", { className: `pill ${task.failed ? "" : "good"}`, textContent: `${task.state} · ${number(task.finished)} rounds done, ${number(task.failed)} failed` }));
  if (!line) return make("article", {}, title);
  const state = make("h3", { textContent: `Round ${line.number}, begun ${clock(line.begun)}` });
  return make("article", {}, title, state, phases(line), funnel(line), make("div", { className: "charts" }, lossChart(task.rounds), cohortChart(task.rounds)));
}

function counts(of, none) {
  const rows = Object.entries(of);
  if (!rows.length) return make("p", { className: "empty", textContent: none });
  return make("table", {}, make("tbody", {}, ...rows.map(([name, count]) =>
    make("tr", {}, make("th", { scope: "row", textContent: name }), make("td", { textContent: number(count) })))));
}

function note(entry) {
  const { at, event, ...facts } = entry;
  const text = Object.entries(facts).filter(([, value]) => value !== "").map(([name, value]) => `${name} ${value}`).join(", ");
  return make("li", {}, make("time", { dateTime: new Date(at).toISOString(), textContent: clock(at) }), make("span", { textContent: event }), make("span", { textContent: text }));
}

function show(board) {
  document.title = `${board.role} · blindsum`;
  $("role").textContent = board.role;
  $("link").textContent = board.connected ? "connected to the broker" : board.link || "not connected to the broker";
  $("link").className = `pill ${board.connected ? "good" : "bad"}`;
  if (board.tasks.length) $("tasks").replaceChildren(...board.tasks.map(taskCard));
  const roles = Object.entries(board.online).map(([who, up]) => make("li", { className: `pill ${up ? "good" : "bad"}`, textContent: `${who} ${up ? "here" : "away"}` }));
  $("online").replaceChildren(...roles, make("li", { className: "pill", textContent: `${number(board.devices_online)} devices here` }));
  $("refusals").replaceChildren(counts(board.refusals, "Nothing was refused."));
  $("culprits").replaceChildren(counts(board.culprits, "Nobody was blamed."));
  $("notes").replaceChildren(...board.notes.slice(-NOTES_SHOWN).reverse().map(note));
}

const stream = new EventSource("api/stream");
stream.onmessage = (message) => show(JSON.parse(message.data));
stream.onerror = () => {
  $("link").textContent = "this page has lost the role; trying again";
  $("link").className = "pill bad";
};
