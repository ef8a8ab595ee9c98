"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const THEMES = { light: { ink: "#1c2128", grid: "#d0d7de" }, dark: { ink: "#e6ebf0", grid: "#3a434d" } };
  const EPOCHS = ["#440154", "#3b528b", "#21918c", "#5ec962", "#e0c520"];
  const EPOCHS_DARK = ["#b07cc6", "#7f95d1", "#2fb5ae", "#6fdc73", "#fde725"];
  const DASHES = ["solid", "dash", "dot"];
  const PRINT_WIDTHS = { macs: 340, seconds: 340, other: 220 };
  const drawn = [];
  let printing = false;

  const byId = (id) => document.getElementById(id);
  const theme = () => (dark.matches && !printing ? THEMES.dark : THEMES.light);
  const epochColours = () => (dark.matches && !printing ? EPOCHS_DARK : EPOCHS);
  const colour = (line) => data.colours[line % data.colours.length];
  const dash = (line) => DASHES[Math.floor(line / data.colours.length) % DASHES.length];
  // Plotly reads a little HTML in names.
  const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const faint = (hex) => `rgba(${[1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)).join(",")},0.18)`;

  function layout(x, y, more = {}) {
    const { ink, grid } = theme();
    const axis = { gridcolor: grid, zerolinecolor: grid, linecolor: grid, automargin: true, fixedrange: true };
    return {
      font: { color: ink, size: 12, family: "system-ui, sans-serif" },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 48, r: 12, t: 8, b: 44 },
      showlegend: false,
      hoverlabel: { namelength: -1 },
      xaxis: { ...axis, title: { text: x }, ...more.x },
      yaxis: { ...axis, title: { text: y }, ...more.y },
    };
  }

  function draw(id, traces, look) {
    Plotly.newPlot(id, traces, look, { responsive: true, displayModeBar: false });
    byId(id).querySelectorAll("svg").forEach((svg) => svg.setAttribute("aria-hidden", "true"));
    drawn.push(id);
  }

  function drawCost(id) {
    const { title, lines } = data.charts[id];
    const traces = lines.flatMap((line, number) => {
      const name = plain(line.label);
      const look = { color: colour(number), dash: dash(number), width: 2.2 };
      const band = (sign, more) => ({
        x: line.x, y: line.y.map((value, i) => value + sign * line.half[i]), mode: "lines", hoverinfo: "skip",
        line: { width: 0, color: colour(number) }, ...more,
      });
      const bands = line.half ? [band(-1, {}), band(1, { fill: "tonexty", fillcolor: faint(colour(number)) })] : [];
      const hover = `%{y:.1f} % at %{x:.3g}<extra>${name}</extra>`;
      const alone = { symbol: "x-thin", size: 9, line: { width: 2, color: colour(number) } };
      return [
        ...bands,
        { x: line.x, y: line.y, mode: "lines", line: look, hovertemplate: hover, name },
        { ...line.exits, mode: "markers", marker: alone, hovertemplate: hover, name: `${name}, one exit` },
      ];
    });
    const ring = { symbol: "circle-open", size: 14, line: { width: 3 }, color: theme().ink };
    traces.push({ x: [null], y: [null], mode: "markers", marker: ring, hoverinfo: "skip", name: "slider" });
    draw(id, traces, layout(title, "test accuracy (%)", { x: { rangemode: "tozero" }, y: { range: data.range } }));
  }

  function drawRun(i) {
    const run = data.runs[i];
    run.reliability.forEach(([before, after], exit) => {
      const square = { range: [0, 102], dtick: 25 };
      draw(`reliability-${i}-${exit}`, [
        { x: [0, 100], y: [0, 100], mode: "lines", line: { color: "#888888", dash: "dash", width: 1 }, hoverinfo: "skip" },
        reliability(before, "before", "circle", data.colours[0]),
        reliability(after, "after", "diamond", data.colours[1]),
      ], layout("confidence (%)", "accuracy (%)", { x: square, y: square }));
    });
    if (!byId(`weights-${i}-0`)) return;
    run.reliability.forEach((_, exit) => {
      const traces = run.weights.map((row, number) => ({
        x: row.losses.map((losses) => losses[exit]), y: row.weights.map((weights) => weights[exit]), mode: "markers",
        marker: { color: epochColours()[number], size: 6, opacity: 0.85 },
        hovertemplate: `weight %{y:.2f} at loss %{x:.2f}<extra>epoch ${row.epoch}</extra>`,
      }));
      draw(`weights-${i}-${exit}`, traces, layout("loss", "weight", { x: { rangemode: "tozero" } }));
    });
  }

  const reliability = (points, name, symbol, shade) => ({
    ...points, mode: "lines+markers", name, line: { color: shade, width: 1.5 }, marker: { symbol, size: 7, color: shade },
    hovertemplate: `right %{y:.0f} % at confidence %{x:.0f} %<extra>${name}</extra>`,
  });

  function show(i, position) {
    const { text, shares, thresholds, ...point } = data.runs[i].budgets[position];
    for (const [name, value] of Object.entries(text)) byId(`${name}-${i}`).textContent = value;
    byId(`live-${i}`).textContent = `${text.accuracy} right at ${text.share} of the compute, ${text.seconds} per image`;
    byId(`budget-${i}`).setAttribute("aria-valuetext", `${text.share} of the full network’s MACs`);
    shares.forEach((share, exit) => {
      byId(`leave-${i}-${exit}`).textContent = share;
      byId(`bar-${i}-${exit}`).style.width = share.replace(" ", "");
      if (exit < thresholds.length) byId(`threshold-${i}-${exit}`).textContent = thresholds[exit];
    });
    for (const id of ["macs", "seconds"]) {
      Plotly.restyle(id, { x: [[point[id]]], y: [[point.accuracy]] }, [byId(id).data.length - 1]);
    }
  }

  const ready = new Set();
  function open(i) {
    document.querySelectorAll("article.run").forEach((run, number) => { run.hidden = number !== i; });
    if (!ready.has(i)) drawRun(i);
    ready.add(i);
    show(i, Number(byId(`budget-${i}`).value));
  }

  function repaint() {
    const { ink, grid } = theme();
    document.querySelectorAll(".dot").forEach((dot) => {
      dot.style.background = epochColours()[Number(dot.className.split("epoch-")[1])];
    });
    for (const id of drawn) {
      const axes = Object.fromEntries(["xaxis", "yaxis"].flatMap((axis) =>
        ["gridcolor", "zerolinecolor", "linecolor"].map((part) => [`${axis}.${part}`, grid])));
      const width = PRINT_WIDTHS[id] ?? PRINT_WIDTHS.other;
      Plotly.relayout(id, { ...axes, "font.color": ink, ...(printing ? { width, autosize: false } : { width: null, autosize: true }) });
      if (id.startsWith("weights-")) Plotly.restyle(id, { "marker.color": epochColours() });
    }
    for (const id of ["macs", "seconds"]) Plotly.restyle(id, { "marker.color": ink }, [byId(id).data.length - 1]);
  }

  ["macs", "seconds"].forEach(drawCost);
  document.querySelectorAll("input.budget").forEach((slider) => {
    slider.addEventListener("input", () => show(Number(slider.dataset.run), Number(slider.value)));
  });
  byId("run")?.addEventListener("change", (event) => open(Number(event.target.value)));
  open(Number(byId("run")?.value ?? 0));
  repaint();
  dark.addEventListener("change", repaint);

  const closed = () => document.querySelectorAll("details:not([open])");
  let opened = [];
  addEventListener("beforeprint", () => {
    printing = true;
    opened = [...closed()];
    opened.forEach((each) => { each.open = true; });
    repaint();
  });
  addEventListener("afterprint", () => {
    printing = false;
    opened.forEach((each) => { each.open = false; });
    repaint();
  });
})();
