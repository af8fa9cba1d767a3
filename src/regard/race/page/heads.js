"use strict";
(() => {
  const heads = document.getElementById("heads"), large = document.getElementById("large");
  const order = document.getElementById("order"), sentence = document.getElementById("sentence");
  const sentences = JSON.parse(document.getElementById("words").textContent);
  const cells = [...heads.querySelectorAll(".cell")], layers = [...heads.querySelectorAll(".layer")];
  const shown = () => (sentence ? Number(sentence.value) : 0);
  let open = 0;

  const arrange = () => {
    const key = order.value, number = (cell, name) => Number(cell.dataset[name]);
    const place = (cell) => [key === "layer" ? 0 : key === "role" ? number(cell, key) : -number(cell, key), number(cell, "layer"), number(cell, "head")];
    cells.sort((a, b) => { const [p, q] = [place(a), place(b)]; return p[0] - q[0] || p[1] - q[1] || p[2] - q[2]; });
    heads.classList.toggle("mixed", key !== "layer");
    let last = -1;
    for (const cell of cells) {
      if (key === "layer" && number(cell, "layer") !== last) heads.append(layers[(last = number(cell, "layer"))]);
      heads.append(cell);
    }
  };

  const choose = () => {
    for (const picture of heads.querySelectorAll(".on")) picture.hidden = Number(picture.dataset.sentence) !== shown();
  };

  // the shares of each row's largest weight, read back from the picture
  const shares = (image) => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const pen = canvas.getContext("2d");
    pen.drawImage(image, 0, 0);
    const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
    return Array.from({ length: canvas.width * canvas.height }, (_, cell) =>
      (data[4 * cell] > data[4 * cell + 2] ? -1 : 1) * data[4 * cell + 3] / 254);
  };

  const turn = (step) => draw((open + step + cells.length) % cells.length);

  const make = (kind, text) => { const made = document.createElement(kind); if (text) made.textContent = text; return made; };

  const draw = (number) => {
    const image = cells[number].querySelector(`.on[data-sentence="${shown()}"] img`), words = sentences[shown()];
    if (!image.naturalWidth) return;
    open = number;
    const found = shares(image), largest = image.dataset.largest.split(" ").map(Number);
    document.getElementById("large-title").textContent = image.alt;
    document.getElementById("weight").textContent = "Touch a cell to read it.";
    const table = make("table"), top = make("tr"), body = make("tbody"), head = make("thead");
    top.append(make("th"), ...words.map((word) => { const column = make("th"); column.append(make("span", word)); return column; }));
    head.append(top);
    words.forEach((word, row) => {
      const line = make("tr");
      line.append(make("th", word), ...words.map((other, column) => {
        const cell = make("td"), ink = make("i"), share = found[row * words.length + column];
        ink.style.opacity = Math.abs(share);
        if (share < 0) ink.className = "negative";
        cell.dataset.told = `${word} to ${other}: ${(share * largest[row]).toPrecision(2)}`;
        cell.append(ink);
        return cell;
      }));
      body.append(line);
    });
    table.append(head, body);
    document.getElementById("map").replaceChildren(table);
    if (!large.open) large.showModal();
  };

  const read = (event) => {
    const cell = event.target.closest("td");
    if (!cell) return;
    for (const other of large.querySelectorAll(".chosen")) other.classList.remove("chosen");
    cell.classList.add("chosen");
    document.getElementById("weight").textContent = cell.dataset.told;
  };

  order.addEventListener("change", arrange);
  if (sentence) sentence.addEventListener("change", choose);
  heads.addEventListener("click", (event) => {
    const button = event.target.closest(".open");
    if (button && sentences.length) draw(cells.indexOf(button.closest(".cell")));
  });
  for (const [name, step] of [["before", -1], ["after", 1]]) document.getElementById(name).addEventListener("click", () => turn(step));
  large.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") { event.preventDefault(); turn(event.key === "ArrowLeft" ? -1 : 1); }
  });
  for (const kind of ["pointerover", "pointerdown"]) large.addEventListener(kind, read);
  arrange();
  choose();
})();
