"use strict";
// Columns with a data-key sort their table; "#sort=-mean" in the address opens the page sorted by one, descending.
const opposite = { ascending: "descending", descending: "ascending" };
const heads = [...document.querySelectorAll("th[data-key]")];

function compare(a, b) {
  const x = a === "" ? NaN : Number(a), y = b === "" ? NaN : Number(b);
  if (!Number.isNaN(x) && !Number.isNaN(y)) return x - y;
  return a.localeCompare(b, "en", { numeric: true });
}

function sort(head, direction) {
  const table = head.closest("table"), column = head.cellIndex, sign = direction === "ascending" ? 1 : -1;
  const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => (value(a) === "") - (value(b) === "") || sign * compare(value(a), value(b)));
  table.tBodies[0].append(...rows);
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", direction);
}

function follow() {
  const [, minus, key] = /^#sort=(-?)(.*)$/.exec(location.hash) ?? [];
  const head = heads.find((one) => encodeURIComponent(one.dataset.key) === key);
  if (!head) return;
  sort(head, minus ? "descending" : "ascending");
  head.closest("section").scrollIntoView();
}

for (const head of heads) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  button.addEventListener("click", () => {
    const direction = opposite[head.getAttribute("aria-sort")] ?? head.dataset.first ?? "ascending";
    sort(head, direction);
    history.replaceState(null, "", `#sort=${direction === "descending" ? "-" : ""}${encodeURIComponent(head.dataset.key)}`);
  });
  head.append(button);
}
addEventListener("hashchange", follow);
follow();
