"use strict";
(() => {
  const tip = document.getElementById("tip");
  const show = (event) => {
    const text = event.target.getAttribute && event.target.getAttribute("data-tip");
    tip.hidden = !text;
    if (!text) return;
    tip.textContent = text;
    const mark = event.target.getBoundingClientRect();
    const right = document.documentElement.clientWidth - tip.offsetWidth - 8;
    const above = mark.top - tip.offsetHeight - 8;
    tip.style.left = Math.max(8, Math.min(right, mark.left + mark.width / 2 - tip.offsetWidth / 2)) + scrollX + "px";
    tip.style.top = (above > 0 ? above : mark.bottom + 8) + scrollY + "px";
  };
  for (const kind of ["pointerover", "pointerdown", "focusin"]) document.addEventListener(kind, show);
})();
