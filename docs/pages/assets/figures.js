// Draws the figures of a page, with a plotly.js that lies beside this file.
{
  const home = document.currentScript.src.replace(/[^/]*$/, "");
  document.addEventListener("DOMContentLoaded", () => {
    const places = document.querySelectorAll("div.figure");
    if (places.length === 0) return;
    const plotly = document.createElement("script");
    plotly.src = home + "plotly.min.js";
    plotly.onload = () => {
      for (const place of places) {
        const figure = JSON.parse(place.querySelector("script").textContent);
        const layout = { ...figure.layout, autosize: true };
        delete layout.width;
        window.Plotly.newPlot(place, figure.data, layout, { responsive: true, displaylogo: false });
      }
    };
    document.head.append(plotly);
  });
}
