"use strict";

// The pointer's tooltip of every curve.
for (const chart of document.querySelectorAll("svg.chart")) {
  const { x, s, left, right, width } = JSON.parse(chart.dataset.points);
  const figure = chart.closest("figure"), cursor = chart.querySelector(".cursor"), tip = document.createElement("div");
  tip.className = "tip"; tip.hidden = true; figure.append(tip);
  const hide = () => { tip.hidden = true; cursor.setAttribute("visibility", "hidden"); };
  chart.addEventListener("pointerleave", hide);
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const at = x[0] + ((event.clientX - box.left) * width / box.width - left) / (right - left) * (x[x.length - 1] - x[0]);
    let i = 0;
    x.forEach((step, j) => { if (Math.abs(step - at) < Math.abs(x[i] - at)) i = j; });
    const place = left + (right - left) * (x[i] - x[0]) / ((x[x.length - 1] - x[0]) || 1);
    for (const name of ["x1", "x2"]) cursor.setAttribute(name, place);
    cursor.setAttribute("visibility", "visible");
    tip.replaceChildren(`step ${x[i]}`, ...s.map(([name, values], j) => {
      const row = document.createElement("div"), dot = document.createElement("i");
      dot.className = `c${j}`;
      row.append(dot, `${name} ${values[i]}`);
      return row;
    }));
    tip.hidden = false;
    const px = place * box.width / width + box.left - figure.getBoundingClientRect().left;
    tip.style.left = `${Math.max(0, Math.min(px + 12, figure.clientWidth - tip.offsetWidth - 6))}px`;
    tip.style.top = "44px";
  });
}
