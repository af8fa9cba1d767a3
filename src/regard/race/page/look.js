(() => {
  const tip = document.getElementById("tip"), text = document.getElementById("passage");
  if (!text) return;
  const passage = [...text.textContent], images = new WeakMap();
  const shown = (sign) => (sign === " " ? "space" : sign === "\n" ? "line end" : sign);

  // the shares of the largest weight, read back from the picture
  const shares = (image) => {
    if (!images.has(image)) {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
      const pen = canvas.getContext("2d");
      pen.drawImage(image, 0, 0);
      const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
      images.set(image, Array.from({ length: canvas.width * canvas.height }, (_, cell) =>
        (data[4 * cell] > data[4 * cell + 2] ? -1 : 1) * data[4 * cell + 3] / 254));
    }
    return images.get(image);
  };

  const read = (event) => {
    const image = event.target;
    if (!image.classList || !image.classList.contains("look") || !image.naturalWidth) return;
    const box = image.getBoundingClientRect(), side = image.naturalWidth;
    const cell = (place, start, size) => Math.max(0, Math.min(side - 1, Math.floor((place - start) / size * side)));
    const row = cell(event.clientY, box.top, box.height), column = cell(event.clientX, box.left, box.width);
    const own = shares(image).slice(row * side, (row + 1) * side);
    const weight = own[column] * image.dataset.largest.split(" ")[row];
    const words = document.createElement("div"), line = document.createElement("div");
    words.textContent = `${image.alt}\n${shown(passage[row])} (${row}) to ${shown(passage[column])} (${column}): ${weight.toPrecision(2)}`;
    line.className = "passage";
    passage.forEach((sign, place) => {
      const mark = document.createElement("span");
      mark.textContent = sign === "\n" ? "\u21b5" : sign;
      mark.style.backgroundColor = `rgb(${own[place] < 0 ? "220 110 40" : "70 130 230"} / ${Math.abs(own[place])})`;
      if (place === row) mark.className = "asking";
      if (place === column) mark.className += " asked";
      line.append(mark);
    });
    tip.replaceChildren(words, line);
    tip.hidden = false;
    const right = document.documentElement.clientWidth - tip.offsetWidth - 8;
    const above = event.clientY - tip.offsetHeight - 16;
    tip.style.left = Math.max(8, Math.min(right, event.clientX - tip.offsetWidth / 2)) + scrollX + "px";
    tip.style.top = (above > 0 ? above : event.clientY + 24) + scrollY + "px";
  };
  for (const kind of ["pointermove", "pointerdown"]) document.addEventListener(kind, read);
})();
