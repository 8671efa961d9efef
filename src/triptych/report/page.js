"use strict";
// Adds to a page that is complete without it: values under the pointer, and one sample prompt at a time.
(() => {
  document.documentElement.classList.add("js");

  const tip = document.getElementById("tip");
  const show = (event) => {
    const mark = event.target.closest ? event.target.closest("[data-tip]") : null;
    tip.hidden = !mark;
    if (!mark) return;
    tip.textContent = mark.dataset.tip;
    const box = tip.getBoundingClientRect();
    const room = document.documentElement.clientWidth;
    const left = Math.max(8, Math.min(event.clientX - box.width / 2, room - box.width - 8));
    const above = event.clientY - box.height - 14;
    tip.style.left = left + "px";
    tip.style.top = (above > 4 ? above : event.clientY + 18) + "px";
  };
  document.addEventListener("pointermove", show);
  document.addEventListener("pointerdown", show);
  document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

  const buttons = document.querySelectorAll("[data-sample]");
  for (const button of buttons) {
    button.addEventListener("click", () => {
      for (const other of buttons) {
        const chosen = other === button;
        other.setAttribute("aria-pressed", String(chosen));
        document.getElementById("sample-" + other.dataset.sample).classList.toggle("later", !chosen);
      }
    });
  }
})();
