// Draws the charts with the page's own colours, and again when the reader's colour scheme changes.
(() => {
  "use strict";
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

  // "$accent/0.2" -> rgba of the CSS variable --accent.
  function colour(word) {
    const [name, opacity] = word.slice(1).split("/");
    const hex = css(name);
    if (!opacity) return hex;
    const [r, g, b] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
    return `rgba(${r},${g},${b},${opacity})`;
  }
  function coloured(value) {
    if (typeof value === "string") return value.startsWith("$") ? colour(value) : value;
    if (Array.isArray(value)) return value.every((item) => typeof item !== "object") ? value : value.map(coloured);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, coloured(item)]));
    }
    return value;
  }
  function layout(chart) {
    const axis = {
      gridcolor: css("line"), zeroline: false, linecolor: css("line"), fixedrange: true, automargin: true,
      tickfont: { color: css("muted"), size: 12 },
    };
    return {
      font: { family: getComputedStyle(document.body).fontFamily, color: css("ink"), size: 13 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, dragmode: false,
      margin: { l: 40, r: 14, t: 10, b: 30 }, hovermode: "x unified",
      hoverlabel: { bgcolor: css("card"), bordercolor: css("line"), font: { color: css("ink"), size: 12.5 } },
      xaxis: { ...axis, showgrid: false, hoverformat: "d", nticks: 8, tickprefix: "", unifiedhovertitle: { text: "step %{x}" } },
      yaxis: {
        ...axis, nticks: 6, tickformat: chart.format || "", hoverformat: chart.format ? ".1%" : ".3~g",
        rangemode: "tozero", ...(chart.range ? { range: chart.range } : {}),
      },
    };
  }
  function draw() {
    for (const chart of charts) {
      const options = { displayModeBar: false, responsive: true, doubleClick: false, scrollZoom: false };
      Plotly.react("plot-" + chart.id, coloured(chart.traces), layout(chart), options);
    }
  }
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
