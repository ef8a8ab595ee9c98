"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const COST = Object.keys(data.charts);
  const DASHES = ["solid", "dash", "dot"];
  const LIGHT = { ink: "#1c2128", grid: "#d0d7de", epochs: ["#440154", "#3b528b", "#21918c", "#5ec962", "#e0c520"] };
  const DARK = { ink: "#e6ebf0", grid: "#3a434d", epochs: ["#b07cc6", "#7f95d1", "#2fb5ae", "#6fdc73", "#fde725"] };
  const PRINT_WIDTH = { macs: 340, seconds: 340 }, SMALL_PRINT_WIDTH = 220;
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  const charts = new Map(); // id of an element to what gives its traces and axes
  const opened = new Set(); // runs whose charts are drawn
  let printing = false;
  let ring = {}; // the point of the slider on the charts of costs
  let marks = data.marks ?? {}; // what else is marked there
  let chosen = null; // the run whose budget the slider moves

  const byId = (id) => document.getElementById(id);
  const isDark = () => scheme.matches && !printing;
  const theme = () => (isDark() ? DARK : LIGHT);
  const channels = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  const lighter = (hex) => `#${channels(hex).map((c) => Math.round(c + 0.35 * (255 - c)).toString(16).padStart(2, "0")).join("")}`;
  const faint = (hex) => `rgba(${channels(hex).join(",")},0.18)`;
  const dash = (line) => DASHES[Math.floor(line / data.colours.length) % DASHES.length];
  // Plotly reads a little HTML in names.
  const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

  function colour(line) {
    const hex = data.colours[line % data.colours.length];
    return isDark() ? lighter(hex) : hex;
  }

  function layout(id, { x, y }) {
    const { ink, grid } = theme();
    const axis = { gridcolor: grid, zerolinecolor: grid, linecolor: grid, automargin: true, fixedrange: true };
    return {
      font: { color: ink, size: 12, family: "system-ui, sans-serif" },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 48, r: 12, t: 8, b: 44 },
      showlegend: false,
      hoverlabel: { namelength: -1 },
      xaxis: { ...axis, ...x },
      yaxis: { ...axis, ...y },
      autosize: !printing,
      width: printing ? PRINT_WIDTH[id] ?? SMALL_PRINT_WIDTH : undefined,
    };
  }

  function paint(id) {
    const { traces, axes } = charts.get(id)();
    Plotly.react(id, traces, layout(id, axes), { responsive: true, displayModeBar: false });
    byId(id).querySelectorAll("svg").forEach((svg) => svg.setAttribute("aria-hidden", "true"));
  }

  function draw(id, build) {
    charts.set(id, build);
    paint(id);
  }

  function costLine(line, place, sign) {
    const number = line.number ?? place; // lines of one thing on two charts look alike
    const name = plain(line.label), shade = colour(number);
    const edge = (end, more) => ({
      x: line.x, y: line.band[end], mode: "lines", hoverinfo: "skip", line: { width: 0, color: shade }, ...more,
    });
    const band = line.band ? [edge(0, {}), edge(1, { fill: "tonexty", fillcolor: faint(shade) })] : [];
    const seeds = (line.seeds ?? []).map((each) => ({
      ...each, mode: "lines", hoverinfo: "skip", opacity: 0.6, line: { color: shade, width: 0.8 },
    }));
    const hovertemplate = `%{y:.1f}${sign} at %{x:.3g}<extra>${name}</extra>`;
    const cross = { symbol: "x-thin", size: 9, line: { width: 2, color: shade } };
    return [
      ...band,
      ...seeds,
      { x: line.x, y: line.y, mode: "lines", line: { color: shade, dash: dash(number), width: 2.2 }, hovertemplate },
      { ...line.exits, mode: "markers", cliponaxis: false, marker: cross, hovertemplate },
    ];
  }

  function point(id, place, symbol, size, name) {
    return {
      x: [place[id] ?? null], y: [place.accuracy ?? null], mode: "markers", cliponaxis: false,
      hovertemplate: `%{y:.1f} %<extra>${plain(name)}</extra>`,
      marker: { symbol, size, color: theme().ink, line: { width: symbol.endsWith("open") ? 3 : 0 } },
    };
  }

  function costs(id) {
    const { title, lines, y = "test accuracy (%)", sign = " %", range = data.range, span } = data.charts[id];
    const { calibrated, cheapest, rivals = [], level } = marks;
    const across = level && {
      x: span, y: [level.accuracy, level.accuracy], mode: "lines", line: { color: theme().ink, width: 1, dash: "dot" },
      hovertemplate: `%{y:.1f} %<extra>${plain(level.name)}</extra>`,
    };
    const own = data.runs.length > 1 && chosen && {
      x: chosen.budgets.map((budget) => budget[id]), y: chosen.budgets.map((budget) => budget.accuracy), mode: "lines",
      line: { color: theme().ink, width: 1.4, dash: "dash" }, hovertemplate: `%{y:.1f} %<extra>${plain(chosen.name)}</extra>`,
    };
    return {
      traces: [
        ...(across ? [across] : []),
        ...lines.flatMap((line, place) => costLine(line, place, sign)),
        ...(own ? [own] : []),
        ...rivals.map((rival) => point(id, rival, "square", 9, rival.name)),
        ...(calibrated ? [point(id, calibrated, "diamond", 11, "as calibrated")] : []),
        ...(cheapest ? [point(id, cheapest, "star", 13, "cheapest within 1 point")] : []),
        point(id, ring, "circle-open", 18, "the slider"),
      ],
      axes: {
        x: { title: { text: title }, ...(span ? { range: span } : { rangemode: "tozero" }) },
        y: range ? { title: { text: y }, range } : { title: { text: y } },
      },
    };
  }

  const bins = ({ x, y, share }, name, symbol, shade) => ({
    x, y, mode: "markers", cliponaxis: false,
    marker: { symbol, size: share.map((part) => 4 + 14 * Math.sqrt(part)), color: shade, opacity: 0.8, line: { width: 0 } },
    text: share.map((part) => `${(100 * part).toFixed(1)} % of the ${data.noun}`),
    hovertemplate: `right %{y:.0f} % at confidence %{x:.0f} %, %{text}<extra>${name}</extra>`,
  });

  function reliability([before, after]) {
    const diagonal = { color: "#888888", dash: "dash", width: 1 };
    const axis = (text) => ({ title: { text }, range: [0, 102], dtick: 25 });
    return {
      traces: [
        { x: [0, 100], y: [0, 100], mode: "lines", line: diagonal, hoverinfo: "skip" },
        bins(before, "before", "circle", colour(0)),
        bins(after, "after", "diamond", colour(1)),
      ],
      axes: { x: axis("confidence (%)"), y: axis("accuracy (%)") },
    };
  }

  function weights(rows, exit) {
    const traces = rows.map((row, number) => ({
      x: row.losses.map((losses) => losses[exit]), y: row.weights.map((each) => each[exit]), mode: "markers",
      marker: { color: theme().epochs[number], size: 6, opacity: 0.85 },
      hovertemplate: `weight %{y:.2f} at loss %{x:.2f}<extra>epoch ${row.epoch}</extra>`,
    }));
    return { traces, axes: { x: { title: { text: "loss" }, rangemode: "tozero" }, y: { title: { text: "weight" } } } };
  }

  function learning(exits) {
    const line = (x, y, number, width, dash, name) => ({
      x, y, mode: x.length > 1 ? "lines" : "markers", line: { color: colour(number), width, dash },
      marker: { color: colour(number) }, hovertemplate: `%{y:.1f} % in epoch %{x}<extra>${name}</extra>`,
    });
    return {
      traces: exits.flatMap(({ x, train, calibration }, number) => [
        line(x, train, number, 1, "dot", `exit ${number + 1}, training ${data.noun}`),
        line(x, calibration, number, 2.2, "solid", `exit ${number + 1}, calibration ${data.noun}`),
      ]),
      axes: { x: { title: { text: "epoch" }, tickformat: "d" }, y: { title: { text: "accuracy (%)" } } },
    };
  }

  function drawRun(i) {
    const run = data.runs[i];
    if (run.learning.length) draw(`learning-${i}`, () => learning(run.learning));
    run.reliability.forEach((pair, exit) => {
      draw(`reliability-${i}-${exit}`, () => reliability(pair));
      if (byId(`weights-${i}-${exit}`)) draw(`weights-${i}-${exit}`, () => weights(run.weights, exit));
    });
  }

  function show(i, position) {
    const { text, shares, thresholds, ...place } = data.runs[i].budgets[position];
    for (const [name, value] of Object.entries(text)) byId(`${name}-${i}`).textContent = value;
    byId(`budget-${i}`).setAttribute("aria-valuetext", `${text.share} of the full network’s MACs`);
    shares.forEach((share, exit) => {
      byId(`leave-${i}-${exit}`).textContent = share;
      byId(`bar-${i}-${exit}`).style.width = share.replace(" ", "");
      if (exit < thresholds.length) byId(`threshold-${i}-${exit}`).textContent = thresholds[exit];
    });
    ring = place;
    COST.forEach(paint);
  }

  function open(i) {
    document.querySelectorAll("[data-of]").forEach((part) => { part.hidden = Number(part.dataset.of) !== i; });
    if (!opened.has(i)) drawRun(i);
    opened.add(i);
    marks = data.runs[i].marks;
    chosen = data.runs[i];
    show(i, Number(byId(`budget-${i}`).value));
  }

  function choose(cost) {
    COST.forEach((id) => { byId(id).closest("figure").hidden = id !== cost; });
    paint(cost);
  }

  function search({ target }) {
    const run = byId(`run-${target.dataset.run}`), wanted = target.value.trim().toLowerCase();
    run.querySelectorAll("[data-class]").forEach((part) => {
      part.hidden = !part.dataset.class.toLowerCase().includes(wanted);
    });
    const rows = [...run.querySelectorAll("tr[data-class]")];
    byId(`found-${target.dataset.run}`).textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} classes`;
  }

  async function copy({ target }) {
    const code = byId(target.dataset.copy);
    try {
      await navigator.clipboard.writeText(code.textContent);
      target.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code); // to be copied by hand
      target.textContent = "Selected";
    }
    setTimeout(() => { target.textContent = "Copy"; }, 2000);
  }

  function repaint() {
    document.querySelectorAll("[data-epoch]").forEach((dot) => {
      dot.style.background = theme().epochs[Number(dot.dataset.epoch)];
    });
    document.querySelectorAll("[data-line]").forEach((mark) => {
      mark.style.color = colour(Number(mark.dataset.line));
    });
    [...charts.keys()].forEach(paint);
  }

  function print(on) {
    printing = on;
    repaint();
  }

  COST.forEach((id) => draw(id, () => costs(id)));
  document.querySelectorAll("input.budget").forEach((slider) => {
    slider.addEventListener("input", () => show(Number(slider.dataset.run), Number(slider.value)));
  });
  document.querySelectorAll("input[name=cost]").forEach((button) => {
    button.addEventListener("change", () => choose(button.value));
  });
  document.querySelectorAll("input[type=search]").forEach((field) => field.addEventListener("input", search));
  document.querySelectorAll("button.copy").forEach((button) => button.addEventListener("click", copy));
  byId("run")?.addEventListener("change", (event) => open(Number(event.target.value)));
  if (data.runs.length) open(Number(byId("run")?.value ?? 0));
  repaint();
  scheme.addEventListener("change", repaint);
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
})();
