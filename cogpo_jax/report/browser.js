"use strict";
// The problem browser of report.html: shows the problems that hold every word searched for, by state and label.
(() => {
  const form = document.getElementById("filters"), cards = [...document.querySelectorAll("#browser > details")];
  const [search, state, label, marks, count] = ["search", "state", "label", "marks", "count"].map(id => document.getElementById(id));
  const texts = new Map(); // made at the first search: a page holds megabytes

  function holds(card, words) {
    if (!words.length) return true;
    if (!texts.has(card)) texts.set(card, card.textContent.toLowerCase());
    return words.every(word => texts.get(card).includes(word));
  }

  function show() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const card of cards) {
      const fits = (!state.value || card.dataset.state === state.value)
        && (!label.value || card.dataset.label === label.value) && holds(card, words);
      card.hidden = !fits;
      shown += fits;
    }
    count.textContent = `${shown} of ${cards.length}`;
    document.getElementById("browser").classList.toggle("plain", !marks.checked);
  }

  form.addEventListener("input", show);
  form.addEventListener("submit", event => event.preventDefault());
  form.hidden = false;
  show();
})();
