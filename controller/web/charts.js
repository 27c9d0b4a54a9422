// Drawing: charts of the last 15 minutes, and the map of the cluster. Colours and
// dashes come from page.css by class; what they say stands in tables, too.

const span = 15 * 60 * 1000;
const svgNS = "http://www.w3.org/2000/svg";

export function svg(name, attributes = {}, ...children) {
  const e = document.createElementNS(svgNS, name);
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  e.append(...children);
  return e;
}

export function element(name, attributes = {}, ...children) {
  const e = document.createElement(name);
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  e.append(...children);
  return e;
}

// lineClass is how the i-th controller is drawn: seven colours, and by other dashes
// those that follow.
export const lineClass = (i) => `series s${i % 7} d${i % 4}`;

// short writes a number for an axis or a cell.
export function short(v) {
  if (v === null || v === undefined) return "–";
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    if (v >= size) return trim(v / (unit === "k" ? 1e3 : size)) + unit;
  }
  return trim(v);
}

const trim = (v) => (v >= 100 ? Math.round(v).toString() : String(Number(v.toPrecision(2))));

export const percent = (v) => (v === null || v === undefined ? "–" : (100 * v).toFixed(1) + "%");

// nice is a round number that is not below v.
function nice(v) {
  if (!(v > 0)) return 1;
  const size = 10 ** Math.floor(Math.log10(v));
  return [1, 2, 5, 10].find((step) => step * size >= v) * size;
}

// chart draws a figure of all controllers. Each series is {name, index, ages, values}:
// how long ago, in ms, and what; null is a gap.
export function chart(title, unit, series, { top, format = short } = {}) {
  const width = 320, height = 120, left = 40, right = 4, over = 6, under = 16;
  const most = top ?? nice(Math.max(0, ...series.flatMap((s) => s.values.filter((v) => v !== null))));
  const x = (age) => left + (width - left - right) * (1 - Math.min(age, span) / span);
  const y = (v) => over + (height - over - under) * (1 - Math.min(v, most) / most);
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  for (const part of [0, 0.5, 1]) {
    drawing.append(
      svg("line", { class: "axis", x1: left, x2: width - right, y1: y(part * most), y2: y(part * most) }),
      svg("text", { x: left - 4, y: y(part * most) + 3, "text-anchor": "end" }, format(part * most)));
  }
  for (const minutes of [15, 10, 5, 0]) {
    const anchor = minutes === 15 ? "start" : minutes === 0 ? "end" : "middle";
    drawing.append(svg("text", { x: x(minutes * 60000), y: height - 3, "text-anchor": anchor }, minutes ? `−${minutes} min` : "now"));
  }
  const said = [];
  for (const s of series) {
    let path = "", pen = false;
    s.values.forEach((v, i) => {
      if (v !== null) path += `${pen ? "L" : "M"}${x(s.ages[i]).toFixed(1)} ${y(v).toFixed(1)}`;
      pen = v !== null;
    });
    drawing.append(svg("path", { class: lineClass(s.index), d: path }, svg("title", {}, s.name)));
    said.push(`${s.name} ${format(s.values.at(-1))}`);
  }
  drawing.setAttribute("aria-label", `${title}, ${unit}. Newest: ${said.join(", ") || "nothing yet"}`);
  return element("figure", {}, element("figcaption", {}, title + " ", element("span", {}, unit)), drawing);
}

// map draws controllers on a circle, with lines between those that reach each other.
// Each is {name, mark, kind, role}; reaches tells of two of them: true, false, or
// undefined if neither says.
export function map(target, controllers, reaches) {
  target.replaceChildren();
  // Of long names the end tells them apart, and all of it stands in the table.
  const n = controllers.length, most = n > 6 ? 8 : 14;
  const label = (name) => (name.length > most ? "…" + name.slice(1 - most) : name);
  const cx = 160, cy = 118, r = n === 1 ? 0 : 80, size = n > 8 ? 14 : 22;
  const at = controllers.map((_, i) => {
    const turn = (2 * Math.PI * i) / n - Math.PI / 2;
    return [cx + 1.25 * r * Math.cos(turn), cy + r * Math.sin(turn)];
  });
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < i; j++) {
      const reached = reaches(controllers[i].name, controllers[j].name);
      if (reached === undefined) continue;
      target.append(svg("line", { class: reached ? "link" : "link cut", x1: at[i][0], y1: at[i][1], x2: at[j][0], y2: at[j][1] }));
    }
  }
  controllers.forEach((c, i) => {
    target.append(
      svg("circle", { class: "node " + c.kind, cx: at[i][0], cy: at[i][1], r: size }),
      svg("text", { x: at[i][0], y: at[i][1] + 4 }, c.mark),
      svg("text", { x: at[i][0], y: at[i][1] + size + 13 }, label(c.name), svg("title", {}, c.name)),
      svg("text", { class: "small", x: at[i][0], y: at[i][1] - size - 5 }, c.role));
  });
}
