"use strict";
// The browsers of report.html: each shows the cards after its form that hold every word searched for, by state and label.
for (const form of document.querySelectorAll("form.filters")) {
  const browser = form.nextElementSibling, cards = [...browser.querySelectorAll(":scope > details")];
  const { search, state, label, marks } = form.elements, count = form.querySelector("output");
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
    if (marks) browser.classList.toggle("plain", !marks.checked);
  }

  form.addEventListener("input", show);
  form.addEventListener("submit", event => event.preventDefault());
  form.hidden = false;
  show();
}
