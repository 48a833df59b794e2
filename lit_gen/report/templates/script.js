"use strict";
document.documentElement.classList.add("js");
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// A click on a header sorts its table by the cells' data-v: numbers by value, names as text, missing ones last.
const number = text => text === "inf" ? Infinity : text === "-inf" ? -Infinity : Number(text);
const sort = header => {
  const body = header.closest("table").tBodies[0], column = header.cellIndex, numeric = "numeric" in header.dataset;
  const sign = header.ariaSort === "ascending" ? -1 : 1;
  for (const other of header.parentElement.cells) other.ariaSort = null;
  header.ariaSort = sign === 1 ? "ascending" : "descending";
  const value = row => row.cells[column].dataset.v;
  const compare = (a, b) => numeric ? (number(a) > number(b)) - (number(a) < number(b)) : a.localeCompare(b);
  const order = (a, b) => a === undefined || b === undefined ? (a === undefined) - (b === undefined) : sign * compare(a, b);
  [...body.rows].sort((a, b) => order(value(a), value(b))).forEach(row => body.append(row));
};
for (const button of all("th button")) button.onclick = () => sort(button.closest("th"));

// Each comparison has its own filter, which hides rows of the table with their points and samples.
for (const section of all("section.comparison")) {
  const form = section.querySelector("form.filter");
  if (!form) continue;
  const rows = all(".board tbody tr[id]", section), count = section.querySelector(".count");
  const filter = () => {
    const { model, sampler, budget, words } = form.elements, shown = new Set();
    const asked = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const { model: ofRow, sampler: by, nfe } = row.dataset, text = row.textContent.toLowerCase();
      const within = budget.value === "" || (nfe !== "" && Number(nfe) <= Number(budget.value));
      const fits = (model.value === "" || ofRow === model.value) && (sampler.value === "" || by === sampler.value);
      row.hidden = !(fits && within && asked.every(word => text.includes(word)));
      if (!row.hidden) shown.add(row.id);
    }
    for (const item of all("[data-row]", section)) item.toggleAttribute("hidden", !shown.has(item.dataset.row));
    for (const line of all(".curve, .front", section.querySelector(".charts") ?? section))
      line.toggleAttribute("hidden", shown.size < rows.length);
    count.textContent = `${shown.size} of ${rows.length} rows shown`;
  };
  form.oninput = filter;
  form.onreset = () => setTimeout(filter);
  form.onsubmit = event => event.preventDefault();
  const columns = section.querySelector(".columns"), board = section.querySelector(".board");
  columns.onchange = () => board.classList.toggle("few", !columns.checked);
  board.classList.add("few");
}

window.onbeforeprint = () => all("details.again").forEach(each => { each.open = true; });

// A link to a row that a filter hides shows all rows again.
const reveal = () => {
  const row = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (row && row.hidden) row.closest("section.comparison").querySelector("form.filter").reset();
  if (row && row.matches(".board tr")) {
    all(".chosen").forEach(other => other.classList.remove("chosen"));
    row.classList.add("chosen");
    setTimeout(() => row.scrollIntoView({ block: "center" }));
  }
};
window.addEventListener("hashchange", reveal);
reveal();

// One chart at a time; its points are one stop of the tab key, and the arrow keys go from point to point.
for (const charts of all(".charts")) {
  const section = charts.closest("section.comparison"), choices = all("input[name^=against]", section);
  const figures = all("figure.chart", charts), named = charts.querySelector(".named");
  const show = () => figures.forEach(figure => {
    const chosen = choices.find(choice => choice.checked);
    figure.hidden = chosen !== undefined && figure.dataset.against !== chosen.value;
  });
  for (const choice of choices) choice.onchange = show;
  show();
  for (const figure of figures) {
    const points = all("a.mark", figure);
    points.forEach((point, place) => {
      point.setAttribute("tabindex", place === 0 ? "0" : "-1");
      const name = () => { named.textContent = point.getAttribute("aria-label"); };
      point.addEventListener("mouseenter", name);
      point.addEventListener("focus", name);
      point.addEventListener("keydown", event => {
        const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        if (!step) return;
        event.preventDefault();
        const seen = points.filter(other => !other.hasAttribute("hidden")), at = seen.indexOf(point);
        const next = seen[(at + step + seen.length) % seen.length];
        points.forEach(other => other.setAttribute("tabindex", other === next ? "0" : "-1"));
        next.focus();
      });
    });
  }
}

// Settings in which two rows differ. Texts are stored once: rows and runs hold their indices, -1 for none.
const facts = JSON.parse(document.querySelector("script#facts").textContent);
const factsOf = id => {
  const [run, ...own] = facts.rows[id], width = facts.keys.length - own.length;
  const shared = run < 0 ? Array(width).fill(-1) : facts.runs[run];
  return [...own, ...shared].map(index => index < 0 ? "-" : facts.values[index]);
};
for (const tool of all("form.two")) {
  const table = tool.parentElement.querySelector("table.differences"), status = tool.querySelector("output");
  const compare = () => {
    const [one, other] = all("select", tool).map(select => select.value);
    const [a, b] = [factsOf(one), factsOf(other)], body = table.tBodies[0];
    const differ = facts.keys.map((key, place) => [key, a[place], b[place]]).filter(([, x, y]) => x !== y);
    body.replaceChildren(...differ.map(([key, ...values]) => {
      const line = document.createElement("tr"), head = document.createElement("th");
      head.scope = "row";
      head.textContent = key;
      line.append(head, ...values.map(value => Object.assign(document.createElement("td"), { textContent: value })));
      return line;
    }));
    table.hidden = differ.length === 0;
    status.textContent = differ.length ? `${differ.length} settings differ` : "no setting differs";
  };
  tool.oninput = compare;
  tool.onsubmit = event => event.preventDefault();
  compare();
}
