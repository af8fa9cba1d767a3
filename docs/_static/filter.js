// Selects above the table of all mechanisms; without scripts the table is simply whole.
const place = document.querySelector(".filters");
if (place) {
  const rows = [...document.querySelectorAll(".mechanisms tbody tr")];
  const heads = [...document.querySelectorAll(".mechanisms thead th")].map((head) => head.textContent);
  const chosen = new Map();
  const count = document.createElement("span");
  count.setAttribute("role", "status");
  const show = () => {
    for (const row of rows) {
      row.hidden = [...chosen].some(([column, word]) => word && row.cells[column].textContent !== word);
    }
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
  };
  for (const name of ["on", "causal", "cross", "decodes"]) {
    const column = heads.indexOf(name);
    const label = document.createElement("label");
    const select = document.createElement("select");
    select.add(new Option("any", ""));
    for (const word of [...new Set(rows.map((row) => row.cells[column].textContent))].sort()) {
      select.add(new Option(word));
    }
    select.addEventListener("change", () => {
      chosen.set(column, select.value);
      show();
    });
    label.append(name, select);
    place.append(label);
  }
  place.append(count);
  place.hidden = false;
  show();
}
